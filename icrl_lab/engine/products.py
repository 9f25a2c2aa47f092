"""Matrix products of a frozen model on a CPU: torch's own way, or oneDNN's with the weights laid out for it once.

torch hands a float32 product to MKL, which uses only half the width of some processors (AVX2 on AMD's with AVX-512: 112 GFLOP/s a core
where oneDNN reaches 265), and a bfloat16 product to oneDNN, which then lays out the weights anew at every call. Weights that
never change can be laid out once. Which way is faster is measured, not guessed from the name of a processor.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from icrl_lab.engine.parts import blocks
from icrl_lab.errors import ModelError

WAYS = ("torch", "oneDNN")
ROWS = 256  # tokens that the layout of weights is chosen for; others work, too
SHARE = 0.25  # of the memory that is free, for the second copy of the weights
MEMINFO = Path("/proc/meminfo")


def product(
    weight: torch.Tensor, way: str, then: str = "none", rows: int = ROWS
) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> x W', (..., in) to (..., out), for a weight (out, in) that stays as it is; `then` "sigmoid" of it.

    oneDNN's knows no gradients. It lays the weight out for about `rows` rows, and applies `then` to what it is about to write.
    """
    if way == "torch":
        after = {"none": lambda y: y, "sigmoid": torch.sigmoid}[then]
        return lambda x: after(torch.nn.functional.linear(x, weight))
    laid = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, laid, None, then, [], "")


def possible(dtype: torch.dtype) -> tuple[str, ...]:
    """The ways that this build of torch has for a dtype on a CPU."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return WAYS[:1]
    try:
        product(torch.ones(16, 16, dtype=dtype), "oneDNN")(torch.ones(3, 16, dtype=dtype))
    except (AttributeError, RuntimeError):  # a build without these operators, or a CPU without this dtype
        return WAYS[:1]
    return WAYS


def lay_out(model: Any) -> int:
    """Have the linear layers of the blocks and the unembedding use weights laid out for oneDNN; the number of layers.

    None, and 0, where memory is short. The layers keep their weights: what reads or trains them finds them, at the price of a
    second copy. A layer whose weight was changed, moved or cast, or through which a gradient flows, uses torch's way again.
    """
    try:
        layers = [m for block in blocks(model)[0] for m in block.modules()] + [model.get_output_embeddings()]
    except ModelError:
        return 0
    layers = [
        m
        for m in layers
        if type(m) is torch.nn.Linear and m.weight.device.type == "cpu" and not m.weight.is_inference()
    ]
    if sum(m.weight.nbytes for m in layers) > SHARE * free():
        return 0
    for layer in layers:
        layer.__dict__["forward"] = _Laid(layer)
    return len(layers)


class _Laid:
    """A linear layer's forward pass with its weight laid out."""

    def __init__(self, layer: torch.nn.Linear):
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.state = _state(layer)
        self.laid = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        still = layer.weight is self.weight and layer.bias is self.bias and _state(layer) == self.state
        if (
            not still
            or x.dtype != self.weight.dtype
            or (torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad))
        ):
            return torch.nn.functional.linear(x, layer.weight, layer.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.laid, self.bias, "none", [], "")

    def __deepcopy__(self, memo: dict) -> Callable[[torch.Tensor], torch.Tensor]:
        # a copy is laid out when it is asked for
        return torch.nn.Linear.forward.__get__(copy.deepcopy(self.layer, memo))


def _state(layer: torch.nn.Linear) -> tuple:
    """What changes when a weight or a bias is written to, moved or cast."""
    parts = (layer.weight,) if layer.bias is None else (layer.weight, layer.bias)
    return tuple(part for p in parts for part in (p._version, p.data_ptr(), p.dtype))


def way(model: Any) -> str:
    """How a model's blocks compute their products."""
    return WAYS[any(isinstance(m.__dict__.get("forward"), _Laid) for m in model.modules())]


def copied(model: Any) -> int:
    """Bytes of the weights' second copies that were laid out."""
    return sum(m.weight.nbytes for m in model.modules() if isinstance(m.__dict__.get("forward"), _Laid))


def free() -> float:
    """Bytes of memory that can be had now; infinite where that cannot be told."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", MEMINFO.read_text())
    except OSError:
        return float("inf")
    return 1024.0 * int(found[1]) if found else float("inf")
