"""How far a figure can be trusted: 95 % intervals and p-values over seeds and items.

The estimand. A task has a population of items, and a method has a population of seeds: a seed is a draw of shots, of
the slot map and of the order. With m_s the metric of one seed on the whole population of items, the estimand is
E_s[m_s], the expected metric over new seeds and new items. It is not the metric of an averaged prediction, not the
metric of the seeds that happened to be drawn, and not that of the items that happened to be asked.

What is seen is one crossed table: S seeds, all on the same N items. Both are samples, so the mean over the seeds of
the observed metric has the variance

    seeds/S + items/N + residual/(S N)

and a plain percentile bootstrap covers too little: for Pearson's r where seeds differ (three seeds, 128 items, nominal
95 %) that of the seeds covers 74 %, of the items 54 %, of both 86 %. What is done here instead:

1. Each cell gets its jackknife pseudo-value N m_s - (N-1) m_s(without i) (Tukey 1958): what item i contributes to
   seed s. For a mean this is the term itself; for a correlation it is the empirical influence. The jackknife's variance is
   too large (Efron and Stein 1981), that of correlations about N/(N-2) times: 1.49, 1.33, 1.23, 1.14, 1.05 and 1.01 times at
   6, 8, 12, 20, 32 and 64 items (`simulate`, "typical"), so what an item adds to a seed's correlation counts sqrt((N-2)/N).
2. The two-way analysis of variance of that S x N table gives the three components without bias.
3. With S seeds the seeds' share has only S-1 degrees of freedom. Satterthwaite's approximation plugs the estimated
   shares into one t distribution; when the seeds agree by luck it believes both that they agree and that it has many
   degrees of freedom, and at three seeds it covers 90 to 92 % where seeds differ about as much as items do. So the
   seeds' component is not plugged in but integrated over its generalised (fiducial) distribution, observed mean
   square * (S-1) / chi-square, as Weerahandi (1993) does for mixed models. What is taken off for the residual is `OFF`
   standard errors of that mean square more than its estimate, since the rest is cut off at zero and would else widen
   every interval whose seeds do not differ (99 % coverage).
   Given the seeds' component the rest is Student's t, with fewer degrees of freedom where few items weigh most.
4. Symmetric on the scale where the metric is nearly normal, by the delta method at the mean over the seeds, so that the
   estimand stays E_s[m_s]: Fisher's z for correlations, log for RMSE and MAE, log(1 - R2) for R2, Wilson's with the
   effective number of trials for accuracy. Differences are taken as they are.
5. Losses (RMSE, MAE, 1 - R2) have a floor, and what a seed gets wrong adds to them whatever its sign: seeds' losses are
   skewed to the right (a squared offset has skewness 2.8), the seeds drawn often miss the bad ones, and the interval
   lies too low: 5 to 7 % of them below the estimand, 1 % above. Five seeds do not tell their skewness, so it is taken to
   be `SKEW`, and the kurtosis that of a gamma distribution with it: the interval leans to the larger losses by Johnson's
   (1978) correction of t, and the seeds' degrees of freedom are fewer, both by the seeds' share of the variance. `SKEW`
   was chosen on the scenarios of `simulate`.

One seed says nothing about new seeds: its interval is over items alone, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.stats.metrics import Array, metric

# of seeds' losses. With 0, .5, .8 and 1 the least coverage from five seeds up was 92.1, 93.3, 93.5 and 93.6 %, for 1, 1.1, 1.3 and 1.5
# times the width where five seeds differ most (with `OFF` = 1; with 1.4 and .8 it is 93.1 %)
SKEW = 0.8
# of the residual, in every interval and p-value. With 1, and the jackknife's variance as it is, correlations without a signal were
# covered 97.9 to 98.1 % at 5 x 32 (48,000 studies), now 97.5 to 97.8
OFF = 1.4


class Parts(NamedTuple):
    """Estimated variance of a mean over seeds and items (...), by source, and how many of each there were.

    seeds     of the seeds' means over S: holds the seeds' and the residual component
    items     of the items' means over N: holds the items' and the residual component
    residual  the residual component over S N
    df_items  degrees of freedom of the items' variance
    """

    seeds: Array
    items: Array
    residual: Array
    df_items: Array
    n_seeds: int
    n_items: int


@dataclass(frozen=True)
class Interval:
    """A metric (or a paired difference) with its 95 % interval.

    df      Satterthwaite's degrees of freedom, as a measure of how much the interval rests on
    method  "crossed", "items only" (one seed), "seeds only" (no common items) or "none" (too little to say)
    p       two-sided p-value of "the difference is zero"; NaN for a plain metric
    """

    estimate: float
    low: float
    high: float
    df: float
    method: str
    p: float = float("nan")


def _df_items(by_item: Array) -> Array:
    """Degrees of freedom of the items' variance: N-1 for normal contributions, fewer where a few items weigh most.

    A sample variance has the variance 2 sigma^4 / df with df = 2N / (kurtosis - 1), about; squared errors have a
    kurtosis of 15, and N-1 would promise more than 32 of them can hold.
    """
    n = by_item.shape[-1]
    squares = (by_item - by_item.mean(-1, keepdims=True)) ** 2
    second, fourth = squares.mean(-1), (squares**2).mean(-1)
    kurtosis = np.where(second > 0, fourth / np.where(second > 0, second**2, 1.0), 3.0)
    return (
        np.clip(2 * n / np.maximum(kurtosis - 1, 1.0), min(2.0, n - 1.0), n - 1.0)
        if n > 1
        else np.ones(by_item.shape[:-1])
    )


def components(table: Array) -> Parts:
    """Variance components of a table (..., S, N) of pseudo-values, by two-way analysis of variance."""
    s, n = table.shape[-2:]
    by_seed, by_item = table.mean(-1), table.mean(-2)
    zero = np.zeros(table.shape[:-2])
    items = by_item.var(-1, ddof=1) / n if n > 1 else zero
    df = _df_items(by_item)
    if s == 1 or n == 1:
        return Parts(by_seed.var(-1, ddof=1) / s if s > 1 else zero, items, zero, df, s, n)
    total = ((table - by_item.mean(-1)[..., None, None]) ** 2).sum((-1, -2))
    rows, columns = n * (s - 1) * by_seed.var(-1, ddof=1), s * (n - 1) * by_item.var(-1, ddof=1)
    residual = np.maximum(total - rows - columns, 0.0) / ((s - 1) * (n - 1) * s * n)
    return Parts(by_seed.var(-1, ddof=1) / s, items, residual, df, s, n)


def satterthwaite(parts: Parts) -> Array:
    """Degrees of freedom of items + seeds - residual (Satterthwaite 1946), between 1 and S N."""
    s, n = max(parts.n_seeds - 1, 1), max(parts.n_items - 1, 1)
    total = np.maximum.reduce([parts.items + parts.seeds - parts.residual, parts.items, parts.seeds])
    below = parts.items**2 / n + parts.seeds**2 / s + parts.residual**2 / (s * n)
    df = np.where(below > 0, total**2 / np.where(below > 0, below, 1.0), n)
    return np.clip(df, 1, parts.n_seeds * parts.n_items)


def _df_seeds(n_seeds: int, skew: float) -> float:
    """Degrees of freedom of the seeds' variance: S-1 where seeds are normal, fewer where they are gamma with this skewness.

    With excess kurtosis k a sample variance has the variance sigma^4 (2 / (S-1) + k / S); a gamma's k is 1.5 skewness^2.
    """
    return 2 / (2 / (n_seeds - 1) + 1.5 * skew**2 / n_seeds)


@lru_cache
def _quadrature(df: float, nodes: int = 20) -> tuple[Array, Array]:
    """Nodes and weights for an average over chi-square(df)/df; dense where the chi-square is small."""
    from scipy.stats import chi2

    x, w = np.polynomial.legendre.leggauss(nodes)
    v = (x + 1) / 2
    return chi2.ppf(v**3, df) / df, w / 2 * 3 * v**2


def _variances(parts: Parts, skew: float = 0.0) -> tuple[Array, Array]:
    """The variance of the mean at each node of the seeds' fiducial distribution (..., K), and the weights (K,)."""
    if parts.n_seeds == 1:
        return np.asarray(parts.items)[..., None], np.ones(1)
    ratio, weight = _quadrature(_df_seeds(parts.n_seeds, skew))
    off = 1 + OFF * np.sqrt(2 / (parts.n_seeds - 1))
    seeds = np.asarray(parts.seeds)[..., None] / ratio - off * np.asarray(parts.residual)[..., None]
    return np.asarray(parts.items)[..., None] + np.maximum(seeds, 0.0), weight


def p_value(difference: Array, parts: Parts, skew: float = 0.0) -> Array:
    """Two-sided p-value of "the expected difference is zero", shape (...)."""
    from scipy.special import stdtr

    variance, weight = _variances(parts, skew)
    away = np.abs(np.asarray(difference))[..., None]
    t = np.where(away > 0, away / np.sqrt(np.maximum(variance, 1e-300)), 0.0)
    return np.minimum(2 * stdtr(np.asarray(parts.df_items)[..., None], -t) @ weight, 1.0)


def half_width(parts: Parts, level: float = 0.95, skew: float = 0.0) -> Array:
    """Half the interval's width on the pseudo-values' scale (...): where the two-sided p-value is 1 - level."""
    from scipy.special import stdtrit

    variance, _ = _variances(parts, skew)
    q = stdtrit(parts.df_items, (1 + level) / 2)
    low, high = (np.log(np.maximum(q * np.sqrt(v), 1e-150)) for v in (variance.min(-1), variance.max(-1)))
    above, below = (np.log(p_value(np.exp(h), parts, skew) / (1 - level)) for h in (low, high))
    side = np.zeros(low.shape)
    for _ in range(40):  # false position (Illinois) in log width: log p is smooth and falls, and the nodes bracket it
        gap = above - below
        middle = low + (high - low) * np.clip(np.where(gap > 0, above / np.where(gap > 0, gap, 1.0), 0.5), 0.0, 1.0)
        at = np.log(p_value(np.exp(middle), parts, skew) / (1 - level))
        if np.all(np.abs(at) < 1e-5):
            break
        left = at > 0
        below = np.where(left, np.where(side > 0, below / 2, below), at)
        above = np.where(left, at, np.where(side < 0, above / 2, above))
        low, high, side = np.where(left, middle, low), np.where(left, high, middle), np.where(left, 1, -1)
    return np.where(variance.max(-1) > 0, np.exp(middle), 0.0)


def _lean(share: Any, n_seeds: int, skew: float, level: float) -> Array:
    """How far an interval moves to where seeds are skewed, in half widths (Johnson 1978), at most half of one: his expansion is for
    more than two seeds. `share` of the variance is the seeds'."""
    from scipy.special import stdtrit

    if n_seeds == 1 or not skew:
        return np.zeros(np.shape(share))
    t = stdtrit(n_seeds - 1.0, (1 + level) / 2)
    return min(0.5, skew * (1 + 2 * t**2) / (6 * t * np.sqrt(n_seeds))) * np.asarray(share) ** 1.5


def confidence(mean: Any, parts: Parts, scale: str, level: float = 0.95, skew: float = 0.0) -> tuple[Array, Array]:
    """The interval's ends (...) on the metric's own scale, for seeds with this skewness on it."""
    seeds = np.maximum(np.asarray(parts.seeds) - parts.residual, 0.0)
    share = seeds / np.maximum(seeds + parts.items, 1e-300)
    half = half_width(parts, level)
    if skew and parts.n_seeds > 1:
        half = half + share * (half_width(parts, level, skew) - half)
    return bounds(mean, half, scale, parts.n_items, level, _lean(share, parts.n_seeds, skew, level))


def bounds(mean: Any, half: Any, scale: str, n_items: int, level: float = 0.95, lean: Any = 0.0) -> tuple[Array, Array]:
    """The interval's ends on the metric's own scale, from a mean and a half width there; on the scales of losses it leans to the
    larger ones by `lean` half widths."""
    from scipy.special import stdtrit

    mean, half = np.asarray(mean, float), np.asarray(half, float)
    if scale == "plain":
        return mean - half, mean + half
    if scale == "wilson":
        spread = mean * (1 - mean)
        none = stdtrit(max(n_items - 1.0, 1.0), (1 + level) / 2) ** 2 / n_items  # all right or all wrong: N trials
        w = np.where(spread > 0, half**2 / np.where(spread > 0, spread, 1.0), none)
        centre, arm = (mean + w / 2) / (1 + w), np.sqrt(w * spread + w**2 / 4) / (1 + w)
        return np.maximum(centre - arm, 0.0), np.minimum(centre + arm, 1.0)
    with np.errstate(all="ignore"):
        if scale == "fisher":
            slope = half / (1 - mean**2)
            low, high = np.tanh(np.arctanh(mean) - slope), np.tanh(np.arctanh(mean) + slope)
        else:
            size = mean if scale == "log" else 1 - mean
            least, most = size * np.exp(-half / size * (1 - lean)), size * np.exp(half / size * (1 + lean))
            low, high = (least, most) if scale == "log" else (1 - most, 1 - least)
    edge = half <= 1e-9 * np.abs(mean)  # a perfect or constant table has no spread to transform
    return np.where(edge, mean, low), np.where(edge, mean, high)


def pseudo_values(pred: Array, target: Array, name: str, reference: Array | None = None) -> tuple[Array, Array]:
    """The mean over seeds of a metric (...), and its pseudo-values (..., S, N): of correlations with the spread that is theirs."""
    one, n = metric(name), pred.shape[-1]
    value = one.values(pred, target, reference)
    away = (n - 1) * (value[..., None] - one.left_out(pred, target, reference))
    if one.scale == "fisher":
        away = away * np.sqrt(max(n - 2, 0) / n)
    return value.mean(-1), value[..., None] + away


def fill(pred: Any, fallback: Any) -> Array:
    """Predictions (S, N) with every failure (NaN or None) replaced by its seed's fallback (S,), or its own (S, N)."""
    import pandas as pd

    pred = np.array(pred)
    failed = pd.isna(pred)
    if failed.any() and fallback is None:
        seed, item = (int(i) for i in np.argwhere(failed)[0])
        raise DataError(f"the prediction of seed {seed}, item {item} failed, and no fallback is given to count it as")
    fallback = np.asarray(fallback)
    out = np.where(failed, fallback if fallback.ndim == 2 else fallback[:, None], pred) if failed.any() else pred
    if out.dtype.kind != "O":
        return out
    return out.astype(str if any(isinstance(v, str) for v in out.flat) else float)


def _checked(pred: Any, target: Any, fallback: Any) -> tuple[Array, Array]:
    pred, target = fill(pred, fallback), np.asarray(target)
    if pred.ndim != 2 or target.shape != pred.shape[1:]:
        raise DataError(
            f"predictions of shape {pred.shape} and targets of shape {target.shape}; wanted (seeds, items) and (items,)"
        )
    if pred.shape[1] < 1 or pred.shape[0] < 1:
        raise DataError("an interval needs at least one seed and one item")
    return pred, target.astype(str) if pred.dtype.kind in "US" else target


WIDEST = {"fisher": 2.0, "wilson": 1.0}  # the largest difference of two correlations, of two shares
# items for an interval, by scale; else 3. Of fewer, what is left of them without one correlates at 1 by chance
FEWEST = {"fisher": 5}
NOTHING_KNOWN = Interval(float("nan"), float("nan"), float("nan"), float("nan"), "none")


def _interval(
    mean: Array, table: Array, scale: str, level: float, test: bool, skew: float = 0.0, fewest: int = 3
) -> Interval:
    s, n = table.shape
    if n < fewest:
        return replace(NOTHING_KNOWN, estimate=float(mean))
    parts = components(table)
    low, high = confidence(mean, parts, scale, level, skew)
    p = float(p_value(mean, parts)) if test else float("nan")
    method = "crossed" if s > 1 else "items only"
    return Interval(float(mean), float(low), float(high), float(satterthwaite(parts)), method, p)


def interval(
    pred: Any, target: Any, metric_name: str, reference: Any = None, fallback: Any = None, level: float = 0.95
) -> Interval:
    """The expected metric over new seeds and new items, with its interval.

    pred (S, N), NaN or None where it failed; target (N,); reference (S,) or (S, N), what predicting the mean of each seed's
    (or each item's) shots gives; fallback of either shape, what a failure counts as (the reference, where none is given).
    """
    pred, target = _checked(pred, target, reference if fallback is None else fallback)
    mean, table = pseudo_values(pred, target, metric_name, None if reference is None else np.asarray(reference))
    one = metric(metric_name)
    return _interval(mean, table, one.scale, level, test=False, skew=SKEW * one.loss, fewest=FEWEST.get(one.scale, 3))


def paired(
    pred: Any,
    control: Any,
    target: Any,
    metric_name: str,
    reference: Any = None,
    fallback: Any = None,
    level: float = 0.95,
) -> Interval:
    """The expected difference of a metric, `pred` minus `control`, on the same seeds and items; shapes as in `interval`.

    Taken cell by cell on the pseudo-values, so that what the two share (items hard for both, shots good for both) cancels.
    """
    fallback, reference = (
        reference if fallback is None else fallback,
        None if reference is None else np.asarray(reference),
    )
    (a, target), (b, _) = _checked(pred, target, fallback), _checked(control, target, fallback)
    if a.shape != b.shape:
        raise DataError(f"a paired difference needs the same seeds and items: {a.shape} against {b.shape}")
    (one, left), (two, right) = (pseudo_values(x, target, metric_name, reference) for x in (a, b))
    scale = metric(metric_name).scale
    found = _interval(one - two, left - right, "plain", level, test=True, fewest=FEWEST.get(scale, 3))
    most = WIDEST.get(scale, np.inf)  # no difference is larger, however few the seeds
    return replace(found, low=max(found.low, -most), high=min(found.high, most)) if found.method != "none" else found


def over_seeds(values: Any, metric_name: str | None = None, level: float = 0.95) -> Interval:
    """The interval where each seed saw items of its own: between seeds alone, Student's t on S-1 degrees of freedom, or fewer
    for a loss. Without a metric's name the values are differences."""
    from scipy.special import stdtr, stdtrit

    values = np.asarray(values, float)
    mean, s = float(values.mean()), len(values)
    if s < 2:
        return replace(NOTHING_KNOWN, estimate=mean)
    error = float(values.std(ddof=1)) / np.sqrt(s)
    one = None if metric_name is None else metric(metric_name)
    skew = SKEW if one is not None and one.loss else 0.0
    half = stdtrit(_df_seeds(s, skew), (1 + level) / 2) * error
    low, high = bounds(mean, half, one.scale if one else "plain", s, level, _lean(1.0, s, skew, level))
    p = 2 * stdtr(s - 1.0, -abs(mean) / error) if error > 0 else float(mean == 0)
    return Interval(mean, float(low), float(high), s - 1.0, "seeds only", float(p))
