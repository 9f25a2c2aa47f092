"""Edits: what is changed while prompts run, found by prompt and position, and counted.

An edit changes the forward pass at some positions, so two prompts share a position only where their edits up to there are
equal. `symbols` writes that into the prefix tree, and everything else follows: what stands before an edit is
computed once and shared with the prompts that are not edited, what stands behind it is a branch of its own.
An edit that changed nothing raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from icrl_lab.engine.attention import CutRow, Pass, RowPatch
from icrl_lab.engine.tree import Branch, symbol_of
from icrl_lab.errors import DataError
from icrl_lab.values import Cut, Edit, Patch, Rendered, key_of

if TYPE_CHECKING:
    from icrl_lab.models import LLM


class Edits:
    """The edits of the prompts of one run."""

    def __init__(self, prompts: Sequence[Rendered]) -> None:
        self.at: dict[int, dict[int, list[Edit]]] = {}  # prompt -> position -> the edits that touch it
        for number, prompt in enumerate(prompts):
            if prompt.edits:
                found: dict[int, list[Edit]] = {}
                for edit in prompt.edits:
                    for position in _positions(edit, len(prompt)):
                        if edit.touches(position):
                            found.setdefault(position, []).append(edit)
                self.at[number] = found
        self.done: set[tuple[int, int]] = set()  # (symbol, position) of every place where edits were applied
        self.streams = any(isinstance(e, Patch) and e.head is None for p in prompts for e in p.edits)

    def __bool__(self) -> bool:
        return bool(self.at)

    def symbols(self, prompts: Sequence[Rendered], plain: list[np.ndarray]) -> list[np.ndarray]:
        """The symbols of the prefix tree, other ones where a prompt is edited."""
        out = list(plain)
        for number, places in self.at.items():
            own = out[number].copy()
            for position in places:
                own[position] = symbol_of(key_of(prompts[number].edits, position) + own[position].tobytes())
            out[number] = own
        return out

    def prepare(self, state: Pass, pack: list[Branch], symbols: list[np.ndarray]) -> int:
        """Put the edits of a pack's tokens into its pass; returns how many rows will be changed, over all layers."""
        rows, start = 0, 0
        for branch in pack:
            for place, (sequence, position) in enumerate(branch.symbol_at.tolist()):
                for edit in self.at.get(sequence, {}).get(position, ()):
                    rows += self._put(state, edit, branch, place, start, position)
                    self.done.add((int(symbols[sequence][position]), position))
            start += len(branch)
        return rows

    def _put(self, state: Pass, edit: Edit, branch: Branch, place: int, start: int, position: int) -> int:
        if isinstance(edit, Patch):
            table = state.stream_patches if edit.head is None else state.head_patches
            patches, flat = table.setdefault(edit.layer, []), start + place
            last = patches[-1] if patches else None
            # what is changed twice is changed in order, so only neighbours of one kind are changed together
            if last is None or (last.head, last.add) != (edit.head, edit.add) or flat in last.rows:
                last = RowPatch(edit.head, edit.add)
                patches.append(last)
            last.rows[flat] = edit.values[edit.positions.index(position)]
            return 1
        path = branch.chain(place)
        first = position - len(path) + 1
        seen = edit.seen(position)
        own, prefix = [path[c - first] for c in seen if c >= first], [c for c in seen if c < first]
        layers = None if edit.layers is None else frozenset(edit.layers)
        state.cuts.append(CutRow(start + place, prefix, own, layers, edit.heads))
        return self.blocks if layers is None else len(layers)

    def held(self, symbols: np.ndarray, sequence: int, stop: int) -> None:
        """The first `stop` positions of a prompt stand computed already, with their edits."""
        for position in self.at.get(sequence, {}):
            if position < stop:
                self.done.add((int(symbols[position]), position))

    def finish(self, prompts: Sequence[Rendered], symbols: list[np.ndarray]) -> None:
        """Raise where an edit was asked for and did not happen."""
        for number, places in self.at.items():
            for edit in prompts[number].edits:
                mine = [p for p, edits in places.items() if any(e is edit for e in edits)]
                if not mine or any((int(symbols[number][p]), p) not in self.done for p in mine):
                    raise RuntimeError(f"prompt {number}: the edit {_show(edit)} did not fire")

    def check(self, prompts: Sequence[Rendered], llm: LLM) -> None:
        """A DataError for an edit that this model or this prompt cannot have."""
        self.blocks, heads = llm.blocks, llm.heads
        seen: set[int] = set()
        for number, prompt in enumerate(prompts):
            for edit in prompt.edits:
                last = max(*edit.positions, 0) if isinstance(edit, Patch) else max(edit.rows)
                if last >= len(prompt):
                    raise DataError(
                        f"prompt {number} has {len(prompt)} tokens, and {_show(edit)} is at position {last}"
                    )
                if isinstance(edit, Cut) and not any(map(edit.touches, _positions(edit, len(prompt)))):
                    raise DataError(
                        f"prompt {number}, of {len(prompt)} tokens: {_show(edit)}, and it sees none of them"
                    )
                if id(edit) in seen:
                    continue
                seen.add(id(edit))
                layers: tuple[int, ...]
                some: tuple[int, ...]
                if isinstance(edit, Patch):
                    top = self.blocks + (edit.head is None)
                    layers, some = (edit.layer,), () if edit.head is None else (edit.head,)
                    width = llm.width if edit.head is None else llm.head_width
                    if edit.values.shape[1] != width:
                        raise DataError(f"{_show(edit)} has values of width {edit.values.shape[1]}, not {width}")
                else:
                    if edit.layers == () or edit.heads == ():
                        raise DataError(f"{_show(edit)} is made nowhere: layers and heads are None for all, or some")
                    top, layers, some = self.blocks, edit.layers or (), edit.heads or ()
                if any(not 0 <= layer < top for layer in layers) or any(not 0 <= head < heads for head in some):
                    raise DataError(f"{_show(edit)} is not in {llm.name}, of {self.blocks} blocks with {heads} heads")


def _positions(edit: Edit, length: int) -> Sequence[int]:
    if isinstance(edit, Cut):
        return range(edit.rows[0], length) if edit.onwards else edit.rows
    return edit.positions


def _show(edit: Edit) -> str:
    if isinstance(edit, Cut):
        return f"a cut of columns {_few(edit.columns)} from rows {_few(edit.rows)}"
    what = "" if edit.head is None else f" of head {edit.head}"
    return f"a patch{what} in layer {edit.layer} at positions {_few(edit.positions)}"


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", ..." if len(numbers) > 4 else "")
