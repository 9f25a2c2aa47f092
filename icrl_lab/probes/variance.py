"""Where the variance of an answer comes from: the query, the selection of shots, the seed that drew them, their order.

The design is balanced: each of A selections has S seeds, each of them O orders, and every one is asked the same Q queries.
Seeds are nested in selections (the same seed draws other shots by another selection) and orders in seeds:

    y = mean + selection + seed + order + query + query x selection + query x seed + rest

The model is deterministic and each cell is asked once, so the rest is nobody's noise: it is what an order does to one query
and not to another ("query x order"). The mixed model with these random effects is statsmodels' (MixedLM, REML). Its starting
point, its replacement where it does not converge, and its intervals come from the analysis of variance of the same
table: with mean squares MS on df degrees of freedom, MS df / chi-square(df) are draws of their expectations (generalised
intervals; Weerahandi 1993, Burdick, Borror and Montgomery 2005), and each share of the variance is a function of those.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from icrl_lab.errors import DataError, MissingExtra
from icrl_lab.stats.metrics import Array

SOURCES = ("query", "selection", "query x selection", "seed", "query x seed", "order", "query x order")
INTERVAL = "generalised 95 % interval from the mean squares of the balanced analysis of variance"
MIXED, BALANCED = "mixed model, REML (statsmodels)", "balanced analysis of variance, moments cut off at zero"


class Split(NamedTuple):
    """Variance by source (of `sources`), its share of the sum with an interval, and by which method it was estimated."""

    sources: tuple[str, ...]
    variance: Array
    share: Array
    low: Array
    high: Array
    method: str


def split(table: Array, *, draws: int = 4000, seed: int = 0) -> Split:
    """The split of outcomes (A, S, O, Q): selections, seeds, orders, queries; at least two of each, but for selections.

    With one selection its sources are left out. `method` is MIXED, or BALANCED with why where the mixed model fails.
    """
    table = np.asarray(table, float)
    if table.ndim != 4 or min(table.shape[1:]) < 2 or not np.isfinite(table).all():
        raise DataError(
            f"a split of variance needs at least 2 seeds, 2 orders and 2 queries, and has (selections, seeds, orders, queries) = "
            f"{table.shape}; ask for more of them"
        )
    sources = tuple(s for s in SOURCES if table.shape[0] > 1 or "selection" not in s)
    square, df = mean_squares(table)
    moments = components(square, table.shape)
    rng = np.random.default_rng(seed)
    drawn = {s: square[s] * df[s] / rng.chisquare(df[s], draws) for s in square}
    shares = _shares(np.stack([components(drawn, table.shape)[s] for s in sources]))
    low, high = np.quantile(shares, [0.025, 0.975], axis=1)
    balanced = np.maximum([moments[s] for s in sources], 0.0)
    variance, method = _mixed(table, sources, balanced)
    return Split(sources, variance, _shares(variance[:, None])[:, 0], low, high, method)


def shares(arrays: dict[str, Any], coords: dict[str, Any], tables: dict[str, Array]) -> dict[str, Any]:
    """Adds `share` (control, source) of each control's table (A, S, O, Q) with its interval to a reading's arrays and coords, and
    returns what `about` says of it; nothing but why, where there are too few seeds or orders."""
    if not tables or any(min(t.shape[1:]) < 2 for t in tables.values()):
        return {"variance": "not split: that takes at least 2 seeds, 2 orders and 2 queries"}
    found = {name: split(table) for name, table in tables.items()}
    coords["source"] = list(next(iter(found.values())).sources)
    for tail in ("", "_low", "_high"):
        values = np.array([getattr(f, tail.lstrip("_") or "share") for f in found.values()])
        words = (
            "share of the variance of answers"
            + {"": "", "_low": ", 95 % interval from", "_high": ", 95 % interval to"}[tail]
        )
        arrays[f"share{tail}"] = (("control", "source"), values, words, "share of 1")
    return {"variance": {name: f.method for name, f in found.items()}, "variance interval": INTERVAL}


def _shares(variance: Array) -> Array:
    variance = np.maximum(variance, 0.0)
    total = variance.sum(0)
    return np.divide(variance, total, out=np.zeros_like(variance), where=total > 0)


def mean_squares(table: Array) -> tuple[dict[str, float], dict[str, int]]:
    """Mean squares and degrees of freedom of each source of a table (A, S, O, Q); those of no degrees of freedom are left out."""
    a, s, o, q = table.shape
    mean = lambda *axes: table.mean(axes, keepdims=True)  # noqa: E731
    cell, seeds, chosen, all_ = mean(3), mean(2, 3), mean(1, 2, 3), mean(0, 1, 2, 3)
    asked, by_choice, by_seed = mean(0, 1, 2), mean(1, 2), mean(2)
    effect = {
        "query": (asked - all_, q - 1),
        "selection": (chosen - all_, a - 1),
        "query x selection": (by_choice - chosen - asked + all_, (a - 1) * (q - 1)),
        "seed": (seeds - chosen, a * (s - 1)),
        "query x seed": (by_seed - seeds - by_choice + chosen, a * (s - 1) * (q - 1)),
        "order": (cell - seeds, a * s * (o - 1)),
        "query x order": (table - cell - by_seed + seeds, a * s * (o - 1) * (q - 1)),
    }
    found = {name: (float((np.broadcast_to(e, table.shape) ** 2).sum()), df) for name, (e, df) in effect.items() if df}
    return {name: total / df for name, (total, df) in found.items()}, {name: df for name, (_, df) in found.items()}


def components(square: dict[str, Array] | dict[str, float], shape: tuple[int, ...]) -> dict[str, Array]:
    """Each source's variance from the mean squares, by solving their expectations; may be negative."""
    a, s, o, q = shape
    m = {name: np.asarray(square.get(name, 0.0), float) for name in SOURCES}
    found = {
        "query x order": m["query x order"],
        "query x seed": (m["query x seed"] - m["query x order"]) / o,
        "order": (m["order"] - m["query x order"]) / q,
        "seed": (m["seed"] - m["query x seed"] - m["order"] + m["query x order"]) / (q * o),
    }
    if a == 1:
        return found | {"query": (m["query"] - m["query x seed"]) / (o * s)}
    return found | {
        "query": (m["query"] - m["query x selection"]) / (o * s * a),
        "query x selection": (m["query x selection"] - m["query x seed"]) / (o * s),
        "selection": (m["selection"] - m["query x selection"] - m["seed"] + m["query x seed"]) / (q * o * s),
    }


def _mixed(table: Array, sources: tuple[str, ...], start: Array) -> tuple[Array, str]:
    """Variances by the mixed model, or `start` and why where it does not converge."""
    try:
        from statsmodels.regression.mixed_linear_model import MixedLM, MixedLMParams, VCSpec
    except ImportError:
        raise MissingExtra('a mixed model needs statsmodels: pip install "icrl-lab[probes]"') from None
    scale = float(table.std())
    if scale <= 1e-9 * max(float(np.abs(table).max()), 1e-300):
        return start, f"{BALANCED}: the answers do not vary"
    if start[-1] <= 1e-6 * start.sum():
        return start, f"{BALANCED}: the mixed model needs a rest, and order does next to nothing to single queries"
    effects = [s for s in sources if s != "query x order"]
    y = ((table - table.mean()) / scale).ravel()
    designs = [_design(name, table.shape) for name in effects]
    names = [[str(i) for i in range(d.shape[1])] for d in designs]
    model = MixedLM(
        y,
        np.ones((y.size, 1)),
        groups=np.zeros(y.size),
        exog_vc=VCSpec(effects, [[n] for n in names], [[d] for d in designs]),
    )
    rest = max(start[-1] / scale**2, 1e-4)
    first = [max(start[sources.index(n)] / scale**2, 1e-4 * rest) / rest for n in model.exog_vc.names]
    with (
        warnings.catch_warnings()
    ):  # a variance of zero lies on the boundary, and is an answer; convergence is asked below
        warnings.simplefilter("ignore")
        try:
            fit = model.fit(
                reml=True,
                method="lbfgs",
                start_params=MixedLMParams.from_components(np.zeros(1), vcomp=np.array(first)),
            )
        except (np.linalg.LinAlgError, ValueError, FloatingPointError) as error:
            return start, f"{BALANCED}: the mixed model failed ({error})"
    found = dict(zip(model.exog_vc.names, np.asarray(fit.vcomp, float)), **{"query x order": float(fit.scale)})
    variance = scale**2 * np.array([found[s] for s in sources])
    # inside the boundary REML of a balanced table is the analysis of variance, so that a false convergence shows
    inside = (start > 1e-6 * start.sum()).all()
    if not fit.converged or not np.isfinite(variance).all() or (inside and np.abs(variance / start - 1).max() > 0.05):
        return start, f"{BALANCED}: the mixed model did not converge"
    return variance, MIXED


def _design(name: str, shape: tuple[int, ...]) -> Array:
    """(cells, groups) which group of a source each cell of a table belongs to."""
    a, s, o, q = (i.ravel() for i in np.indices(shape))
    seed = a * shape[1] + s
    code = {
        "query": q,
        "selection": a,
        "query x selection": a * shape[3] + q,
        "seed": seed,
        "query x seed": seed * shape[3] + q,
        "order": seed * shape[2] + o,
    }[name]
    return np.eye(code.max() + 1)[code]
