"""Small transformers whose mechanism is known, because their weights are set by hand: the truth that probes are held to.

Items are unit vectors: a random direction, and one coordinate that all of them share, as an encoder's vectors share a mean. So
the mean of them says nothing of any item, and is as long a vector as any once RMSNorm has seen it.

Prompts are in the layout "arrow", and each part is one token: the slot, " ->", the label's letter, a line's end. The answer is
read at the last " ->". Five blocks of four heads; two heads share keys and values.

The residual stream is cut into subspaces:

    VECTOR    the item's own vector as zero-pad injects it; only slots have something here
    MOVED     copies of vectors at places that are not their own, written by the head PREVIOUS
    LABEL     which letter a token is, one dimension each; only the ten letters have something here
    OUTPUT    the copied letter, written by the head COPY, read by the unembedding and by nothing else
    FLAGS     constant of all tokens; "I am a letter"
    IDENTITY  a random direction for every token of the vocabulary, so that other heads have something to attend to

What each head does:

    PREVIOUS  (block 1, head 2) looks a fixed number of tokens back, which three fast pairs of RoPE make sharp: letters look
              two back, at their shot's slot, every other token one back, which for " ->" is the slot, too. It writes what it
              finds in VECTOR into MOVED. So a label's place knows its shot's vector, and the answer's place the query's.
    COPY      (block 3, head 1) compares MOVED (but for what all share) at the answer's place with MOVED at every letter, in pairs
              of RoPE so slow that places do not matter, takes a sharp softmax, and writes LABEL of where it looked into OUTPUT.
              kind "nearest"  only that: the label of the shot with the nearest vector, wherever it stands
              kind "recency"  one pair of medium speed takes off the same amount for every token of distance: a later
                              shot wins over a somewhat nearer one
              kind "blind"    the distance alone: the label of the last shot, whatever the vectors say
    others    have random queries and keys, and attend to tokens and places in all sorts of ways, but never by a shot's
              vector; their output projections are zero, and so are those of all feed-forward layers
    kind "random"  the same geometry, every weight drawn: no mechanism. Its vectors are WIDE: of a few dimensions, a drawn product
              of queries and keys follows their cosine a little, which would be no mechanism, but no null either (of D, by about 1 / D)

All tokens have the same norm, so that what RMSNorm does is one known number a block.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from icrl_lab.models import LLM, wrap
from icrl_lab.probes.scene import Scene
from icrl_lab.studies import Study
from icrl_lab.values import Task, Vectors
from tests.families import family as tokenizer_of

BLOCKS, HEADS, KEY_HEADS, HEAD_WIDTH, WIDTH = 5, 4, 2, 32, 80
PREVIOUS, COPY = (1, 2), (3, 1)  # (block, head)
FAMILIES = {"llama": "digits", "qwen2": "gpt2"}  # and the tokenizer of each
KINDS = ("nearest", "recency", "blind", "random")

D, WIDE = 8, 64  # length of an item's vector; its last coordinate is the one that all share
VECTOR, MOVED, LABEL, OUTPUT = slice(0, 8), slice(8, 16), slice(16, 26), slice(26, 36)
CONSTANT, LETTER, IDENTITY = 36, 37, slice(38, 80)
NORM = WIDTH**0.5  # of every token, so that the first norm changes nothing
MOVED_NORM, OUTPUT_NORM = 4.0, 4.0  # of what the two heads write
LETTERS = tuple("abcdefghij")

THETA = 1e12
FAST, MEDIUM, SLOW, STILL = (0, 1, 2), 3, (8, 9, 10, 11), 15  # pairs of RoPE and what they are for
FAR = 40.0  # how far below its peak PREVIOUS scores a place that differs in a whole fast pair
SHARPNESS = 40.0  # score of two equal directions
RECENCY = 6.0  # score that a shot of four tokens loses against the next
CONFIDENCE = 8.0  # logit of the copied letter above the others

PLAN = dict(
    arms=["zero-pad"],
    controls=["real", "noise"],
    with_text=False,
    labels="true",
    shots=8,
    seeds=3,
    queries=24,
    layout="arrow",
    label_format="letter",
)


def planted_study(
    kind: str = "nearest", family: str = "llama", *, model_seed: int = 0, data_seed: int = 0, **plan
) -> Study:
    """A study of unit vectors and numbers that are one of their coordinates, on a planted model.

    kind        one of KINDS; family, of FAMILIES
    model_seed  of what is random: identities, the other heads, and everything of the kind "random"
    plan        keys of the lab's own study, over PLAN
    """
    task, vectors = planted_items(WIDE if kind == "random" else D, seed=data_seed)
    return Study(task, vectors, planted_llm(kind, family, model_seed), **{**PLAN, **plan})


def planted_items(width: int = D, n: int = 120, seed: int = 0) -> tuple[Task, Vectors]:
    """n items: random directions beside the shared coordinate, and their first coordinate as the number asked for."""
    x = np.random.default_rng([seed, 5]).standard_normal((n, width - 1))
    x = np.c_[x / np.linalg.norm(x, axis=1, keepdims=True), np.ones(n)] / np.sqrt(2)
    ids = tuple(f"item{i}" for i in range(n))
    text = tuple("abcdefgh"[i % 8] * (1 + i % 3) for i in range(n))
    pool, queries = np.arange(0, n, 2), np.arange(1, n, 2)
    task = Task("planted", ids, tuple(range(n)), text, 3 * x[:, 0], None, "u", "size", "table", pool, queries)
    return task, Vectors(x, ids, f"planted/{width}")


def nearest_shot(one: Scene) -> np.ndarray:
    """(n,) which shot of each query, as it stands in the prompt, has the nearest vector."""
    return similarity(one).argmax(1)


def similarity(one: Scene) -> np.ndarray:
    """(n, k) cosine of each query's vector with that of each shot."""
    x = one.study.vectors.values.astype(np.float64)
    return np.einsum("nd,nkd->nk", x[one.queries], x[one.shots])


# ------------------------------------------------------------------------------------------------ the model


@cache
def planted_llm(kind: str = "nearest", family: str = "llama", seed: int = 0) -> LLM:
    """The model of a kind behind its family's tokenizer."""
    import torch

    if kind not in KINDS or family not in FAMILIES:
        raise ValueError(f"a planted model is one of {KINDS} and of {tuple(FAMILIES)}, not {kind!r} of {family!r}")
    tokenizer = tokenizer_of(FAMILIES[family])
    model = _empty(family, len(tokenizer))
    draw = torch.Generator().manual_seed(1000 * seed + 7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.25, generator=draw)
        if kind != "random":
            _plant(model, kind, tokenizer, draw)
    # the proof at load injects a vector among random tokens, where a planted model has nothing to copy
    return wrap(f"planted-{kind}-{family}-{seed}", model, tokenizer, prove=kind == "random")


def _empty(family: str, vocabulary: int):
    import transformers as tf

    common = dict(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=BLOCKS, num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS, head_dim=HEAD_WIDTH, max_position_embeddings=2048, tie_word_embeddings=False, rms_norm_eps=1e-6,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, rope_parameters={"rope_theta": THETA, "rope_type": "default"},
    )  # fmt: skip
    config = tf.LlamaConfig(**common, attention_bias=True) if family == "llama" else tf.Qwen2Config(**common)
    model = tf.AutoModelForCausalLM.from_config(config)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            value.data.zero_()
    return model


def _one(tokenizer, text: str) -> int:
    (token,) = tokenizer(text, add_special_tokens=False)["input_ids"]
    return token


def _plant(model, kind: str, tokenizer, draw) -> None:
    letters = [_one(tokenizer, f" {c}") for c in LETTERS]
    _embed(model, letters, draw)
    for block in model.model.layers:
        block.mlp.down_proj.weight.zero_()
        block.self_attn.o_proj.weight.zero_()
        for name in ("q_proj", "k_proj", "v_proj"):  # the others look at tokens, never at vectors
            for of_vectors in (VECTOR, MOVED, OUTPUT):
                getattr(block.self_attn, name).weight[:, of_vectors] = 0
    _previous(_Head(model, *PREVIOUS))
    _copy(_Head(model, *COPY), kind)
    unembed = model.lm_head.weight
    unembed.zero_()
    # the final norm divides by what a token and the two heads' writing make up together
    length = (NORM**2 + MOVED_NORM**2 + OUTPUT_NORM**2) ** 0.5
    for i, token in enumerate(letters):
        unembed[token, OUTPUT.start + i] = CONFIDENCE / (OUTPUT_NORM * NORM / length)


def _embed(model, letters: list[int], draw) -> None:
    """Flags of 2, a letter's own dimension of 3, and as much identity as makes the norm the same."""
    table = model.get_input_embeddings().weight
    table.zero_()
    table[:, CONSTANT] = 2.0
    table[letters, LETTER] = 2.0
    for i, token in enumerate(letters):
        table[token, LABEL.start + i] = 3.0
    identity = table.new_empty(len(table), IDENTITY.stop - IDENTITY.start).normal_(generator=draw)
    left = (NORM**2 - (table**2).sum(1)).sqrt()
    table[:, IDENTITY] = identity * (left / identity.norm(dim=1))[:, None]


class _Head:
    """One head's rows and columns of its block's weights, as views; `pair` gives the two rows of a pair of RoPE."""

    def __init__(self, model, block: int, head: int) -> None:
        attention = model.model.layers[block].self_attn
        group = head // (HEADS // KEY_HEADS)
        mine, theirs = (slice(i * HEAD_WIDTH, (i + 1) * HEAD_WIDTH) for i in (head, group))
        self.q, self.q_bias = attention.q_proj.weight[mine], attention.q_proj.bias[mine]
        self.k, self.k_bias = attention.k_proj.weight[theirs], attention.k_proj.bias[theirs]
        self.v = attention.v_proj.weight[theirs]
        self.o = attention.o_proj.weight[:, mine]
        for weight in (self.q, self.k, self.v, self.o):
            weight.zero_()

    @staticmethod
    def pair(i: int) -> list[int]:
        return [i, i + HEAD_WIDTH // 2]


def _speed(pair: int) -> float:
    """Radians a token by which RoPE turns a pair."""
    return THETA ** (-2 * pair / HEAD_WIDTH)


def _turned(radians: float, length: float):
    import torch

    return torch.tensor([length * np.cos(radians), length * np.sin(radians)], dtype=torch.float32)


def _previous(head: _Head) -> None:
    """Queries whose pairs are turned back by so many tokens meet constant keys just there."""
    gain = FAR * HEAD_WIDTH**0.5  # scores are divided by the root of the head's width
    for pair in FAST:
        rows = head.pair(pair)
        head.k_bias[rows] = _turned(0, 1.0)  # slots have no constant of their own
        one, two = (_turned(-back * _speed(pair), gain) for back in (1, 2))
        head.q_bias[rows] = one
        head.q[rows, LETTER] = (two - one) / 2.0
    for i in range(D):  # a slot's norm is that of the stream after RMSNorm, whatever slot_scale is
        head.v[i, VECTOR.start + i] = MOVED_NORM / NORM
        head.o[MOVED.start + i, i] = 1.0


def _copy(head: _Head, kind: str) -> None:
    """Score = SHARPNESS cos(query, shot) - recency, for letters; far below for every other token."""
    shrunk = NORM / (NORM**2 + MOVED_NORM**2) ** 0.5  # what RMSNorm does where a vector was moved to
    root = HEAD_WIDTH**0.5
    sharpness = 0.0 if kind == "blind" else SHARPNESS
    own = 2**0.5 / (shrunk * MOVED_NORM)  # makes a unit of the part of a vector that is not shared
    vector = [row for pair in SLOW for row in head.pair(pair)]
    for i, row in enumerate(vector[: D - 1]):
        head.q[row, MOVED.start + i] = sharpness * root * own
        head.k[row, MOVED.start + i] = own
    flag = 1.0 / (2.0 * shrunk)  # makes a one of a flag
    rows = head.pair(STILL)
    head.q_bias[rows] = _turned(0, 2.5 * SHARPNESS * root)
    head.k[rows, LETTER] = _turned(0, flag)
    if kind in ("recency", "blind"):
        rows, each = head.pair(MEDIUM), RECENCY / np.sin(4 * _speed(MEDIUM))
        head.q_bias[rows] = _turned(np.pi / 2, (4 if kind == "blind" else 1) * each * root)  # -sin(distance * speed)
        head.k[rows, LETTER] = _turned(0, flag)
    for i in range(len(LETTERS)):
        head.v[i, LABEL.start + i] = 1.0 / (3.0 * shrunk)
        head.o[OUTPUT.start + i, i] = OUTPUT_NORM
