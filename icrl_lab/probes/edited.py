"""Edited prompts: at which positions, against which runs, and what an edit does to the outcome.

`places` gives the positions of a group ("query slot", "shot labels") in one prompt; a `Pair` is a clean and a corrupted scene of
one seed; `states` are read before the pass, and `changes` puts edited prompts to the engine, many at once. What edits a prompt is
in `interventions`, what the questions ask in `patching` and `changing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.probes.arrays import looked_at, over
from icrl_lab.probes.scene import Parts, Scene, pick, scene, still
from icrl_lab.stats import Effects, effects
from icrl_lab.stats.metrics import Array
from icrl_lab.values import Capture, Rendered

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study

GROUPS = ("all slots", "query slot", "between", "answer", "shot slots", "shot labels")
PROMPTS, BYTES = 4096, 2.5e8  # edited prompts handed to the engine at a time, and what their edits may take
CROSSED = "95 % intervals: crossed analysis of variance over seeds and queries, t distribution"


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


def groups_of(one: Scene, asked: Sequence[str] | None, default: Sequence[str]) -> tuple[list[str], list[str]]:
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


def scenes_of(study: Study, arm: str | None, control: str, seeds: Any, **options: Any) -> list[Scene]:
    """The scene of each seed; a StudyError for an arm without slots, a DataError for fewer than 3 queries."""
    chosen = pick(study, arm)
    if not chosen.has_slots:
        raise StudyError(f"the arm {chosen.label!r} has no slots, so that no vector can be patched; take another arm")
    found = [scene(study, chosen.label, control, seed=s, **options) for s in seeds]
    if len(found[0].queries) < 3:
        raise DataError(f"an interval over queries needs at least 3, not {len(found[0].queries)}; ask for more queries")
    return found


def seeds_of(study: Study, seeds: Sequence[int] | None) -> tuple[int, ...]:
    """The seeds asked for; None: the plan's first two."""
    return tuple(study.plan.seeds[:2] if seeds is None else seeds)


def depths_of(study: Study, depths: Any) -> list[int]:
    """Depths in order, each once; a StudyError for one that the model has not."""
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


def pairs_of(study: Study, arm: str | None, corrupted: str, seeds: Sequence[int] | None, **options: Any) -> list[Pair]:
    """The pair of each seed, clean and under the control `corrupted`, which keeps the tokens (else a StudyError). A DataError where
    no outcome differs."""
    found = []
    for s in seeds_of(study, seeds):
        (one,), (two,) = (scenes_of(study, arm, control, (s,), **options) for control in ("real", corrupted))
        if any(not np.array_equal(a.ids, b.ids) for a, b in zip(one.prompts, two.prompts)):
            raise StudyError(
                f"the control {corrupted!r} has other tokens; corrupt with 'shuffled', 'noise' or 'shared'"
            )
        found.append(Pair(one, two, one.read(), two.read()))
    if not any(still(p.dirty - p.clean, p.clean).any() for p in found):
        raise DataError(f"corrupted by {corrupted!r}, every outcome is what it was: there is nothing to restore")
    return found


def states(one: Scene, wanted: Sequence[Sequence[int]], layers: Sequence[int] | None, heads: bool) -> list[Array]:
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


# ------------------------------------------------------------------------------------------------ what edits do


def changes(
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
    return still(out - base, base)


def sizes(table: Array) -> Effects:
    """The mean of sizes (..., S, N) with its interval, which ends at zero."""
    e = effects(np.abs(table))
    return e._replace(low=np.maximum(e.low, 0.0))


# ------------------------------------------------------------------------------------------------ what a reading says of its runs


def axes(first: Scene, many: Sequence[Any]) -> dict[str, Any]:
    """The axes that every table has."""
    seeds = [(m.real if isinstance(m, Pair) else m).cell.seed for m in many]
    return {"seed": seeds, "query": list(first.ids)}


def about(
    many: Sequence[Any], kind: str, interval: str, limits: Sequence[str], corrupted: str | None = None
) -> dict[str, Any]:
    """What a reading of scenes, or of pairs, says of itself."""
    first = many[0].real if isinstance(many[0], Pair) else many[0]
    told = {
        **first.about(), "kind": kind, "seeds": axes(first, many)["seed"],
        "n": looked_at(len(many), len(first.queries)), "interval": over(interval, len(many)), "limits": list(limits),
    }  # fmt: skip
    return told if corrupted is None else {**told, "corrupted": corrupted}


def left_out(empty: Sequence[str], gradient: bool) -> list[str]:
    """Limits that name what a reading lacks: groups without tokens, the gradient."""
    out = [f"These prompts have no tokens of the group {name!r}." for name in empty]
    return (
        out
        if gradient
        else [*out, "There is no gradient approximation here: it was not asked for, or labels have several tokens."]
    )
