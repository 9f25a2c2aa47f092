"""Geometry: what becomes of the encoder's geometry on the way through the slot map and every block.

The points are the queries' items, the same in every space: the encoder's vectors, the injected slots, and the residual stream
at the query's slot and at the answer position, depth by depth. Each space is measured by itself and against the encoder and
the label (`spaces` has the measures); beside each number stands the one of noise vectors in the slots, and for the label the
one of shuffled labels. `distortion` asks of the slot map alone what it does to norms and cosines, and runs no model.

Pairs of items share items, so nothing here is a sample of pairs: intervals come from leaving out items (jackknife
pseudo-values), crossed with seeds. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from icrl_lab.errors import MissingExtra, StudyError
from icrl_lab.maps import steps
from icrl_lab.probes import spaces
from icrl_lab.probes.scene import Scene, pick, scene
from icrl_lab.probes.spaces import Array, Embedding
from icrl_lab.stats import adjusted, effects
from icrl_lab.stats.intervals import bounds, components, half_width, p_value
from icrl_lab.values import SLOT, Capture, Reading

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from icrl_lab.studies.run import Study

CONTROLS = ("real", "noise")
POSITIONS = ("slot", "answer")
RELATIONS = ("encoder", "label")
DELTA = 0.05  # of theory's bound
SAMPLE = 256  # tokens that the slots' distance to the tokens is compared with
RESAMPLES = 400
BY = ("control", "space")
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
MAPPED = {  # of a slot map; the norms are those before slots are brought to one length
    "cosine_before": ("mean pairwise cosine of the encoder's vectors", "cosine", "fisher"),
    "cosine_after": ("mean pairwise cosine of the slots", "cosine", "fisher"),
    "cosine_correlation": ("correlation of slots' cosines with the encoder's, over pairs", "Pearson r", "fisher"),
    "cosine_rank": ("rank correlation of slots' cosines with the encoder's, over pairs", "Spearman rho", "fisher"),
    "cosine_slope": ("slope of slots' cosines on the encoder's", "cosine per cosine", "plain"),
    "cosine_within": ("share of pairs whose cosine is within theory's bound", "share", "share"),
    "norm_correlation": ("correlation of norms before and after the map", "Pearson r", "fisher"),
    "norm_spread": ("relative standard deviation of norm after / norm before", "share", "log"),
}
METHOD = (
    "95 % intervals: leave-one-item-out jackknife pseudo-values, crossed analysis of variance over seeds and items, "
    "t distribution"
)
LANDMARKS = (
    "encoder: the interval of real less noise excludes zero, where it does so at any depth corrected over depths "
    "(Benjamini-Hochberg); label: above the largest over depths of shuffled labels (permutation test, 5 %); ranges: 95 % of "
    "bootstrap resamples of seeds and items against the same bars"
)
LIMITS = (
    "Geometry says what could be read from the states, not what the model uses: that takes patching.",
    "A few dozen items are few for an intrinsic dimension: compare spaces, do not quote it.",
    "What the label and the encoder share is there from the start; label_partial takes off what the encoder's distances say.",
    "A resample has fewer different items than the sample, so the ranges of depths are rough.",
)


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
    return Points(_encoder(one), _slots(one).reshape(len(where), -1), flat, states[:, :, -1])


def _encoder(one: Scene) -> Array:
    values = one.study.vectors.values[one.queries]
    return values.reshape(len(values), -1)


def _slots(one: Scene) -> Array:
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


# ------------------------------------------------------------------------------------------------ the questions


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
    found = _scenes(study, arm, seeds, queries, with_text, neighbours)
    clouds = {key: points(one) for key, one in found.items()}
    one, first = next(iter(found.values())), next(iter(clouds.values()))
    grams = _grid({key: np.stack([spaces.gram(x) for x in c.named.values()]) for key, c in clouds.items()})
    grams, label = np.moveaxis(grams, 2, 1), _label(one)  # control, space, seed, n, n
    kinds = ["encoder", "slots", *(p for p in POSITIONS for _ in first.slot)]
    depths = [-1, -1, *list(range(len(first.slot))) * len(POSITIONS)]
    arrays: Named = {}
    measure = partial(_measures, metric=metric, k=neighbours)
    tables = _put_measures(arrays, MEASURES, BY, measure, (grams, grams[0, 0, 0], label))
    _landmarks(arrays, tables, _shuffled(grams, label, metric, permutations, seed), np.array(kinds), seed)
    arrays |= _maps(first, methods, metric, neighbours, seed)
    arrays |= _of_slots(found, seed)
    coords = {"space": list(first.named), "kind": ("space", kinds), "depth": ("space", depths)}
    data = _dataset(arrays, found, {**coords, "relation": list(RELATIONS), "position": list(POSITIONS)})
    more = {"landmarks": LANDMARKS, "metric": metric, "neighbours": neighbours, "limits": list(LIMITS)}
    return Reading("geometry", data, {**_about(found), **more, "says": [*_says(data), *_says_of_slots(data)]})


def distortion(
    study: Study,
    arm: str | None = None,
    *,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = None,
    seed: int = 0,
) -> Reading:
    """What the slot map does to norms and cosines, pair by pair, beside theory's curves; the model is not run.

    In the reading: `encoder_cosine` (pair), `slot_cosine` (control, seed, pair), `norm_before` and `norm_after` (seed, query),
    the arrays of MAPPED with intervals, and over `rho` the cosine that theory expects of a map of random layers with this
    map's activations (`theory`, and `theory_low`, `theory_high`: its bound), and of one ReLU layer (`theory_relu`);
    `token_cosine` (control) to the nearest token, beside `token_to_token`, that of random tokens to their nearest other.
    """
    found = _scenes(study, arm, seeds, queries, None, 0)
    data = _dataset(_of_slots(found, seed), found, {})
    limit = "It is about what is injected; what the model makes of it, geometry shows."
    return Reading("geometry", data, {**_about(found), "limits": [limit], "says": _says_of_slots(data)})


def maps_table(
    study: Study,
    arms: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] | None = None,
    queries: int | Sequence[int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """The numbers of `distortion` with their intervals, one row an arm that has slots (None: all of the study)."""
    import pandas as pd

    labels = [a.label for a in study.plan.arms if a.has_slots] if arms is None else list(arms)
    rows = []
    for label in labels:
        data = distortion(study, label, seeds=seeds, queries=queries, seed=seed).data
        row: dict[str, Any] = {"arm": label}
        for name in (*MAPPED, "token_cosine"):
            for end in ("", "_low", "_high"):
                array = data[name + end]
                row[name + end] = float(array.sel(control="real") if "control" in array.dims else array)
            if "control" in data[name].dims:
                row[f"{name}_noise"] = float(data[name].sel(control="noise"))
        rows.append(row)
    return pd.DataFrame(rows)


Found = dict[tuple[str, int], Scene]


def _scenes(study: Study, arm: Any, seeds: Any, queries: Any, with_text: Any, neighbours: int) -> Found:
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


def _grid(values: Mapping[tuple[str, int], Array]) -> Array:
    """(control, seed, ...) of values by control and seed."""
    used = list(dict.fromkeys(s for _, s in values))
    return np.stack([np.stack([values[c, s] for s in used]) for c in CONTROLS])


def _label(one: Scene) -> Array:
    """(n, n) how far the items' labels are apart: |y_i - y_j|, or 0 and 1 for the same and for different classes."""
    task = one.study.task
    if task.targets is not None:
        y = task.targets[one.queries]
        return np.abs(y[:, None] - y)
    assert task.labels is not None
    classes = np.array([task.labels[q] for q in one.queries])
    return (classes[:, None] != classes).astype(float)


# ------------------------------------------------------------------------------------------------ numbers

Named = dict[str, tuple[tuple[str, ...], Any, str, str]]  # name -> dims, values, long name, units


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


def _put_measures(
    into: Named, words: Mapping[str, tuple[str, str, str]], dims: tuple[str, ...], measure: Callable, matrices: Any
) -> dict[str, Array]:
    """Measures (..., seed) of matrices with their intervals; returns the tables (..., seed, item) whose means they are."""
    values, left = measure(*matrices), spaces.left_out(measure, *matrices)
    tables = {name: pseudo_values(values[name], left[name]) for name in values}
    for name, value in values.items():
        long, units, scale = words[name]
        low, high = _ends(value.mean(-1), tables[name], scale)
        _put(into, name, dims, (value.mean(-1), low, high), long, units)
        into[f"{name}_by_seed"] = ((*dims, "seed"), value, f"{long}, each seed", units)
    return tables


def _put(into: Named, name: str, dims: tuple[str, ...], of: Sequence[Any], long: str, units: str) -> None:
    """A number with the ends of its interval."""
    for end, values, words in zip(("", "_low", "_high"), of, ("", ", 95 % interval from", ", 95 % interval to")):
        into[name + end] = (dims, values, long + words, units)


def pseudo_values(value: Array, left: Array) -> Array:
    """(..., S, N) what item i adds to seed s, N v - (N - 1) v(without i), from values (..., S) and leave-one-out values
    (..., S, N); moved so that a seed's mean is its value, not the jackknife's correction of it."""
    n = left.shape[-1]
    return value[..., None] - (n - 1) * (left - left.mean(-1, keepdims=True))


def _ends(mean: Array, table: Array, scale: str) -> tuple[Array, Array]:
    """The 95 % interval of the mean (...) of a table (..., S, N); NaN where the table is."""
    fine = np.isfinite(table).all((-1, -2))
    half = half_width(components(np.where(fine[..., None, None], table, 0.0)))
    low, high = bounds(np.where(fine, mean, 0.5), half, "plain" if scale == "share" else scale, table.shape[-1])
    if scale == "share":
        low, high = np.maximum(low, 0.0), np.minimum(high, 1.0)
    return np.where(fine, low, np.nan), np.where(fine, high, np.nan)


def _p(mean: Array, table: Array) -> Array:
    """Two-sided p-values of "the mean is zero"; 1 where there is no mean."""
    fine = np.isfinite(table).all((-1, -2))
    found = p_value(np.where(fine, mean, 0.0), components(np.where(fine[..., None, None], table, 0.0)))
    return np.where(fine, found, 1.0)


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


# ------------------------------------------------------------------------------------------------ where it is lost, and found


def landmarks(found: Array) -> tuple[Array, Array]:
    """Of truths (..., D) at depths 0 to D - 1: the first that is true (D: none), and the one behind the last (0: none)."""
    top, some = found.shape[-1], found.any(-1)
    return np.where(some, found.argmax(-1), top), np.where(some, top - found[..., ::-1].argmax(-1), 0)


def _landmarks(into: Named, tables: Mapping[str, Array], shuffled: Array, kinds: Array, seed: int) -> None:
    """Tests of both relations in every space, and the depths where each is first found and lost, with their ranges."""
    gap, mine = tables["encoder_rsa"][0] - tables["encoder_rsa"][1], tables["label_rsa"][0]
    over = gap.mean((-1, -2))
    low, high = _ends(over, gap, "plain")
    p, q = _p(over, gap), np.full(len(kinds), np.nan)
    level = np.where(np.isfinite(shuffled), shuffled, -np.inf)  # the true label is the first of its own shuffles
    label_p, label_q = (level >= level[..., :1]).mean(-1), np.full(level.shape[:2], np.nan)
    draws, seen = _resamples(gap.shape[1], gap.shape[2], seed), {}
    for position in POSITIONS:
        at = np.flatnonzero(kinds == position)
        q[at] = adjusted(p[at], "fdr")
        most = level[:, at].max(1)
        label_q[:, at] = (most[:, None] >= level[:, at, :1]).mean(-1)
        bar = np.where(np.isfinite(low[at]), over[at] - low[at], np.inf)
        there = ((q[at] < 0.05) & (over[at] > 0)).any()  # at any depth, corrected over depths; then by the intervals
        seen["encoder", position] = there & (over[at] > bar), _means(gap[at], draws) > bar
        again = _means(mine[at], draws) > np.quantile(most[0], 0.95)
        seen["label", position] = label_q[0, at] < 0.05, again
    words = "similarity with the encoder (RSA), real less noise"
    _put(into, "over_noise", BY[1:], (over, low, high), words, "difference of rho")
    into["over_noise_p"] = (BY[1:], p, f"{words}, p", "")
    into["over_noise_q"] = (BY[1:], q, f"{words}, p corrected over the position's depths", "")
    null = np.where(np.isfinite(shuffled[..., :1]), shuffled[..., 1:], np.nan)
    for end, share in (("low", 0.025), ("high", 0.975)):
        words = f"similarity with shuffled labels (RSA), quantile {share}"
        into[f"label_null_{end}"] = (BY, np.quantile(null, share, axis=-1), words, "Spearman rho")
    into["label_p"] = (BY, label_p, "similarity with the label, one-sided permutation p", "")
    into["label_q"] = (BY, label_q, "the same, against the largest over the position's depths", "")
    _put_landmarks(into, seen)


def _means(table: Array, draws: list[tuple[Array, Array]]) -> Array:
    """(B, D) means of resamples of a table (D, S, N): what an item adds is resampled, never a pair; lowest where there is none."""
    found = np.stack([table[:, s][:, :, i].mean((-1, -2)) for s, i in draws])
    return np.where(np.isfinite(found), found, -np.inf)


def _resamples(seeds: int, items: int, seed: int) -> list[tuple[Array, Array]]:
    """Bootstrap draws of seeds and of items."""
    rng = np.random.default_rng([seed, 22])
    return [(rng.integers(seeds, size=seeds), rng.integers(items, size=items)) for _ in range(RESAMPLES)]


def _put_landmarks(into: Named, seen: Mapping[tuple[str, str], tuple[Array, Array]]) -> None:
    """`seen`: by relation and position, truths (D,) of the sample and (B, D) of its resamples."""
    dims, top = ("relation", "position"), next(iter(seen.values()))[0].size
    for number, (name, long) in enumerate((("first", "first depth where it is found"), ("lost", "depth from which on it is found no more"))):  # fmt: skip
        rows = {k: (landmarks(now)[number], landmarks(again)[number]) for k, (now, again) in seen.items()}
        ends = {k: (now, *np.quantile(again, [0.025, 0.975], method="nearest")) for k, (now, again) in rows.items()}
        table = np.array([[ends[r, p] for p in POSITIONS] for r in RELATIONS], float)
        _put(into, name, dims, list(np.moveaxis(table, -1, 0)), f"{long} ({top}: behind the last)", "depth")
        share = [[np.mean([_named(name, d, top)[0] for d in rows[r, p][1]]) for p in POSITIONS] for r in RELATIONS]
        into[f"{name}_share"] = (dims, share, "share of the resamples in which there is such a depth", "share")
        says = [[_named(name, int(rows[r, p][0]), top)[1] for p in POSITIONS] for r in RELATIONS]
        into[f"{name}_says"] = (dims, says, f"{long}, in words", "")


def _named(name: str, depth: int, top: int) -> tuple[bool, str]:
    """Whether there is such a depth, and how it is called."""
    if name == "first":
        return (True, f"depth {depth}") if depth < top else (False, "none found")
    if 0 < depth < top:
        return True, f"depth {depth}"
    return False, "none found: it is never there" if depth == 0 else "none found: it is there to the last depth"


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


# ------------------------------------------------------------------------------------------------ the slot map alone


def _raw(one: Scene) -> tuple[Array, Array]:
    """The queries' vectors before the slot map and behind it, before slots are brought to one length: two (n, ...) tables."""
    cell, material = one.cell, one.study.material
    before, after = [], []
    for slot_map, kind in zip(material.slot_maps(cell, one.draw), material._sources(cell.arm)):
        values = kind.take(one.ids).values
        path = [step for step in slot_map.steps if step.op != "norm"]
        before.append(values.reshape(len(values), -1))
        after.append(steps.run(path, values).reshape(len(values), -1))
    return np.concatenate(before, 1), np.concatenate(after, 1)


def _layers(one: Scene) -> tuple[float, int]:
    """The width of the one random layer that would move cosines as much as this map's linear layers do one after the other
    (their variances 1/width add up; infinite without a layer), and the number of ReLUs."""
    path = one.study.material.slot_maps(one.cell, one.draw)[0].steps
    narrow = sum(1 / step.arrays["weight"].shape[1] for step in path if step.op == "linear")
    return 1 / narrow if narrow else float("inf"), sum(step.op == "relu" for step in path)


def _of_slots(found: Found, seed: int) -> Named:
    """What the slot map does to norms and cosines, beside theory; and how near the slots are to tokens."""
    one, real = next(iter(found.values())), [scene for (control, _), scene in found.items() if control == "real"]
    injected = _grid({key: _slots(scene) for key, scene in found.items()})  # control, seed, n, slots, d
    own, grams = spaces.gram(_encoder(one)), spaces.gram(injected.reshape(*injected.shape[:3], -1))
    before, after = (np.stack(x) for x in zip(*(_raw(scene) for scene in real)))
    width, relus = _layers(one)
    bound = spaces.concentration(width, DELTA)
    out: Named = {}
    sides = np.broadcast_to(own, grams.shape[1:])
    _put_measures(out, MAPPED, ("control",), partial(_cosines, bound=bound, relus=relus), (grams, own))
    _put_measures(out, MAPPED, (), lambda g: {"cosine_before": spaces.mean_cosine(g)}, (sides,))
    _put_measures(out, MAPPED, (), _norms, (spaces.gram(before), spaces.gram(after)))
    i, j = np.triu_indices(len(own), 1)
    rho = np.linspace(-1, 1, 81)
    theory = spaces.relu_cosine(rho, relus)
    curve = "cosine after a wide random map with this map's activations"
    out |= {
        "encoder_cosine": (("pair",), spaces.pairs(spaces.cosines(own)), "cosine of the encoder's vectors", "cosine"),
        "slot_cosine": (("control", "seed", "pair"), spaces.pairs(spaces.cosines(grams)), "cosine of the slots", "cosine"),
        "norm_before": (("seed", "query"), np.linalg.norm(before, axis=-1), "norm before the slot map", "length"),
        "norm_after": (("seed", "query"), np.linalg.norm(after, axis=-1), "norm behind the slot map, before its scale", "length"),
        "theory": (("rho",), theory, curve, "cosine"),
        "theory_low": (("rho",), np.maximum(theory - bound, -1), f"{curve}, less the bound", "cosine"),
        "theory_high": (("rho",), np.minimum(theory + bound, 1), f"{curve}, and the bound", "cosine"),
        "theory_relu": (("rho",), spaces.relu_cosine(rho), "cosine after one wide random ReLU layer", "cosine"),
        "bound": ((), bound, f"sqrt(log(1/delta)/width), delta {DELTA}, width that of all layers together", "cosine"),
        "layer_width": ((), width, "width of one random layer that distorts as the map's layers do together", "dimensions"),
        "rho": (("rho",), rho, "", ""),
        "first_of_pair": (("pair",), i, "", ""),
        "second_of_pair": (("pair",), j, "", ""),
    }  # fmt: skip
    return out | _tokens(one, injected, seed)


def _cosines(gram: Array, own: Array, bound: float, relus: int) -> dict[str, Array]:
    """How slots' cosines follow the encoder's."""
    x, y = spaces.pairs(spaces.cosines(own)), spaces.pairs(spaces.cosines(gram))
    dx, dy = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    sx, sy, both = (dx**2).mean(-1), (dy**2).mean(-1), (dx * dy).mean(-1)
    some = (sx > 1e-14) & (sy > 1e-14)
    near = np.abs(y - spaces.relu_cosine(x, relus)) <= bound + 1e-6
    return {
        "cosine_after": y.mean(-1),
        "cosine_correlation": np.where(some, both / np.sqrt(np.where(some, sx * sy, 1.0)), np.nan),
        "cosine_rank": spaces.rsa(spaces.distances(gram, "cosine"), spaces.distances(own, "cosine")),
        "cosine_slope": np.where(sx > 1e-14, both / np.where(sx > 1e-14, sx, 1.0), np.nan),
        "cosine_within": near.mean(-1),
    }


def _norms(before: Array, after: Array) -> dict[str, Array]:
    """How norms behind the map follow those before."""
    x, y = spaces.norms(before), spaces.norms(after)
    ratio = y / np.maximum(x, 1e-30)
    dx, dy = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    size = np.sqrt((dx**2).mean(-1) * (dy**2).mean(-1))
    some = size > 1e-12 * x.mean(-1) * y.mean(-1)
    return {
        "norm_correlation": np.where(some, (dx * dy).mean(-1) / np.where(some, size, 1.0), np.nan),
        "norm_spread": ratio.std(-1, ddof=1) / ratio.mean(-1),
    }


def _tokens(one: Scene, injected: Array, seed: int) -> Named:
    """The nearest token of each slot, by cosine, beside what tokens are to one another."""
    tokens, tokenizer = one.study.material.tokens, one.study.llm.tokenizer
    table, used = tokens.embeddings, tokens.used
    ids, near = spaces.nearest_rows(injected.reshape(-1, injected.shape[-1]), table, used)
    each = near.reshape(injected.shape[:-1]).mean(-1)
    words = [_word(tokenizer, int(t)) for t in ids]
    several = [" ".join(words[i : i + injected.shape[-2]]) for i in range(0, len(words), injected.shape[-2])]
    drawn = np.random.default_rng([seed, 23]).choice(used, min(SAMPLE, len(used)), replace=False)
    _, among = spaces.nearest_rows(table[drawn], table, used, own=drawn)
    out: Named = {}
    e = effects(each)
    _put(
        out,
        "token_cosine",
        ("control",),
        (e.estimate, e.low, e.high),
        "cosine of a slot to its nearest token",
        "cosine",
    )
    dims = ("control", "seed", "query")
    return out | {
        "token_cosine_each": (dims, each, "cosine of a slot to its nearest token, each item", "cosine"),
        "nearest_token": (dims, np.array(several).reshape(each.shape), "nearest token", ""),
        "token_to_token": (("token",), among, "cosine of a random token to its nearest other", "cosine"),
    }  # fmt: skip


def _word(tokenizer: Any, token: int) -> str:
    """A token as text that shows and saves whatever it holds."""
    text = tokenizer.decode([token])
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ------------------------------------------------------------------------------------------------ the reading


def _dataset(arrays: Named, found: Found, coords: dict[str, Any]) -> xr.Dataset:
    try:
        import xarray as xr
    except ImportError:
        raise MissingExtra('probes need xarray: pip install "icrl-lab[probes]"') from None
    one = next(iter(found.values()))
    task = one.study.task
    coords |= {"control": list(CONTROLS), "seed": list(dict.fromkeys(s for _, s in found)), "query": list(one.ids)}
    coords |= {name: (dims, values) for name, (dims, values, long, _) in arrays.items() if not long}
    if task.text is not None:
        coords["text"] = ("query", [task.text[q] for q in one.queries])
    if task.targets is not None:
        coords["target"] = ("query", task.targets[one.queries])
    elif task.labels is not None:
        coords["label"] = ("query", [task.labels[q] for q in one.queries])
    made = {
        name: (dims, np.asarray(values), {"long_name": long, "units": units})
        for name, (dims, values, long, units) in arrays.items()
        if long
    }
    return xr.Dataset(made, coords)


def _about(found: Found) -> dict[str, Any]:
    one, seeds = next(iter(found.values())), list(dict.fromkeys(s for _, s in found))
    return {
        **one.about(),
        "control": "real and noise",
        "modality": one.study.task.modality,
        "property": one.study.task.property,
        "target_units": one.study.task.units,
        "seeds": seeds,
        "n": f"{len(seeds)} seed{'s' * (len(seeds) > 1)} x {len(one.queries)} items",
        "interval": METHOD
        if len(seeds) > 1
        else METHOD.replace("over seeds and items", "over items alone, for one seed"),
    }


def _ci(data: xr.Dataset, name: str, **at: Any) -> str:
    value, low, high = (float(data[n].sel(at)) for n in (name, f"{name}_low", f"{name}_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _says(data: xr.Dataset) -> list[str]:
    """What the numbers bear out, in words."""
    last = int(data["depth"].max())
    out = [
        f"The slots keep {_ci(data, 'encoder_rsa', control='real', space='slots')} of the encoder's geometry (RSA; noise vectors: "
        f"{_ci(data, 'encoder_rsa', control='noise', space='slots')})."
    ]
    for position, words in (("slot", "the query's slot"), ("answer", "the answer position")):
        deep = f"{position} {last}"
        out.append(
            f"At {words} the encoder's geometry stands above noise vectors' first at: {_told(data, 'first', 'encoder', position)}; "
            f"it is lost from: {_told(data, 'lost', 'encoder', position)}. At the last depth RSA is "
            f"{_ci(data, 'encoder_rsa', control='real', space=deep)} (noise: {_ci(data, 'encoder_rsa', control='noise', space=deep)})."
        )
        row = data["label_rsa"].sel(control="real").where(data["kind"] == position, drop=True)
        best = str(row["space"].values[int(np.nan_to_num(row.values, nan=-2).argmax())])
        out.append(
            f"At {words} the label's geometry first exceeds that of shuffled labels at: {_told(data, 'first', 'label', position)}. "
            f"Its largest RSA is {_ci(data, 'label_rsa', control='real', space=best)} ({best}; noise there: "
            f"{_ci(data, 'label_rsa', control='noise', space=best)}; the encoder itself: "
            f"{_ci(data, 'label_rsa', control='real', space='encoder')})."
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


def _says_of_slots(data: xr.Dataset) -> list[str]:
    real, noise = {"control": "real"}, {"control": "noise"}
    among, inside = float(data["token_to_token"].mean()), _ci(data, "cosine_within", **real)
    return [
        f"The slot map takes a mean cosine of {_ci(data, 'cosine_before')} to {_ci(data, 'cosine_after', **real)}; over pairs, cosines "
        f"before and after correlate at {_ci(data, 'cosine_correlation', **real)} (noise vectors: "
        f"{_ci(data, 'cosine_correlation', **noise)}), with slope {_ci(data, 'cosine_slope', **real)}.",
        f"Of the pairs, {inside} lie within theory's bound of {float(data['bound']):.2f}; norms behind the map over norms before it "
        f"vary by {float(data['norm_spread']):.1%}.",
        f"A slot's cosine to its nearest token is {_ci(data, 'token_cosine', **real)} (noise vectors: "
        f"{_ci(data, 'token_cosine', **noise)}; a random token to its nearest other: {among:.2f}).",
    ]
