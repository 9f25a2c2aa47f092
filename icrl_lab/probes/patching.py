"""Patching: what happens to the answer when one thing is changed, and so where what the answer rests on stands.

Four questions, each a Reading of the question "patching"; `about["kind"]` says which:

    patching  "restore": states of a clean run are put into a corrupted one, by depth and group of positions: how much of the
              difference between the two answers comes back (Meng et al. 2022; Heimersheim and Nanda, arXiv 2404.15255)
    heads     "heads": the same for the output of single heads
    cuts      "cuts": the answer, the query or everybody does not see the shots' vectors, texts, labels, or the query's slot
    inputs    "inputs": other vectors in the slots, at the input or at any depth

Beside every edit stands its placebo, which changes as much in a direction (or at positions) that mean nothing. Beside restored
states stands what a gradient says of all of them at once (attribution patching, arXiv 2403.00745), with its error. What edits a
prompt is in `interventions`; here they are put to the engine, many at once, and what they did is counted. Nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from icrl_lab.errors import DataError, MissingExtra, StudyError, nearest
from icrl_lab.probes import interventions as edit
from icrl_lab.probes.scene import Parts, Scene, pick, scene
from icrl_lab.stats import Effects, adjusted, correlations, effects, sign_flip
from icrl_lab.stats.metrics import Array
from icrl_lab.studies.material import stream
from icrl_lab.values import SLOT, Capture, Reading, Rendered

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study

GROUPS = ("all slots", "query slot", "between", "answer", "shot slots", "shot labels")
EDITS = ("swap", "mean", "zero", "noise", "other")
TARGETS = ("query slot", "one shot", "shot slots")
ROWS = ("answer", "query", "onwards")
COLUMNS = ("shot slots", "shot texts", "shot labels", "query slot")
PROMPTS, BYTES = 4096, 2.5e8  # edited prompts handed to the engine at a time, and what their edits may take
CROSSED = "95 % intervals: crossed analysis of variance over seeds and queries, t distribution"
RESTORED = (
    f"{CROSSED}, on leave-one-out jackknife pseudo-values of the share; p: differences paired anew with other queries', the same "
    "for all seeds; q: against the largest over all cells"
)
CHANGED = f"{CROSSED}; p: signs of each query's (edit less placebo) flipped; q: Holm"
LIMITS = (
    "An edit that only destroys what the corrupted run held gives back a part of the difference, too, often half of it: what speaks for "
    "a state is what it gives back beyond random directions of the same length.",
    "A state that restores the answer is enough for it, not necessary: other states may hold the same.",
    "p asks whether a cell gives each query its own difference back; one that all queries have in common shows in the share and its "
    "interval alone.",
    "A restored share can be above one or below zero: states of two runs, put together, were never seen by the model.",
)
SELECTED = "Cells that were verified are those with the largest gradients: their intervals do not allow for the choice."


# ------------------------------------------------------------------------------------------------ where


def places(parts: Parts, group: str) -> tuple[int, ...]:
    """The positions of a group in one prompt, ascending; empty where it has none.

    One of GROUPS, "shot texts", or of a single shot "shot 3 slot", "shot 3 label"; "between" are the query's tokens from its slot
    to the answer's place. An unknown name is a StudyError.
    """
    last = len(parts.role) - 1
    match group.split():
        case ["answer"]:
            found = np.array([last])
        case ["all", "slots"]:
            found = parts.at("slot")
        case ["query", "slot"]:
            found = parts.at("slot", parts.shown)
        case ["between"]:
            own = parts.query
            found = own[(own > parts.at("slot", parts.shown).max(initial=-1)) & (own < last)]
        case ["shot", ("slots" | "texts" | "labels") as many]:
            found = parts.of_shots(many[:-1])
        case ["shot", number, ("slot" | "text" | "label") as role] if number.isdigit() and int(number) < parts.shown:
            found = parts.at(role, int(number))
        case _:
            known = (*GROUPS, "shot texts", "each slot", "each label", "shot 0 slot")
            raise StudyError(f"there is no group of positions {group!r} in this prompt; {nearest(group, known)}")
    return tuple(found.tolist())


def _groups(one: Scene, asked: Sequence[str] | None, default: Sequence[str]) -> tuple[list[str], list[str]]:
    """Groups that the prompts have, with "each slot" written out; and those of the default that no prompt has."""
    shown = one.parts[0].shown
    each = {f"each {role}": [f"shot {s} {role}" for s in range(shown)] for role in ("slot", "label")}
    names = [name for group in (default if asked is None else asked) for name in each.get(group, [group])]
    empty = [name for name in dict.fromkeys(names) if not all(places(parts, name) for parts in one.parts)]
    if asked is not None and empty:
        raise StudyError(f"these prompts have no {empty[0]!r}; leave it out")
    return [name for name in dict.fromkeys(names) if name not in empty], empty


# ------------------------------------------------------------------------------------------------ scenes


@dataclass(frozen=True, eq=False)
class Pair:
    """A clean and a corrupted scene of one seed, and their outcomes `clean` and `dirty` (n,)."""

    real: Scene
    corrupted: Scene
    clean: Array
    dirty: Array


def _scenes(study: Study, arm: str | None, control: str, seeds: Any, **options: Any) -> list[Scene]:
    chosen = pick(study, arm)
    if not chosen.has_slots:
        raise StudyError(f"the arm {chosen.label!r} has no slots, so that no vector can be patched; take another arm")
    found = [scene(study, chosen.label, control, seed=s, **options) for s in seeds]
    if len(found[0].queries) < 3:
        raise DataError(f"an interval over queries needs at least 3, not {len(found[0].queries)}; ask for more queries")
    return found


def _seeds(study: Study, seeds: Sequence[int] | None) -> tuple[int, ...]:
    return tuple(study.plan.seeds[:2] if seeds is None else seeds)


def _depths(study: Study, depths: Any) -> list[int]:
    deep, top = sorted({int(d) for d in depths}), study.llm.blocks
    outside = [d for d in deep if not 0 <= d <= top]
    if outside or not deep:
        what = (
            f"depth {outside[0]} is not in {study.llm.name}, which has"
            if outside
            else "no depth is given; take some of"
        )
        raise StudyError(f"{what} depths from 0 to {top}")
    return deep


def _pairs(study: Study, arm: str | None, corrupted: str, seeds: Sequence[int] | None, **options: Any) -> list[Pair]:
    found = []
    for s in _seeds(study, seeds):
        (one,), (two,) = (_scenes(study, arm, control, (s,), **options) for control in ("real", corrupted))
        if any(not np.array_equal(a.ids, b.ids) for a, b in zip(one.prompts, two.prompts)):
            raise StudyError(
                f"the control {corrupted!r} has other tokens; corrupt with 'shuffled', 'noise' or 'shared'"
            )
        found.append(Pair(one, two, one.read(), two.read()))
    if all(np.array_equal(p.clean, p.dirty) for p in found):
        raise DataError(f"corrupted by {corrupted!r}, every outcome is what it was: there is nothing to restore")
    return found


def _states(one: Scene, wanted: Sequence[Sequence[int]], layers: Sequence[int] | None, heads: bool) -> list[Array]:
    """What stands at the wanted positions of each prompt: (depths, positions, d), or (blocks, heads, positions, head width)."""
    deep = None if layers is None else tuple(layers)
    asked = [
        Capture(outputs=tuple(at), layers=deep) if heads else Capture(hidden=tuple(at), depths=deep) for at in wanted
    ]
    many = one.study.llm.blocks + 1 if deep is None else len(deep)
    step = max(1, int(one.engine.limit // (8 * many * max(map(len, wanted)) * one.study.llm.width)))
    traces = [
        trace
        for start in range(0, len(asked), step)
        for trace in one.engine.run(one.prompts[start : start + step], [0], asked[start : start + step]).traces
    ]
    return [np.asarray(trace.outputs if heads else trace.hidden) for trace in traces]


def _read(
    one: Scene, base: Array, jobs: Sequence[Any], make: Callable[[Any, int], Rendered | None], each: int
) -> Array:
    """(jobs, n) outcome of every query under every job, less `base` (n,).

    make  the edited prompt of a job and a query, or None where the edit would leave everything as it is
    each  bytes that the edits of one prompt take
    """
    n = len(base)
    step = max(1, int(min(PROMPTS, BYTES / max(each, 1)) // n))
    out = np.tile(base, (len(jobs), 1))
    for start in range(0, len(jobs), step):
        made = [(j, i, make(jobs[j], i)) for j in range(start, min(start + step, len(jobs))) for i in range(n)]
        some = [(j, i, prompt) for j, i, prompt in made if prompt is not None]
        if some:
            at = tuple(np.array([(j, i) for j, i, _ in some]).T)
            out[at] = one.read([prompt for *_, prompt in some], at[1].tolist())
    return out - base


# ------------------------------------------------------------------------------------------------ restoring


class Cell(NamedTuple):
    """Where states are restored: a depth of the residual stream, or with `head` a block, and a group of positions."""

    layer: int
    group: str
    head: int | None = None


def _exact(pair: Pair, cells: Sequence[Cell], draws: int = 0, seed: int = 0) -> Array:
    """(1 + draws, cells, n) what restoring a cell adds to the corrupted outcome, and what each draw of its placebo adds."""
    dirty, heads = pair.corrupted, cells[0].head is not None
    layers = sorted({cell.layer for cell in cells})
    at = [{g: places(parts, g) for g in {c.group for c in cells}} for parts in dirty.parts]
    wanted = [sorted({p for places in groups.values() for p in places}) for groups in at]
    clean, before = (_states(one, wanted, layers, heads) for one in (pair.real, dirty))

    def make(job: tuple[int, Cell], i: int) -> Rendered | None:
        draw, cell = job
        where = at[i][cell.group]
        of = (
            layers.index(cell.layer),
            *(() if cell.head is None else (cell.head,)),
            [wanted[i].index(p) for p in where],
        )
        far = np.linalg.norm(clean[i][of].astype(np.float64) - before[i][of], axis=1)
        if not far.any():  # the two runs do not differ here: what is put in is what stands there
            return None
        if draw:
            drawn = stream("nudge", seed, draw)
            return edit.nudge(dirty.prompts[i], cell.layer, where, far, clean[i].shape[-1], drawn, cell.head)
        return edit.patch(dirty.prompts[i], cell.layer, where, clean[i][of], cell.head)

    each = 4 * clean[0].shape[-1] * max(len(where) for groups in at for where in groups.values())
    jobs = [(draw, cell) for draw in range(1 + draws) for cell in cells]
    return _read(dirty, pair.dirty, jobs, make, each).reshape(1 + draws, len(cells), -1)


def _slopes(pair: Pair, groups: Sequence[str], heads: bool) -> Array:
    """(groups, depths or blocks [, heads], n) what restoring would add if the outcome were linear in the states:
    (clean - corrupted) . gradient of the corrupted run. DataError where labels have several tokens."""
    from icrl_lab.engine.gradients import gradient

    found = []
    for i, parts in enumerate(pair.corrupted.parts):
        at = [places(parts, g) for g in groups]
        wanted = sorted({p for where in at for p in where})
        prompts = [one.prompts[i] for one in (pair.real, pair.corrupted)]
        capture = Capture(outputs=tuple(wanted)) if heads else Capture(hidden=tuple(wanted))
        clean, before = pair.real.engine.run(prompts, [0], capture).traces
        slope = gradient(pair.real.study.llm, prompts[1], pair.corrupted.outcome(i), wanted)
        new, old = ((np.asarray(t.outputs if heads else t.hidden, np.float64)) for t in (clean, before))
        dots = ((new - old) * (slope.outputs if heads else slope.stream)).sum(-1)
        found.append([dots[..., [wanted.index(p) for p in where]].sum(-1) for where in at])
    return np.moveaxis(np.array(found), 0, -1)


class Restored(NamedTuple):
    """Of each cell (...): the restored share with its interval and p-values; `effect` is the mean size of what the patch did."""

    share: Array
    low: Array
    high: Array
    p: Array
    q: Array
    effect: Effects


def restored(patch: Array, total: Array, draws: int = 2000, seed: int = 0) -> Restored:
    """How much of the differences `total` (S, N) between clean and corrupted outcomes came back as `patch` (..., S, N).

    The share is the slope through the origin, sum(patch total) / sum(total^2): 1 where all came back, 0 where nothing did or
    something else happened. Its p-value pairs patches with other queries' totals, the same turn for all seeds; q compares each
    cell with the largest of all cells under each turn (Westfall and Young 1993), every cell in units of its own null. Both are
    NaN with draws = 0.
    """
    patch, total = np.asarray(patch, float), np.asarray(total, float)
    product, square = patch * total, total**2
    above, below, m = product.sum((-1, -2), keepdims=True), square.sum(), total.size
    left = (above - product) / np.maximum(below - square, 1e-12 * below)
    share = above[..., 0, 0] / below
    e = effects(m * share[..., None, None] - (m - 1) * left)
    p, q = _turned(patch.reshape(-1, *total.shape), total, draws, seed)
    low, high = share - (e.estimate - e.low), share + (e.high - e.estimate)
    return Restored(share, low, high, p.reshape(share.shape), q.reshape(share.shape), _sizes(patch))


def _turned(patch: Array, total: Array, draws: int, seed: int) -> tuple[Array, Array]:
    """p and q (C,) of patches (C, S, N) under turns of the queries."""
    if not draws:
        return np.full(len(patch), np.nan), np.full(len(patch), np.nan)
    rng, n = np.random.default_rng([seed, 43]), total.shape[1]
    turns = np.array([np.arange(n), *(rng.permutation(n) for _ in range(draws))])
    turned = total[:, turns].transpose(0, 2, 1).reshape(-1, len(turns))  # seeds x queries, turns
    found = patch.reshape(len(patch), -1) @ turned
    away = found - (patch.sum(-1) @ total.mean(-1))[:, None]
    sd = away[:, 1:].std(1)
    some = sd > 1e-9 * (np.abs(patch).sum((-1, -2)) * np.abs(total).max())
    z = np.abs(away) / np.where(some, sd, np.inf)[:, None]
    least = z[:, :1] - 1e-9
    p, q = ((1 + (null >= least).sum(1)) / (1 + draws) for null in (z[:, 1:], z[:, 1:].max(0)[None]))
    return np.where(some, p, 1.0), np.where(some, q, 1.0)


# ------------------------------------------------------------------------------------------------ readings of restoring


def patching(
    study: Study,
    arm: str | None = None,
    *,
    corrupted: str = "shuffled",
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 12,
    depths: Sequence[int] | None = None,
    groups: Sequence[str] | None = None,
    gradient: bool = True,
    verify: int = 10,
    draws: int = 4,
    with_text: bool | None = None,
    seed: int = 0,
) -> Reading:
    """How much of the clean answer comes back when clean states are put into a corrupted run, by group of positions and depth.

    corrupted  a control that keeps the tokens: "shuffled", "noise", "shared", "zero", ...
    seeds      None: the plan's first two
    depths     None: about eight, spread evenly, with 0 and L
    groups     names that `places` knows, "each slot", "each label"; None: GROUPS, as far as the prompts have them
    gradient   also approximate every depth and every part of the prompt by a gradient; left out where labels have several tokens
    verify     how many of those parts, the largest ones, are patched exactly at their largest depth
    draws      random directions of each placebo; its share and sizes are means over them

    In the reading, over (group, depth): `share` restored, that of the `placebo`, what is `beyond` it and what the `gradient` says,
    `effect` in the outcome's units, `gradient_error`; `restored`, `unmoved`, `approximated` for each seed and query; `total`; over (part, place):
    `fine`, the gradient's share of each part at every depth, and `verified`, where it was patched exactly.
    """
    pairs = _pairs(study, arm, corrupted, seeds, queries=queries, with_text=with_text)
    first, top = pairs[0].real, study.llm.blocks
    names, empty = _groups(first, groups, GROUPS)
    deep = _depths(study, np.linspace(0, top, 8).round() if depths is None else depths)
    total = np.stack([pair.clean - pair.dirty for pair in pairs])
    shape = (len(names), len(deep), *total.shape)
    cells = [Cell(d, g) for g in names for d in deep]
    found = np.stack([_exact(pair, cells, draws, seed) for pair in pairs], 2).reshape(1 + draws, *shape)
    arrays = _restored_arrays(found[0], found[1:], total, ("group", "depth"), first.units, seed)
    coords: dict[str, Any] = {"group": names, "depth": deep}
    gradient = gradient and _one_token(first)
    if gradient:
        parts, _ = _groups(first, None, ("each slot", "each label", "query slot", "between", "answer"))
        slopes = np.stack([_slopes(pair, [*names, *parts], False) for pair in pairs], -2)
        arrays |= _gradient_arrays(slopes[: len(names), deep], found[0], total, ("group", "depth"), first.units)
        arrays |= _fine_arrays(pairs, parts, slopes[len(names) :], total, verify)
        coords |= {"part": parts, "place": np.arange(top + 1)}
    limits = [*LIMITS, *([SELECTED] if gradient else []), *_left_out(empty, gradient)]
    told = _about(pairs, "restore", RESTORED, limits, corrupted)
    data = _dataset(arrays, {**coords, **_tables(first, pairs)})
    return Reading("patching", data, {**told, "says": _says_restored(data, corrupted, first.units)})


def heads(
    study: Study,
    arm: str | None = None,
    *,
    corrupted: str = "shuffled",
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 12,
    groups: Sequence[str] = ("answer", "shot labels"),
    exact: Sequence[str] = ("answer",),
    verify: int = 20,
    draws: int = 2,
    with_text: bool | None = None,
    seed: int = 0,
) -> Reading:
    """The same for the output of every head of every block, at some groups of positions.

    exact   groups of which every head is patched; of the others the gradient speaks of every head, and the `verify` largest are
            patched (all, where labels have several tokens and there is no gradient)
    draws   of each placebo

    In the reading, over (group, layer, head): `share`, `placebo`, `beyond`, `effect`, NaN where a head was not patched, and `gradient`.
    """
    pairs = _pairs(study, arm, corrupted, seeds, queries=queries, with_text=with_text)
    first = pairs[0].real
    names, _ = _groups(first, groups, groups)
    shape = (len(names), study.llm.blocks, study.llm.heads)
    total = np.stack([pair.clean - pair.dirty for pair in pairs])
    gradient = _one_token(first)
    chosen = np.ones(shape, bool)
    whole = np.isin(names, list(exact)) if gradient else np.ones(len(names), bool)
    if gradient:
        slopes = np.stack([_slopes(pair, names, True) for pair in pairs], -2)
        size = np.where(whole[:, None, None], -1.0, np.abs(slopes).mean((-1, -2)))
        chosen = np.zeros(shape, bool) | whole[:, None, None]
        chosen.flat[np.argsort(-size, axis=None)[: min(verify, int((size > 0).sum()))]] = True
    cells = [Cell(int(b), names[g], int(h)) for g, b, h in np.argwhere(chosen)]
    found = np.full((1 + draws, *shape, *total.shape), np.nan)
    found[:, chosen] = np.stack([_exact(pair, cells, draws, seed) for pair in pairs], 2)
    dims = ("group", "layer", "head")
    arrays = _restored_arrays(
        found[0], found[1:], total, dims, first.units, seed, np.broadcast_to(whole[:, None, None], shape)
    )
    if gradient:
        arrays |= _gradient_arrays(slopes, found[0], total, dims, first.units)
    limits = [*LIMITS, *([SELECTED] if not whole.all() else []), *_left_out([], gradient)]
    told = _about(pairs, "heads", RESTORED, limits, corrupted)
    coords = {"group": names, "layer": np.arange(shape[1]), "head": np.arange(shape[2])}
    data = _dataset(arrays, {**coords, **_tables(first, pairs)})
    return Reading("patching", data, {**told, "says": _says_heads(data, corrupted, first.units)})


def _one_token(one: Scene) -> bool:
    """Whether every label is one token, so that the outcome has a gradient."""
    return all(len(path) == 1 for cut in one.tries.cuts for path in cut.labels)


def _left_out(empty: Sequence[str], gradient: bool) -> list[str]:
    out = [f"These prompts have no tokens of the group {name!r}." for name in empty]
    return (
        out
        if gradient
        else [*out, "There is no gradient approximation here: it was not asked for, or labels have several tokens."]
    )


def _sizes(table: Array) -> Effects:
    """The mean of sizes (..., S, N) with its interval, which ends at zero."""
    e = effects(np.abs(table))
    return e._replace(low=np.maximum(e.low, 0.0))


Named = dict[str, tuple[tuple[str, ...], Array, str, str]]  # name -> dims, values, long name, units


def _put(into: Named, name: str, dims: tuple[str, ...], values: Sequence[Array], words: str, units: str) -> None:
    """An estimate with its interval (and p, and q) under the house's names."""
    for end, value, what in zip(("", "_low", "_high", "_p", "_q"), values, ("", ", 95 % interval from", ", 95 % interval to", ", p", ", p corrected over the cells")):  # fmt: skip
        into[name + end] = (dims, value, words + what, "" if end in ("_p", "_q") else units)


def _spread(values: Sequence[Array], fine: Array) -> list[Array]:
    """Values (cells,) laid out where `fine` (...) is true, NaN elsewhere."""
    out = []
    for value in values:
        full = np.full(fine.shape, np.nan)
        full[fine] = value
        out.append(full)
    return out


def _restored_arrays(
    patched: Array, sham: Array, total: Array, dims: tuple[str, ...], units: str, seed: int, tested: Array | None = None
) -> Named:
    """Of patches (..., S, N) and draws of their placebo (draws, ..., S, N). `tested`: cells that were not chosen for what they do,
    which alone have a p-value."""
    arrays: Named = {}
    fine = np.isfinite(patched).all((-1, -2))
    tested = fine if tested is None else tested
    usual, share = sham.mean(0), "share of the difference"
    tables = {
        "share": (patched, "restored share, clean states"),
        "placebo": (usual, "restored share, random directions"),
        "beyond": (patched - usual, "restored share, clean states less random directions"),
    }
    for name, (table, words) in tables.items():
        one = restored(table[fine], total, draws=0)
        p, q = np.full((2, *fine.shape), np.nan)
        if tested.any():
            again = restored(table[tested], total, seed=seed)
            p[tested], q[tested] = again.p, again.q
        _put(arrays, name, dims, [*_spread(one[:3], fine), p, q], words, share)
    for name, table, words in (("effect", patched, "clean states"), ("placebo_effect", sham, "random directions")):
        size = _sizes((np.abs(sham).mean(0) if table is sham else table)[fine])
        _put(arrays, name, dims, _spread(size[:3], fine), f"mean size of the change, {words}", units)
    each = (*dims, "seed", "query")
    arrays["restored"] = (each, patched, "outcome with clean states less corrupted outcome", units)
    arrays["unmoved"] = (each, usual, "outcome with random directions of the same length less corrupted outcome", units)
    arrays["total"] = (("seed", "query"), total, "clean outcome less corrupted outcome", units)
    off = _sizes(total)
    _put(arrays, "total_effect", (), [np.asarray(v) for v in off[:3]], "mean size of the difference", units)
    return arrays


def _gradient_arrays(slopes: Array, patched: Array, total: Array, dims: tuple[str, ...], units: str) -> Named:
    """What the gradient says of each cell, and how far it is from what patching says, where that was done."""
    arrays: Named = {}
    fine = np.isfinite(patched).all((-1, -2))
    one = restored(slopes, total, draws=0)
    _put(arrays, "gradient", dims, one[:3], "restored share by the gradient", "share of the difference")
    _put(arrays, "gradient_effect", dims, one.effect[:3], "mean size of the change by the gradient", units)
    error = _sizes((slopes - patched)[fine])
    _put(arrays, "gradient_error", dims, _spread(error[:3], fine), "mean distance of the gradient from patching", units)
    if fine.sum() > 2:
        r = correlations(_correlation(slopes[fine], patched[fine]))
        _put(
            arrays,
            "agreement",
            (),
            [np.asarray(v) for v in r[:3]],
            "correlation of gradient and patching over cells",
            "Pearson r",
        )
    arrays["approximated"] = ((*dims, "seed", "query"), slopes, "change of the outcome by the gradient", units)
    return arrays


def _correlation(a: Array, b: Array) -> Array:
    """Pearson's r over the first axis, (...); 0 where one of the two is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    below = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.divide((a * b).sum(0), below, out=np.zeros(below.shape), where=below > 0)


def _fine_arrays(pairs: Sequence[Pair], parts: list[str], slopes: Array, total: Array, verify: int) -> Named:
    """The gradient's share of each part at every depth; the largest depths of the largest parts, patched exactly."""
    units, dims = pairs[0].real.units, ("part", "place")
    size = np.abs(slopes).mean((-1, -2))
    best = size.argmax(1)
    largest = np.argsort(-size.max(1))[:verify]
    chosen = np.zeros(size.shape, bool)
    chosen[largest, best[largest]] = True
    arrays: Named = {}
    one = restored(slopes, total, draws=0)
    _put(arrays, "fine", dims, one[:3], "restored share by the gradient, part by part", "share of the difference")
    _put(arrays, "fine_effect", dims, one.effect[:3], "mean size of the change by the gradient, part by part", units)
    if chosen.any():
        cells = [Cell(int(d), parts[p]) for p, d in np.argwhere(chosen)]
        done = restored(np.stack([_exact(pair, cells)[0] for pair in pairs], 1), total, draws=0)
        _put(
            arrays,
            "verified",
            dims,
            _spread(done[:3], chosen),
            "restored share, patched exactly",
            "share of the difference",
        )
        _put(
            arrays,
            "verified_effect",
            dims,
            _spread(done.effect[:3], chosen),
            "mean size of the change, patched exactly",
            units,
        )
    return arrays


# ------------------------------------------------------------------------------------------------ cuts and inputs


def cuts(
    study: Study,
    arm: str | None = None,
    *,
    control: str = "real",
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 12,
    rows: Sequence[str] = ROWS,
    columns: Sequence[str] | None = None,
    windows: int = 2,
    with_text: bool | None = None,
    seed: int = 0,
) -> Reading:
    """What the outcome loses when attention edges are cut.

    rows     who does not see: the "answer" place alone, all tokens of the "query", or every later token ("onwards")
    columns  what is not seen: any of COLUMNS; None: those that the prompts have
    windows  equal stretches of blocks in which the edges are cut alone, beside the cut in all blocks; 0: none

    The placebo cuts as many other positions: of the shots' template for what stands in the shots, of the query's other tokens (or
    else the template) for its slot. In the reading, over (rows, columns, window): `effect`, the mean size of the change, its
    `placebo`, `beyond` (effect less placebo) with p and q; `shift`, the mean change; `harm`, what is added to the error.
    """
    scenes = _scenes(study, arm, control, _seeds(study, seeds), queries=queries, with_text=with_text)
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise StudyError(f"there are no rows {unknown[0]!r} to cut from; {nearest(unknown[0], ROWS)}")
    names, empty = _groups(scenes[0], columns, COLUMNS)
    named = _windows(study.llm.blocks, windows)
    jobs = [(sham, r, c, w) for sham in (False, True) for r in rows for c in names for w in named.values()]
    short: set[str] = set()

    def make(one: Scene, at: list[dict[Any, Any]], job: tuple[bool, str, str, Any], i: int) -> Rendered:
        sham, row, column, window = job
        taken = at[i][column, row] if sham else at[i][column]
        # a label of several tokens is read behind the prompt: what the answer's place does not see, those tokens do not see
        first = min(taken) + 1 if row == "onwards" else at[i][row]
        return edit.cut(one.prompts[i], [first], taken, window, onwards=True)

    def where(one: Scene, parts: Parts) -> dict[Any, Any]:
        """Positions of each column and, for each row, of its decoys; where each row begins."""
        at: dict[Any, Any] = {"answer": len(parts.role) - 1, "query": int(parts.query.min())}
        for c, column in enumerate(names):
            at[column] = places(parts, column)
            for row in rows:
                drawn = stream("decoys", seed, one.cell.seed, ROWS.index(row), c)
                at[column, row] = edit.decoys(at[column], _neutral(parts, column), drawn)
                if len(at[column, row]) < len(at[column]):
                    short.add(column)
        return at

    found = []
    for one in scenes:
        base = one.read()
        found.append((base, _read(one, base, jobs, partial(make, one, [where(one, parts) for parts in one.parts]), 0)))
    table = np.stack([changed for _, changed in found], 1).reshape(
        2, len(rows), len(names), len(named), len(scenes), -1
    )
    dims = ("rows", "columns", "window")
    arrays = _changed_arrays(table, scenes, np.stack([base for base, _ in found]), dims, seed)
    limits = [
        "A cut lets a token share its attention among what is left, which it was never trained for: compare with the placebo.",
        "What cannot be seen directly may arrive through tokens that saw it; 'onwards' cuts that way, too.",
        "The prompt's first token is cut in both, the cut and its placebo, or in neither.",
        *(
            f"The placebo for {name!r} cuts fewer positions than the cut: the prompt has no more."
            for name in sorted(short)
        ),
        *_left_out(empty, True),
    ]
    told = _about(scenes, "cuts", CHANGED, limits)
    data = _dataset(arrays, {"rows": list(rows), "columns": names, "window": list(named), **_tables(scenes[0], scenes)})
    return Reading("patching", data, {**told, "says": _says_changed(data, dims, scenes[0].units)})


def _windows(blocks: int, many: int) -> dict[str, tuple[int, ...] | None]:
    if not 0 <= many <= blocks:
        raise StudyError(f"windows is {many}; it must be from 0 to {blocks}, the number of blocks")
    split = [tuple(w.tolist()) for w in np.array_split(np.arange(blocks), many)] if many else []
    return {"all blocks": None} | {f"block {w[0]}" if len(w) == 1 else f"blocks {w[0]} to {w[-1]}": w for w in split}


def _neutral(parts: Parts, column: str) -> list[int]:
    """Positions that a placebo may cut instead of a group."""
    begin, last = int(parts.query.min()), len(parts.role) - 1
    own = set(places(parts, column))
    if column == "query slot" and set(parts.query.tolist()) - own - {last}:
        return [p for p in parts.query.tolist() if p not in own and p != last]
    plain = [p for p in parts.at(("template", "marker", "question")).tolist() if p < begin]
    return plain if len(plain) > len(own) else [p for p in range(begin) if p not in own]


def inputs(
    study: Study,
    arm: str | None = None,
    *,
    control: str = "real",
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 12,
    edits: Sequence[str] = EDITS,
    targets: Sequence[str] = TARGETS,
    depths: Sequence[int] = (0,),
    draws: int = 2,
    with_text: bool | None = None,
    seed: int = 0,
) -> Reading:
    """What the outcome loses when other vectors stand in some slots, at the input (depth 0) or later on the way.

    edits    swap    with a drawn shot; a shot with another; all shots in drawn pairs
             mean    of all slots of the prompt; zero; noise, a random direction of equal norm
             other   another item's vector, that of the control "shuffled"
    targets  "query slot", "one shot" (drawn for each seed), "shot slots"
    draws    of partners, shots and noise; sizes of changes are averaged over them

    In the reading, over (edit, target, depth): as for `cuts`; the placebo moves the same vectors as far in random directions.
    """
    scenes = _scenes(study, arm, control, _seeds(study, seeds), queries=queries, with_text=with_text)
    for asked, known in ((edits, EDITS), (targets, TARGETS)):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise StudyError(f"there is no {unknown[0]!r} for vectors; {nearest(unknown[0], known)}")
    if scenes[0].parts[0].shown < 2 or draws < 1:
        raise StudyError(
            "vectors are exchanged between two shots at least, in one draw at least; take more shots or draws"
        )
    deep = _depths(study, depths)
    jobs = [(s, e, t, d, k) for s in (False, True) for e in edits for t in targets for d in deep for k in range(draws)]
    found = [_edited(study, one, jobs, deep, with_text, seed) for one in scenes]
    shape = (2, len(edits), len(targets), len(deep), draws, len(scenes), len(scenes[0].queries))
    table = np.stack([changed for _, changed in found], 1).reshape(shape)
    dims = ("edit", "target", "depth")
    arrays = _changed_arrays(np.moveaxis(table, 4, 0), scenes, np.stack([base for base, _ in found]), dims, seed)
    limits = [
        "A changed vector is one that the model never read there; compare with the placebo, which is one, too.",
        "Of another item's vector only the item is wrong; of noise, zero and the placebo everything is.",
        f"One shot is {draws} drawn shots of each seed, each edited alone.",
    ]
    told = {**_about(scenes, "inputs", CHANGED, limits), "draws": draws}
    coords = {"edit": list(edits), "target": list(targets), "depth": deep, **_tables(scenes[0], scenes)}
    data = _dataset(arrays, coords)
    return Reading("patching", data, {**told, "says": _says_changed(data, dims, scenes[0].units)})


def _edited(
    study: Study, one: Scene, jobs: Sequence[Any], deep: Sequence[int], with_text: bool | None, seed: int
) -> tuple[Array, Array]:
    """(n,) outcomes of a scene as it is, and (jobs, n) what each edit adds."""
    wrong = scene(
        study, one.cell.arm.label, "shuffled", with_text=with_text, seed=one.cell.seed, queries=one.queries.tolist()
    )
    on_way = [d for d in deep if d]
    slots = [np.flatnonzero(p.ids == SLOT).tolist() for p in one.prompts]
    states = [_states(two, slots, on_way, False) for two in (one, wrong)] if on_way else []
    changed: set[tuple[str, str]] = set()

    def make(job: tuple[bool, str, str, int, int], i: int) -> Rendered | None:
        sham, kind, target, depth, draw = job
        prompt = one.prompts[i]
        held = [two.prompts[i] for two in (one, wrong)]
        if depth:
            held = [edit.view(p, s[i][on_way.index(depth)]) for p, s in zip(held, states)]
        drawn = stream("inputs", seed, one.cell.seed, draw)
        after = _change(held[0], held[1], one.parts[i], kind, target, drawn, stream("noise", seed, depth, draw))
        if np.array_equal(after.vectors, held[0].vectors):  # two items with one vector
            return None
        changed.add((kind, target))
        if sham:
            after = edit.placebo(held[0], after, stream("placebo", seed, depth, draw))
        return edit.moved(prompt, depth, held[0], after) if depth else after

    base = one.read()
    found = _read(one, base, jobs, make, 4 * max(map(len, slots)) * study.llm.width)
    for _, kind, target, *_ in jobs:
        if (kind, target) not in changed:
            raise DataError(f"{kind!r} at {target!r} changes no vector in any prompt: the vectors there are equal")
    return base, found


def _change(held: Rendered, wrong: Rendered, parts: Parts, kind: str, target: str, drawn: int, noise: int) -> Rendered:
    """One edit of a prompt's slots (or of their states)."""
    order = np.random.default_rng(drawn).permutation(parts.shown)
    of = [parts.at("slot", s).tolist() for s in (*order, parts.shown)]  # shots in a drawn order, then the query
    join = lambda many: [p for where in many for p in where]  # noqa: E731
    at = {"query slot": of[-1], "one shot": of[0], "shot slots": join(of[:-1])}[target]
    match kind:
        case "swap":
            half = parts.shown // 2
            a, b = {"query slot": (of[-1], of[0]), "one shot": (of[0], of[1])}.get(
                target, (join(of[:half]), join(of[half : 2 * half]))
            )
            return edit.swap(held, a, b)
        case "mean":
            return edit.mean(held, at)
        case "zero":
            return edit.zero(held, at)
        case "noise":
            return edit.noise(held, at, noise)
    return edit.other(held, at, wrong)


def _changed_arrays(table: Array, scenes: Sequence[Scene], base: Array, dims: tuple[str, ...], seed: int) -> Named:
    """Arrays of changes ([draws,] 2, ..., S, N): of the edits and of their placebos."""
    drawn = table if table.ndim == len(dims) + 4 else table[None]
    units = scenes[0].units
    arrays: Named = {}
    size = np.abs(drawn).mean(0)
    _put(arrays, "effect", dims, _sizes(size[0])[:3], "mean size of the change", units)
    _put(arrays, "placebo", dims, _sizes(size[1])[:3], "mean size of the placebo's change", units)
    more = size[0] - size[1]
    p = sign_flip(more.mean(-2), seed=seed)
    beyond = effects(more)
    _put(arrays, "beyond", dims, [*beyond[:3], p, adjusted(p)], "size of the change beyond the placebo's", units)
    if scenes[0].study.task.targets is None:
        harm, how = -drawn, "log-odds of the true class that are lost"
    else:
        truth = np.stack([one.target for one in scenes])
        harm, how = np.abs(base + drawn - truth) - np.abs(base - truth), "what is added to the absolute error"
    for name, value, words in (("shift", drawn, "mean change"), ("harm", harm, how)):
        for own, which in (("", 0), ("placebo_", 1)):
            found = effects(value[:, which].mean(0))
            _put(arrays, own + name, dims, found[:3], f"{words}{', placebo' if own else ''}", units)
    each = (*dims, "seed", "query")
    arrays["changed"] = (each, drawn[:, 0].mean(0), "change of the outcome", units)
    arrays["placebo_changed"] = (each, drawn[:, 1].mean(0), "change of the outcome by the placebo", units)
    arrays["outcome"] = (("seed", "query"), base, "outcome without an edit", units)
    return arrays


# ------------------------------------------------------------------------------------------------ readings


def _xarray() -> Any:
    try:
        import xarray as xr
    except ImportError:
        raise MissingExtra('probes need xarray: pip install "icrl-lab[probes]"') from None
    return xr


def _dataset(arrays: Named, coords: dict[str, Any]) -> Any:
    made = {
        n: (dims, np.asarray(v), {"long_name": words, "units": units}) for n, (dims, v, words, units) in arrays.items()
    }
    return _xarray().Dataset(made, coords)


def _tables(first: Scene, many: Sequence[Any]) -> dict[str, Any]:
    """The axes that every table has."""
    seeds = [(m.real if isinstance(m, Pair) else m).cell.seed for m in many]
    return {"seed": seeds, "query": list(first.ids)}


def _about(
    many: Sequence[Any], kind: str, interval: str, limits: Sequence[str], corrupted: str | None = None
) -> dict[str, Any]:
    first = many[0].real if isinstance(many[0], Pair) else many[0]
    alone = interval.replace("seeds and queries", "queries alone, for one seed") if len(many) == 1 else interval
    told = {
        **first.about(), "kind": kind, "seeds": _tables(first, many)["seed"],
        "n": f"{len(many)} seeds x {len(first.queries)} queries", "interval": alone, "limits": list(limits),
    }  # fmt: skip
    return told if corrupted is None else {**told, "corrupted": corrupted}


def _p(value: float) -> str:
    return "corrected p < 0.001" if value < 0.001 else f"corrected p = {value:.3f}"


def _ci(data: Any, name: str, digits: int = 2, **at: Any) -> str:
    value, low, high = (float(data[n].sel(at)) for n in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _beyond(data: Any) -> int:
    """How many cells restore more than their placebo."""
    return int(((data["beyond_q"] < 0.05) & (data["beyond"] > 0)).sum())


def _says_restored(data: Any, corrupted: str, units: str) -> list[str]:
    """What the numbers bear out, in words."""
    best = []
    for group in data["group"].values.tolist():
        depth = int(data["depth"][int(data["beyond"].sel(group=group).values.argmax())])
        at = {"group": group, "depth": depth}
        q = float(data["beyond_q"].sel(at))
        best.append(
            f"{group} {_ci(data, 'share', **at)} at depth {depth} (placebo {float(data['placebo'].sel(at)):.2f}; beyond it, "
            f"{_p(q)})"
        )
    out = [
        f"Corrupted by {corrupted!r}, the outcome is off by {_ci(data, 'total_effect')} {units}.",
        f"In {_beyond(data)} of {data['share'].size} cells clean states give back more of each query's own difference than random "
        "directions of the same length do, after correction.",
        f"Where a group gives back most beyond its placebo, it gives back: {'; '.join(best)}.",
    ]
    if {"all slots", "answer"} <= set(data["group"].values.tolist()):
        slots, answer = (data["share"].sel(group=g).values for g in ("all slots", "answer"))
        leaves, comes = np.flatnonzero(slots < 0.5), np.flatnonzero(answer >= 0.5)
        depth = data["depth"].values
        left = (
            f"from depth {depth[leaves[0]]} on less than half of it stands in the slots"
            if len(leaves)
            else "at every depth half of it stands in the slots"
        )
        come = (
            f"from depth {depth[comes[0]]} on half of it stands at the answer"
            if len(comes)
            else "at no depth half of it stands at the answer"
        )
        out.append(f"Of the difference, {left}; {come} (of the depths that were tried).")
    if "agreement" in data:
        out.append(_says_gradient(data, units))
    return out


def _says_gradient(data: Any, units: str) -> str:
    exact = data["effect"].values
    fine = np.isfinite(exact)
    off, size = float(data["gradient_error"].values[fine].mean()), float(exact[fine].mean())
    return (
        f"The gradient agrees with exact patching at r = {_ci(data, 'agreement')} over the cells of a query; it is off by {off:.2g} {units} "
        f"where patching does {size:.2g}, on average."
    )


def _says_heads(data: Any, corrupted: str, units: str) -> list[str]:
    best = []
    for group in data["group"].values.tolist():
        beyond = data["beyond"].sel(group=group).values
        if not np.isfinite(beyond).any():
            continue
        layer, head = (int(v) for v in np.unravel_index(np.nanargmax(beyond), beyond.shape))
        at = {"group": group, "layer": layer, "head": head}
        q = float(data["beyond_q"].sel(at))
        tested = f"beyond it, {_p(q)}" if np.isfinite(q) else "chosen by its gradient"
        placebo = float(data["placebo"].sel(at))
        best.append(
            f"at the {group} block {layer}, head {head}, {_ci(data, 'share', **at)} (placebo {placebo:.2f}; {tested})"
        )
    many = int(data["share_q"].notnull().sum())
    out = [
        f"Corrupted by {corrupted!r}, the outcome is off by {_ci(data, 'total_effect')} {units}.",
        f"Of {many} heads and places that were tested, {_beyond(data)} give back more of each query's own difference than random "
        "directions of the same length do, after correction.",
        f"The head that gives back most beyond its placebo: {'; '.join(best)}.",
    ]
    return [*out, _says_gradient(data, units)] if "agreement" in data else out


def _says_changed(data: Any, dims: tuple[str, ...], units: str) -> list[str]:
    sure = (data["beyond_q"] < 0.05) & (data["beyond"] > 0)
    order = np.argsort(-data["beyond"].values, axis=None)[:3]
    words = []
    for flat in order:
        at = {d: data[d].values[i] for d, i in zip(dims, np.unravel_index(flat, data["beyond"].shape))}
        name = ", ".join(f"{d} {v}" for d, v in at.items())
        words.append(
            f"{name}: {_ci(data, 'effect', **at)} against {_ci(data, 'placebo', **at)} ({_p(float(data['beyond_q'].sel(at)))})"
        )
    harmed = int((data["harm_low"] > 0).sum())
    return [
        f"{int(sure.sum())} of {sure.size} edits change the outcome more than their placebo after correction.",
        f"The three that do most beyond it, in {units}: {'; '.join(words)}.",
        f"{harmed} of {sure.size} edits make the error larger with an interval above zero; of the placebos {int((data['placebo_harm_low'] > 0).sum())}.",
    ]
