"""What goes into a cell: its shots, their labels, the fitted maps, the prompts.

Everything is a function of the study and the cell's own values, so that a cell can be computed alone, in any order, and
again. Every arm and every control of a seed sees the same shots, the same labels and the same queries; what chance decides
is drawn from streams named after what they decide (`stream`), never from one another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np

from icrl_lab import answers, controls, maps, prompts, shots
from icrl_lab.encoders import encode, repeat
from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.shots import Likeness
from icrl_lab.studies.cells import Cell
from icrl_lab.studies.spec import Arm, PlanSpec
from icrl_lab.values import Prompt, Rendered, SlotMap, Task, Vectors

NOUNS = {"molecule": "Molecule", "image": "Image", "protein": "Protein", "audio": "Sound"}
CONTENT_FREE = ("N/A", "[MASK]", "...")  # texts that say nothing, after Zhao et al. 2021
NOBODY = "\0nobody"  # the id of a query that is no item


def stream(what: str, *numbers: int) -> int:
    """A seed of its own for each thing that chance decides."""
    return int(np.random.default_rng([crc32(what.encode()), *numbers]).integers(2**31))


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


@dataclass(frozen=True, eq=False)
class Shots:
    """The shots of some queries: positions in the task, in the order of the prompt, and the label each is shown with."""

    queries: tuple[int, ...]
    positions: np.ndarray
    written: tuple[str, ...]

    def arranged(self, rows: Sequence[int]) -> Shots:
        """Some of these shots, or all of them in another order, by where they stand now; each keeps its label."""
        return Shots(self.queries, self.positions[list(rows)], tuple(self.written[r] for r in rows))


def _used(groups: Sequence[Shots]) -> list[int]:
    """Every item of some prompts, shots and queries, once."""
    return sorted({int(p) for g in groups for p in (*g.positions, *g.queries)})


def check(task: Task, plan: PlanSpec) -> None:
    """Raise the DataError or StudyError of a plan that this task cannot have: before anything is encoded or loaded."""
    most = max(plan.shots)
    if most > len(task.pool):
        raise DataError(
            f"task {task.name!r} has {len(task.pool)} items in its pool and the study asks for {most} shots; "
            "use fewer shots or a smaller query_fraction"
        )
    if not len(task.queries):
        raise DataError(f"task {task.name!r} has no item to ask about; its split leaves the query side empty")
    needs_text = [*reads_text(plan), *(a.label for a in plan.arms if a.name == "moments-text")]
    if task.text is None and needs_text:
        raise StudyError(
            f"task {task.name!r} has no text, and {needs_text[0]} needs one; name its text column or leave it out"
        )
    template = prompts.layout(plan.layout, markers=plan.markers)
    for with_text in plan.with_text if any(a.name != "text" for a in plan.arms) else ():
        template.shows("both" if with_text else "vector")
    for key in ("per_token", "calibrate"):
        if getattr(plan, key) and (task.targets is not None or plan.decode != "score" or plan.queries_per_prompt > 1):
            raise StudyError(
                f'{key} changes how classes are scored: it needs a task with labels, decode = "score" and queries_per_prompt = 1'
            )
    if plan.queries_per_prompt > 1 and task.targets is None:
        raise StudyError(
            "several queries a prompt are answered with numbers; a task with labels needs queries_per_prompt = 1"
        )
    if plan.queries_per_prompt > 1 and any(shots.needs_query(s) for s in (*plan.selection, *plan.order)):
        raise StudyError("shots that depend on the query (nearest, near-last, ...) need queries_per_prompt = 1")
    for arm in plan.arms:
        if maps.NEEDS.get(arm.name) == "labels":
            _check_labels(arm, task, plan)


def reads_text(plan: PlanSpec) -> list[str]:
    """What puts the items' own text into a prompt: arms by name, or the plan's with_text."""
    beside = True in plan.with_text and any(a.name != "text" for a in plan.arms)
    return [a.label for a in plan.arms if a.name == "text"] + ["with_text = true"] * beside


def _check_labels(arm: Arm, task: Task, plan: PlanSpec) -> None:
    """The same for an arm that is fitted on the labels of its shots."""
    budget = int(arm.options.get("budget", 0))
    by_query = next((s for s in plan.selection if shots.needs_query(s)), None)
    if by_query:
        raise StudyError(
            f"the arm {arm.label!r} fits one map to the shots, so they cannot be chosen for each query; "
            f"leave out the arm, or the selection {by_query!r}"
        )
    if budget > len(task.pool):
        raise StudyError(f"the arm {arm.label!r} has a budget of {budget} labels, and the pool {len(task.pool)} items")
    if max(min(plan.shots), budget) < 2:
        raise StudyError(
            f"the arm {arm.label!r} is fitted on labels and needs two at least; take more shots, or give it a budget"
        )


def joined(kinds: Sequence[Vectors]) -> Vectors:
    """Vectors of several encoders side by side, (n, sum of widths): what similarity and the simple predictors look at."""
    flat = [kind.take(kinds[0].ids).values.reshape(len(kind), -1) for kind in kinds]
    return Vectors(np.concatenate(flat, axis=1), kinds[0].ids, " + ".join(kind.space for kind in kinds))


class Material:
    """The study's items seen through its plan. Holds the task, the vectors and what is fitted once; knows no engine."""

    def __init__(self, task: Task, vectors: Vectors | Sequence[Vectors], llm: Any, plan: PlanSpec) -> None:
        check(task, plan)
        self.task, self.plan, self.llm = task, plan, llm
        given = (vectors,) if isinstance(vectors, Vectors) else tuple(vectors)
        if not given or not all(isinstance(kind, Vectors) for kind in given):
            what = type(vectors).__name__ if given else "none"
            raise StudyError(
                f"a study takes Vectors, one or several kinds of them, not {what}; make them with encode(task, ...)"
            )
        self.kinds = tuple(kind.take(task.ids) for kind in given)  # each has its own map and its own slots
        once = [kind.once() for kind in self.kinds]  # a vector that stands in several slots counts once
        self.vectors = once[0] if len(given) == 1 else joined(once)
        self.tokenizer = llm.tokenizer
        self.queries = self._queries()
        self.template = prompts.layout(plan.layout, markers=plan.markers)
        self.format = None if task.targets is None else answers.fit_format(plan.label_format, task.targets[task.pool])
        self._maps: dict[tuple[Any, ...], SlotMap] = {}
        self._of_seed: dict[Any, Any] = {}
        self._pca_texts: dict[str, list[str]] = {}

    def _queries(self) -> np.ndarray:
        """Positions of the items asked about: the same for every seed, arm and control."""
        possible = self.task.queries
        if len(possible) <= self.plan.queries:
            return possible
        rng = np.random.default_rng([crc32(b"queries"), self.plan.split_seed])
        return np.sort(rng.choice(possible, self.plan.queries, replace=False))

    # ------------------------------------------------------------------------------------ shots and labels

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

    @property
    def room(self) -> int:
        """Tokens that a prompt leaves for its answer."""
        plan = self.plan
        text = plan.decode != "score" or plan.queries_per_prompt > 1
        return prompts.ROOM + (answers.new_tokens(plan.queries_per_prompt) if text else 0)

    def copied(self, answer: Any, shown: Shots) -> bool:
        """Whether an answer is the label of one of its shots; of numbers, whether its most probable value is."""
        if self.format is None:
            return answer.label in shown.written
        return answer.mode in {self.format.read(label) for label in shown.written}

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
        """Whose label each of n shots, sorted by position, is shown with."""
        if cell.labels == "true":
            return np.arange(n)
        return np.random.default_rng(stream("labels", cell.seed, cell.shots)).permutation(n)

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
        return max(cell.shots, int(cell.arm.options.get("budget", 0)))

    # ------------------------------------------------------------------------------------ maps

    @cached_property
    def _pool(self) -> Vectors:
        return self._of_pool(self.vectors)

    def _of_pool(self, vectors: Vectors) -> Vectors:
        return vectors.take([self.task.ids[p] for p in self.task.pool])

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
        return maps.Tokens(self.llm.embeddings, self.llm.space, text, pca, self._label_ids())

    def _label_ids(self) -> dict[str, list[int]]:
        """The tokens of each label of the pool as they stand in a prompt: " a" is another token than "a"."""
        labels = sorted({self.written(int(p)) for p in self.task.pool})
        shot, query = prompts.Example("shot", "?", labels[0], code="?"), prompts.Example("query", "?", code="?")
        # both views, which any layout has that shows a vector: what stands before a label is nothing to its tokens
        prompt = prompts.build(self.template, [shot], [query], view="both", **self._words)
        (cut,) = prompts.cuts(prompts.render_all([prompt], self.tokenizer), self.tokenizer, labels)
        return {label: list(ids) for label, ids in zip(labels, cut.labels)}

    def slot_maps(self, cell: Cell, draw: int) -> tuple[SlotMap, ...]:
        """The cell's map of each kind of vector: fitted on the pool, and on the labels of its shots (and of `budget` items)
        where it needs labels."""
        arm = cell.arm
        supervised = maps.NEEDS.get(arm.name) == "labels"
        given: dict[str, Any] = {
            "slot_scale": arm.slot_scale,
            **{k: v for k, v in arm.options.items() if k != "budget"},
        }
        condition = (cell.labels, cell.shots, cell.selection, cell.order) if supervised else ()
        found = []
        for number, kind in enumerate(self._sources(arm)):
            key: tuple[Any, ...] = (arm.label, cell.seed, draw, *condition, *([f"kind{number}"] if number else []))
            if key not in self._maps:
                seed = stream("map", cell.seed, draw, *([number] if number else []))
                labels: dict[str, Any] = {"labels": self._budget(cell, draw)} if supervised else {}
                with _blaming(arm):
                    self._maps[key] = maps.fit(arm.name, self._of_pool(kind), self.tokens, seed=seed, **labels, **given)
            found.append(self._maps[key])
        return tuple(found)

    def _sources(self, arm: Arm) -> tuple[Vectors, ...]:
        """The kinds of vectors that an arm maps: the encoders', or an identity code without content."""
        return (self._codes,) if arm.name == "random-noise" else self.kinds

    def fitted(self) -> dict[str, SlotMap]:
        """Every map fitted so far, by a name that says for what."""
        return {"-".join(str(part) for part in key): slot_map for key, slot_map in self._maps.items()}

    def _budget(self, cell: Cell, draw: int) -> dict[str, str]:
        """Item id -> label as written, of the shots first and then of more pool items, up to the arm's label budget."""
        groups = self.shots(cell, draw)  # of one set, in whatever order
        found = dict(zip((self.task.ids[p] for p in groups[0].positions), groups[0].written))
        more = int(cell.arm.options.get("budget", 0)) - len(found)
        if more > 0:
            left = np.setdiff1d(self.task.pool, groups[0].positions)
            rng = np.random.default_rng(stream("budget", cell.seed))
            extra = np.sort(rng.choice(left, more, replace=False))
            labels = [self.written(int(p)) for p in extra]
            if cell.labels == "permuted":
                labels = [labels[i] for i in rng.permutation(more)]
            found |= dict(zip((self.task.ids[p] for p in extra), labels))
        return found

    @cached_property
    def _codes(self) -> Vectors:
        items = self.task.text if self.task.text is not None else self.task.items
        codes = maps.hash_vectors(items, self.task.ids, self.vectors.width)
        slots = sum(kind.slots for kind in self.kinds)
        return codes if slots == 1 else repeat(codes, slots)

    def _pca_text(self, arm: Arm, position: int) -> str:
        if arm.label not in self._pca_texts:
            with _blaming(arm):
                self._pca_texts[arm.label] = maps.pca_text(self._pool, self.vectors, **arm.options)
        return self._pca_texts[arm.label][position]

    # ------------------------------------------------------------------------------------ prompts

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
        more = self._mapped(cell, draw, new)
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
        return prompts.render_all(built, self.tokenizer, slots, self.llm.context, self.room)

    def _slots(self, cell: Cell, draw: int, groups: Sequence[Shots]) -> Vectors:
        """The mapped vectors of every item of the cell's prompts and of no other."""
        return self._mapped(cell, draw, _used(groups))

    def _mapped(self, cell: Cell, draw: int, positions: Sequence[int]) -> Vectors:
        ids = [self.task.ids[p] for p in positions]
        mapped = [maps.apply(m, k.take(ids)) for m, k in zip(self.slot_maps(cell, draw), self._sources(cell.arm))]
        return mapped[0] if len(mapped) == 1 else maps.stack_slots(mapped)

    def _example(self, arm: Arm, position: int, label: str = "") -> prompts.Example:
        text = self.task.text[position] if self.task.text is not None else ""
        code = self._pca_text(arm, position) if arm.name == "pca-text" else None
        return prompts.Example(self.task.ids[position], text, label, code)

    @property
    def _words(self) -> dict[str, Any]:
        """What a template may say of the task."""
        task = self.task
        scale = self.format.scale(task.units) if self.format is not None else "as one of " + ", ".join(task.options)
        noun = NOUNS.get(task.modality, "Item")
        return {"property": task.property, "units": task.units, "scale": scale, "noun": noun}

    def content_free(self, cell: Cell, draw: int, group: Shots) -> list[Rendered]:
        """The group's shots before a query that says nothing: texts without content, and in a slot the mean of the shots' vectors
        at their mean norm."""
        arm, reads = cell.arm, not cell.arm.has_slots or cell.with_text
        as_code = arm.name == "pca-text"
        texts = CONTENT_FREE if reads else CONTENT_FREE[:1]
        asked = [[prompts.Example(NOBODY, text, code=text if as_code else None)] for text in texts]
        if not arm.has_slots:
            return prompts.render_all(
                self._build(cell, group, asked, 1), self.tokenizer, None, self.llm.context, self.room
            )
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
        return prompts.render_all(built, self.tokenizer, slots, self.llm.context, self.room)

    def _prompts(self, cell: Cell, group: Shots, width: int) -> list[Prompt]:
        size = self.plan.queries_per_prompt
        asked = [self._example(cell.arm, q) for q in group.queries]
        return self._build(cell, group, [asked[i : i + size] for i in range(0, len(asked), size)], width)

    def _build(self, cell: Cell, group: Shots, several: Sequence[list[prompts.Example]], width: int) -> list[Prompt]:
        """A prompt for each of `several` lists of queries, behind the group's shots."""
        words = self._words
        view = "text" if cell.arm.name == "text" else "both" if cell.with_text else "vector"
        once = [self._example(cell.arm, int(p), label) for p, label in zip(group.positions, group.written)]
        shown = once * self.plan.repeat
        return prompts.build_all(self.template, shown, several, view=view, width=width, **words)
