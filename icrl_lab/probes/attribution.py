"""Attribution: which shots an answer rests on, by captum, and whether leaving them out says the same.

Every number is a change of one query's outcome: what it is, less what it would be with something replaced by a baseline (the mean
slot). Integrated gradients, Shapley values and ablation share that change out among the shots' vectors in three ways; leaving a
shot out wholly, its label and all, is the truth that they are held against, and random numbers are their placebo. The same is done
under noise vectors, for a vector that carries nothing can be attributed to as well. The question at the end: do attributions go to
the shots that the encoder finds similar to the query?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.probes import coalitions, games
from icrl_lab.probes.arrays import Named, ci, dataset, looked_at, over
from icrl_lab.probes.asked import checked
from icrl_lab.probes.beside import put
from icrl_lab.probes.scene import ROLES, Scene, pick, scene, still
from icrl_lab.stats import Effects, adjusted, effects
from icrl_lab.stats.metrics import Array, spearman
from icrl_lab.stats.words import tested
from icrl_lab.values import Reading

if TYPE_CHECKING:
    import xarray as xr

    from icrl_lab.studies.run import Study

METHODS = ("ig", "shapley", "ablation")
TRUTH, PLACEBO = "leave-one-out", "placebo"
WORDS = {
    "ig": "integrated gradients", "shapley": "Shapley values", "ablation": "ablation of the vector", TRUTH: "leaving the shot out",
    PLACEBO: "random numbers",
}  # fmt: skip
METHOD = (
    "crossed analysis of variance over seeds and queries, t distribution; a rho is Spearman's over the shots of one seed and query, and "
    "its mean is told; Holm over the reading's cells"
)
LIMITS = (
    "An attribution shares out the change from a baseline prompt; another baseline gives other shares.",
    "Integrated gradients and ablation take away a vector and leave its label; leaving a shot out takes both, and moves what stands "
    "behind.",
    "The path of integrated gradients leads through mixtures of vectors that no item has: where a model picks one shot sharply, "
    "others win on the way and share in it.",
    "Attributions of a query's shots are not independent: intervals are over queries and seeds, never over shots.",
)


@checked()
def attribution(
    study: Study,
    arm: str | None = None,
    *,
    methods: Sequence[str] = METHODS,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 6,
    steps: int = 8,
    permutations: int = 2,
    baseline: str = "mean",
    spans: str = "slots",
    with_text: bool | None = None,
    seed: int = 0,
) -> Reading:
    """What each shot adds to the outcome, by several methods, under real vectors and under noise.

    methods       of METHODS; integrated gradients need labels of one token
    seeds         None: the first two of the plan
    steps         points of the path of integrated gradients, up to four times as many where the sum misses too much
    permutations  orders in which Shapley's values let the players come; each costs a forward pass a player, and two are few:
                  the reading says how well the halves agree
    baseline      what a vector is replaced by: "mean", the mean of the cell's slots, or "zero"
    spans         "slots"; or "all": also to text, labels, markers, each replaced by the mean token's embedding

    In the reading: `attribution` over (by, control, seed, query, shot) in the outcome's units, beside `leave-one-out` and a
    `placebo`; `own`, that of the query's own vector; `agreement` of each two methods; `nearness`, the correlation of an
    attribution's size with the encoder's similarity, and `recency`, with the place in the prompt; `size`, `missed` and `change`;
    with several slots an item `slot`, with spans = "all" `span`. StudyError for an arm without slots.
    """
    chosen = pick(study, arm)
    options = {"steps": steps, "permutations": permutations, "baseline": baseline, "spans": spans}
    _check(chosen, methods, options)
    seeds = tuple(study.plan.seeds[:2] if seeds is None else seeds)
    dataset({}, {})  # before anything is computed
    found: dict[str, list[_Found]] = {"real": [], "noise": []}
    scenes: list[Scene] = []
    for s in seeds:
        for place, (control, into) in enumerate(found.items()):
            one = scene(study, chosen.label, control, with_text=with_text, seed=s, queries=queries)
            if len(one.queries) < 3:
                raise DataError(f"{len(one.queries)} queries are too few for an interval; ask for at least 3")
            scenes += [one] if control == "real" else []
            into.append(_look(one, methods, options, np.random.default_rng([seed, s, place])))
    names = [*methods, TRUTH, PLACEBO]
    first = scenes[0]
    arrays = _numbers(found, np.stack([_similarity(one) for one in scenes]), names, first.units)
    data = dataset(arrays, _coords(scenes, names, methods, arrays))
    about = {
        **first.about(),
        "seeds": list(seeds),
        "n": f"{looked_at(len(seeds), len(first.queries))}, {data.sizes['shot']} shots each",
        "interval": over(METHOD, len(seeds)),
        **options,
        "limits": list(LIMITS),
    }
    return Reading("attribution", data, {**about, "says": _says(data, about)})


def _check(arm: Any, methods: Sequence[str], options: dict[str, Any]) -> None:
    if not arm.has_slots:
        raise StudyError(f"the arm {arm.label!r} has no vectors to attribute to; take one with slots")
    asked: list[tuple[str, str, tuple[str, ...]]] = [("method", m, METHODS) for m in methods]
    asked += [("baseline", options["baseline"], coalitions.BASELINES), ("spans", options["spans"], ("slots", "all"))]
    for name, value, known in asked:
        if value not in known:
            raise StudyError(f"attribution knows no {name} {value!r}; {nearest(value, known)}")


# ------------------------------------------------------------------------------------------------ one scene


@dataclass(frozen=True, eq=False)
class _Found:
    """What one scene gave, in the outcome's units.

    shots   (methods, n, k) attributions of the shots; leaving them out and the placebo come last
    own     (methods without those two, n) that of the query's vector; missed, sum of the attributions less `change`
    more    outcome (n,); change (n,), outcome less that with all vectors replaced; steps (n,), points of the path; halves
            (2, n, k), Shapley's values from half of the orders each; slot (n, k, w); span (ways, n, k + 2, roles)
    """

    shots: Array
    own: Array
    missed: Array
    more: dict[str, Array]


def _look(one: Scene, methods: Sequence[str], options: dict[str, Any], draw: np.random.Generator) -> _Found:
    n, k = one.shots.shape
    base = coalitions.baselines(one, options["baseline"])
    players = [coalitions.vectors(one, i) for i in range(n)]
    game = coalitions.Game(one, players, base)
    full, empty = game.all_or_none()
    more = {"outcome": full, "change": full - empty}
    by_player: dict[str, Array] = {}
    for method in methods:
        if method == "ig":
            paths = [coalitions.path(one, i, base[i], np.concatenate(players[i]), options["steps"]) for i in range(n)]
            by_player[method] = np.array([[p.tokens[at].sum() for at in of] for p, of in zip(paths, players)])
            more["steps"] = np.array([p.steps for p in paths])
            wide = len(players[0][-1])
            more["slot"] = np.array(
                [[p.tokens[at].reshape(-1, wide).sum(0) for at in of[:k]] for p, of in zip(paths, players)]
            )
        elif method == "shapley":
            orders = options["permutations"]
            parts = [m for m in (orders - orders // 2, orders // 2) if m]
            halves = [games.shapley(game, n, k + 1, m, int(draw.integers(2**31))) for m in parts]
            by_player[method] = np.average(halves, 0, weights=parts)
            if len(halves) > 1:
                more["halves"] = np.array(halves)[..., :k]
        else:
            by_player[method] = games.ablation(game, n, k + 1)
    if options["spans"] == "all":
        more["span"] = coalitions.by_span(one, base, options["steps"], [m for m in methods if m != "shapley"])
    more |= {name: still(more[name], full) for name in ("slot", "halves", "span") if name in more}
    added = np.array([by_player[m] for m in methods])
    stacked, truth = still(added, full), still(full[:, None] - coalitions.left_out(one), full)
    shots = np.concatenate([stacked[..., :k], truth[None], draw.standard_normal((1, n, k))])
    missed = added.sum(-1) - more["change"]
    if "ig" in methods:  # its own forward pass has its own rounding
        missed[list(methods).index("ig")] = [p.missed for p in paths]
    return _Found(shots, stacked[..., k], missed, more)


def _similarity(one: Scene) -> Array:
    """(n, k) cosine of the encoder's vectors of each query and its shots."""
    values = one.study.vectors.values.reshape(len(one.study.task), -1).astype(np.float64)
    values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-30)
    return np.einsum("nd,nkd->nk", values[one.queries], values[one.shots])


# ------------------------------------------------------------------------------------------------ numbers


def _numbers(found: dict[str, list[_Found]], cosine: Array, names: Sequence[str], units: str) -> Named:
    """Every array; `found` by control (the real one first) and seed."""
    get = lambda pick: np.array([[pick(f) for f in of] for of in found.values()])  # noqa: E731
    table = np.moveaxis(get(lambda f: f.shots), 2, 0)  # method, control, S, n, k
    cells = ("by", "control")
    each = (*cells, "seed", "query")
    arrays: Named = {"attribution": ((*each, "shot"), table, "attribution of each shot", units)}
    own = np.full(table.shape[:-1], np.nan)
    own[:-2] = np.moveaxis(get(lambda f: f.own), 2, 0)
    arrays["own"] = (each, own, "attribution of the query's own vector", units)
    arrays["cosine"] = (
        ("seed", "query", "shot"),
        cosine,
        "cosine of the encoder's vectors of shot and query",
        "cosine",
    )
    rho = spearman(table[:, None], table[None])  # method, other, control, S, n
    same = effects(rho)  # not as Fisher's z: of few shots many are 1, and would outweigh all others
    above = np.triu(np.ones(rho.shape[:2], bool), 1)
    q = np.full(same.p.shape, np.nan)
    q[above] = adjusted(same.p[above])
    q = np.where(above[..., None], q, np.swapaxes(q, 0, 1))
    put(arrays, "agreement", same, ("by", "other", "control"), "agreement over a query's shots", "Spearman rho", q=q)
    for name, other, words in (
        ("nearness", cosine, "size of the attribution and similarity of shot and query"),
        ("recency", np.arange(table.shape[-1], dtype=float), "size of the attribution and place in the prompt"),
    ):
        rho = spearman(np.abs(table), np.broadcast_to(other, table.shape))
        found_rho, gain = effects(rho), effects(rho[:, 0] - rho[:, 1])
        q = np.full(found_rho.p.shape, np.nan)
        q[:-1] = adjusted(found_rho.p[:-1])  # the placebo asks no question
        put(arrays, name, found_rho, cells, words, "Spearman rho", q=q)
        beyond = np.append(adjusted(gain.p[:-1]), np.nan)
        put(arrays, f"{name}_gain", gain, cells[:1], f"{words}: real less noise", "difference of rho", q=beyond)
    size = effects(np.abs(table[:-1]).mean(-1))
    size = Effects(*(np.concatenate([x, np.full_like(x[:1], np.nan)]) for x in size))  # a placebo has no size
    put(arrays, "size", size, cells, "mean size of a shot's attribution", units, p=False)
    missed = np.full(table.shape[:-1], np.nan)
    missed[:-2] = np.moveaxis(get(lambda f: f.missed), 2, 0)
    total = np.abs(table).sum(-1) + np.abs(np.nan_to_num(own))
    arrays["missed"] = (each, missed, "sum of the attributions less the change of the outcome", units)
    arrays["error"] = (each, np.abs(missed) / np.maximum(total, 1e-300), "the same, of all that is attributed", "share")
    for name, words, unit in (
        ("outcome", "outcome", units), ("change", "outcome less that with all vectors replaced", units),
        ("steps", "points of the path", "steps"),
    ):  # fmt: skip
        if name in found["real"][0].more:
            arrays[name] = (each[1:], get(lambda f, name=name: f.more[name]), words, unit)
    return arrays | _further(found, get, units)


def _further(found: dict[str, list[_Found]], get: Any, units: str) -> Named:
    """What there is of some methods only: Shapley's values against themselves, slots of an item, spans."""
    more = found["real"][0].more
    arrays: Named = {}
    if "halves" in more:
        halves = get(lambda f: f.more["halves"])  # control, S, half, n, k
        same = effects(spearman(halves[:, :, 0], halves[:, :, 1]))
        put(
            arrays,
            "reliability",
            same,
            ("control",),
            "Shapley's values from one half of the orders and the other",
            "Spearman rho",
        )
    if "slot" in more and more["slot"].shape[-1] > 1:
        dims: tuple[str, ...] = ("control", "seed", "query", "shot", "slot")
        arrays["slot"] = (dims, get(lambda f: f.more["slot"]), "integrated gradients of each slot", units)
    if "span" in more:
        table = np.moveaxis(get(lambda f: f.more["span"]), 2, 0)  # way, control, S, n, part, role
        dims = ("way", "control", "seed", "query", "part", "role")
        arrays["span"] = (dims, table, "attribution of each span", units)
        by_role = np.nansum(np.abs(table), -2)
        share = by_role / np.maximum(by_role.sum(-1, keepdims=True), 1e-300)
        put(
            arrays,
            "share",
            effects(np.moveaxis(share, -1, 2)),
            ("way", "control", "role"),
            "share of what is attributed to spans",
            "share",
            p=False,
        )
    return arrays


def _coords(scenes: Sequence[Scene], names: Sequence[str], methods: Sequence[str], arrays: Named) -> dict[str, Any]:
    first, k = scenes[0], scenes[0].shots.shape[1]
    task, material = first.study.task, first.study.material
    text = lambda p: task.text[int(p)] if task.text is not None else ""  # noqa: E731
    label = [[material.group(o.cell, (int(q),), row).written for q, row in zip(o.queries, o.shots)] for o in scenes]
    shots = np.array([o.shots for o in scenes])
    each = ("seed", "query", "shot")
    coords: dict[str, Any] = {"by": list(names), "other": list(names), "control": ["real", "noise"]}
    coords |= {"seed": [o.cell.seed for o in scenes], "query": list(first.ids), "shot": np.arange(k)}
    coords |= {"label": (each, np.array(label)), "item": (each, np.array(task.ids)[shots])}
    coords |= {"text": (each, np.vectorize(text, otypes=[object])(shots))}
    coords |= {"asked": ("query", [text(q) for q in first.queries])}
    if "span" in arrays:
        coords |= {"way": [m for m in methods if m != "shapley"], "role": list(ROLES)}
        coords |= {"part": [*(f"shot {s}" for s in range(k)), "query", "rest"]}
    return coords


# ------------------------------------------------------------------------------------------------ says


def _says(data: xr.Dataset, about: dict[str, Any]) -> list[str]:
    """What the numbers bear out, in words."""
    methods = [m for m in data["by"].values.tolist() if m not in (TRUTH, PLACEBO)]
    units = about["units"]
    at = lambda name, **where: ci(data, name, control="real", **where)  # noqa: E731
    noise = lambda name, **where: ci(data, name, control="noise", **where)  # noqa: E731
    sizes = "; ".join(f"{WORDS[m]} {at('size', by=m)}" for m in methods)
    out = [f"Leaving a shot out moves the answer by {at('size', by=TRUTH)} {units} on average; {sizes}."]
    for m in methods:
        pair = {"by": m, "other": TRUTH}
        out.append(
            f"{WORDS[m].capitalize()} and leaving shots out order a query's shots alike to rho = {at('agreement', **pair)} (noise "
            f"vectors: {noise('agreement', **pair)}; a placebo: {at('agreement', by=PLACEBO, other=TRUTH)})."
        )
    near = []
    for m in [*methods, TRUTH]:
        q = float(data["nearness_gain_q"].sel(by=m))
        near.append(
            f"{WORDS[m]} {at('nearness', by=m)}, noise {noise('nearness', by=m)}, difference "
            f"{ci(data, 'nearness_gain', by=m)} ({tested(q)})"
        )
    gains = [m for m in [*methods, TRUTH] if float(data["nearness_gain_q"].sel(by=m)) < 0.05]
    more = [m for m in gains if float(data["nearness_gain"].sel(by=m)) > 0]
    verdict = (
        f"More than under noise they do by {' and '.join(WORDS[m] for m in more)}." if more
        else "Beyond noise they do not, as far as can be seen."
    )  # fmt: skip
    out.append(
        f"Do attributions go to shots that the encoder finds similar to the query? {verdict} Rho of size and similarity: {'; '.join(near)}."
    )
    return [*out, _complete(data, methods, about)]


def _complete(data: xr.Dataset, methods: Sequence[str], about: dict[str, Any]) -> str:
    """How well the attributions add up, and how far Shapley's values agree with themselves."""
    words = []
    for m in methods:
        if m != "ablation":  # whose sum need not be the change
            error = data["error"].sel(by=m).values
            words.append(
                f"{WORDS[m]} miss the change of the outcome by {np.median(error):.2g} of what they attribute (worst {error.max():.2g})"
            )
    if "steps" in data:
        few, many = int(data["steps"].min()), int(data["steps"].max())
        words.append(f"with {few}{f' to {many}' if many > few else ''} points a path in {about['dtype']}")
    if "reliability" in data:
        rho = ci(data, "reliability", control="real")
        words.append(
            f"Shapley's values from half of the {about['permutations']} orders agree with the other half's to rho = {rho}"
        )
    return ("Completeness: " + "; ".join(words) + ".") if words else "Ablation alone does not add up to anything."
