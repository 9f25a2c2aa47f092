"""What a study may say in words.

The question of a verdict is whether the vectors carry something that the model uses, so the test is the paired
difference between an arm and its own noise control (the same prompts, seeds and items with a code in place of each
vector that says nothing about the item), in Pearson's r for numbers and accuracy for classes. Two-sided at 5 %, Holm's
correction over the arms tested together: in a study where no arm uses its vectors, "uses the vector" appears in at
most 2.5 % of the cases (and "harmed by it" in as many). No noise control, fewer than two seeds or fewer than eight
items: not tested, because no statement about new seeds and items could rest on it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

USES, NOTHING, HARMED, UNTESTED = "uses the vector", "no evidence", "harmed by it", "not tested"
MIN_SEEDS, MIN_ITEMS, ALPHA = 2, 8, 0.05


def holm(p: Any) -> np.ndarray:
    """Holm's step-down adjusted p-values (..., M) over the last axis (Holm 1979). NaN stays NaN and does not count."""
    p = np.asarray(p, float)
    order = np.argsort(p, axis=-1)  # NaN last
    ranked = np.take_along_axis(p, order, -1)
    tests = np.isfinite(p).sum(-1, keepdims=True)
    steps = np.maximum(tests - np.arange(p.shape[-1]), 1)
    adjusted = np.minimum(np.maximum.accumulate(ranked * steps, axis=-1), 1.0)
    out = np.empty_like(p)
    np.put_along_axis(out, order, adjusted, -1)
    return out


def verdict(difference: float, p: float, alpha: float = ALPHA) -> str:
    """The words for a paired difference and its (adjusted) p-value; NaN where nothing was tested."""
    if not np.isfinite(p):
        return UNTESTED
    if p > alpha:
        return NOTHING
    return USES if difference > 0 else HARMED
