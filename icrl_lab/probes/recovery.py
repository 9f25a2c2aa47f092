"""Recovery: which share of a difference between two runs came back, with its interval, as arrays of a reading.

Takes numbers alone: patches (..., S, N) and totals (S, N) over seeds and queries. Who made them is `patching`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from icrl_lab.probes.arrays import Named, put
from icrl_lab.probes.edited import sizes
from icrl_lab.stats import Effects, correlations, effects
from icrl_lab.stats.metrics import Array

ROUNDING = 1e-5  # of the largest difference: what the engine promises of a logit


class Restored(NamedTuple):
    """Of each cell (...): the restored share with its interval and p-values; `effect` is the mean size of what the patch did."""

    share: Array
    low: Array
    high: Array
    p: Array
    q: Array
    effect: Effects


def restored(patch: Array, total: Array, draws: int = 2000, seed: int = 0) -> Restored:
    """How much of the differences `total` (S, N) between clean and corrupted outcomes came back as `patch` (..., S, N).

    The share is the slope through the origin, sum(patch total) / sum(total^2): 1 where all came back, 0 where nothing did or
    something else happened. Its p-value pairs patches with other queries' totals, the same turn for all seeds; q compares each
    cell with the largest of all cells under each turn (Westfall and Young 1993), every cell in units of its own null. Both are
    NaN with draws = 0.
    """
    patch, total = np.asarray(patch, float), np.asarray(total, float)
    product, square = patch * total, total**2
    above, below, m = product.sum((-1, -2), keepdims=True), square.sum(), total.size
    left = (above - product) / np.maximum(below - square, 1e-12 * below)
    share = above[..., 0, 0] / below
    e = effects(m * share[..., None, None] - (m - 1) * left)
    p, q = _turned(patch.reshape(-1, *total.shape), total, draws, seed)
    low, high = share - (e.estimate - e.low), share + (e.high - e.estimate)
    return Restored(share, low, high, p.reshape(share.shape), q.reshape(share.shape), sizes(patch))


def _turned(patch: Array, total: Array, draws: int, seed: int) -> tuple[Array, Array]:
    """p and q (C,) of patches (C, S, N) under turns of the queries."""
    if not draws:
        return np.full(len(patch), np.nan), np.full(len(patch), np.nan)
    rng, n = np.random.default_rng([seed, 43]), total.shape[1]
    turns = np.array([np.arange(n), *(rng.permutation(n) for _ in range(draws))])
    turned = total[:, turns].transpose(0, 2, 1).reshape(-1, len(turns))  # seeds x queries, turns
    found = patch.reshape(len(patch), -1) @ turned
    away = found - (patch.sum(-1) @ total.mean(-1))[:, None]
    sd = away[:, 1:].std(1)
    # what no query's outcome shows within the engine's rounding is nothing, whichever order it has
    some = (np.abs(patch).max((-1, -2)) > ROUNDING * np.abs(total).max()) & (
        sd > 1e-9 * (np.abs(patch).sum((-1, -2)) * np.abs(total).max())
    )
    z = np.abs(away) / np.where(some, sd, np.inf)[:, None]
    least = z[:, :1] - 1e-9
    p, q = ((1 + (null >= least).sum(1)) / (1 + draws) for null in (z[:, 1:], z[:, 1:].max(0)[None]))
    return np.where(some, p, 1.0), np.where(some, q, 1.0)


# ------------------------------------------------------------------------------------------------ as arrays


def spread(values: Sequence[Array], fine: Array) -> list[Array]:
    """Values (cells,) laid out where `fine` (...) is true, NaN elsewhere."""
    out = []
    for value in values:
        full = np.full(fine.shape, np.nan)
        full[fine] = value
        out.append(full)
    return out


def restored_arrays(
    patched: Array, sham: Array, total: Array, dims: tuple[str, ...], units: str, seed: int, tested: Array | None = None
) -> Named:
    """Of patches (..., S, N) and draws of their placebo (draws, ..., S, N). `tested`: cells that were not chosen for what they do,
    which alone have a p-value."""
    arrays: Named = {}
    fine = np.isfinite(patched).all((-1, -2))
    tested = fine if tested is None else tested
    usual, share = sham.mean(0), "share of the difference"
    tables = {
        "share": (patched, "restored share, clean states"),
        "placebo": (usual, "restored share, random directions"),
        "beyond": (patched - usual, "restored share, clean states less random directions"),
    }
    for name, (table, words) in tables.items():
        one = restored(table[fine], total, draws=0)
        p, q = np.full((2, *fine.shape), np.nan)
        if tested.any():
            again = restored(table[tested], total, seed=seed)
            p[tested], q[tested] = again.p, again.q
        put(arrays, name, dims, [*spread(one[:3], fine), p, q], words, share)
    for name, table, words in (("effect", patched, "clean states"), ("placebo_effect", sham, "random directions")):
        size = sizes((np.abs(sham).mean(0) if table is sham else table)[fine])
        put(arrays, name, dims, spread(size[:3], fine), f"mean size of the change, {words}", units)
    each = (*dims, "seed", "query")
    arrays["restored"] = (each, patched, "outcome with clean states less corrupted outcome", units)
    arrays["unmoved"] = (each, usual, "outcome with random directions of the same length less corrupted outcome", units)
    arrays["total"] = (("seed", "query"), total, "clean outcome less corrupted outcome", units)
    off = sizes(total)
    put(arrays, "total_effect", (), [np.asarray(v) for v in off[:3]], "mean size of the difference", units)
    return arrays


def gradient_arrays(slopes: Array, patched: Array, total: Array, dims: tuple[str, ...], units: str) -> Named:
    """What the gradient says of each cell, and how far it is from what patching says, where that was done."""
    arrays: Named = {}
    fine = np.isfinite(patched).all((-1, -2))
    one = restored(slopes, total, draws=0)
    put(arrays, "gradient", dims, one[:3], "restored share by the gradient", "share of the difference")
    put(arrays, "gradient_effect", dims, one.effect[:3], "mean size of the change by the gradient", units)
    error = sizes((slopes - patched)[fine])
    put(arrays, "gradient_error", dims, spread(error[:3], fine), "mean distance of the gradient from patching", units)
    if fine.sum() > 2:
        r = correlations(_correlation(slopes[fine], patched[fine]))
        put(
            arrays,
            "agreement",
            (),
            [np.asarray(v) for v in r[:3]],
            "correlation of gradient and patching over cells",
            "Pearson r",
        )
    arrays["approximated"] = ((*dims, "seed", "query"), slopes, "change of the outcome by the gradient", units)
    return arrays


def _correlation(a: Array, b: Array) -> Array:
    """Pearson's r over the first axis, (...); 0 where one of the two is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    below = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.divide((a * b).sum(0), below, out=np.zeros(below.shape), where=below > 0)
