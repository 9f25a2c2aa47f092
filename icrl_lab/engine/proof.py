"""What the lab relies on, proved on each model at load: a model that fails is refused with the reason.

Four facts, each measured with random tokens and vectors: injecting a token's own embedding is writing the token; a slot's
vector moves the logits; captured attention rows sum to one; and the engine's way (a shared prefix, packed branches) gives
what a plain forward pass of each prompt gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from icrl_lab.errors import ModelError
from icrl_lab.values import SLOT, Capture, Rendered

if TYPE_CHECKING:
    from icrl_lab.models import LLM

# How far two ways to the same distribution may lie apart, as total variation: the largest change of any event's probability.
# bfloat16 moves a trained model's distribution by 0.03 however it is computed; a wrong mask or position, by about 1.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15, "float16": 0.03}


def plain(llm: LLM, prompt: Rendered) -> np.ndarray:
    """(V,) float32 log-probabilities after one prompt by the model's own forward pass: no cache, no packing, its own attention,
    and where there is no vector, from token ids."""
    ids = torch.from_numpy(np.where(prompt.ids == SLOT, 0, prompt.ids)).to(llm.model.device)
    given = {"input_ids": ids[None]}
    with torch.inference_mode():
        if len(prompt.vectors):
            embeds = llm.model.get_input_embeddings()(ids).clone()
            slots = torch.from_numpy(np.flatnonzero(prompt.ids == SLOT)).to(embeds.device)
            embeds[slots] = torch.tensor(prompt.vectors).to(embeds)
            given = {"inputs_embeds": embeds[None]}
        logits = llm.model(**given, use_cache=False, logits_to_keep=1).logits[0, -1]
    return logits.float().log_softmax(-1).cpu().numpy()


def variation(a: np.ndarray, b: np.ndarray) -> float:
    """Total variation distance of two distributions given as log-probabilities (V,)."""
    return float(0.5 * np.abs(np.exp(a.astype(np.float64)) - np.exp(b.astype(np.float64))).sum())


def prove(llm: LLM) -> dict[str, float]:
    """Measure the four facts; returns their numbers. Raises ModelError with the first that does not hold."""
    from icrl_lab.engine.run import Engine

    tolerance = TOLERANCE[llm.dtype]
    rng = np.random.default_rng(0)
    vocabulary = llm.model.get_input_embeddings().weight.shape[0]
    width = llm.width
    prefix = rng.integers(0, min(vocabulary, 30000), 24)
    tails = [rng.integers(0, min(vocabulary, 30000), n) for n in (3, 7, 5)]
    scale = float(np.linalg.norm(llm.embed(prefix), axis=1).mean())
    vector = rng.standard_normal(width).astype(np.float32)
    vector *= scale / np.linalg.norm(vector)

    def injected(ids: np.ndarray, at: int, row: np.ndarray) -> Rendered:
        ids = ids.copy()
        ids[at] = SLOT
        return Rendered(ids, row[None])

    nothing = np.zeros((0, width), np.float32)
    try:
        text = [Rendered(np.concatenate([prefix, t]), nothing) for t in tails]
        own = injected(text[0].ids, 9, llm.embed(text[0].ids[9:10])[0])
        moved = [injected(p.ids, 9, vector) for p in text]
        reference = [plain(llm, p) for p in (*text, own, *moved)]
        run = Engine(llm, branch=16).run([*text, *moved], capture=Capture(rows=(-1,)))
    except (RuntimeError, TypeError, ValueError, NotImplementedError, KeyError, AttributeError, IndexError) as error:
        raise ModelError(f"{llm.name} cannot be run by the engine: {type(error).__name__}: {error}") from error
    facts = {
        "own embedding": variation(reference[3], reference[0]),
        "slot moves logits": min(variation(a, b) for a, b in zip(reference[4:], reference[:3])),
        "attention row sum": float(
            max(np.abs(t.attention.sum(-1) - 1).max() for t in run.traces if t.attention is not None)
        ),
        "engine against plain": max(variation(a, b) for a, b in zip(run.logprobs, [*reference[:3], *reference[4:]])),
    }
    failures = {
        "own embedding": "injecting a token's own embedding changes the next token's distribution by {:.2g}",
        "attention row sum": "attention rows miss one by {:.2g}",
        "engine against plain": "prefix and packs change the next token's distribution by {:.2g}",
    }
    for fact, sentence in failures.items():
        if not facts[fact] <= tolerance:
            raise ModelError(
                f"{llm.name} is refused: {sentence.format(facts[fact])}, more than {tolerance:g} in {llm.dtype}"
            )
    if not facts["slot moves logits"] > 0:
        raise ModelError(f"{llm.name} is refused: the vector in a slot does not move the next token's distribution")
    return facts
