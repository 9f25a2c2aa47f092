"""Ways to look inside, of which each is one call that gives some answers, and how they are timed and compared.

Ways that are compared are called in turn, forwards in one round and backwards in the next, and their ratio is the median over
the rounds of the two calls of one round: what slows the machine down slows both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from icrl_lab.bench.limits import limit
from icrl_lab.bench.measure import Meter, Sample

CLOCKS = {"cpu": {"wall": "seconds", "CPU time": "cpu"}, "cuda": {"wall": "seconds"}}


@dataclass
class Way:
    """One way to see something, and what its calls took.

    asked    in words, what one call is asked; `answers`, how many answers that is
    against  the name of the way that its time is divided by; "" where there is none
    value    what the last call gave back
    apart    largest difference of its numbers to those of the way it is checked against; None where it is not checked
    """

    name: str
    dtype: str
    asked: str
    answers: int
    call: Callable[[], Any]
    against: str = ""
    samples: list[Sample] = field(default_factory=list)
    value: Any = None
    apart: float | None = None

    def measure(self, meter: Meter) -> None:
        """Call it once."""
        sample = meter(self.call)
        self.value, sample.value = sample.value, None
        self.samples.append(sample)

    def each(self, clock: str) -> float:
        """Seconds ("seconds" or "cpu") an answer, the median over the calls."""
        return float(np.median([getattr(s, clock) for s in self.samples])) / self.answers


def in_turn(ways: Sequence[Way], rounds: int, meter: Meter, say: Callable[[str], None] = lambda what: None) -> None:
    """Call each way once a round, every other round from the last to the first."""
    for number in range(rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            say(f"round {number + 1} of {rounds}: {way.name}")
            way.measure(meter)


def times(way: Way, other: Way, clock: str) -> float:
    """How many times the time of `other` an answer of `way` takes: the median over rounds, where they were called in turn."""
    if len(way.samples) != len(other.samples):
        return way.each(clock) / other.each(clock)
    pairs = [getattr(a, clock) / getattr(b, clock) for a, b in zip(way.samples, other.samples)]
    return float(np.median(pairs)) * other.answers / way.answers


def record(way: Way, ways: Sequence[Way], device: str) -> dict[str, Any]:
    """One row of the table. A way is divided by the way of that name in its own dtype."""
    other = find(ways, way.against, way.dtype)
    return {
        "method": way.name,
        "dtype": way.dtype,
        "asked": way.asked,
        "measured on": f"{way.answers} x {len(way.samples)}",
        "ms": 1e3 * way.each("seconds"),
        "CPU s": way.each("cpu"),
        "peak MB": max(s.peak for s in way.samples) / 1e6,
        "against": way.against,
        "times": None if other is None else times(way, other, "seconds"),
        "times CPU": None if other is None or device != "cpu" else times(way, other, "cpu"),
        "difference": way.apart,
        "rounds": {"seconds": [s.seconds for s in way.samples], "CPU seconds": [s.cpu for s in way.samples]},
    }


def held(what: str, way: Way, other: Way, device: str, bound: float, at_least: bool = True) -> list[dict[str, Any]]:
    """A limit on `times(way, other)` by each clock of the device; `{clock}` in `what` is its name."""
    return [
        limit(what.format(clock=clock), times(way, other, key), bound, at_least)
        for clock, key in CLOCKS[device].items()
    ]


def find(ways: Sequence[Way], name: str, dtype: str) -> Way | None:
    """The way of that name and dtype."""
    return next((way for way in ways if (way.name, way.dtype) == (name, dtype)), None)
