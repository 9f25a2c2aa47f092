"""Verdicts: from the tables of a few cells to what may be said of a vector and of its place.

Pure functions of predictions (seeds, queries): skill of each cell, paired comparisons with corrected p-values, how far a cut moves
an answer beside its placebo, and one word for each half of the table. The rules stand in the docstring of `pause.pause`; here
they are `verdict`. Nothing is known of models, prompts or studies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from icrl_lab.probes.arrays import Named
from icrl_lab.probes.beside import METRICS, put
from icrl_lab.stats import Effects, adjusted, effects, interval, paired
from icrl_lab.stats.metrics import Array
from icrl_lab.stats.verdicts import ALPHA, MIN_ITEMS, MIN_SEEDS
from icrl_lab.stats.words import estimate, tested

UNTESTED, READ, HARMFUL, PAUSE = "not tested", "read", "harmful", "a place to pause"
PLACE, SEEN, IGNORED, NOTHING = "a place at least", "seen, not read", "ignored", "no evidence"
CLAIMS = (READ, HARMFUL, PAUSE, PLACE)
CONTROLS = ("real", "shuffled", "noise", "shared", "zero")
SLOTS, QUERY, PLACEBO, PLACEBO_QUERY = "slots", "query's slot", "placebo of slots", "placebo of query's slot"
STILL = 1e-3  # answers that differ by less, in standard deviations of the targets, are one: rounding has no skill
LEAST = 0.2  # answers that hardly differ are taken to spread by as much as this, in the same unit (for classes, in log-odds)


class Cell(NamedTuple):
    """One row of the table: what stands in the slots ("any" where nobody sees it, "text" where there are none), and what is cut."""

    control: str
    text: bool = False
    cut: str = ""

    @property
    def name(self) -> str:
        return self.bare("" if not self.text or self.control == "text" else " + text")

    def bare(self, text: str = "") -> str:
        """The name without the half that the cell is of."""
        words = {"any": "any vector", "text": "text alone"}.get(self.control, self.control)
        tail = f", {self.cut if self.cut.startswith('placebo') else self.cut + ' cut'}" if self.cut else ""
        return words + text + tail


class Comparison(NamedTuple):
    """The skill of one cell less that of another; `kind` is content, place or text."""

    kind: str
    more: Cell
    less: Cell

    @property
    def name(self) -> str:
        if self.kind == "text":
            return f"{self.more.name} - {self.less.name}"
        return f"{self.more.bare()} - {self.less.bare()}, {half(self.more.text)}"


class Found(NamedTuple):
    """What the tables of a study say; intervals and p-values in the order of `cells`, `comparisons` and `removals`."""

    cells: list[Cell]
    skill: Effects
    comparisons: list[Comparison]
    difference: Effects
    q: Array
    removals: list[tuple[bool, str]]
    moved: Effects
    placebo: Effects
    extra: Effects
    extra_q: Array
    spread: dict[bool, float]
    verdicts: dict[str, str]
    metric: str
    margin: float

    def of(self, text: bool, kind: str = "") -> list[int]:
        """Which comparisons are of one half, and of one kind."""
        return [i for i, c in enumerate(self.comparisons) if c.more.text == text and kind in ("", c.kind)]

    def arrays(self, outcome: Mapping[Cell, Array], units: str) -> tuple[Named, dict[str, Any]]:
        """The reading's arrays and the axes `cell`, `comparison`, `removal` and `half`; `units` are those of an answer."""
        words = METRICS[self.metric]
        arrays: Named = {}
        put(arrays, "skill", self.skill, ("cell",), words, "", p=False)
        put(arrays, "difference", self.difference, ("comparison",), f"difference of {words}", "", q=self.q)
        coords: dict[str, Any] = {
            "cell": [c.name for c in self.cells], "comparison": [c.name for c in self.comparisons], "half": list(self.verdicts),
            "control": ("cell", [c.control for c in self.cells]), "text": ("cell", [c.text for c in self.cells]),
            "cut": ("cell", [c.cut or "nothing" for c in self.cells]), "kind": ("comparison", [c.kind for c in self.comparisons]),
            "of_text": ("comparison", [c.more.text for c in self.comparisons]),
        }  # fmt: skip
        if self.removals:
            coords["removal"] = [f"{what} cut, {half(text)}" for text, what in self.removals]
            put(arrays, "moved", self.moved, ("removal",), "a cut moves an answer by", units, p=False)
            put(arrays, "placebo", self.placebo, ("removal",), "its placebo moves an answer by", units, p=False)
            more = "a cut moves an answer more than its placebo by"
            put(arrays, "extra", self.extra, ("removal",), more, units, q=self.extra_q)
        spread = np.array([self.spread[text] for text in self.halves])
        arrays["spread"] = (("half",), spread, "standard deviation of the answers to real vectors", units)
        arrays["verdict"] = (("half",), np.array(list(self.verdicts.values())), "verdict", "")
        arrays["outcome"] = (("cell", "seed", "query"), np.stack([outcome[c] for c in self.cells]), "answer", units)
        return arrays, coords

    @property
    def halves(self) -> list[bool]:
        """Without text, with text."""
        return list(self.spread)

    def says(self, units: str) -> list[str]:
        """The verdicts in words, with the numbers that they rest on."""
        out, words = [], METRICS[self.metric]
        for text in self.halves:
            name = half(text).capitalize()
            told = [
                f"{self.comparisons[i].name.removesuffix(f', {half(text)}')} {_told(self.difference, i, '+.2f')} ({tested(float(self.q[i]), 'p')})"
                for i in self.of(text)
            ]
            out.append(f"{name}: {self.verdicts[half(text)]}. Differences of {words}, p corrected: {'; '.join(told)}.")
            if (text, SLOTS) in self.removals:
                i = self.removals.index((text, SLOTS))
                out.append(
                    f"{name}, cutting all slots moves an answer by {_told(self.moved, i)} {units}, cutting as many tokens "
                    f"of the frame by {_told(self.placebo, i)}; the difference: {tested(float(self.extra_q[i]))}."
                )
        contents = [i for i, c in enumerate(self.comparisons) if c.kind == "content"]
        widest = float((self.difference.high - self.difference.low)[contents].max()) / 2
        least = f"below about {widest:.2f}" if np.isfinite(widest) else "of any size"  # as far as the intervals tell
        out.append(
            f"An effect of content {least} could not be told from none here; a difference within "
            f"{self.margin:g} of zero counts as none."
        )
        return out


def judge(
    said: Mapping[Cell, Array], outcome: Mapping[Cell, Array], target: Array, metric: str, margin: float, *, fixed: bool
) -> Found:
    """Skill, comparisons, movements and verdicts from predictions and outcomes (seeds, queries) of cells; a pure function.

    fixed  all queries see the same shots, so that without text neither a dummy nor a cut slot tells one query from another: then
           no place can give skill there, and the comparisons of the place are left out of that half
    """
    cells = list(said)
    kept = {c: _settled(table, target) for c, table in said.items()}
    skill = [interval(kept[c], target, metric) for c in cells]
    comparisons = [c for c in _comparisons(fixed) if c.more in kept and c.less in kept]
    found = [paired(kept[c.more], kept[c.less], target, metric) for c in comparisons]
    shape = next(iter(kept.values())).shape
    tested = shape[0] >= MIN_SEEDS and shape[1] >= MIN_ITEMS
    difference = _effects(found, tested)
    halves = sorted({c.text for c in cells if c.control == "real"})
    q = np.full(len(comparisons), np.nan)
    for text in halves:
        mine = [i for i, c in enumerate(comparisons) if c.more.text == text]
        q[mine] = adjusted(difference.p[mine])
    removals, tables = _movements(outcome, halves)
    moved, placebo, extra = (_movement([t[i] for t in tables], tested) for i in range(3))
    extra_q = adjusted(extra.p) if removals else extra.p
    least = LEAST * (float(np.std(target)) if target.dtype.kind == "f" else 1.0)
    spread = {text: max(float(outcome[Cell("real", text)].std(1).mean()), least) for text in halves}
    out = Found(cells, _effects(skill, tested), comparisons, difference, q, removals, moved, placebo, extra, extra_q, spread, {}, metric, margin)  # fmt: skip
    return out._replace(verdicts={half(text): verdict(out, text) for text in halves})


def _comparisons(fixed: bool) -> list[Comparison]:
    out = []
    for text in (False, True):
        out.append(Comparison("content", Cell("real", text), Cell("shuffled", text)))
        if text or not fixed:
            out += [
                Comparison("place", Cell("noise", text), c) for c in (Cell("dummy", text), Cell("any", text, SLOTS))
            ]
        if text:
            out += [Comparison("text", Cell(c, True), Cell("text", True)) for c in ("real", "dummy")]
    return out


def verdict(found: Found, text: bool) -> str:
    """The word for one half; the rules and their order are told by `pause.pause`."""
    value, low, high = found.difference.estimate, found.difference.low, found.difference.high
    (content,), places = found.of(text, "content"), found.of(text, "place")
    whole = [i for i in found.of(text, "text") if found.comparisons[i].more.control == "real"]
    if not np.isfinite(found.q[content]):
        return UNTESTED
    sure = found.q <= ALPHA
    within = (low >= -found.margin) & (high <= found.margin)
    if sure[content]:
        return READ if value[content] > 0 else HARMFUL
    certain = [i for i in places if sure[i]]
    if any(sure[i] and value[i] < 0 for i in whole) or (certain and all(value[i] < 0 for i in certain)):
        return HARMFUL
    if certain:
        return PAUSE if within[content] else PLACE
    moves = found.removals.index((text, SLOTS)) if (text, SLOTS) in found.removals else None
    if moves is None or not all(within[[content, *places]]):
        return NOTHING
    if min(found.moved.high[moves], found.extra.high[moves]) <= found.margin * found.spread[text]:
        return IGNORED
    return SEEN if found.extra_q[moves] <= ALPHA and found.extra.estimate[moves] > 0 else NOTHING


def _settled(table: Array, target: Array) -> Array:
    """Predictions, with those of a seed that differ by rounding alone made one."""
    if table.dtype.kind != "f":
        return table
    still = np.ptp(table, axis=1, keepdims=True) < STILL * float(np.std(target))
    return np.where(still, table.mean(1, keepdims=True), table)


def _movements(
    outcome: Mapping[Cell, Array], halves: Sequence[bool]
) -> tuple[list[tuple[bool, str]], list[tuple[Array, ...]]]:
    """How far each cut and its placebo move an answer (seeds, queries), and the difference of the two."""
    removals: list[tuple[bool, str]] = []
    tables: list[tuple[Array, ...]] = []
    for text in halves:
        for what, cell, other in (
            (SLOTS, Cell("any", text, SLOTS), PLACEBO),
            (QUERY, Cell("real", text, QUERY), PLACEBO_QUERY),
        ):
            if cell in outcome and Cell("real", text, other) in outcome:
                whole = outcome[Cell("real", text)]
                far, also = (np.abs(whole - outcome[c]) for c in (cell, Cell("real", text, other)))
                removals.append((text, what))
                tables.append((far, also, far - also))
    return removals, tables


def _movement(tables: Sequence[Array], tested: bool) -> Effects:
    if not tables:
        return Effects(*(np.zeros(0) for _ in range(4)))
    found = effects(np.stack(tables))
    return found if tested else found._replace(p=np.full(len(tables), np.nan))


def _effects(found: Sequence[Any], tested: bool) -> Effects:
    made = Effects(*(np.array([getattr(f, n) for f in found], float) for n in ("estimate", "low", "high", "p")))
    return made if tested else made._replace(p=np.full(len(found), np.nan))


def _told(effect: Effects, i: int, form: str = ".2g") -> str:
    value, low, high = (float(v[i]) for v in (effect.estimate, effect.low, effect.high))
    return estimate(value, low, high, form=form, ends=".2g")


def half(text: bool) -> str:
    """How a half of the table is called."""
    return "with text" if text else "without text"
