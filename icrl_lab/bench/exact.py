"""How exact float32 is: the engine and a full forward pass, each against the other and against float64."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.bench.geometry import workload
from icrl_lab.bench.limits import DIFFERENCE, limit
from icrl_lab.files import cache_dir

if TYPE_CHECKING:
    from icrl_lab.bench.cases import Bar, Plan
    from icrl_lab.models import LLM

EMBEDDED = "smollm2-135m"


def exactness(llm: LLM, plan: Plan, bar: Bar) -> list[dict[str, Any]]:
    """Largest log-probability difference over the whole vocabulary, one record for each case and set of weights.

    Only float32 on a CPU. Beside the random weights stand the embedded model's own, where they are in the cache and the
    geometry is theirs: trained weights make larger logits, and larger rounding.
    """
    if llm.dtype != "float32" or plan.device != "cpu":
        return []
    out = [_compare(llm, plan, prefix, suffix, bar) for prefix, suffix in plan.cases]
    if llm.name == EMBEDDED and not plan.quick and (cache_dir("models", EMBEDDED) / "dense" / "done").is_file():
        from icrl_lab.models import load_llm

        trained = load_llm(EMBEDDED, dtype="float32", device="cpu", threads=llm.threads, progress=False)
        out += [_compare(trained, plan, prefix, suffix, bar, "trained") for prefix, suffix in plan.cases]
    return out


def _compare(llm: LLM, plan: Plan, prefix: int, suffix: int, bar: Bar, weights: str = "random") -> dict[str, Any]:
    from icrl_lab.engine import Engine
    from icrl_lab.engine.proof import plain

    bar.say(f"T = {prefix}: differences, {weights} weights")
    prompts = workload(llm, prefix, suffix, plan.checked, plan.seed).prompts
    ours = Engine(llm).next_token(prompts)
    full = np.stack([plain(llm, p) for p in prompts])
    # of a copy: the model itself, cast there and back, would have lost how its weights lie
    wide = replace(llm, model=copy.deepcopy(llm.model).double())
    exact = np.stack([plain(wide, p) for p in prompts[:1]])
    apart = lambda a, b: float(np.abs(a - b).max())  # noqa: E731
    return {
        "weights": weights,
        "prefix": prefix,
        "queries": len(prompts),
        "ours to float64": apart(ours[:1], exact),
        "full forward to float64": apart(full[:1], exact),
        **limit(
            f"T = {prefix}, {weights} weights: float32 over the whole vocabulary, to a full forward",
            apart(ours, full),
            DIFFERENCE,
            False,
        ),
    }
