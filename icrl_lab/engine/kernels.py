"""softmax(q k' scale) v and its log-sum-exp, by the fastest kernel that gives both. Nothing here knows a model or a pack.

Heads may share keys and values: q is (B, heads, rows, width), k and v are (B, kv heads, keys, width), and heads / kv heads queries in
a row share one. Sums and statistics are float32 in every dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn.functional import pad

from icrl_lab.engine import products

Attended = tuple[torch.Tensor, torch.Tensor]  # (B, heads, rows, width), and the log-sum-exps (B, heads, rows)
WAYS = ("flash", "products")  # of attention to keys that all rows see, in float32 on a CPU: `to_all`

ALIGNED = 16  # float32 numbers
LOG2_E = 1 / math.log(2)
FEW = 40  # rows and keys: with so few, torch's flash kernel for a CPU takes longer to start than to compute
MANY = 2**20  # scores a kv head: with fewer, laying out keys and values takes longer than it saves
SAMPLE = 32  # keys that tell how large the scores of a row are
BELOW = 36.0  # how far under zero the largest of them is moved
LARGEST = 1e-7  # what a row's moved exponentials may add up to: sigmoid(x) is exp(x) up to a factor of 1 - exp(x)
KEYS, SCORES = 2048, 2**20  # computed at a time: 4 MB that the second product finds in the cache


def attend(q, k, v, scale: float, *, cap=None, mask=None, causal=False, sees=True, laid=None) -> Attended:
    """Attention of rows to keys.

    cap       scores s become cap tanh(s / cap)
    mask      bool, (B or 1, 1, rows, keys): what a row sees. `sees`: every row sees something
    causal    a row sees the keys up to its own place; without a mask
    laid      a function that gives k and v as `Laid`; None where the flash kernel is as fast
    """
    cpu, free = q.device.type == "cpu", mask is None and not causal
    few = cpu and not free and q.dtype == torch.float32 and max(q.shape[2], k.shape[2]) <= FEW
    if cap is not None or few:
        return _written_out(q, k, v, scale, cap, mask, causal)
    if _flash_serves(q) and mask is None:
        out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return out[0], out[1]
    if cpu and free:
        whole, q = q, q.reshape(*k.shape[:2], -1, q.shape[3])
        if laid is not None and q.dtype == torch.float32 and q.shape[2] * k.shape[2] >= MANY:
            out, lse = laid()(q, scale)
        else:
            out, lse = _flash_for_cpu(q, k, v, scale)
        return out.reshape(whole.shape), lse.reshape(whole.shape[:3])
    if cpu and (causal or sees):
        group = q.shape[1] // k.shape[1]
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        return _flash_for_cpu(q, k, v, scale, mask, causal)
    return _written_out(q, k, v, scale, None, mask, causal)


def to_all(k: torch.Tensor, v: torch.Tensor, way: str) -> Callable[[torch.Tensor, float], Attended]:
    """(q, scale) -> attention of q (B, kv heads, rows, width) to all of k and v (B, kv heads, keys, width), float32 on a CPU.

    "flash" is torch's kernel, "products" is `Laid`: it gains where oneDNN's products are faster than those inside the kernel.
    """
    return Laid(k, v) if way == "products" else lambda q, scale: _flash_for_cpu(q, k, v, scale)


def scores_of(q, k, scale, cap):
    """float32 scores (..., rows, keys), capped where the model caps them."""
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    return scores if cap is None else cap * torch.tanh(scores / cap)


def _flash_serves(q: torch.Tensor) -> bool:
    """Whether a GPU's flash kernel takes it; it shares keys among heads by itself."""
    return q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def _flash_for_cpu(q, k, v, scale, mask=None, causal=False) -> Attended:
    added = None if mask is None else torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, -math.inf)
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=added, scale=scale
    )


def _written_out(q, k, v, scale, cap, mask, causal) -> Attended:
    """Score by score. A row that sees nothing (a window that lies wholly elsewhere) is zero, its log-sum-exp minus infinity."""
    (batch, heads, rows, width), (kv, keys) = q.shape, k.shape[1:3]
    q = q.reshape(batch, kv, -1, width)
    if q.device.type == "cpu":
        # MKL rounds a matrix that is not aligned in another way, and queries would see where they lie: each starts at a step of 64 bytes
        wide, long = -width % ALIGNED, -keys % ALIGNED
        q = pad(q, (0, wide))
        k, v = pad(k, (0, wide, 0, long)), pad(v, (0, wide, 0, long))
    scores = scores_of(q, k, scale, cap)
    scores[..., keys:] = -math.inf
    if causal:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril()[None, None]
    if mask is not None:
        scores.view(batch, kv, -1, rows, k.shape[2])[..., :keys].masked_fill_(~mask[:, :, None], -math.inf)
    top = scores.amax(-1, keepdim=True)
    # a power of two, and not exp: MKL's takes fifteen times as long where a score is minus infinity
    weights = scores.sub_(top.masked_fill(top == -math.inf, 0.0)).mul_(LOG2_E).exp2_()
    total = weights.sum(-1, keepdim=True)
    out = ((weights.to(v.dtype) @ v) / total.clamp(min=torch.finfo(total.dtype).tiny))[..., :width]
    return out.reshape(batch, heads, rows, width), (total.log_() + top).view(batch, heads, rows)


class Laid:
    """Keys and values, (B, kv heads, keys, width) float32, laid out for oneDNN's products. Called with q (B, kv heads, rows, width).

    Two products a head and no mask; between them a sigmoid that oneDNN applies to the scores while they are in registers. The scores of
    a row are moved far enough under zero for sigmoid(x) to be exp(x), as far as float32 can tell. Some of the keys say how far; whether
    it was enough is seen from the sum of the row, the softmax's denominator. The flash kernel computes the rows for which it was not.
    """

    def __init__(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.k, self.v = k, v
        self.heads = [[_Head(*pair) for pair in zip(*b)] for b in zip(k, v)]

    def __call__(self, q: torch.Tensor, scale: float) -> Attended:
        out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
        for b, heads in enumerate(self.heads):
            for h, head in enumerate(heads):
                head.attend(q[b, h], scale, out[b, h], lse[b, h])
        return out, lse


class _Head:
    def __init__(self, k: torch.Tensor, v: torch.Tensor) -> None:
        self.k, self.v = k, v
        self.sample = products.product(k[:: -(-len(k) // SAMPLE)], "oneDNN")
        self.blocks = []
        for keys, values in zip(k.split(KEYS), v.split(KEYS)):
            ones = keys.new_ones(len(keys), 1)
            rows = max(1, SCORES // len(keys))
            weigh = products.product(torch.cat([keys, ones], 1), "oneDNN", then="sigmoid", rows=rows)
            self.blocks.append((rows, weigh, products.product(values.T, "oneDNN", rows=rows)))

    def attend(self, q: torch.Tensor, scale: float, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Fill in `out` (rows, width) and `lse` (rows,)."""
        q = q * scale
        shift = self.sample(q).amax(1).add_(BELOW)
        moved = torch.cat([q, -shift[:, None]], 1)
        out.zero_()
        lse.zero_()
        for rows, weigh, sum_up in self.blocks:
            for start in range(0, len(q), rows):
                at = slice(start, start + rows)
                weights = weigh(moved[at])
                lse[at] += weights.sum(1)
                out[at] += sum_up(weights)
        wrong = ~(lse < LARGEST)
        out.div_(lse[:, None])
        lse.log_().add_(shift)
        if bool(wrong.any()):
            again = _flash_for_cpu(q[wrong][None, None], self.k[None, None], self.v[None, None], 1.0)
            out[wrong], lse[wrong] = again[0][0, 0], again[1][0, 0]
