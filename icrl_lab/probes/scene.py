"""A scene: one cell of a study, laid out for looking inside.

Owns how a probe comes to its prompts, to the positions of their parts, and to one number a query (the outcome). A scene's
prompts end where their labels part, so that the last token is the one that answers. It is the study's own cell: the same
shots, labels, slot maps, controls and queries that its predictions came from.

    scenes = [scene(study, "random-projection", seed=s, queries=32) for s in (0, 1, 2)]
    before = scenes[0].read()                                   # (n,) in the task's units
    after = scenes[0].read([p.edited(...) for p in scenes[0].prompts])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab import answers
from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.studies.cells import Cell
from icrl_lab.studies.sections import Arm
from icrl_lab.values import Outcome, Rendered

if TYPE_CHECKING:
    from icrl_lab.engine import Engine
    from icrl_lab.studies.run import Study

ROLES = ("slot", "text", "label", "marker", "template", "question")


@dataclass(frozen=True, eq=False)
class Parts:
    """What each token of a prompt belongs to.

    role  (T,) one of ROLES
    shot  (T,) the shot as it stands in the prompt (0 to shown - 1), `shown` for the query, -1 for neither
    """

    role: np.ndarray
    shot: np.ndarray
    shown: int

    def at(self, role: str | Sequence[str], shot: int | None = None) -> np.ndarray:
        """Positions of a role (or several), of one shot, ascending; shot = `shown` is the query, None any shot or query."""
        mask = np.isin(self.role, [role] if isinstance(role, str) else list(role))
        return np.flatnonzero(mask if shot is None else mask & (self.shot == shot))

    def of_shots(self, role: str | Sequence[str]) -> np.ndarray:
        """Positions of a role in all shots."""
        found = self.at(role)
        return found[(self.shot[found] >= 0) & (self.shot[found] < self.shown)]

    @property
    def query(self) -> np.ndarray:
        """All positions of the query, its question included."""
        return np.flatnonzero(self.shot == self.shown)


@dataclass(frozen=True, eq=False)
class Scene:
    """One cell of a study under one draw.

    prompts  one a query, ending where the labels part
    queries  (n,) positions of the queries in the task
    shots    (n, k) positions of the shots in the task, in the order of the prompt (once, however often they are repeated)
    """

    study: Study
    cell: Cell
    draw: int
    queries: np.ndarray
    shots: np.ndarray
    tries: answers.Tries

    @property
    def prompts(self) -> tuple[Rendered, ...]:
        return self.tries.bases

    @property
    def engine(self) -> Engine:
        return self.study.engine

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the queries."""
        return tuple(self.study.task.ids[q] for q in self.queries)

    @property
    def target(self) -> np.ndarray:
        """(n,) true targets in the task's units; 1 for the true class, so that outcome and target agree in sense."""
        targets = self.study.task.targets
        return np.ones(len(self.queries)) if targets is None else targets[self.queries]

    @property
    def units(self) -> str:
        """What an outcome is measured in."""
        return self.study.task.units if self.study.task.targets is not None else "log-odds of the true class"

    @cached_property
    def parts(self) -> tuple[Parts, ...]:
        """What the tokens of each prompt belong to."""
        shown = self.shots.shape[1] * self.study.plan.repeat
        return tuple(_parts(prompt, shown) for prompt in self.prompts)

    def read(self, prompts: Sequence[Rendered] | None = None, of: Sequence[int] | None = None) -> np.ndarray:
        """(m,) outcomes of prompts (None: the scene's own), float64.

        of  which query each prompt comes from; None where there is one prompt a query, in order
        For numbers the outcome is the expected value in the task's units, for classes the log-odds of the true one.
        """
        return self.outcomes(self.tries.logprobs(self.engine, prompts, of), of)

    def outcomes(self, logp: np.ndarray, of: Sequence[int] | None = None) -> np.ndarray:
        """(m,) outcomes from log-probabilities (m, labels), as `tries.logprobs` gives them; `of` as in `read`."""
        which = range(len(self.queries)) if of is None else of
        if self.study.material.format is not None:
            return self._outcome(0).read_all(logp)
        return np.array([self._outcome(i).read(row) for i, row in zip(which, logp)])

    def outcome(self, number: int) -> Outcome:
        """The outcome of one query as a function of the next token. DataError where labels have several tokens."""
        paths = self.tries.cuts[number].labels
        if any(len(path) != 1 for path in paths):
            raise DataError(
                "a lens or a gradient reads one token, and labels have several here; take label_format = 'letter' or 'digit'"
            )
        return self._outcome(number, tuple(path[0] for path in paths))

    def _outcome(self, number: int, ids: tuple[int, ...] | None = None) -> Outcome:
        task, fmt = self.study.task, self.study.material.format
        if fmt is not None:
            return Outcome(ids or tuple(range(len(fmt.labels))), values=fmt.values)
        assert task.labels is not None
        which = task.options.index(task.labels[self.queries[number]])
        return Outcome(ids or tuple(range(len(task.options))), target=which)

    def about(self) -> dict[str, Any]:
        """What a reading says of where it comes from."""
        study, cell = self.study, self.cell
        return {
            "task": study.task.name, "encoder": study.vectors.space, "llm": study.llm.name, "dtype": study.llm.dtype,
            "arm": cell.arm.label, "control": cell.control, "with_text": cell.with_text, "labels": cell.labels,
            "shots": cell.shots, "selection": cell.selection, "order": cell.order, "queries": len(self.queries),
            "units": self.units,
        }  # fmt: skip


def _parts(prompt: Rendered, shown: int) -> Parts:
    role, shot = np.full(len(prompt), "template", "U8"), np.full(len(prompt), -1)
    role[max((s.stop for s in prompt.spans), default=0) :] = "question"  # what all labels begin with
    shot[max((s.stop for s in prompt.spans), default=0) :] = shown
    for span in prompt.spans:
        role[span.start : span.stop] = span.role
        shot[span.start : span.stop] = -1 if span.shot is None else span.shot
    return Parts(role, shot, shown)


def unlike(study: Study) -> str:
    """How a study scores its classes otherwise than a scene reads them, in a sentence; empty where it does not."""
    keys = " and ".join(key for key in ("calibrate", "per_token") if getattr(study.plan, key))
    return (
        f"The study scores its classes with {keys}, and this reads them without: its answers may be others."
        if keys
        else ""
    )


def pick(study: Study, arm: str | None) -> Any:
    """The arm of a study by its label, of a mixture its first; None: the first that has slots. "text" may be asked for whether the study runs it or not."""
    arms = {a.label: a for a in study.plan.arms}
    if arm == "text" and arm not in arms and study.task.text is not None:
        return Arm("text")
    if arm is None:
        arm = next((a.label for a in study.plan.arms if a.has_slots), next(iter(arms)))
    if arm not in arms:
        raise StudyError(f"the study has no arm {arm!r}; {nearest(arm, arms)}")
    return arms[arm].members[0]


def cell_of(
    study: Study,
    arm: str | None = None,
    control: str = "real",
    *,
    with_text: bool | None = None,
    labels: str | None = None,
    shots: int | None = None,
    selection: str | None = None,
    order: str | None = None,
    seed: int | None = None,
) -> Cell:
    """The cell that `scene` lays out; nothing is rendered. StudyError for a study that no probe can look at."""
    plan = study.plan
    if plan.queries_per_prompt != 1:
        raise StudyError("a probe looks at prompts with one query each; take queries_per_prompt = 1")
    if study.material.format is not None and not study.material.format.closed:
        raise StudyError("a probe reads labels from a closed set; take label_format = 'digit', 'letter' or 'two-digit'")
    chosen = pick(study, arm)
    text = chosen.name == "text" or (plan.with_text[0] if with_text is None else with_text)
    return Cell(
        chosen, control if chosen.has_slots else "real", text, labels or plan.labels[0], shots or plan.shots[0],
        selection or plan.selection[0], order or plan.order[0], plan.seeds[0] if seed is None else seed,
    )  # fmt: skip


def scene(
    study: Study,
    arm: str | None = None,
    control: str = "real",
    *,
    with_text: bool | None = None,
    labels: str | None = None,
    shots: int | None = None,
    selection: str | None = None,
    order: str | None = None,
    seed: int | None = None,
    queries: int | Sequence[int] | None = None,
    draw: int = 0,
) -> Scene:
    """The scene of one cell; what is not given is the first value of the study's plan.

    control  any control, whether the study runs it or not
    queries  how many of the study's queries, spread evenly over them, or their positions in the task; None: all
    draw     which draw of map and order, for arms that mix several
    """
    material = study.material
    cell = cell_of(
        study,
        arm,
        control,
        with_text=with_text,
        labels=labels,
        shots=shots,
        selection=selection,
        order=order,
        seed=seed,
    )
    rendered, groups = material.rendered(cell, draw)
    order_of = [int(q) for group in groups for q in group.queries]
    shots_of = [group.positions for group in groups for _ in group.queries]
    keep = _choose(order_of, queries)
    found = _tries(study, [rendered[i] for i in keep])
    return Scene(study, cell, draw, np.array(order_of)[keep], np.array([shots_of[i] for i in keep]), found)


def still(change: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Changes of outcomes with those set to zero that are rounding, beside the outcomes themselves: what nothing can move would
    else lean by 1e-8, and significantly so."""
    return np.where(np.abs(change) <= 1e-6 * np.abs(beside).max(), 0.0, change)  # NaN stays


def arranged(
    one: Scene, rows: Sequence[Sequence[int]] | np.ndarray, of: Sequence[int] | np.ndarray | None = None
) -> Scene:
    """The scene with some of its shots, or all of them in another order; every item keeps its label and its vector.

    rows  (m, k') for each prompt which shots it shows, by where they stand in `one`, all different
    of    (m,) which query of `one` each prompt asks; None where there is one row a query
    """
    rows = np.asarray(rows, np.int64)
    which = np.arange(len(one.queries)) if of is None else np.asarray(of, np.int64)
    k = one.shots.shape[1]
    if k != one.cell.shots:
        raise ValueError("this scene has shots left out already; arrange the one it came from")
    if rows.ndim != 2 or len(rows) != len(which) or (rows.size and not (0 <= rows.min() and rows.max() < k)):
        raise ValueError(f"rows of shape {rows.shape} of {k} shots for {len(which)} prompts")
    if any(len(set(row)) != len(row) for row in rows.tolist()):
        raise ValueError("an arrangement shows a shot twice")
    material = one.study.material
    own = {q: material.group(one.cell, (int(one.queries[q]),), one.shots[q]) for q in np.unique(which)}
    groups = [own[q].arranged(row) for q, row in zip(which, rows)]
    rendered = material.arranged(one.cell, one.draw, groups)
    shots = np.stack([group.positions for group in groups]) if groups else np.empty(rows.shape, np.int64)
    return Scene(one.study, one.cell, one.draw, one.queries[which], shots, _tries(one.study, rendered))


def replaced(one: Scene, shots: np.ndarray) -> Scene:
    """The scene of the same queries with other shots of the pool, (n, k') positions in the task in the order of the prompt. Items
    that `one` shows keep their vectors; labels are shown as its cell shows them. StudyError for shots that cannot be."""
    shots = np.asarray(shots, np.int64)
    if shots.ndim != 2 or len(shots) != len(one.queries) or not shots.shape[1]:
        raise ValueError(f"shots of shape {shots.shape} for {len(one.queries)} queries")
    pool, ids = set(one.study.task.pool.tolist()), one.study.task.ids
    for query, row in zip(one.queries.tolist(), shots.tolist()):
        outside = next((p for p in row if p not in pool or p == query), None)
        if outside is not None:
            name = repr(ids[outside]) if 0 <= outside < len(ids) else f"at {outside}"
            raise StudyError(
                f"the item {name} cannot be a shot of {ids[query]!r}: a shot is an item of the pool, and not the query"
            )
        if len(set(row)) != len(row):
            raise StudyError(f"a shot stands twice in the prompt of {ids[query]!r}; take different items")
    material = one.study.material
    groups = [material.group(one.cell, (int(q),), row) for q, row in zip(one.queries, shots)]
    rendered = material.arranged(one.cell, one.draw, groups)
    return Scene(one.study, one.cell, one.draw, one.queries, shots, _tries(one.study, rendered))


def _tries(study: Study, rendered: Sequence[Rendered]) -> answers.Tries:
    fmt = study.material.format
    options = fmt.labels if fmt is not None else study.task.options
    return answers.tries(
        rendered, study.llm.tokenizer, options, "" if fmt is not None else study.material.template.behind
    )


def _choose(order: list[int], queries: int | Sequence[int] | None) -> list[int]:
    if queries is None:
        return list(range(len(order)))
    if isinstance(queries, int):
        if queries < 1:
            raise StudyError(f"queries is {queries}; a probe needs at least one")
        return np.unique(np.linspace(0, len(order) - 1, min(queries, len(order))).round().astype(int)).tolist()
    where = {q: i for i, q in enumerate(order)}
    missing = [q for q in queries if int(q) not in where]
    if missing:
        raise StudyError(f"item {missing[0]} is not among the study's queries")
    return [where[int(q)] for q in queries]
