"""Changing: what the outcome loses when attention edges are cut, or when other vectors stand in the slots.

Two Readings of the question "patching"; `about["kind"]` says which:

    cuts      "cuts": the answer, the query or everybody does not see the shots' vectors, texts, labels, or the query's slot
    inputs    "inputs": other vectors in the slots, at the input or at any depth

Beside every edit stands its placebo, which changes as much in a direction (or at positions) that mean nothing. Nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.probes import interventions as edit
from icrl_lab.probes.arrays import Named, ci, dataset, put
from icrl_lab.probes.asked import checked
from icrl_lab.probes.coalitions import vectors
from icrl_lab.probes.edited import (
    CROSSED,
    about,
    axes,
    changes,
    depths_of,
    groups_of,
    left_out,
    places,
    scenes_of,
    seeds_of,
    sizes,
    states,
)
from icrl_lab.probes.scene import Parts, Scene, scene
from icrl_lab.stats import adjusted, effects, sign_flip
from icrl_lab.stats.metrics import Array
from icrl_lab.stats.words import tested
from icrl_lab.studies.choice import stream
from icrl_lab.values import SLOT, Reading, Rendered

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study

EDITS = ("swap", "mean", "zero", "noise", "other")
TARGETS = ("query slot", "one shot", "shot slots")
ROWS = ("answer", "query", "onwards")
COLUMNS = ("shot slots", "shot texts", "shot labels", "query slot")
CHANGED = f"{CROSSED}; p: signs of each query's (edit less placebo) flipped; q: Holm"


@checked(windows=0)
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
    scenes = scenes_of(study, arm, control, seeds_of(study, seeds), queries=queries, with_text=with_text)
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise StudyError(f"there are no rows {unknown[0]!r} to cut from; {nearest(unknown[0], ROWS)}")
    names, empty = groups_of(scenes[0], columns, COLUMNS)
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
        found.append(
            (base, changes(one, base, jobs, partial(make, one, [where(one, parts) for parts in one.parts]), 0))
        )
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
        *left_out(empty, True),
    ]
    told = about(scenes, "cuts", CHANGED, limits)
    data = dataset(arrays, {"rows": list(rows), "columns": names, "window": list(named), **axes(scenes[0], scenes)})
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


# ------------------------------------------------------------------------------------------------ other vectors


@checked()
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
    scenes = scenes_of(study, arm, control, seeds_of(study, seeds), queries=queries, with_text=with_text)
    for asked, known in ((edits, EDITS), (targets, TARGETS)):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise StudyError(f"there is no {unknown[0]!r} for vectors; {nearest(unknown[0], known)}")
    if scenes[0].shots.shape[1] < 2:
        raise StudyError("vectors are exchanged between two shots at least; take more shots")
    deep = depths_of(study, depths)
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
    told = {**about(scenes, "inputs", CHANGED, limits), "draws": draws}
    coords = {"edit": list(edits), "target": list(targets), "depth": deep, **axes(scenes[0], scenes)}
    data = dataset(arrays, coords)
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
    before = [states(two, slots, on_way, False) for two in (one, wrong)] if on_way else []
    changed: set[tuple[str, str]] = set()

    def make(job: tuple[bool, str, str, int, int], i: int) -> Rendered | None:
        sham, kind, target, depth, draw = job
        prompt = one.prompts[i]
        held = [two.prompts[i] for two in (one, wrong)]
        if depth:
            held = [edit.view(p, s[i][on_way.index(depth)]) for p, s in zip(held, before)]
        drawn = stream("inputs", seed, one.cell.seed, draw)
        after = _change(held[0], held[1], vectors(one, i), kind, target, drawn, stream("noise", seed, depth, draw))
        if np.array_equal(after.vectors, held[0].vectors):  # two items with one vector
            return None
        changed.add((kind, target))
        if sham:
            after = edit.placebo(held[0], after, stream("placebo", seed, depth, draw))
        return edit.moved(prompt, depth, held[0], after) if depth else after

    base = one.read()
    found = changes(one, base, jobs, make, 4 * max(map(len, slots)) * study.llm.width)
    for _, kind, target, *_ in jobs:
        if (kind, target) not in changed:
            raise DataError(f"{kind!r} at {target!r} changes no vector in any prompt: the vectors there are equal")
    return base, found


def _change(
    held: Rendered, wrong: Rendered, slots: Sequence[Array], kind: str, target: str, drawn: int, noise: int
) -> Rendered:
    """One edit of a prompt's slots (or of their states): `slots` of each shot, of all its copies together, and last of the query."""
    *shots, query = (where.tolist() for where in slots)
    order = np.random.default_rng(drawn).permutation(len(shots))
    of = [*(shots[s] for s in order), query]  # shots in a drawn order, then the query
    join = lambda many: [p for where in many for p in where]  # noqa: E731
    at = {"query slot": query, "one shot": of[0], "shot slots": join(of[:-1])}[target]
    match kind:
        case "swap":
            half = len(shots) // 2
            if target == "query slot":  # the shot's copies all get the query's vector
                new = [
                    *edit.vectors_at(held, of[0][: len(query)]),
                    *edit.vectors_at(held, query * (len(of[0]) // len(query))),
                ]
                return edit.put(held, [*query, *of[0]], np.stack(new))
            a, b = (of[0], of[1]) if target == "one shot" else (join(of[:half]), join(of[half : 2 * half]))
            return edit.swap(held, a, b)
        case "mean":
            return edit.mean(held, at)
        case "zero":
            return edit.zero(held, at)
        case "noise":
            return edit.noise(held, at, noise)
    return edit.other(held, at, wrong)


# ------------------------------------------------------------------------------------------------ numbers and words


def _changed_arrays(table: Array, scenes: Sequence[Scene], base: Array, dims: tuple[str, ...], seed: int) -> Named:
    """Arrays of changes ([draws,] 2, ..., S, N): of the edits and of their placebos."""
    drawn = table if table.ndim == len(dims) + 4 else table[None]
    units = scenes[0].units
    arrays: Named = {}
    size = np.abs(drawn).mean(0)
    put(arrays, "effect", dims, sizes(size[0])[:3], "mean size of the change", units)
    put(arrays, "placebo", dims, sizes(size[1])[:3], "mean size of the placebo's change", units)
    more = size[0] - size[1]
    p = sign_flip(more.mean(-2), seed=seed)
    beyond = effects(more)
    put(arrays, "beyond", dims, [*beyond[:3], p, adjusted(p)], "size of the change beyond the placebo's", units)
    if scenes[0].study.task.targets is None:
        harm, how = -drawn, "log-odds of the true class that are lost"
    else:
        truth = np.stack([one.target for one in scenes])
        harm, how = np.abs(base + drawn - truth) - np.abs(base - truth), "what is added to the absolute error"
    for name, value, words in (("shift", drawn, "mean change"), ("harm", harm, how)):
        for own, which in (("", 0), ("placebo_", 1)):
            found = effects(value[:, which].mean(0))
            put(arrays, own + name, dims, found[:3], f"{words}{', placebo' if own else ''}", units)
    each = (*dims, "seed", "query")
    arrays["changed"] = (each, drawn[:, 0].mean(0), "change of the outcome", units)
    arrays["placebo_changed"] = (each, drawn[:, 1].mean(0), "change of the outcome by the placebo", units)
    arrays["outcome"] = (("seed", "query"), base, "outcome without an edit", units)
    return arrays


def _says_changed(data: Any, dims: tuple[str, ...], units: str) -> list[str]:
    sure = (data["beyond_q"] < 0.05) & (data["beyond"] > 0)
    order = np.argsort(-data["beyond"].values, axis=None)[:3]
    words = []
    for flat in order:
        at = {d: data[d].values[i] for d, i in zip(dims, np.unravel_index(flat, data["beyond"].shape))}
        name = ", ".join(f"{d} {v}" for d, v in at.items())
        words.append(
            f"{name}: {ci(data, 'effect', **at)} against {ci(data, 'placebo', **at)} ({tested(float(data['beyond_q'].sel(at)))})"
        )
    harmed = int((data["harm_low"] > 0).sum())
    return [
        f"{int(sure.sum())} of {sure.size} edits change the outcome more than their placebo after correction.",
        f"The three that do most beyond it, in {units}: {'; '.join(words)}.",
        f"{harmed} of {sure.size} edits make the error larger with an interval above zero; of the placebos {int((data['placebo_harm_low'] > 0).sum())}.",
    ]
