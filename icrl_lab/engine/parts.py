"""Where the parts of a decoder are: its blocks, its final norm, its unembedding. The names differ little among families."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from icrl_lab.errors import ModelError

CLOSE = 0.02  # of the largest logit: what half precision may do
_scales: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm")


def blocks(model: Any) -> tuple[list[Any], Any]:
    """The blocks of a causal language model, in order, and its final norm. ModelError where they cannot be found."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    norm = next((getattr(decoder, name) for name in NORMS if hasattr(decoder, name)), None)
    if layers is None or norm is None:
        raise ModelError(f"the residual stream of a {type(model).__name__} cannot be reached: its blocks are not found")
    return list(layers), norm


def attention(block: Any) -> Any:
    """The attention of a block. ModelError where it cannot be found."""
    found = next((getattr(block, name) for name in ("self_attn", "attention", "attn") if hasattr(block, name)), None)
    if found is None:
        raise ModelError(f"the attention of a {type(block).__name__} cannot be reached: it has no part of a known name")
    return found


def projection(module: Any) -> torch.nn.Linear:
    """The layer that writes what an attention's heads have found into the stream. ModelError where there is none of a known name."""
    for name in ("o_proj", "out_proj", "dense"):
        if isinstance(found := getattr(module, name, None), torch.nn.Linear):
            return found
    raise ModelError(f"the heads of a {type(module).__name__} cannot be told apart: its output projection is not found")


@contextmanager
def hooked(model: Any, visit: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """While the model runs, `visit(depth, states)` sees the residual stream (1, tokens, d) at each of its L+1 places."""
    layers, norm = blocks(model)

    def hook(depth: int) -> Callable[..., None]:
        def before(module: Any, args: tuple, kwargs: dict) -> None:
            visit(depth, args[0] if args else kwargs["hidden_states"])

        return before

    with ExitStack() as stack:
        for depth, module in enumerate([*layers, norm]):
            handle = module.register_forward_pre_hook(hook(depth), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def narrowed(model: Any, rows: Callable[[], torch.Tensor | None]) -> Iterator[None]:
    """While the model runs, the last block's MLP computes only the tokens that `rows()` gives (None: all); the others get zeros.

    For a pass of which nothing else is read. A model whose parts are not found, or whose MLP takes more than states, computes all.
    """
    try:
        mlp = getattr(blocks(model)[0][-1], "mlp", None)
    except ModelError:
        mlp = None
    if mlp is None:
        yield
        return
    own, whole = mlp.__dict__.get("forward"), mlp.forward

    def some(states: torch.Tensor, *more: Any, **named: Any) -> Any:
        kept = rows()
        if kept is None or more or named:
            return whole(states, *more, **named)
        out = whole(states.index_select(-2, kept))
        return out.new_zeros(*states.shape[:-1], out.shape[-1]).index_copy_(-2, kept, out)

    mlp.forward = some
    try:
        yield
    finally:
        del mlp.forward
        if own is not None:
            mlp.forward = own


@contextmanager
def reading(model: Any, ids: torch.Tensor | None) -> Iterator[bool]:
    """While the model runs, its unembedding computes the logits of `ids` alone, in their order. False, and all of them, where none
    are given or a logit of this model depends on more than its own row."""
    head = model.get_output_embeddings()
    if ids is None or type(head) is not torch.nn.Linear or not _row_by_row(model):
        yield False
        return
    weight, bias = head.weight[ids], None if head.bias is None else head.bias[ids]
    own = head.__dict__.get("forward")
    head.__dict__["forward"] = lambda states: torch.nn.functional.linear(states, weight, bias)
    try:
        yield True
    finally:
        del head.__dict__["forward"]
        if own is not None:
            head.__dict__["forward"] = own


def _row_by_row(model: Any) -> bool:
    """Whether the logits are a multiple of the unembedding, below a cap."""
    try:
        _scale(model)
    except ModelError:
        return False
    return True


def unembed(model: Any, states: torch.Tensor) -> torch.Tensor:
    """(n, V) float32 logits of residual states (n, d): the final norm, the unembedding, the model's own scale and its cap."""
    _, norm = blocks(model)
    logits = model.get_output_embeddings()(norm(states)).float()
    scale, cap = _scale(model), _cap(model)
    logits = logits if scale == 1.0 else logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _cap(model: Any) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def _scale(model: Any) -> float:
    """What the model multiplies its logits by (Granite, Cohere and others, each by a name of its own), read from a pass of its own.

    ModelError where its logits are no multiple of the unembedding of its last norm.
    """
    if model not in _scales:
        _scales[model] = _measured_scale(model)
    if math.isnan(_scales[model]):
        raise ModelError(
            f"the logits of a {type(model).__name__} are no unembedding of its last norm: no lens can be had"
        )
    return _scales[model]


def _measured_scale(model: Any) -> float:
    """NaN where the logits are no multiple."""
    seen: list[torch.Tensor] = []
    handle = blocks(model)[1].register_forward_hook(lambda module, args, out: seen.append(out))
    ids = torch.linspace(0, model.get_input_embeddings().weight.shape[0] - 1, 8, device=model.device).long()[None]
    try:
        own = model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        handle.remove()
    plain = model.get_output_embeddings()(seen[-1][0]).float()
    if (
        cap := _cap(model)
    ) is not None:  # near its cap a logit, in half precision above all, no longer tells what it was
        free = own.abs() < cap / 2
        own, plain = cap * torch.atanh(own[free] / cap), plain[free]
    if not own.any() and not plain.any():  # logits of nothing but zeros tell no scale, and have none
        return 1.0
    scale = float((own * plain).sum() / plain.square().sum())
    if not float((own - scale * plain).abs().max()) <= CLOSE * float(own.abs().max()):
        return math.nan
    return 1.0 if abs(scale - 1) < CLOSE else scale
