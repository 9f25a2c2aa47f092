"""Spaces: what the shape of a cloud of points is, and how alike two clouds of the same points are.

A cloud of n points enters as its Gram matrix (n, n), float64: every measure here is unchanged by a rotation, so nothing but
inner products is needed, and clouds of any width stand in one stack (..., n, n) that is measured at once. Constant clouds have
no shape; measures that need one are NaN there. Nothing here knows of models, items or slots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from icrl_lab.errors import MissingExtra, StudyError, nearest

Array = np.ndarray

METRICS = ("cosine", "euclidean")
METHODS = ("pca", "umap")
_SAME = 1e-6  # distances below this share of the points' size are rounding


def gram(points: Array) -> Array:
    """(..., n, n) inner products of points (..., n, d)."""
    x = np.asarray(points, np.float64)
    return x @ x.swapaxes(-1, -2)


def centred(gram: Array) -> Array:
    """The Gram matrix after the cloud's mean is taken off."""
    rows = gram.mean(-1, keepdims=True)
    return gram - rows - rows.swapaxes(-1, -2) + rows.mean(-2, keepdims=True)


def pairs(matrix: Array) -> Array:
    """(..., n (n - 1) / 2) entries above the diagonal of (..., n, n)."""
    i, j = np.triu_indices(matrix.shape[-1], 1)
    return matrix[..., i, j]


def norms(gram: Array) -> Array:
    """(..., n) lengths of the points."""
    return np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0.0))


def cosines(gram: Array) -> Array:
    """(..., n, n) cosines between the points; 0 where a point is zero."""
    size = norms(gram)
    scale = size[..., :, None] * size[..., None, :]
    return np.divide(gram, scale, out=np.zeros_like(scale), where=scale > 0)


def distances(gram: Array, metric: str = "euclidean") -> Array:
    """(..., n, n) Euclidean distances; with "cosine" between the points at length one, so that they rank as 1 - cosine does.

    What is below the rounding of float32 points is 0. Another metric is a StudyError.
    """
    if metric not in METRICS:
        raise StudyError(f"metric {metric!r} is unknown; {nearest(metric, METRICS)}")
    g = cosines(gram) if metric == "cosine" else gram
    square = np.diagonal(g, axis1=-2, axis2=-1)
    found = np.sqrt(np.maximum(square[..., :, None] + square[..., None, :] - 2 * g, 0.0))
    size = np.sqrt(np.maximum(square, 0.0).mean(-1))[..., None, None]
    return np.where(found > _SAME * size, found, 0.0)


# ----------------------------------------------------------------------------------------- one cloud


def mean_cosine(gram: Array) -> Array:
    """(...) mean cosine between different points."""
    return pairs(cosines(gram)).mean(-1)


def effective_rank(gram: Array) -> Array:
    """(...) exp of the entropy of the singular values, normalised to sum 1 (Roy and Vetterli 2007); NaN for a cloud of zeros."""
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    total = values.sum(-1, keepdims=True)
    share = np.divide(values, total, out=np.full_like(values, np.nan), where=total > 0)
    return np.exp(-np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), 0 * share).sum(-1))


def intrinsic_dimension(distances: Array, discard: float = 0.1) -> Array:
    """(...) dimension by the ratio of each point's second to first neighbour's distance (TwoNN, Facco et al. 2017).

    Its logarithm is exponential with the dimension as its rate. The largest `discard` of the ratios are taken as censored, as
    they are left out there, and the rate is the unbiased maximum-likelihood one, (m - 1) / (total time). Points with a double
    have no ratio and are left out; NaN where fewer than 3 are left.
    """
    far = np.where(np.eye(distances.shape[-1], dtype=bool), np.inf, distances)
    first, second = np.moveaxis(np.partition(far, 1, axis=-1)[..., :2], -1, 0)
    with np.errstate(all="ignore"):
        ratio = np.sort(np.where(first > 0, np.log(second / first), np.inf), -1)
        n = np.isfinite(ratio).sum(-1)
        kept = np.floor((1 - discard) * n).astype(int)
        at = np.maximum(kept - 1, 0)[..., None]
        last = np.take_along_axis(ratio, at, -1)[..., 0]
        time = np.take_along_axis(np.cumsum(ratio, -1), at, -1)[..., 0] + (n - kept) * last
        return np.where((kept >= 3) & (time > 0), (kept - 1) / time, np.nan)


# ----------------------------------------------------------------------------------------- two clouds


def hsic(one: Array, other: Array) -> Array:
    """(...) unbiased estimate of the Hilbert-Schmidt independence criterion of kernels (..., n, n), n >= 4 (Song et al. 2012)."""
    n = one.shape[-1]
    a, b = (np.where(np.eye(n, dtype=bool), 0.0, centred(m)) for m in (one, other))
    both = (a * b).sum((-1, -2)) + a.sum((-1, -2)) * b.sum((-1, -2)) / ((n - 1) * (n - 2))
    return (both - 2 / (n - 2) * (a.sum(-2) * b.sum(-1)).sum(-1)) / (n * (n - 3))


def cka(one: Array, other: Array) -> Array:
    """(...) centred kernel alignment (Kornblith et al. 2019) from unbiased HSIC: 0 on average for independent clouds, however
    few their points and wide their space; 1 for equal ones. Linear CKA for Gram matrices; any kernel (..., n, n) will do."""
    a, b = hsic(one, one), hsic(other, other)
    size = np.maximum(a, 0.0) * np.maximum(b, 0.0)
    small = (a <= _tiny(one)) | (b <= _tiny(other))
    return np.where(small, np.nan, hsic(one, other) / np.sqrt(np.where(small, 1.0, size)))


def _tiny(kernel: Array) -> Array:
    """What rounding leaves of the HSIC of a constant cloud with itself."""
    return 1e-12 * (np.abs(np.diagonal(kernel, axis1=-2, axis2=-1)).mean(-1) * _SAME) ** 2


def ranked(distances: Array) -> Array:
    """(..., pairs) standardised ranks of the pairs' distances: the mean product of two of them is Spearman's correlation."""
    from scipy.stats import rankdata

    rank = rankdata(pairs(distances), axis=-1)
    rank = rank - rank.mean(-1, keepdims=True)
    size = np.sqrt((rank**2).mean(-1, keepdims=True))
    return np.divide(rank, size, out=np.full_like(rank, np.nan), where=size > 0)


def rsa(one: Array, other: Array) -> Array:
    """(...) representational similarity: Spearman's correlation of pairwise distances (..., n, n) (Kriegeskorte et al. 2008)."""
    return (ranked(one) * ranked(other)).mean(-1)


def partial(xy: Array, xz: Array, yz: Array) -> Array:
    """The correlation of x and y at equal z, from the three plain ones; NaN where z says all of x or of y."""
    rest = (1 - xz**2) * (1 - yz**2)
    fine = rest > 1e-9
    return np.where(fine, (xy - xz * yz) / np.sqrt(np.where(fine, rest, 1.0)), np.nan)


def neighbours(distances: Array, k: int) -> Array:
    """(..., n, n) whether the column's point is among the k nearest of the row's; all False in a constant cloud."""
    n = distances.shape[-1]
    far = np.where(np.eye(n, dtype=bool), np.inf, distances)
    rank = far.argsort(-1, kind="stable").argsort(-1, kind="stable")
    return (rank < k) & (distances.max((-1, -2)) > 0)[..., None, None]


def overlap(one: Array, other: Array, k: int) -> Array:
    """(...) mean over points of the Jaccard index of their k nearest neighbours, by distances (..., n, n)."""
    a, b = neighbours(one, k), neighbours(other, k)
    shared = (a & b).sum(-1)
    found = (shared / np.maximum((a | b).sum(-1), 1)).mean(-1)
    return np.where(a.any((-1, -2)) & b.any((-1, -2)), found, np.nan)


def left_out(measure: Callable[..., Any], *matrices: Array) -> Any:
    """`measure` of the matrices (..., n, n) without each point in turn: (..., n), or a dictionary of such.

    Pairs share points, so points are what is left out: a bootstrap of points would put some at distance 0 of themselves.
    """
    n = matrices[0].shape[-1]
    found = []
    for i in range(n):
        keep = np.delete(np.arange(n), i)
        found.append(measure(*(m[..., keep[:, None], keep] for m in matrices)))
    if isinstance(found[0], dict):
        return {name: np.stack([f[name] for f in found], -1) for name in found[0]}
    return np.stack(found, -1)


# ----------------------------------------------------------------------------------------- theory


def relu_cosine(rho: Array, layers: int = 1) -> Array:
    """The cosine after `layers` wide random ReLU layers of points with cosine rho (Cho and Saul 2009, arc-cosine kernel of
    degree 1): (sqrt(1 - rho^2) + rho (pi - arccos rho)) / pi each."""
    rho = np.clip(np.asarray(rho, float), -1.0, 1.0)
    for _ in range(layers):
        rho = np.clip((np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / np.pi, -1.0, 1.0)
    return rho


def concentration(width: float, delta: float = 0.05) -> float:
    """sqrt(log(1/delta) / width): how far, up to a constant, a random linear map to `width` moves norms and cosines."""
    return float(np.sqrt(np.log(1 / delta) / width))


# ----------------------------------------------------------------------------------------- among others, and on a page


def nearest_rows(
    points: Array, table: Array, rows: Array, own: Array | None = None, chunk: int = 8192
) -> tuple[Array, Array]:
    """The row of a table (V, d), among `rows`, with the largest cosine to each point (n, d): its number and the cosine.

    own  a row for each point that is not to be found (the point itself); the first is found where two are equal
    """
    x = np.asarray(points, np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    best, at = np.full(len(x), -np.inf, np.float32), np.zeros(len(x), np.int64)
    for start in range(0, len(rows), chunk):
        ids = rows[start : start + chunk]
        score = x @ (table[ids] / np.linalg.norm(table[ids], axis=1, keepdims=True)).T
        if own is not None:
            score[own[:, None] == ids] = -np.inf
        top = score.argmax(1)
        value = score[np.arange(len(x)), top]
        better = value > best
        best[better], at[better] = value[better], ids[top[better]]
    return at, best


class Embedding(NamedTuple):
    """A cloud on a page: coordinates (n, 2), and how far neighbours there are neighbours (1: all; Venna and Kaski 2001)."""

    coordinates: Array
    trustworthiness: float


def embedding(
    points: Array, method: str = "pca", *, metric: str = "cosine", neighbours: int = 8, seed: int = 0
) -> Embedding:
    """A map of points (n, d) in two dimensions by "pca" or "umap" (with a seed equal on one machine only: store it).

    metric  "cosine" looks at the points at length one, "euclidean" at the points as they are
    A constant cloud has no map: zeros, and NaN. MissingExtra where umap-learn is not installed.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import trustworthiness

    if method not in METHODS:
        raise StudyError(f"there is no map {method!r}; {nearest(method, METHODS)}")
    if not neighbours < len(points) / 2:
        raise StudyError(f"{neighbours} neighbours need more than {2 * neighbours} points, not {len(points)}")
    x = np.asarray(points, np.float64)
    if not distances(gram(x), metric).max() > 0:
        return Embedding(np.zeros((len(x), 2)), float("nan"))
    if metric == "cosine":
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    if method == "pca":
        flat = PCA(2, svd_solver="full").fit_transform(x)
    else:
        try:
            import umap
        except ImportError:
            raise MissingExtra('a UMAP map needs umap-learn: pip install "icrl-lab[probes]"') from None
        flat = umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(x)
    return Embedding(np.asarray(flat, np.float64), float(trustworthiness(x, flat, n_neighbors=neighbours)))
