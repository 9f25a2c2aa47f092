"""Does the instrument read right? Studies drawn from a model whose truth is known, read by the instrument itself.

Predictions of seed s for item i are

    slope_s * t_i + offset_s + item_sd * b_i + noise_sd * e_si

with the slope and the offset drawn anew for each seed, b for each item and e for each cell; the target t has mean 0 and
sd 1, or is skewed or heavy-tailed. A seed's reference is the mean of `shots` targets. `truth` is the metric of a seed
on the whole population of items, averaged over the population of seeds: the estimand as `intervals` states it.
The noise control is drawn with a slope of its own and shares the target and part of the seed's and the item's effect.

`coverage`, `null_rate` and `power` each read whole stacks of studies at once; `report` repeats the README's tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from icrl_lab.stats import intervals, metrics
from icrl_lab.stats.verdicts import ALPHA, holm

SEEDS, ITEMS = (3, 5, 10), (32, 64, 128, 256)


@dataclass(frozen=True)
class Scenario:
    """A population of studies. All sds in units of the target's."""

    name: str
    slope: float = 0.5
    slope_sd: float = 0.12
    offset_sd: float = 0.3
    item_sd: float = 0.5
    noise_sd: float = 0.5
    target: str = "normal"  # or "skewed" (lognormal), "heavy" (Student's t, 5 degrees of freedom)
    step: float = 0.0  # predictions are rounded to multiples of this: one-digit labels
    shots: int = 20
    control_slope: float = 0.0  # of the noise control; with text in the prompt it is not 0
    shared: float = 0.5  # part of the seed's and item's effects that arm and control have in common
    hit: float = 0.6  # accuracy of a classifier with these seed and item effects (on the probit scale)


SCENARIOS = (
    Scenario("typical"),
    Scenario("seeds agree", slope_sd=0.0, offset_sd=0.05),
    Scenario("seeds differ", slope_sd=0.2, offset_sd=0.6, item_sd=0.3),
    Scenario("strong", slope=0.9, slope_sd=0.1, offset_sd=0.15, item_sd=0.25, noise_sd=0.3, hit=0.85),
    Scenario("no signal", slope=0.0, slope_sd=0.05, item_sd=0.1, hit=0.25),
    Scenario("one digit", step=0.5),
)
HARD = (
    Scenario("skewed targets", target="skewed"),
    Scenario("heavy tails", target="heavy"),
)


def _targets(scenario: Scenario, normal: np.ndarray) -> np.ndarray:
    """Standardised targets from standard normal draws."""
    from scipy import special

    if scenario.target == "skewed":  # lognormal with sigma 0.6: skewness 2.3
        s2 = 0.36
        return (np.exp(0.6 * normal) - np.exp(s2 / 2)) / np.sqrt((np.exp(s2) - 1) * np.exp(s2))
    if scenario.target == "heavy":
        return special.stdtrit(5.0, special.ndtr(normal)) / np.sqrt(5 / 3)
    return normal


def _predict(scenario: Scenario, slope, offset, t, b, e) -> np.ndarray:
    pred = slope * t + offset + scenario.item_sd * b + scenario.noise_sd * e
    return np.round(pred / scenario.step) * scenario.step if scenario.step else pred


@dataclass(frozen=True, eq=False)
class Studies:
    """R simulated studies: arm and noise control (R, S, N), target (R, 1, N), reference (R, S)."""

    arm: np.ndarray
    control: np.ndarray
    target: np.ndarray
    reference: np.ndarray


def draw(scenario: Scenario, studies: int, seeds: int, items: int, rng: np.random.Generator) -> Studies:
    """Simulated studies of one scenario."""
    normal = rng.standard_normal
    t = _targets(scenario, normal((studies, 1, items)))
    both, own = np.sqrt(scenario.shared), np.sqrt(1 - scenario.shared)
    common = [normal((studies, seeds, 1)), normal((studies, seeds, 1)), normal((studies, 1, items))]

    def predictions(mean_slope: float) -> np.ndarray:
        slope, offset, b = (both * c + own * normal(c.shape) for c in common)
        slope, offset = mean_slope + scenario.slope_sd * slope, scenario.offset_sd * offset
        return _predict(scenario, slope, offset, t, b, normal((studies, seeds, items)))

    shots = _targets(scenario, normal((studies, seeds, scenario.shots))).mean(-1)
    return Studies(predictions(scenario.slope), predictions(scenario.control_slope), t, shots)


def draw_hits(scenario: Scenario, studies: int, seeds: int, items: int, rng: np.random.Generator) -> np.ndarray:
    """Answers (R, S, N) of a classifier, 1 where it is right; seed, item and cell effects on the probit scale."""
    from scipy.special import ndtri

    a, b = 2 * scenario.slope_sd, 2 * scenario.item_sd
    centre = ndtri(scenario.hit) * np.sqrt(1 + a * a + b * b)
    latent = centre + a * rng.standard_normal((studies, seeds, 1)) + b * rng.standard_normal((studies, 1, items))
    return (latent + rng.standard_normal((studies, seeds, items)) > 0).astype(float)


@lru_cache(maxsize=64)
def _truths(scenario: Scenario, slope: float) -> dict[str, float]:
    """The estimands of all metrics of numbers, by quasi-Monte Carlo: 128 seeds on 16,384 items of Sobol sequences."""
    from scipy.special import ndtri
    from scipy.stats import qmc

    grid = ndtri(qmc.Sobol(2, rng=np.random.default_rng(7)).random_base2(14))
    t, b = _targets(scenario, grid[:, 0]), grid[:, 1]
    u = ndtri(qmc.Sobol(3, rng=np.random.default_rng(8)).random_base2(7))
    noise = np.random.default_rng(9).standard_normal((len(u), len(t)))
    pred = _predict(scenario, slope + scenario.slope_sd * u[:, :1], scenario.offset_sd * u[:, 1:2], t, b, noise)
    reference = u[:, 2] / np.sqrt(scenario.shots)  # R2 needs no more than the second moment of the mean of the shots
    return {m: float(metrics.metric(m).values(pred, t, reference).mean()) for m in metrics.REGRESSION}


def truth(scenario: Scenario, name: str, control: bool = False) -> float:
    """The estimand: the metric of one seed on the whole population of items, averaged over the population of seeds."""
    if name == "accuracy":
        return scenario.hit
    return _truths(scenario, scenario.control_slope if control else scenario.slope)[name]


def difference(scenario: Scenario, name: str) -> float:
    """The true paired difference, arm minus noise control."""
    return truth(scenario, name) - truth(scenario, name, control=True)


def coverage(
    scenario: Scenario, seeds: int, items: int, names: Iterable[str] | None = None, studies: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Share of simulated studies whose 95 % interval holds the truth, for each metric and paired difference.

    `names` are metrics, and "delta pearson", "delta rmse", ... for paired differences with the noise control.
    """
    if names is None:
        names = (*metrics.METRICS, *(f"delta {m}" for m in metrics.REGRESSION))
    rng = np.random.default_rng([seed, seeds, items])
    drawn = draw(scenario, studies, seeds, items, rng)
    seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # the arm's pseudo-values serve the metric and its difference
    out = {}
    for name in names:
        plain = name.removeprefix("delta ")
        if plain == "accuracy":
            mean, table = intervals.pseudo_values(
                draw_hits(scenario, studies, seeds, items, rng), np.ones(items), plain
            )
        else:
            if plain not in seen:
                seen[plain] = intervals.pseudo_values(drawn.arm, drawn.target, plain, drawn.reference)
            mean, table = seen[plain]
        if plain == name:
            one = metrics.metric(name)
            true, scale, skew = truth(scenario, name), one.scale, intervals.SKEW * one.loss
        else:
            other, control = intervals.pseudo_values(drawn.control, drawn.target, plain, drawn.reference)
            mean, table, true, scale = mean - other, table - control, difference(scenario, plain), "plain"
            skew = 0.0
        low, high = intervals.confidence(mean, intervals.components(table), scale, skew=skew)
        out[name] = float(((low <= true) & (true <= high)).mean())
    return out


def _p(arm: np.ndarray, drawn: Studies, name: str) -> tuple[np.ndarray, np.ndarray]:
    a, left = intervals.pseudo_values(arm, drawn.target, name, drawn.reference)
    b, right = intervals.pseudo_values(drawn.control, drawn.target, name, drawn.reference)
    return a - b, intervals.p_value(a - b, intervals.components(left - right))


def null_rate(scenario: Scenario, seeds: int, items: int, arms: int = 4, studies: int = 1000, seed: int = 0) -> float:
    """Share of studies in which any of `arms` arms that are no better than noise gets "uses the vector" after Holm.

    Each arm has a noise control of its own, as in a study, and all share the targets.
    """
    null = replace(scenario, slope=scenario.control_slope)
    rng = np.random.default_rng([seed, 1, seeds, items])
    first = draw(null, studies, seeds, items, rng)
    deltas, ps = [], []
    for _ in range(arms):
        other = draw(null, studies, seeds, items, rng)
        shift = null.control_slope * (first.target - other.target)  # the same items for every arm
        pair = Studies(other.arm + shift, other.control + shift, first.target, first.reference)
        delta, p = _p(pair.arm, pair, "pearson")
        deltas.append(delta)
        ps.append(p)
    adjusted = holm(np.stack(ps, -1))
    return float(((adjusted <= ALPHA) & (np.stack(deltas, -1) > 0)).any(-1).mean())


def with_difference(scenario: Scenario, r: float) -> Scenario:
    """The scenario with a slope for which the true difference in Pearson's r to its noise control is `r`."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    u, rest = ndtri((np.arange(2001) + 0.5) / 2001), scenario.item_sd**2 + scenario.noise_sd**2

    def expected(slope: float) -> float:
        slopes = slope + scenario.slope_sd * u
        return float((slopes / np.sqrt(slopes**2 + rest)).mean())

    base = expected(scenario.control_slope)
    return replace(scenario, slope=float(brentq(lambda s: expected(s) - base - r, -9, 9)))


def power(
    scenario: Scenario, r: float, seeds: int, items: int, arms: int = 1, studies: int = 1000, seed: int = 0
) -> float:
    """Share of studies in which an arm with a true difference `r` gets "uses the vector", as the weakest of `arms` (p times arms)."""
    drawn = draw(with_difference(scenario, r), studies, seeds, items, np.random.default_rng([seed, 2, seeds, items]))
    delta, p = _p(drawn.arm, drawn, "pearson")
    return float(((p * arms <= ALPHA) & (delta > 0)).mean())


def power_table(
    effects: Iterable[float] = (0.1, 0.2, 0.3, 0.4),
    seeds: Iterable[int] = SEEDS,
    items: Iterable[int] = ITEMS,
    arms: int = 1,
    studies: int = 1000,
) -> list[dict[str, float]]:
    """Rows of the README's table: how often a true difference in Pearson's r to noise is found, typical scenario."""
    return [
        {
            "seeds": s,
            "items": n,
            "arms": arms,
            **{f"r = {r:g}": power(SCENARIOS[0], r, s, n, arms, studies) for r in effects},
        }
        for s in seeds
        for n in items
    ]


def limits(seeds: int) -> tuple[float, float]:
    """In what share of studies a 95 % interval should cover the truth, at least and at most; with few seeds it may be too wide."""
    return (0.92, 1.0) if seeds < 5 else (0.93, 0.98)


def granted(studies: int) -> float:
    """How far beyond its limits a simulated coverage may lie: two standard errors of a share of 95 %, 0.0138 for 1,000 studies.

    Without it an interval whose coverage is the limit itself would be found short of it in every second simulation.
    """
    return 2 * float(np.sqrt(0.05 * 0.95 / studies))


def report(studies: int = 1000) -> Iterator[dict[str, object]]:
    """What `doctor --statistics` prints: what was simulated, the share found, what it should be and whether it is.

    Coverage is granted the error of the simulation (see `granted`). The rate of null studies is granted nothing: it should lie
    well below its limit. Row by row, each as soon as it is known: all of them take a minute.
    """

    def row(
        what: str,
        scenario: Scenario,
        s: int,
        n: int,
        share: float,
        low: float,
        high: float,
        slack: float = 0.0,
        bound: bool = True,
    ) -> dict[str, object]:
        fine = not bound or bool(low - slack <= share <= high + slack)
        about: dict[str, object] = {"what": what, "scenario": scenario.name, "seeds": s, "items": n, "studies": studies}
        return {**about, "share": share, "low": low, "high": high, "granted": slack, "bound": bound, "ok": fine}

    for scenario in (*SCENARIOS, *HARD):
        sizes = [(s, n) for s in SEEDS for n in ITEMS] if scenario is SCENARIOS[0] else [(3, 128), (5, 64), (10, 32)]
        for s, n in sizes:
            for name, share in coverage(scenario, s, n, studies=studies).items():
                yield row(
                    f"coverage {name}", scenario, s, n, share, *limits(s), granted(studies), scenario in SCENARIOS
                )
    for scenario in (SCENARIOS[0], replace(SCENARIOS[0], name="with text", control_slope=0.5), *HARD):
        for s in SEEDS:
            share = null_rate(scenario, s, 64, studies=studies)
            yield row("null study says 'uses the vector'", scenario, s, 64, share, 0.0, ALPHA)
    for size in power_table(items=(64,), studies=studies):
        for key, share in size.items():
            if key.startswith("r ="):
                yield row(f"power at {key}", SCENARIOS[0], int(size["seeds"]), 64, share, 0.0, 1.0, bound=False)
