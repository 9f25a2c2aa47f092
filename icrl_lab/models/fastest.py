"""What makes a model fastest on this CPU, by a short measurement: threads, the way of matrix products, the way of attention.

Nothing is guessed from the name of a processor. Knows the shapes of a model, and nothing of prompts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

WORTH = 1.1  # another way to compute products or attention is taken when it is measured to be this many times faster than torch's
LOOKS, PAUSE = 3, 0.5  # times that one thread has to be ahead of several, and seconds between them


def measure(model: Any, threads: int | None = None) -> tuple[int, dict[str, Any]]:
    """Threads that make a product of this model's size fastest, and the faster ways to compute products and attention.

    Products, in float32 and in bfloat16, are those of 256 tokens with one layer's projection up and with the one down; attention
    is that of as many tokens in every head to 2048 keys. Ways are compared on one thread, as most passes have one each.

    Returns the threads and {"tokens/s": by dtype, "products": way by dtype, "attention": way, "seconds by threads": ...}.
    """
    import torch

    from icrl_lab.engine import kernels, products

    config = model.config.get_text_config()
    hidden, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    parameters = sum(p.numel() for p in model.parameters())
    before = torch.get_num_threads()

    def multiply(ways: Sequence[str], dtype: Any) -> dict[str, Callable[[], Any]]:
        x, up, down = (torch.randn(*shape, dtype=dtype) for shape in ((256, hidden), (inner, hidden), (hidden, inner)))

        def both(way: str) -> Callable[[], Any]:
            rise, fall = products.product(up, way), products.product(down, way)
            return lambda: fall(rise(x))

        return {way: both(way) for way in ways}

    def attend() -> dict[str, Callable[[], Any]]:
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        width = head_width(config)
        k, v = torch.randn(2, 1, groups, 2048, width)
        q = torch.randn(1, groups, 256 * (heads // groups), width)
        return {way: partial(kernels.to_all(k, v, way), q, width**-0.5) for way in kernels.WAYS}

    def with_threads(n: int, call: Callable[[], Any]) -> None:
        torch.set_num_threads(n)
        call()

    try:
        counts = (
            sorted({1, max(1, (os.cpu_count() or 1) // 2), len(os.sched_getaffinity(0))})
            if threads is None
            else [threads]
        )
        plain = multiply(("torch",), torch.float32)["torch"]
        by_threads = _by_threads({n: partial(with_threads, n, plain) for n in counts})
        best = min(by_threads, key=by_threads.__getitem__)
        rate, chosen = {}, {}
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            calls = multiply(products.possible(dtype), dtype)
            torch.set_num_threads(1)
            chosen[name] = way = _worth(_seconds(calls)) if len(calls) > 1 else next(iter(calls))
            torch.set_num_threads(best)
            rate[name] = round(2 * 256 * hidden * inner / _seconds({way: calls[way]})[way] / parameters, 1)
        torch.set_num_threads(1)
        # keys and values are laid out as weights are; whether that is worth it is another question with another answer
        attention = _worth(_seconds(attend())) if "oneDNN" in products.possible(torch.float32) else "flash"
    finally:
        torch.set_num_threads(before)
    return best, {"tokens/s": rate, "products": chosen, "attention": attention, "seconds by threads": by_threads}


def _seconds(calls: Mapping[Any, Callable[[], Any]], rounds: int = 6, times: int = 1) -> dict[Any, float]:
    """What each call takes. They are timed in turn, each after a call that wakes it, and the least of the rounds is taken: a
    neighbour's burst slows one round, not one candidate."""
    took: dict[Any, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            call()
            start = time.perf_counter()
            for _ in range(times):
                call()
            took[key].append((time.perf_counter() - start) / times)
    return {key: min(found) for key, found in took.items()}


def _by_threads(calls: Mapping[int, Callable[[], Any]]) -> dict[int, float]:
    """What each number of threads takes. That one thread beats several is nearly always a neighbour that keeps a core busy for longer than
    all rounds last, and a study would stay on that thread for hours: it is believed when it was seen `LOOKS` times."""
    took = _seconds(calls)
    for _ in range(LOOKS - 1):
        if len(took) == 1 or min(took, key=took.__getitem__) > 1:
            break
        time.sleep(PAUSE)
        again = _seconds(calls)
        took = {n: min(took[n], again[n]) for n in took}
    return took


def _worth(took: Mapping[str, float]) -> str:
    """The fastest way, or the first, torch's own, where that gains too little."""
    first, fastest = next(iter(took)), min(took, key=took.__getitem__)
    return fastest if took[first] >= WORTH * took[fastest] else first


def use(model: Any, measured: dict[str, Any]) -> None:
    """Compute products in the way that was measured to be the fastest in the model's dtype; say so in `measured` where memory is short."""
    from icrl_lab.engine import products

    dtype = str(model.dtype).removeprefix("torch.")
    if measured["products"].get(dtype) == "oneDNN" and not products.lay_out(model):
        measured["products"][dtype] = "torch"


def head_width(config: Any) -> int:
    """Length of a head's vectors, by the configuration of a model's text part."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
