"""The ways to ask many queries after one prefix, each as a prefix part done once and a part done for some queries.

Every row but ours is written as a user of transformers would write it, with its own attention (sdpa), its own cache and no
needless work: the last row of logits only, no gradients, a cache that is cut back and not copied. What a row gives back is
the log-probabilities of the labels, so that its answers can be held against those of a full forward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.bench.geometry import Workload
from icrl_lab.values import SLOT, Capture

if TYPE_CHECKING:
    from icrl_lab.models import LLM

BATCH = 32  # queries a forward pass in the expanded cache
PROMPT_QUERIES, NEW = 3, 24  # the paper's loop: queries a prompt, and tokens generated for their three answers
ROOM = {"cpu": 3e9, "cuda": 2e10}  # bytes an expanded cache may take


@dataclass(frozen=True)
class Row:
    """One way.

    prefix   (llm, work) -> whatever the queries need of the shared prefix; None where it shares nothing
    queries  (llm, work, state, which) -> (len(which), labels) log-probabilities of those queries, or None (generated text)
    subset   how many queries are measured a round: a function of (work, wanted), `wanted` what the reference asks for
    whole    it is measured on all queries at once
    """

    name: str
    queries: Callable[[LLM, Workload, Any, Sequence[int]], np.ndarray | None]
    prefix: Callable[[LLM, Workload], Any] | None = None
    whole: bool = False


def embed(llm: LLM, work: Workload, query: int) -> Any:
    """(T + S, width) input embeddings of one prompt, vectors in their slots."""
    import torch

    prompt = work.prompts[query]
    device = llm.model.device
    out = llm.model.get_input_embeddings()(torch.from_numpy(np.where(prompt.ids == SLOT, 0, prompt.ids)).to(device))
    at = torch.from_numpy(np.flatnonzero(prompt.ids == SLOT)).to(device)
    return out.index_copy(0, at, torch.tensor(prompt.vectors).to(out))


def read(logits: Any, work: Workload) -> np.ndarray:
    """(batch, 1, V) logits -> (batch, labels) float32 log-probabilities."""
    return logits[:, -1].float().log_softmax(-1)[:, work.labels].cpu().numpy()


def full(llm: LLM, work: Workload, state: Any, which: Sequence[int]) -> np.ndarray:
    """A forward pass of each whole prompt."""
    rows = []
    for q in which:
        out = llm.model(inputs_embeds=embed(llm, work, q)[None], use_cache=False, logits_to_keep=1)
        rows.append(read(out.logits, work))
    return np.concatenate(rows)


def repeated(llm: LLM, work: Workload, state: Any, which: Sequence[int]) -> np.ndarray:
    """Whole prompts, several in a batch: the prefix is computed once for each of them."""
    import torch

    out = llm.model(inputs_embeds=torch.stack([embed(llm, work, q) for q in which]), use_cache=False, logits_to_keep=1)
    return read(out.logits, work)


def after(llm: LLM, cache: Any, embeds: Any) -> Any:
    """Logits (batch, 1, V) after (batch, tokens, width) embeddings that follow a cache, which grows by them."""
    # the argument's name in transformers: `cache` from 5.24 on, and the other before
    name = "cache" if "cache" in inspect.signature(llm.model.forward).parameters else "past_key_values"
    return llm.model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1, **{name: cache}).logits


def prefill(llm: LLM, work: Workload) -> Any:
    """The prefix's cache, by transformers."""
    from transformers import DynamicCache

    cache = DynamicCache(config=llm.model.config)
    after(llm, cache, embed(llm, work, 0)[None, : work.prefix])
    return cache


def one_by_one(llm: LLM, work: Workload, cache: Any, which: Sequence[int]) -> np.ndarray:
    """Each query alone after the cached prefix; the cache is cut back in between."""
    rows = []
    for q in which:
        suffix = embed(llm, work, q)[None, work.prefix :]
        rows.append(read(after(llm, cache, suffix), work))
        cache.crop(-work.suffix)
    return np.concatenate(rows)


def expansion(llm: LLM, work: Workload) -> int:
    """Queries a batch of the expanded cache: 32, or as many as fit."""
    config = llm.model.config.get_text_config()
    a_query = 2 * llm.blocks * config.num_key_value_heads * llm.head_width * llm.model.dtype.itemsize
    return int(max(1, min(BATCH, ROOM[llm.device] // (a_query * (work.prefix + work.suffix)))))


def prefill_expanded(llm: LLM, work: Workload) -> Any:
    """The prefix's cache, copied for every query of a batch."""
    cache = prefill(llm, work)
    cache.batch_repeat_interleave(min(expansion(llm, work), len(work.prompts)))
    return cache


def expanded(llm: LLM, work: Workload, cache: Any, which: Sequence[int]) -> np.ndarray:
    """Batches of queries after an expanded cache; the last batch is filled up with repeats."""
    import torch

    rows, batch = [], cache.layers[0].keys.shape[0]
    for start in range(0, len(which), batch):
        some = list(which[start : start + batch])
        suffix = torch.stack([embed(llm, work, q)[work.prefix :] for q in some])
        suffix = torch.cat([suffix, suffix[:1].expand(batch - len(some), -1, -1)])
        rows.append(read(after(llm, cache, suffix), work)[: len(some)])
        cache.crop(-work.suffix)
    return np.concatenate(rows)


def ours(llm: LLM, work: Workload, state: Any, which: Sequence[int]) -> np.ndarray:
    """The engine, from nothing: it finds the prefix itself."""
    from icrl_lab.engine import Engine

    return Engine(llm).next_token([work.prompts[q] for q in which], work.labels)


def captured(llm: LLM, work: Workload, state: Any, which: Sequence[int]) -> np.ndarray:
    """The engine, and the attention of the answer row to all vectors, in every layer and head."""
    from icrl_lab.engine import Engine

    run = Engine(llm).run([work.prompts[q] for q in which], work.labels, Capture((-1,), columns=work.columns))
    kept = run.traces[0].attention
    assert kept is not None and kept.shape[2:] == (1, len(work.columns))
    return run.logprobs


def ready(llm: LLM, work: Workload) -> Any:
    """An engine that holds the prefix."""
    from icrl_lab.engine import Engine

    engine = Engine(llm)
    engine.next_token(work.prompts[:1], work.labels)
    return engine


def ours_ready(llm: LLM, work: Workload, engine: Any, which: Sequence[int]) -> np.ndarray:
    """The engine, again with the same prefix."""
    return engine.next_token([work.prompts[q] for q in which], work.labels)


def paper(llm: LLM, work: Workload, state: Any, which: Sequence[int]) -> None:
    """The paper's loop: three queries a prompt, the answers generated (greedily, all `NEW` tokens), the prefix each time anew."""
    import torch

    for start in range(0, len(which), PROMPT_QUERIES):
        some = [embed(llm, work, q) for q in which[start : start + PROMPT_QUERIES]]
        prompt = torch.cat([some[0], *(s[work.prefix :] for s in some[1:])])[None]
        llm.model.generate(
            inputs_embeds=prompt, attention_mask=torch.ones(prompt.shape[:2], dtype=torch.int64, device=prompt.device),
            max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0,
        )  # fmt: skip


FULL, OURS = "full forward a prompt", "ours"
ROWS = (
    Row(FULL, full),
    Row("prefix repeated in a batch", repeated),
    Row("cached prefix, one query at a time", one_by_one, prefill),
    Row("expanded cache", expanded, prefill_expanded),
    Row(OURS, ours, whole=True),
    Row("ours, attention captured", captured, whole=True),
    Row("ours, prefix ready", ours_ready, ready, whole=True),
    Row("the paper's way", paper),
)
