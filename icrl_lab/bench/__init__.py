"""The performance table: every way to ask many queries after one prefix, in one run, beside what the cost model predicts.

`run` measures, `table` prints, and neither hides a limit that is missed. All rows see the same model, prompts and threads,
and are measured in turn, round after round, so that a machine that slows down slows all of them. The prefix is always
computed inside the measured time; loading never is. Slow rows are measured on a part of the queries (`measured on`), and a
row with a shared prefix counts prefix + N x a query. Nothing here is used by any other room.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from icrl_lab.bench.render import table
from icrl_lab.errors import DataError, StudyError

if TYPE_CHECKING:
    from icrl_lab.bench.cases import Bar, Plan
    from icrl_lab.models import LLM

__all__ = ["run", "table"]

DTYPES = {"cpu": "float32", "cuda": "bfloat16"}


def run(
    device: str = "cpu",
    geometry: str = "smollm2-135m",
    *,
    quick: bool = False,
    dtype: str | None = None,
    peers: Mapping[str, str] | None = None,
    llm: LLM | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure everything; a dict that goes into JSON as it is: machine, settings, cases (rows and limits), inside (what looking
    inside costs: rows, limits and notes), trees, exactness.

    geometry  a name of `bench.geometry.GEOMETRIES`; weights are random unless an `llm` of that geometry is handed in
    quick     the first prefix and the smaller N alone, fewer queries, a smaller tree: to see that it works
    dtype     float32 on a CPU and bfloat16 on a GPU where None; on a CPU in float32, ours is measured in bfloat16 besides
    peers     name -> python interpreter of an environment that has it: "llama-cpp", "vllm"; "transformer-lens", "nnsight"
    progress  a progress bar on stderr; None: where it is a terminal

    Raises StudyError for an unknown geometry, dtype, device or peer, ModelError where there is no such device.
    """
    from icrl_lab.bench import cases, exact, lookers, measure
    from icrl_lab.bench import geometry as geometries
    from icrl_lab.bench import peers as others

    shape = geometries.geometry(geometry)
    if device not in DTYPES:
        raise StudyError(f"device {device!r} is unknown; valid: cpu, cuda")
    dtype = dtype or DTYPES[device]
    if dtype not in ("float32", "bfloat16", "float16"):
        raise StudyError(f"dtype {dtype!r} is unknown; valid: float32, bfloat16, float16")
    others.check(peers or {})
    plan = cases.Plan.of(shape, device, quick, seed)
    bar = cases.Bar(progress)
    bar.say("making the model")
    llm = llm or geometries.make(geometry, device, dtype, seed)
    if llm.device != device or llm.dtype != dtype:
        raise DataError(f"{llm.name} is on {llm.device} in {llm.dtype}, but the run asks for {device} and {dtype}")
    models = [llm]
    if device == "cpu" and dtype == "float32":
        models.append(geometries.cast(llm, "bfloat16"))
    with cases.threads(llm):
        measured = [cases.case(models, plan, *shape_case, bar) for shape_case in plan.cases]
        looks = [_look(models, case["product rate"], plan, *at, bar) for case, at in zip(measured, plan.cases)]
        trees = cases.trees(llm, plan, bar)
        accuracy = exact.exactness(llm, plan, bar)
    scoring, looking = ({n: p for n, p in (peers or {}).items() if n in kind} for kind in (others.NAMES, others.INSIDE))
    for case in measured if scoring else ():
        others.add(case, llm, plan, scoring, bar)
    if looking:
        with cases.threads(llm):
            looks += lookers.look(llm, plan, looking, bar)
    bar.close()
    return {
        "geometry": geometry,
        "dtype": dtype,
        "quick": quick,
        "threads": llm.threads,
        "weights": "random" if llm.name == geometry else llm.name,
        "machine": measure.machine(device),
        "cases": measured,
        "inside": looks,
        "trees": trees,
        "exactness": accuracy,
    }


def _look(
    models: Sequence[LLM], rates: Mapping[str, Mapping[str, float]], plan: Plan, prefix: int, suffix: int, bar: Bar
) -> dict[str, Any]:
    """What looking inside costs at one prefix and suffix: rows, limits and notes under one title."""
    from icrl_lab.bench import attention, patching

    rate = {dtype: found["wall GFLOP/s"] for dtype, found in rates.items()}
    fast = [model for model in models if rate[model.dtype] >= rate[models[0].dtype] / 2]
    parts = [
        attention.attention(fast, plan, prefix, suffix, bar),
        patching.patching(models[0], plan, prefix, suffix, bar),
    ]
    out = {key: [item for part in parts for item in part[key]] for key in ("rows", "limits", "notes")}
    slow = [model.dtype for model in models if model not in fast]
    out["notes"] += [f"no rows in {dtype}: this machine multiplies in it at less than half the rate" for dtype in slow]
    return {"title": f"Looking inside: T = {prefix}, S = {suffix}", **out}
