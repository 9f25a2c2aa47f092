"""Items with something to predict about each."""

from __future__ import annotations

import builtins
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.values.base import frozen, unique


@dataclass(frozen=True)
class Dropped:
    """One row of a table that was left out or merged, and why."""

    row: (
        int | None
    )  # 0-based row of the data, the header not counted; None where the row is sound and its item was refused later
    id: str
    column: str
    reason: str
    place: str = ""  # the row as the user counts: "row 3 (line 4)", "train.csv row 3 (line 4)"


@dataclass(frozen=True, eq=False)
class Task:
    """Items with something to predict about each.

    items    n of anything an encoder reads: SMILES, sequences, paths, or rows of numbers
    text     n strings, the item as text for the prompt, or None where there is none
    targets  (n,) float64 in `units` for regression, else None
    labels   n strings for classification, else None; `options` lists the classes in their order
    pool, queries  positions of the items that shots and maps may come from, and of those that are asked about;
             disjoint, together at most n
    """

    name: str
    ids: tuple[str, ...]
    items: tuple[Any, ...]
    text: tuple[str, ...] | None
    targets: np.ndarray | None
    labels: tuple[str, ...] | None
    units: str
    property: str
    modality: str
    pool: np.ndarray
    queries: np.ndarray
    options: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    source: str = ""  # where the data come from, and their licence
    split: str = "random"

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("ids", unique(self.ids, f"task {self.name!r}"))
        n = len(self.ids)
        put("items", tuple(self.items))
        if self.text is not None:
            put("text", tuple(str(t) for t in self.text))
        if (self.targets is None) == (self.labels is None):
            raise DataError(f"task {self.name!r} needs targets (numbers) or labels (classes), and not both")
        if self.targets is not None:
            put("targets", frozen(self.targets, np.float64))
            if self.targets.shape != (n,) or not np.isfinite(self.targets).all():
                raise DataError(f"task {self.name!r}: targets must be {n} finite numbers")
        else:
            put("labels", tuple(str(c) for c in self.labels))  # type: ignore[union-attr]
            put("options", tuple(self.options) or tuple(sorted(set(self.labels))))  # type: ignore[arg-type]
            unknown = set(self.labels) - set(self.options)  # type: ignore[arg-type]
            if unknown:
                raise DataError(f"task {self.name!r}: label {sorted(unknown)[0]!r} is not among its options")
        for what in ("items", "text", "labels"):
            value = getattr(self, what)
            if value is not None and len(value) != n:
                raise DataError(f"task {self.name!r}: {len(value)} {what} for {n} ids")
        put("pool", frozen(self.pool, np.int64))
        put("queries", frozen(self.queries, np.int64))
        both = np.concatenate([self.pool, self.queries])
        if both.size and (both.min() < 0 or both.max() >= n or len(set(both.tolist())) != both.size):
            raise DataError(f"task {self.name!r}: pool and queries must be disjoint positions below {n}")

    @builtins.property  # the field `property` hides the plain name in this class
    def kind(self) -> str:
        """One of "regression", "classification"."""
        return "regression" if self.targets is not None else "classification"

    def without(self, item: str, column: str, reason: str) -> Task:
        """The task without one item, which stands in `dropped`. Pool and queries keep their other items and their order."""
        gone = self.ids.index(item)
        keep = [i for i in range(len(self)) if i != gone]
        few = lambda values: tuple(values[i] for i in keep)  # noqa: E731
        kept = lambda where: (where - (where > gone))[where != gone]  # noqa: E731
        return replace(
            self,
            ids=few(self.ids),
            items=few(self.items),
            text=None if self.text is None else few(self.text),
            labels=None if self.labels is None else few(self.labels),
            targets=None if self.targets is None else self.targets[keep],
            pool=kept(self.pool),
            queries=kept(self.queries),
            dropped=(*self.dropped, Dropped(None, item, column, reason)),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"Task({self.name!r}, {len(self)} items, {self.kind} of {self.property!r} [{self.units or 'no unit'}], "
            f"pool {len(self.pool)}, queries {len(self.queries)}, {len(self.dropped)} rows left out)"
        )
