"""Spans: what a row of attention falls on, as parts of a prompt.

Owns the way from a captured row over T columns to a few numbers: the share of each part, and the weight of each shot's vector,
text and label. Every column belongs to one part, except position 0. Models leave there what they have no use for (the attention
sink, Xiao et al. 2023), often most of a row, so its share is told apart and the others are shares of what is left. Per token
they become `lift`: 1 is what attention spread evenly over all visible columns but the sink would give, whatever a span's length.

It knows nothing of seeds, controls or similarity, and holds no row longer than one prompt's capture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.values import Capture

if TYPE_CHECKING:
    from icrl_lab.probes.scene import Scene

Array = np.ndarray

ROWS = ("answer", "slot")  # the last token of the prompt; where the query's own item stands
PARTS = ("vector", "text", "label", "marker", "template", "own vector", "own text", "question")
TARGETS = ("vector", "text", "label")  # the parts of a shot that are looked at shot by shot
WEIGHTINGS = ("weight", "norm")
CHUNK = 3e8  # bytes of rows held at a time


@dataclass(frozen=True, eq=False)
class Spans:
    """What the columns of one prompt belong to.

    part  (T,) index into PARTS; -1 at position 0
    shot  (T,) the shot, 0 to k-1, however often shots are repeated; -1 elsewhere
    rows  position of each asked row
    """

    part: Array
    shot: Array
    rows: tuple[int, ...]
    shots: int

    def tokens(self, mask: Array) -> Array:
        """(rows,) how many columns of a mask (T,) each row sees; never the sink."""
        return np.array([int((mask & (self.part >= 0))[: row + 1].sum()) for row in self.rows])

    @property
    def extent(self) -> Array:
        """(rows, parts) share of each part among the columns that a row sees, the sink left out."""
        every = np.maximum(self.tokens(self.part >= 0), 1)
        return np.stack([self.tokens(self.part == p) / every for p in range(len(PARTS))], 1)

    @property
    def members(self) -> Array:
        """(targets, k, T) bool: the columns of each target of each shot, the sink left out."""
        what = np.array([PARTS.index(t) for t in TARGETS])
        return (self.part == what[:, None, None]) & (self.shot == np.arange(self.shots)[None, :, None])


def stands_in(one: Scene) -> str:
    """The role that an item has in a scene's prompts: "slot", the dummy's "marker", or "text" where there is no slot."""
    if one.cell.arm.has_slots:
        return "marker" if one.cell.control == "dummy" else "slot"
    return "text"


def spans(one: Scene, number: int, rows: Sequence[str] = ROWS) -> Spans:
    """What the columns of a scene's prompt belong to. DataError where the query has no place of its own."""
    parts, item = one.parts[number], stands_in(one)
    mine = parts.shot == parts.shown
    names = np.full(len(parts.role), "template", "U10")
    names[(parts.role == "question") | (mine & (parts.role == "template"))] = "question"
    for role in ("label", "marker", "text"):
        names[parts.role == role] = role
    names[mine & (parts.role == "text")] = "own text"
    names[parts.role == item] = "vector"
    names[mine & (parts.role == item)] = "own vector"
    index = {name: i for i, name in enumerate(PARTS)}
    part = np.array([index[str(n)] for n in names])
    part[0] = -1
    k = one.shots.shape[1]
    of_shot = (parts.shot >= 0) & (parts.shot < parts.shown)
    own = parts.at(item, parts.shown)
    if not len(own):
        raise DataError(f"the query {one.ids[number]!r} has neither a slot nor a text that could be looked from")
    place = {"answer": len(parts.role) - 1, "slot": int(own[-1])}
    return Spans(part, np.where(of_shot, parts.shot % k, -1), tuple(place[row] for row in rows), k)


@dataclass(frozen=True, eq=False)
class Look:
    """What the rows of a scene's n prompts fall on, float32.

    sink    (n, rows, layers, heads) share of position 0
    share   (n, rows, parts, layers, heads) of what is left; they sum to one
    extent  (n, rows, parts) share of the visible tokens but the sink; share / extent is the lift of a part
    shots   (n, rows, targets, k, layers, heads) lift of each shot's target; NaN where it has no token but the sink
    """

    sink: Array
    share: Array
    extent: Array
    shots: Array

    @property
    def lift(self) -> Array:
        """(n, rows, parts, layers, heads) share a token over that of even attention; NaN for a part without tokens."""
        wide = self.extent[..., None, None]
        return np.divide(self.share, wide, out=np.full_like(self.share, np.nan), where=wide > 0)


def reduced(weights: Array, found: Spans) -> tuple[Array, Array, Array]:
    """Rows of non-negative weights (layers, heads, rows, T) as sink, share and shots of one prompt, in the axes of `Look`.

    Rows need not sum to one. A row that has nothing but the sink has shares of zero.
    """
    x = np.asarray(weights, np.float64)
    total = x.sum(-1)
    left = x[..., 1:].sum(-1)
    flat = np.stack([found.part == p for p in range(len(PARTS))]).astype(float)  # parts, T
    per_left = np.divide(1.0, left, out=np.zeros_like(left), where=left > 0)[..., None]
    share = (x @ flat.T) * per_left
    members = found.members
    sums = (x @ members.reshape(-1, x.shape[-1]).T.astype(float)) * per_left
    count = np.stack([found.tokens(m) for m in members.reshape(-1, members.shape[-1])], 1)  # rows, targets k
    even = count / np.maximum(found.tokens(found.part >= 0), 1)[:, None]
    lifts = np.divide(sums, even, out=np.full_like(sums, np.nan), where=np.broadcast_to(even > 0, sums.shape))
    sink = np.divide(x[..., 0], total, out=np.zeros_like(total), where=total > 0)
    shots = lifts.reshape(*lifts.shape[:3], *members.shape[:2]).transpose(2, 3, 4, 0, 1)
    return sink.transpose(2, 0, 1), share.transpose(2, 3, 0, 1), shots


def captured(
    one: Scene,
    rows: Sequence[str] = ROWS,
    weighting: str = "weight",
    numbers: Sequence[int] | None = None,
    whole: bool = False,
) -> Iterator[tuple[Spans, Array]]:
    """Each prompt's spans and its rows of weights (layers, heads, rows, T), a few prompts at a time.

    weighting  "weight": attention; "norm": attention times the length of what each column's value writes (Kobayashi et al. 2020)
    numbers    which prompts; None: all
    whole      every row of the prompt instead of the asked ones
    The rows of a chunk of prompts take at most the engine's limit, and at most CHUNK.
    """
    if weighting not in WEIGHTINGS:
        raise StudyError(f"weighting {weighting!r} is unknown; {nearest(weighting, WEIGHTINGS)}")
    for row in rows:
        if row not in ROWS:
            raise StudyError(f"row {row!r} is unknown; {nearest(row, ROWS)}")
    engine, norms = one.engine, weighting == "norm"
    todo = list(range(len(one.prompts)) if numbers is None else numbers)
    longest = max(len(one.prompts[i]) for i in todo)
    each = 4 * one.study.llm.blocks * one.study.llm.heads * longest * ((longest if whole else len(rows)) + norms)
    step = max(1, int(min(engine.limit, CHUNK) // each))
    for start in range(0, len(todo), step):
        some = todo[start : start + step]
        found = [spans(one, i, rows) for i in some]
        asked = [tuple(range(len(one.prompts[i]))) if whole else f.rows for i, f in zip(some, found)]
        run = engine.run([one.prompts[i] for i in some], [0], capture=[Capture(a, norms=norms) for a in asked])
        for own, trace in zip(found, run.traces):
            assert trace.attention is not None
            yield own, trace.attention * trace.norms[:, :, None] if norms else trace.attention  # type: ignore[index]


def look(one: Scene, rows: Sequence[str] = ROWS, weighting: str = "weight") -> Look:
    """What the asked rows of every prompt of a scene fall on; see `captured`."""
    kept = [(*reduced(weights, found), found.extent) for found, weights in captured(one, rows, weighting)]
    sink, share, shots, extent = (np.stack(x).astype(np.float32) for x in zip(*kept))
    return Look(sink, share, extent, shots)
