"""The cascade: attention of a pack of branches to one shared prefix and to themselves.

Owns the only attention function the engine runs. The tokens of a pack attend to the shared prefix without a mask, by a
flash kernel that returns the log-sum-exp, and to their own branch under its tree's mask; the two parts are merged by
their log-sum-exps (Hydragen, arXiv 2402.05099). Grouped-query heads are folded into rows, so that no key is copied.

What a layer needs beyond the tensors it is handed (where the prefix is kept, how the pack is laid out, which rows
to keep, what to change) stands in the `Pass` that is current while the model runs. Softmax statistics are float32 in every
dtype. What happens to single rows (kept weights, cut edges) is in `rows`; most passes have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, local
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from icrl_lab.engine import kernels, rows
from icrl_lab.engine.tree import Branch
from icrl_lab.engine.workers import Turn
from icrl_lab.errors import ModelError

NAME = "icrl_cascade"
_current = local()


class PathBuffer:
    """Keys and values of the path from the tree's root to where the engine stands, one growing tensor a layer."""

    def __init__(self) -> None:
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self._laid: dict[int, tuple[int, kernels.Laid]] = {}
        self._laying = Lock()

    def write(self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put (1, kv heads, n, head width) keys and values at positions start..start+n."""
        for store, new in ((self.keys, key), (self.values, value)):
            room = store[layer].shape[2] if layer in store else 0
            if start + new.shape[2] > room:
                wider = new.new_empty(*new.shape[:2], max(start + new.shape[2], 2 * room, 64), new.shape[3])
                if layer in store:
                    wider[:, :, :start] = store[layer][:, :, :start]
                store[layer] = wider
            store[layer][:, :, start : start + new.shape[2]] = new
        with self._laying:
            self._laid.pop(layer, None)

    def read(self, layer: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of positions 0..stop, as views."""
        return self.keys[layer][:, :, :stop], self.values[layer][:, :, :stop]

    def laid(self, layer: int, stop: int) -> kernels.Laid:
        """The same, laid out for oneDNN: once, while they stand, for all passes that read them at the same time."""
        with self._laying:
            if layer not in self._laid or self._laid[layer][0] != stop:
                self._laid[layer] = (stop, kernels.Laid(*self.read(layer, stop)))
            return self._laid[layer][1]


class Layout:
    """How the tokens of a pack, laid end to end, fall into rows of one length: indices to pad and to unpad.

    branches (of lengths n_1..n_B) become (B, longest); `mask` is (B, 1, L, L) bool, or None where causal is right;
    `positions` is (tokens,) and `row_positions` (B, L), int64: where each token stands in its sequence.
    """

    def __init__(self, branches: Sequence[Branch], positions: np.ndarray, device: torch.device) -> None:
        lengths = [len(b) for b in branches]
        self.rows, self.length, self.tokens = len(branches), max(lengths), sum(lengths)
        self.even = len(set(lengths)) == 1
        starts = np.cumsum([0, *lengths[:-1]])
        pad = np.zeros((self.rows, self.length), np.int64)  # a pad reads token 0 of its own row: finite, never seen
        unpad = np.empty(self.tokens, np.int64)
        for r, (start, n) in enumerate(zip(starts, lengths)):
            pad[r] = start
            pad[r, :n] = np.arange(start, start + n)
            unpad[start : start + n] = r * self.length + np.arange(n)
        self.pad, self.unpad = torch.from_numpy(pad.ravel()).to(device), torch.from_numpy(unpad).to(device)
        self.positions = torch.from_numpy(positions).to(device)
        self.row_positions = torch.from_numpy(positions[pad]).to(device)
        self.last = int(positions.max())
        self.mask: torch.Tensor | None = None
        if not all(b.is_chain for b in branches):
            mask = np.tile(np.eye(self.length, dtype=bool), (self.rows, 1, 1))  # a pad sees itself alone
            for r, (b, n) in enumerate(zip(branches, lengths)):
                mask[r, :n, :n] = b.ancestors()
            self.mask = torch.from_numpy(mask[:, None]).to(device)

    def fold(self, x: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, width) -> (rows, heads, length, width)."""
        if not self.even:
            x = x.index_select(2, self.pad)
        return x.reshape(x.shape[1], self.rows, self.length, x.shape[3]).transpose(0, 1)

    def unfold(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, heads, length, ...) -> (1, heads, tokens, ...)."""
        x = x.transpose(0, 1).flatten(1, 2)
        return (x if self.even else x.index_select(1, self.unpad))[None]


class OwnCache:
    """Keys and values of each row of a pack while it is extended token by token: (rows, kv heads, so far, width) a layer."""

    def __init__(self, layout: Layout, lengths: Sequence[int]) -> None:
        self.pairs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        real = torch.arange(layout.length)[None] < torch.tensor(list(lengths))[:, None]
        self.real = real.to(layout.pad.device)  # (rows, so far): pads are never seen
        self.positions = layout.row_positions

    def step(self, layout: Layout) -> None:
        """Make room for one more token a row, at the positions of `layout`."""
        self.real = torch.cat([self.real, torch.ones_like(self.real[:, :1])], 1)
        self.positions = torch.cat([self.positions, layout.row_positions], 1)

    def select(self, rows: list[int]) -> None:
        """Keep these rows alone."""
        index = torch.tensor(rows, device=self.real.device)
        self.real, self.positions = self.real[index], self.positions[index]
        self.pairs = {layer: (k[index], v[index]) for layer, (k, v) in self.pairs.items()}

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if layer in self.pairs:
            k, v = (torch.cat([old, new], 2) for old, new in zip(self.pairs[layer], (k, v)))
        self.pairs[layer] = (k, v)
        return k, v

    def mask(self, length: int) -> torch.Tensor:
        """(rows, 1, length, so far) bool for the last `length` tokens of each row."""
        so_far = self.real.shape[1]
        causal = torch.ones(length, so_far, dtype=torch.bool, device=self.real.device).tril(so_far - length)
        return self.real[:, None, None, :] & causal


@dataclass
class Pass:
    """What the cascade needs to know while one pack runs.

    prefix    length of the shared prefix in `path`
    laid_out  attention to the prefix is computed by products, its keys and values laid out for them
    turn      of this pass among others that run at the same time; None where it runs alone
    commit    write the pack's own keys and values into the path at `prefix` (the pack is then a single chain)
    asked     flat indices of tokens whose attention is kept; `columns`, prefix positions kept of it (None: all)
    kept      per layer (heads, asked, prefix columns + row length), filled as the layers run
    norms     keep the lengths of what values write, too: per layer (heads, prefix columns) and (heads, tokens)
    outputs   flat indices of tokens whose heads' outputs are kept: per layer (heads, outputs, head width)
    stream    flat indices of tokens whose residual stream is kept: per depth (tokens, d)
    also      flat indices of the tokens of which something is kept besides logits
    read      flat indices of the tokens of which anything is read: block `last` need compute no others. None: all
    own       keys and values of each row so far, while text is generated
    cuts      edges that are taken away; head_patches and stream_patches, what is set or added, by layer and by depth
    applied   how many rows of cuts and patches were changed
    """

    path: PathBuffer
    layout: Layout
    prefix: int
    laid_out: bool = False
    turn: Turn | None = None
    commit: bool = False
    asked: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    layers: frozenset[int] | None = None
    kept: dict[int, torch.Tensor] = field(default_factory=dict)
    norms: bool = False
    kept_norms: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    outputs: torch.Tensor | None = None
    kept_outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    stream: torch.Tensor | None = None
    depths: frozenset[int] | None = None
    kept_stream: dict[int, torch.Tensor] = field(default_factory=dict)
    also: frozenset[int] = frozenset()
    read: torch.Tensor | None = None
    last: int | None = None
    own: OwnCache | None = None
    cuts: list[CutRow] = field(default_factory=list)
    groups: list[rows.Group] | None = None  # the same as masks, made when the first layer asks
    head_patches: dict[int, list[RowPatch]] = field(default_factory=dict)
    stream_patches: dict[int, list[RowPatch]] = field(default_factory=dict)
    applied: int = 0
    fired: int = 0


@dataclass(frozen=True)
class CutRow:
    """The token at `flat` does not see these prefix positions, nor these places of its own row."""

    flat: int
    prefix: list[int]
    own: list[int]
    layers: frozenset[int] | None
    heads: tuple[int, ...] | None


@dataclass
class RowPatch:
    """Rows of some tokens (of one head, where `head` is given) are set to values, or get them added: flat index -> value."""

    head: int | None
    add: bool
    rows: dict[int, np.ndarray] = field(default_factory=dict)


@contextmanager
def running(state: Pass) -> Iterator[None]:
    """Make `state` the current pass of this thread."""
    _current.state = state
    try:
        yield
    finally:
        _current.state = None


def cascade(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **options: Any
):
    """The attention function that transformers calls in every layer: (1, heads, tokens, width) in, (1, tokens, heads, width) out."""
    state: Pass = _current.state
    layer = module.layer_idx
    scale = options.get("scaling") or 1 / math.sqrt(query.shape[-1])
    window, cap = options.get("sliding_window"), options.get("softcap")
    if options.get("s_aux") is not None:
        raise NotImplementedError("attention sinks as parameters")
    if window is None and state.layout.last >= (limit := _masked_beyond(module, layer)):
        raise ModelError(
            f"a {type(module).__name__} of block {layer} attends to {limit} tokens at most, which its model says in a mask alone that "
            f"is not read here; take prompts of at most {limit} tokens, or another model"
        )
    if state.turn:
        state.turn.enter(layer)
    if state.commit:
        state.path.write(layer, state.prefix, key, value)
        if state.turn:
            state.turn.leave(layer)
    out, lse = _own(state, layer, query, key, value, scale, window, cap)
    if state.prefix:
        some = state.read if layer == state.last else None
        before = _before(state, layer, query, some, scale, window, cap)
        if some is None:
            out, lse = _merge(out, lse, *before)
        else:
            merged, total = _merge(out.index_select(2, some), lse.index_select(2, some), *before)
            out, lse = out.float().index_copy(2, some, merged), lse.index_copy(2, some, total)
    if state.cuts:
        out, lse = rows.cut(state, layer, query, key, value, out, lse, scale, window, cap)
    for patch in state.head_patches.get(layer, ()):
        _change(out[0].transpose(0, 1), patch, state)
    if state.layers is None or layer in state.layers:
        if state.outputs is not None:
            state.kept_outputs[layer] = out[0].index_select(1, state.outputs).float()
        if state.asked is not None:
            state.kept[layer] = rows.weights(state, layer, query, key, lse, scale, window, cap)
            if state.norms:
                state.kept_norms[layer] = rows.norms(state, layer, module, value)
    state.fired += 1
    return out.transpose(1, 2).to(query.dtype), None


def _masked_beyond(module: Any, layer: int) -> float:
    """Tokens after which a layer's window or chunk begins to matter, by its configuration; infinite where it has none."""
    config = getattr(module, "config", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds and layer < len(kinds) else "sliding_attention"
    name = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}.get(kind)
    return (getattr(config, name, None) if name else None) or math.inf


def read() -> torch.Tensor | None:
    """The tokens of which alone anything is read, in the pass that is current."""
    state: Pass | None = getattr(_current, "state", None)
    return None if state is None else state.read


def residual(depth: int, states: torch.Tensor) -> None:
    """What happens where the residual stream (1, tokens, d) is read: it is changed in place, then kept."""
    state: Pass | None = getattr(_current, "state", None)
    if state is None:
        return
    for patch in state.stream_patches.get(depth, ()):
        _change(states[0], patch, state)
    if state.stream is not None and (state.depths is None or depth in state.depths):
        state.kept_stream[depth] = states[0].index_select(0, state.stream).float()


def _change(rows_of: torch.Tensor, patch: RowPatch, state: Pass) -> None:
    """In place: (tokens, d) of the stream, or (tokens, heads, head width)."""
    rows_of = rows_of if patch.head is None else rows_of[:, patch.head]
    flat = torch.tensor(list(patch.rows), device=rows_of.device)
    values = torch.from_numpy(np.stack(list(patch.rows.values()))).to(rows_of)
    rows_of[flat] = rows_of[flat] + values if patch.add else values
    state.applied += len(flat)


def _own(state, layer, query, key, value, scale, window, cap):
    """Attention of each token to its own branch: out (1, heads, tokens, width), lse (1, heads, tokens)."""
    layout = state.layout
    q, k, v = layout.fold(query), layout.fold(key), layout.fold(value)
    mask, column = layout.mask, layout.row_positions
    if state.own is not None:
        k, v = state.own.extend(layer, k, v)
        mask, column = state.own.mask(q.shape[2]), state.own.positions
    if window is not None and layout.last >= window and k.shape[2] >= window:
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = mask & (layout.row_positions[:, None, :, None] - column[:, None, None, :] < window)
    out, lse = kernels.attend(q, k, v, scale, cap=cap, mask=mask, causal=mask is None)  # a row sees at least itself
    return layout.unfold(out), layout.unfold(lse)


def _before(state, layer, query, some, scale, window, cap):
    """Attention of each token, or of `some` alone, to the prefix: the same two."""
    key, value = state.path.read(layer, state.prefix)
    mask = rows.window_of(state, window)
    if some is not None:
        query, mask = query.index_select(2, some), None if mask is None else mask.index_select(0, some)
    mask = None if mask is None else mask[None, None]
    laid = partial(state.path.laid, layer, state.prefix) if state.laid_out else None
    return kernels.attend(query, key, value, scale, cap=cap, mask=mask, sees=False, laid=laid)


def _merge(out_a, lse_a, out_b, lse_b):
    """Two softmaxes over disjoint keys as one."""
    weight = torch.sigmoid(lse_a - lse_b)[..., None]  # of the first in both; its log-sum-exp is finite
    return torch.lerp(out_b.float(), out_a.float(), weight), torch.logaddexp(lse_a, lse_b)


# no mask function of this name is registered, so transformers makes none (and looks for no packed sequences in the positions,
# which would make a GPU wait in every pass)
AttentionInterface.register(NAME, cascade)
