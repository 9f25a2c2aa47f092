"""What the same shots give to a method that needs no language model.

Every baseline sees exactly what a prompt shows: k vectors with their labels, and the vectors that are asked about. It
returns predictions and nothing else, so that any study can put it beside an arm on the same seeds and items. Each works
from two shots on, with constant features and with far more features than shots, and none depends on the shots' order:
shots are sorted first, so that rounding and ties fall the same way whatever the order was.

Regression: mean, knn, ridge, gp. Classification: majority, knn, logistic.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest

Array = np.ndarray
# Pearson's r of ridge (finite penalty) on 20 shots without, with 5 and with 3: Huuskonen with MiniMol .78, .82, .83, with ChemNet .33, .72, .73, with
# descriptors .85, .86, .87; Lipophilicity with MiniMol .24, .35, .35 (16 and 24 seeds)
FARTHEST = 3.0


def _standardised(x: Array, q: Array) -> tuple[Array, Array]:
    """Both scaled by the shots' mean and sd of each feature, over sqrt(d) so that a shot's squared norm is about 1.

    A feature that is constant over the shots says nothing about them and is left out. A query's are cut at `FARTHEST` sds, or
    where the shots' own end if that is farther: of hundreds of features some hardly vary over a few shots, and would else alone
    decide what is said of a query.
    """
    mean, sd = x.mean(0), x.std(0)
    keep = sd > 1e-9 * np.maximum(np.abs(x).max(0), 1e-300)
    if not keep.any():
        return np.zeros((len(x), 1)), np.zeros((len(q), 1))
    z, zq = ((v[:, keep] - mean[keep]) / sd[keep] for v in (x, q))
    zq = np.clip(zq, np.minimum(-FARTHEST, z.min(0)), np.maximum(FARTHEST, z.max(0)))
    return z / np.sqrt(keep.sum()), zq / np.sqrt(keep.sum())


def _distances(a: Array, b: Array) -> Array:
    """Squared Euclidean distances, rounded so that ties are ties."""
    d = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return np.round(np.maximum(d, 0.0), 9)


def _neighbour_mean(d: Array, y: Array, k: int) -> Array:
    """Mean of y (n, m) over the k nearest (rows of d are queries); shots tied at the k-th distance all count."""
    edge = np.partition(d, k - 1, axis=1)[:, k - 1 : k]
    near = (d <= edge).astype(float)
    return near @ y / near.sum(1, keepdims=True)


def _knn(x: Array, y: Array, q: Array, loss: Callable[[Array], float]) -> Array:
    """Nearest neighbours in the standardised space, their number chosen by leaving each shot out."""
    x, q = _standardised(x, q)
    d = _distances(x, x)
    np.fill_diagonal(d, np.inf)
    losses = [loss(_neighbour_mean(d, y, k)) for k in range(1, len(x))]
    k = 1 + int(np.argmin(np.round(losses, 12))) if losses else 1
    return _neighbour_mean(_distances(q, x), y, min(k, len(x)))


def mean(x: Array, y: Array, q: Array, seed: int = 0) -> Array:
    """The mean of the shots' labels for everything."""
    return np.full(len(q), y.mean())


def knn(x: Array, y: Array, q: Array, seed: int = 0) -> Array:
    """k nearest neighbours on standardised features, k by leave-one-out squared error."""
    return _knn(x, y[:, None], q, lambda p: float(((p[:, 0] - y) ** 2).mean()))[:, 0]


def ridge(x: Array, y: Array, q: Array, seed: int = 0) -> Array:
    """Ridge regression on standardised features, its penalty by the closed-form leave-one-out error.

    With the kernel K = X X' and the hat matrix H = J + (K + aI)^-1 K of centred data, the error of a shot left out is its
    residual over 1 - h_ii (Allen's PRESS); 25 penalties from 1e-4 to 1e4 of the kernel's mean eigenvalue. An infinite one is not
    among them: it says the mean of everything, which has no correlation, where the largest finite one is as near to it as matters.
    """
    x, q = _standardised(x, q)
    centre = y.mean()
    w, u = np.linalg.eigh(x @ x.T)
    w = np.maximum(w, 0.0)
    if w.sum() <= 0:
        return np.full(len(q), centre)
    z = u.T @ (y - centre)
    n = len(y)

    def press(a: float) -> float:
        shrink = w / (w + a)
        rest = y - centre - u @ (shrink * z)
        leverage = 1 / n + (u**2) @ shrink
        return float(((rest / np.maximum(1 - leverage, 1e-9)) ** 2).mean())

    grid = np.logspace(-4, 4, 25)[::-1] * w.mean()
    errors = np.array([press(a) for a in grid])
    best = int(np.argmin(np.round(errors / max(errors[0], 1e-300), 9)))  # a tie goes to the larger penalty
    return centre + q @ (x.T @ (u @ (z / (w + grid[best]))))


def gp(x: Array, y: Array, q: Array, seed: int = 0) -> Array:
    """A Gaussian process with a squared-exponential kernel and white noise on standardised features and labels."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    x, q = _standardised(x, q)
    centre, scale = y.mean(), y.std()
    if scale <= 1e-12 * max(abs(centre), 1e-300) or not x.any():
        return np.full(len(q), centre)
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(1.0, (0.1, 1e2)) + WhiteKernel(0.3, (1e-3, 1e1))
    model = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=seed)
    with warnings.catch_warnings():  # a bound that is reached is an answer: no signal, or no noise
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, (y - centre) / scale)
    return centre + scale * model.predict(q)


def majority(x: Array, y: Array, q: Array, seed: int = 0) -> Array:
    """The shots' most frequent class for everything; a tie goes to the first in alphabetical order."""
    classes, counts = np.unique(y, return_counts=True)
    return np.full(len(q), classes[np.argmax(counts)])


def knn_classes(x: Array, y: Array, q: Array, seed: int = 0) -> Array:
    """The majority among the k nearest neighbours on standardised features, k by leave-one-out error."""
    classes, code = np.unique(y, return_inverse=True)
    votes = _knn(x, np.eye(len(classes))[code], q, lambda p: float((np.round(p, 9).argmax(1) != code).mean()))
    return classes[np.round(votes, 9).argmax(1)]


def logistic(x: Array, y: Array, q: Array, seed: int = 0) -> Array:
    """L2-penalised (multinomial) logistic regression on standardised features.

    A standardised shot has a norm of about 1 whatever the number of features, so C = 10 means the same penalty for all of
    them; it is fixed, since twenty shots cannot choose it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, q = _standardised(x, q)
    if len(np.unique(y)) < 2 or not x.any():
        return majority(x, y, q)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=10.0, max_iter=2000, tol=1e-8, random_state=seed).fit(x, y)
    return model.predict(q)


REGRESSORS: dict[str, Callable[..., Array]] = {"mean": mean, "knn": knn, "ridge": ridge, "gp": gp}
CLASSIFIERS: dict[str, Callable[..., Array]] = {"majority": majority, "knn": knn_classes, "logistic": logistic}


def baseline(name: str, x_shots: Any, y_shots: Any, x_queries: Any, seed: int = 0) -> Array:
    """Predictions (n,) of the baseline `name` for the queries, from the shots alone.

    x_shots (k, d) or (k, slots, d), y_shots (k,) numbers or class names, x_queries like x_shots. Numbers are looked up in
    REGRESSORS, names in CLASSIFIERS; an unknown name is a StudyError, unusable shots are a DataError.
    """
    x, q, y = np.asarray(x_shots, float), np.asarray(x_queries, float), np.asarray(y_shots)
    registry = REGRESSORS if y.dtype.kind in "iuf" else CLASSIFIERS
    if name not in registry:
        kind = "numbers" if registry is REGRESSORS else "classes"
        raise StudyError(f"no baseline for {kind} is called {name!r}; {nearest(name, registry)}")
    if len(x) < 2 or len(x) != len(y) or x.shape[1:] != q.shape[1:]:
        raise DataError(
            f"baseline {name!r}: shots of shape {x.shape} with {len(y)} labels and queries of shape {q.shape}; "
            "at least two shots, a label each, and queries of the same width are needed"
        )
    x, q = x.reshape(len(x), -1), q.reshape(len(q), -1)
    y = y.astype(float) if registry is REGRESSORS else y.astype(str)
    if not (np.isfinite(x).all() and np.isfinite(q).all() and (y.dtype.kind != "f" or np.isfinite(y).all())):
        raise DataError(f"baseline {name!r}: a shot or a query has a NaN or an infinity")
    order = np.lexsort((*x.T[::-1], y))  # the same shots in any order are the same shots
    return registry[name](x[order], y[order], q, seed)
