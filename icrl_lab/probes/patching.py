"""Patching: which states are enough for the answer.

States of a clean run are put into a corrupted one, and how much of the difference between the two answers comes back is counted
(Meng et al. 2022; Heimersheim and Nanda, arXiv 2404.15255). Two Readings of the question "patching"; `about["kind"]` says which:

    patching  "restore": the residual stream, by depth and group of positions
    heads     "heads": the output of single heads

`changing` has the other two. Beside every patch stands its placebo, a random direction of the same length, and what a gradient says
of all of them at once (attribution patching, arXiv 2403.00745), with its error. The shares are those of `recovery`. Nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from icrl_lab.probes import interventions as edit
from icrl_lab.probes.arrays import Named, ci, dataset, put
from icrl_lab.probes.asked import checked
from icrl_lab.probes.edited import (
    CROSSED,
    GROUPS,
    Pair,
    about,
    axes,
    changes,
    depths_of,
    groups_of,
    left_out,
    pairs_of,
    places,
    states,
)
from icrl_lab.probes.recovery import gradient_arrays, restored, restored_arrays, spread
from icrl_lab.probes.scene import Scene
from icrl_lab.stats.metrics import Array
from icrl_lab.stats.words import tested
from icrl_lab.studies.choice import stream
from icrl_lab.values import Capture, Reading, Rendered

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study

RESTORED = (
    f"{CROSSED}, on leave-one-out jackknife pseudo-values of the share; p: differences paired anew with other queries', the same "
    "for all seeds; q: against the largest over all cells"
)
LIMITS = (
    "An edit that only destroys what the corrupted run held gives back a part of the difference, too, often half of it: what speaks for "
    "a state is what it gives back beyond random directions of the same length.",
    "A state that restores the answer is enough for it, not necessary: other states may hold the same.",
    "p asks whether a cell gives each query its own difference back; one that all queries have in common shows in the share and its "
    "interval alone.",
    "A restored share can be above one or below zero: states of two runs, put together, were never seen by the model.",
)
SELECTED = "Cells that were verified are those with the largest gradients: their intervals do not allow for the choice."


@checked(verify=0)
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
    pairs = pairs_of(study, arm, corrupted, seeds, queries=queries, with_text=with_text)
    first, top = pairs[0].real, study.llm.blocks
    names, empty = groups_of(first, groups, GROUPS)
    deep = depths_of(study, np.linspace(0, top, 8).round() if depths is None else depths)
    total = np.stack([pair.clean - pair.dirty for pair in pairs])
    shape = (len(names), len(deep), *total.shape)
    cells = [Cell(d, g) for g in names for d in deep]
    found = np.stack([_exact(pair, cells, draws, seed) for pair in pairs], 2).reshape(1 + draws, *shape)
    arrays = restored_arrays(found[0], found[1:], total, ("group", "depth"), first.units, seed)
    coords: dict[str, Any] = {"group": names, "depth": deep}
    gradient = gradient and _one_token(first)
    if gradient:
        parts, _ = groups_of(first, None, ("each slot", "each label", "query slot", "between", "answer"))
        slopes = np.stack([_slopes(pair, [*names, *parts], False) for pair in pairs], -2)
        arrays |= gradient_arrays(slopes[: len(names), deep], found[0], total, ("group", "depth"), first.units)
        arrays |= _fine_arrays(pairs, parts, slopes[len(names) :], total, verify)
        coords |= {"part": parts, "place": np.arange(top + 1)}
    limits = [*LIMITS, *([SELECTED] if gradient else []), *left_out(empty, gradient)]
    told = about(pairs, "restore", RESTORED, limits, corrupted)
    data = dataset(arrays, {**coords, **axes(first, pairs)})
    return Reading("patching", data, {**told, "says": _says_restored(data, corrupted, first.units)})


@checked(empty=["exact"], verify=0)
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
    pairs = pairs_of(study, arm, corrupted, seeds, queries=queries, with_text=with_text)
    first = pairs[0].real
    names, _ = groups_of(first, groups, groups)
    exact, _ = groups_of(first, exact, exact)
    shape = (len(names), study.llm.blocks, study.llm.heads)
    total = np.stack([pair.clean - pair.dirty for pair in pairs])
    gradient = _one_token(first)
    chosen = np.ones(shape, bool)
    whole = np.isin(names, exact) if gradient else np.ones(len(names), bool)
    if gradient:
        slopes = np.stack([_slopes(pair, names, True) for pair in pairs], -2)
        size = np.where(whole[:, None, None], -1.0, np.abs(slopes).mean((-1, -2)))
        chosen = np.zeros(shape, bool) | whole[:, None, None]
        chosen.flat[np.argsort(-size, axis=None)[: min(verify, int((size > 0).sum()))]] = True
    cells = [Cell(int(b), names[g], int(h)) for g, b, h in np.argwhere(chosen)]
    found = np.full((1 + draws, *shape, *total.shape), np.nan)
    found[:, chosen] = np.stack([_exact(pair, cells, draws, seed) for pair in pairs], 2)
    dims = ("group", "layer", "head")
    arrays = restored_arrays(
        found[0], found[1:], total, dims, first.units, seed, np.broadcast_to(whole[:, None, None], shape)
    )
    if gradient:
        arrays |= gradient_arrays(slopes, found[0], total, dims, first.units)
    limits = [*LIMITS, *([SELECTED] if not whole.all() else []), *left_out([], gradient)]
    told = about(pairs, "heads", RESTORED, limits, corrupted)
    coords = {"group": names, "layer": np.arange(shape[1]), "head": np.arange(shape[2])}
    data = dataset(arrays, {**coords, **axes(first, pairs)})
    return Reading("patching", data, {**told, "says": _says_heads(data, corrupted, first.units)})


def _one_token(one: Scene) -> bool:
    """Whether every label is one token, so that the outcome has a gradient."""
    return all(len(path) == 1 for cut in one.tries.cuts for path in cut.labels)


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
    clean, before = (states(one, wanted, layers, heads) for one in (pair.real, dirty))

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
    return changes(dirty, pair.dirty, jobs, make, each).reshape(1 + draws, len(cells), -1)


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
    put(arrays, "fine", dims, one[:3], "restored share by the gradient, part by part", "share of the difference")
    put(arrays, "fine_effect", dims, one.effect[:3], "mean size of the change by the gradient, part by part", units)
    if chosen.any():
        cells = [Cell(int(d), parts[p]) for p, d in np.argwhere(chosen)]
        done = restored(np.stack([_exact(pair, cells)[0] for pair in pairs], 1), total, draws=0)
        put(
            arrays,
            "verified",
            dims,
            spread(done[:3], chosen),
            "restored share, patched exactly",
            "share of the difference",
        )
        put(
            arrays,
            "verified_effect",
            dims,
            spread(done.effect[:3], chosen),
            "mean size of the change, patched exactly",
            units,
        )
    return arrays


# ------------------------------------------------------------------------------------------------ says


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
            f"{group} {ci(data, 'share', **at)} at depth {depth} (placebo {float(data['placebo'].sel(at)):.2f}; beyond it, "
            f"{tested(q)})"
        )
    out = [
        f"Corrupted by {corrupted!r}, the outcome is off by {ci(data, 'total_effect')} {units}.",
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
        f"The gradient agrees with exact patching at r = {ci(data, 'agreement')} over the cells of a query; it is off by {off:.2g} {units} "
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
        how = f"beyond it, {tested(q)}" if np.isfinite(q) else "chosen by its gradient"
        placebo = float(data["placebo"].sel(at))
        best.append(
            f"at the {group} block {layer}, head {head}, {ci(data, 'share', **at)} (placebo {placebo:.2f}; {how})"
        )
    many = int(data["share_q"].notnull().sum())
    out = [
        f"Corrupted by {corrupted!r}, the outcome is off by {ci(data, 'total_effect')} {units}.",
        f"Of {many} heads and places that were tested, {_beyond(data)} give back more of each query's own difference than random "
        "directions of the same length do, after correction.",
        f"The head that gives back most beyond its placebo: {'; '.join(best)}.",
    ]
    return [*out, _says_gradient(data, units)] if "agreement" in data else out
