"""The slot maps of a study's cells: each fitted once, on the pool and the labels that its arm may look at, never on the queries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from icrl_lab import maps, prompts
from icrl_lab.encoders import repeat
from icrl_lab.errors import StudyError
from icrl_lab.studies.cells import Cell
from icrl_lab.studies.choice import Choice, stream
from icrl_lab.studies.sections import Arm
from icrl_lab.values import SlotMap, Vectors


@contextmanager
def _blaming(arm: Arm) -> Iterator[None]:
    """A value of the wrong kind among an arm's own options is the user's, whatever the arithmetic says of it."""
    try:
        yield
    except (TypeError, ValueError, StudyError) as error:
        if not arm.options:
            raise
        told = ", ".join(f"{key} = {value!r}" for key, value in arm.options.items())
        raise StudyError(f"the arm {arm.label!r} cannot be fitted with {told}: {error}") from error


class Fitting:
    """Fits and applies the maps of a choice's cells, and holds them; `template` says how a label stands in a prompt."""

    def __init__(self, choice: Choice, llm: Any, template: prompts.Template) -> None:
        self.choice, self.task, self.plan = choice, choice.task, choice.plan
        self.llm, self.tokenizer, self.template = llm, llm.tokenizer, template
        self._maps: dict[tuple[Any, ...], SlotMap] = {}
        self._pca_texts: dict[str, list[str]] = {}

    @cached_property
    def _pool(self) -> Vectors:
        return self._of_pool(self.choice.vectors)

    def _of_pool(self, vectors: Vectors) -> Vectors:
        return vectors.take([self.task.ids[p] for p in self.task.pool])

    def _token_ids(self, texts: Sequence[str]) -> tuple[np.ndarray, ...]:
        found = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return tuple(np.asarray(ids, np.int64) for ids in found)

    @cached_property
    def tokens(self) -> maps.Tokens:
        """What the maps may know of the model, and of the texts of the pool (never of the queries)."""
        names = {arm.name for arm in self.plan.asked}
        text = pca = None
        if "moments-text" in names and self.task.text is not None:
            text = self._token_ids([self.task.text[p] for p in self.task.pool])
        if "moments-pca" in names:
            pca = self._token_ids(maps.pca_text(self._pool, self._pool))
        return maps.Tokens(self.llm.embeddings, self.llm.space, text, pca, self.label_ids())

    def label_ids(self) -> dict[str, list[int]]:
        """The tokens of each label as it stands in a prompt (" a" is another token than "a"): of every label of a closed set of
        numbers, in ascending order, else of those of the pool."""
        form = self.choice.format
        labels = list(form.labels) if form is not None else []
        labels = labels or sorted({self.choice.written(int(p)) for p in self.task.pool})
        shot, query = prompts.Example("shot", "?", labels[0], code="?"), prompts.Example("query", "?", code="?")
        # both views, which any layout has that shows a vector: what stands before a label is nothing to its tokens
        prompt = prompts.build(self.template, [shot], [query], view="both", **self.choice.words)
        (cut,) = prompts.cuts(prompts.render_all([prompt], self.tokenizer), self.tokenizer, labels)
        return {label: list(ids) for label, ids in zip(labels, cut.labels)}

    def slot_maps(self, cell: Cell, draw: int) -> tuple[SlotMap, ...]:
        """The cell's map of each kind of vector: fitted on the pool, and on the labels of its shots (and of `budget` items)
        where it needs labels."""
        arm = cell.arm
        supervised = maps.NEEDS.get(arm.name) == "labels"
        given: dict[str, Any] = {
            "slot_scale": None if arm.slot_scale == "own" else arm.slot_scale,
            **{k: v for k, v in arm.options.items() if k != "budget"},
        }
        condition = (cell.labels, cell.shots, cell.selection, cell.order) if supervised else ()
        found = []
        for number, kind in enumerate(self.sources(arm)):
            key: tuple[Any, ...] = (arm.label, cell.seed, draw, *condition, *([f"kind{number}"] if number else []))
            if key not in self._maps:
                seed = stream("map", cell.seed, draw, *([number] if number else []))
                labels: dict[str, Any] = {"labels": self._budget(cell, draw)} if supervised else {}
                with _blaming(arm):
                    self._maps[key] = maps.fit(arm.name, self._of_pool(kind), self.tokens, seed=seed, **labels, **given)
            found.append(self._maps[key])
        return tuple(found)

    def sources(self, arm: Arm) -> tuple[Vectors, ...]:
        """The kinds of vectors that an arm maps: the encoders', or an identity code without content."""
        return (self._codes,) if arm.name == "random-noise" else self.choice.kinds

    def fitted(self) -> dict[str, SlotMap]:
        """Every map fitted so far, by a name that says for what."""
        return {"-".join(str(part) for part in key): slot_map for key, slot_map in self._maps.items()}

    def _budget(self, cell: Cell, draw: int) -> dict[str, str]:
        """Item id -> label as written, of the shots first and then of more pool items, up to the arm's label budget."""
        groups = self.choice.shots(cell, draw)  # of one set, in whatever order
        found = dict(zip((self.task.ids[p] for p in groups[0].positions), groups[0].written))
        more = int(cell.arm.options.get("budget", 0)) - len(found)
        if more > 0:
            left = np.setdiff1d(self.task.pool, groups[0].positions)
            rng = np.random.default_rng(stream("budget", cell.seed))
            extra = np.sort(rng.choice(left, more, replace=False))
            labels = [self.choice.written(int(p)) for p in extra]
            if cell.labels == "permuted":
                labels = [labels[i] for i in rng.permutation(more)]
            found |= dict(zip((self.task.ids[p] for p in extra), labels))
        return found

    @cached_property
    def _codes(self) -> Vectors:
        items = self.task.text if self.task.text is not None else self.task.items
        codes = maps.hash_vectors(items, self.task.ids, self.choice.vectors.width)
        slots = sum(kind.slots for kind in self.choice.kinds)
        return codes if slots == 1 else repeat(codes, slots)

    def pca_text(self, arm: Arm, position: int) -> str:
        if arm.label not in self._pca_texts:
            with _blaming(arm):
                self._pca_texts[arm.label] = maps.pca_text(self._pool, self.choice.vectors, **arm.options)
        return self._pca_texts[arm.label][position]

    def mapped(self, cell: Cell, draw: int, positions: Sequence[int]) -> Vectors:
        """The mapped vectors of some items, one slot or several each."""
        ids = [self.task.ids[p] for p in positions]
        mapped = [maps.apply(m, k.take(ids)) for m, k in zip(self.slot_maps(cell, draw), self.sources(cell.arm))]
        return mapped[0] if len(mapped) == 1 else maps.stack_slots(mapped)
