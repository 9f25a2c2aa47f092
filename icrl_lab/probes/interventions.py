"""Interventions: a prompt, and the same prompt with one thing changed.

Pure functions Rendered -> Rendered, each a question put to the model: other vectors in some slots, another state somewhere on
the way, edges that are not seen; and for each its placebo, which changes as much and means nothing. Nothing runs here, and
nothing is known of studies: positions count the prompt's tokens, and a slot is a position that holds a vector.

What chance decides is drawn from the seed, the place, and what the prompt holds up to there (tokens and items): prompts that share
their beginning get the same draw in it, so that the engine computes it once, and a query's draw does not depend on which other
queries stand beside it.

    put, swap, mean, zero, noise, other     other vectors at some slots
    view, moved                             the same at any depth: edit the states as if they were the vectors
    patch, cut                              a state put in, edges taken away
    placebo, nudge, decoys                  as much of nothing: of vectors, of a state, of edges
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.values import SLOT, Cut, Patch, Rendered

Array = np.ndarray[Any, Any]

# ------------------------------------------------------------------------------------------------ vectors in slots


def rows(prompt: Rendered, at: Sequence[int]) -> Array:
    """(n,) which row of `prompt.vectors` stands at each of n positions. DataError for a position that holds no vector."""
    slots = np.flatnonzero(prompt.ids == SLOT)
    outside = np.setdiff1d(np.asarray(at, np.int64), slots)
    if len(outside) or not len(at):
        held = f"position {outside[0]} holds no vector" if len(outside) else "no position is given"
        raise DataError(f"{held}; the prompt's slots are at {slots[:8].tolist()}{' ...' if len(slots) > 8 else ''}")
    return np.searchsorted(slots, at)


def vectors_at(prompt: Rendered, at: Sequence[int]) -> Array:
    """(n, d) the vectors at n slot positions."""
    return prompt.vectors[rows(prompt, at)]


def put(prompt: Rendered, at: Sequence[int], values: Array) -> Rendered:
    """The prompt with `values` (n, d), or (d,) for all, in its slots at n positions."""
    vectors = prompt.vectors.copy()
    vectors[rows(prompt, at)] = values
    return replace(prompt, vectors=vectors)


def swap(prompt: Rendered, a: Sequence[int], b: Sequence[int]) -> Rendered:
    """Vectors at positions `a` and `b` change places, the first of a with the first of b; done twice it is undone."""
    if len(a) != len(b) or len({*a, *b}) != len(a) + len(b):
        raise DataError(f"a swap needs as many positions on either side, all different, not {list(a)} and {list(b)}")
    return put(prompt, [*a, *b], vectors_at(prompt, [*b, *a]))


def mean(prompt: Rendered, at: Sequence[int]) -> Rendered:
    """The mean of all the prompt's slots at positions `at`; of an item with several vectors, each place has its own mean."""
    place = _places(prompt)
    means = np.stack([prompt.vectors[place == p].mean(0, dtype=np.float64) for p in range(place.max() + 1)])
    return put(prompt, at, means[place[rows(prompt, at)]])


def zero(prompt: Rendered, at: Sequence[int]) -> Rendered:
    """Nothing at positions `at`."""
    return put(prompt, at, np.zeros(prompt.vectors.shape[1], np.float32))


def noise(prompt: Rendered, at: Sequence[int], seed: int = 0) -> Rendered:
    """A random direction at each of `at`, as long as the vector that stood there."""
    length = np.linalg.norm(vectors_at(prompt, at).astype(np.float64), axis=1, keepdims=True)
    return put(prompt, at, length * directions(prompt, at, prompt.vectors.shape[1], "noise", seed))


def other(prompt: Rendered, at: Sequence[int], source: Rendered) -> Rendered:
    """What stands at the same positions of `source`, a prompt with slots in the same places and other items' vectors in them."""
    return put(prompt, at, vectors_at(source, at))


def placebo(prompt: Rendered, edited: Rendered, seed: int = 0) -> Rendered:
    """The prompt with each vector moved as far as `edited` moves it, in a random direction; what is not moved there stays."""
    far = np.linalg.norm(edited.vectors.astype(np.float64) - prompt.vectors, axis=1)
    where = np.flatnonzero(far)
    if not len(where):
        raise DataError("the edit changes no vector, so that it has no placebo")
    at = np.flatnonzero(prompt.ids == SLOT)[where].tolist()
    way = directions(prompt, at, prompt.vectors.shape[1], "placebo", seed)
    return put(prompt, at, prompt.vectors[where] + far[where, None] * way)


def _places(prompt: Rendered) -> Array:
    """Which of its item's vectors each row is."""
    found = [np.arange(s.stop - s.start) for s in prompt.spans if s.role == "slot"]
    place = np.concatenate(found) if found else np.zeros(0, np.int64)
    return place if len(place) == len(prompt.vectors) else np.zeros(len(prompt.vectors), np.int64)


# ------------------------------------------------------------------------------------------------ states on the way


def view(prompt: Rendered, states: Array) -> Rendered:
    """The prompt with the states (slot positions, d) of some depth in place of its vectors: to be edited and given to `moved`."""
    return replace(prompt, vectors=states, edits=())


def moved(prompt: Rendered, depth: int, before: Rendered, after: Rendered) -> Rendered:
    """The prompt with what differs between two views of it set at `depth` of the residual stream.

    At depth 0 of a model that reads its embeddings as they are, the same as putting the vectors into the slots.
    """
    different = np.flatnonzero((before.vectors != after.vectors).any(1))
    if not len(different):
        raise DataError("the edit changes no state")
    at = np.flatnonzero(prompt.ids == SLOT)[different]
    return patch(prompt, depth, at.tolist(), after.vectors[different])


def patch(prompt: Rendered, layer: int, at: Sequence[int], values: Array, head: int | None = None) -> Rendered:
    """The prompt with states (n, d), of another prompt of the same layout say, set at n positions of depth `layer`; with `head`,
    outputs (n, head width) of that head of block `layer`."""
    return prompt.edited(Patch(layer, tuple(at), values, head))


def nudge(
    prompt: Rendered, layer: int, at: Sequence[int], far: Array, width: int, seed: int = 0, head: int | None = None
) -> Rendered:
    """The placebo of a patch: the states at n positions moved by `far` (n,), each in a random direction.

    width  of a state, or of a head's output
    """
    values = np.asarray(far, np.float64)[:, None] * directions(prompt, at, width, "nudge", layer, head, seed)
    return prompt.edited(Patch(layer, tuple(at), values, head, add=True))


def directions(prompt: Rendered, at: Sequence[int], width: int, *names: Any) -> Array:
    """(n, width) unit vectors, uniform on the sphere: a draw of its own for each name, and for each beginning of a prompt up
    to and with a position. Two prompts with equal tokens and items up to there get the same."""
    out = np.empty((len(at), width))
    items = [(span.start, span.item) for span in prompt.spans if span.role == "slot"]
    for number, position in enumerate(at):
        until = "\x1f".join([*map(str, names), *(item for start, item in items if start <= position)])
        key = hashlib.blake2b(prompt.ids[: position + 1].tobytes() + until.encode(), digest_size=16).digest()
        out[number] = np.random.default_rng(int.from_bytes(key, "big")).standard_normal(width)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


# ------------------------------------------------------------------------------------------------ edges


def cut(
    prompt: Rendered,
    at: Sequence[int],
    columns: Sequence[int],
    layers: Sequence[int] | None = None,
    onwards: bool = False,
) -> Rendered:
    """The prompt in which the tokens at `at` do not see those at `columns`, in blocks `layers` (None: in all).

    onwards  nor does any token behind the first of `at`
    A cut that takes nothing away, since nothing of it can be seen, is a DataError.
    """
    at, columns = sorted({int(p) for p in at}), sorted({int(c) for c in columns})
    last = len(prompt) - 1 if onwards else max(at, default=0)
    if not at or not columns or columns[0] >= last:
        raise DataError(f"a cut of columns {columns[:4]} from rows {at[:4]} takes nothing away: none of them is seen")
    return prompt.edited(Cut(tuple(at), tuple(columns), None if layers is None else tuple(layers), onwards=onwards))


def decoys(columns: Sequence[int], candidates: Sequence[int], seed: int = 0) -> tuple[int, ...]:
    """As many other positions as `columns`, drawn from `candidates`: what the placebo of a cut takes away.

    The prompt's first token is where attention goes that has nowhere to go; it is among the decoys exactly where it is among
    the columns, so that both cuts lose it or neither. Where there are too few candidates, all of them are taken.
    """
    free = sorted({int(c) for c in candidates} - {int(c) for c in columns} - {0})
    sink = [0] if 0 in columns and len(columns) > 1 else []
    wanted = min(len(set(columns)) - len(sink), len(free))
    if not wanted:
        raise DataError("there is no other position that a placebo of this cut could take away")
    return tuple(sorted([*sink, *np.random.default_rng([seed, 41]).choice(free, wanted, replace=False).tolist()]))
