"""Controls: what a prompt's vectors could do without saying anything about their own item.

Each is a pure function (prompt, vectors, *, seed, tokens) -> (prompt, vectors). The vectors are slots, already in the
model's space, of all items in use: shots and queries. A control changes either the vectors or the prompt, never both,
and the engine and the parser that follow cannot tell it from the real thing.

A draw depends on the seed and on the set of vectors, not on the order of their rows. It does not depend on the prompt
either: the same `vectors` and seed give every prompt of a study the same shots, so that prompts still share a prefix.
What is left of the real signal, per control:

    real             everything
    shuffled         the cloud of vectors, each exactly as it was, at another item
    noise            the cloud's mean, covariance and norms
    shared           one vector: that something stands in the slot
    shared-item      the same, with one drawn item's own vector
    zero             a slot with nothing in it
    dummy            text in place of the slot
    back-translated  what the nearest token of each vector says
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.maps import Tokens
from icrl_lab.values import Prompt, Slot, Text, Vectors

Control = Callable[..., tuple[Prompt, Vectors]]

# ------------------------------------------------------------------------------- what happens to the vectors


def _sorted(vectors: Vectors) -> np.ndarray:
    """Row numbers in the order of the ids, so that a draw does not depend on the order of the rows."""
    return np.argsort(np.array(vectors.ids))


def _several(vectors: Vectors, name: str) -> None:
    if len(vectors) < 2:
        raise DataError(f"the control {name!r} needs the vectors of at least two items, not {len(vectors)}")


def _shuffled(vectors: Vectors, seed: int, tokens: Tokens | None) -> np.ndarray:
    """Every item gets another item's vectors: a derangement, uniform over all derangements."""
    _several(vectors, "shuffled")
    rng, n = np.random.default_rng([seed, 11]), len(vectors)
    while np.any((order := rng.permutation(n)) == np.arange(n)):  # succeeds with probability 1/e a turn
        pass
    rows = _sorted(vectors)
    out = np.empty_like(vectors.values)
    out[rows] = vectors.values[rows[order]]
    return out


def _noise(vectors: Vectors, seed: int, tokens: Tokens | None) -> np.ndarray:
    """A Gaussian draw for each item, with the mean and the full covariance of all slots of an item together.

    The draws get the norms of the real vectors by rank, slot by slot: the longest draw the largest norm. So an item's norm
    is given by the rank of its draw and says nothing of its own, and the set of norms is the real one.
    """
    _several(vectors, "noise")
    rng, n = np.random.default_rng([seed, 12]), len(vectors)
    rows = _sorted(vectors)
    real = vectors.values[rows].reshape(n, -1).astype(np.float64)
    mean = real.mean(0)
    # mixing the n deviations with Gaussian weights has exactly their covariance, and needs no (d, d) matrix
    draw = mean + rng.standard_normal((n, n)) @ (real - mean) / np.sqrt(n)
    draw = draw.reshape(n, vectors.slots, vectors.width)
    norms = np.sort(np.linalg.norm(real.reshape(draw.shape), axis=-1), axis=0)
    lengths = np.linalg.norm(draw, axis=-1)
    ranks = lengths.argsort(0, kind="stable").argsort(0)
    gain = np.divide(np.take_along_axis(norms, ranks, 0), lengths, out=np.zeros_like(lengths), where=lengths > 0)
    out = np.empty_like(vectors.values)
    out[rows] = (draw * gain[..., None]).reshape(vectors.values.shape)
    return out


def _shared_item(vectors: Vectors, seed: int, tokens: Tokens | None) -> np.ndarray:
    """All items get the vectors of one of them, drawn."""
    _several(vectors, "shared-item")
    row = _sorted(vectors)[np.random.default_rng([seed, 13]).integers(len(vectors))]
    return np.broadcast_to(vectors.values[row], vectors.values.shape)


def _shared(vectors: Vectors, seed: int, tokens: Tokens | None) -> np.ndarray:
    """All items get the mean vector, at the mean norm; where the mean is zero (centred vectors), a drawn item's."""
    _several(vectors, "shared")
    values = vectors.values.astype(np.float64)
    mean, size = values.mean(0), np.linalg.norm(values, axis=-1).mean(0)
    length = np.linalg.norm(mean, axis=-1)
    if np.any(length <= 1e-5 * size):  # what float32 leaves of a mean of zero points anywhere
        return _shared_item(vectors, seed, tokens)
    return np.broadcast_to(mean * (size / length)[..., None], values.shape)


def _zero(vectors: Vectors, seed: int, tokens: Tokens | None) -> np.ndarray:
    return np.zeros_like(vectors.values)


def nearest_tokens(values: np.ndarray, tokens: Tokens, chunk: int = 8192) -> np.ndarray:
    """(...,) ids of the tokens with the largest cosine to each row of (..., d); the lower id where two are equal."""
    x = values.reshape(-1, values.shape[-1]).astype(np.float32)
    best, at = np.full(len(x), -np.inf, np.float32), np.zeros(len(x), np.int64)
    for start in range(0, len(tokens.used), chunk):
        ids = tokens.used[start : start + chunk]
        rows = tokens.embeddings[ids]
        score = x @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T  # the norm of x changes no maximum
        top = score.argmax(1)
        value = score[np.arange(len(x)), top]
        better = value > best
        best[better], at[better] = value[better], ids[top[better]]
    return at.reshape(values.shape[:-1])


def _back_translated(vectors: Vectors, seed: int, tokens: Tokens | None) -> np.ndarray:
    """Each vector becomes the embedding of its nearest token, at the token's own norm: what one would get by writing it."""
    if tokens is None or tokens.space != vectors.space:
        have = "no tokens" if tokens is None else f"tokens of {tokens.space!r}"
        raise StudyError(f"the control 'back-translated' needs the tokens of {vectors.space!r}, and has {have}")
    return tokens.embeddings[nearest_tokens(vectors.values, tokens)]


def _dummy(prompt: Prompt, text: str = "?") -> Prompt:
    """Each slot becomes `text`, once for each vector that stood there."""
    return replace(
        prompt,
        parts=tuple(
            Text(" ".join([text] * part.width), "marker", part.shot) if isinstance(part, Slot) else part
            for part in prompt.parts
        ),
    )


# ---------------------------------------------------------------------------------------- the controls

_OF_VECTORS: dict[str, Callable[[Vectors, int, Tokens | None], np.ndarray]] = {
    "real": lambda vectors, seed, tokens: vectors.values,
    "shuffled": _shuffled,
    "noise": _noise,
    "shared": _shared,
    "shared-item": _shared_item,
    "zero": _zero,
    "back-translated": _back_translated,
}


def apply(
    name: str, prompts: Sequence[Prompt], vectors: Vectors, *, seed: int = 0, tokens: Tokens | None = None
) -> tuple[list[Prompt], Vectors]:
    """The control `name` over many prompts that use the same vectors: the vectors are drawn once.

    vectors  (n, d) or (n, slots, d) in the model's space, of every item of the prompts and of no other
    tokens   the model's, for "back-translated"
    For "dummy" no slot is left, and the vectors come back empty. An unknown name is a StudyError.
    """
    if name == "dummy":
        return [_dummy(p) for p in prompts], Vectors(vectors.values[:0], (), vectors.space)
    if name not in _OF_VECTORS:
        raise StudyError(f"control {name!r} is unknown; {nearest(name, CONTROLS)}")
    if name == "real":
        return list(prompts), vectors
    return list(prompts), Vectors(_OF_VECTORS[name](vectors, seed, tokens), vectors.ids, vectors.space)


def join(
    name: str, vectors: Vectors, drawn: Vectors, new: Vectors, *, seeds: Sequence[int], tokens: Tokens | None = None
) -> Vectors:
    """`drawn` (what the control made of `vectors`) with `new` items behind, and nothing in it drawn anew.

    Each new item gets what the control draws for it beside `vectors`, from its own seed of `seeds`: it does not depend on which
    other items are new. What all items share is shared with them.
    """
    if name in ("shared", "shared-item"):
        more = np.broadcast_to(drawn.values[0], new.values.shape)
    elif name in ("noise", "shuffled"):
        rows = []
        for i, seed in enumerate(seeds):
            both = np.concatenate([vectors.values, new.values[i : i + 1]])
            rows.append(_OF_VECTORS[name](Vectors(both, (*vectors.ids, new.ids[i]), vectors.space), seed, tokens)[-1])
        more = np.array(rows).reshape(new.values.shape)
    else:  # of one item at a time
        more = apply(name, (), new, tokens=tokens)[1].values
    return Vectors(np.concatenate([drawn.values, more]), (*drawn.ids, *new.ids), drawn.space)


def _control(name: str) -> Control:
    def control(
        prompt: Prompt, vectors: Vectors, *, seed: int = 0, tokens: Tokens | None = None
    ) -> tuple[Prompt, Vectors]:
        prompts, out = apply(name, [prompt], vectors, seed=seed, tokens=tokens)
        return prompts[0], out

    control.__name__ = control.__qualname__ = name.replace("-", "_")
    control.__doc__ = f"The control {name!r}; see the head of this room."
    return control


CONTROLS: dict[str, Control] = {name: _control(name) for name in [*_OF_VECTORS, "dummy"]}
