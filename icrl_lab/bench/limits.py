"""The limits the lab holds itself to, each with what was measured beside it: passed or short, never left out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from icrl_lab.bench.costs import Costs
from icrl_lab.bench.rows import FULL, OURS
from icrl_lab.engine import products

if TYPE_CHECKING:
    from icrl_lab.bench.cases import Plan
    from icrl_lab.models import LLM

SHARE = 0.75  # of the ratio that the cost model predicts
TARGETS = {("smollm2-135m", 512, 64): 18, ("smollm2-135m", 2048, 64): 33, ("smollm2-135m", 512, 500): 28, ("smollm2-135m", 2048, 500): 80}  # fmt: skip
# queries a second; at N = 64 the prefix takes half of the time
RATES = {("NVIDIA H200", "llama-3.1-8b", 2048, 500): 700}
DIFFERENCE = 1e-5  # of float32 log-probabilities, to a full forward
MEMORY = 1500.0  # MB above the model
CAPTURE = 1.15  # times scoring alone, with attention rows captured
EAGER, EAGER_PREFIX = 100.0, 2048  # times cheaper a query than eager attention, from this prefix on
WEIGHTS = 1e-6  # of float32 attention weights, to eager attention's
CELLS = {"prefix": 5.0, "suffix": 20.0}  # times faster than a forward pass for each patched cell and query
NUMBERS = 1e-4  # of attention weights, states and log-probabilities, to those of tools that look inside
PEERS = {("vllm", 512): 0.9, ("vllm", 2048): 1.15, ("llama-cpp", 512): 1.2, ("llama-cpp", 2048): 1.2}


def limit(what: str, measured: float, bound: float, at_least: bool = True) -> dict[str, Any]:
    """One line: what, the measured number, the bound and whether it holds."""
    return {
        "limit": what,
        "measured": measured,
        "bound": bound,
        "at least": at_least,
        "pass": bool(measured >= bound if at_least else measured <= bound),
    }


def limits(
    llm: LLM, costs: Costs, prefix: int, suffix: int, records: Sequence[dict[str, Any]], plan: Plan
) -> list[dict[str, Any]]:
    """The limits of one case. On a CPU each ratio is held in wall time and in CPU time, which a busy neighbour does not spoil."""
    import torch

    full = next(r for r in records if r["method"] == FULL)
    mine = [r for r in records if r["method"] == OURS and r["dtype"] == full["dtype"]]
    clocks = {"wall": "ms", "CPU time": "CPU s"} if plan.device == "cpu" else {"wall": "ms"}
    out = []
    for row in mine:
        n = row["queries"]
        predicted = costs.ratio(prefix, suffix, n)
        target = TARGETS.get((llm.name, prefix, n))
        for clock, key in clocks.items():
            ratio = full[key] / row[key]
            where = f"N = {n}, {clock}: {ratio:.1f} times a full forward, {predicted:.1f} by the cost model"
            out.append(limit(f"{where}; share of it", ratio / predicted, SHARE))
            if target is not None:
                out.append(limit(f"N = {n}, {clock}: times a full forward", ratio, target))
        gpu = torch.cuda.get_device_name() if plan.device == "cuda" else ""
        bound = next(
            (v for (g, *case), v in RATES.items() if gpu.startswith(g) and case == [llm.name, prefix, n]), None
        )
        if bound is not None:
            out.append(limit(f"N = {n}: queries a second", row["queries/s"], bound))
    if full["dtype"] == "float32":
        out.append(limit("float32 log-probabilities of the labels against a full forward", max(r["difference"] for r in mine), DIFFERENCE, False))  # fmt: skip
    copied = products.copied(llm.model) / 1e6
    what = f"MB above the model, {copied:,.0f} of them a second copy of its weights" if copied else "MB above the model"
    out.append(limit(what, copied + max(r["peak MB"] for r in mine), MEMORY, False))
    return out
