"""Matching: does row i of attention go with row i of similarities, better than with those of other queries?

Everything here is about rows of numbers over the same k shots. A place or a shot that everybody likes gives every query the
same correlation, whoever it is matched with; only what goes with a query itself is left when the mean over the other
matches is taken off. If it does not matter who is matched with whom, all n! matches are equally likely: that is the null, and its
mean and variance are known exactly. Nothing here knows of models or prompts.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def standard(values: Array) -> Array:
    """Mid-ranks over the last axis, centred and of length one, so that an inner product is Spearman's rho; 0 where constant."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-1)
    ranks -= ranks.mean(-1, keepdims=True)
    size = np.linalg.norm(ranks, axis=-1, keepdims=True)
    return np.divide(ranks, size, out=np.zeros_like(ranks), where=size > 0)


def crossed(shots: Array, similar: Array) -> Array:
    """(rows, layers, heads, n, n) rho of the attention of query i with the similarities of query j to the same shots.

    shots    (n, rows, k, layers, heads) attention; shots that are NaN are left out
    similar  (n, n, k) as of `similarity`
    """
    out = np.empty((*np.delete(shots.shape[1:], 1), len(shots), len(shots)), np.float32)
    for i, (mine, theirs) in enumerate(zip(shots, similar)):
        seen = np.isfinite(mine[0, :, 0, 0])
        out[..., i, :] = standard(np.moveaxis(mine[:, seen], 1, -1)) @ standard(theirs[:, seen]).T
    return out


def beyond(cross: Array) -> Array:
    """(..., n) rho of each query with its own similarities, less its mean rho with those of the others; cross (..., n, n)."""
    n = cross.shape[-1]
    own = np.diagonal(cross, axis1=-2, axis2=-1)
    return own - (cross.sum(-1) - own) / (n - 1)


def matching(cross: Array) -> Array:
    """(...) z of the mean diagonal of (..., n, n) among all ways to match rows with columns: exact mean and variance
    over permutations (Hoeffding 1951), normal in the limit. 0 where the matrix says nothing."""
    c = np.asarray(cross, np.float64)
    n = c.shape[-1]
    d = c - c.mean(-1, keepdims=True) - c.mean(-2, keepdims=True) + c.mean((-1, -2), keepdims=True)
    sd = np.sqrt((d**2).sum((-1, -2)) / (n - 1))
    gap = np.trace(d, axis1=-2, axis2=-1)
    return np.divide(gap, sd, out=np.zeros_like(gap), where=sd > 1e-9)


def p_value(z: Array) -> Array:
    """Two-sided p-values of `matching`."""
    from scipy.special import ndtr

    return 2 * ndtr(-np.abs(z))
