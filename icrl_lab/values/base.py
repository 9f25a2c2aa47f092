"""What every value does at construction: arrays become read-only, ids are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from icrl_lab.errors import DataError


def frozen(array: Any, dtype: Any = None) -> np.ndarray:
    if type(array) is np.ndarray and array.base is None and not array.flags.writeable and dtype in (None, array.dtype):
        return array  # frozen before, e.g. by the value that `replace` started from: shared, not copied
    out = np.array(array, dtype=dtype)  # a copy: nobody else holds a writable view of it
    out.flags.writeable = False
    return out


def unique(ids: Sequence[str], what: str) -> tuple[str, ...]:
    ids = tuple(str(i) for i in ids)
    if len(set(ids)) != len(ids):
        seen: dict[str, int] = {}
        for row, name in enumerate(ids):
            if name in seen:
                raise DataError(
                    f"{what}: id {name!r} stands in row {seen[name]} and again in row {row}; ids must be unique"
                )
            seen[name] = row
    return ids


def written(value: Any) -> str:
    """An id or a label as text: 5.0 as "5", for numbers that are whole become floats where a neighbour is missing."""
    whole = isinstance(value, float | np.floating) and float(value).is_integer() and abs(float(value)) < 2**53
    return str(int(value) if whole else value)
