"""Which items of the pool become shots, and in which order they stand.

This room owns positions: it returns where shots stand in the task and never touches an item. Everything it is given
over items (labels, vectors, similarities) is indexed by position in the task; what it returns lies in the pool, always,
and never is the query itself. Ties go to the lower position, so that a result depends on the seed and on nothing else.

A selection or an order that asks for a query (`needs_query`) takes one position or an array of them, and gives one row
of shots a query. Those that do not are the same for all queries, which is what lets the engine share the prompt's prefix.

What is near is a likeness: a function from positions (m,) to the similarity (m, N) of every item to each. `cosine` of
vectors and `tanimoto` of fingerprints are two; "nearest-tanimoto" is how a cell names the selection "nearest" by the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest

Likeness = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class _Given:
    """What a rule may look at: `y` (N,), `near` (N,) similarity of every item to the query, `like` of any items."""

    rng: np.random.Generator
    y: np.ndarray | None = None
    near: np.ndarray | None = None
    like: Likeness | None = None

    def need(self, what: str, rule: str) -> Any:
        value = getattr(self, what)
        if value is None:
            words = {
                "y": "y, the label of every item",
                "near": "a query and vectors (or similarity)",
                "like": "vectors, or a likeness as similarity",
            }
            raise StudyError(f"{rule!r} needs {words[what]}")
        return value


def _by_label(pool: np.ndarray, y: np.ndarray) -> np.ndarray:
    return pool[np.lexsort((pool, y[pool]))]


# ------------------------------------------------------------------------------------------ selections


def _random(k: int, pool: np.ndarray, given: _Given) -> np.ndarray:
    """k items, each set of k equally likely."""
    return given.rng.choice(pool, k, replace=False)


def _quantile(k: int, pool: np.ndarray, given: _Given) -> np.ndarray:
    """One random item of each of k bins of equal size of the pool sorted by label (the paper's text)."""
    bins = np.array_split(_by_label(pool, given.need("y", "quantile")), k)
    return np.array([given.rng.choice(b) for b in bins])


def _quantile_even(k: int, pool: np.ndarray, given: _Given) -> np.ndarray:
    """The k evenly spaced quantiles of the pool sorted by label, ends included (the released code); no chance in it."""
    return _by_label(pool, given.need("y", "quantile-even"))[np.linspace(0, len(pool) - 1, k).round().astype(int)]


def _balanced(k: int, pool: np.ndarray, given: _Given) -> np.ndarray:
    """Equally many items of every class; of numbers, of each of min(k, 10) bins of equal width over their range.

    Groups take turns in random order until k are drawn; an exhausted group is passed over.
    """
    y = given.need("y", "balanced")[pool]
    if y.dtype.kind == "f":
        y = np.digitize(y, np.linspace(y.min(), y.max(), min(k, 10) + 1)[1:-1])
    turn, rank = np.empty(len(pool)), np.empty(len(pool))
    for group in np.unique(y):
        members = np.flatnonzero(y == group)
        rank[members] = given.rng.permutation(len(members))
        turn[members] = given.rng.random()  # who goes first among groups in a round
    return pool[np.lexsort((turn, rank))[:k]]


def _nearest(k: int, pool: np.ndarray, given: _Given) -> np.ndarray:
    """The k most similar to the query, the most similar first."""
    return pool[np.lexsort((pool, -given.need("near", "nearest")[pool]))[:k]]


def _farthest(k: int, pool: np.ndarray, given: _Given) -> np.ndarray:
    """The k least similar to the query, the least similar first."""
    return pool[np.lexsort((pool, given.need("near", "farthest")[pool]))[:k]]


def _diverse(k: int, pool: np.ndarray, given: _Given) -> np.ndarray:
    """A random first item, then always the one whose nearest chosen item is farthest: greedy max-min.

    Within a factor of two of the best possible spread (Gonzalez 1985). O(k n d).
    """
    like = given.need("like", "diverse")
    chosen = [int(given.rng.integers(len(pool)))]
    closest = np.full(len(pool), -np.inf)
    while len(chosen) < k:
        closest = np.maximum(closest, like(pool[chosen[-1:]])[0, pool])
        closest[chosen[-1]] = np.inf
        chosen.append(int(np.argmin(closest)))
    return pool[chosen]


SELECTIONS: dict[str, Callable[[int, np.ndarray, _Given], np.ndarray]] = {
    "quantile": _quantile,
    "quantile-even": _quantile_even,
    "random": _random,
    "balanced": _balanced,
    "nearest": _nearest,
    "farthest": _farthest,
    "diverse": _diverse,
}

# ---------------------------------------------------------------------------------------------- orders

ORDERS: dict[str, Callable[[np.ndarray, _Given], np.ndarray]] = {
    "given": lambda shots, given: shots.copy(),
    "random": lambda shots, given: given.rng.permutation(np.sort(shots)),
    "ascending": lambda shots, given: _by_label(shots, given.need("y", "ascending")),
    "descending": lambda shots, given: _by_label(shots, given.need("y", "descending"))[::-1].copy(),
    "near-first": lambda shots, given: shots[np.lexsort((shots, -given.need("near", "near-first")[shots]))],
    "near-last": lambda shots, given: shots[np.lexsort((shots, -given.need("near", "near-last")[shots]))][::-1].copy(),
}


def needs_query(how: str) -> bool:
    """Does this selection or order depend on the query (and so break the prefix that queries share)?"""
    rule, _ = measured(how)
    if rule not in SELECTIONS and rule not in ORDERS:
        raise StudyError(f"selection or order {how!r} is unknown; {nearest(how, [*SELECTIONS, *ORDERS])}")
    return rule in ("nearest", "farthest", "near-first", "near-last")


MEASURES = ("cosine", "tanimoto")


def measured(how: str) -> tuple[str, str]:
    """A selection or order and the measure it goes by: "nearest-tanimoto" is ("nearest", "tanimoto"); else the cosine."""
    rule, dash, measure = how.rpartition("-")
    return (rule, measure) if dash and measure in MEASURES else (how, "cosine")


def cosine(vectors: np.ndarray) -> Likeness:
    """The cosine of vectors (N, d) or (N, slots, d), 0 for a vector of zeros; rounded, so that equal vectors tie in any batch."""
    unit = _unit(vectors)
    return lambda positions: (unit[np.atleast_1d(positions)] @ unit.T).round(10)


def tanimoto(bits: np.ndarray) -> Likeness:
    """Tanimoto's similarity of fingerprints (N, bits) of 0 and 1: bits in common over bits in either; 1 where neither has any."""
    bits = np.asarray(bits, np.float32)  # counts of bits are whole numbers, exact in float32
    if bits.ndim != 2 or not ((bits == 0) | (bits == 1)).all():
        raise DataError(
            f"Tanimoto's similarity compares fingerprints of 0 and 1, a row an item, not shape {bits.shape}"
        )
    count = bits.sum(1)

    def like(positions: np.ndarray) -> np.ndarray:
        some = np.atleast_1d(positions)
        both = (bits[some] @ bits.T).astype(np.float64)
        either = count[some][:, None] + count - both
        return np.divide(both, either, out=np.ones_like(both), where=either > 0).round(10)

    return like


# ------------------------------------------------------------------------------------------- the two doors


def _unit(vectors: np.ndarray) -> np.ndarray:
    flat = np.asarray(vectors, np.float64).reshape(len(vectors), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)


def _like(vectors: np.ndarray | None, similarity: Any) -> Likeness | None:
    """The likeness given, else the cosine of the vectors."""
    if callable(similarity):
        return similarity
    return None if vectors is None else cosine(vectors)


def _near(like: Likeness | None, similarity: Any, query: np.ndarray) -> np.ndarray | None:
    """(queries, N) similarity of every item to each query: as given, else by the likeness."""
    if similarity is None or callable(similarity):
        return None if like is None else like(query)
    table = np.asarray(similarity, np.float64)
    table = np.broadcast_to(table, (len(query), table.shape[-1]))
    if np.isnan(table).any():
        raise DataError("similarity has a NaN; every item needs a similarity to every query")
    return table


def _labels(y: Any) -> np.ndarray | None:
    if y is None:
        return None
    y = np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "fiub":
        raise StudyError("y must hold one number or one class code (an integer) an item; text would be sorted as text")
    if y.dtype.kind == "f" and np.isnan(y).any():
        raise DataError(f"y has a NaN at position {int(np.flatnonzero(np.isnan(y))[0])}; every item needs a label")
    return y


def select(
    how: str,
    *,
    k: int,
    pool: np.ndarray,
    seed: int,
    y: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
    query: int | np.ndarray | None = None,
    similarity: np.ndarray | Likeness | None = None,
) -> np.ndarray:
    """k positions of the pool: (k,), or (queries, k) if `query` is an array and `how` needs one.

    pool        positions that may be shots; in which order they are given does not matter
    y           (N,) numbers, or integers for classes
    vectors     (N, d) or (N, slots, d); similarity is the cosine of them
    query       position of the query, or several; a query that lies in the pool is never its own shot
    similarity  (N,) or (queries, N) in place of the cosine, larger is nearer; or a likeness, which "diverse" goes by too
    A pool with fewer than k items is a DataError, an unknown name or a missing argument a StudyError.
    """
    if how not in SELECTIONS:
        raise StudyError(f"selection {how!r} is unknown; {nearest(how, SELECTIONS)}")
    pool = np.unique(np.asarray(pool, np.int64))
    if k < 1:
        raise StudyError(f"a prompt needs at least one shot, not {k}")
    y, like = _labels(y), _like(vectors, similarity)
    for what, over in (("y", y), ("vectors", vectors)):
        if over is not None and len(pool) and pool[-1] >= len(over):
            raise DataError(
                f"{what} has {len(over)} rows and the pool holds position {pool[-1]}; {what} must cover all items"
            )
    if not needs_query(how):
        if query is not None:
            pool = np.setdiff1d(pool, query)
        _enough(k, pool)
        return SELECTIONS[how](k, pool, _Given(np.random.default_rng([seed, 5]), y, None, like))
    queries = np.atleast_1d(np.asarray([] if query is None else query, np.int64))
    near = _near(like, similarity, queries)
    if query is None or near is None:
        raise StudyError(f"selection {how!r} needs a query and vectors (or similarity)")
    out = np.empty((len(queries), k), np.int64)
    for row, position in enumerate(queries):
        own = pool[pool != position]
        _enough(k, own)
        out[row] = SELECTIONS[how](k, own, _Given(np.random.default_rng([seed, 5]), y, near[row], like))
    return out[0] if np.asarray(query).ndim == 0 else out


def _enough(k: int, pool: np.ndarray) -> None:
    if len(pool) < k:
        raise DataError(
            f"{k} shots were asked for and the pool has {len(pool)} items; ask for fewer shots or enlarge the pool"
        )


def order(
    how: str,
    shots: np.ndarray,
    *,
    seed: int,
    y: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
    query: int | np.ndarray | None = None,
    similarity: np.ndarray | Likeness | None = None,
) -> np.ndarray:
    """The same positions in another order: (k,), or (queries, k) where shots or an order that needs a query ask for it.

    "near-last" puts the shot most similar to the query right before it. "random" depends on the set of shots and the
    seed, not on how they were ordered before. Arguments as in `select`.
    """
    if how not in ORDERS:
        raise StudyError(f"order {how!r} is unknown; {nearest(how, ORDERS)}")
    shots, y = np.asarray(shots, np.int64), _labels(y)
    near = None
    rows = len(shots) if shots.ndim == 2 else 1
    if needs_query(how):
        queries = np.atleast_1d(np.asarray([] if query is None else query, np.int64))
        near = _near(_like(vectors, similarity), similarity, queries)
        if query is None or near is None:
            raise StudyError(f"order {how!r} needs a query and vectors (or similarity)")
        if shots.ndim == 2 and len(queries) != rows:
            raise StudyError(f"{rows} rows of shots and {len(queries)} queries; there must be one query a row")
        rows = len(queries)
    each = np.broadcast_to(shots, (rows, shots.shape[-1]))
    out = np.stack(
        [
            ORDERS[how](row, _Given(np.random.default_rng([seed, 6]), y, None if near is None else near[i]))
            for i, row in enumerate(each)
        ]
    )
    single = shots.ndim == 1 and (near is None or np.asarray(query).ndim == 0)
    return out[0] if single else out
