"""Similarity: does it matter which shots stand in the prompt, and is what that gives the model's doing?

Shots near the query have labels near its own, so that an answer gets better with nearer shots whatever the vectors say: noise
vectors gain nearly as much, and the mean of the shots' labels does. Each selection (nearest, random, farthest, diverse; by
the encoder's cosine or by Tanimoto's similarity of molecules) and each number of shots is therefore scored for the arm, for
noise, for the text, and for a mean, neighbours and ridge on the very same shots, paired on the same seeds and queries; and the
reading says what is left for the model. Then the same question from inside one prompt: does what a single shot does to the
answer, by leaving it out, follow its similarity to the query, more than under noise?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab import maps
from icrl_lab import shots as room
from icrl_lab.errors import StudyError
from icrl_lab.probes import beside
from icrl_lab.probes.arrays import Named, dataset, looked_at, tell
from icrl_lab.probes.asked import checked
from icrl_lab.probes.beside import put
from icrl_lab.probes.influence import influence, read_orders
from icrl_lab.probes.scene import Scene, pick, scene
from icrl_lab.probes.variance import shares
from icrl_lab.stats import adjusted, correlations, effects
from icrl_lab.stats.metrics import Array, spearman
from icrl_lab.stats.words import tested
from icrl_lab.values import Reading

if TYPE_CHECKING:
    import xarray as xr

    from icrl_lab.studies.run import Study

COUNTS = (1, 5, 10, 20)
SHOWN = 5  # nearest items of each query that are kept for a figure
LIMITS = (
    "Near shots have labels near the query's own: what all methods gain by them is not the model's reading of vectors.",
    "The simple predictors see the labels' numbers, the model the labels as written; rounding costs it a little.",
    "A shot left out also shortens the prompt; its influence is that of the shot and of its absence together.",
    "Labels and places go along with similarity, under noise vectors as well; only what the arm has over noise is its vectors'.",
    "The sources of variance are those of this design: these selections, and random orders.",
)


@dataclass(frozen=True)
class _Ask:
    """What all scenes of the probe have in common."""

    study: Study
    views: dict[str, tuple[str, str]]
    seeds: tuple[int, ...]
    queries: int | Sequence[int] | None
    measures: tuple[str, ...]
    order: str | None
    with_text: bool | None
    shots: int
    seed: int

    def scene(self, name: str, selection: str, seed: int, shots: int | None = None) -> Scene:
        label, control = self.views[name]
        text = None if name == "text" else self.with_text
        given: dict[str, Any] = {"queries": self.queries, "order": self.order, "with_text": text, "seed": seed}
        return scene(
            self.study, label, control, selection=selection, shots=self.shots if shots is None else shots, **given
        )


@checked(empty=["controls", "counts", "curves"], orders=0)
def similarity(
    study: Study,
    arm: str | None = None,
    *,
    selections: Sequence[str] = ("random", "nearest", "farthest", "diverse"),
    measures: Sequence[str] | None = None,
    counts: Sequence[int] | None = None,
    curves: Sequence[str] = ("random", "nearest"),
    orders: int = 2,
    controls: Sequence[str] = ("noise", "text"),
    shots: int | None = None,
    order: str | None = None,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 12,
    with_text: bool | None = None,
    seed: int = 0,
) -> Reading:
    """What nearer, farther and more diverse shots do for an arm, its controls and simple predictors on the same shots.

    measures  of similarity: "cosine" of the encoder's vectors, "tanimoto" of Morgan fingerprints; None: both for molecules
    counts    numbers of shots for the curves; None: 1, 5, 10, 20, as far as pool and context hold them
    curves    selections, by cosine, that are followed over counts
    orders    random orders of the same shots, for the split of variance; with fewer than 2 it is not split, and not asked for
    shots, order  None: the first of the plan. An order that looks at the query shares no prefix, as "nearest" does not

    In the reading, over metric, selection and `by` (real, noise, text, then the predictors): `score`, the arm's `gain` over each of
    `versus`, `lift` of each selection over "random"; the same over counts as `curve_score` and `curve_gain`. Over measure and
    control: `follows`, the rank correlation over shots of the size of a shot's influence with its similarity to the query, and
    `pulls`, of its influence towards its own label. `share`: the split of the variance of answers.
    """
    seeds = tuple(study.plan.seeds if seeds is None else seeds)
    measures = tuple(measures or (room.MEASURES if study.task.modality == "molecule" else ("cosine",)))
    views = beside.views(study, arm, controls)
    ask = _Ask(
        study, views, seeds, queries, measures, order, with_text, study.plan.shots[0] if shots is None else shots, seed
    )
    names = _conditions(study, arm, selections, measures)
    before = (study.engine.computed, study.engine.asked)
    first = ask.scene("real", names[0], seeds[0])
    counts = _fitting(ask, first) if counts is None else tuple(counts)
    arrays: Named = {}
    coords = _coords(ask, first, names)
    table = _selections(arrays, ask, first, names)
    for curve in curves:
        room.needs_query(curve)  # an unknown one is an error
    followed = [c for c in curves if c in names]
    if followed and counts:
        _curves(arrays, ask, first, (followed, counts), dict(zip(names, np.moveaxis(table, 1, 0))))
        coords |= {"curve": followed, "count": list(counts)}
    whole = next((n for n in (study.plan.selection[0], *names) if not room.needs_query(n)), names[0])
    _influences(arrays, ask, whole)
    by_cosine = [n for n in names if not n.endswith("-tanimoto")]
    told = shares(arrays, coords, _ordered(ask, by_cosine, orders) if orders > 1 else {})
    _neighbours(arrays, ask, first)
    data = dataset(arrays, coords)
    about = {
        **first.about(),
        "selection": list(names),
        "control": list(views),
        "modality": study.task.modality,
        "seeds": list(seeds),
        "n": looked_at(len(seeds), len(first.queries)),
        "interval": beside.METHOD if len(seeds) > 1 else "over queries alone, for one seed",
        "influence": f"of each of {first.shots.shape[1]} shots, selection {whole!r}, by leaving it out",
        **beside.used(study.engine, before),
        **told,
        "limits": list(LIMITS),
    }
    return Reading("similarity", data, {**about, "says": _says(data, ask.shots)})


def _conditions(study: Study, arm: str | None, selections: Sequence[str], measures: Sequence[str]) -> list[str]:
    """Selections by name, those that go by a similarity once for each measure."""
    names = []
    for how in selections:
        room.needs_query(how)  # an unknown one is an error
        by = how in ("nearest", "farthest", "diverse")
        names += [how if m == "cosine" else f"{how}-{m}" for m in measures] if by else [how]
    for measure in measures:
        study.material.likeness(measure)
    if maps.NEEDS.get(pick(study, arm).name) == "labels" and any(map(room.needs_query, names)):
        raise StudyError(
            f"the arm {pick(study, arm).label!r} fits one map to the shots, so they cannot be chosen for each query; "
            "take another arm, or selections that do not look at the query"
        )
    if not names:
        raise StudyError("no selection to look at; take 'random' and 'nearest'")
    return list(dict.fromkeys(names))


def _fitting(ask: _Ask, first: Scene) -> tuple[int, ...]:
    """The counts that pool and context hold, the longest view's tokens a shot taken as they are now, with a fifth to spare."""
    scenes = [first, *(ask.scene(n, first.cell.selection, ask.seeds[0]) for n in ask.views if n == "text")]
    longest = max(len(p) for one in scenes for p in one.prompts) / ask.shots
    most = min(len(ask.study.task.pool), 0.8 * ask.study.llm.context / longest)
    return tuple(c for c in sorted({*COUNTS, ask.shots}) if c <= most)


# ---------------------------------------------------------------------------------------------- selections


@dataclass(frozen=True, eq=False)
class _Said:
    """What was said under one selection.

    outcome, said  (control, S, N) outcomes and predictions
    simple         what the simple predictors say, by seed
    near           (measure,) mean similarity of the shots to their query
    shown          (S, N, k) ids of the shots, their labels as written, and (measure, S, N, k) their similarity
    """

    outcome: Array
    said: Array
    simple: list[dict[str, Array]]
    near: Array
    shown: tuple[Array, Array, Array]


def _said(ask: _Ask, selection: str, shots: int | None = None) -> _Said:
    both: dict[str, list[Any]] = {name: [] for name in ask.views}
    simple, near, shown = [], [], []
    for s in ask.seeds:
        for name in ask.views:
            one = ask.scene(name, selection, s, shots)
            both[name].append(beside.asked(one))
            if name == "real":
                simple.append(beside.simple(one))
                near.append([_near(one, m) for m in ask.measures])
                shown.append(beside.standing(one))
    outcome, said = (np.array([[pair[i] for pair in of] for of in both.values()]) for i in (0, 1))
    each = np.moveaxis(np.array(near), 1, 0)  # measure, S, N, k
    item, label = (np.array(x) for x in zip(*shown))
    return _Said(outcome, said, simple, each.mean((1, 2, 3)), (item, label, each))


def _near(one: Scene, measure: str) -> Array:
    """(n, k) similarity of each shot to its query."""
    table = one.study.material.likeness(measure)(one.queries)
    return np.take_along_axis(table, one.shots, 1)


def _selections(arrays: Named, ask: _Ask, first: Scene, names: list[str]) -> Array:
    """Adds scores, gains and lifts, and the outcomes; returns predictions (by, selection, S, N)."""
    found = [_said(ask, name) for name in names]
    said = np.stack([f.said for f in found], 1)
    table = beside.with_simple(said, [f.simple for f in found], beside.predictors(ask.study))
    target, metrics = beside.truth(first), beside.metrics(ask.study)
    beside.compare(arrays, table, target, metrics, ("selection",))
    if "random" in names and len(names) > 1:
        base = table[:, names.index("random")]
        lifted = [beside.gains(np.moveaxis(table, 0, 1), base, target, m) for m in metrics]
        q = np.array([np.stack([adjusted(p) for p in f.p.T], -1) for f in lifted])
        dims = ("metric", "selection", "by")
        put(arrays, "lift", beside.join(lifted), dims, "metric, selection less random", "", q=q)
    outcome = np.stack([f.outcome for f in found], 1)
    arrays["outcome"] = (("control", "selection", "seed", "query"), outcome, "outcome", first.units)
    near = np.array([f.near for f in found]).T
    arrays["closeness"] = (("measure", "selection"), near, "mean similarity of shots to their query", "similarity")
    _shown(arrays, ask, found, first.units)
    return table


def _shown(arrays: Named, ask: _Ask, found: list[_Said], units: str) -> None:
    """What stood in the prompts, and what the simple predictors said of it: for showing an answer again without the model."""
    dims = ("selection", "seed", "query", "position")
    arrays["shown_item"] = (dims, np.array([f.shown[0] for f in found]), "shot in the order of the prompt", "")
    arrays["shown_label"] = (dims, np.array([f.shown[1] for f in found]), "label as written", "")
    near = np.stack([f.shown[2] for f in found], 1)
    arrays["shown_near"] = (("measure", *dims), near, "similarity of a shot to the query", "similarity")
    names = beside.predictors(ask.study)
    table = np.array([[[of[name] for of in f.simple] for f in found] for name in names])
    units = units if ask.study.task.targets is not None else ""
    arrays["simple"] = (("predictor", *dims[:-1]), table, "what a simple predictor says", units)


def _curves(
    arrays: Named, ask: _Ask, first: Scene, over: tuple[list[str], tuple[int, ...]], known: dict[str, Array]
) -> None:
    """Scores and gains over selections and numbers of shots; `known` has the predictions (by, S, N) at the number of all else."""
    table = []
    for name in over[0]:
        for count in over[1]:
            if count == ask.shots:
                table.append(known[name])
            else:
                found = _said(ask, name, count)
                names = beside.predictors(ask.study)
                table.append(beside.with_simple(found.said[:, None], [found.simple], names)[:, 0])
    stack = np.stack(table, 1).reshape(len(table[0]), *map(len, over), *table[0].shape[1:])
    beside.compare(arrays, stack, beside.truth(first), beside.metrics(ask.study), ("curve", "count"), "curve_")


# --------------------------------------------------------------------------------- influence and variance


def _influences(arrays: Named, ask: _Ask, selection: str) -> None:
    """What each shot does, by leaving it out, and whether that follows its similarity to the query."""
    if ask.shots < 3:
        return
    moved, near, apart = [], [], []
    for name in ask.views:
        scenes = [ask.scene(name, selection, s) for s in ask.seeds]
        moved.append([influence(one)[0][0] for one in scenes])
        if name == "real":
            near = [[_near(one, m) for one in scenes] for m in ask.measures]
            says = np.array([beside.shown(one) for one in scenes])
            apart = says - (says.sum(-1, keepdims=True) - says) / (ask.shots - 1)
    size, close = np.array(moved), np.array(near)  # control, S, N, k and measure, S, N, k
    dims = ("measure", "control")
    for name, each, words in (
        ("follows", np.abs(size), "rank correlation of a shot's size of influence with its similarity"),
        ("pulls", size * np.sign(apart), "rank correlation of a shot's pull to its own label with its similarity"),
    ):
        rho = spearman(
            np.broadcast_to(each[None], (len(close), *each.shape)),
            np.broadcast_to(close[:, None], (len(close), *each.shape)),
        )
        found = correlations(rho, ranked=ask.shots)
        put(arrays, name, found, dims, words, "Spearman's rho", q=adjusted(found.p))
        if len(size) > 1:
            gain = effects(rho[:, :1] - rho[:, 1:])
            put(
                arrays,
                f"{name}_gain",
                gain,
                ("measure", "other"),
                f"{words}: real less other",
                "difference of rho",
                q=adjusted(gain.p),
            )
    units = ask.scene("real", selection, ask.seeds[0]).units
    arrays["influence"] = (("control", "seed", "query", "shot"), size, "outcome with a shot less without", units)
    arrays["near"] = (("measure", "seed", "query", "shot"), close, "similarity of a shot to the query", "similarity")
    arrays["apart"] = (("seed", "query", "shot"), apart, "a shot's label less the mean of the others", units)


def _ordered(ask: _Ask, names: list[str], orders: int) -> dict[str, Array]:
    """Outcomes (selections, S, orders, N) of each control under random orders of the same shots, the same for all queries."""
    out: dict[str, list[Any]] = {name: [] for name in ask.views}
    for name in ask.views:
        for selection in names:
            found = []
            for s in ask.seeds:
                one = ask.scene(name, selection, s)
                rng = np.random.default_rng([ask.seed, s, 32])
                found.append(read_orders(one, np.array([rng.permutation(ask.shots) for _ in range(orders)])))
            out[name].append(found)
    return {name: np.array(table) for name, table in out.items()}


# -------------------------------------------------------------------------------------------- what is shown


def _neighbours(arrays: Named, ask: _Ask, first: Scene) -> None:
    """The nearest items of the pool of each query by each measure, as texts (or ids) with similarity and label."""
    task, pool = ask.study.task, ask.study.task.pool
    k = min(SHOWN, len(pool))
    dims = ("measure", "query", "rank")
    like = [ask.study.material.likeness(m) for m in ask.measures]
    at = np.array([room.select("nearest", k=k, pool=pool, seed=0, query=first.queries, similarity=f) for f in like])
    words = task.text if task.text is not None else task.ids
    near = np.array([np.take_along_axis(f(first.queries), p, 1) for f, p in zip(like, at)])
    label = task.targets[at] if task.targets is not None else np.array(task.labels)[at]
    arrays["neighbour"] = (dims, np.array(words)[at], "nearest items of the pool", "")
    arrays["neighbour_near"] = (dims, near, "similarity of a nearest item to the query", "similarity")
    arrays["neighbour_label"] = (
        dims,
        label,
        "label of a nearest item",
        first.units if task.targets is not None else "",
    )


def _coords(ask: _Ask, one: Scene, names: list[str]) -> dict[str, Any]:
    task, views, simple = ask.study.task, list(ask.views), beside.predictors(ask.study)
    out: dict[str, Any] = {
        "metric": list(beside.metrics(ask.study)), "selection": names, "measure": list(ask.measures), "control": views,
        "other": views[1:], "by": [*views, *simple], "versus": [*views[1:], *simple], "predictor": list(simple), "seed": list(ask.seeds),
        "query": list(one.ids), "target": ("query", beside.truth(one)),
    }  # fmt: skip
    if task.text is not None:
        out["text"] = ("query", [task.text[q] for q in one.queries])
    return out


def _says(data: xr.Dataset, k: int) -> list[str]:
    """What the numbers bear out, in words."""
    metric = str(data["metric"].values[0])
    others = data["by"].values[1:].tolist()
    out = []
    for name in data["selection"].values.tolist():
        how, measure = room.measured(name)
        if how not in ("nearest", "random"):
            continue
        words = f"the {k} nearest shots by {measure}" if how == "nearest" else f"{k} random shots"
        at = {"metric": metric, "selection": name}
        score = lambda by, at=at: tell(data, "score", {**at, "by": by})  # noqa: E731
        beside_it = "; ".join(f"{beside.WORDS.get(b, b)} {score(b)}" for b in others)
        out.append(
            f"With {words} {beside.WORDS['real']} reach {beside.METRICS[metric]} {score('real')}; {beside_it}. Left for the model: "
            f"{beside.left(data, at)}."
        )
    for measure in data["measure"].values.tolist() if "follows" in data else ():
        at = {"measure": measure, "control": "real"}
        beside_it = "; ".join(f"{c} {tell(data, 'follows', {**at, 'control': c})}" for c in data["control"].values[1:])
        more = ""
        if "follows_gain" in data and "noise" in data["other"].values:
            where = {"measure": measure, "other": "noise"}
            q = float(data["follows_gain_q"].sel(where))
            seen = (
                "more than under noise"
                if q < 0.05 and float(data["follows_gain"].sel(where)) > 0
                else "no more than under noise, as far as can be seen"
            )
            more = f": {seen} ({tell(data, 'follows_gain', where, form='+.2f')}, {tested(q)})"
        out.append(
            f"The size of a shot's influence follows its {measure} to the query at a rank correlation of "
            f"{tell(data, 'follows', at)}; {beside_it}{more}."
        )
    if "share" in data:
        held = data["share"].sel(control="real")
        top = [str(s) for s in data["source"].values[np.argsort(-held.values)][:3]]
        told = ", ".join(f"{s} {tell(data, 'share', {'control': 'real', 'source': s})}" for s in top)
        out.append(f"Most of the variance of answers is of {told} (shares).")
    return out
