"""Slot maps: from an encoder's vectors to vectors a language model can take in place of tokens.

This room owns the fitters and the pure steps they freeze. A fitter sees the pool's vectors and plain arrays of the
model (`Tokens`), never a query, a model or a tokenizer; it is thrown away and what it returns, a `SlotMap`, is steps
and arrays. What a map has seen stands in its recipe: its arguments, its seed and its label budget, which is 0 for every
map that sees no label.

    tokens = maps.Tokens(embeddings, "llm:smollm2-135m")
    slot_map = maps.fit("moments-vocab", pool_vectors, tokens, seed=0, slot_scale=0.5)
    slots = maps.apply(slot_map, vectors)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.maps import closed_form, training_free, transport
from icrl_lab.maps.closed_form import pca_text
from icrl_lab.maps.steps import STEPS, run
from icrl_lab.maps.tokens import ROWS, Tokens, label_rows
from icrl_lab.maps.training_free import hash_vectors
from icrl_lab.values import SlotMap, Step, Vectors

__all__ = [
    "ALIASES",
    "MAPS",
    "NEEDS",
    "STEPS",
    "Tokens",
    "apply",
    "arguments",
    "fit",
    "hash_vectors",
    "label_rows",
    "pca_text",
    "resolve",
    "stack_slots",
]

MAPS: dict[str, Callable[..., training_free.Fitted]] = {
    "identity": training_free.identity,
    "zero-pad": training_free.zero_pad,
    "random-projection": training_free.random_projection,
    "wide-random": training_free.wide_random,
    "random-noise": training_free.random_noise,
    "centre": training_free.centre,
    "whiten": training_free.whiten,
    "moments-text": transport.moments_text,
    "moments-pca": transport.moments_pca,
    "moments-vocab": transport.moments_vocab,
    "gaussian-ot": transport.gaussian_ot,
    "sinkhorn": transport.sinkhorn,
    "vocab-covariance": transport.vocab_covariance,
    "landmarks": transport.landmarks,
    "ridge": closed_form.ridge,
    "soft-label": closed_form.soft_label,
}
ALIASES = {"ot-embed": "moments-text", "ot-pca": "moments-pca"}
NEEDS = {  # what beyond the pool's vectors and the embedding table a map asks for
    "moments-text": "text_ids",
    "moments-pca": "pca_ids",
    "ridge": "labels",
    "soft-label": "labels",
    "random-noise": "hash_vectors",
}
_FIXED = ("pool", "tokens", "seed", "labels")
_SWITCHES = ("standardise", "turned")
_COUNTS, _SIZES = ("width", "depth", "components", "targets", "landmarks"), ("std", "epsilon", "temperature", "alpha")
_WORDS: dict[str, Sequence[Any]] = {
    "activation": training_free.ACTIVATIONS,
    "init": tuple(training_free.INITS),
    "projector": training_free.PROJECTORS,
    "form": transport.FORMS,
    "rows": ROWS,
    "of": transport.TARGETS,
}


def resolve(name: str) -> str:
    """The name in MAPS that `name` means: itself or what it is an alias of."""
    name = ALIASES.get(name, name)
    if name not in MAPS:
        raise StudyError(f"slot map {name!r} is unknown; {nearest(name, [*MAPS, *ALIASES])}")
    return name


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def arguments(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the map `name`, its defaults and `options`; StudyError where one is not its own, or cannot be."""
    known = {k: p.default for k, p in inspect.signature(MAPS[name]).parameters.items() if k not in _FIXED}
    for key in options:
        if key not in known:
            raise StudyError(
                f"slot map {name!r} has no option {key!r}; {nearest(key, known) if known else 'it takes none'}"
            )
    for key, value in options.items():
        if value is None and (known[key] is None or key == "components"):
            continue
        number = _number(value)
        if key in _COUNTS and not (number and isinstance(value, Integral) and int(value) >= 1):
            raise StudyError(f"slot map {name!r}: {key} must be a whole number of at least 1, not {value!r}")
        if key in _SIZES and not (number and 0 < value < math.inf):
            raise StudyError(f"slot map {name!r}: {key} must be a number above 0, not {value!r}")
        if key in _WORDS and value not in _WORDS[key]:
            raise StudyError(f"slot map {name!r}: {key} {value!r} is unknown; {nearest(str(value), _WORDS[key])}")
        if key in _SWITCHES and not isinstance(value, bool):
            raise StudyError(f"slot map {name!r}: {key} must be true or false, not {value!r}")
    return {**known, **options}


def fit(
    name: str,
    pool: Vectors,
    tokens: Tokens,
    *,
    seed: int = 0,
    slot_scale: float | None = None,
    row_normalise: bool = False,
    labels: Vectors | Mapping[str, str] | None = None,
    **options: Any,
) -> SlotMap:
    """Fit the map `name` on the pool and freeze it.

    pool           (n, d_fm), or (n, slots, d_fm): then one map for all slots
    tokens         what of the model it may see; the target space is tokens.space
    slot_scale     the norm of every slot, relative to the mean norm of a token embedding (of the slots of a vector that is cut
                   into several, the root of their mean square); None leaves norms alone
    row_normalise  give each row the mean and the variance that a token embedding has on average, before slot_scale
    labels         labels that may be used: rows in the model's space, or item id -> label as written. Only maps that
                   need labels look at them; how many they saw is the recipe's `label_budget`
    options        the map's own arguments; an unknown one is an error
    """
    name = resolve(name)
    if slot_scale is not None and not (_number(slot_scale) and 0 < slot_scale < math.inf):
        raise StudyError(f"slot_scale must be a positive number, not {slot_scale!r}")
    if not (_number(seed) and isinstance(seed, Integral) and seed >= 0):
        raise StudyError(f"seed must be a whole number of at least 0, not {seed!r}")
    pool = pool.once()  # a vector that stands in several slots is still one vector of the pool
    if not len(pool):
        raise DataError(f"slot map {name!r}: the pool of {pool.space!r} is empty")
    given = arguments(name, options)
    supervised = NEEDS.get(name) == "labels"
    if supervised:
        steps, chosen = MAPS[name](pool, tokens, seed, labels=labels, **given)
    else:
        steps, chosen = MAPS[name](pool, tokens, seed, **given)
    if row_normalise:
        mean, variance = tokens.row_moments
        steps.append(Step("row-normalise", {"mean": np.array([mean]), "variance": np.array([variance])}))
    if slot_scale is not None:
        # the pieces of a vector that is longer than an embedding keep their sizes relative to one another
        cut = {"together": np.array([True])} if name == "zero-pad" and pool.width > tokens.width else {}
        steps.append(Step("norm", {"norm": np.array([slot_scale * tokens.mean_norm]), **cut}))
    recipe = {
        "name": name,
        "args": given,
        "chosen": chosen,
        "seed": int(seed),
        "slot_scale": None if slot_scale is None else float(slot_scale),
        "row_normalise": bool(row_normalise),
        "pool": len(pool),
        "width": pool.width,
        "label_budget": len(labels) if supervised and labels is not None else 0,
    }
    return SlotMap(name, pool.space, tokens.space, tuple(steps), recipe)


def apply(slot_map: SlotMap, vectors: Vectors) -> Vectors:
    """The vectors (n, d_fm) or (n, slots, d_fm) as slots in the model's space: (n, d), or (n, slots, d) where several.

    Vectors of another space than the map was fitted in, or of another width, raise a DataError.
    """
    if vectors.space != slot_map.source:
        raise DataError(
            f"slot map {slot_map.name!r} reads vectors of {slot_map.source!r}, not of {vectors.space!r}; "
            "fit it on the vectors it is to map"
        )
    for step in slot_map.steps:
        if step.op not in STEPS:
            raise DataError(f"slot map {slot_map.name!r} has a step {step.op!r} that this version does not know")
    width = slot_map.recipe.get("width", vectors.width)
    if vectors.width != width:
        raise DataError(
            f"slot map {slot_map.name!r} reads vectors of width {width}, not of {vectors.width} ({vectors.space!r})"
        )
    out = run(slot_map.steps, vectors.values)
    out = out.reshape(len(vectors), -1, out.shape[-1])
    one = out.shape[1] == 1 and vectors.values.ndim == 2
    return Vectors(out[:, 0] if one else out, vectors.ids, slot_map.target)


def stack_slots(kinds: Sequence[Vectors]) -> Vectors:
    """Vectors of the same items in one space, of one or several kinds, as slots behind one another: (n, slots, d).

    Repeating a vector is stacking it with itself. The first one's order of items is kept.
    """
    first = kinds[0]
    for other in kinds[1:]:
        if other.space != first.space:
            raise DataError(f"slots of one item must share a space; these are of {first.space!r} and {other.space!r}")
    parts = [kind.take(first.ids).values.reshape(len(first), -1, first.width) for kind in kinds]
    return Vectors(np.concatenate(parts, axis=1), first.ids, first.space)
