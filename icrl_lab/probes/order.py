"""Order: does it matter where a shot stands?

Three looks at the same shots, the same queries and the same vectors, of which only places change. Permutations (all of
them up to four shots) give the spread of an answer over orders, and the slope of the answer on the label at each place: at
the last, recency. Latin squares of leave-one-out prompts give what a shot moves by standing first, last or between, the
shot itself held fixed. Named orders (ascending, near-last, ...) give metrics. Noise vectors stand beside all of it, the
item's text where the study has it, and for metrics a mean, neighbours and ridge from the same shots, to whom order is nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab import shots as room
from icrl_lab.probes import beside
from icrl_lab.probes.arrays import Named, ci, dataset, looked_at
from icrl_lab.probes.asked import checked
from icrl_lab.probes.beside import put
from icrl_lab.probes.influence import Square, influence, lean, permutations, read_orders, square, trend, weights
from icrl_lab.probes.scene import Scene, arranged, scene
from icrl_lab.probes.variance import shares
from icrl_lab.stats import METRICS, adjusted, effects
from icrl_lab.stats.metrics import Array
from icrl_lab.stats.words import tested
from icrl_lab.values import Reading

if TYPE_CHECKING:
    import xarray as xr

    from icrl_lab.studies.run import Study

ORDERS = ("random", "ascending", "descending", "near-first", "near-last")
CONTRASTS = (("near-last", "near-first"), ("ascending", "descending"), ("near-last", "random"))
DISTANCE, PER_LABEL = "share of the label's distance", "log-odds per label"  # units of a weight: of numbers, of classes
LIMITS = (
    "A shot left out also shortens the prompt; its influence is that of the shot and of its absence together.",
    "Permutations beyond four shots are a sample; an order that is rare among them may do more.",
    "The intervals are over new seeds (shots, map, orders) and new queries; one seed says nothing of other shots or orders.",
    "A spread over orders has no error of its own here: the model is deterministic, and all of it is order.",
)


@checked(empty=["controls"], permutations=2, places=2)
def order(
    study: Study,
    arm: str | None = None,
    *,
    permutations: int = 12,
    places: int = 5,
    squares: int = 1,
    controls: Sequence[str] = ("noise", "text"),
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 12,
    selection: str | None = None,
    with_text: bool | None = None,
    seed: int = 0,
) -> Reading:
    """What the order of the shots does to answers, to the weight of each shot, and to metrics.

    permutations  orders of the same shots that every query is asked under; all k! up to four shots
    places        positions, from first to last, at which shots are left out
    squares       Latin squares of `places` shots over `places` positions, a seed
    controls      what stands beside the arm: "noise" always, "text" where the study has that arm, others as you like
    selection     None: the first of the plan; one that depends on the query shares no prefix and costs far more

    In the reading, over control and place or position: `weight` (how far a shot pulls the answer to its own label; the mean of k
    labels has 1/k), `strength` (size of its influence), `lean` (slope of the answer on the label there, over permutations; its
    last is `recency`), `spread` of an answer over orders, `share` of its variance by source, `swing` (ascending less
    descending); over metric, order and `by`: `score`, with `gain` of the arm over each of `versus`, and `change` between orders.
    """
    seeds = tuple(study.plan.seeds if seeds is None else seeds)
    views = beside.views(study, arm, controls)
    before = (study.engine.computed, study.engine.asked)
    looks: dict[str, list[_Look]] = {name: [] for name in views}
    for s in seeds:
        for name, (label, control) in views.items():
            text = None if name == "text" else with_text
            one = scene(study, label, control, seed=s, queries=queries, selection=selection, with_text=text)
            plan = _plan(one, permutations, places, squares, np.random.default_rng([seed, s, 31]))
            looks[name].append(_look(one, plan))
    first = looks["real"][0].scene
    arrays, coords = _numbers(looks, study), _coords(looks, seeds)
    told = shares(arrays, coords, {name: np.array([x.outcome for x in of])[None] for name, of in looks.items()})
    data = dataset(arrays, coords)
    about = {
        **first.about(),
        "seeds": list(seeds),
        "n": looked_at(len(seeds), len(first.queries)),
        "interval": beside.METHOD if len(seeds) > 1 else "over queries alone, for one seed",
        "permutations": f"{data.sizes['permutation']} orders of {first.shots.shape[1]} shots, the same for all queries of a seed",
        **beside.used(study.engine, before),
        **told,
        "limits": list(LIMITS),
    }
    return Reading("order", data, {**about, "says": _says(data, first)})


# ------------------------------------------------------------------------------------------------ looking


@dataclass(frozen=True, eq=False)
class _Plan:
    """Orders of a scene's shots: sampled (m, k), Latin squares, and by name (n, k), a row a query."""

    orders: Array
    squares: tuple[Square, ...]
    named: dict[str, Array]


@dataclass(frozen=True, eq=False)
class _Look:
    """What one scene said.

    outcome  (m, n) under each permutation; named (5, n) outcomes, said (5, n) predictions under each named order
    labels   (m, n, k) what the label at each position says, under each permutation
    weight, strength  (places, n); trend (n,)
    """

    scene: Scene
    plan: _Plan
    outcome: Array
    labels: Array
    named: Array
    said: Array
    moved: Array
    weight: Array
    strength: Array
    trend: Array


def _plan(one: Scene, count: int, places: int, squares: int, rng: np.random.Generator) -> _Plan:
    n, k = one.shots.shape
    orders = permutations(k, count, rng)
    found = tuple(square(k, places, rng) for _ in range(squares))
    says = beside.shown(one)
    rows = {"random": np.repeat(rng.permutation(k)[None], n, 0), "ascending": np.argsort(says, 1, kind="stable")}
    rows["descending"] = rows["ascending"][:, ::-1]
    near = one.study.material.likeness("cosine")
    for how in ("near-first", "near-last"):
        ordered = room.order(how, one.shots, seed=0, query=one.queries, similarity=near)
        rows[how] = (one.shots[:, None, :] == ordered[:, :, None]).argmax(-1)
    return _Plan(orders, found, rows)


def _look(one: Scene, plan: _Plan) -> _Look:
    n = len(one.queries)
    says = beside.shown(one)
    rows = np.concatenate([plan.named[how] for how in ORDERS])
    named, said = (v.reshape(-1, n) for v in beside.asked(arranged(one, rows, np.tile(np.arange(n), len(ORDERS)))))
    moved, apart, orders = [], [], []
    others = (says.sum(1, keepdims=True) - says) / (says.shape[1] - 1)
    for orders_of, positions in plan.squares:
        moved.append(influence(one, orders_of, positions)[0])
        apart.append((says - others)[:, orders_of[:, positions]].transpose(1, 0, 2))
        orders.append(orders_of)
    size = np.abs(np.concatenate(moved))
    return _Look(
        one, plan, read_orders(one, plan.orders), says[:, plan.orders].transpose(1, 0, 2), named, said, np.concatenate(moved),
        weights(np.concatenate(moved), np.concatenate(apart)), size.mean(0).T,
        np.mean([trend(np.abs(m), o, p) for m, (o, p) in zip(moved, plan.squares)], 0),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ numbers


def _numbers(looks: dict[str, list[_Look]], study: Study) -> Named:
    units = looks["real"][0].scene.units
    stack = {f: np.array([[getattr(x, f) for x in of] for of in looks.values()]) for f in ("outcome", "named", "said")}
    arrays: Named = {}
    _positions(arrays, looks, units)
    _recency(arrays, looks, stack, units)
    _spread(arrays, stack["outcome"], units)
    _metrics(arrays, looks["real"], stack["said"], study)
    arrays["outcome"] = (
        ("control", "seed", "permutation", "query"),
        stack["outcome"],
        "outcome under each order",
        units,
    )
    moved = np.array([[x.moved for x in of] for of in looks.values()])
    arrays["influence"] = (
        ("control", "seed", "turn", "query", "place"),
        moved,
        "outcome with a shot less without",
        units,
    )
    held = np.array([x.plan.orders for x in looks["real"]])
    arrays["orders"] = (
        ("seed", "permutation", "position"),
        held,
        "which shot of the study's own order stands there",
        "",
    )
    _shown(arrays, [x.scene for x in looks["real"]], study)
    return arrays


def _shown(arrays: Named, scenes: list[Scene], study: Study) -> None:
    """What stands in the prompts, and what the simple predictors say of it: for showing an answer again without the model."""
    item, label = (np.array(x) for x in zip(*(beside.standing(one) for one in scenes)))
    arrays["shown_item"] = (("seed", "query", "position"), item, "shot in the study's own order", "")
    arrays["shown_label"] = (("seed", "query", "position"), label, "label as written", "")
    said = [beside.simple(one) for one in scenes]
    table = np.array([[of[name] for of in said] for name in beside.predictors(study)])
    units = scenes[0].units if study.task.targets is not None else ""
    arrays["simple"] = (("predictor", "seed", "query"), table, "what a simple predictor says", units)


def _positions(arrays: Named, looks: dict[str, list[_Look]], units: str) -> None:
    """Weight and strength of a shot by the place where it stands."""
    table = lambda name: np.moveaxis(np.array([[getattr(x, name) for x in of] for of in looks.values()]), 1, -2)  # noqa: E731
    for name, words, unit in (
        ("weight", "pull of a shot to its own label", PER_LABEL if units.startswith("log-odds") else DISTANCE),
        ("strength", "size of a shot's influence", units),
    ):
        each = table(name)
        found = effects(each)
        put(
            arrays,
            name,
            found,
            ("control", "place"),
            words,
            unit,
            q=adjusted(found.p) if name == "weight" else None,
            p=name == "weight",
        )
        place = looks["real"][0].plan.squares[0].positions
        x = place / max(place.max(), 1) - np.mean(place / max(place.max(), 1))
        slope = table("trend") if name == "strength" else np.einsum("p,cpsn->csn", x, each) / max(float(x @ x), 1e-12)
        _with_gain(arrays, "trend" if name == "strength" else "tilt", slope, f"{words}, last place less first", unit)


def _with_gain(arrays: Named, name: str, table: Array, words: str, unit: str) -> None:
    """An effect (control, seeds, queries), and what the arm has over each of the others in it."""
    put(arrays, name, effects(table), ("control",), words, unit)
    if len(table) > 1:
        found = effects(table[:1] - table[1:])
        put(arrays, f"{name}_gain", found, ("other",), f"{words}: real less other", unit, q=adjusted(found.p))


def _recency(arrays: Named, looks: dict[str, list[_Look]], stack: dict[str, Array], units: str) -> None:
    slopes = np.array([[lean(x.outcome, x.labels) for x in of] for of in looks.values()])  # control, seed, k, n
    found = effects(np.moveaxis(slopes, 1, 2))
    put(arrays, "lean", found, ("control", "position"), "slope of the answer on the label there", "share of the label", q=adjusted(found.p))  # fmt: skip
    _with_gain(arrays, "recency", slopes[:, :, -1], "slope of the answer on the last label", "share of the label")
    up, down = (stack["named"][:, :, ORDERS.index(o)] for o in ("ascending", "descending"))
    _with_gain(arrays, "swing", up - down, "outcome, ascending labels less descending", units)


def _spread(arrays: Named, outcome: Array, units: str) -> None:
    """How far an answer moves with order, beside how far answers to different queries lie apart."""
    _with_gain(arrays, "spread", outcome.std(2, ddof=1), "standard deviation of an answer over orders", units)
    del arrays["spread_p"]  # a standard deviation of zero is no hypothesis
    apart = outcome.mean(2).std(-1, ddof=1).mean(-1)
    arrays["between"] = (("control",), apart, "standard deviation of answers over queries", units)
    arrays["spread_of"] = (
        ("control", "query"),
        outcome.std(2, ddof=1).mean(1),
        "standard deviation over orders",
        units,
    )


def _metrics(arrays: Named, real: list[_Look], said: Array, study: Study) -> None:
    """Scores under the named orders, of the arm, its controls and the simple predictors; said (control, seed, order, query)."""
    target, names = beside.truth(real[0].scene), beside.metrics(study)
    said = said.swapaxes(1, 2)
    simple = [[beside.simple(x.scene) for x in real]] * len(ORDERS)  # to them the order of shots is nothing
    beside.compare(arrays, beside.with_simple(said, simple, beside.predictors(study)), target, names, ("order",))
    one, other = (said[:, [ORDERS.index(pair[i]) for pair in CONTRASTS]].swapaxes(0, 1) for i in (0, 1))
    turned = [beside.gains(one, other, target, m) for m in names]
    q = np.array([adjusted(f.p) for f in turned])
    put(
        arrays,
        "change",
        beside.join(turned),
        ("metric", "contrast", "control"),
        "metric, one order less another",
        "",
        q=q,
    )
    each = np.array([x.outcome for x in real])  # seed, permutation, query
    if study.task.targets is not None:
        values = np.array([METRICS[m].values(each, target) for m in names])
        arrays["order_score"] = (
            ("metric", "seed", "permutation"),
            values,
            "metric of the arm under each permutation",
            "",
        )


def _coords(looks: dict[str, list[_Look]], seeds: tuple[int, ...]) -> dict[str, Any]:
    one, plan = looks["real"][0].scene, looks["real"][0].plan
    names, others = list(looks), beside.predictors(one.study)
    task = one.study.task
    out: dict[str, Any] = {
        "control": names, "other": names[1:], "by": [*names, *others], "versus": [*names[1:], *others], "predictor": list(others), "seed": list(seeds),
        "query": list(one.ids), "order": list(ORDERS), "metric": list(beside.metrics(one.study)),
        "contrast": [f"{a} less {b}" for a, b in CONTRASTS], "place": plan.squares[0].positions + 1,
        "position": np.arange(one.shots.shape[1]) + 1, "permutation": np.arange(len(plan.orders)),
    }  # fmt: skip
    if task.text is not None:
        out["text"] = ("query", [task.text[q] for q in one.queries])
    if task.targets is not None:
        out["target"] = ("query", task.targets[one.queries])
    return out


# ------------------------------------------------------------------------------------------------ says


def _says(data: xr.Dataset, first: Scene) -> list[str]:
    """What the numbers bear out, in words."""
    k, last, units = data.sizes["position"], int(data["place"].values[-1]), first.units

    tell = partial(ci, data)

    def also(name: str, unit: str = "", **at: Any) -> str:
        return "".join(f"; {c}: {tell(name, unit, control=c, **at)}" for c in others)

    others = data["control"].values[1:].tolist()
    even = f" (the mean of {k} labels: {1 / k:.2f})" if data["weight"].attrs["units"] == DISTANCE else f" ({PER_LABEL})"
    out = [
        f"The order of the same {k} shots moves an answer by {tell('spread', units, control='real')} (standard deviation); answers to "
        f"different queries lie {float(data['between'].sel(control='real')):.2f} apart{also('spread', units)}.",
        f"The answer {_leans(data, 'recency')} the last label: slope {tell('recency', control='real')} "
        f"({tested(float(data['recency_p'].sel(control='real')), 'p')}){also('recency')}; ascending less descending labels move it by "
        f"{tell('swing', units, control='real')}{also('swing', units)}.",
        f"A shot pulls the answer to its own label with weight {tell('weight', control='real', place=last)} in the last "
        f"place and {tell('weight', control='real', place=1)} in the first{even}; the "
        f"slope over places is {tell('tilt', control='real')} ({tested(float(data['tilt_p'].sel(control='real')), 'p')}){also('tilt')}.",
    ]
    metric = str(data["metric"].values[0])
    for contrast in data["contrast"].values[:2]:
        at: Any = {"metric": metric, "contrast": contrast}
        q = float(data["change_q"].sel(**at, control="real"))
        out.append(
            f"{str(contrast).capitalize()}: {beside.METRICS[metric]} {tell('change', control='real', **at)} ({tested(q)}){also('change', **at)}."
        )
    best = str(data["order"].values[int(data["score"].sel(metric=metric, by="real").values.argmax())])
    at = {"metric": metric, "order": best}
    out.append(
        f"Under {best}, where the arm scores highest ({beside.METRICS[metric]} {tell('score', by='real', **at)}), what is left for the model is "
        f"{beside.left(data, {'order': best})}."
    )
    return out


def _leans(data: xr.Dataset, name: str) -> str:
    value, p = (float(data[n].sel(control="real")) for n in (name, f"{name}_p"))
    return (
        "does not lean, as far as can be seen, to" if not p < 0.05 else "leans to" if value > 0 else "leans away from"
    )
