"""Live: one query asked again under shots that a person put there.

Owns what is quoted of one answer: its outcome as every probe reads it (`scene.read`), the distribution behind it, what the
query's own item attends to, and what the labels of the same shots say without a model. One forward pass gives all of it. The
control that stands beside is asked by asking again with control = "noise"; here is no page and no thread, only a lock, so that
two pages never use one model at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from icrl_lab import answers
from icrl_lab.errors import StudyError, nearest
from icrl_lab.probes import beside
from icrl_lab.probes.scene import Scene, cell_of, replaced, scene, unlike
from icrl_lab.probes.spans import spans
from icrl_lab.values import Capture

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study
    from icrl_lab.values import Rendered

LOW, HIGH = 0.05, 0.95
_LOCKS: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()
_OF_LOCKS = Lock()


@dataclass(frozen=True, eq=False)
class Answered:
    """What a model said to one query under one list of shots.

    query, shots  positions in the task; shots (k,) in the order of the prompt
    outcome       as `scene.read` gives it: the expected value in task units, or the log-odds of the true class
    said          the distribution over numbers (Answer) or classes (Choice)
    attention     (k,) share of the attention of the query's item (its slot; of text, its last token) that falls on each shot, mean
                  over blocks and heads, position 0 left out; `on_vector` (k,) what of it falls on the shot's vector
    simple        what mean, neighbours and ridge (of classes: majority, neighbours, logistic) say from the same shots
    units         of the outcome
    unlike        as of a study
    """

    arm: str
    control: str
    seed: int
    query: int
    shots: np.ndarray
    outcome: float
    said: answers.Answer | answers.Choice
    attention: np.ndarray
    on_vector: np.ndarray
    simple: dict[str, Any]
    units: str
    unlike: str = ""

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 0.05 and 0.95 quantiles of the predictive distribution, in task units; NaN for classes."""
        if isinstance(self.said, answers.Choice):
            return float("nan"), float("nan")
        return self.said.quantile(LOW), self.said.quantile(HIGH)


def ask(
    study: Study,
    arm: str | None = None,
    control: str = "real",
    *,
    query: int | str,
    shots: Sequence[int] | np.ndarray | None = None,
    seed: int | None = None,
    **cell: Any,
) -> Answered:
    """One query of a study, asked under the shots given.

    query  position in the task, or id, of one of the study's queries
    shots  positions in the task, of the pool and all different, in the order of the prompt; None: the study's own
    seed, cell  None: the first of the plan; `cell` may name selection, order, labels, shots (their number) and with_text, as for
           `scene`. Of an arm that mixes several draws it is the first draw.
    """
    at = position(study, query)
    with _alone(study):
        one = scene(study, arm, control, seed=seed, queries=[at], **cell)
        if shots is not None and list(shots) != one.shots[0].tolist():
            one = replaced(one, np.asarray(shots, np.int64)[None])
        return answered(one)


def answered(one: Scene) -> Answered:
    """What a scene of one query says."""
    found = spans(one, 0, ("slot",))
    watching = _Watching(one.engine, found.rows)
    logp = one.tries.logprobs(watching)
    weights = watching.attention.astype(np.float64)[:, :, 0]  # blocks, heads, T
    weights[..., 0] = 0
    total = weights.sum(-1, keepdims=True)
    share = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0).mean((0, 1))
    simple = {name: said[0] for name, said in beside.simple(one).items()}
    own = np.arange(found.shots)[:, None]
    return Answered(
        one.cell.arm.label, one.cell.control, one.cell.seed, int(one.queries[0]), one.shots[0], float(one.outcomes(logp)[0]),
        _said(one, logp[0]), (found.shot == own) @ share, found.members[0] @ share, simple, one.units, unlike(one.study),
    )  # fmt: skip


def own_shots(
    study: Study, arm: str | None, control: str, query: int | str, seed: int | None = None, **cell: Any
) -> np.ndarray:
    """(k,) positions of the shots that the study itself shows with a query; nothing is rendered."""
    at = position(study, query)
    groups = study.material.shots(cell_of(study, arm, control, seed=seed, **cell), 0)
    return next(group.positions for group in groups if at in group.queries)


def position(study: Study, query: int | str) -> int:
    """Where a query of the study stands in the task."""
    ids = study.task.ids
    known = {ids[q]: int(q) for q in study.material.queries}
    if isinstance(query, str):
        if query not in known:
            raise StudyError(f"{query!r} is not among the study's queries; {nearest(query, list(known))}")
        return known[query]
    if int(query) not in known.values():
        raise StudyError(f"item {query} is not among the study's queries")
    return int(query)


def _said(one: Scene, logp: np.ndarray) -> answers.Answer | answers.Choice:
    probs, mass = np.exp(logp - logp.max()), float(np.exp(logp).sum())
    fmt = one.study.material.format
    if fmt is not None:
        return answers.Answer(fmt.values, probs, mass, fmt.labels[int(logp.argmax())])
    options = one.study.task.options
    return answers.Choice(options, probs, mass, options[int(logp.argmax())])


class _Watching:
    """An engine that keeps the attention of some rows of the first prompt while a trie is read."""

    def __init__(self, engine: Any, rows: tuple[int, ...]) -> None:
        self.engine, self.rows = engine, rows
        self.attention = np.zeros(0)

    def next_token(self, prompts: Sequence[Rendered], ids: Sequence[int]) -> np.ndarray:
        run = self.engine.run(prompts, ids, [Capture(self.rows), *[Capture()] * (len(prompts) - 1)])
        self.attention = run.traces[0].attention
        return run.logprobs


def _alone(study: Study) -> Lock:
    """The lock of a study's model."""
    with _OF_LOCKS:
        return _LOCKS.setdefault(study.llm, Lock())


def controls_of(study: Study, arm: str, control: str) -> tuple[str, ...]:
    """What an arm is asked under: the control chosen, and noise beside it. An arm that writes text has no vectors to put noise in."""
    if not cell_of(study, arm).arm.has_slots:
        return ("real",)
    return tuple(dict.fromkeys((control, "noise")))


def says(before: Mapping[str, Answered], now: Mapping[str, Answered], what: str, truth: Any = None) -> list[str]:
    """What the numbers say in words: each control's answer and its change from `before`, and the simple predictors beside them.

    what  names what was changed, e.g. "this order"
    """
    out = []
    for control, found in now.items():
        name = "The text" if found.arm == "text" else f"{control.capitalize()} vectors"
        moved = f"; {what} moves it by {found.outcome - before[control].outcome:+.3f}" if control in before else ""
        if isinstance(found.said, answers.Choice):
            chances = ", ".join(f"{o} {p:.3f}" for o, p in zip(found.said.options, found.said.probs))
            out.append(f"{name}: {chances}; log-odds of the true class {found.outcome:.3f}{moved}.")
        else:
            low, high = found.interval
            out.append(f"{name}: {found.outcome:.3f} [{low:.3f}, {high:.3f}] {found.units}{moved}.")
    simple = next(iter(now.values())).simple
    told = ", ".join(f"{n} {v:.3f}" if isinstance(v, float) else f"{n} {v}" for n, v in simple.items())
    true = (
        "" if truth is None else f"; the true value is {truth:.3f}" if isinstance(truth, float) else f"; true: {truth}"
    )
    out.append(f"From the same shots, without a model: {told}{true}.")
    if said := next(iter(now.values())).unlike:
        out.append(said)
    if "noise" in now and len(now) > 1:
        out.append(
            "What noise vectors do as well does not come from the vectors. One query is an observation, and no test."
        )
    return out
