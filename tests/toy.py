"""A small study on a tiny random model, for theorems about probes: real rooms, nothing to learn."""

import numpy as np

from icrl_lab.studies import Study
from icrl_lab.values import Task, Vectors
from tests.conftest import tiny_llm
from tests.families import family

PLAN = dict(
    arms=["zero-pad", "random-projection"],
    controls=["real", "noise"],
    with_text=False,
    labels="true",
    shots=4,
    seeds=3,
    queries=6,
    layout="arrow",
    label_format="letter",
)


def toy_task(n: int = 60, classes: bool = False, seed: int = 0) -> Task:
    """n items with a text each, odd ones asked about; numbers, or two classes of unequal size."""
    y = np.random.default_rng(seed).standard_normal(n) * 2 - 1
    ids = tuple(f"item{i}" for i in range(n))
    text = tuple("abcdefgh"[i % 8] * (1 + i % 3) for i in range(n))
    numbers, labels = (None, tuple(np.where(y > -1.5, "yes", "no"))) if classes else (y, None)
    pool, queries = np.arange(0, n, 2), np.arange(1, n, 2)
    return Task(
        "toy", ids, tuple(range(n)), text, numbers, labels, "" if classes else "u", "size", "table", pool, queries
    )


def toy_vectors(task: Task, width: int = 10, seed: int = 1) -> Vectors:
    return Vectors(np.random.default_rng(seed).standard_normal((len(task), width)), task.ids, "toy/1")


def toy_llm(name: str = "llama", tokenizer: str = "digits"):
    """A tiny random model of a family of tests.conftest behind a tokenizer of tests.families."""
    return tiny_llm(name, tokenizer=family(tokenizer))


def toy_study(name: str = "llama", tokenizer: str = "digits", classes: bool = False, **plan) -> Study:
    task = toy_task(classes=classes)
    return Study(task, toy_vectors(task), toy_llm(name, tokenizer), **{**PLAN, **plan})


def click(shown, *hit: tuple[int, int | list[int], float, float]) -> None:
    """What a browser sends for a click on a figure's points, each (number of its trace, place in it, x, y); plotly calls every handler."""
    traces, places, xs, ys = zip(*hit)
    points = {"trace_indexes": list(traces), "point_indexes": list(places), "xs": list(xs), "ys": list(ys)}
    shown._js2py_pointsCallback = {"event_type": "plotly_click", "points": points, "device_state": None, "selector": None}  # fmt: skip
