"""The jackknife over items: intervals of what is measured on pairs of items, which share items and are no sample of pairs.

A measure is a function of matrices (..., S, n, n) over seeds and pairs of items. What each item adds to it is found by leaving the
item out, and the table of these pseudo-values, crossed with seeds, gives the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from icrl_lab.probes import spaces
from icrl_lab.probes.arrays import Named, put
from icrl_lab.probes.spaces import Array
from icrl_lab.stats.intervals import components, confidence, p_value

METHOD = (
    "95 % intervals: leave-one-item-out jackknife pseudo-values, crossed analysis of variance over seeds and items, "
    "t distribution"
)


def put_measures(
    into: Named, words: Mapping[str, tuple[str, str, str]], dims: tuple[str, ...], measure: Callable, matrices: Any
) -> dict[str, Array]:
    """Measures (..., seed) of matrices with their intervals; returns the tables (..., seed, item) whose means they are."""
    values, left = measure(*matrices), spaces.left_out(measure, *matrices)
    tables = {name: pseudo_values(values[name], left[name]) for name in values}
    for name, value in values.items():
        long, units, scale = words[name]
        low, high = ends(value.mean(-1), tables[name], scale)
        put(into, name, dims, (value.mean(-1), low, high), long, units)
        into[f"{name}_by_seed"] = ((*dims, "seed"), value, f"{long}, each seed", units)
    return tables


def pseudo_values(value: Array, left: Array) -> Array:
    """(..., S, N) what item i adds to seed s, N v - (N - 1) v(without i), from values (..., S) and leave-one-out values
    (..., S, N); moved so that a seed's mean is its value, not the jackknife's correction of it."""
    n = left.shape[-1]
    return value[..., None] - (n - 1) * (left - left.mean(-1, keepdims=True))


def ends(mean: Array, table: Array, scale: str) -> tuple[Array, Array]:
    """The 95 % interval of the mean (...) of a table (..., S, N); NaN where the table is."""
    fine = np.isfinite(table).all((-1, -2))
    parts = components(np.where(fine[..., None, None], table, 0.0))
    low, high = confidence(np.where(fine, mean, 0.5), parts, "plain" if scale == "share" else scale)
    if scale == "share":
        low, high = np.maximum(low, 0.0), np.minimum(high, 1.0)
    return np.where(fine, low, np.nan), np.where(fine, high, np.nan)


def p_of(mean: Array, table: Array) -> Array:
    """Two-sided p-values of "the mean is zero"; 1 where there is no mean."""
    fine = np.isfinite(table).all((-1, -2))
    found = p_value(np.where(fine, mean, 0.0), components(np.where(fine[..., None, None], table, 0.0)))
    return np.where(fine, found, 1.0)
