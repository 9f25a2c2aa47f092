"""Rows of numbers as they are, and several vectors an item: one vector repeated, or two of equal width side by side.

Encoders of different widths stay a tuple of Vectors: each has its own space and gets its own slot map, and only then do
they stand side by side, in the model's space, where their widths agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from icrl_lab.encoders.base import Batches, Encoder
from icrl_lab.errors import DataError, StudyError
from icrl_lab.values import Vectors


def _raw(items: Sequence[Any], ids: Sequence[str], batch_size: int) -> Batches:
    """(n, d) float32: each item is a row (or a table, read row by row) of d numbers: pixels, columns."""
    rows: list[np.ndarray] = []
    for item, name in zip(items, ids):
        try:
            array = np.asarray(item)
            row = array.astype(np.float32).ravel() if array.dtype.kind in "biuf" else None
        except ValueError:
            row = None
        if row is None or not row.size:
            raise DataError(f"item {name!r}: encoder 'raw' reads rows of numbers, and this is {type(item).__name__}")
        if rows and row.size != rows[0].size:
            raise DataError(f"item {name!r} has {row.size} numbers, and item {ids[0]!r} has {rows[0].size}")
        rows.append(row)
    yield list(range(len(rows))), np.stack(rows)


RAW = Encoder("raw", ("numbers", "pixels", "columns"), lambda: "raw", _raw, content=None)


def repeat(vectors: Vectors, times: int) -> Vectors:
    """(n, times * slots, d): each vector `times` over, in the same space, so that one slot map serves every slot."""
    if isinstance(times, bool) or not isinstance(times, Integral) or times < 1:
        raise StudyError(f"times must be a whole number of at least 1, not {times!r}")
    values = vectors.values if vectors.values.ndim == 3 else vectors.values[:, None]
    return Vectors(np.tile(values, (1, times, 1)), vectors.ids, vectors.space)


def stack(*parts: Vectors) -> Vectors:
    """(n, slots of all parts, d) for parts of one width and the same ids; ids and their order are the first part's.

    The space is that of the parts where they share one, else the spaces joined by " + ", slot after slot.
    """
    if not parts:
        raise StudyError("stack needs at least one Vectors")
    first = parts[0]
    for part in parts[1:]:
        if part.width != first.width:
            raise DataError(
                f"{first.space!r} has width {first.width} and {part.space!r} has {part.width}: "
                "vectors of different widths are mapped first, each by its own slot map, and stacked then"
            )
        if set(part.ids) != set(first.ids):
            raise DataError(f"{first.space!r} and {part.space!r} are not about the same items")
    blocks = [p.take(first.ids).values for p in parts]
    values = np.concatenate([b if b.ndim == 3 else b[:, None] for b in blocks], axis=1)
    spaces = [p.space for p in parts]
    return Vectors(values, first.ids, spaces[0] if len(set(spaces)) == 1 else " + ".join(spaces))
