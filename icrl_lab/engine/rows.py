"""Single rows of attention: weights that are kept, edges that are cut.

The kernel that serves every token returns no weights. For the few rows that somebody asks about, the scores are computed
once more: against the prefix columns that are kept, and against the token's own row. float32, whatever the model's dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from icrl_lab.engine.kernels import scores_of
from icrl_lab.engine.parts import projection

if TYPE_CHECKING:
    from icrl_lab.engine.attention import Pass

SPARSE = 8  # of a pack's tokens one in so many may get a copy of its row for itself


def window_of(state: Pass, window: int | None) -> torch.Tensor | None:
    """(tokens, prefix) bool of what a sliding window leaves of the prefix; None where it leaves everything."""
    if window is None or state.layout.last < window:
        return None
    at = state.layout.positions
    return at[:, None] - torch.arange(state.prefix, device=at.device)[None, :] < window


def _scores(
    state: Pass, layer: int, query, key, flat: torch.Tensor, columns: torch.Tensor | None, scale, window, cap
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Scores (heads, rows, columns) of some tokens against the prefix (None: there is none) and against their own rows;
    -inf where a token does not see, or is cut off."""
    layout = state.layout
    heads = query.shape[1]
    q = query[0].index_select(1, flat).float()  # (heads, rows, width)
    before = None
    if state.prefix:
        k = state.path.read(layer, state.prefix)[0][0]
        k = (k if columns is None else k.index_select(1, columns)).float()
        before = scores_of(q.reshape(k.shape[0], -1, q.shape[-1]), k, scale, cap).reshape(heads, len(flat), -1)
        seen = window_of(state, window)
        if seen is not None:
            seen = seen.index_select(0, flat)
            before = before.masked_fill(~(seen if columns is None else seen.index_select(1, columns)), -math.inf)
    row, within = _where(layout, flat)
    own = _by_row(layout, row, within, q, layout.fold(key), lambda x, k: scores_of(x, k, scale, cap))
    if layout.mask is not None:
        allowed = layout.mask[row, 0, within]
    else:
        allowed = torch.arange(layout.length, device=q.device)[None] <= within[:, None]
    if window is not None:
        at = layout.row_positions[row]
        allowed = allowed & (at.gather(1, within[:, None]) - at < window)
    own = own.masked_fill(~allowed, -math.inf)
    for group in _active(state, layer):
        places = torch.isin(flat, group.flat).nonzero()[:, 0]
        which = torch.searchsorted(group.flat, flat[places])
        chosen = torch.arange(heads, device=q.device) if group.heads is None else group.heads
        index = (chosen[:, None], places[None])
        own[index] = own[index].masked_fill(group.own[which], -math.inf)
        if before is not None:
            gone = group.prefix[which] if columns is None else group.prefix[which][:, columns]
            before[index] = before[index].masked_fill(gone, -math.inf)
    return before, own


def _where(layout, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The row of the folded pack in which each of some tokens stands, and its place there."""
    at = layout.unpad.index_select(0, flat)
    return at // layout.length, at % layout.length


def _by_row(layout, row, within, x, of_rows, product) -> torch.Tensor:
    """product(x, what stands in the token's own row) for x (heads, tokens, n): (heads, tokens, m).

    of_rows  (rows, kv heads, length, width). For few tokens their rows are copied to each; for many, as where every token is cut
             off from something, all tokens of a row share one product
    """
    heads, group = x.shape[0], x.shape[0] // of_rows.shape[1]
    if len(row) * SPARSE <= layout.rows * layout.length:
        each = of_rows.index_select(0, row).float().repeat_interleave(group, 1)  # (tokens, heads, length, width)
        return product(x.transpose(0, 1)[:, :, None], each)[:, :, 0].transpose(0, 1)
    whole = x.new_zeros(layout.rows, layout.length, heads, x.shape[-1])
    whole[row, within] = x.transpose(0, 1)
    whole = whole.transpose(1, 2).reshape(layout.rows, -1, group * layout.length, x.shape[-1])
    out = product(whole, of_rows.float()).reshape(layout.rows, heads, layout.length, -1)
    return out.transpose(1, 2)[row, within].transpose(0, 1)


@dataclass
class Group:
    """Cuts of one pack that hold in the same layers and heads: the tokens `flat` (n,), ascending, do not see the prefix positions
    of `prefix` (n, prefix), nor the places of their own rows in `own` (n, length)."""

    layers: frozenset[int] | None
    heads: torch.Tensor | None
    flat: torch.Tensor
    prefix: torch.Tensor
    own: torch.Tensor


def groups(state: Pass) -> list[Group]:
    """The cuts of a pass as masks, made once for all layers."""
    tables: dict[Any, dict[int, list[Any]]] = {}
    for one in state.cuts:
        tables.setdefault((one.layers, one.heads), {}).setdefault(one.flat, []).append(one)
    device, found = state.layout.pad.device, []
    for (layers, heads), by_flat in tables.items():
        flat = sorted(by_flat)
        prefix, own = np.zeros((len(flat), state.prefix), bool), np.zeros((len(flat), state.layout.length), bool)
        for place, token in enumerate(flat):
            for one in by_flat[token]:
                prefix[place, one.prefix] = True
                own[place, one.own] = True
        masks = (torch.from_numpy(mask).to(device) for mask in (prefix, own))
        some = None if heads is None else torch.tensor(heads, device=device)
        found.append(Group(layers, some, torch.tensor(flat, device=device), *masks))
    return found


def _active(state: Pass, layer: int) -> list[Group]:
    if not state.cuts:
        return []
    if state.groups is None:
        state.groups = groups(state)
    return [g for g in state.groups if g.layers is None or layer in g.layers]


def weights(state: Pass, layer: int, query, key, lse, scale, window, cap) -> torch.Tensor:
    """Attention weights of the asked tokens, (heads, asked, prefix columns + row length), from the merged log-sum-exp."""
    assert state.asked is not None
    norm = lse[0].index_select(1, state.asked)[..., None]
    parts = _scores(state, layer, query, key, state.asked, state.columns, scale, window, cap)
    return torch.cat([(part - norm).exp() for part in parts if part is not None], -1)


def cut(state: Pass, layer: int, query, key, value, out, lse, scale, window, cap):
    """Attention of the tokens that are cut off from something, anew over what they still see; the others stay as they are."""
    active = _active(state, layer)
    if not active:
        return out, lse
    flat = torch.cat([group.flat for group in active]).unique()
    heads = query.shape[1]
    before, own = _scores(state, layer, query, key, flat, None, scale, window, cap)
    norm = own.logsumexp(-1) if before is None else torch.logaddexp(own.logsumexp(-1), before.logsumexp(-1))
    row, within = _where(state.layout, flat)
    share = (own - norm[..., None]).exp()
    new = _by_row(state.layout, row, within, share, state.layout.fold(value), torch.matmul)
    if before is not None:
        v = state.path.read(layer, state.prefix)[1][0].float()
        share = (before - norm[..., None]).exp().reshape(v.shape[0], -1, before.shape[-1])
        new = new + (share @ v).reshape(heads, len(flat), -1)
    out, lse = out.clone(), lse.clone()
    out[0][:, flat] = new.to(out.dtype)
    lse[0][:, flat] = norm.to(lse.dtype)
    state.applied += sum(c.layers is None or layer in c.layers for c in state.cuts)
    return out, lse


def norms(state: Pass, layer: int, module: Any, value) -> tuple[torch.Tensor, torch.Tensor]:
    """Length of what each position's value writes through each head: (heads, prefix columns) and (heads, tokens).

    |W_O^h v| = sqrt(v' G v) with G = W_O^h' W_O^h, as in Kobayashi et al. (2020), without the attention weight.
    """
    weight = projection(module).weight.float()  # (d, heads * width)
    width = value.shape[-1]
    by_head = weight.reshape(weight.shape[0], -1, width)
    gram = torch.einsum("dhv,dhw->hvw", by_head, by_head)
    group = gram.shape[0] // value.shape[1]

    def lengths(v: torch.Tensor) -> torch.Tensor:
        v = v.float().repeat_interleave(group, 0)  # (heads, n, width)
        return torch.einsum("hnv,hvw,hnw->hn", v, gram, v).clamp(min=0).sqrt()

    v = state.path.read(layer, state.prefix)[1][0] if state.prefix else value[0][:, :0]
    v = v if state.columns is None or not state.prefix else v.index_select(1, state.columns)
    return lengths(v), lengths(value[0])
