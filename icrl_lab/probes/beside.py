"""What stands beside an arm: noise in its slots, the item's text, and what the same shots give to a simple predictor.

Shots chosen for a query carry its answer in their labels, whatever the vectors say. So a probe of order or similarity never
gives an arm's number alone: on the same seeds and queries stand the controls, and a mean, a nearest-neighbour and a ridge
prediction from the very shots of each prompt. This room turns scenes into tables (seeds by queries) of all of them, and
tables into metrics, differences and the words that say what is left for the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab import baselines
from icrl_lab.errors import StudyError
from icrl_lab.probes import arrays as named
from icrl_lab.probes.arrays import Named, tell
from icrl_lab.probes.scene import Scene, pick
from icrl_lab.stats import Effects, adjusted, interval, paired
from icrl_lab.stats.metrics import Array
from icrl_lab.stats.words import tested

if TYPE_CHECKING:
    from icrl_lab.studies.run import Study

REGRESSORS, CLASSIFIERS = ("mean", "knn", "ridge"), ("majority", "knn", "logistic")
WORDS = {
    "real": "the vectors", "noise": "noise vectors", "text": "the text", "mean": "the mean of the shots' labels",
    "majority": "the shots' most frequent class", "knn": "nearest neighbours on the shots", "ridge": "ridge on the shots",
    "logistic": "logistic regression on the shots",
}  # fmt: skip
METRICS = {"pearson": "Pearson's r", "rmse": "RMSE", "accuracy": "accuracy"}
METHOD = "crossed analysis of variance over seeds and queries, t distribution; metrics by jackknife pseudo-values"


def views(study: Study, arm: str | None, controls: Sequence[str] = ("noise", "text")) -> dict[str, tuple[str, str]]:
    """Name -> (arm, control of its vectors): the arm first, then the controls; "text" is the item's text, where the study has
    that arm. An arm without slots has no control of its vectors."""
    if "noise" not in controls:
        raise StudyError(
            "without its noise control a number says nothing of the vectors; put 'noise' among the controls"
        )
    chosen = pick(study, arm)
    text = next((a.label for a in study.plan.arms if a.name == "text"), None)
    found = {"real": (chosen.label, "real")}
    for control in controls:
        if control == "text" and text is not None and text != chosen.label:
            found["text"] = (text, "real")
        elif control != "text" and chosen.has_slots:
            found[control] = (chosen.label, control)
    return found


def predictors(study: Study) -> tuple[str, ...]:
    """The simple predictors that a task is compared with."""
    return REGRESSORS if study.task.targets is not None else CLASSIFIERS


def metrics(study: Study) -> tuple[str, ...]:
    """The metrics of a task, of METRICS."""
    return ("pearson", "rmse") if study.task.targets is not None else ("accuracy",)


def truth(one: Scene) -> Array:
    """(n,) targets of the queries in the task's units, or their classes."""
    task = one.study.task
    return task.targets[one.queries] if task.targets is not None else np.array(task.labels)[one.queries]


def asked(one: Scene) -> tuple[Array, Array]:
    """(m,) outcomes of a scene's prompts, and (m,) what they predict: the outcome itself, or the likeliest class."""
    logp = one.tries.logprobs(one.engine)
    outcome = one.outcomes(logp)
    number = one.study.task.targets is not None
    return outcome, outcome if number else np.array(one.study.task.options)[logp.argmax(1)]


def shown(one: Scene) -> Array:
    """(n, k) what each shot's label says of the query's outcome: the number that it is shown with; of classes, 1 for the query's
    own and 0 for another."""
    task = one.study.task
    of: dict[bytes, Array] = {}
    for i, row in enumerate(one.shots):
        if row.tobytes() not in of:
            group = one.study.material.group(one.cell, (int(one.queries[i]),), row)
            of[row.tobytes()] = one.study.material.shown_targets(group, one.cell)
    table = np.stack([of[row.tobytes()] for row in one.shots])
    return table if task.targets is not None else (table == truth(one)[:, None]).astype(float)


def standing(one: Scene) -> tuple[Array, Array]:
    """(n, k) ids of the shots of each prompt in their order, and (n, k) the label that each is shown with, as written."""
    task, material = one.study.task, one.study.material
    of: dict[bytes, tuple[str, ...]] = {}
    for query, row in zip(one.queries, one.shots):
        if row.tobytes() not in of:
            of[row.tobytes()] = material.group(one.cell, (int(query),), row).written
    return np.array(task.ids)[one.shots], np.array([of[row.tobytes()] for row in one.shots])


def simple(one: Scene) -> dict[str, Array]:
    """(n,) predictions of each simple predictor, from the shots of each query's own prompt and their labels as shown.

    As `studies.comparison` makes them: queries that share their shots share a fit; a single shot is what all of them say.
    """
    study, names = one.study, predictors(one.study)
    values = study.vectors.values.reshape(len(study.task), -1)
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(one.shots):
        groups.setdefault(tuple(sorted(row.tolist())), []).append(i)
    out: dict[str, Array] = {}
    for members in groups.values():
        group = study.material.group(one.cell, (int(one.queries[members[0]]),), one.shots[members[0]])
        x, y, q = (
            values[group.positions],
            study.material.shown_targets(group, one.cell),
            values[one.queries[members]],
        )
        for name in names:
            said = (
                baselines.baseline(name, x, y, q, seed=one.cell.seed) if len(y) > 1 else np.array([y[0]] * len(members))
            )
            into = out.setdefault(name, np.empty(len(one.queries), float if said.dtype.kind == "f" else object))
            into[members] = said
    return {name: said.astype(str) if said.dtype.kind == "O" else said for name, said in out.items()}


def compare(
    arrays: Named, said: Array, target: Array, names: Sequence[str], dims: tuple[str, ...], prefix: str = ""
) -> None:
    """Adds `score` (metric, *dims, by) of predictions (by, ..., S, N), the arm first, and the arm's `gain` (metric, *dims, versus)
    over each of the others; p-values are corrected over all conditions, for each metric and each of the others by itself."""
    said = np.moveaxis(said, 0, -3)  # ..., by, S, N
    found = [scores(said, target, m) for m in names]
    put(arrays, f"{prefix}score", join(found), ("metric", *dims, "by"), "metric", "", p=False)
    found = [gains(said[..., :1, :, :], said[..., 1:, :, :], target, m) for m in names]
    q = np.array([np.stack([adjusted(p) for p in np.moveaxis(f.p, -1, 0)], -1) for f in found])
    put(arrays, f"{prefix}gain", join(found), ("metric", *dims, "versus"), "metric, arm less other", "", q=q)


def with_simple(said: Array, simple_of: Sequence[Sequence[dict[str, Array]]], names: Sequence[str]) -> Array:
    """Predictions (control, condition, S, N) with those of the simple predictors behind: (control + names, condition, S, N).

    simple_of  for each condition and seed, what `simple` gives
    """
    more = np.array([[[of[name] for of in seeds] for seeds in simple_of] for name in names])
    return np.concatenate([said, more.astype(said.dtype) if said.dtype.kind == "f" else more])


# ------------------------------------------------------------------------------------- from tables to claims


def scores(said: Array, target: Array, metric: str) -> Effects:
    """A metric of predictions (..., S, N) with its interval over new seeds and queries; no p-value."""
    said = _still(said)
    found = [interval(said[at], target, metric) for at in np.ndindex(said.shape[:-2])]
    return _stacked(found, said.shape[:-2])


def gains(said: Array, other: Array, target: Array, metric: str) -> Effects:
    """What `said` has over `other` in a metric, paired on the same seeds and queries; shapes (..., S, N) broadcast."""
    said, other = np.broadcast_arrays(_still(said), _still(other))
    found = [paired(said[at], other[at], target, metric) for at in np.ndindex(said.shape[:-2])]
    return _stacked(found, said.shape[:-2])


def _still(said: Array) -> Array:
    """Predictions with those made equal that differ by the model's rounding alone: it would else be ranked and correlated."""
    if said.dtype.kind != "f":
        return said
    flat = np.ptp(said, axis=-1, keepdims=True) <= 1e-5 * np.abs(said).max()
    return np.where(flat, said[..., :1], said)


def _stacked(found: list[Any], shape: tuple[int, ...]) -> Effects:
    return Effects(
        *(np.array([getattr(f, n) for f in found], float).reshape(shape) for n in ("estimate", "low", "high", "p"))
    )


def join(found: Sequence[Effects]) -> Effects:
    """Effects of several metrics as one, with the metric as the first axis."""
    return Effects(*(np.array(parts) for parts in zip(*found)))


def put(
    into: Named, name: str, e: Effects, dims: tuple[str, ...], words: str, units: str, p: bool = True, q: Any = None
) -> None:
    """Adds an effect as the arrays `name`, `name_low`, `name_high`, and with `p` (and `q`, corrected) its p-values."""
    named.put(into, name, dims, [e.estimate, e.low, e.high, *([e.p] if p else [])], words, units)
    if q is not None:
        into[f"{name}_q"] = (dims, q, f"{words}, p corrected over the reading's cells (Holm)", "")


def left(data: Any, at: Mapping[str, Any], name: str = "gain") -> str:
    """What is left for the model in one condition: its difference from noise and from the mean of the shots' labels."""
    found = []
    for versus in ("noise", "mean", "majority"):
        for metric in data["metric"].values.tolist() if versus == "mean" else data["metric"].values[:1].tolist():
            if versus in data["versus"].values:
                where = {**at, "metric": metric, "versus": versus}
                q, words = float(data[f"{name}_q"].sel(where)), METRICS[metric]
                found.append(f"{words} {tell(data, name, where, form='+.2f')} against {WORDS[versus]} ({tested(q)})")
    return ", ".join(found)


def used(engine: Any, before: tuple[int, int]) -> dict[str, Any]:
    """Tokens that went through the model since `before` (engine.computed, engine.asked), and tokens of the prompts."""
    computed, total = engine.computed - before[0], engine.asked - before[1]
    return {"tokens": {"computed": computed, "asked": total, "share": round(computed / max(total, 1), 4)}}
