"""The prompts of a cell: its shots and their labels (choice), the mapped vectors (fitting), written out and tokenised once.

Everything is a function of the study and the cell's own values, so that a cell can be computed alone, in any order, and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from icrl_lab import answers, controls, maps, prompts
from icrl_lab.errors import StudyError
from icrl_lab.studies.cells import Cell
from icrl_lab.studies.choice import Choice, Shots, stream
from icrl_lab.studies.fitting import Fitting
from icrl_lab.studies.sections import Arm, PlanSpec
from icrl_lab.values import Prompt, Rendered, SlotMap, Task, Vectors

CONTENT_FREE = ("N/A", "[MASK]", "...")  # texts that say nothing, after Zhao et al. 2021
NOBODY = "\0nobody"  # the id of a query that is no item


def _used(groups: Sequence[Shots]) -> list[int]:
    """Every item of some prompts, shots and queries, once."""
    return sorted({int(p) for g in groups for p in (*g.positions, *g.queries)})


class Material(Choice):
    """A choice with its prompts, for the tokenizer and the embeddings of a model; knows no engine."""

    def __init__(self, task: Task, vectors: Vectors | Sequence[Vectors], llm: Any, plan: PlanSpec) -> None:
        super().__init__(task, vectors, plan)
        if not hasattr(llm, "tokenizer"):
            what = repr(llm) if isinstance(llm, str) else type(llm).__name__
            raise StudyError(f"a study takes an LLM that is loaded, not {what}; load it with load_llm(...)")
        self.llm, self.tokenizer = llm, llm.tokenizer
        self.template = prompts.layout(plan.layout, markers=plan.markers)
        self.fitting = Fitting(self, llm, self.template)
        self._of_seed: dict[Any, Any] = {}

    @property
    def tokens(self) -> maps.Tokens:
        """What the maps may know of the model, and of the texts of the pool (never of the queries)."""
        return self.fitting.tokens

    def fitted(self) -> dict[str, SlotMap]:
        """Every map fitted so far, by a name that says for what."""
        return self.fitting.fitted()

    @property
    def room(self) -> int:
        """Tokens that a prompt leaves for its answer."""
        plan = self.plan
        return prompts.ROOM + (0 if plan.decode == "score" else answers.new_tokens(plan.queries_per_prompt))

    @property
    def _limits(self) -> tuple[int, int, int]:
        return self.llm.context, self.room, self.plan.repeat

    def rendered(self, cell: Cell, draw: int) -> tuple[list[Rendered], list[Shots]]:
        """The prompts of a cell under one draw of map and order, and the shots of each group of queries.

        Prompts come in the order of the groups' queries, `queries_per_prompt` queries each. Arms and controls of a seed
        share the prompts' text: it is tokenised once, and the vectors are put in.
        """
        groups = self._once(cell, ("groups", draw), lambda: self.shots(cell, draw))
        if not cell.arm.has_slots:
            text = self._once(cell, (cell.arm.label, cell.with_text, draw), lambda: self._text(cell, groups, 1, None))
            return text, groups
        mapped = self._once(cell, ("slots", cell.arm.label, draw), lambda: self._slots(cell, draw, groups))
        key = (cell.control == "dummy", mapped.slots, cell.with_text, draw)
        text = self._once(cell, key, lambda: self._text(cell, groups, mapped.slots, mapped))
        return prompts.refill(text, self._changed(cell, draw, mapped)), groups

    def arranged(self, cell: Cell, draw: int, groups: Sequence[Shots]) -> list[Rendered]:
        """The prompts of a cell for other arrangements of its shots, or other shots, one a query. Every item keeps the vector that it
        has in `rendered`: what a control drew for the cell is not drawn anew. An item that the cell does not show gets what
        the control draws for it beside them. StudyError for such an item where the map was fitted on the cell's own shots."""
        if not cell.arm.has_slots:
            return self._text(cell, groups, 1, None)
        own = self._once(cell, ("groups", draw), lambda: self.shots(cell, draw))
        mapped = self._once(cell, ("slots", cell.arm.label, draw), lambda: self._slots(cell, draw, own))
        known = set(mapped.ids)
        new = [p for p in _used(groups) if self.task.ids[p] not in known]
        if not new:
            return prompts.refill(self._text(cell, groups, mapped.slots, mapped), self._changed(cell, draw, mapped))
        if maps.NEEDS.get(cell.arm.name) == "labels":
            raise StudyError(
                f"the arm {cell.arm.label!r} fits its map to the shots of the study, so that no other can stand in the prompt; "
                "take another arm, or change only their order"
            )
        more = self.fitting.mapped(cell, draw, new)
        whole = Vectors(np.concatenate([mapped.values, more.values]), (*mapped.ids, *more.ids), mapped.space)
        text = self._text(cell, groups, mapped.slots, whole)
        if cell.control in ("real", "dummy"):
            return prompts.refill(text, whole)
        seeds = [stream("control", cell.seed, draw, p) for p in new]
        drawn = self._changed(cell, draw, mapped)
        return prompts.refill(text, controls.join(cell.control, mapped, drawn, more, seeds=seeds, tokens=self.tokens))

    def _changed(self, cell: Cell, draw: int, mapped: Vectors) -> Vectors:
        """The cell's vectors under its control."""
        if cell.control in ("real", "dummy"):
            return mapped
        seed = stream("control", cell.seed, draw)
        return controls.apply(cell.control, (), mapped, seed=seed, tokens=self.tokens)[1]

    def _once(self, cell: Cell, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What cells of one seed and condition share; forgotten when the next seed begins."""
        held = self._of_seed  # one look: a page may show a prompt while its model answers in another thread
        if held.get("seed") != cell.seed:
            held = self._of_seed = {"seed": cell.seed}
        key = (cell.labels, cell.shots, cell.selection, cell.order, *key)
        if key not in held:
            held[key] = make()
        return held[key]

    def _text(self, cell: Cell, groups: Sequence[Shots], width: int, slots: Vectors | None) -> list[Rendered]:
        """The cell's prompts with the vectors as mapped, or with dummy markers in their place."""
        built = [p for group in groups for p in self._prompts(cell, group, width)]
        if slots is not None and cell.control == "dummy":
            built, slots = controls.apply("dummy", built, slots)
        return prompts.render_all(built, self.tokenizer, slots, *self._limits)

    def _slots(self, cell: Cell, draw: int, groups: Sequence[Shots]) -> Vectors:
        """The mapped vectors of every item of the cell's prompts and of no other."""
        return self.fitting.mapped(cell, draw, _used(groups))

    def _example(self, arm: Arm, position: int, label: str = "") -> prompts.Example:
        text = self.task.text[position] if self.task.text is not None else ""
        code = self.fitting.pca_text(arm, position) if arm.name == "pca-text" else None
        return prompts.Example(self.task.ids[position], text, label, code)

    def content_free(self, cell: Cell, draw: int, group: Shots) -> list[Rendered]:
        """The group's shots before a query that says nothing: texts without content, and in a slot the mean of the shots' vectors
        at their mean norm."""
        arm, reads = cell.arm, not cell.arm.has_slots or cell.with_text
        as_code = arm.name == "pca-text"
        texts = CONTENT_FREE if reads else CONTENT_FREE[:1]
        asked = [[prompts.Example(NOBODY, text, code=text if as_code else None)] for text in texts]
        if not arm.has_slots:
            return prompts.render_all(self._build(cell, group, asked, 1), self.tokenizer, None, *self._limits)
        groups = self._once(cell, ("groups", draw), lambda: self.shots(cell, draw))
        mapped = self._once(cell, ("slots", arm.label, draw), lambda: self._slots(cell, draw, groups))
        shown = self._changed(cell, draw, mapped).take([self.task.ids[int(p)] for p in group.positions])
        mean, norm = shown.values.mean(0), np.linalg.norm(shown.values, axis=-1).mean(0)
        length = np.linalg.norm(mean, axis=-1)
        mean = mean * (norm / np.where(length > 0, length, 1.0))[..., None]
        slots = Vectors(np.concatenate([shown.values, mean[None]]), (*shown.ids, NOBODY), shown.space)
        built = self._build(cell, group, asked, mapped.slots)
        if cell.control == "dummy":
            built, slots = controls.apply("dummy", built, slots)
        return prompts.render_all(built, self.tokenizer, slots, *self._limits)

    def _prompts(self, cell: Cell, group: Shots, width: int) -> list[Prompt]:
        size = self.plan.queries_per_prompt
        asked = [self._example(cell.arm, q) for q in group.queries]
        return self._build(cell, group, [asked[i : i + size] for i in range(0, len(asked), size)], width)

    def _build(self, cell: Cell, group: Shots, several: Sequence[list[prompts.Example]], width: int) -> list[Prompt]:
        """A prompt for each of `several` lists of queries, behind the group's shots."""
        words = self.words
        view = "text" if cell.arm.name == "text" else "both" if cell.with_text else "vector"
        once = [self._example(cell.arm, int(p), label) for p, label in zip(group.positions, group.written)]
        shown = once * self.plan.repeat
        return prompts.build_all(self.template, shown, several, view=view, width=width, **words)
