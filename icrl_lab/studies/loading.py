"""The study of a study file: its task, its vectors and its model loaded, without the items that cannot be taken where it says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icrl_lab.errors import DataError, ItemError, StudyError
from icrl_lab.studies.checks import names_of
from icrl_lab.studies.plan_checks import check, reads_text
from icrl_lab.studies.run import Study
from icrl_lab.studies.sections import TaskSpec
from icrl_lab.studies.spec import StudySpec
from icrl_lab.values import Task, Vectors

if TYPE_CHECKING:
    from icrl_lab.models import LLM


def _nothing_by_chance(spec: StudySpec) -> None:
    """Refuse hub names under which a folder lies where the user happens to be: it would be loaded in the hub's place."""
    named = [("encoder", encoder.name) for encoder in (spec.encoder, *spec.encoder.also)]
    for kind, name in [*named, ("llm", spec.llm.name)]:
        if name and name not in names_of(kind) and not os.path.isabs(name) and os.path.isdir(name):
            raise StudyError(
                f"[{kind}] name = {name!r} is a hub name in this study file, and a folder of that name lies in {os.getcwd()}, "
                "which would be loaded in its place; write the folder's path, or run this elsewhere"
            )


def load(spec: StudySpec, *, progress: bool | None = None) -> Study:
    """The study of a study file: its task, its vectors and its model loaded."""
    from icrl_lab.encoders import ENCODERS, encode, repeat
    from icrl_lab.models import load_llm
    from icrl_lab.tasks import load_task

    _nothing_by_chance(spec)
    t = spec.task
    given: dict[str, Any] = {
        "units": t.units,
        "property": t.property,
        "text": t.text,
        "target": t.target,
        "label": t.label,
        "id": t.id,
    }
    given = {k: v for k, v in given.items() if v} | dict(t.options)
    if t.modality:
        given["modality"] = t.modality
    if t.split:
        given["split"] = t.split
    source: Any = t.name or Path(t.path or "")
    task = load_task(source, on_bad=t.on_bad, query_fraction=t.query_fraction, seed=spec.study.split_seed, **given)
    check(task, spec.study)
    vectors = []
    for e in (spec.encoder, *spec.encoder.also):
        which = {"path": e.path} if e.path else {"name": e.name}
        use = partial(encode, progress=progress, **which, **e.options)
        of_molecules = e.name in ENCODERS and "molecule" in ENCODERS[e.name].modalities
        task, found = _taken(task, t.on_bad, partial(_read, use=use, column=_column(t)) if of_molecules else use)
        vectors.append(repeat(found, e.slots) if e.slots > 1 else found)
    llm = load_llm(spec.llm.name, dtype=spec.llm.dtype, progress=progress)
    if reads_text(spec.study):
        task, _ = _taken(task, t.on_bad, partial(_fits, llm=llm))
    return Study(task, vectors, llm, spec=spec)


def _taken(task: Task, on_bad: str, use: Callable[[Task], Any]) -> tuple[Task, Any]:
    """The task, and what `use` makes of it. Items that it cannot take are left out where that is asked for."""
    while True:
        try:
            return task, use(task)
        except ItemError as error:
            if on_bad != "drop":
                raise
            for item, why in error.reasons.items():
                task = task.without(item, "", why)


def _column(t: TaskSpec) -> str:
    """Where the items of a task stand, as far as its study file says it."""
    return f" in column {t.text!r} of {Path(t.path).name}" if t.text and t.path else ""


def _read(task: Task, use: Callable[[Task], Vectors], column: str) -> Vectors:
    """What an encoder of molecules makes of the task; where it can read none of the items, another column is meant."""
    try:
        return use(task)
    except ItemError as error:
        if len(error.reasons) < len(task):
            raise
        cause = str(error).split("; ")[0]
        remedy = "name the column of SMILES with text = ..., or take an encoder that reads these items"
        raise DataError(
            f"none of the {len(task)} items{column} can be read as a molecule ({cause}); {remedy}"
        ) from None


def _fits(task: Task, llm: LLM) -> None:
    """Raise the ItemError of all items whose own text is longer than what the model reads."""
    from icrl_lab.prompts import too_long

    remedy = 'leave the item out with on_bad = "drop", or its text with with_text = false'
    refused = {}
    for position, tokens in too_long(task.text or (), llm.tokenizer, llm.context).items():
        name = task.ids[position]
        refused[name] = f"the text of item {name!r} has {tokens} tokens, and {llm.name} reads {llm.context}; {remedy}"
    if refused:
        raise ItemError(*next(iter(refused.items())), refused)
