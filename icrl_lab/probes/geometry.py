"""Geometry: what becomes of the encoder's geometry on the way through the slot map and every block.

The points are the queries' items, the same in every space (`clouds`). Each space is measured by itself and against the encoder and
the label (`spaces` has the measures); beside each number stands the one of noise vectors in the slots, and for the label the
one of shuffled labels. `distortion`, in a file of its own, asks of the slot map alone what it does to norms and cosines.

Pairs of items share items, so nothing here is a sample of pairs: intervals come from leaving out items (`jackknife`), crossed with
seeds. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from icrl_lab.errors import StudyError
from icrl_lab.probes import spaces
from icrl_lab.probes.arrays import Named, ci
from icrl_lab.probes.asked import checked
from icrl_lab.probes.clouds import Points, about, dataset, grid, label_of, points, scenes_of
from icrl_lab.probes.distortion import of_slots, says_of_slots
from icrl_lab.probes.jackknife import put_measures
from icrl_lab.probes.landmarks import BY, LANDMARKS, POSITIONS, RELATIONS, put_tests
from icrl_lab.probes.spaces import Array
from icrl_lab.values import Reading

if TYPE_CHECKING:
    import xarray as xr

    from icrl_lab.studies.run import Study

MEASURES = {  # name -> words, units, scale of the interval
    "encoder_rsa": ("similarity with the encoder (RSA)", "Spearman rho", "fisher"),
    "encoder_cka": ("similarity with the encoder (unbiased linear CKA)", "CKA", "fisher"),
    "label_rsa": ("similarity with the label (RSA)", "Spearman rho", "fisher"),
    "label_cka": ("similarity with the label (unbiased CKA, kernel: less the labels' distance)", "CKA", "fisher"),
    "label_partial": ("similarity with the label at equal encoder similarity (partial RSA)", "Spearman rho", "fisher"),
    "overlap": ("nearest neighbours shared with the encoder", "Jaccard index", "share"),
    "cosine": ("mean pairwise cosine", "cosine", "fisher"),
    "norm": ("mean norm", "length in the space", "log"),
    "norm_sd": ("standard deviation of the norms over items", "length in the space", "log"),
    "effective_rank": ("effective rank about the mean", "dimensions", "log"),
    "dimension": ("intrinsic dimension (TwoNN)", "dimensions", "log"),
}
LIMITS = (
    "Geometry says what could be read from the states, not what the model uses: that takes patching.",
    "A few dozen items are few for an intrinsic dimension: compare spaces, do not quote it.",
    "What the label and the encoder share is there from the start; label_partial takes off what the encoder's distances say.",
    "A resample has fewer different items than the sample, so the ranges of depths are rough.",
)


@checked(empty=["methods"])
def geometry(
    study: Study,
    arm: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = 48,
    with_text: bool | None = None,
    neighbours: int = 8,
    metric: str = "cosine",
    methods: Sequence[str] = ("pca",),
    permutations: int = 1000,
    seed: int = 0,
) -> Reading:
    """The way encoder -> slots -> every depth, for real and for noise vectors.

    neighbours  k of the neighbourhood overlap, of UMAP and of the maps' trustworthiness; at most half of the items
    metric      "cosine" or "euclidean": the distance of RSA and of neighbours
    methods     maps in two dimensions, of "pca" and "umap"
    In the reading, over (control, space), each with `_low`, `_high`, and `_by_seed`: the arrays of MEASURES. `over_noise`
    (space) is the encoder's RSA, real less noise, with p and q; `label_null_low` and `label_null_high` the band of shuffled
    labels, with `label_p` and `label_q`. `first` and `lost` (relation, position) are the depths where a relation is first found,
    and from which on it is found no more, with their ranges. The arrays of `distortion` are there, too. An arm without slots,
    fewer than 8 items or too many neighbours are a StudyError.
    """
    found = scenes_of(study, arm, seeds, queries, with_text, neighbours)
    clouds = {key: points(one) for key, one in found.items()}
    one, first = next(iter(found.values())), next(iter(clouds.values()))
    grams = grid({key: np.stack([spaces.gram(x) for x in c.named.values()]) for key, c in clouds.items()})
    grams, label = np.moveaxis(grams, 2, 1), label_of(one)  # control, space, seed, n, n
    kinds = ["encoder", "slots", *(p for p in POSITIONS for _ in first.slot)]
    depths = [-1, -1, *list(range(len(first.slot))) * len(POSITIONS)]
    arrays: Named = {}
    measure = partial(_measures, metric=metric, k=neighbours)
    tables = put_measures(arrays, MEASURES, BY, measure, (grams, grams[0, 0, 0], label))
    put_tests(arrays, tables, _shuffled(grams, label, metric, permutations, seed), np.array(kinds), seed)
    arrays |= _maps(first, methods, metric, neighbours, seed)
    arrays |= of_slots(found, seed)
    coords = {"space": list(first.named), "kind": ("space", kinds), "depth": ("space", depths)}
    data = dataset(arrays, found, {**coords, "relation": list(RELATIONS), "position": list(POSITIONS)})
    more = {"landmarks": LANDMARKS, "metric": metric, "neighbours": neighbours, "limits": list(LIMITS)}
    return Reading("geometry", data, {**about(found), **more, "says": [*_says(data), *says_of_slots(data)]})


# ------------------------------------------------------------------------------------------------ numbers


def _measures(gram: Array, encoder: Array, label: Array, metric: str, k: int) -> dict[str, Array]:
    """The MEASURES of clouds (..., n, n)."""
    near, own = spaces.distances(gram, metric), spaces.distances(encoder, metric)
    rank, of_encoder, of_label = spaces.ranked(near), spaces.ranked(own), spaces.ranked(label)
    e, y = (rank * of_encoder).mean(-1), (rank * of_label).mean(-1)
    size, apart = spaces.norms(gram), spaces.distances(gram)
    some = apart.max((-1, -2)) > 0
    return {
        "encoder_rsa": e,
        "encoder_cka": spaces.cka(gram, encoder),
        "label_rsa": y,
        "label_cka": spaces.cka(gram, -label),
        "label_partial": spaces.partial(y, e, (of_encoder * of_label).mean(-1)),
        "overlap": spaces.overlap(near, own, k),
        "cosine": spaces.mean_cosine(gram),
        "norm": size.mean(-1),
        "norm_sd": size.std(-1, ddof=1),
        "effective_rank": np.where(some, spaces.effective_rank(spaces.centred(gram)), np.nan),
        "dimension": spaces.intrinsic_dimension(apart),
    }


def _shuffled(grams: Array, label: Array, metric: str, draws: int, seed: int) -> Array:
    """(control, space, 1 + draws) label RSA, mean over seeds, with the true label and with shuffled ones (the same shuffles
    everywhere: seeds share their items); NaN for constant clouds."""
    from scipy.spatial.distance import squareform

    if draws < 100:
        raise StudyError(f"permutations is {draws}; a band of shuffled labels takes at least 100")
    rank = spaces.ranked(spaces.distances(grams, metric)).mean(2)
    table, rng = squareform(spaces.ranked(label)), np.random.default_rng([seed, 21])
    turns = [np.arange(len(label)), *(rng.permutation(len(label)) for _ in range(draws))]
    targets = np.stack([spaces.pairs(table[np.ix_(t, t)]) for t in turns], -1)
    return rank @ targets / rank.shape[-1]


# ------------------------------------------------------------------------------------------------ maps in two dimensions


def _maps(first: Points, methods: Sequence[str], metric: str, k: int, seed: int) -> Named:
    """Coordinates of every space of the first seed's real vectors, each map turned or mirrored to lie as the encoder's does."""
    if not methods:
        return {}
    made = [
        [spaces.embedding(x, m, metric=metric, neighbours=k, seed=seed) for x in first.named.values()] for m in methods
    ]
    flat = np.array([[turned(e.coordinates, row[0].coordinates) for e in row] for row in made])
    trust = np.array([[e.trustworthiness for e in row] for row in made])
    words = "map in two dimensions, first seed, turned or mirrored to lie as the encoder's does"
    return {
        "coordinates": (("reducer", "mapped", "query", "axis"), flat, words, "arbitrary"),
        "trustworthiness": (("reducer", "mapped"), trust, f"share of {k} neighbours on the map that are true (1: all)", "share"),
        "reducer": (("reducer",), list(methods), "", ""),
        "mapped": (("mapped",), list(first.named), "", ""),
    }  # fmt: skip


def turned(flat: Array, onto: Array) -> Array:
    """A map (n, 2), turned or mirrored about its centre to lie as near another as it can; no distance changes (Schoenemann 1966)."""
    from scipy.linalg import orthogonal_procrustes

    mine = flat - flat.mean(0)
    return mine @ orthogonal_procrustes(mine, onto - onto.mean(0))[0]


# ------------------------------------------------------------------------------------------------ says


def _says(data: xr.Dataset) -> list[str]:
    """What the numbers bear out, in words."""
    last = int(data["depth"].max())
    out = [
        f"The slots keep {ci(data, 'encoder_rsa', control='real', space='slots')} of the encoder's geometry (RSA; noise vectors: "
        f"{ci(data, 'encoder_rsa', control='noise', space='slots')})."
    ]
    for position, words in (("slot", "the query's slot"), ("answer", "the answer position")):
        deep = f"{position} {last}"
        out.append(
            f"At {words} the encoder's geometry stands above noise vectors' first at: {_told(data, 'first', 'encoder', position)}; "
            f"it is lost from: {_told(data, 'lost', 'encoder', position)}. At the last depth RSA is "
            f"{ci(data, 'encoder_rsa', control='real', space=deep)} (noise: {ci(data, 'encoder_rsa', control='noise', space=deep)})."
        )
        row = data["label_rsa"].sel(control="real").where(data["kind"] == position, drop=True)
        best = str(row["space"].values[int(np.nan_to_num(row.values, nan=-2).argmax())])
        out.append(
            f"At {words} the label's geometry first exceeds that of shuffled labels at: {_told(data, 'first', 'label', position)}. "
            f"Its largest RSA is {ci(data, 'label_rsa', control='real', space=best)} ({best}; noise there: "
            f"{ci(data, 'label_rsa', control='noise', space=best)}; the encoder itself: "
            f"{ci(data, 'label_rsa', control='real', space='encoder')})."
        )
    return out


def _told(data: xr.Dataset, name: str, relation: str, position: str) -> str:
    """A landmark in words, with its range."""
    at, top = {"relation": relation, "position": position}, int(data["depth"].max()) + 1
    says, low, high = (
        str(data[f"{name}_says"].sel(at).values),
        *(int(data[name + e].sel(at)) for e in ("_low", "_high")),
    )
    beyond = {top: "none"} if name == "first" else {0: "never there", top: "kept to the last"}
    return f"{says} (95 % of resamples: {beyond.get(low, low)} to {beyond.get(high, high)})"
