"""Where the parts of a decoder are: its blocks, its final norm, its unembedding. The names differ little among families."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from icrl_lab.errors import ModelError

NORMS = ("norm", "final_layernorm", "ln_f", "final_layer_norm")


def blocks(model: Any) -> tuple[list[Any], Any]:
    """The blocks of a causal language model, in order, and its final norm. ModelError where they cannot be found."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    norm = next((getattr(decoder, name) for name in NORMS if hasattr(decoder, name)), None)
    if layers is None or norm is None:
        raise ModelError(f"the residual stream of a {type(model).__name__} cannot be reached: its blocks are not found")
    return list(layers), norm


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


def unembed(model: Any, states: torch.Tensor) -> torch.Tensor:
    """(n, V) float32 logits of residual states (n, d): the final norm, the unembedding and the model's own cap."""
    _, norm = blocks(model)
    logits = model.get_output_embeddings()(norm(states)).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)
