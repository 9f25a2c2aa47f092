"""Captures: which tokens of a pack somebody asks about, and what was kept of each, laid out for each prompt.

What two prompts share is computed once and kept once; a prompt's trace puts its own rows together. What a capture would
take is known before it runs, and refused where it does not fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from icrl_lab.engine.attention import Pass
from icrl_lab.engine.tree import Branch, Node
from icrl_lab.errors import DataError
from icrl_lab.values import Capture, Trace

if TYPE_CHECKING:
    from icrl_lab.models import LLM

LIMIT = 2e9  # bytes that one call may keep


@dataclass
class _Marked:
    """The asked tokens of one pack: (prompt, position, place among the asked, path in the branch, the branch's start)."""

    rows: list[tuple[int, int, int, list[int], int]] = field(default_factory=list)
    outputs: list[tuple[int, int, int]] = field(default_factory=list)
    stream: list[tuple[int, int, int]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.outputs or self.stream)


class Keeper:
    """What the captures of one run keep."""

    def __init__(self, captures: Sequence[Capture], lengths: Sequence[int], llm: LLM, limit: float = LIMIT) -> None:
        self.captures, self.lengths = list(captures), list(lengths)
        self.blocks, self.heads, self.width, self.head_width = llm.blocks, llm.heads, llm.width, llm.head_width
        first = captures[0]
        if any((c.layers, c.depths, c.norms) != (first.layers, first.depths, first.norms) for c in captures):
            raise DataError("the captures of one run must keep the same layers, depths and norms")
        self.layers = tuple(range(self.blocks)) if first.layers is None else tuple(sorted(set(first.layers)))
        self.depths = tuple(range(self.blocks + 1)) if first.depths is None else tuple(sorted(set(first.depths)))
        self.norms = first.norms
        self.rows = [self._places(i, "rows") for i in range(len(captures))]
        self.hidden = [self._places(i, "hidden") for i in range(len(captures))]
        self.outputs = [self._places(i, "outputs") for i in range(len(captures))]
        self.wanted = [sorted({*r, *h, *o}) for r, h, o in zip(self.rows, self.hidden, self.outputs)]
        self.streams = any(self.hidden)
        self._refuse(limit)
        every = {c for capture in captures for c in capture.columns or ()}
        self.columns = None if any(c.columns is None for c in captures) else sorted(every)
        self.kept_rows: dict[tuple[int, int], np.ndarray] = {}
        self.kept_norms: dict[int, tuple[int, np.ndarray]] = {}
        self.kept_stream: dict[tuple[int, int], np.ndarray] = {}
        self.kept_outputs: dict[tuple[int, int], np.ndarray] = {}
        self._keeping = Lock()

    def _places(self, number: int, what: str) -> list[int]:
        """Positions from the prompt's start."""
        asked, length = getattr(self.captures[number], what), self.lengths[number]
        for place in asked:
            if not -length <= place < length:
                raise DataError(f"capture {what} {asked} must be within prompt {number}, of {length} tokens")
        return [place % length for place in asked]

    def _refuse(self, limit: float) -> None:
        for name, asked, top in (("layers", self.layers, self.blocks), ("depths", self.depths, self.blocks + 1)):
            if any(not 0 <= layer < top for layer in asked):
                raise DataError(f"capture {name} {asked} must be from 0 to {top - 1}")
        for number, (capture, length) in enumerate(zip(self.captures, self.lengths)):
            outside = [column for column in capture.columns or () if not 0 <= column < length]
            if outside:
                raise DataError(f"capture columns of prompt {number} must be from 0 to {length - 1}, not {outside[0]}")
        nowhere = (not self.layers and any([*self.rows, *self.outputs])) or (not self.depths and self.streams)
        if not any(self.wanted) or nowhere:
            raise DataError("the capture asks for nothing: give it rows, hidden or outputs, at some layer or depth")
        sizes = [self.size(i) for i in range(len(self.captures))]
        if sum(sizes) > limit:
            fits = max(1, int(limit / max(sizes)))
            smaller = f"at most {fits} of these prompts at a time" if max(sizes) <= limit else "fewer rows"
            raise DataError(
                f"the capture would keep {sum(sizes) / 1e9:.2f} GB and the limit is {limit / 1e9:.2f}; ask for {smaller}, "
                "or for fewer layers, columns or positions"
            )

    def size(self, number: int) -> int:
        """Bytes that the trace of one prompt takes."""
        columns = self.captures[number].columns
        wide = self.lengths[number] if columns is None else len(columns)
        rows = len(self.rows[number]) + (self.norms and bool(self.rows[number]))
        attention = len(self.layers) * self.heads * wide * rows
        stream = len(self.depths) * len(self.hidden[number]) * self.width
        return 4 * (attention + stream + len(self.layers) * self.heads * len(self.outputs[number]) * self.head_width)

    def inside(self, node: Node) -> list[int]:
        """Positions inside a node's own stretch that some prompt below asks about."""
        return [p for s in node.members for p in self.wanted[s] if node.start <= p < node.stop]

    def mark(self, state: Pass, pack: list[Branch], device: torch.device) -> _Marked:
        """Ask the pass for the pack's asked tokens."""
        found: dict[str, list[tuple[int, int, int, list[int], int]]] = {"rows": [], "outputs": [], "hidden": []}
        start = 0
        for branch in pack:
            for sequence, last in branch.members or branch.ends:
                if not self.wanted[sequence]:
                    continue
                path = branch.chain(last)
                first = int(branch.symbol_at[path[0], 1])
                for what, tokens in found.items():
                    for position in getattr(self, what)[sequence]:
                        if first <= position < first + len(path):
                            step = position - first
                            tokens.append((sequence, position, start + path[step], path[: step + 1], start))
            start += len(branch)
        marked, tensors = _Marked(), {}
        for what, tokens in found.items():
            flat = sorted({token[2] for token in tokens})
            place = {f: i for i, f in enumerate(flat)}
            tensors[what] = torch.tensor(flat, device=device) if flat else None
            if what == "rows":
                marked.rows = [(s, p, place[f], path, begin) for s, p, f, path, begin in tokens]
            else:
                setattr(marked, "stream" if what == "hidden" else what, [(s, p, place[f]) for s, p, f, _, _ in tokens])
        state.also = frozenset(token[2] for tokens in found.values() for token in tokens)
        state.asked, state.outputs, state.stream = tensors["rows"], tensors["outputs"], tensors["hidden"]
        state.layers, state.depths, state.norms = frozenset(self.layers), frozenset(self.depths), self.norms
        if self.columns is not None:
            state.columns = torch.tensor(
                [c for c in self.columns if c < state.prefix], dtype=torch.int64, device=device
            )
        return marked

    def keep(self, state: Pass, marked: _Marked) -> None:
        """Take what a pass has kept, of one pass at a time."""
        with self._keeping:
            if marked.stream:
                stack = _stack(state.kept_stream[d] for d in self.depths)  # depths, tokens, d
                for sequence, position, place in marked.stream:
                    self.kept_stream[sequence, position] = stack[:, place]
            if marked.outputs:
                stack = _stack(state.kept_outputs[layer] for layer in self.layers)
                for sequence, position, place in marked.outputs:
                    self.kept_outputs[sequence, position] = stack[:, :, place]
            if marked.rows:
                self._keep_rows(state, marked)

    def _keep_rows(self, state: Pass, marked: _Marked) -> None:
        """Lay the kept weights out over each prompt's own columns."""
        weights = _stack(state.kept[layer] for layer in self.layers)  # layers, heads, asked, columns
        before = weights.shape[-1] - state.layout.length
        seen = np.arange(state.prefix) if self.columns is None else np.array(self.columns, int)
        lengths: Any = None
        if self.norms:
            lengths = [_stack(state.kept_norms[layer][i] for layer in self.layers) for i in (0, 1)]
        for sequence, position, place, path, start in marked.rows:
            columns = self.captures[sequence].columns
            asked = np.arange(self.lengths[sequence]) if columns is None else np.array(columns, int)
            first, own = asked < state.prefix, (asked >= state.prefix) & (asked < state.prefix + len(path))
            there, here = np.searchsorted(seen, asked[first]), np.array(path)[asked[own] - state.prefix]
            self.kept_rows[sequence, position] = row = np.zeros((*weights.shape[:2], len(asked)), np.float32)
            row[..., first], row[..., own] = weights[:, :, place, there], weights[:, :, place, before + here]
            if self.norms and self.kept_norms.get(sequence, (-1,))[0] < position:
                norms = np.zeros_like(row)
                norms[..., first], norms[..., own] = lengths[0][..., there], lengths[1][..., start + here]
                self.kept_norms[sequence] = (position, norms)

    def trace(self, number: int) -> Trace:
        """What was kept of one prompt."""
        capture, length = self.captures[number], self.lengths[number]
        attention = norms = hidden = outputs = None
        if capture.rows:
            attention = np.stack([self.kept_rows[number, p] for p in self.rows[number]], 2)
            norms = self.kept_norms[number][1] if self.norms else None
        if capture.hidden:
            hidden = np.stack([self.kept_stream[number, p] for p in self.hidden[number]], 1)
        if capture.outputs:
            outputs = np.stack([self.kept_outputs[number, p] for p in self.outputs[number]], 2)
        columns = tuple(range(length)) if capture.columns is None else capture.columns
        return Trace(
            attention,
            self.layers,
            capture.rows,
            columns,
            norms,
            hidden,
            self.depths,
            capture.hidden,
            outputs,
            capture.outputs,
        )


def _stack(of_layers: Iterable[torch.Tensor]) -> np.ndarray:
    """What was kept layer by layer, on the host: fetched when the pass is over, so that a GPU need not wait in each layer."""
    return np.stack([kept.cpu().numpy() for kept in of_layers])
