"""Single rows of attention: weights that are kept, edges that are cut.

The kernel that serves every token returns no weights. For the few rows that somebody asks about, the scores are computed
once more: against the prefix columns that are kept, and against the token's own row. float32, whatever the model's dtype.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from icrl_lab.engine.attention import Pass


def window_of(state: Pass, window: int | None) -> torch.Tensor | None:
    """(tokens, prefix) bool of what a sliding window leaves of the prefix; None where it leaves everything."""
    if window is None or state.layout.last < window:
        return None
    at = state.layout.positions
    return at[:, None] - torch.arange(state.prefix, device=at.device)[None, :] < window


def scores_of(q, k, scale, cap):
    """float32 scores (..., rows, columns), capped where the model caps them."""
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    return scores if cap is None else cap * torch.tanh(scores / cap)


def _scores(
    state: Pass, layer: int, query, key, flat: torch.Tensor, columns: torch.Tensor | None, scale, window, cap
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Scores (heads, rows, columns) of some tokens against the prefix (None: there is none) and against their own rows;
    -inf where a token does not see, or is cut off."""
    layout = state.layout
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
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
    row = layout.unpad.index_select(0, flat) // layout.length
    within = layout.unpad.index_select(0, flat) % layout.length
    k = layout.fold(key).index_select(0, row).float().repeat_interleave(group, 1)  # (rows, heads, length, width)
    own = scores_of(q.transpose(0, 1)[:, :, None], k, scale, cap)[:, :, 0].transpose(0, 1)
    if layout.mask is not None:
        allowed = layout.mask[row, 0, within]
    else:
        allowed = torch.arange(layout.length, device=q.device)[None] <= within[:, None]
    if window is not None:
        at = layout.row_positions[row]
        allowed = allowed & (at.gather(1, within[:, None]) - at < window)
    own = own.masked_fill(~allowed, -math.inf)
    for cut in _active(state, layer):
        for place in (flat == cut.flat).nonzero()[:, 0].tolist():
            chosen = torch.arange(heads, device=q.device) if cut.heads is None else torch.tensor(cut.heads)
            own[chosen[:, None], place, cut.own] = -math.inf
            if before is not None:
                gone = cut.prefix if columns is None else torch.isin(columns, cut.prefix).nonzero()[:, 0]
                before[chosen[:, None], place, gone] = -math.inf
    return before, own


def _active(state: Pass, layer: int) -> list[Any]:
    return [c for c in state.cuts if c.layers is None or layer in c.layers]


def weights(state: Pass, layer: int, query, key, lse, scale, window, cap) -> torch.Tensor:
    """Attention weights of the asked tokens, (heads, asked, prefix columns + row length), from the merged log-sum-exp."""
    assert state.asked is not None
    norm = lse[0].index_select(1, state.asked)[..., None]
    parts = _scores(state, layer, query, key, state.asked, state.columns, scale, window, cap)
    return torch.cat([(part - norm).exp() for part in parts if part is not None], -1).cpu()


def cut(state: Pass, layer: int, query, key, value, out, lse, scale, window, cap):
    """Attention of the tokens that are cut off from something, anew over what they still see; the others stay as they are."""
    active = _active(state, layer)
    if not active:
        return out, lse
    flat = torch.tensor(sorted({c.flat for c in active}), device=query.device)
    heads, group = query.shape[1], query.shape[1] // key.shape[1]
    before, own = _scores(state, layer, query, key, flat, None, scale, window, cap)
    norm = own.logsumexp(-1) if before is None else torch.logaddexp(own.logsumexp(-1), before.logsumexp(-1))
    row = state.layout.unpad.index_select(0, flat) // state.layout.length
    v = (
        state.layout.fold(value).index_select(0, row).float().repeat_interleave(group, 1)
    )  # (rows, heads, length, width)
    new = torch.einsum("hrc,rhcw->hrw", (own - norm[..., None]).exp(), v)
    if before is not None:
        v = state.path.read(layer, state.prefix)[1][0].float()
        share = (before - norm[..., None]).exp().reshape(v.shape[0], -1, before.shape[-1])
        new = new + (share @ v).reshape(heads, len(flat), -1)
    out, lse = out.clone(), lse.clone()
    out[0][:, flat] = new.to(out.dtype)
    lse[0][:, flat] = norm.to(lse.dtype)
    state.applied += len(active)
    return out, lse


def norms(state: Pass, layer: int, module: Any, value) -> tuple[torch.Tensor, torch.Tensor]:
    """Length of what each position's value writes through each head: (heads, prefix columns) and (heads, tokens).

    |W_O^h v| = sqrt(v' G v) with G = W_O^h' W_O^h, as in Kobayashi et al. (2020), without the attention weight.
    """
    weight = module.o_proj.weight.float()  # (d, heads * width)
    width = value.shape[-1]
    parts = weight.reshape(weight.shape[0], -1, width)
    gram = torch.einsum("dhv,dhw->hvw", parts, parts)
    group = gram.shape[0] // value.shape[1]

    def lengths(v: torch.Tensor) -> torch.Tensor:
        v = v.float().repeat_interleave(group, 0)  # (heads, n, width)
        return torch.einsum("hnv,hvw,hnw->hn", v, gram, v).clamp(min=0).sqrt().cpu()

    v = state.path.read(layer, state.prefix)[1][0] if state.prefix else value[0][:, :0]
    v = v if state.columns is None or not state.prefix else v.index_select(1, state.columns)
    return lengths(v), lengths(value[0])
