"""Optional rows: what vLLM and llama.cpp take for the same workload, each in an environment of its own.

This side writes the model and the prompts' embeddings to a temporary folder, starts `peer.py` there under the other
interpreter, and reads its times. Ours is measured again in turn with each peer, round by round, and a ratio is the median over the
pairs: a machine's speed changes from one minute to the next by more than what is to be told apart.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.bench.geometry import Workload, workload
from icrl_lab.bench.limits import PEERS, limit
from icrl_lab.bench.measure import Meter, Sample
from icrl_lab.bench.peer import PAUSE, TURN
from icrl_lab.bench.rows import embed, ours, ours_ready, ready
from icrl_lab.errors import StudyError, nearest
from icrl_lab.fetch import quiet
from icrl_lab.files import cache_dir

if TYPE_CHECKING:
    from icrl_lab.bench.cases import Bar, Plan
    from icrl_lab.models import LLM

NAMES = ("llama-cpp", "vllm")
INSIDE = ("transformer-lens", "nnsight")  # these look inside: see `lookers`
CLOCKS = ("seconds", "cpu")
ROUNDS = 12  # at least, unless the bench is quick: single pairs differ by a fifth
SECONDS = 900  # a peer that takes longer is stopped, and said to have been
SCRIPT, INSIDE_SCRIPT = Path(__file__).with_name("peer.py"), Path(__file__).with_name("peer_inside.py")


def check(peers: Mapping[str, str]) -> None:
    """Raise StudyError for a peer that is unknown or an interpreter that is not there."""
    for name, python in peers.items():
        if name not in NAMES + INSIDE:
            raise StudyError(f"peer {name!r} is unknown; {nearest(name, NAMES + INSIDE)}")
        if not Path(python).is_file():
            raise StudyError(f"peer {name!r}: there is no interpreter {python!r}; give NAME=/path/to/python")


def add(case: dict[str, Any], llm: LLM, plan: Plan, peers: Mapping[str, str], bar: Bar) -> None:
    """Measure each peer on a case's workload: two rows each, and the limit on their ratio. A peer that fails is a note."""
    import torch

    queries = min(plan.queries)
    work = workload(llm, case["prefix"], case["suffix"], queries, plan.seed)
    rounds = plan.rounds if plan.quick else max(plan.rounds, ROUNDS)
    for name, python in peers.items():
        bar.say(f"T = {case['prefix']}: {name}")
        beside = _Beside(llm, work, plan.device)
        with tempfile.TemporaryDirectory() as folder:
            with torch.inference_mode():
                spec = _write(name, Path(folder), llm, work, rounds)
            try:
                got = answer(python, Path(folder), spec, turn=beside.round)
            except RuntimeError as error:
                case.setdefault("notes", []).append(f"{name}: no row, {error}")
                continue
        again: dict[str, Any] = {"name": f"ours beside {got['name']}", "dtype": llm.dtype, **beside.medians()}
        slower = _slower(got["rounds"], again["rounds"])
        case["rows"] += _rows(got, again, slower, queries, rounds)
        bound = PEERS.get((name, case["prefix"]))
        for clock, key in (("wall", "seconds"), ("CPU time", "cpu")):
            what = f"{got['name']}, prefix ready, N = {queries}, {clock}: ours, in turn with it, is times faster"
            if bound is not None:
                case["limits"].append(limit(what, slower["ready"][key], bound))


def _write(name: str, folder: Path, llm: LLM, work: Workload, rounds: int) -> dict[str, Any]:
    """The peer's input: embeddings as raw float32, the model as safetensors or GGUF, and a specification."""
    spec = write_prompts(name, folder, llm, work, rounds)
    if name == "vllm":
        write_model(folder, llm)
    else:
        spec["gguf"] = next(map(str, sorted(cache_dir("models", "smollm2-135m").glob("*.gguf"))), "")
    (folder / "spec.json").write_text(json.dumps(spec))
    return spec


def write_prompts(name: str, folder: Path, llm: LLM, work: Workload, rounds: int) -> dict[str, Any]:
    """Write the prompts' embeddings as raw float32; what the specification says of them."""
    every = np.stack([embed(llm, work, q).float().cpu().numpy() for q in range(len(work.prompts))])
    every[0, : work.prefix].tofile(folder / "prefix.f32")
    every[:, work.prefix :].tofile(folder / "suffixes.f32")
    return {
        "peer": name, "prefix": work.prefix, "suffix": work.suffix, "queries": len(work.prompts), "width": llm.width,
        "labels": work.labels, "rounds": rounds, "threads": llm.threads, "dtype": llm.dtype,
    }  # fmt: skip


def write_model(folder: Path, llm: LLM) -> None:
    """Write the model as transformers saves it."""
    with quiet():
        llm.model.save_pretrained(folder / "model")


def answer(
    python: str, folder: Path, spec: dict[str, Any], script: Path = SCRIPT, turn: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The peer's answer; a RuntimeError with the last thing it said where there is none. `turn` is called when it waits for us."""
    if spec.get("gguf") == "":
        raise RuntimeError("the embedded model's GGUF is not in the cache; run `icrl-lab demo` once")
    for file in {SCRIPT, script}:
        shutil.copy(file, folder)  # away from this package, whose modules it must not find
    peer = subprocess.Popen(
        [str(Path(python).absolute()), script.name, "."],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=folder,
        start_new_session=True,  # what it starts itself is stopped with it
    )
    started, said = time.monotonic(), "it said nothing"
    alarm = Timer(SECONDS, _stop, [peer])
    alarm.start()
    try:
        with peer:
            assert peer.stdin and peer.stdout
            for line in peer.stdout:
                if line.strip() == TURN:
                    turn()
                    peer.stdin.write("\n")
                    peer.stdin.flush()
                elif line.strip():
                    said = line.strip()
    except BrokenPipeError:
        pass  # it ended while we measured; its status says why
    except BaseException:
        _stop(peer)
        raise
    finally:
        alarm.cancel()
    if time.monotonic() - started >= SECONDS:
        raise RuntimeError(f"it was stopped after {SECONDS} s")
    found = folder / "answer.json"
    if peer.returncode or not found.is_file():
        raise RuntimeError(f"it ended with status {peer.returncode}: {said}")
    return json.loads(found.read_text())


def _stop(peer: subprocess.Popen) -> None:
    try:
        os.killpg(peer.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class _Beside:
    """Ours on a peer's workload, from nothing and with the prefix there, a round whenever it is our turn."""

    def __init__(self, llm: LLM, work: Workload, device: str) -> None:
        self.llm, self.work, self.meter = llm, work, Meter(device)
        self.samples: dict[str, list[Sample]] = {"whole": [], "ready": []}
        self.engine: Any = None

    def round(self) -> None:
        from icrl_lab.bench.cases import threads

        time.sleep(PAUSE)
        which = range(len(self.work.prompts))
        with threads(self.llm):
            self.engine = self.engine or ready(self.llm, self.work)
            self.samples["whole"].append(self.meter(lambda: ours(self.llm, self.work, None, which)))
            self.samples["ready"].append(self.meter(lambda: ours_ready(self.llm, self.work, self.engine, which)))

    def medians(self) -> dict[str, dict[str, Any]]:
        """Medians of seconds and CPU seconds for all queries, and (wall, CPU) seconds of each round."""
        rounds = {name: [(s.seconds, s.cpu) for s in found] for name, found in self.samples.items()}
        middle = {name: dict(zip(CLOCKS, np.median(found, 0).tolist())) for name, found in rounds.items()}
        return {**middle, "rounds": rounds}


def _slower(theirs: dict[str, Any], mine: dict[str, Any]) -> dict[str, dict[str, float]]:
    """How many times ours a peer's rounds took, with the prefix computed and with it there: medians over the rounds' pairs."""
    ready, once = np.array(theirs["queries"], float), np.array(theirs["prefix"], float)
    pairs = {"whole": (once + ready) / np.array(mine["whole"]), "ready": ready / np.array(mine["ready"])}
    return {name: dict(zip(CLOCKS, np.median(found, 0).tolist())) for name, found in pairs.items()}


def _rows(
    got: dict[str, Any], again: dict[str, Any], slower: dict[str, dict[str, float]], queries: int, rounds: int
) -> list[dict[str, Any]]:
    """The peer's two rows of the table, and ours beside it. What a peer cannot be asked for here stays empty."""
    out = []
    for what, who in product(("whole", "ready"), (got, again)):
        title = who["name"] + ", prefix ready" * (what == "ready")
        seconds, cpu = who[what]["seconds"], who[what]["cpu"]
        out.append(
            {
                "method": title, "dtype": who["dtype"], "queries": queries, "measured on": f"{queries} x {rounds}",
                "ms": 1e3 * seconds / queries, "CPU s": cpu / queries, "queries/s": queries / seconds,
                "tokens": None, "peak MB": None, "slower": slower[what]["seconds"] if who is got else 1.0,
                "slower CPU": slower[what]["cpu"] if who is got else 1.0, "share": None, "difference": None, "flips": None, "compared": 0,
                "rounds": who["rounds"],
            }
        )  # fmt: skip
    return out
