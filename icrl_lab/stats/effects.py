"""Effects that a probe measures: one number for each seed and query, for many heads, layers or positions at once.

An effect is a mean over seeds and queries, so it gets the same crossed interval as a study's metrics (`intervals`: new
seeds and new items), computed for all cells of a table together. A probe asks many questions at once; `adjusted` says
what is left of their p-values.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from icrl_lab.errors import DataError, StudyError
from icrl_lab.stats.intervals import components, half_width, p_value
from icrl_lab.stats.metrics import Array

METHOD = "crossed analysis of variance over seeds and queries, t distribution; one seed: over queries alone"


class Effects(NamedTuple):
    """Means (...) over seeds and queries with 95 % intervals and two-sided p-values of "the mean is zero"."""

    estimate: Array
    low: Array
    high: Array
    p: Array


def effects(table: Array, level: float = 0.95) -> Effects:
    """The mean of a table (..., seeds, queries), with its interval over new seeds and new queries. At least 3 queries."""
    table = np.asarray(table, float)
    if table.shape[-1] < 3:
        raise DataError(
            f"an interval over queries needs at least 3 of them, not {table.shape[-1]}; ask for more queries"
        )
    parts = components(table)
    mean = table.mean((-1, -2))
    half = half_width(parts, level)
    return Effects(mean, mean - half, mean + half, np.where(np.isnan(mean), np.nan, p_value(mean, parts)))


def correlations(table: Array, level: float = 0.95, ranked: int | None = None) -> Effects:
    """The mean of correlations (..., seeds, queries), averaged as Fisher's z, with its interval; z is kept below 1 - 1e-6.

    ranked  how many values each rank correlation orders. A perfect order stands for half a step below 1, 1 - 6 / (n^3 - n): of few
            values many are perfect by chance, and as z = 7 each would outweigh a dozen others
    """
    edge = 1e-6 if ranked is None else max(1e-6, 6 / (ranked**3 - ranked)) if ranked > 1 else 1.0
    z = effects(np.arctanh(np.clip(np.asarray(table, float), -1 + edge, 1 - edge)), level)
    return Effects(np.tanh(z.estimate), np.tanh(z.low), np.tanh(z.high), z.p)


def adjusted(p: Array, method: str = "holm") -> Array:
    """p-values corrected over all of an array's entries: "holm" (family-wise error) or "fdr" (Benjamini-Hochberg). NaN is no test."""
    from scipy.stats import false_discovery_control

    from icrl_lab.stats.verdicts import holm

    if method not in ("holm", "fdr"):
        raise StudyError(f"p-values are corrected by 'holm' or 'fdr', not by {method!r}")
    p = np.asarray(p, float)
    out, known = p.ravel().copy(), np.isfinite(p.ravel())
    if known.any():
        out[known] = holm(out[known]) if method == "holm" else false_discovery_control(out[known])
    return out.reshape(p.shape)


def sign_flip(table: Array, draws: int = 10000, seed: int = 0) -> Array:
    """Two-sided permutation p-values (...) of "differences (..., queries) are symmetric around zero", by flipping signs.

    Up to 13 queries every pattern of signs is taken: a p-value cannot be below 2 / 2^queries, nor beyond that below 2 / draws,
    which must leave room for a correction over many cells.
    """
    from scipy.stats import permutation_test

    table = np.asarray(table, float)
    found = permutation_test(
        (table,), np.mean, permutation_type="samples", vectorized=True, axis=-1, n_resamples=draws,
        batch=max(1, int(1e7 // max(table.size, 1))), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return np.asarray(found.pvalue)
