"""Table -> items: every cell checked, every row that cannot be used named with its reason, one item a molecule.

Two rows with the same item (the same canonical SMILES, or the same text) are one item: their targets are averaged, so
that no molecule can stand among the shots and be asked about. Where a split is given and puts them on different
sides, the test side keeps the item and its target, and the other rows are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from icrl_lab.errors import DataError
from icrl_lab.tasks.layouts import Columns
from icrl_lab.tasks.molecules import canonical, quiet
from icrl_lab.tasks.splits import SIDES
from icrl_lab.tasks.tables import Table
from icrl_lab.values import Dropped
from icrl_lab.values.base import written

NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
KEEPS = ("test", "train", "valid")  # which side keeps an item that a given split puts on two


@dataclass(frozen=True)
class Row:
    """One usable row. `key` tells which item it is: two rows with one key are one item."""

    row: int
    id: str
    item: str
    key: str
    target: float = 0.0
    label: str = ""
    side: str = ""


def usable_rows(table: Table, columns: Columns, on_bad: str) -> tuple[list[Row], list[Dropped]]:
    """One row an item, in the table's order, and what was left out or merged, each with its reason.

    With on_bad "error" the first row that cannot be used raises a DataError; merged rows never do.
    """
    rows, faults = _read(table, columns)
    again, rows = _repeated_ids(table, columns, rows)
    mixed, rows = _mixed_labels(table, columns, rows)
    faults = sorted(faults + again + mixed, key=_number)
    if columns.molecule and len(faults) == len(table) and all(fault.column == columns.text for fault in faults):
        where = f"{table.name}, column {columns.text!r}: none of its {len(table)} rows holds a molecule"
        remedy = "name the column of SMILES with text=..."
        raise DataError(f"{where}, the first ({table.places[0]}) because {faults[0].reason}; {remedy}")
    if faults and on_bad == "error":
        first = faults[0]
        where = f"{table.name}, {table.places[_number(first)]}" + (f", column {first.column!r}" if first.column else "")
        more = f" ({len(faults)} of {len(table)} rows cannot be used)" if len(faults) > 1 else ""
        raise DataError(f'{where}: {first.reason}; correct it, or leave such rows out with on_bad="drop"{more}')
    rows, merged = _merge(table, columns, rows)
    return rows, sorted(faults + merged, key=_number)


def _number(fault: Dropped) -> int:
    assert fault.row is not None
    return fault.row


def number(cell: Any) -> tuple[float, str]:
    """(the number, "") in a cell, or (NaN, what is wrong with it)."""
    if cell is None:
        return math.nan, "the target is missing"
    if isinstance(cell, str):
        text = cell.strip().replace("\u2212", "-")
        if not text:
            return math.nan, "the target is missing"
        if re.fullmatch(r"[+-]?[0-9]+,[0-9]+", text):
            marks = "its comma may be a decimal mark (write a point) or stand between thousands (leave it out)"
            return math.nan, f"{text!r} is not a number: {marks}"
        if not NUMBER.fullmatch(text):
            kind = "is not finite" if text.lower().strip("+-") in ("nan", "inf", "infinity") else "is not a number"
            return math.nan, f"the target {_short(text)} {kind}"
        value = float(text)
    elif isinstance(cell, bool) or not (isinstance(cell, Real) or hasattr(cell, "as_tuple")):
        return math.nan, f"the target {_short(cell)} is not a number"
    else:
        try:
            value = float(cell)
        except (OverflowError, ValueError):  # a huge int, a signalling NaN
            value = math.inf
    return (value, "") if math.isfinite(value) else (math.nan, f"the target {_short(cell)} is not finite")


def text(cell: Any, what: str = "item") -> tuple[str, str]:
    """(the text, "") in a cell, or ("", what is wrong with it)."""
    if isinstance(cell, Iterable) and not isinstance(cell, str):
        return "", f"the {what} is no text but {type(cell).__name__}" + " that is not UTF-8" * isinstance(cell, bytes)
    found = "" if cell is None else written(cell).strip()
    return found, "" if found else f"the {what} is missing"


def _read(table: Table, columns: Columns) -> tuple[list[Row], list[Dropped]]:
    rows: list[Row] = []
    faults: list[Dropped] = []
    with quiet() if columns.molecule else nullcontext():
        for row in range(len(table)):
            made = _row(table, columns, row)
            if isinstance(made, Row):
                rows.append(made)
            else:
                faults.append(made)
    return rows, faults


def _row(table: Table, columns: Columns, row: int) -> Row | Dropped:
    """The row, or the first thing that is wrong with it."""
    cell = lambda column, what: text(table.columns[column][row], what)  # noqa: E731
    item, no_item = cell(columns.text, "item")
    name, no_name = cell(columns.id, "id") if columns.id is not None else (item, "")
    bad: Callable[[str | None, str], Dropped] = lambda column, why: Dropped(row, name, column or "", why)  # noqa: E731
    if row in table.torn:
        return bad(None, table.torn[row])
    if no_item:
        return bad(columns.text, no_item)
    if no_name:
        return bad(columns.id, no_name)
    key, why = canonical(item) if columns.molecule else (item, "")
    if why:
        return bad(columns.text, f"{_short(item)} {why}")
    target, label, side = 0.0, "", ""
    if columns.target is not None:
        target, why = number(table.columns[columns.target][row])
        if why:
            return bad(columns.target, why)
    if columns.label is not None:
        label, why = cell(columns.label, "label")
        if why or label.lower() == "nan":
            return bad(columns.label, why or "the label is missing")
    if columns.split is not None:
        said, why = cell(columns.split, "side")
        side = SIDES.get(said.lower(), "")
        if not side:
            return bad(columns.split, why or f"{_short(said)} is none of train, valid and test")
    return Row(row, name, item, key, target, label, side)


def _repeated_ids(table: Table, columns: Columns, rows: list[Row]) -> tuple[list[Dropped], list[Row]]:
    """Rows whose id stood before, and the others. Where the text is the id, a repeat is a row to merge."""
    if columns.id is None:
        return [], rows
    first: dict[str, int] = {}
    faults, kept = [], []
    for r in rows:
        if first.setdefault(r.id, r.row) == r.row:
            kept.append(r)
        else:
            why = f"the id {_short(r.id)} stands already in {table.places[first[r.id]]}; ids must be unique"
            faults.append(Dropped(r.row, r.id, columns.id, why))
    return faults, kept


def _groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for r in rows:
        groups.setdefault(r.key, []).append(r)
    return groups


def _keepers(group: list[Row]) -> list[Row]:
    """The rows of one item that make it: all of them, or those of the side that keeps it."""
    side = min((r.side for r in group), key=lambda s: KEEPS.index(s) if s else 0)
    return [r for r in group if r.side == side]


def _mixed_labels(table: Table, columns: Columns, rows: list[Row]) -> tuple[list[Dropped], list[Row]]:
    """Rows of items that have two different labels (labels cannot be averaged), and the others."""
    if columns.label is None:
        return [], rows
    mixed = {key: group for key, group in _groups(rows).items() if len({r.label for r in _keepers(group)}) > 1}
    faults = []
    for group in mixed.values():
        for r in group:
            other = next(o for o in group if o.label != r.label)
            why = f"the label is {_short(r.label)}, but {_short(other.label)} for the same item in {table.places[other.row]}"
            faults.append(Dropped(r.row, r.id, columns.label, why))
    return faults, [r for r in rows if r.key not in mixed]


def _merge(table: Table, columns: Columns, rows: list[Row]) -> tuple[list[Row], list[Dropped]]:
    """One row for each key. It keeps the shortest id, so that the order of the table decides nothing."""
    kept, merged = [], []
    what = "molecule" if columns.molecule else "text"
    for group in _groups(rows).values():
        same = _keepers(group)
        head = min(same, key=lambda r: (len(r.id), r.id, r.item))
        kept.append(replace(head, target=math.fsum(r.target for r in same) / len(same)))
        for r in group:
            if r is head:
                continue
            how = "merged" if columns.label else "merged, targets averaged"
            if r.side != head.side:
                how = f"left out, because that row is on the {head.side} side and this one on the {r.side} side"
            where = table.places[head.row]
            merged.append(Dropped(r.row, r.id, columns.text, f"the same {what} as {_short(head.id)} in {where}: {how}"))
    return sorted(kept, key=lambda r: r.row), merged


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:60] + "..." + text[-10:]
