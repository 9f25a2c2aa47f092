"""What a table of patches costs: every layer x position is a cell, and each cell is read for several queries.

Ours hands all cells to the engine at once, as edited prompts. The other way is what a user of hooks writes: one full forward pass
for each cell and query. Two tables are timed, with the cells at the shots' slots (the prefix changes, and is computed anew from
there on, once for all queries of a cell) and at the query's own tokens (the prefix stays). A sample of cells stands for each
table: those in the middle of equal parts of its layers and of its positions. Ours pays for the whole prefix in each call, as it
would for the whole table, so a sample overstates what a cell takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.bench.geometry import Workload, workload
from icrl_lab.bench.limits import CELLS
from icrl_lab.bench.measure import Meter
from icrl_lab.bench.rows import embed, read
from icrl_lab.bench.ways import Way, held, in_turn, record, times
from icrl_lab.values import Patch, Rendered

if TYPE_CHECKING:
    from icrl_lab.bench.cases import Bar, Plan
    from icrl_lab.models import LLM


@dataclass(frozen=True)
class Table:
    """Cells of one table that are timed.

    where   "prefix" or "suffix": the part of the prompt whose states are changed
    words   what the whole table is
    cells   (layer, position) of the sample
    values  (cells, d) float32, what is set there
    """

    where: str
    words: str
    cells: tuple[tuple[int, int], ...]
    values: np.ndarray

    def patch(self, cell: int) -> Patch:
        """The edit of one cell."""
        layer, position = self.cells[cell]
        return Patch(layer, (position,), self.values[cell : cell + 1])

    def prompts(self, work: Workload, queries: int) -> list[Rendered]:
        """Each cell's prompts, cell by cell."""
        return [
            prompt.edited(patch)
            for patch in map(self.patch, range(len(self.cells)))
            for prompt in work.prompts[:queries]
        ]


def middles(count: int, parts: int) -> list[int]:
    """The middles of `parts` equal parts of 0..count-1. Where the parts are of odd size, their mean is that of all, and over a grid
    of two of them so is the mean of what is linear in each, as the tokens and blocks are that an edit makes anew."""
    parts = min(parts, count)
    return [(2 * part + 1) * count // (2 * parts) for part in range(parts)]


def tables(llm: LLM, work: Workload, sampled: Sequence[tuple[int, int]], seed: int) -> list[Table]:
    """The two tables, each sampled at `sampled` (layers, positions)."""
    rng = np.random.default_rng([seed, 2])
    blocks = llm.blocks
    norm = np.linalg.norm(work.prompts[0].vectors, axis=1).mean()
    slots, own = work.columns[:-1], range(work.prefix, work.prefix + work.suffix)
    out = []
    for where, words, places, (layers, positions) in (
        ("prefix", f"{blocks} layers x {len(slots)} slots", slots, sampled[0]),
        ("suffix", f"{blocks} layers x {len(own)} positions", own, sampled[1]),
    ):
        cells = [(layer, places[at]) for layer in middles(blocks, layers) for at in middles(len(places), positions)]
        drawn = rng.standard_normal((len(cells), llm.width)).astype(np.float32)
        values = drawn * (norm / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        out.append(Table(where, words, tuple(cells), values))
    return out


def ours(llm: LLM, work: Workload, table: Table, queries: int) -> np.ndarray:
    """(cells, queries, labels) log-probabilities, all cells in one run of the engine."""
    from icrl_lab.engine import Engine

    found = Engine(llm).next_token(table.prompts(work, queries), work.labels)
    return found.reshape(len(table.cells), queries, -1)


def hooked(llm: LLM, work: Workload, table: Table, cell: int, query: int) -> np.ndarray:
    """(labels,) log-probabilities of one cell and query: a full forward pass with a hook on the cell's block."""
    import torch

    (layer, position), value = table.cells[cell], torch.tensor(table.values[cell])

    def hook(module: Any, args: tuple, options: dict) -> tuple[tuple, dict]:
        hidden = (args[0] if args else options["hidden_states"]).clone()
        hidden[:, position] = value.to(hidden)
        return ((hidden, *args[1:]), options) if args else (args, options | {"hidden_states": hidden})

    handle = llm.model.get_decoder().layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        out = llm.model(inputs_embeds=embed(llm, work, query)[None], use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return read(out.logits, work)[0]


def patching(llm: LLM, plan: Plan, prefix: int, suffix: int, bar: Bar) -> dict[str, Any]:
    """Rows, limits and notes of both tables at one prefix and suffix."""
    work = workload(llm, prefix, suffix, plan.patched, plan.seed)
    out: dict[str, Any] = {"rows": [], "limits": [], "notes": []}
    for table in tables(llm, work, plan.sampled, plan.seed):
        ways = _measure(llm, work, table, plan, bar)
        out["rows"] += [record(way, ways, plan.device) for way in ways]
        mine, one, slow = ways
        what = (
            f"patches in the {table.where}, T = {prefix}, {table.words}, {plan.patched} queries a cell, {{clock}}: times faster "
            "than a forward pass for each cell and query"
        )
        out["limits"] += held(what, slow, mine, plan.device, CELLS[table.where])
        out["notes"].append(
            f"patches in the {table.where}, one query a cell: {times(slow, one, 'seconds'):.1f} times faster than a forward pass "
            "for each cell; no limit is set for it"
        )
    return out


def _measure(llm: LLM, work: Workload, table: Table, plan: Plan, bar: Bar) -> list[Way]:
    """Ours for all queries, for one (a single call), and the forward passes of a few cells and queries, other ones each round."""
    meter, queries, cells = Meter(plan.device), len(work.prompts), len(table.cells)
    name = f"ours, patches in the {table.where}"
    few = 2
    pairs = [(i * cells // (few * plan.again), i % queries) for i in range(few * plan.again)]
    turn = iter([pairs[few * i : few * (i + 1)] for i in range(plan.again)])
    found: dict[tuple[int, int], np.ndarray] = {}

    def passes() -> None:
        for cell, query in next(turn):
            found[cell, query] = hooked(llm, work, table, cell, query)

    sample = f"{table.words}, by {cells}"
    mine = Way(
        name, llm.dtype, f"{sample} cells x {queries} queries", cells * queries, lambda: ours(llm, work, table, queries)
    )
    one = Way(f"{name}, one query", llm.dtype, f"{sample} cells x 1 query", cells, lambda: ours(llm, work, table, 1))
    slow = Way(f"a forward pass a cell, {table.where}", llm.dtype, f"{few} cells x 1 query", few, passes, name)
    say = lambda what: bar.say(f"T = {work.prefix}, patches, {what}")  # noqa: E731
    in_turn([mine, slow], plan.again, meter, say)
    in_turn([one], 1, meter, say)
    slow.apart = max(float(np.abs(mine.value[cell, query] - row).max()) for (cell, query), row in found.items())
    return [mine, one, slow]
