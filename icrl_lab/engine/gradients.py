"""The model as a differentiable function: of its input embeddings, or of its residual stream and its heads' outputs.

The cascade gives numbers and no gradients. Here one prompt goes through the model's own forward pass, without a cache, so
that a gradient can be taken; it costs about three full forwards. Nothing is learned: parameters keep no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from icrl_lab.engine import parts
from icrl_lab.errors import DataError
from icrl_lab.values import SLOT, Outcome, Rendered

if TYPE_CHECKING:
    from icrl_lab.models import LLM


def embeddings(llm: LLM, prompt: Rendered) -> torch.Tensor:
    """(T, d) what the model reads: the embeddings of tokens, and the injected vectors at slots."""
    if prompt.edits:
        raise DataError("a prompt with edits has no gradient here; take it without")
    ids = torch.from_numpy(np.where(prompt.ids == SLOT, 0, prompt.ids)).to(llm.model.device)
    with torch.no_grad():
        out = llm.model.get_input_embeddings()(ids).clone()
        if len(prompt.vectors):
            out[torch.from_numpy(np.flatnonzero(prompt.ids == SLOT)).to(out.device)] = torch.tensor(prompt.vectors).to(
                out
            )
    return out


def outcomes(llm: LLM, embeds: torch.Tensor, outcome: Outcome) -> torch.Tensor:
    """(B,) float32 outcomes of input embeddings (B, T, d), differentiable in them."""
    logits = llm.model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[:, -1].float()
    logp = logits[:, torch.tensor(outcome.ids, device=logits.device)].log_softmax(-1)
    if outcome.values is not None:
        return logp.exp() @ torch.tensor(outcome.values, dtype=logp.dtype, device=logp.device)
    mine = logp[:, outcome.target]
    others = [i for i in range(len(outcome.ids)) if i != outcome.target]
    return mine - logp[:, others].logsumexp(-1)


@dataclass(frozen=True, eq=False)
class Gradient:
    """An outcome of one prompt and its gradients, float32.

    value    the outcome
    stream   (L+1, positions, d) gradient of the residual stream; states, what stands there
    outputs  (L, heads, positions, head width) gradient of the heads' outputs; head_states, what they are
    """

    value: float
    stream: np.ndarray
    states: np.ndarray
    outputs: np.ndarray
    head_states: np.ndarray


def gradient(llm: LLM, prompt: Rendered, outcome: Outcome, positions: Sequence[int]) -> Gradient:
    """The gradient of a prompt's outcome at some positions, everywhere along the model's depth."""
    outside = [place for place in positions if not 0 <= place < len(prompt)]
    if outside or not len(positions):
        raise DataError(f"a gradient is taken at positions from 0 to {len(prompt) - 1}, not {outside[:1] or positions}")
    at = torch.tensor(list(positions), device=llm.model.device)
    streams: list[torch.Tensor] = []
    heads: list[torch.Tensor] = []

    def keep(depth: int, states: torch.Tensor) -> None:
        streams.append(states)

    def before(module: Any, args: tuple) -> None:
        heads.append(args[0])

    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(parts.hooked(llm.model, keep))
        for block in parts.blocks(llm.model)[0]:
            handle = parts.projection(parts.attention(block)).register_forward_pre_hook(before)
            stack.callback(handle.remove)
        embeds = embeddings(llm, prompt)[None].requires_grad_(True)
        value = outcomes(llm, embeds, outcome)[0]
        slopes = torch.autograd.grad(
            value, [*streams, *heads]
        )  # and not backward, which would give parameters a gradient

    def rows(tensors: Sequence[torch.Tensor]) -> np.ndarray:
        return torch.stack([t.detach()[0].index_select(0, at).float().cpu() for t in tensors]).numpy()

    def split(x: np.ndarray) -> np.ndarray:
        layers, n, _ = x.shape
        return x.reshape(layers, n, llm.heads, -1).transpose(0, 2, 1, 3)

    return Gradient(
        float(value.detach()),
        rows(slopes[: len(streams)]),
        rows(streams),
        split(rows(slopes[len(streams) :])),
        split(rows(heads)),
    )
