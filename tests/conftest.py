"""Tiny random models of several families, for theorems; the real one where a test is marked `real`."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

worker = os.environ.get("PYTEST_XDIST_WORKER")
if worker:  # a core of its own: two workers with two threads each wait for each other
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def tiny_config(family: str, vocabulary: int = 97):
    import transformers as tf

    common = dict(
        vocab_size=vocabulary, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    match family:
        case "llama":
            return tf.LlamaConfig(**common)
        case "qwen3":
            return tf.Qwen3Config(**common, head_dim=16)
        case "gemma3":  # sliding windows shorter than the prompts, and a scaled embedding table
            return tf.Gemma3TextConfig(**common, head_dim=16, sliding_window=11, query_pre_attn_scalar=16)
        case "gemma2":  # soft caps on attention and logits
            return tf.Gemma2Config(
                **common, head_dim=16, sliding_window=13, query_pre_attn_scalar=16, attn_logit_softcapping=5.0
            )
    raise ValueError(family)


def tiny_llm(
    family: str, *, seed: int = 0, prove: bool = False, device: str = "cpu", dtype: str = "float32", tokenizer=None
):
    import torch
    import transformers as tf

    from icrl_lab.models import wrap

    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(tiny_config(family, len(tokenizer) if tokenizer else 97))
    with torch.no_grad():
        for weight in model.parameters():  # the default initialisation is too small to show a wrong mask
            if weight.ndim > 1:
                weight.normal_(0, 0.25)
    torch.set_rng_state(state)
    return wrap(f"tiny-{family}", model.to(device, getattr(torch, dtype)), tokenizer, prove=prove)


FAMILIES = ("llama", "qwen3", "gemma3", "gemma2")


def places():
    """Each family on the CPU, and where there is a GPU on it as well: then every theorem about `tiny` is repeated there."""
    import torch

    yield from (pytest.param((family, "cpu"), id=family) for family in FAMILIES)
    if torch.cuda.is_available():
        yield from (pytest.param((family, "cuda"), id=f"{family}-cuda", marks=pytest.mark.gpu) for family in FAMILIES)


@pytest.fixture(scope="session", params=places())
def tiny(request):
    """One tiny model of each family."""
    family, device = request.param
    return tiny_llm(family, device=device)


@pytest.fixture(scope="session")
def llama():
    return tiny_llm("llama")


@pytest.fixture(scope="session")
def smollm2():
    """The embedded model, fetched once."""
    from icrl_lab.models import load_llm

    return load_llm("smollm2-135m", dtype="float32", progress=False)
