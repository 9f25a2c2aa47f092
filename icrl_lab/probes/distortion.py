"""Distortion: what the slot map alone does to norms and cosines, pair by pair, beside theory; no model runs.

A Reading of the question "geometry", and `maps_table`, which has several slot maps side by side. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.maps import steps
from icrl_lab.maps.training_free import ACTIVATIONS
from icrl_lab.probes import spaces
from icrl_lab.probes.arrays import Named, ci, put
from icrl_lab.probes.clouds import Found, about, dataset, encoder_of, grid, scenes_of, slots_of
from icrl_lab.probes.jackknife import put_measures
from icrl_lab.probes.scene import Scene
from icrl_lab.probes.spaces import Array
from icrl_lab.stats import effects
from icrl_lab.values import Reading

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from icrl_lab.studies.run import Study

DELTA = 0.05  # of theory's bound
SAMPLE = 256  # tokens that the slots' distance to the tokens is compared with
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
    found = scenes_of(study, arm, seeds, queries, None, 0)
    data = dataset(of_slots(found, seed), found, {})
    limit = "It is about what is injected; what the model makes of it, geometry shows."
    return Reading("geometry", data, {**about(found), "limits": [limit], "says": says_of_slots(data)})


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


# ------------------------------------------------------------------------------------------------ numbers


def of_slots(found: Found, seed: int) -> Named:
    """What the slot map does to norms and cosines, beside theory; and how near the slots are to tokens."""
    one, real = next(iter(found.values())), [scene for (control, _), scene in found.items() if control == "real"]
    injected = grid({key: slots_of(scene) for key, scene in found.items()})  # control, seed, n, slots, d
    own, grams = spaces.gram(encoder_of(one)), spaces.gram(injected.reshape(*injected.shape[:3], -1))
    before, after = (np.stack(x) for x in zip(*(_raw(scene) for scene in real)))
    width, theory_of = _layers(one)
    bound = spaces.concentration(width, DELTA)
    out: Named = {}
    sides = np.broadcast_to(own, grams.shape[1:])
    put_measures(out, MAPPED, ("control",), partial(_cosines, bound=bound, theory=theory_of), (grams, own))
    put_measures(out, MAPPED, (), lambda g: {"cosine_before": spaces.mean_cosine(g)}, (sides,))
    put_measures(out, MAPPED, (), _norms, (spaces.gram(before), spaces.gram(after)))
    i, j = np.triu_indices(len(own), 1)
    rho = np.linspace(-1, 1, 81)
    theory = theory_of(rho)
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


def _raw(one: Scene) -> tuple[Array, Array]:
    """The queries' vectors before the slot map and behind it, before slots are brought to one length: two (n, ...) tables."""
    cell, material = one.cell, one.study.material
    before, after = [], []
    for slot_map, kind in zip(material.fitting.slot_maps(cell, one.draw), material.fitting.sources(cell.arm)):
        values = kind.take(one.ids).values
        path = [step for step in slot_map.steps if step.op != "norm"]
        before.append(values.reshape(len(values), -1))
        after.append(steps.run(path, values).reshape(len(values), -1))
    return np.concatenate(before, 1), np.concatenate(after, 1)


def _layers(one: Scene) -> tuple[float, Callable[[Array], Array]]:
    """The width of the one random layer that would move cosines as much as this map's linear layers do one after the other
    (their variances 1/width add up; infinite without a layer), and what theory takes a cosine to."""
    path = one.study.material.fitting.slot_maps(one.cell, one.draw)[0].steps
    narrow = sum(1 / step.arrays["weight"].shape[1] for step in path if step.op == "linear")
    bends = [step.op for step in path if step.op in ACTIVATIONS]
    theory = partial(spaces.relu_cosine, layers=len(bends)) if set(bends) <= {"relu"} else _unknown
    return 1 / narrow if narrow else float("inf"), theory


def _unknown(rho: Array) -> Array:
    """Where cosines go under GELU or tanh depends on how long the vectors are: there is no curve."""
    return np.full(np.shape(rho), np.nan)


def _cosines(gram: Array, own: Array, bound: float, theory: Callable[[Array], Array]) -> dict[str, Array]:
    """How slots' cosines follow the encoder's."""
    x, y = spaces.pairs(spaces.cosines(own)), spaces.pairs(spaces.cosines(gram))
    dx, dy = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    sx, sy, both = (dx**2).mean(-1), (dy**2).mean(-1), (dx * dy).mean(-1)
    some = (sx > 1e-14) & (sy > 1e-14)
    away = np.abs(y - theory(x))
    near = np.where(np.isnan(away), np.nan, away <= bound + 1e-6)
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
    put(
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


# ------------------------------------------------------------------------------------------------ says


def says_of_slots(data: xr.Dataset) -> list[str]:
    real, noise = {"control": "real"}, {"control": "noise"}
    among, known = float(data["token_to_token"].mean()), np.isfinite(data["theory"]).all()
    inside = (
        f"Of the pairs, {ci(data, 'cosine_within', **real)} lie within theory's bound of {float(data['bound']):.2f}"
        if known else "Theory has no bound for the activations of this map"
    )  # fmt: skip
    return [
        f"The slot map takes a mean cosine of {ci(data, 'cosine_before')} to {ci(data, 'cosine_after', **real)}; over pairs, cosines "
        f"before and after correlate at {ci(data, 'cosine_correlation', **real)} (noise vectors: "
        f"{ci(data, 'cosine_correlation', **noise)}), with slope {ci(data, 'cosine_slope', **real)}.",
        f"{inside}; norms behind the map over norms before it vary by {float(data['norm_spread']):.1%}.",
        f"A slot's cosine to its nearest token is {ci(data, 'token_cosine', **real)} (noise vectors: "
        f"{ci(data, 'token_cosine', **noise)}; a random token to its nearest other: {among:.2f}).",
    ]
