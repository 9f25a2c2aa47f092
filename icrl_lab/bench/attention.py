"""What attention rows cost: captured while a pack is scored, beside scoring alone and beside eager attention.

Captured are the answer's row and the query slot's, over the columns of all vectors, in every layer and head. Eager attention
keeps every weight of every row, so it is called once, on one query, and only where its matrices fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.bench.geometry import Workload, workload
from icrl_lab.bench.limits import CAPTURE, EAGER, EAGER_PREFIX, WEIGHTS, limit
from icrl_lab.bench.measure import Meter, free
from icrl_lab.bench.rows import embed, ready
from icrl_lab.bench.ways import Way, find, held, in_turn, record
from icrl_lab.values import Capture

if TYPE_CHECKING:
    from icrl_lab.bench.cases import Bar, Plan
    from icrl_lab.models import LLM

SCORED, CAPTURED, EAGERLY = "ours", "ours, attention captured", "eager, output_attentions"
READY = ", prefix ready"


def capture(llm: LLM, work: Workload, of: Sequence[int], engine: Any = None) -> np.ndarray:
    """(queries, layers, heads, 2, vectors) attention of the answer's row and the query slot's to all vectors, by the engine."""
    from icrl_lab.engine import Engine

    wanted = Capture((-1, work.prefix), columns=work.columns)
    run = (engine or Engine(llm)).run([work.prompts[q] for q in of], work.labels, wanted)
    return np.stack([trace.attention for trace in run.traces if trace.attention is not None])


def eager(llm: LLM, work: Workload, query: int = 0) -> np.ndarray:
    """(layers, heads, 2, vectors) the same of one query, by transformers: eager attention, all weights of all rows."""
    model, before = llm.model, llm.model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        out = model(
            inputs_embeds=embed(llm, work, query)[None], use_cache=False, output_attentions=True, logits_to_keep=1
        )
    finally:
        model.set_attn_implementation(before)
    rows = [work.prefix + work.suffix - 1, work.prefix]
    return np.stack([weights[0][:, rows][..., list(work.columns)].float().cpu().numpy() for weights in out.attentions])


def attention(models: Sequence[LLM], plan: Plan, prefix: int, suffix: int, bar: Bar) -> dict[str, Any]:
    """Rows, limits and notes of capturing, at one prefix and suffix. The first model is also run eagerly."""
    meter, llm = Meter(plan.device), models[0]
    work = workload(llm, prefix, suffix, plan.pack, plan.seed)
    say = lambda what: bar.say(f"T = {prefix}, attention, {what}")  # noqa: E731
    ways: list[Way] = []
    for model in models:
        mine = _ways(model, work)
        for way in mine:
            way.call()  # warm: kernels chosen, memory mapped
        in_turn(mine[:2], plan.rounds, meter, say)
        in_turn(mine[2:], 3 * plan.rounds, meter, say)
        ways += mine
    limits, notes = [], []
    for way in ways:
        other = find(ways, way.against, way.dtype)
        if other is not None:
            what = f"{way.name}, {way.dtype}, {way.answers} queries, {{clock}}: times scoring alone"
            limits += held(what, way, other, plan.device, CAPTURE, False)
    needs, has = 2 * _matrices(llm, prefix + suffix), free(plan.device)
    if needs < has:
        say(EAGERLY)
        slow, quick = Way(EAGERLY, llm.dtype, "1 query", 1, lambda: eager(llm, work), CAPTURED + READY), ways[3]
        slow.measure(meter)
        slow.apart = float(np.abs(slow.value - quick.value[0]).max())
        ways.append(slow)
        limits += _against_eager(slow, quick, prefix, plan.device)
    else:
        notes.append(f"{EAGERLY}: no row, its matrices may take {needs / 1e9:.1f} GB and {has / 1e9:.1f} are free")
    return {"rows": [record(way, ways, plan.device) for way in ways], "limits": limits, "notes": notes}


def _ways(llm: LLM, work: Workload) -> list[Way]:
    """Scoring and capturing a pack: from nothing, then by an engine that holds the prefix."""
    from icrl_lab.engine import Engine

    holds, every = ready(llm, work), range(len(work.prompts))
    n, asked = len(every), f"{len(every)} queries"
    both = f"{asked}, 2 rows x {len(work.columns)} vectors"
    return [
        Way(SCORED, llm.dtype, asked, n, lambda: Engine(llm).next_token(work.prompts, work.labels)),
        Way(CAPTURED, llm.dtype, both, n, lambda: capture(llm, work, every), SCORED),
        Way(SCORED + READY, llm.dtype, asked, n, lambda: holds.next_token(work.prompts, work.labels)),
        Way(CAPTURED + READY, llm.dtype, both, n, lambda: capture(llm, work, every, holds), SCORED + READY),
    ]


def _against_eager(slow: Way, quick: Way, prefix: int, device: str) -> list[dict[str, Any]]:
    out = []
    if prefix >= EAGER_PREFIX:
        what = f"T = {prefix}, {slow.dtype}, {{clock}}: a query captured after its prefix is times cheaper than eager"
        out += held(what, slow, quick, device, EAGER)
    if slow.dtype == "float32":
        assert slow.apart is not None
        out.append(limit("float32 attention captured, to eager attention's", slow.apart, WEIGHTS, False))
    return out


def _matrices(llm: LLM, length: int) -> float:
    """Bytes of all attention matrices of one sequence."""
    return llm.blocks * llm.heads * length**2 * llm.model.dtype.itemsize
