"""Attention: how much the answer position and the query's slot look at what, and whether they look at similar shots.

Two questions of every head, on rows that are captured at the speed of scoring and reduced to spans at once (`spans`).

How much: the share of each part of the prompt, the attention sink at position 0 told apart, beside the same positions under noise
vectors and beside prompts that hold the item's text in the slot's place.

Does it follow the encoder: Spearman's rho over the shots of one prompt, between the attention to each shot and the encoder's
cosine of query and shot (`rho`). A head that likes late shots, or long vectors, has a rho by luck of the draw that all
queries of a seed share. So each query's rho is compared with the rho that the same row of attention has with the similarities of
the *other* queries to the same shots (`follows`): what a place or a shot has for everybody cancels. What is left under noise
vectors comes from elsewhere (text, or an order by similarity), so the test is real less noise (`gain`). Which query's similarity
belongs to which row is exchangeable when a head does not follow it, and that gives each p-value (Hoeffding 1951).

Attention is where a head looks, not what it does: `patching` has the causal side. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, StudyError
from icrl_lab.probes.arrays import BOUNDS, Named, ci, dataset, looked_at, over
from icrl_lab.probes.asked import checked
from icrl_lab.probes.matching import beyond, crossed, matching, p_value
from icrl_lab.probes.scene import Scene, pick, scene
from icrl_lab.probes.spans import PARTS, ROWS, TARGETS, Array, Look, look
from icrl_lab.stats import Effects, adjusted, correlations, effects
from icrl_lab.stats.words import estimate, tested
from icrl_lab.values import Reading

if TYPE_CHECKING:
    import xarray as xr

    from icrl_lab.studies.run import Study

ALPHA = 0.05
CASE_BYTES = 1.6e6
SHARE, EVEN = "share", "times even attention"
BOUNDED = {SHARE: (0.0, 1.0), EVEN: (0.0, np.inf), **BOUNDS}  # where an interval of such a unit is cut off
INTERVAL = (
    "95 % intervals: crossed analysis of variance over seeds and queries, t distribution (rho as Fisher's z, a perfect order as half a step below 1); p of follows and gain: "
    "matching of queries with similarities, these seeds' shots as they are (Hoeffding's normal limit); q: Holm, fdr: "
    "Benjamini-Hochberg, over all heads, rows and targets"
)
LIMITS = (
    "Where a head looks is not what it does with it: a head can look at a vector and write nothing; that takes patching.",
    "Position 0 is left out of every part, also where the first shot's vector stands there.",
    "Shares of a head whose row is nearly all sink are shares of little, and rho ranks what may be little: read it beside the share.",
    "The strongest head is the best of many: its p-value is corrected for that, its estimate and interval are not.",
    "p of follows and gain speaks of new queries on these seeds' shots, the intervals of new seeds too, and few seeds make them wide.",
)

Views = Mapping[str, tuple[str, str]]  # control -> arm, control of its vectors


@checked(empty=["against"])
def attention(
    study: Study,
    arm: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 32,
    with_text: bool | None = None,
    weighting: str = "weight",
    rows: Sequence[str] = ROWS,
    against: Sequence[str] = ("noise", "text"),
    top: int = 8,
    cases: int = 8,
) -> Reading:
    """How much each head attends to what, and whether it follows the encoder's similarity.

    weighting  "weight": attention; "norm": times the length of what each value writes (Kobayashi et al. 2020), of which all is a share
    rows       from where: "answer", the last token of the prompt; "slot", the query's own (of text, its last token)
    against    controls beside the real vectors, and "text": prompts with the item's text in the slot's place. For the arm "text" and
               for "dummy", the item's text and the dummy's marker take the role of the vector.
    top        how many of the heads that follow most are kept query by query
    cases      how many queries of the first seed are kept at every head; fewer where they would take more than CASE_BYTES

    In the reading, over (control, row, part, layer, head): `share` of all but the sink, with interval, and `lift`, the share
    a token over that of even attention; `sink`, the share of position 0; `shift` is share, real less noise, with p, q and fdr.
    `total_share`, `total_lift`, `total_sink` and `total_shift` are means over all heads. Over (control, row, target, layer, head):
    `by_shot` (and shot) lift of each shot; `rho`, `follows`, and without control `gain`, with interval, p, q and fdr. `top_row`,
    `top_target`, `top_layer`, `top_head`, `top_lift` (top, control, seed, query, shot), `top_rho` beside `similarity`. `case_lift` (case, control, row, target, layer, head,
    shot) is the same at every head, of the few queries `case_query` under the first seed.
    StudyError for fewer than 3 shots that could be ranked, and for unknown names; DataError for fewer than 3 queries.
    """
    seeds = tuple(study.plan.seeds if seeds is None else seeds)
    views, absent = views_of(study, arm, against, seeds[0], queries, with_text)
    sums: dict[str, _Sum] = {}
    scenes: list[Scene] = []
    for name, one in seen(study, views, seeds, queries, with_text):
        scenes += [one] if name == "real" else []
        found = look(one, rows, weighting)
        targets = sums["real"].targets if sums else _targets(found)
        sums.setdefault(name, _Sum(targets, [], [], [], [], [], [], [])).add(found, similarity(one))
    null = "noise" if "noise" in views else next((c for c in views if c not in ("real", "text")), None)
    arrays, order = _numbers(sums, null, top)
    arrays |= _cases(sums, scenes[0].ids, cases)
    data = _dataset(arrays, scenes, rows, sums, order, seeds)
    about = {
        **about_of(scenes[0], seeds), "weighting": weighting, "null": null or "", "interval": over(INTERVAL, len(seeds)),
        "limits": [*LIMITS, *_more_limits(scenes[0], views, null), *absent],
    }  # fmt: skip
    return Reading("attention", data, {**about, "says": [*_says_of_mass(data, null), *_says_of_heads(data, null)]})


def about_of(one: Scene, seeds: Sequence[int]) -> dict[str, Any]:
    return {**one.about(), "seeds": list(seeds), "n": looked_at(len(seeds), len(one.queries))}


def views_of(
    study: Study,
    arm: str | None,
    against: Sequence[str],
    seed: int,
    queries: int | Sequence[int] | None,
    with_text: bool | None,
) -> tuple[Views, list[str]]:
    """What is looked at, by name, and sentences about what could not be."""
    chosen = pick(study, arm)
    found = {"real": (chosen.label, "real")}
    if not chosen.has_slots:
        return found, ["An arm that writes text has no vectors to put noise in, so nothing stands beside it here."]
    found |= {control: (chosen.label, control) for control in against if control != "text"}
    if "text" not in against:
        return found, []
    if study.task.text is None:
        return found, ["The null of the item's text is absent: this task has no text."]
    found["text"] = (next((a.label for a in study.plan.arms if a.name == "text"), "text"), "real")
    try:
        scene(study, *found["text"], seed=seed, queries=queries)
    except DataError as error:  # e.g. a prompt of texts that is too long for the model
        del found["text"]
        return found, [f"The null of the item's text is absent: {error}."]
    return found, []


def seen(
    study: Study, views: Views, seeds: Sequence[int], queries: int | Sequence[int] | None, with_text: bool | None
) -> Iterator[tuple[str, Scene]]:
    """The scenes of all views, seed by seed, the real one first."""
    for seed in seeds:
        for name, (label, control) in views.items():
            text = None if name == "text" else with_text
            yield name, scene(study, label, control, seed=seed, queries=queries, with_text=text)


def _more_limits(one: Scene, views: Views, null: str | None) -> list[str]:
    config = one.study.llm.model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    longest = max(map(len, one.prompts))
    out = []
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if window and longest > window and any(kind != "full_attention" for kind in kinds):
        out.append(
            f"Some layers see {window} tokens back and no more; what is farther away has no share there by construction."
        )
    if "text" in views:
        out.append("The item's text has another number of tokens than its vector: compare lifts there, not shares.")
    if null is None:
        out.append(
            "Without a control of the vectors, what follows here may come from anything that goes with similarity."
        )
    return out


# ------------------------------------------------------------------------------------------------ following


def similarity(one: Scene) -> Array:
    """(n, n, k) encoder's cosine of query j with the shots of query i: [i, i] is what query i could follow. 0 for zero vectors."""
    x = one.study.vectors.values.reshape(len(one.study.vectors), -1).astype(np.float64)
    size = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, size, out=np.zeros_like(x), where=size > 0)
    return np.stack([x[one.queries] @ x[shots].T for shots in one.shots])


def _targets(found: Look) -> tuple[str, ...]:
    """The targets that have shots to rank."""
    counts = np.isfinite(found.shots[:, 0, :, :, 0, 0]).sum(-1)
    out = tuple(t for t, n in zip(TARGETS, counts.min(0)) if n >= 3)
    if not out:
        raise StudyError(f"{found.shots.shape[3]} shots cannot be ranked by similarity; take at least 4")
    return out


@dataclass(frozen=True, eq=False)
class _Sum:
    """What was found under one control, seed by seed."""

    targets: tuple[str, ...]
    sink: list[Array]
    share: list[Array]
    lift: list[Array]
    shots: list[Array]  # (n, rows, targets, k, layers, heads)
    rho: list[Array]  # (rows, targets, layers, heads, n)
    follows: list[Array]
    cross: list[Array]  # one: the sum over seeds (rows, targets, layers, heads, n, n)

    def add(self, found: Look, similar: Array) -> None:
        shots = found.shots[:, :, [TARGETS.index(t) for t in self.targets]]
        ranked = np.isfinite(shots[:, 0, :, :, 0, 0]).sum(-1).min(0) >= 3
        each = [crossed(shots[:, :, t], similar) for t in np.flatnonzero(ranked)]
        cross = np.full((shots.shape[1], len(ranked), *each[0].shape[1:]), np.nan, np.float32)
        cross[:, ranked] = np.stack(each, 1)
        self.sink.append(found.sink)
        self.share.append(found.share)
        self.lift.append(found.lift)
        self.shots.append(shots)
        self.rho.append(np.diagonal(cross, axis1=-2, axis2=-1).copy())
        self.follows.append(beyond(cross))
        self.cross[:] = [cross if not self.cross else self.cross[0] + cross]

    def table(self, name: str) -> Array:
        """(..., seed, query) of what was found a query."""
        stack = np.stack(getattr(self, name))
        first = (0, -1) if name in ("rho", "follows") else (0, 1)
        return np.moveaxis(stack, first, (-2, -1)).astype(np.float64)


# ------------------------------------------------------------------------------------------------ numbers

MASS, HEADS = ("row", "part", "layer", "head"), ("row", "target", "layer", "head")


def _numbers(sums: Mapping[str, _Sum], null: str | None, top: int) -> tuple[Named, Array]:
    """Every array, and the heads that follow most, (top, 4) indices of HEADS."""
    into: Named = {}
    tables = {
        name: np.stack([s.table(name) for s in sums.values()]) for name in ("sink", "share", "lift", "rho", "follows")
    }
    share = "share of attention, the sink left out"
    lift = "attention a token over even attention"
    put(into, "share", tables["share"], ("control", *MASS), share, "share")
    put(into, "lift", tables["lift"], ("control", *MASS), lift, EVEN)
    put(into, "sink", tables["sink"], ("control", "row", "layer", "head"), "share of attention at position 0", "share")
    for name, words, unit in (("share", share, "share"), ("lift", lift, EVEN), ("sink", "share of attention at position 0", "share")):  # fmt: skip
        dims = ("control", "row", "part") if name != "sink" else ("control", "row")
        put(into, f"total_{name}", tables[name].mean((-3, -4)), dims, f"{words}, mean of all heads", unit)
    names = list(sums)
    if null:
        gap = tables["share"][0] - tables["share"][names.index(null)]
        put(into, "shift", gap, MASS, f"{share}, real less {null}", "difference of shares", test=True)
        words = f"{share}, real less {null}, mean of all heads"
        put(into, "total_shift", gap.mean((-3, -4)), MASS[:2], words, "difference of shares", test=True)
    by_shot = np.stack([np.mean([x.mean(0) for x in s.shots], 0) for s in sums.values()])
    into["by_shot"] = (
        ("control", "row", "target", "shot", "layer", "head"),
        by_shot,
        f"{lift}, each shot",
        "times even attention",
    )
    rho = _masked(tables["rho"], partial(correlations, ranked=by_shot.shape[3]))
    put_effects(
        into, "rho", rho, ("control", *HEADS), "attention against encoder's similarity, over shots", "Spearman rho"
    )
    cross = {name: s.cross[0] / len(s.rho) for name, s in sums.items()}
    z = np.stack([matching(c) for c in cross.values()])
    words = "rho with the query's own similarities, less that with other queries'"
    _put_matched(into, "follows", tables["follows"], z, ("control", *HEADS), words)
    best = z[0]
    if null:
        best = matching(cross["real"] - cross[null])
        gap = tables["follows"][0] - tables["follows"][names.index(null)]
        _put_matched(into, "gain", gap, best, HEADS, f"{words}, real less {null}")
    flat = np.argsort(-best, axis=None, kind="stable")[: min(top, best.size)]
    return into, np.stack(np.unravel_index(flat, best.shape), 1)


def _masked(table: Array, how: Any = effects) -> Effects:
    """Effects of a table (..., S, N); NaN where the table has one."""
    fine = np.isfinite(table).all((-1, -2))
    found = how(np.where(fine[..., None, None], table, 0.0))
    return Effects(*(np.where(fine, x, np.nan) for x in found))


def put(
    into: Named, name: str, table: Array, dims: tuple[str, ...], words: str, units: str, test: bool = False
) -> None:
    put_effects(into, name, _masked(table), dims, words, units, test)


def put_effects(
    into: Named, name: str, e: Effects, dims: tuple[str, ...], words: str, units: str, test: bool = True
) -> None:
    least, most = BOUNDED.get(units, (-np.inf, np.inf))
    into[name] = (dims, e.estimate, words, units)
    into[f"{name}_low"] = (dims, np.maximum(e.low, least), f"{words}, 95 % interval from", units)
    into[f"{name}_high"] = (dims, np.minimum(e.high, most), f"{words}, 95 % interval to", units)
    if test:
        each = [e.p] if "control" not in dims else list(e.p)
        into[f"{name}_p"] = (dims, e.p, f"{words}, p", "")
        for end, method, how in (("q", "holm", "Holm"), ("fdr", "fdr", "Benjamini-Hochberg")):
            found = np.stack([_adjusted(p, method) for p in each])
            into[f"{name}_{end}"] = (
                dims,
                found if "control" in dims else found[0],
                f"{words}, p corrected over all cells ({how})",
                "",
            )


def _adjusted(p: Array, method: str) -> Array:
    out = np.full(p.shape, np.nan)
    fine = np.isfinite(p)
    if fine.any():
        out[fine] = adjusted(p[fine], method)
    return out


def _put_matched(into: Named, name: str, table: Array, z: Array, dims: tuple[str, ...], words: str) -> None:
    """Intervals over new seeds and queries, p-values of the matching."""
    p = np.where(np.isfinite(table).all((-1, -2)), p_value(z), np.nan)
    put_effects(into, name, _masked(table)._replace(p=p), dims, words, "difference of rho")


def _cases(sums: Mapping[str, _Sum], ids: Sequence[str], cases: int) -> Named:
    """A few queries of the first seed, spread evenly, at every head; at least one, whatever its size."""
    first = np.stack([s.shots[0] for s in sums.values()], 1)  # query, control, row, target, shot, layer, head
    count = max(1, min(cases, len(ids), int(CASE_BYTES // first[0].nbytes)))
    which = np.unique(np.linspace(0, len(ids) - 1, count).round().astype(int))
    dims = ("case", "control", "row", "target", "layer", "head", "shot")
    words = "attention a token over even attention, of one query under the first seed"
    return {
        "case_lift": (dims, np.moveaxis(first[which], 4, -1), words, EVEN),
        "case_query": (("case",), np.array(ids)[which], "query of each case", ""),
    }


def _dataset(
    arrays: Named,
    scenes: Sequence[Scene],
    rows: Sequence[str],
    sums: Mapping[str, _Sum],
    order: Array,
    seeds: Sequence[int],
) -> xr.Dataset:
    """The arrays with their axes, the heads that follow most, query by query, and what is needed to draw them."""
    first, targets = scenes[0], sums["real"].targets
    kept = np.stack([np.stack(s.shots) for s in sums.values()])  # control, seed, query, row, target, shot, layer, head
    r, t, layer, head = order.T
    lifts = kept[:, :, :, r, t, :, layer, head]  # top, control, seed, query, shot
    rho = np.stack([s.table("rho") for s in sums.values()])[:, r, t, layer, head]  # control, top, seed, query
    task, ids = first.study.task, [np.array(one.study.task.ids)[one.shots] for one in scenes]
    shown = [np.array([[one.study.material.written(int(p)) for p in row] for row in one.shots]) for one in scenes]
    arrays = arrays | {
        "top_lift": (("top", "control", "seed", "query", "shot"), lifts, "attention a token over even attention", EVEN),
        "top_rho": (("top", "control", "seed", "query"), rho.swapaxes(0, 1), "attention against encoder's similarity", "Spearman rho"),
        "top_row": (("top",), np.array(rows)[r], "row", ""),
        "top_target": (("top",), np.array(targets)[t], "target", ""),
        "top_layer": (("top",), layer, "block", ""),
        "top_head": (("top",), head, "head", ""),
        "similarity": (("seed", "query", "shot"), np.stack([_own(similarity(one)) for one in scenes]), "encoder's cosine of query and shot", "cosine"),
        "shot_item": (("seed", "query", "shot"), np.stack(ids), "item of each shot", ""),
        "shot_label": (("seed", "query", "shot"), np.stack(shown), "true label of each shot, as prompts write it", ""),
    }  # fmt: skip
    if task.text is not None:
        words = [np.array(task.text)[one.shots] for one in scenes]
        arrays["shot_text"] = (("seed", "query", "shot"), np.stack(words), "each shot as text", "")
        arrays["query_text"] = (("query",), np.array(task.text)[first.queries], "each query as text", "")
    coords = {
        "control": list(sums), "row": list(rows), "part": list(PARTS), "target": list(targets), "seed": list(seeds), "query": list(first.ids),
        "layer": np.arange(kept.shape[-2]), "head": np.arange(kept.shape[-1]), "shot": np.arange(kept.shape[-3]), "top": np.arange(len(order)),
    }  # fmt: skip
    return dataset(arrays, coords)


def _own(similar: Array) -> Array:
    return similar[np.arange(len(similar)), np.arange(len(similar))]


# ------------------------------------------------------------------------------------------------ says

WHERE = {"answer": "the answer position", "slot": "the query's own place"}


def _says_of_mass(data: xr.Dataset, null: str | None) -> list[str]:
    """Where attention lies, on the mean of all heads, in words."""
    out = []
    for row in data["row"].values.tolist():
        at = {"row": row, "control": "real"}
        parts = []
        for part in ("vector", "text", "label"):
            if float(data["total_share"].sel(part=part, **at)) > 0:
                lift = float(data["total_lift"].sel(part=part, **at))
                parts.append(
                    f"the shots' {part}s {percent(data, 'total_share', part=part, **at)} ({lift:.2f} times even attention)"
                )
        first = f"From {WHERE[row]}, mean of all heads, {percent(data, 'total_sink', **at)} of attention is on position 0; of the rest "
        sentence = first + " and ".join(parts or ["nothing is on the shots' items and labels"])
        for control in data["control"].values.tolist():
            if control != "real":
                beside = {"row": row, "part": "vector", "control": control}
                lift = float(data["total_lift"].sel(beside))
                sentence += (
                    f"; the same places under {control}: {percent(data, 'total_share', **beside)} ({lift:.2f} times)"
                )
        out.append(sentence + ".")
    if null:
        at = {"part": "vector"}
        heads = data["shift_q"].sel(at)
        each = "; ".join(
            f"from {WHERE[r]} {_points(data, 'total_shift', row=r, **at)}" for r in data["row"].values.tolist()
        )
        out.append(
            f"Real vectors draw, in points of share and less {null}, {each}; single heads (and rows) whose share of the vectors differs: "
            f"{int((heads < ALPHA).sum())} of {heads.size} after Holm, {int((data['shift_fdr'].sel(at) < ALPHA).sum())} after Benjamini-Hochberg."
        )
    return out


def _says_of_heads(data: xr.Dataset, null: str | None) -> list[str]:
    """How many heads follow the encoder's similarity, and the strongest, in words."""
    name = "gain" if null else "follows"
    at: dict[str, Any] = {} if null else {"control": "real"}
    value, q, fdr = (data[n].sel(at) for n in (name, f"{name}_q", f"{name}_fdr"))
    counts = []
    for sense, mask in (("follow", value > 0), ("avoid", value < 0)):
        counts.append(
            f"{int(((q < ALPHA) & mask).sum())} {sense} it after Holm, {int(((fdr < ALPHA) & mask).sum())} after Benjamini-Hochberg"
        )
    cells = (
        f"{data.sizes['layer'] * data.sizes['head']} heads x {data.sizes['row']} rows x {data.sizes['target']} targets"
    )
    less = f", real less {null}" if null else ""
    others = [
        c for c in data["control"].values.tolist() if c != "real" and np.isfinite(data["follows"].sel(control=c)).any()
    ]
    alone = [f"{int((data['follows_q'].sel(control=c) < ALPHA).sum())} under {c}" for c in ("real", *others)]
    top = {n: data[f"top_{n}"].values[0] for n in ("row", "target", "layer", "head")}
    sure = float(data[f"{name}_q"].sel(**at, **top))
    found = "it follows the encoder" if sure < ALPHA else "no evidence that it follows the encoder"
    if sure < ALPHA and not float(data[f"{name}_low"].sel(**at, **top)) > 0:
        found += ", on these shots: the interval over new seeds holds zero"
    under = "".join(f"; under {c} {ci(data, 'rho', control=c, **top)}" for c in others)
    own = {"control": "real", "part": top["target"], **{n: top[n] for n in ("row", "layer", "head")}}
    return [
        f"Similarity of the encoder beyond what all queries share{less}: of {value.size} cells ({cells}), {'; '.join(counts)}; each control "
        f"by itself, after Holm: {', '.join(alone)}.",
        f"The strongest is block {top['layer']}, head {top['head']}, from {WHERE[str(top['row'])]} to the shots' {top['target']}s, which have "
        f"{100 * float(data['share'].sel(own)):.1f} % of its share: rho = {ci(data, 'rho', control='real', **top)}{under}; beyond other "
        f"queries{less} {ci(data, name, **at, **top)}, {tested(sure)}: {found}.",
    ]


def percent(data: xr.Dataset, name: str, **at: Any) -> str:
    value, low, high = (100 * float(data[n].sel(at)) for n in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]" if np.isfinite([low, high]).all() else f"{value:.1f} %, no interval"


def _points(data: xr.Dataset, name: str, **at: Any) -> str:
    value, low, high = (100 * float(data[n].sel(at)) for n in (name, f"{name}_low", f"{name}_high"))
    return estimate(value, low, high, form="+.2f")
