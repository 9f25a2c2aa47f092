"""Pause: is the vector read, or is its slot only a place to pause?

Every cell asks the same queries after the same shots. Between cells changes what stands in the slots (the items' own vectors,
other items', noise, one for all, nothing, the text "?"), whether the item's text stands beside it, and who may look there (`Cut`).
A cell's skill is Pearson's r of answer and target, for classes accuracy; cells are compared in pairs, on the same seeds and queries.

    content   real - shuffled             does it matter which item a vector comes from?
    place     noise - dummy               a vector that says nothing of its item, against text there
              noise - cut                 the same, against slots that no later token sees
    text      real + text - text alone    what the vectors bring to a prompt that has the text, or take from it
              dummy + text - text alone   what the mere frame of the slot does

Where all slots are cut off from every later token in all layers, nothing reads what stands in them, so that real, shuffled and
noise vectors give one and the same answer: there is one such cell, and that it is one is checked in every run. A cut of the
query's slot alone leaves the shots' vectors in sight. Beside each stands a placebo, a cut of as many other tokens; how far a cut
moves an answer, as its absolute difference from the answer without, is compared with how far the placebo moves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from icrl_lab.errors import StudyError
from icrl_lab.probes.arrays import dataset, looked_at
from icrl_lab.probes.asked import checked
from icrl_lab.probes.beside import METHOD, truth, used
from icrl_lab.probes.interventions import cut, decoys
from icrl_lab.probes.scene import Scene, pick, scene
from icrl_lab.probes.verdict import CONTROLS, PLACEBO, PLACEBO_QUERY, QUERY, SLOTS, Cell, Found, judge
from icrl_lab.stats.metrics import Array
from icrl_lab.stats.verdicts import ALPHA
from icrl_lab.values import Reading, Rendered

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study

FRAME = ("template", "marker", "question")  # tokens that are of no item: a placebo takes some of them away


@checked()
def pause(
    study: Study,
    arm: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = None,
    margin: float = 0.1,
    seed: int = 0,
) -> Reading:
    """Whether an arm's vectors are read, or their slots are only places.

    seeds    None: all of the plan; queries, None: all of the plan (power is low with few)
    margin   differences of skill within +-margin count as none: in r, or in accuracy
    seed     of the placebo's draw

    In the reading, over `cell`: `skill` with its interval, `outcome` (cell, seed, query) and for classes `right`; over `comparison`:
    `difference` with p and, corrected, q; over `removal`: `moved`, `placebo` and `extra` (moved less placebo), in what an answer is
    measured in; over `half`: `verdict`. The half with text is there where the task has text. StudyError for an arm without slots.

    How a verdict is reached, for the half without text and the half with it apart. p-values are corrected over all comparisons
    of the half (Holm); those of movements, over all movements. The first rule that fits is taken:

        not tested        fewer than two seeds or eight queries
        read              content has p <= .05 and is above zero
        harmful           content has p <= .05 and is below zero; or real + text does so against text alone; or comparisons of the
                          place have p <= .05, and all that do are below zero
        a place to pause  a comparison of the place has p <= .05 and is above zero, and content's interval is within the margin
        a place at least  the same, and content is undecided
        ignored           the intervals of content and place are all within the margin, and cutting all slots moves answers, or moves
                          them more than its placebo does, by less than the margin times the answers' standard deviation (a
                          fifth of the targets', if that is more), over the whole interval
        seen, not read    they are all within the margin, and yet cutting all slots moves answers more than its placebo (p <= .05)
        no evidence       anything else: the intervals are too wide to say

    Where nothing has an effect, one of "read", "harmful" and "a place ..." comes up in at most 5 % of the halves.
    """
    chosen = pick(study, arm)
    if not chosen.has_slots:
        raise StudyError(
            f"the arm {chosen.label!r} has no slots, so that there is nothing to pause at; choose one with vectors"
        )
    if not 0 < margin < 1:
        raise StudyError(f"margin is {margin}; it is a difference of skill that counts as none, between 0 and 1")
    seeds = tuple(study.plan.seeds if seeds is None else seeds)
    before = (study.engine.computed, study.engine.asked)
    asked, first = _ask_all(study, chosen.label, seeds, queries, seed)
    metric = "accuracy" if study.task.targets is None else "pearson"
    outcome, target = {c: a.outcome for c, a in asked.items()}, truth(first)
    found = judge({c: a.said for c, a in asked.items()}, outcome, target, metric, margin, fixed=_fixed(first))
    arrays, coords = found.arrays(outcome, first.units)
    arrays["target"] = (("query",), target, "what is true", study.task.units)
    if metric == "accuracy":
        right = np.stack([asked[c].said == target for c in found.cells])
        arrays["right"] = (("cell", "seed", "query"), right, "the likeliest class is the true one", "")
    about = {
        **first.about(),
        "control": "all", "with_text": study.task.text is not None, "seeds": list(seeds),
        "n": looked_at(len(seeds), len(first.queries)),
        "interval": METHOD if len(seeds) > 1 else f"{METHOD}; one seed: over queries alone",
        "metric": metric, "margin": margin, "alpha": ALPHA, "verdict": found.verdicts,
        "tokens_of": {"slots": len(_slots(first, 0)), "frame": len(first.parts[0].at(FRAME))}, **used(study.engine, before),
        "says": found.says(first.units), "limits": _limits(study, first, found),
    }  # fmt: skip
    return Reading("pause", dataset(arrays, {**coords, "seed": list(seeds), "query": list(first.ids)}), about)


class Asked(NamedTuple):
    """What the prompts of one cell said, (seeds, queries): the outcome, and the number or class that is predicted."""

    outcome: Array
    said: Array


def _ask_all(
    study: Study, arm: str, seeds: Sequence[int], queries: int | Sequence[int] | None, seed: int
) -> tuple[dict[Cell, Asked], Scene]:
    from tqdm import tqdm

    halves = (False, True) if study.task.text is not None else (False,)
    plan = [
        (s, text, control)
        for s in seeds
        for text in halves
        for control in (*CONTROLS, "dummy", *(["text"] if text else []))
    ]
    rows: dict[Cell, list[Asked]] = {}
    first: Scene | None = None
    for s, text, control in tqdm(plan, unit="cell", desc="pause", disable=None, leave=False):
        label, name = ("text", "real") if control == "text" else (arm, control)
        one = scene(study, label, name, with_text=text, seed=s, queries=queries)
        first = first or one
        if one.queries.tolist() != first.queries.tolist():
            raise AssertionError("cells of one study ask other queries")
        for cell, answer in _ask(one, control, seed).items():
            rows.setdefault(cell, []).append(answer)
    _check(rows)
    assert first is not None
    return {c: Asked(*(np.stack(x) for x in zip(*r))) for c, r in rows.items()}, first


def _ask(one: Scene, control: str, seed: int) -> dict[Cell, Asked]:
    """The cells of one control, in one call: as it is, and with what can be cut. A dummy has no slot that could be."""
    text = one.cell.with_text
    kinds = {Cell(control, text): list(one.prompts)}
    if control in CONTROLS and separable(one):
        kinds[Cell(control, text, QUERY)] = [_without(p, _slots(one, i, True)) for i, p in enumerate(one.prompts)]
        if control in ("real", "noise"):  # noise: that nothing reads a cut slot is checked, not assumed
            kinds[Cell("any" if control == "real" else "check", text, SLOTS)] = [
                _without(p, _slots(one, i)) for i, p in enumerate(one.prompts)
            ]
        if control == "real":
            for cell, mine in ((PLACEBO, False), (PLACEBO_QUERY, True)):
                drawn = [_placebo(one, i, mine, seed) for i in range(len(one.prompts))]
                kinds[Cell(control, text, cell)] = [_without(p, at) for p, at in zip(one.prompts, drawn)]
    of = list(range(len(one.queries))) * len(kinds)
    logp = one.tries.logprobs(one.engine, [p for prompts in kinds.values() for p in prompts], of)
    outcome = one.outcomes(logp, of).reshape(len(kinds), -1)
    task = one.study.task
    said = outcome if task.targets is not None else np.array(task.options)[logp.argmax(1)].reshape(outcome.shape)
    return {cell: Asked(o, s) for cell, o, s in zip(kinds, outcome, said)}


def separable(one: Scene) -> bool:
    """Whether a cut can part the answer from the slots: not where the answer is read at the query's slot itself."""
    return all(_slots(one, i, True)[-1] < len(p) - 1 for i, p in enumerate(one.prompts))


def _slots(one: Scene, number: int, query: bool = False) -> list[int]:
    parts = one.parts[number]
    return parts.at("slot", parts.shown if query else None).tolist()


def _without(prompt: Rendered, columns: Sequence[int]) -> Rendered:
    """The prompt in which no later token sees any of `columns`, in any layer."""
    return cut(prompt, [min(columns) + 1], columns, onwards=True)


def _frame(one: Scene, number: int, query: bool) -> list[int]:
    """Tokens of the frame, of the query or before it; never the last, which answers."""
    parts = one.parts[number]
    mine = parts.shot == parts.shown
    return [p for p in parts.at(FRAME).tolist() if bool(mine[p]) == query and p < len(parts.role) - 1]


def _placebo(one: Scene, number: int, query: bool, seed: int) -> tuple[int, ...]:
    """As many tokens of the frame as there are slots to cut; for the query's slot of its own frame where that has enough.

    Shots and query have draws of their own, so that queries that share their shots lose the same tokens there.
    """
    own, before = _slots(one, number, True), _frame(one, number, False)
    rest = [p for p in _slots(one, number) if p not in own]
    drawn = decoys(rest, before, seed) if rest else ()
    near = _frame(one, number, True)
    also = decoys(own, near if len(near) >= len(own) else [p for p in before if p not in drawn], seed)
    return also if query else (*drawn, *also)


def _check(rows: dict[Cell, list[Asked]]) -> None:
    """Real and noise vectors that nobody sees give one answer, up to rounding; anything else is a broken cut."""
    for cell in [c for c in rows if c.control == "check"]:
        a, b = (np.stack([x.outcome for x in rows[Cell(name, cell.text, SLOTS)]]) for name in ("any", "check"))
        whole = np.stack([x.outcome for x in rows[Cell("real", cell.text)]])
        if np.abs(a - b).max() > 0.05 * max(np.abs(whole - a).max(), 1e-2 * np.abs(a).max()):
            raise RuntimeError(
                f"cut slots are read: real and noise vectors differ by {np.abs(a - b).max():.2g} behind them"
            )
        del rows[cell]


def _fixed(one: Scene) -> bool:
    """Whether all queries see the same shots: then, without text and slots, all prompts of a seed are equal."""
    return bool((one.shots == one.shots[0]).all())


def _limits(study: Study, first: Scene, found: Found) -> list[str]:
    out = [
        "A verdict is on skill in these prompts: it does not see an answer that is shifted or stretched alike for all queries.",
        "A cut is no prompt the model was made for: attention that has lost its tokens goes elsewhere. That is what the placebo is for.",
        'A dummy is not nothing: the token "?" is a place, too.',
        "Between shuffled and real vectors changes which item a vector comes from, in the shots and in the query at once.",
        "'No evidence' is no evidence of nothing; 'ignored' speaks of effects larger than the margin, and of no smaller ones.",
    ]
    if not separable(first):
        out.append("The answer is read at the query's slot itself, from which no cut can part it: cells with cuts are left out, and none can be called ignored.")  # fmt: skip
    elif first.parts[0].at("slot")[0] == 0:
        out.append("The first slot is the prompt's first token, where attention goes that has nowhere to go; cut and placebo both take it away.")  # fmt: skip
    if not any(c.kind == "place" and not c.more.text for c in found.comparisons):
        out.append("Without text all dummy prompts of a seed are equal, so that no place can give skill: there only content is tested, and movement.")  # fmt: skip
    if study.task.text is None:
        out.append("The task has no text, so that the half with text is left out.")
    return out
