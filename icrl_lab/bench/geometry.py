"""What is measured: models of known sizes with random weights, and prompts of random tokens and vectors.

Speed does not depend on what the weights are, so nothing is downloaded. Weights are drawn on the device, in the dtype they
are used in, with the gain that keeps activations and attention scores near one: rounding then shows as in a trained model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import ModelError, StudyError, nearest
from icrl_lab.values import SLOT, Rendered

if TYPE_CHECKING:
    from icrl_lab.models import LLM

SHOTS = 20
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Geometry:
    """Sizes of a model, and the workload it is measured on: `cases` of (prefix, suffix) tokens and two counts of `queries`."""

    sizes: dict[str, Any]
    cases: tuple[tuple[int, int], ...] = ((512, 12), (2048, 12))
    queries: tuple[int, int] = (64, 500)


def _sizes(vocabulary, hidden, inner, layers, heads, groups, context, tied, **more) -> dict[str, Any]:
    return dict(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=groups, max_position_embeddings=context, tie_word_embeddings=tied, **more,
    )  # fmt: skip


GEOMETRIES = {
    "smollm2-135m": Geometry(_sizes(49152, 576, 1536, 30, 9, 3, 8192, True, rope_parameters={"rope_type": "default", "rope_theta": 100000.0})),
    "llama-3.1-8b": Geometry(
        _sizes(128256, 4096, 14336, 32, 32, 8, 131072, False, rope_parameters=LLAMA3_ROPE), cases=((2048, 32),)
    ),
    "tiny": Geometry(_sizes(97, 48, 80, 3, 6, 2, 512, True), cases=((60, 6),), queries=(9, 20)),
}  # fmt: skip


def geometry(name: str) -> Geometry:
    """The geometry of that name; an unknown name is a StudyError."""
    if name not in GEOMETRIES:
        raise StudyError(f"geometry {name!r} is unknown; {nearest(name, GEOMETRIES)}")
    return GEOMETRIES[name]


def make(name: str, device: str, dtype: str, seed: int = 0) -> LLM:
    """A model of that geometry with random weights, proved like any other. No network. Raises StudyError, ModelError."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' was asked for, but torch sees no CUDA device here; use --device cpu")
    config = LlamaConfig(**geometry(name).sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    draw = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.fill_(1.0)
            else:
                weight.normal_(0, weight.shape[1] ** -0.5, generator=draw)
    return _tuned(name, model.requires_grad_(False), None, None)


def cast(llm: LLM, dtype: str) -> LLM:
    """A copy of the model in another dtype, with the threads of the first."""
    import copy

    import torch

    model = copy.deepcopy(llm.model).to(getattr(torch, dtype))
    return _tuned(llm.name, model, llm.tokenizer, llm.threads)


def _tuned(name: str, model: Any, tokenizer: Any, threads: int | None) -> LLM:
    """The model with threads and products as they are when one is loaded."""
    from icrl_lab.models import fastest, wrap

    measured: dict[str, Any] = {}
    if model.device.type == "cpu":
        threads, measured = fastest.measure(model, threads)
        fastest.use(model, measured)
    return wrap(name, model, tokenizer, threads=threads, measured=measured, prove=True)


@dataclass(frozen=True, eq=False)
class Workload:
    """N prompts that share a prefix of `prefix` tokens, and differ in `suffix` tokens, the first of them a vector.

    labels   ids of the tokens whose log-probabilities are read
    columns  where the vectors stand: the shots' in the prefix, then the query's own
    """

    prompts: list[Rendered]
    prefix: int
    suffix: int
    labels: list[int]
    columns: tuple[int, ...]
    shots: list[tuple[int, int]] = field(default_factory=list)


def workload(llm: LLM, prefix: int, suffix: int, queries: int, seed: int = 0, shots: int = SHOTS) -> Workload:
    """A prefix of `shots` stretches of about equal length, each with its vector in front, and `queries` suffixes."""
    rng = np.random.default_rng([seed, prefix, suffix])
    vocabulary = llm.model.get_input_embeddings().weight.shape[0]
    norm = float(np.linalg.norm(llm.embed(np.arange(3, min(vocabulary, 64))), axis=1).mean())

    def vectors(n: int) -> np.ndarray:
        drawn = rng.standard_normal((n, llm.width)).astype(np.float32)
        return drawn * (norm / np.linalg.norm(drawn, axis=1, keepdims=True))

    edges = np.linspace(min(4, prefix - shots), prefix, shots + 1).astype(int)
    head = rng.integers(3, vocabulary, prefix)
    head[edges[:-1]] = SLOT
    own = vectors(shots)
    prompts = []
    for _ in range(queries):
        tail = rng.integers(3, vocabulary, suffix)
        tail[0] = SLOT
        prompts.append(Rendered(np.concatenate([head, tail]), np.concatenate([own, vectors(1)])))
    labels = rng.choice(np.arange(3, vocabulary), 10, replace=False).tolist()
    columns = (*edges[:-1].tolist(), prefix)
    return Workload(prompts, prefix, suffix, labels, columns, list(zip(edges[:-1].tolist(), edges[1:].tolist())))


def orders(work: Workload, count: int, queries: int, seed: int = 0) -> list[Rendered]:
    """`queries` prompts under each of `count` random orders of the shots."""
    rng = np.random.default_rng([seed, 1])
    picks = [rng.permutation(len(work.shots)) for _ in range(count)]
    return [_pick(work, pick, q) for pick in picks for q in range(queries)]


def leave_one_out(work: Workload, queries: int) -> list[Rendered]:
    """`queries` prompts without each of the shots in turn."""
    everyone = np.arange(len(work.shots))
    return [_pick(work, everyone[everyone != left], q) for left in everyone for q in range(queries)]


def _pick(work: Workload, shots: np.ndarray, query: int) -> Rendered:
    """Prompt `query` with these shots, in this order."""
    prompt = work.prompts[query]
    start = work.shots[0][0]
    parts = [prompt.ids[:start], *(prompt.ids[slice(*work.shots[s])] for s in shots), prompt.ids[work.prefix :]]
    return Rendered(np.concatenate(parts), np.concatenate([prompt.vectors[shots], prompt.vectors[len(work.shots) :]]))
