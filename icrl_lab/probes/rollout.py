"""Rollout: what could reach the answer along the attention of all blocks together.

One row of attention says where one head of one block looks; what it finds there has been mixed by the blocks below. Rollout
(Abnar and Zuidema 2020) multiplies the blocks through: heads are averaged, half of a token's state stays where it is, and the product's
row of the answer gives a relevance to every token. It is an option beside `attention`, and shares its parts, nulls and figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from icrl_lab.probes.arrays import Named, dataset, over
from icrl_lab.probes.asked import checked
from icrl_lab.probes.attention import INTERVAL, WHERE, about_of, percent, put, seen, views_of
from icrl_lab.probes.scene import Scene
from icrl_lab.probes.spans import PARTS, ROWS, TARGETS, Look, captured, reduced
from icrl_lab.values import Reading

if TYPE_CHECKING:
    import xarray as xr

    from icrl_lab.studies.run import Study

LIMITS = (
    "Rollout takes attention for what a block does: it leaves out values, feed-forward layers and in what heads differ.",
    "Half of each state is taken to stay where it is, whatever the block writes.",
)
WORDS = {
    "share": ("rollout", "rollout, share of all but position 0", "share"),
    "lift": ("lift", "rollout a token over an even one", "times even"),
    "sink": ("sink", "rollout to position 0", "share"),
}


@checked(empty=["against"])
def rollout(
    study: Study,
    arm: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 8,
    with_text: bool | None = None,
    rows: Sequence[str] = ROWS,
    against: Sequence[str] = ("noise", "text"),
) -> Reading:
    """What reaches the answer and the query's slot if every block mixes as its heads attend on average:
    relevance = row of the product over blocks of (mean over heads of A + 1) / 2.

    In the reading, over (control, row, part, layer): `rollout`, the share of each part of all but position 0, multiplied through from
    the last block down to this one (layer 0 is the whole model), with interval; `lift`, and `sink` of position 0; `by_shot`
    (control, row, target, shot) is the lift of each shot at layer 0. Needs all rows of a prompt: one prompt is captured at a time.
    """
    seeds = tuple(study.plan.seeds if seeds is None else seeds)
    views, absent = views_of(study, arm, against, seeds[0], queries, with_text)
    kept: dict[str, list[Look]] = {name: [] for name in views}
    real: list[Scene] = []
    for name, one in seen(study, views, seeds, queries, with_text):
        kept[name].append(_rolled(one, rows))
        real += [one] if name == "real" else []
    into: Named = {}
    for what, (name, words, unit) in WORDS.items():
        table = np.stack([np.stack([getattr(x, what)[..., 0] for x in of]) for of in kept.values()])
        dims = ("control", "row", "layer") if what == "sink" else ("control", "row", "part", "layer")
        put(into, name, np.moveaxis(table, (1, 2), (-2, -1)).astype(float), dims, words, unit)
    shots = np.stack([np.mean([x.shots[..., 0, 0].mean(0) for x in of], 0) for of in kept.values()])
    into["by_shot"] = (
        ("control", "row", "target", "shot"),
        shots,
        "rollout a token over an even one, each shot",
        "times even",
    )
    coords = {"control": list(views), "row": list(rows), "part": list(PARTS), "target": list(TARGETS)}
    data = dataset(into, coords)
    data = data.assign_coords(shot=np.arange(data.sizes["shot"]), layer=np.arange(data.sizes["layer"]))
    about = {
        **about_of(real[0], seeds),
        "interval": over(INTERVAL.split(";")[0], len(seeds)),
        "limits": [*LIMITS, *absent],
    }
    return Reading("attention", data, {**about, "says": _says(data)})


def _rolled(one: Scene, rows: Sequence[str]) -> Look:
    """Rollout of a scene's prompts, as a look with one head."""
    kept = []
    for number in range(len(one.prompts)):
        for found, weights in captured(one, rows, numbers=[number], whole=True):
            relevance = np.zeros((len(rows), weights.shape[-1]))
            relevance[np.arange(len(rows)), list(found.rows)] = 1
            down = []
            for block in weights.mean(1, dtype=np.float64)[::-1]:
                relevance = (relevance @ block + relevance) / 2
                down.append(relevance)
            kept.append((*reduced(np.stack(down[::-1])[:, None], found), found.extent))
    sink, share, shots, extent = (np.stack(x).astype(np.float32) for x in zip(*kept))
    return Look(sink, share, extent, shots)


def _says(data: xr.Dataset) -> list[str]:
    out = []
    for row in data["row"].values.tolist():
        at = {"row": row, "layer": 0}
        controls = data["control"].values.tolist()
        each = [f"{percent(data, 'rollout', control=c, part='vector', **at)} under {c}" for c in controls]
        sink = percent(data, "sink", control="real", **at)
        out.append(
            f"Rolled out from {WHERE[row]}, {sink} goes to position 0; of the rest the shots' vectors have {'; '.join(each)}."
        )
    return out
