"""Tasks: items, and something to predict about each.

The room owns reading (`tables`), which column holds what (`layouts`), what makes a row usable (`rows`), the split into
pool and queries (`splits`) and the bundled tasks (`bundled`). It must not know of vectors, prompts or models: a Task is
what a chemist would hand over, checked. It trades convenience for certainty: a cell is parsed by our own rule and never
guessed, so that a table gives one and the same Task from csv, tsv, parquet or a DataFrame (there a float that is whole
is written without its point: a missing neighbour makes floats of whole numbers), or one sentence that says which cell
stands in the way.
"""

from __future__ import annotations

import inspect
import os
from collections import Counter
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.tasks.bundled import TASKS, synthetic_truth
from icrl_lab.tasks.layouts import LAYOUTS, MODALITIES, Columns, columns_of
from icrl_lab.tasks.rows import Row, number, usable_rows
from icrl_lab.tasks.splits import SPLITS, split
from icrl_lab.tasks.tables import SUFFIXES, Table, read_table
from icrl_lab.values import Dropped, Task

__all__ = ["LAYOUTS", "MODALITIES", "SPLITS", "SUFFIXES", "TASKS", "load_task", "split", "synthetic_truth"]

CLASSES = 5  # numbers that a small table may have as classes, whatever their sizes
_split = split  # the function; `load_task` has an argument of that name


def load_task(
    source: Any,
    *,
    text: str | None = None,
    target: str | None = None,
    label: str | None = None,
    id: str | None = None,
    units: str = "",
    property: str = "",
    split: str | None = None,
    query_fraction: float = 0.5,
    seed: int = 0,
    on_bad: str = "error",
    modality: str | None = None,
    name: str | None = None,
    **options: Any,
) -> Task:
    """A Task from a bundled name, a path or a DataFrame.

    source          a name of TASKS ("freesolv", "huuskonen", "digits", "synthetic"); a .csv, .tsv, .tab or .parquet
                    file; a folder with files train and test; or a pandas DataFrame
    text            column with the items; found by itself in the layouts of MoleculeNet and TDC, and where it is
                    called smiles, drug, sequence or text
    target, label   column with the numbers (regression) or with the classes (classification)
    id              column with unique ids; else a column "id", else the text itself
    split           "random", "scaffold", or a column that holds train, valid and test; None takes a column "split"
                    where there is one with these sides, else "random"
    query_fraction  share of queries of a random or scaffold split
    seed            fixes the split (and the synthetic data); a study's own seeds never change the queries
    on_bad          "error": the first unusable row raises; "drop": unusable rows stand in `task.dropped`
                    (a bundled table always drops, for its faults are known)
    modality        one of MODALITIES; "molecule" checks each item with rdkit and is found by itself in known layouts and
                    columns, else "text"
    options         n, d, noise of "synthetic"

    Rows with the same molecule (or text) become one item with the mean target; each is listed in `task.dropped`.
    Raises DataError for a table that cannot be used, StudyError for an argument that cannot be.
    """
    if on_bad not in ("error", "drop"):
        raise StudyError(f"on_bad={on_bad!r} does not exist; {nearest(on_bad, ('error', 'drop'))}")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise StudyError(f"seed must be a whole number of at least 0, not {seed!r}")
    if isinstance(source, str) and source in TASKS:
        given = {"text": text, "target": target, "label": label, "id": id, "modality": modality}
        wrong = next((k for k, v in given.items() if v is not None), None)
        if wrong:
            raise StudyError(f"{wrong}=... is for tables of your own; the bundled task {source!r} has its own columns")
        made, on_bad, name = _bundled(source, seed, options), "drop", name or source
    else:
        made = read_table(_path(source))
        if options:
            wrong = next(iter(options))
            raise StudyError(f"load_task has no argument {wrong!r} for a table; {nearest(wrong, _arguments())}")
    if isinstance(made, Table):
        columns = columns_of(made, text, target, label, id, split, modality)
        rows, dropped = usable_rows(made, columns, on_bad)
        dropped = [d if d.row is None else replace(d, place=made.places[d.row]) for d in dropped]
        task = _task(made, columns, rows, dropped, modality)
        sides = [r.side for r in rows] if columns.split is not None else None
    else:
        task, sides = made, None
    task = replace(task, name=name or task.name, units=units or task.units, property=property or task.property)
    return _split(task, sides or split or "random", seed, query_fraction)


def _bundled(name: str, seed: int, options: dict[str, Any]) -> Table | Task:
    accepted = set(inspect.signature(TASKS[name]).parameters)
    wrong = next((k for k in options if k not in accepted - {"seed"}), None)
    if wrong:
        own = sorted(accepted - {"seed"})
        hint = nearest(wrong, [*own, *_arguments()])
        hint = hint if hint.startswith("did you mean") else f"valid: {', '.join(own) or 'none'}"
        raise StudyError(f"the bundled task {name!r} has no option {wrong!r}; {hint}")
    given = {**options, **({"seed": seed} if "seed" in accepted else {})}
    try:
        return TASKS[name](**given)
    except (TypeError, ValueError) as error:  # a whole number that is none, a word
        if not given:
            raise
        told = ", ".join(f"{key} = {value!r}" for key, value in given.items())
        raise StudyError(f"the bundled task {name!r} cannot be made with {told}: {error}") from error


def _arguments() -> list[str]:
    """What `load_task` takes by name."""
    return [name for name, p in inspect.signature(load_task).parameters.items() if p.kind is p.KEYWORD_ONLY]


def _path(source: Any) -> Any:
    """`source`; a bare word that is no file is taken for a misspelt bundled name."""
    if isinstance(source, str) and not os.path.exists(source) and source == Path(source).stem:
        raise StudyError(f"{source!r} is neither a bundled task nor a file; {nearest(source, TASKS)}")
    return source


def _task(table: Table, columns: Columns, rows: list[Row], dropped: list[Dropped], modality: str | None) -> Task:
    """The rows as a Task with everything in the pool, or why they make none."""
    what = columns.target or columns.label
    left = (
        f"; {len(dropped)} of {len(table)} rows were left out, the first because {dropped[0].reason}" if dropped else ""
    )
    if len(rows) < 2:
        raise DataError(f"{table.name}: {len(rows)} usable items, and a task needs at least 2{left}")
    values = {r.target for r in rows} if columns.target else {r.label for r in rows}
    if len(values) == 1:
        kind = "target" if columns.target else "label"
        raise DataError(
            f"{table.name}, column {what!r}: the {kind} is {next(iter(values))!r} in all {len(rows)} rows, so there is "
            f"nothing to predict; name another column{left}"
        )
    if columns.label and _measured([r.label for r in rows]):
        raise DataError(
            f"{table.name}, column {what!r}: its {len(rows)} labels are {len(values)} different numbers, which look measured and not like "
            f"classes; predict them as numbers with target = {what!r}, or write classes as words{left}"
        )
    ids = f"ids: {columns.id or columns.text}"
    return Task(
        name=Path(table.name).stem,
        ids=tuple(r.id for r in rows),
        items=tuple(r.item for r in rows),
        text=tuple(r.item for r in rows),
        targets=np.array([r.target for r in rows]) if columns.target else None,
        labels=tuple(r.label for r in rows) if columns.label else None,
        options=_options({r.label for r in rows}) if columns.label else (),
        units=columns.units,
        property=columns.property,
        modality=modality or ("molecule" if columns.molecule else "text"),
        pool=np.arange(len(rows)),
        queries=np.array([], np.int64),
        dropped=tuple(dropped),
        source="; ".join(s for s in (table.source, columns.layout and f"layout {columns.layout}", ids) if s),
    )


def _measured(labels: list[str]) -> bool:
    """Whether labels are rather a measured quantity: numbers, nearly each of which is a class of its own."""
    sizes = Counter(labels)
    alone = sum(size == 1 for size in sizes.values())
    many = len(sizes) > CLASSES and (2 * alone > len(sizes) or 2 * len(sizes) > len(labels))
    return many and not any(number(label)[1] for label in sizes)


def _options(labels: set[str]) -> tuple[str, ...]:
    """The classes in order: by value where all are numbers ("9" before "10"), else by name."""
    try:
        return tuple(sorted(labels, key=lambda c: (float(c), c)))
    except ValueError:
        return tuple(sorted(labels))
