"""One case: a prefix, a suffix, all rows in turn, and the limits held against them; and what a prefix tree saves."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.bench.costs import Costs
from icrl_lab.bench.geometry import Geometry, Workload, leave_one_out, orders, workload
from icrl_lab.bench.limits import limits
from icrl_lab.bench.measure import Meter, Sample, product_rate
from icrl_lab.bench.rows import FULL, NEW, OURS, PROMPT_QUERIES, ROWS, Row, expansion

if TYPE_CHECKING:
    from icrl_lab.models import LLM


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds; queries a round of the slow rows; queries and prefix of the trees; queries checked exactly;
    queries of a pack whose attention is captured; queries a patched cell, (layers, positions) sampled of the tables of patches in
    the prefix and in the suffix, and rounds of those."""

    cases: tuple[tuple[int, int], ...]
    queries: tuple[int, ...]
    rounds: int
    slow: int
    tree_queries: int
    tree_prefix: int
    checked: int
    pack: int
    patched: int
    sampled: tuple[tuple[int, int], tuple[int, int]]
    again: int
    seed: int
    device: str
    quick: bool

    @classmethod
    def of(cls, shape: Geometry, device: str, quick: bool, seed: int) -> Plan:
        small = min(t for t, _ in shape.cases)
        if quick:
            few = ((2, 2), (3, 2))
            return cls(
                shape.cases[:1], shape.queries[:1], 3, 2, 4, min(small, 128), 1, 8, 4, few, 1, seed, device, True
            )
        slow = 4 if device == "cpu" else 16
        many = ((2, 4), (10, 4))
        return cls(shape.cases, shape.queries, 4, slow, 8, small, 4, 32, 8, many, 2, seed, device, False)


class Bar:
    """A progress bar of steps on stderr, or nothing where that is no terminal."""

    def __init__(self, progress: bool | None) -> None:
        from tqdm import tqdm

        show = sys.stderr.isatty() if progress is None else progress
        self._bar = tqdm(bar_format="{desc} [{elapsed}]", disable=not show, leave=False)

    def say(self, what: str) -> None:
        self._bar.set_description_str(what)

    def close(self) -> None:
        self._bar.close()


@contextmanager
def threads(llm: LLM) -> Iterator[None]:
    """The number of threads that the loader picked, for every row; no gradients."""
    import torch

    before = torch.get_num_threads()
    if llm.threads:
        torch.set_num_threads(llm.threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def counting(llm: LLM) -> Iterator[list[int]]:
    """Count the tokens that go through the model's first layer: a row that skipped the prefix would show here."""
    count = [0]

    def hook(module: Any, args: tuple, options: dict) -> None:
        hidden = args[0] if args else options["hidden_states"]
        count[0] += hidden.shape[0] * hidden.shape[1]

    handle = llm.model.get_decoder().layers[0].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


@dataclass
class Measured:
    """What the rounds of one row gave: prefix and query samples, queries a round, tokens, and log-probabilities by query."""

    row: Row
    llm: LLM
    queries: int
    a_round: int
    prefix: list[Sample] = field(default_factory=list)
    answers: list[Sample] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(
        default_factory=list
    )  # through the model: in the prefix part, in the queries' part
    logprobs: dict[int, np.ndarray] = field(default_factory=dict)

    def round(self, number: int, work: Workload, meter: Meter) -> None:
        """Measure once: the prefix part, if there is one, then this round's queries."""
        which = [(number * self.a_round + i) % self.queries for i in range(self.a_round)]
        if self.row.whole:
            which = list(range(self.queries))
        state, counted = None, 0
        with counting(self.llm) as count:
            if self.row.prefix is not None:
                make = self.row.prefix
                sample = meter(lambda: make(self.llm, work))
                state, sample.value, counted = sample.value, None, count[0]
                self.prefix.append(sample)
            sample = meter(lambda: self.row.queries(self.llm, work, state, which))
            self.tokens.append((counted, count[0] - counted))
        values, sample.value = sample.value, None
        self.answers.append(sample)
        if values is not None:
            self.logprobs.update(zip(which, values))

    def total(self, clock: str) -> float:
        """Seconds ("seconds" or "cpu") for all queries, the prefix included; medians over rounds."""
        once = float(np.median([getattr(s, clock) for s in self.prefix])) if self.prefix and not self.ready else 0.0
        return once + self.queries * float(np.median([getattr(s, clock) for s in self.answers])) / self.a_round

    @property
    def ready(self) -> bool:
        """Whether this row says of itself that the prefix is not in its time."""
        return self.row.name.endswith("prefix ready")

    @property
    def peak(self) -> float:
        return max(s.peak for s in [*self.prefix, *self.answers])

    @property
    def computed(self) -> float:
        """Tokens through the model a query, the prefix included."""
        before, after = self.tokens[0]
        return (0 if self.ready else before) / self.queries + after / self.a_round


def case(models: Sequence[LLM], plan: Plan, prefix: int, suffix: int, bar: Bar) -> dict[str, Any]:
    """All rows at one prefix and suffix, and the rate of matrix products beside them: a machine that others share has fast and slow
    minutes. The first model runs every row, the others ours alone."""
    llm = models[0]
    work = workload(llm, prefix, suffix, max(plan.queries), plan.seed)
    meter = Meter(plan.device)
    few = min(plan.queries)
    runs = [Measured(row, llm, few, _a_round(row, llm, work, plan, few)) for row in ROWS]
    mine = next(row for row in ROWS if row.name == OURS)
    runs += [Measured(mine, llm, n, n) for n in plan.queries if n != few]
    runs += [Measured(mine, other, few, few) for other in models[1:]]
    for other in models:
        mine.queries(other, work, None, range(min(4, few)))  # warm: kernels chosen, memory mapped
    rates: dict[str, list[tuple[float, float]]] = {m.dtype: [] for m in models}
    for number in range(plan.rounds):
        for m in models:
            rates[m.dtype].append(product_rate(m, meter))
        for run in runs:
            bar.say(f"T = {prefix}, round {number + 1} of {plan.rounds}: {run.row.name}")
            run.round(number, work, meter)
    rate = {dtype: np.median(found, 0).tolist() for dtype, found in rates.items()}
    costs = Costs.of(llm.model.config.get_text_config())
    records = [_record(run, runs, costs, rate, prefix, suffix, plan.device) for run in runs]
    out: dict[str, Any] = {"prefix": prefix, "suffix": suffix, "rounds": plan.rounds, "rows": records}
    out["product rate"] = {d: {"wall GFLOP/s": wall / 1e9, "CPU GFLOP/s": cpu / 1e9} for d, (wall, cpu) in rate.items()}
    out["limits"] = limits(llm, costs, prefix, suffix, records, plan)
    return out


def _a_round(row: Row, llm: LLM, work: Workload, plan: Plan, queries: int) -> int:
    """Queries measured in one round: all, a batch, one prompt of the paper's, or as few as the plan says."""
    if row.whole:
        return queries
    if row.name == "expanded cache":
        return min(expansion(llm, work), queries)
    return min(PROMPT_QUERIES if row.name == "the paper's way" else plan.slow, queries)


def operations(name: str, costs: Costs, prefix: int, suffix: int, queries: int) -> float:
    """What the cost model says that a row computes for all its queries."""
    if name in (FULL, "prefix repeated in a batch"):
        return queries * costs.naive(prefix, suffix)
    if name == "the paper's way":
        return queries / PROMPT_QUERIES * costs.generated(prefix + PROMPT_QUERIES * suffix, NEW)
    if name.endswith("prefix ready"):
        return queries * costs.shared(prefix, suffix)
    return costs.once(prefix, suffix, queries)


def _record(run: Measured, runs: Sequence[Measured], costs: Costs, rate, prefix: int, suffix: int, device: str) -> dict:
    """One row of the table."""
    reference = next(r for r in runs if r.row.name == FULL)
    best = next(r for r in runs if r.row.name == OURS)
    shared = sorted(set(run.logprobs) & set(reference.logprobs))
    wall, cpu, n = run.total("seconds"), run.total("cpu"), run.queries
    flops = operations(run.row.name, costs, prefix, suffix, n)
    wall_rate, cpu_rate = rate[run.llm.dtype]
    a, b = ([r.logprobs[q] for q in shared] for r in (run, reference))
    return {
        "method": run.row.name,
        "dtype": run.llm.dtype,
        "queries": n,
        "measured on": f"{n} x {len(run.answers)}" if run.row.whole else f"{run.a_round} x {len(run.answers)}",
        "ms": 1e3 * wall / n,
        "CPU s": cpu / n,
        "queries/s": n / wall,
        "tokens": run.computed,
        "peak MB": run.peak / 1e6,
        "slower": wall / n / (best.total("seconds") / best.queries),
        "slower CPU": cpu / n / (best.total("cpu") / best.queries),
        "share": flops / cpu / cpu_rate if device == "cpu" else flops / wall / wall_rate,
        "difference": float(np.abs(np.subtract(a, b)).max()) if shared else None,
        "flips": int(sum(x.argmax() != y.argmax() for x, y in zip(a, b))) if shared else None,
        "compared": len(shared),
        "rounds": {
            "prefix seconds": [s.seconds for s in run.prefix],
            "seconds": [s.seconds for s in run.answers],
            "prefix CPU seconds": [s.cpu for s in run.prefix],
            "CPU seconds": [s.cpu for s in run.answers],
        },
    }


def trees(llm: LLM, plan: Plan, bar: Bar) -> list[dict[str, Any]]:
    """Twenty orders of the same shots, and each shot left out: tokens computed over tokens asked, and the tree's optimum."""
    from icrl_lab.engine import Engine
    from icrl_lab.engine.tree import build, symbols

    work = workload(llm, plan.tree_prefix, min(s for _, s in plan.cases), plan.tree_queries, plan.seed)
    out = []
    for name, prompts in (
        (f"{len(work.shots)} orders of {len(work.shots)} shots", orders(work, 20, plan.tree_queries, plan.seed)),
        (f"each of {len(work.shots)} shots left out", leave_one_out(work, plan.tree_queries)),
    ):
        bar.say(name)
        result = Engine(llm).run(prompts, work.labels)
        best = build([symbols(p) for p in prompts]).size
        out.append(
            {
                "what": f"{name}, {plan.tree_queries} queries each, T = {plan.tree_prefix}",
                "prompts": len(prompts),
                "asked": result.asked,
                "computed": result.computed,
                "optimum": best,
                "times fewer": result.asked / result.computed,
                "pass": result.computed == best,
            }
        )
    return out
