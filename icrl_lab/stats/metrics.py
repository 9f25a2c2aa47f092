"""The figures of merit: what each seed scores, and what it would score without any one item.

Every function works on whole stacks of studies at once: predictions (..., S, N) of S seeds on the same N items,
targets that broadcast to it, (N,) or (..., 1, N), and a reference (..., S), or (..., S, N) where each item has shots of
its own: the number that predicting the mean of the shots gives. `values` are (..., S); `left_out` are (..., S, N), exact and in closed form, and all that
the intervals need.

Where a metric is undefined it has one value, stated here, and never becomes a NaN that somebody drops later:
Pearson and Spearman of constant predictions (or targets) are 0, since a constant orders nothing. R2 where the
reference makes no error at all is 1 if the predictions make none either, else 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from icrl_lab.errors import DataError, nearest

Array = np.ndarray

_FLAT = 1e-12  # a sum of squares this small beside its scale is rounding, not spread


def _correlation(sxy: Array, sxx: Array, syy: Array, xx: Array, yy: Array) -> Array:
    """sxy / sqrt(sxx syy), and 0 where a spread is nothing beside its scale `xx` or `yy`."""
    fine = (sxx > _FLAT * xx) & (syy > _FLAT * yy)
    root = np.sqrt(np.where(fine, sxx, 1.0)) * np.sqrt(np.where(fine, syy, 1.0))
    return np.where(fine, np.clip(sxy / root, -1.0, 1.0), 0.0)


def _moments(pred: Array, target: Array) -> tuple[Array, ...]:
    """Deviations x, y; their sums of products (..., 1); and the scales beside which a spread is judged."""
    x, y = pred - pred.mean(-1, keepdims=True), target - target.mean(-1, keepdims=True)
    sxx, syy, sxy = ((a * b).sum(-1, keepdims=True) for a, b in ((x, x), (y, y), (x, y)))
    # beside the size of the numbers too, so that the rounding of 0.1 + 0.2 is no spread
    xx = np.maximum(sxx, 1e-16 * (pred * pred).sum(-1, keepdims=True))
    yy = np.maximum(syy, 1e-16 * (target * target).sum(-1, keepdims=True))
    return x, y, sxy, sxx, syy, xx, yy


def pearson(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """Pearson's r of each seed; 0 for constant predictions."""
    return _correlation(*_moments(pred, target)[2:])[..., 0]


def pearson_left_out(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """Without item i a centred sum of products loses n/(n-1) times item i's product of deviations."""
    x, y, sxy, sxx, syy, xx, yy = _moments(pred, target)
    c = pred.shape[-1] / max(pred.shape[-1] - 1, 1)
    return _correlation(sxy - c * x * y, sxx - c * x * x, syy - c * y * y, xx, yy)


def _ranks(x: Array) -> Array:
    from scipy.stats import rankdata

    return rankdata(x, axis=-1) - (x.shape[-1] + 1) / 2


def spearman(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """Spearman's rho of each seed: Pearson's r of mid-ranks, so ties are handled; 0 for constant predictions."""
    return pearson(_ranks(pred), _ranks(target))


def _signs(x: Array) -> Array:
    """sign(x_i - x_j) of centred mid-ranks (..., N) as (..., i, j); they differ by halves, so clipping does it."""
    x = 2 * x.astype(np.float32)
    d = x[..., :, None] - x[..., None, :]
    return np.clip(d, -1.0, 1.0, out=d)


def spearman_left_out(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """Taking item j out moves every other centred mid-rank a_i by -sign(x_i - x_j) / 2, ties included.

    So the sums over the remaining ranks follow from the matrix of signs; nothing is ranked anew.
    """
    pred, target = np.atleast_2d(pred), np.atleast_2d(target)
    n, lead = pred.shape[-1], np.broadcast_shapes(pred.shape[:-2], target.shape[:-2])
    a, b = (_ranks(np.broadcast_to(v, lead + v.shape[-2:]).reshape(-1, *v.shape[-2:])) for v in (pred, target))
    left = np.empty(np.broadcast_shapes(a.shape, b.shape))
    step = max(1, 1_000_000 // (a.shape[1] * n * n))  # sign matrices of a few MB at a time
    for k in range(0, len(a), step):
        x, y = a[k : k + step], b[k : k + step]  # (r, S, N) and (r, 1, N): the target's signs serve every seed
        s, t = _signs(x), _signs(y)
        xs, ys, xt, yt = (
            (u[..., None, :].astype(np.float32) @ w)[..., 0, :] for u, w in ((x, s), (y, s), (x, t), (y, t))
        )
        ss, tt, st = (np.einsum("...ij,...ij->...j", p, q) / 4 for p, q in ((s, s), (t, t), (s, t)))
        sxx, syy, sxy = ((u * v).sum(-1, keepdims=True) for u, v in ((x, x), (y, y), (x, y)))
        left[k : k + step] = _correlation(
            sxy - x * y + st - (xt + ys) / 2, sxx - x * x + ss - xs, syy - y * y + tt - yt, sxx, syy
        )
    return left.reshape(lead + left.shape[1:])


def _mean_left_out(x: Array) -> Array:
    return np.maximum(x.sum(-1, keepdims=True) - x, 0.0) / max(x.shape[-1] - 1, 1)


def rmse(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """Root of the mean squared error of each seed, in the task's units."""
    return np.sqrt(((pred - target) ** 2).mean(-1))


def rmse_left_out(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """The same without each item."""
    return np.sqrt(_mean_left_out((pred - target) ** 2))


def mae(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """Mean absolute error of each seed, in the task's units."""
    return np.abs(pred - target).mean(-1)


def mae_left_out(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """The same without each item."""
    return _mean_left_out(np.abs(pred - target))


def _skill(mse: Array, base: Array) -> Array:
    return np.where(base > 0, 1 - mse / np.where(base > 0, base, 1.0), 1.0 * (mse == 0))


def _squares(pred: Array, target: Array, reference: Array | None) -> tuple[Array, Array]:
    if reference is None:
        raise DataError("R2 is measured against the mean of each seed's shots: give `reference`, one number a seed")
    reference = np.asarray(reference)
    reference = reference if reference.ndim == np.ndim(pred) else reference[..., None]
    return (pred - target) ** 2, (reference - target) ** 2


def r2(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """1 - MSE / MSE of the reference, each seed: R2 against predicting the mean of the same shots.

    Not the textbook's, whose reference is the mean of the queries' own targets, which no method could have known.
    """
    return _skill(*(e.mean(-1) for e in _squares(pred, target, reference)))


def r2_left_out(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """The same without each item."""
    return _skill(*(_mean_left_out(e) for e in _squares(pred, target, reference)))


def accuracy(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """Share of each seed's predictions equal to the target; numbers or strings."""
    return (pred == target).astype(float).mean(-1)


def accuracy_left_out(pred: Array, target: Array, reference: Array | None = None) -> Array:
    """The same without each item."""
    return _mean_left_out((pred == target).astype(float))


class Metric(NamedTuple):
    """A metric of each seed, the same without each item, the scale of its interval, and whether it is a loss there."""

    values: Callable[..., Array]
    left_out: Callable[..., Array]
    scale: str
    loss: bool = False


METRICS = {
    "rmse": Metric(rmse, rmse_left_out, "log", loss=True),
    "mae": Metric(mae, mae_left_out, "log", loss=True),
    "pearson": Metric(pearson, pearson_left_out, "fisher"),
    "spearman": Metric(spearman, spearman_left_out, "fisher"),
    "r2": Metric(r2, r2_left_out, "log1m", loss=True),
    "accuracy": Metric(accuracy, accuracy_left_out, "wilson"),
}
REGRESSION = ("rmse", "mae", "pearson", "spearman", "r2")
CLASSIFICATION = ("accuracy",)


def metric(name: str) -> Metric:
    """The metric called `name`; an unknown name is a DataError that names the nearest."""
    if name not in METRICS:
        raise DataError(f"no metric is called {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]


def spread_ratio(pred: Array, target: Array) -> float:
    """sd(prediction) / sd(target), the mean over the seeds: 1 is a calibrated spread, 0 a constant answer."""
    spread = float(np.std(target))
    return float(np.std(pred, axis=-1).mean() / spread) if spread > 0 else 0.0


def efficiency(skill: float, ridge: float) -> float:
    """Extraction efficiency: the arm's skill over that of ridge on the same shots; NaN where ridge has none to extract."""
    return skill / ridge if ridge > 0 else float("nan")
