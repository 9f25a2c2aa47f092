"""Landmarks: at which depth a relation to the encoder's or the label's geometry is first found, and from which on it is lost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from icrl_lab.probes.arrays import Named, put
from icrl_lab.probes.jackknife import ends, p_of
from icrl_lab.probes.spaces import Array
from icrl_lab.stats import adjusted

BY = ("control", "space")
POSITIONS = ("slot", "answer")
RELATIONS = ("encoder", "label")
RESAMPLES = 400
LANDMARKS = (
    "encoder: the interval of real less noise excludes zero, where it does so at any depth corrected over depths "
    "(Benjamini-Hochberg); label: above the largest over depths of shuffled labels (permutation test, 5 %); ranges: 95 % of "
    "bootstrap resamples of seeds and items against the same bars"
)


def landmarks(found: Array) -> tuple[Array, Array]:
    """Of truths (..., D) at depths 0 to D - 1: the first that is true (D: none), and the one behind the last (0: none)."""
    top, some = found.shape[-1], found.any(-1)
    return np.where(some, found.argmax(-1), top), np.where(some, top - found[..., ::-1].argmax(-1), 0)


def put_tests(into: Named, tables: Mapping[str, Array], shuffled: Array, kinds: Array, seed: int) -> None:
    """Tests of both relations in every space, and the depths where each is first found and lost, with their ranges."""
    gap, mine = tables["encoder_rsa"][0] - tables["encoder_rsa"][1], tables["label_rsa"][0]
    over = gap.mean((-1, -2))
    low, high = ends(over, gap, "plain")
    p, q = p_of(over, gap), np.full(len(kinds), np.nan)
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
    put(into, "over_noise", BY[1:], (over, low, high), words, "difference of rho")
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
        held = {k: (now, *np.quantile(again, [0.025, 0.975], method="nearest")) for k, (now, again) in rows.items()}
        table = np.array([[held[r, p] for p in POSITIONS] for r in RELATIONS], float)
        put(into, name, dims, list(np.moveaxis(table, -1, 0)), f"{long} ({top}: behind the last)", "depth")
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
