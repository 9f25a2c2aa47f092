"""Which items a cell shows and asks about, and with which labels. Knows no prompt and no model.

Every arm and every control of a seed sees the same shots, the same labels and the same queries; what chance decides is drawn from
streams named after what they decide (`stream`), never from one another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from zlib import crc32

import numpy as np

from icrl_lab import answers, shots
from icrl_lab.encoders import encode
from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.shots import Likeness
from icrl_lab.studies.cells import Cell
from icrl_lab.studies.plan_checks import check
from icrl_lab.studies.sections import PlanSpec
from icrl_lab.values import Task, Vectors

NOUNS = {"molecule": "Molecule", "image": "Image", "protein": "Protein", "audio": "Sound"}


def stream(what: str, *numbers: int) -> int:
    """A seed of its own for each thing that chance decides."""
    return int(np.random.default_rng([crc32(what.encode()), *numbers]).integers(2**31))


@dataclass(frozen=True, eq=False)
class Shots:
    """The shots of some queries: positions in the task, in the order of the prompt, and the label each is shown with."""

    queries: tuple[int, ...]
    positions: np.ndarray
    written: tuple[str, ...]

    def arranged(self, rows: Sequence[int]) -> Shots:
        """Some of these shots, or all of them in another order, by where they stand now; each keeps its label."""
        return Shots(self.queries, self.positions[list(rows)], tuple(self.written[r] for r in rows))


def joined(kinds: Sequence[Vectors]) -> Vectors:
    """Vectors of several encoders side by side, (n, sum of widths): what similarity and the simple predictors look at."""
    flat = [kind.take(kinds[0].ids).values.reshape(len(kind), -1) for kind in kinds]
    return Vectors(np.concatenate(flat, axis=1), kinds[0].ids, " + ".join(kind.space for kind in kinds))


def _refuse_alike(kind: Vectors, task: Task) -> None:
    """A DataError where the pool's vectors do not differ: a slot map would scale what rounding left of them up to the norm of a slot."""
    pool = kind.values[task.pool]
    rounding = 4 * np.finfo(np.float32).eps * np.abs(pool).max(0)
    if len(pool) > 1 and (np.ptp(pool, axis=0) <= rounding).all():
        what = "zero" if not pool.any() else "the same"
        raise DataError(
            f"the {len(pool)} vectors of {kind.space!r} in the pool of task {task.name!r} are all {what}, so that a slot says nothing of "
            "its item; give vectors that differ, or take only arms without slots, such as 'text'"
        )


class Choice:
    """A task's items and vectors seen through a plan."""

    def __init__(self, task: Task, vectors: Vectors | Sequence[Vectors], plan: PlanSpec) -> None:
        if not isinstance(task, Task):
            raise StudyError(
                f"a study takes a Task, then its Vectors, then an LLM, and the first is {type(task).__name__}; make it with load_task(...)"
            )
        check(task, plan)
        self.task, self.plan = task, plan
        given: tuple[Any, ...] = tuple(vectors) if isinstance(vectors, Iterable) else (vectors,)
        if not given or not all(isinstance(kind, Vectors) for kind in given):
            what = type(vectors).__name__ if given else "none"
            raise StudyError(
                f"a study takes Vectors, one or several kinds of them, not {what}; make them with encode(task, ...)"
            )
        self.kinds = tuple(kind.take(task.ids) for kind in given)  # each has its own map and its own slots
        once = [kind.once() for kind in self.kinds]  # a vector that stands in several slots counts once
        if any(arm.has_slots and arm.name != "random-noise" for arm in plan.asked):
            for kind in once:
                _refuse_alike(kind, task)
        self.vectors = once[0] if len(given) == 1 else joined(once)
        self.queries = self._queries()
        self.format = None
        if task.targets is not None:
            self.format = answers.fit_format(plan.label_format, task.targets[task.pool], plan.label_bins)
            self._reads = lru_cache(maxsize=4096)(self.format.read)  # every answer is compared with all labels shown

    def _queries(self) -> np.ndarray:
        """Positions of the items asked about: the same for every seed, arm and control."""
        possible = self.task.queries
        if len(possible) <= self.plan.queries:
            return possible
        rng = np.random.default_rng([crc32(b"queries"), self.plan.split_seed])
        return np.sort(rng.choice(possible, self.plan.queries, replace=False))

    @cached_property
    def y(self) -> np.ndarray:
        """(N,) targets in the task's units, or the number of each item's class among the options."""
        task = self.task
        if task.targets is not None:
            return task.targets
        assert task.labels is not None
        return np.array([task.options.index(c) for c in task.labels])

    def written(self, position: int) -> str:
        """The true label of an item as a prompt shows it."""
        if self.format is not None:
            assert self.task.targets is not None
            return self.format.write(self.task.targets[position])
        assert self.task.labels is not None
        return self.task.labels[position]

    def copied(self, answer: Any, shown: Shots) -> bool:
        """Whether an answer is the label of one of its shots; of numbers, whether its most probable value is."""
        if self.format is None:
            return answer.label in shown.written
        return answer.mode in {self._reads(label) for label in shown.written}

    def shots(self, cell: Cell, draw: int) -> list[Shots]:
        """The shots of each group of queries that share them: one group, unless selection or order looks at the query.

        Selection and order look at the true targets, also where labels are permuted: the same items stand in the same places.
        """
        by_query = shots.needs_query(cell.selection), shots.needs_query(cell.order)
        groups = [(int(q),) for q in self.queries] if any(by_query) else [tuple(int(q) for q in self.queries)]
        given: dict[str, Any] = {"y": self.y, "vectors": self.vectors.values}
        asked: list[dict[str, Any]] = [{"query": self.queries} if each else {} for each in by_query]
        how, measure = shots.measured(cell.selection)
        asked[0] |= {"similarity": self.likeness(measure)} if measure != "cosine" else {}
        seed = stream("selection", cell.seed, cell.shots)
        chosen = shots.select(how, k=cell.shots, pool=self.task.pool, seed=seed, **given, **asked[0])
        ordered = shots.order(cell.order, chosen, seed=stream("order", cell.seed, draw), **given, **asked[1])
        return [self.group(cell, group, row) for group, row in zip(groups, np.atleast_2d(ordered))]

    def group(self, cell: Cell, queries: tuple[int, ...], row: np.ndarray) -> Shots:
        """The shots at positions `row`, with the labels that the cell shows them with."""
        # labels are tied to items before the order is drawn: another order shows the same pairs
        label_of = self._labels_of(np.sort(row), cell)
        return Shots(queries, row, tuple(label_of[int(p)] for p in row))

    def likeness(self, measure: str) -> Likeness:
        """Similarity of the task's items by one of shots.MEASURES: cosine of the encoders' vectors, or Tanimoto of Morgan
        fingerprints (radius 2, 2048 bits). A StudyError where items are not molecules."""
        if measure not in shots.MEASURES:
            raise StudyError(f"similarity {measure!r} is unknown; {nearest(measure, shots.MEASURES)}")
        return shots.tanimoto(self._fingerprints) if measure == "tanimoto" else shots.cosine(self.vectors.values)

    @cached_property
    def _fingerprints(self) -> np.ndarray:
        if self.task.modality != "molecule":
            raise StudyError(
                f"Tanimoto's similarity compares molecules, and the items of {self.task.name!r} are not; take the cosine"
            )
        return encode(self.task, "morgan", progress=False).values

    def _labels_of(self, chosen: np.ndarray, cell: Cell) -> dict[int, str]:
        return {int(p): self.written(int(chosen[i])) for p, i in zip(chosen, self._turn(len(chosen), cell))}

    def _turn(self, n: int, cell: Cell) -> np.ndarray:
        """Whose label each of n shots, sorted by position, is shown with; permuted, never all with their own (one shot has no other)."""
        own = np.arange(n)
        if cell.labels == "true" or n < 2:
            return own
        rng = np.random.default_rng(stream("labels", cell.seed, cell.shots))
        while np.array_equal(turn := rng.permutation(n), own):
            pass
        return turn

    def reference(self, group: Shots) -> float | str:
        """What the shots alone say: the mean of their targets, or their most frequent class."""
        if self.task.targets is not None:
            return float(self.task.targets[group.positions].mean())
        assert self.task.labels is not None
        seen = [self.task.labels[p] for p in group.positions]
        return max(sorted(self.task.options), key=seen.count)  # a tie goes as that of the majority baseline

    def shown_targets(self, group: Shots, cell: Cell) -> np.ndarray:
        """What a simple predictor may learn from: the shots' targets in the task's units, or their classes; permuted as shown."""
        by_item = np.sort(group.positions)
        turn = self._turn(len(by_item), cell)
        value = self.y[by_item[turn]] if self.task.targets is not None else np.array(self.task.labels)[by_item[turn]]
        return value[np.searchsorted(by_item, group.positions)]

    def gold_labels(self, cell: Cell) -> int:
        """Labels of the pool that the arm may look at: those of its shots, and a supervised map's own budget."""
        return max(cell.shots, *(int(arm.options.get("budget", 0)) for arm in cell.arm.members))

    @property
    def words(self) -> dict[str, Any]:
        """What a template may say of the task."""
        task = self.task
        scale = self.format.scale(task.units) if self.format is not None else "as one of " + ", ".join(task.options)
        noun = NOUNS.get(task.modality, "Item")
        sought = self.format.sought if self.format is not None else "class"
        return {"property": task.property, "units": task.units, "scale": scale, "noun": noun, "sought": sought}
