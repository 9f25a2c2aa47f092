"""One pass of a model over a pack: vectors put in, our attention function, logits of the rows that are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from icrl_lab.engine import attention, parts
from icrl_lab.values import SLOT, Rendered

if TYPE_CHECKING:
    from icrl_lab.models import LLM


@contextmanager
def cascading(llm: LLM, streams: bool = False, ids: torch.Tensor | None = None) -> Iterator[bool]:
    """The model with our attention function (and, with `streams`, hooks where the residual stream is read) and the
    measured number of threads, and as it was afterwards. True: its logits are those of `ids` alone (see `parts.reading`)."""
    model = llm.model
    before, threads = model.config._attn_implementation, torch.get_num_threads()
    try:
        with parts.reading(model, ids) as alone:
            model.set_attn_implementation(attention.NAME)
            if llm.threads:
                torch.set_num_threads(llm.threads)
            with (
                parts.hooked(model, attention.residual) if streams else nullcontext(),
                parts.narrowed(model, attention.read),
            ):
                yield alone
    finally:
        model.set_attn_implementation(before)
        torch.set_num_threads(threads)


def logits(
    llm: LLM,
    prompts: Sequence[Rendered],
    state: attention.Pass,
    where: np.ndarray,
    rows: list[int],
    new: np.ndarray | None = None,
    *,
    narrow: bool = True,
) -> torch.Tensor:
    """(rows, vocabulary) of one pass: of these rows of the pack, in their order.

    where   (tokens, 2) the prompt and the position at which each token is read; `new` gives token ids in their place
    narrow  the last block computes no token that is not read
    """
    model = llm.model
    device = next(model.parameters()).device
    embeds = (
        embed(model, prompts, where) if new is None else model.get_input_embeddings()(torch.from_numpy(new).to(device))
    )
    keep = torch.tensor(rows or [0], device=device)
    if narrow:
        state.read = torch.tensor(sorted({*rows, *state.also}), device=device) if state.also else keep
        state.last = llm.blocks - 1
    with attention.running(state):
        out = model(
            inputs_embeds=embeds[None],
            position_ids=state.layout.positions[None],
            attention_mask=None,
            use_cache=False,
            logits_to_keep=keep,
        )
    if not state.fired:
        raise RuntimeError(f"{llm.name} did not call the engine's attention function")
    return out.logits[0]


def embed(model, prompts: Sequence[Rendered], where: np.ndarray) -> torch.Tensor:
    """(tokens, width) input embeddings: the model's own for tokens, the injected vectors at slots."""
    table = model.get_input_embeddings()
    device = table.weight.device
    cuts = [0, *(np.flatnonzero(np.diff(where[:, 0])) + 1).tolist(), len(where)]
    found = np.concatenate([prompts[where[a, 0]].ids[where[a:b, 1]] for a, b in pairwise(cuts)])
    slots = np.flatnonzero(found < 0)
    embeds = table(torch.from_numpy(np.maximum(found, 0)).to(device))
    if len(slots):
        rows = [prompts[s].vectors[(prompts[s].ids[:p] == SLOT).sum()] for s, p in where[slots].tolist()]
        embeds[torch.from_numpy(slots).to(device)] = torch.from_numpy(np.stack(rows)).to(embeds)
    return embeds


def log_probabilities(found: torch.Tensor, ids: torch.Tensor | None, among: bool = False) -> torch.Tensor:
    """float32, of logits, normalised over all that there are, or among `ids`; a few (`ids`) stay on the device, so that a GPU need
    not wait for the host between packs."""
    found = found.float()
    if among and ids is not None:
        return found.index_select(-1, ids).log_softmax(-1)
    norm = found.logsumexp(-1, keepdim=True)
    return (found - norm).cpu() if ids is None else found.index_select(-1, ids) - norm
