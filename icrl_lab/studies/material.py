"""What goes into a cell: its shots, their labels, the fitted maps, the prompts.

Everything is a function of the study and the cell's own values, so that a cell can be computed alone, in any order, and
again. Every arm and every control of a seed sees the same shots, the same labels and the same queries; what chance decides
is drawn from streams named after what they decide (`_stream`), never from one another's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np

from icrl_lab import answers, controls, maps, prompts, shots
from icrl_lab.errors import DataError, StudyError
from icrl_lab.studies.cells import Cell
from icrl_lab.studies.spec import Arm, PlanSpec
from icrl_lab.values import Prompt, Rendered, SlotMap, Task, Vectors

NOUNS = {"molecule": "Molecule", "image": "Image", "protein": "Protein", "audio": "Sound"}


def _stream(what: str, *numbers: int) -> int:
    """A seed of its own for each thing that chance decides."""
    return int(np.random.default_rng([crc32(what.encode()), *numbers]).integers(2**31))


@dataclass(frozen=True, eq=False)
class Shots:
    """The shots of some queries: positions in the task, in the order of the prompt, and the label each is shown with."""

    queries: tuple[int, ...]
    positions: np.ndarray
    written: tuple[str, ...]


class Material:
    """The study's items seen through its plan. Holds the task, the vectors and what is fitted once; knows no engine."""

    def __init__(self, task: Task, vectors: Vectors, llm: Any, plan: PlanSpec) -> None:
        self.task, self.plan, self.llm = task, plan, llm
        self.vectors = vectors.take(task.ids)
        self.tokenizer = llm.tokenizer
        self.queries = self._queries()
        self.template = prompts.layout(plan.layout, markers=plan.markers)
        self.format = None if task.targets is None else answers.fit_format(plan.label_format, task.targets[task.pool])
        self._maps: dict[tuple[Any, ...], SlotMap] = {}
        self._check()

    def _check(self) -> None:
        most = max(self.plan.shots)
        if most > len(self.task.pool):
            raise DataError(
                f"task {self.task.name!r} has {len(self.task.pool)} items in its pool and the study asks for {most} shots; "
                "use fewer shots or a smaller query_fraction"
            )
        needs_text = [a.label for a in self.plan.arms if a.name in ("text", "moments-text")]
        needs_text += (
            ["with_text = true"]
            if True in self.plan.with_text and any(a.name != "text" for a in self.plan.arms)
            else []
        )
        if self.task.text is None and needs_text:
            raise StudyError(
                f"task {self.task.name!r} has no text, and {needs_text[0]} needs one; name its text column or leave it out"
            )
        if self.plan.queries_per_prompt > 1 and any(
            shots.needs_query(s) for s in (*self.plan.selection, *self.plan.order)
        ):
            raise StudyError("shots that depend on the query (nearest, near-last, ...) need queries_per_prompt = 1")

    def _queries(self) -> np.ndarray:
        """Positions of the items asked about: the same for every seed, arm and control."""
        possible = self.task.queries
        if not len(possible):
            raise DataError(f"task {self.task.name!r} has no item to ask about; its split leaves the query side empty")
        if len(possible) <= self.plan.queries:
            return possible
        rng = np.random.default_rng([crc32(b"queries"), self.plan.split_seed])
        return np.sort(rng.choice(possible, self.plan.queries, replace=False))

    # ------------------------------------------------------------------------------------ shots and labels

    @cached_property
    def _y(self) -> np.ndarray:
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

    def shots(self, cell: Cell, draw: int) -> list[Shots]:
        """The shots of each group of queries that share them: one group, unless selection or order looks at the query."""
        per_query = shots.needs_query(cell.selection) or shots.needs_query(cell.order)
        groups = [(int(q),) for q in self.queries] if per_query else [tuple(int(q) for q in self.queries)]
        unit = self.vectors.values.reshape(len(self.vectors), -1)
        given: dict[str, Any] = {"y": self._y, "vectors": unit}
        out = []
        for group in groups:
            query: dict[str, Any] = {"query": group[0]} if per_query else {}
            seed = _stream("selection", cell.seed, cell.shots)
            chosen = shots.select(cell.selection, k=cell.shots, pool=self.task.pool, seed=seed, **given, **query)
            # labels are tied to items before the order is drawn: another order shows the same pairs
            label_of = self._labels_of(np.sort(chosen), cell)
            ordered = shots.order(cell.order, chosen, seed=_stream("order", cell.seed, draw), **given, **query)
            out.append(Shots(group, ordered, tuple(label_of[int(p)] for p in ordered)))
        return out

    def _labels_of(self, chosen: np.ndarray, cell: Cell) -> dict[int, str]:
        return {int(p): self.written(int(chosen[i])) for p, i in zip(chosen, self._turn(len(chosen), cell))}

    def _turn(self, n: int, cell: Cell) -> np.ndarray:
        """Whose label each of n shots, sorted by position, is shown with."""
        if cell.labels == "true":
            return np.arange(n)
        return np.random.default_rng(_stream("labels", cell.seed, cell.shots)).permutation(n)

    def reference(self, group: Shots) -> float | str:
        """What the shots alone say: the mean of their targets, or their most frequent class."""
        if self.task.targets is not None:
            return float(self.task.targets[group.positions].mean())
        assert self.task.labels is not None
        seen = [self.task.labels[p] for p in group.positions]
        return max(self.task.options, key=seen.count)

    def shown_targets(self, group: Shots, cell: Cell) -> np.ndarray:
        """What a simple predictor may learn from: the shots' targets in the task's units, or their classes; permuted as shown."""
        by_item = np.sort(group.positions)
        turn = self._turn(len(by_item), cell)
        value = self._y[by_item[turn]] if self.task.targets is not None else np.array(self.task.labels)[by_item[turn]]
        return value[np.searchsorted(by_item, group.positions)]

    def gold_labels(self, cell: Cell) -> int:
        """Labels of the pool that the arm may look at: those of its shots, and a supervised map's own budget."""
        return max(cell.shots, int(cell.arm.options.get("budget", 0)))

    # ------------------------------------------------------------------------------------ maps

    @cached_property
    def _pool(self) -> Vectors:
        return self.vectors.take([self.task.ids[p] for p in self.task.pool])

    def _token_ids(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]:
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return tuple(np.asarray(ids, np.int64) for ids in found)

    @cached_property
    def tokens(self) -> maps.Tokens:
        """What the maps may know of the model, and of the texts of the pool (never of the queries)."""
        names = {arm.name for arm in self.plan.arms}
        text = pca = None
        if "moments-text" in names and self.task.text is not None:
            text = self._token_ids([self.task.text[p] for p in self.task.pool])
        if "moments-pca" in names:
            pca = self._token_ids(maps.pca_text(self._pool, self._pool))
        labels = sorted({self.written(int(p)) for p in self.task.pool})
        label_ids = dict(zip(labels, (ids.tolist() for ids in self._token_ids(labels))))
        return maps.Tokens(self.llm.embeddings, self.llm.space, text, pca, label_ids)

    def slot_map(self, cell: Cell, draw: int) -> SlotMap:
        """The cell's map: fitted on the pool, and on the labels of its shots (and of `budget` items) where it needs labels."""
        arm = cell.arm
        supervised = maps.NEEDS.get(arm.name) == "labels"
        key: tuple[Any, ...] = (arm.label, cell.seed, draw)
        if supervised:
            key += (cell.labels, cell.shots, cell.selection, cell.order)
        if key not in self._maps:
            options = {k: v for k, v in arm.options.items() if k != "budget"}
            given: dict[str, Any] = {"labels": self._budget(cell, draw)} if supervised else {}
            scale = arm.slot_scale
            pool = self._code if arm.name == "random-noise" else self._pool
            seed = _stream("map", cell.seed, draw)
            self._maps[key] = maps.fit(arm.name, pool, self.tokens, seed=seed, slot_scale=scale, **given, **options)
        return self._maps[key]

    def fitted(self) -> dict[str, SlotMap]:
        """Every map fitted so far, by a name that says for what."""
        return {"-".join(str(part) for part in key): slot_map for key, slot_map in self._maps.items()}

    def _budget(self, cell: Cell, draw: int) -> dict[str, str]:
        """Item id -> label as written, of the shots first and then of more pool items, up to the arm's label budget."""
        groups = self.shots(cell, draw)
        if len(groups) > 1:
            raise StudyError(
                f"{cell.arm.name} fits one map to the shots, so its shots cannot depend on the query; choose another selection"
            )
        found = dict(zip((self.task.ids[p] for p in groups[0].positions), groups[0].written))
        more = int(cell.arm.options.get("budget", 0)) - len(found)
        if more > 0:
            left = np.setdiff1d(self.task.pool, groups[0].positions)
            if more > len(left):
                raise StudyError(
                    f"{cell.arm.label}: budget {more + len(found)} is more than the pool's {len(self.task.pool)} items"
                )
            rng = np.random.default_rng(_stream("budget", cell.seed))
            extra = np.sort(rng.choice(left, more, replace=False))
            labels = [self.written(int(p)) for p in extra]
            if cell.labels == "permuted":
                labels = [labels[i] for i in rng.permutation(more)]
            found |= dict(zip((self.task.ids[p] for p in extra), labels))
        return found

    @cached_property
    def _codes(self) -> Vectors:
        items = self.task.text if self.task.text is not None else self.task.items
        return maps.hash_vectors(items, self.task.ids, self.vectors.width)

    @property
    def _code(self) -> Vectors:
        return self._codes.take([self.task.ids[p] for p in self.task.pool])

    @cached_property
    def _pca_texts(self) -> tuple[str, ...]:
        return tuple(maps.pca_text(self._pool, self.vectors))

    # ------------------------------------------------------------------------------------ prompts

    def rendered(self, cell: Cell, draw: int) -> tuple[list[Rendered], list[Shots]]:
        """The prompts of a cell under one draw of map and order, and the shots of each group of queries.

        Prompts come in the order of the groups' queries, `queries_per_prompt` queries each.
        """
        groups = self.shots(cell, draw)
        mapped = self._slots(cell, draw, groups) if cell.arm.has_slots else None
        built = [p for group in groups for p in self._prompts(cell, group, mapped.slots if mapped else 1)]
        if mapped is not None:
            seed = _stream("control", cell.seed, draw)
            built, mapped = controls.apply(cell.control, built, mapped, seed=seed, tokens=self.tokens)
        return prompts.render_all(built, self.tokenizer, mapped, self.llm.context), groups

    def _slots(self, cell: Cell, draw: int, groups: Sequence[Shots]) -> Vectors:
        """The mapped vectors of every item of the cell's prompts and of no other."""
        used = sorted({int(p) for g in groups for p in (*g.positions, *g.queries)})
        source = self._codes if cell.arm.name == "random-noise" else self.vectors
        return maps.apply(self.slot_map(cell, draw), source.take([self.task.ids[p] for p in used]))

    def _example(self, arm: Arm, position: int, label: str = "") -> prompts.Example:
        text = self.task.text[position] if self.task.text is not None else ""
        code = self._pca_texts[position] if arm.name == "pca-text" else None
        return prompts.Example(self.task.ids[position], text, label, code)

    def _prompts(self, cell: Cell, group: Shots, width: int) -> list[Prompt]:
        task, size = self.task, self.plan.queries_per_prompt
        view = "text" if cell.arm.name == "text" else "both" if cell.with_text else "vector"
        scale = self.format.scale(task.units) if self.format is not None else "as one of " + ", ".join(task.options)
        shown = [self._example(cell.arm, int(p), label) for p, label in zip(group.positions, group.written)]
        words = {
            "property": task.property,
            "units": task.units,
            "scale": scale,
            "noun": NOUNS.get(task.modality, "Item"),
        }
        asked = [
            [self._example(cell.arm, q) for q in group.queries[i : i + size]]
            for i in range(0, len(group.queries), size)
        ]
        return [prompts.build(self.template, shown, some, view=view, width=width, **words) for some in asked]
