"""The axes of a plain picture: where a value lies on the page, and which ticks stand there.

Reads a figure's layout as plotly does: domains, ranges, categories, logarithms, axes that share their range.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LONGEST = 30  # characters of a tick label
LETTER = 6.4  # mean width of a letter in pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass
class Axis:
    """One axis: where it lies on the page (pixels, from low to high value) and what stands on it.

    partner  name of the axis that it is drawn along
    shown    whether line, ticks and title are drawn; `labelled` whether the ticks have words
    """

    start: float
    stop: float
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str
    names: dict[str, int] | None
    log: bool
    partner: str
    shown: bool = True
    labelled: bool = True
    grid: bool = True

    def pixel(self, place: float) -> float:
        """Pixel of a place in the axis' own units: a value, its logarithm, or a category's number."""
        return self.start + (place - self.low) / ((self.high - self.low) or 1.0) * (self.stop - self.start)

    def at(self, value: Any) -> float:
        """Pixel of a value; NaN where it has none."""
        place = number(value)
        if self.names is not None:
            place = float(self.names.get(str(value), place))
        elif self.log:
            place = math.log10(place) if place > 0 else math.nan
        return self.pixel(place)

    def marks(self) -> Iterator[tuple[float, str]]:
        """(pixel, words) of the ticks within the axis; of crowded ones every second, third, ... only."""
        ends = sorted((self.start, self.stop))
        inside = [(self.pixel(v), w) for v, w in self.ticks if ends[0] - 1 <= self.pixel(v) <= ends[1] + 1]
        across = self.partner[0] == "y"
        need = max((LETTER * max(map(len, lines(w))) + 8 if across and lines(w) else 13 for _, w in inside), default=1)
        gap = min((abs(b[0] - a[0]) for a, b in itertools.pairwise(inside)), default=need)
        yield from inside[:: max(1, math.ceil(need / max(gap, 1e-9) - 0.05))]

    def reach(self) -> float:
        """Pixels that the longest tick label takes."""
        words = [line for _, w in self.ticks for line in lines(w)] if self.shown and self.labelled else []
        return LETTER * max((min(len(w), LONGEST) for w in words), default=0)


def axes_of(plain: dict, layout: dict, box: Box) -> dict[str, Axis]:
    """Every axis of a figure by its name ("x", "y2", ...), laid into `box`."""
    names = {trace.get(f"{d}axis") or d for trace in plain["data"] for d in "xy"} | {"x", "y"}
    given = {name: layout.get(f"{name[0]}axis{name[1:]}") or {} for name in names}
    root = {name: given[name].get("matches") or name for name in names}  # axes that match show one range
    return {
        name: _axis(name, [other for other in sorted(names) if root[other] == root[name]], given, plain, box)
        for name in sorted(names)
    }


def _axis(name: str, group: list[str], every: dict[str, dict], plain: dict, box: Box) -> Axis:
    letter, own = name[0], every[name]
    given = next((every[other] for other in [name, *group] if every[other].get("range")), own)
    lo, hi = own.get("domain") or (0.0, 1.0)
    left, top, right, bottom = box
    if letter == "x":
        start, stop = left + lo * (right - left), left + hi * (right - left)
    else:
        start, stop = bottom - lo * (bottom - top), bottom - hi * (bottom - top)
    log = own.get("type") == "log"
    seen = [v for trace in plain["data"] for other in group for v in _extent(trace, letter, other)]
    turned = any(every[other].get("autorange") == "reversed" for other in group)
    partner = own.get("anchor") if own.get("anchor") in every else ("y" if letter == "x" else "x") + name[1:]
    partner = partner if partner in every else "y" if letter == "x" else "x"
    rest: dict[str, Any] = {
        "partner": partner,
        "shown": own.get("visible") is not False,
        "labelled": own.get("showticklabels") is not False,
        "grid": own.get("showgrid") is not False,
    }
    if own.get("type") == "category" or any(isinstance(v, str) and math.isnan(number(v)) for v in seen):
        first = own.get("categoryarray")
        order = {
            str(w): i for i, w in enumerate(dict.fromkeys([*map(str, [] if first is None else first), *map(str, seen)]))
        }
        low, high, ticks = -0.5, len(order) - 0.5, [(float(i), word) for word, i in order.items()]
        if given.get("range") and not isinstance(given["range"][0], str):
            low, high = map(float, given["range"])
        low, high = (high, low) if turned else (low, high)
        return Axis(start, stop, low, high, _worded(own, ticks), _text(own), order, False, **rest)
    numbers = np.array([n for n in map(number, seen) if math.isfinite(n) and (n > 0 or not log)])
    numbers = np.log10(numbers) if log and len(numbers) else numbers
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    pad = 0.04 * ((high - low) or 1.0)
    low, high = (low if own.get("rangemode") == "tozero" and low == 0 else low - pad), high + pad
    if given.get("range") and None not in given["range"]:
        low, high = (number(v) for v in given["range"])  # of a logarithmic axis in decades, as plotly has it
    low, high = (high, low) if turned else (low, high)
    write = _writer(own.get("tickformat"), log)
    steps = _steps(own.get("dtick"), *sorted((low, high))) or (_decades if log else _round_steps)(*sorted((low, high)))
    return Axis(
        start, stop, low, high, _worded(own, [(v, write(v)) for v in steps], log), _text(own), None, log, **rest
    )


def _worded(given: dict, otherwise: list[tuple[float, str]], log: bool = False) -> list[tuple[float, str]]:
    """The ticks that a figure names itself, else `otherwise`."""
    shown, words = given.get("tickvals"), given.get("ticktext")
    if shown is None:
        return otherwise
    known = {word: place for place, word in otherwise}
    places = [known.get(str(v), math.log10(number(v)) if log and number(v) > 0 else number(v)) for v in shown]
    return list(zip(places, map(str, shown if words is None else words)))


def _writer(form: Any, log: bool) -> Any:
    found = re.fullmatch(r"\.?(\d?)([%fg])", str(form or ""))
    if found and found[2] != "g" and not log:
        return lambda v: f"{v:.{found[1] or 0}{found[2]}}"
    return (lambda v: f"{10**v:g}") if log else (lambda v: f"{v:g}")


def _extent(trace: dict, letter: str, axis: str) -> Iterator[Any]:
    """Everything of a trace that must be visible along an axis."""
    if (trace.get(f"{letter}axis") or letter) != axis or trace.get("visible", True) is not True:
        return
    values = trace.get(letter)
    if trace.get("type") == "heatmap":
        n = np.shape(trace["z"])[1 if letter == "x" else 0]
        values = list(range(n)) if values is None else values
        if n and not isinstance(values[0], str):
            yield from (number(values[0]) - 0.5, number(values[-1]) + 0.5)
    if trace.get("type") == "bar" and (letter == "x") == (trace.get("orientation") == "h"):
        yield 0.0
        base = trace.get("base")
        if base is not None and values is not None:
            yield from (number(b) + number(v) for b, v in zip(np.broadcast_to(base, len(values)), values))
            return
    yield from ([] if values is None else values)
    error = trace.get(f"error_{letter}") or {}
    if error.get("array") is not None and values is not None:
        below = error["array"] if error.get("arrayminus") is None else error["arrayminus"]
        for value, more, less in zip(values, error["array"], below):
            yield number(value) + number(more)
            yield number(value) - number(less)


def _steps(step: Any, low: float, high: float) -> list[float]:
    step = number(step)
    if not step > 0 or not math.isfinite(high - low) or (high - low) / step > 200:
        return []
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _round_steps(low: float, high: float) -> list[float]:
    """About five round numbers between two ends."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return []
    step = 10.0 ** math.floor(math.log10(span / 5))
    return _steps(step * next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6), low, high)


def _decades(low: float, high: float) -> list[float]:
    """Logarithms of powers of ten, or of 1, 2 and 5 times these where there are few."""
    if not high > low or not math.isfinite(high - low):
        return []
    tens = range(math.floor(low), math.ceil(high) + 1)
    parts = (1, 2, 5) if high - low < 2.5 else (1,)
    return [v for ten in tens for part in parts if low - 1e-9 <= (v := ten + math.log10(part)) <= high + 1e-9]


def lines(text: Any) -> list[str]:
    """plotly's markup as lines of plain text."""
    return [html.unescape(re.sub(r"<[^>]*>", "", part)) for part in re.split(r"<br\s*/?>", str(text))]


def number(value: Any) -> float:
    """A value as a number; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _text(axis: dict) -> str:
    title = axis.get("title") or ""
    return " ".join(lines(title.get("text") or "" if isinstance(title, dict) else title))
