"""Optional rows: TransformerLens and nnsight on the same model and embeddings, each in an environment of its own.

A peer does two jobs: it keeps the attention of two rows to all vectors and the residual stream of two positions in every layer,
and it reads the labels under a table of patches. What it saw is held against ours, number by number; ours is timed right
after it. Both are done on a tiny model, and at the geometry of the run at its shortest prefix.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.bench import geometry, patching
from icrl_lab.bench.geometry import Workload, workload
from icrl_lab.bench.limits import NUMBERS, limit
from icrl_lab.bench.measure import Meter, Sample
from icrl_lab.bench.peers import INSIDE_SCRIPT, answer, write_model, write_prompts
from icrl_lab.bench.ways import Way, in_turn, record
from icrl_lab.values import Capture

if TYPE_CHECKING:
    from icrl_lab.bench.cases import Bar, Plan
    from icrl_lab.bench.patching import Table
    from icrl_lab.models import LLM

QUERIES = 4
SAMPLED = ((2, 2), (1, 1))  # (layers, positions) of the patches: those in the prefix are asked


def look(llm: LLM, plan: Plan, peers: Mapping[str, str], bar: Bar) -> list[dict[str, Any]]:
    """What the peers took and saw, for the tiny model and for the run's own: rows, limits and notes under a title each."""
    tiny = llm if llm.name == "tiny" else geometry.make("tiny", plan.device, "float32", plan.seed)
    tiny.threads = llm.threads
    out = []
    for model in [tiny] if tiny is llm else [tiny, llm]:
        prefix, suffix = geometry.geometry(model.name).cases[0] if model is tiny else min(plan.cases)
        out.append(_look(model, plan, prefix, suffix, peers, bar))
    return out


def _look(llm: LLM, plan: Plan, prefix: int, suffix: int, peers: Mapping[str, str], bar: Bar) -> dict[str, Any]:
    import torch

    work = workload(llm, prefix, suffix, QUERIES, plan.seed)
    table = patching.tables(llm, work, SAMPLED, plan.seed)[0]
    rounds = plan.rounds if llm.name == "tiny" else plan.again
    out: dict[str, Any] = {
        "title": f"Looking inside beside peers: {llm.name}, {llm.dtype}, T = {prefix}, S = {suffix}",
        "rows": [], "limits": [], "notes": [],
    }  # fmt: skip
    for name, python in peers.items():
        bar.say(f"{llm.name}, T = {prefix}: {name}")
        with tempfile.TemporaryDirectory() as made, torch.inference_mode():
            folder = Path(made)
            spec = _write(name, folder, llm, work, table, rounds)
            try:
                got = answer(python, folder, spec, INSIDE_SCRIPT)
                saw = _read(folder, spec)
            except RuntimeError as error:
                out["notes"].append(f"{name}: no row, {error}")
                continue
        ways = _ways(llm, work, table, got, saw, plan.device, rounds)
        out["rows"] += [record(way, ways, plan.device) for way in ways]
        if llm.dtype == "float32":
            out["limits"] += [
                limit(f"{got['name']}: largest difference of {way.asked}, to ours", way.apart, NUMBERS, False)
                for way in ways
                if way.apart is not None
            ]
        out["notes"] += [f"{got['name']}: {note}" for note in got["notes"]]
    return out


def _write(name: str, folder: Path, llm: LLM, work: Workload, table: Table, rounds: int) -> dict[str, Any]:
    """The peer's input: embeddings and patches as raw float32, the model as safetensors, and a specification."""
    spec = write_prompts(name, folder, llm, work, rounds) | {
        "rows": [work.prefix + work.suffix - 1, work.prefix], "columns": list(work.columns), "cells": table.cells,
        "layers": llm.blocks, "device": llm.device,
        "heads": llm.heads,
    }  # fmt: skip
    table.values.tofile(folder / "patches.f32")
    write_model(folder, llm)
    (folder / "spec.json").write_text(json.dumps(spec))
    return spec


def _read(folder: Path, spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the peer saw: attention (queries, layers, heads, rows, columns), states (queries, depths, rows, d), patched log-probabilities
    (cells, queries, labels). A RuntimeError where a file is missing or has another size."""
    q, layers, r = spec["queries"], spec["layers"], len(spec["rows"])
    shapes = {
        "attention": (q, layers, spec["heads"], r, len(spec["columns"])),
        "states": (q, layers + 1, r, spec["width"]),
        "patched": (len(spec["cells"]), q, len(spec["labels"])),
    }
    out = {}
    for name, shape in shapes.items():
        try:
            out[name] = np.fromfile(folder / f"{name}.f32", np.float32).reshape(shape)
        except (OSError, ValueError) as error:
            raise RuntimeError(f"it wrote no {name}: {error}") from None
    return out


def see(llm: LLM, work: Workload) -> dict[str, np.ndarray]:
    """Ours: attention and states as in `_read`, the prefix computed."""
    from icrl_lab.engine import Engine

    rows = (-1, work.prefix)
    run = Engine(llm).run(work.prompts, work.labels, Capture(rows, work.columns, hidden=rows))
    stack = lambda name: np.stack([getattr(trace, name) for trace in run.traces])  # noqa: E731
    return {"attention": stack("attention"), "states": stack("hidden")}


def _ways(
    llm: LLM, work: Workload, table: Table, got: dict[str, Any], saw: dict[str, np.ndarray], device: str, rounds: int
) -> list[Way]:
    """The peer's two jobs as it timed them, and ours, timed now."""
    n, cells = len(work.prompts), len(table.cells)
    seeing, patches = f"{n} queries: attention and states", f"{cells} cells x {n} queries: patched log-probabilities"
    first, second = f"ours, beside {got['name']}", f"ours, patches, beside {got['name']}"
    mine = [
        Way(first, llm.dtype, seeing, n, lambda: see(llm, work)),
        Way(second, llm.dtype, patches, cells * n, lambda: patching.ours(llm, work, table, n)),
    ]
    for way in mine:
        way.call()
    in_turn(mine, rounds, Meter(device))
    own = {**mine[0].value, "patched": mine[1].value}
    apart = {name: float(np.abs(own[name] - found).max()) for name, found in saw.items()}
    theirs = [
        Way(got["name"], llm.dtype, seeing, n, lambda: None, first, apart=max(apart["attention"], apart["states"])),
        Way(f"{got['name']}, patches", llm.dtype, patches, cells * n, lambda: None, second, apart=apart["patched"]),
    ]
    for way, key in zip(theirs, ("seen", "patched")):
        way.samples += [Sample(wall, cpu, float("nan"), None) for wall, cpu in got[key]]
    return [mine[0], theirs[0], mine[1], theirs[1]]
