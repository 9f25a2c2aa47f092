"""Clouds: the queries' items as points, the same items in every space of a scene.

The spaces are the encoder's vectors, the injected slots, and the residual stream at the query's slot and at the answer position,
depth by depth; real and noise vectors, seed by seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from icrl_lab.errors import StudyError
from icrl_lab.probes import arrays, spaces
from icrl_lab.probes.arrays import Named, looked_at
from icrl_lab.probes.jackknife import METHOD
from icrl_lab.probes.landmarks import POSITIONS
from icrl_lab.probes.scene import Scene, pick, scene
from icrl_lab.probes.spaces import Array, Embedding
from icrl_lab.values import SLOT, Capture

if TYPE_CHECKING:
    import xarray as xr

    from icrl_lab.studies.run import Study

CONTROLS = ("real", "noise")

Found = dict[tuple[str, int], Scene]  # by control and seed


class Points(NamedTuple):
    """The same n items in every space of one scene, float32; an item's several vectors stand side by side.

    encoder (n, d_fm); slots (n, d): as injected; slot, answer (depths, n, d): the residual stream
    """

    encoder: Array
    slots: Array
    slot: Array
    answer: Array

    @property
    def named(self) -> dict[str, Array]:
        """Every space by name, in the order of the way: encoder, slots, slot 0 ... slot L, answer 0 ... answer L."""
        streams = {f"{p} {d}": x for p in POSITIONS for d, x in enumerate(getattr(self, p))}
        return {"encoder": self.encoder, "slots": self.slots, **streams}


def points(one: Scene) -> Points:
    """The queries' items in every space of a scene; runs the model once over its prompts."""
    engine = one.engine
    where = [parts.at("slot", parts.shown) for parts in one.parts]
    each = 4 * (one.study.llm.blocks + 1) * (len(where[0]) + 1) * one.study.llm.width
    step = max(1, int(engine.limit // each))
    kept = []
    for start in range(0, len(where), step):
        some = slice(start, start + step)
        asked = [Capture(hidden=(*places.tolist(), -1)) for places in where[some]]
        kept += [np.asarray(t.hidden) for t in engine.run(one.prompts[some], [0], capture=asked).traces]
    states = np.stack(kept, 1)  # depths, items, positions, d
    flat = states[:, :, :-1].reshape(*states.shape[:2], -1)
    return Points(encoder_of(one), slots_of(one).reshape(len(where), -1), flat, states[:, :, -1])


def encoder_of(one: Scene) -> Array:
    values = one.study.vectors.values[one.queries]
    return values.reshape(len(values), -1)


def slots_of(one: Scene) -> Array:
    """(n, slots, d) the vectors that stand in the queries' slots."""
    found = []
    for prompt, parts in zip(one.prompts, one.parts):
        places = parts.at("slot", parts.shown)
        found.append(prompt.vectors[[(prompt.ids[:p] == SLOT).sum() for p in places]])
    return np.stack(found)


def embedding(one: Scene, space: str = "slots", method: str = "pca", **options: Any) -> Embedding:
    """A map in two dimensions of one of the spaces of a scene (`Points.named`), by "pca" or "umap"; options: metric,
    neighbours, seed."""
    named = points(one).named
    if space not in named:
        raise StudyError(f"there is no space {space!r}; valid: encoder, slots, slot 0, ..., {list(named)[-1]}")
    return spaces.embedding(named[space], method, **options)


# ------------------------------------------------------------------------------------------------ controls and seeds


def scenes_of(study: Study, arm: Any, seeds: Any, queries: Any, with_text: Any, neighbours: int) -> Found:
    """The scene of each control and seed, on the same queries."""
    chosen = pick(study, arm)
    if not chosen.has_slots:
        raise StudyError(
            f"the arm {chosen.label!r} writes text and injects no vector; geometry needs an arm with slots"
        )
    used = tuple(study.plan.seeds if seeds is None else seeds)
    given = {"with_text": with_text, "queries": queries}
    found = {(c, s): scene(study, chosen.label, c, seed=s, **given) for s in used for c in CONTROLS}
    n = len(next(iter(found.values())).queries)
    if n < 8:
        raise StudyError(f"the geometry of {n} items says nothing; ask for at least 8 queries")
    if not neighbours < n / 2:
        raise StudyError(
            f"{neighbours} neighbours of {n} items are no neighbourhood; take more queries, or fewer neighbours"
        )
    return found


def grid(values: Mapping[tuple[str, int], Array]) -> Array:
    """(control, seed, ...) of values by control and seed."""
    used = list(dict.fromkeys(s for _, s in values))
    return np.stack([np.stack([values[c, s] for s in used]) for c in CONTROLS])


def label_of(one: Scene) -> Array:
    """(n, n) how far the items' labels are apart: |y_i - y_j|, or 0 and 1 for the same and for different classes."""
    task = one.study.task
    if task.targets is not None:
        y = task.targets[one.queries]
        return np.abs(y[:, None] - y)
    assert task.labels is not None
    classes = np.array([task.labels[q] for q in one.queries])
    return (classes[:, None] != classes).astype(float)


# ------------------------------------------------------------------------------------------------ a reading


def dataset(values: Named, found: Found, coords: dict[str, Any]) -> xr.Dataset:
    """The arrays of a reading on the axes that all have, with the items' text and target; an array without words becomes a coordinate."""
    one = next(iter(found.values()))
    task = one.study.task
    coords |= {"control": list(CONTROLS), "seed": list(dict.fromkeys(s for _, s in found)), "query": list(one.ids)}
    coords |= {name: (dims, held) for name, (dims, held, words, _) in values.items() if not words}
    if task.text is not None:
        coords["text"] = ("query", [task.text[q] for q in one.queries])
    if task.targets is not None:
        coords["target"] = ("query", task.targets[one.queries])
    elif task.labels is not None:
        coords["label"] = ("query", [task.labels[q] for q in one.queries])
    return arrays.dataset({name: array for name, array in values.items() if array[2]}, coords)


def about(found: Found) -> dict[str, Any]:
    """What a reading of these scenes says of itself."""
    one, seeds = next(iter(found.values())), list(dict.fromkeys(s for _, s in found))
    return {
        **one.about(),
        "control": "real and noise",
        "modality": one.study.task.modality,
        "property": one.study.task.property,
        "target_units": one.study.task.units,
        "seeds": seeds,
        "n": looked_at(len(seeds), len(one.queries), "items"),
        "interval": METHOD
        if len(seeds) > 1
        else METHOD.replace("over seeds and items", "over items alone, for one seed"),
    }
