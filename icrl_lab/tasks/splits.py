"""Which items shots and maps may come from (the pool), and which are asked about (the queries).

The one rule: no item is on both sides. A split depends on the ids, the seed and the fraction, and on nothing else:
not on the order of the rows, and not on the seed of a study, so that every seed of a study asks the same queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.tasks.molecules import quiet, scaffold
from icrl_lab.values import Task

SIDES = {  # what a given split may be called -> its side
    **dict.fromkeys(("train", "training", "train_val", "pool"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "query", "queries"), "test"),
}


def split(
    task: Task, how: str | Mapping[str, str] | Sequence[str] = "random", seed: int = 0, fraction: float = 0.5
) -> Task:
    """The same task with pool and queries drawn anew; both in a random order that the seed fixes.

    how       "random"; "scaffold": whole Bemis-Murcko scaffolds, the frequent ones to the pool; or a given split, one
              side ("train", "valid", "test") an item in the task's order or by id: train is the pool, test the
              queries, and valid is in neither (`task.split` says how many)
    fraction  the share of queries, between 0 and 1, for "random" and "scaffold"; a scaffold split gives at least that
              share, because scaffolds stay whole
    """
    if not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise StudyError(f"query_fraction must lie between 0 and 1, not {fraction!r}")
    if not isinstance(how, str):
        return _given(task, how, seed)
    if how not in SPLITS:
        raise StudyError(f"split {how!r} does not exist; {nearest(how, SPLITS)}")
    size = min(max(round(fraction * len(task)), 1), len(task) - 1)
    pool, queries = SPLITS[how](task, seed, size)
    return _checked(task, pool, queries, how)


def _random(task: Task, seed: int, size: int) -> tuple[list[int], list[int]]:
    order = shuffled(task.ids, seed)
    return order[size:], order[:size]


def _scaffold(task: Task, seed: int, size: int) -> tuple[list[int], list[int]]:
    if task.modality != "molecule":
        raise StudyError(f"a scaffold split needs molecules; task {task.name!r} is of modality {task.modality!r}")
    order = shuffled(task.ids, seed)
    groups: dict[str, list[int]] = {}
    with quiet():
        for position in order:
            groups.setdefault(scaffold(task.items[position]), []).append(position)
    names = list(groups)
    rank = {names[p]: r for r, p in enumerate(shuffled(names, seed))}
    room = len(task) - size
    pool: set[int] = set()
    for name in sorted(names, key=lambda g: (-len(groups[g]), rank[g])):  # frequent first, ties by the seed
        if len(pool) + len(groups[name]) <= room:
            pool.update(groups[name])
    return [p for p in order if p in pool], [p for p in order if p not in pool]


SPLITS = {"random": _random, "scaffold": _scaffold}


def _given(task: Task, how: Mapping[str, str] | Sequence[str], seed: int) -> Task:
    names = [how.get(i, "") for i in task.ids] if isinstance(how, Mapping) else list(how)
    if len(names) != len(task):
        raise DataError(f"task {task.name!r}: a given split of {len(names)} sides for {len(task)} items")
    sides = [SIDES.get(str(name).strip().lower()) for name in names]
    if None in sides:
        at = sides.index(None)
        raise DataError(
            f"task {task.name!r}: item {task.ids[at]!r} has the side {names[at]!r}; {nearest(names[at], SIDES)}"
        )
    order = shuffled(task.ids, seed)
    valid = sides.count("valid")
    called = "given" + (f" ({valid} validation items in neither side)" if valid else "")
    return _checked(task, [p for p in order if sides[p] == "train"], [p for p in order if sides[p] == "test"], called)


def _checked(task: Task, pool: list[int], queries: list[int], how: str) -> Task:
    for side, what in ((pool, "pool (train)"), (queries, "queries (test)")):
        if not side:
            raise DataError(
                f"task {task.name!r}: the split {how!r} leaves no item for the {what}; choose another split"
            )
    return replace(task, pool=np.array(pool, np.int64), queries=np.array(queries, np.int64), split=how)


def shuffled(names: Sequence[str], seed: int) -> list[int]:
    """Positions in the order of a hash of seed and name.

    A generator would shuffle positions; a hash shuffles names, so that reordering a table changes nothing and leaving
    out a row leaves the order of the others as it was. It is also the same in every version of numpy.
    """
    keys = [hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest() for name in names]
    return sorted(range(len(names)), key=lambda p: (keys[p], names[p]))
