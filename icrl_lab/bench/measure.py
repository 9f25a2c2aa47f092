"""Clocks, peak memory, the rate of matrix products, and what machine this is."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icrl_lab.models import LLM

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Sample:
    """What one measured call took: wall and CPU seconds, peak bytes above the model (NaN where unknown), and what it gave back."""

    seconds: float
    cpu: float
    peak: float
    value: Any


class Meter:
    """Times calls on one device and reads their peak memory above what the process (the GPU) holds now, the model loaded."""

    def __init__(self, device: str) -> None:
        self.device = device
        _tidy()
        self.base = self._held()

    def __call__(self, call: Callable[[], Any]) -> Sample:
        _tidy()
        self._forget_peak()
        self._wait()
        wall, cpu = time.perf_counter(), time.process_time()
        value = call()
        self._wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return Sample(wall, cpu, self._peak() - self.base, value)

    def _wait(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _held(self) -> float:
        if self.device == "cuda":
            import torch

            return torch.cuda.memory_allocated()
        return _status("VmRSS")

    def _forget_peak(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif CLEAR.exists():
            CLEAR.write_text("5")  # VmHWM starts anew; see proc_pid_clear_refs(5)

    def _peak(self) -> float:
        if self.device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated()
        return _status("VmHWM")


def _status(key: str) -> float:
    """Bytes of one line of /proc/self/status; NaN where there is none."""
    try:
        found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())
    except OSError:
        return float("nan")
    return 1024.0 * int(found[1]) if found else float("nan")


def free(device: str) -> float:
    """Bytes that can be had on the device now; infinite where that cannot be told."""
    if device == "cuda":
        import torch

        return torch.cuda.mem_get_info()[0]
    from icrl_lab.engine import products

    return products.free()


def _tidy() -> None:
    """Give back what earlier calls left on the heap, so that it is not counted as the next one's."""
    gc.collect(1)  # what is young: all of it takes longer than many a measured call
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        pass


def product_rate(llm: LLM, meter: Meter) -> tuple[float, float]:
    """Operations a second of wall and of CPU time of 512 tokens (8192 on a GPU) times one up-projection, in the model's own way."""
    import torch

    from icrl_lab.engine import products

    config = llm.model.config.get_text_config()
    tokens, dtype = (8192 if meter.device == "cuda" else 512), llm.model.dtype
    x = torch.randn(tokens, config.hidden_size, dtype=dtype, device=llm.model.device)
    w = torch.randn(config.intermediate_size, config.hidden_size, dtype=dtype, device=llm.model.device)
    multiply, times = products.product(w, products.way(llm.model)), 20
    work = 2 * tokens * config.hidden_size * config.intermediate_size

    def repeated() -> None:
        for _ in range(times):
            multiply(x)

    with torch.inference_mode():
        repeated()
        sample = meter(repeated)
    return work * times / sample.seconds, work * times / sample.cpu


def machine(device: str) -> dict[str, Any]:
    """What this was measured on and with."""
    import torch

    out = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "python": platform.python_version(),
    }
    if device == "cuda":
        out["cuda"] = torch.version.cuda
    for package in ("torch", "transformers", "numpy", "icrl-lab"):
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            out[package] = "?"
    return out


def _processor() -> str:
    """The CPU's name, and the matrix units that decide what bfloat16 costs."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = re.search(r"model name\s*:\s*(.+)", text)
    units = [u for u in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if f" {u}" in text]
    return f"{name[1] if name else platform.machine()} ({', '.join(units[:2]) or 'no known vector unit'})"
