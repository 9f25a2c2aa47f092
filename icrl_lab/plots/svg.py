"""A figure as a plain SVG string, for places where nothing runs: an exported notebook, a mail, a page without scripts.

Draws what the lab's figures are made of (points, lines, error bars, bars, heat maps, bands, notes) on the figure's own axes and
colours. It is a picture of the same data, not plotly: no hover, no legend symbols beyond colour and name. Everything that comes
from data is escaped.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

INK = "#666"
SIZE = 700
LONGEST = 30  # characters of a tick label


@dataclass
class Axis:
    """One axis: where it lies on the page (pixels, from low to high value) and what stands on it."""

    start: float
    stop: float
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    title: str
    names: dict[str, int] | None
    log: bool

    def at(self, value: Any) -> float:
        """Pixel of a value; NaN where it has none."""
        if self.names is not None:
            place = float(self.names.get(str(value), math.nan))
        else:
            place = _number(value)
            if self.log:
                place = math.log10(place) if place > 0 else math.nan
        return self.start + (place - self.low) / ((self.high - self.low) or 1.0) * (self.stop - self.start)


def svg(figure: go.Figure, width: int = SIZE) -> str:
    """The figure as one <svg> element of the given width; safe to put into any page."""
    plain = _unpacked(figure.to_plotly_json())
    layout = plain["layout"]
    title = _lines((layout.get("title") or {}).get("text", ""))
    top = 16 + 16 * len(title)
    height = max(220.0, float(layout.get("height") or 420) - float((layout.get("margin") or {}).get("t", 40)) + top)
    words = [word for axis in _axes(plain, layout, (0, 0, 1, 1)).items() if axis[0] == "y" for _, word in axis[1].ticks]
    left = 34.0 + 6.6 * max((min(len(_strip(word)), LONGEST) for word in words), default=4)
    box = (left, top, width - 16.0, height - 48.0)
    axes = _axes(plain, layout, box)
    body = [_title(title), *_bows(layout.get("shapes") or (), axes)]
    for trace in plain["data"]:
        if trace.get("visible", True) is not True:
            continue
        x, y = axes[trace.get("xaxis") or "x"], axes[trace.get("yaxis") or "y"]
        body.extend(_DRAW.get(trace.get("type") or "scatter", _unknown)(trace, x, y))
    body.extend(_frame(axes))
    body.extend(_notes(layout.get("annotations") or (), axes, box))
    label = html.escape(" ".join(title), quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{label}" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" font-family="sans-serif" font-size="12" fill="{INK}">{"".join(body)}</svg>'
    )


def _unpacked(value: Any) -> Any:
    """Arrays as arrays again, where plotly has packed them."""
    if isinstance(value, dict) and "bdata" in value:
        raw = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
        return raw.reshape([int(n) for n in str(value["shape"]).split(",")]) if value.get("shape") else raw
    if isinstance(value, dict):
        return {key: _unpacked(part) for key, part in value.items()}
    return [_unpacked(part) for part in value] if isinstance(value, (list, tuple)) else value


# --------------------------------------------------------------------------------------------- axes


def _axes(plain: dict, layout: dict, box: tuple[float, float, float, float]) -> dict[str, Axis]:
    names = {trace.get(f"{d}axis") or d for trace in plain["data"] for d in "xy"} | {"x", "y"}
    return {name: _axis(name, plain, layout, box) for name in sorted(names)}


def _axis(name: str, plain: dict, layout: dict, box: tuple[float, float, float, float]) -> Axis:
    letter, given = name[0], layout.get(f"{name[0]}axis{name[1:]}") or {}
    lo, hi = given.get("domain") or (0.0, 1.0)
    left, top, right, bottom = box
    if letter == "x":
        start, stop = left + lo * (right - left), left + hi * (right - left)
    else:
        start, stop = bottom - lo * (bottom - top), bottom - hi * (bottom - top)
    log = given.get("type") == "log"
    seen = [v for trace in plain["data"] for v in _extent(trace, letter, name)]
    words = [v for v in seen if isinstance(v, str) and math.isnan(_number(v))]
    if words:
        order = {word: i for i, word in enumerate(dict.fromkeys(map(str, seen)))}
        low, high, ticks = -0.5, len(order) - 0.5, [(float(i), word) for word, i in order.items()]
        if given.get("range") and not isinstance(given["range"][0], str):
            low, high = map(float, given["range"])
        if given.get("autorange") == "reversed":
            low, high = high, low
        return Axis(start, stop, low, high, ticks, _text(given), order, False)
    numbers = np.array([n for n in map(_number, seen) if math.isfinite(n) and (n > 0 or not log)])
    numbers = np.log10(numbers) if log and len(numbers) else numbers
    low, high = (float(numbers.min()), float(numbers.max())) if len(numbers) else (0.0, 1.0)
    pad = 0.04 * ((high - low) or 1.0)
    low, high = low - pad, high + pad
    if given.get("range") and None not in given["range"]:
        low, high = (_number(v) for v in given["range"])
    if given.get("autorange") == "reversed":
        low, high = high, low
    shown = given.get("tickvals")
    if shown is not None:
        texts = given.get("ticktext")
        ticks = [(_number(v), str(t)) for v, t in zip(shown, texts if texts is not None else shown)]
    else:
        ticks = [(v, f"{10**v:g}" if log else f"{v:g}") for v in _round_steps(*sorted((low, high)))]
    return Axis(start, stop, low, high, ticks, _text(given), None, log)


def _extent(trace: dict, letter: str, axis: str) -> Iterator[Any]:
    """Everything of a trace that must be visible along an axis."""
    if (trace.get(f"{letter}axis") or letter) != axis:
        return
    values = trace.get(letter)
    if trace.get("type") == "heatmap":
        n = np.shape(trace["z"])[1 if letter == "x" else 0]
        values = list(range(n)) if values is None else values
        if n and not isinstance(values[0], str):
            yield from (_number(values[0]) - 0.5, _number(values[-1]) + 0.5)
    yield from ([] if values is None else values)
    if trace.get("type") == "bar" and (letter == "x") == (trace.get("orientation") == "h"):
        yield 0.0
    error = trace.get(f"error_{letter}") or {}
    if error.get("array") is not None and values is not None:
        below = error["array"] if error.get("arrayminus") is None else error["arrayminus"]
        for value, more, less in zip(values, error["array"], below):
            yield _number(value) + _number(more)
            yield _number(value) - _number(less)


def _round_steps(low: float, high: float) -> list[float]:
    """About five round numbers between two ends."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return []
    step = 10.0 ** math.floor(math.log10(span / 5))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


# --------------------------------------------------------------------------------------------- traces


def _scatter(trace: dict, x: Axis, y: Axis) -> Iterator[str]:
    xs, ys = trace.get("x"), trace.get("y")
    if xs is None or ys is None:
        return
    points = [(x.at(a), y.at(b)) for a, b in zip(xs, ys)]
    mode = trace.get("mode") or "lines+markers"
    marker, line = trace.get("marker") or {}, trace.get("line") or {}
    colours = _colours(marker, len(points), line.get("color"))
    stroke = _safe(line.get("color") or colours[0] if colours else INK)
    finite = [p for p in points if all(map(math.isfinite, p))]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in finite)
    if trace.get("fill") in ("toself", "tonexty", "tozeroy") and trace.get("fill") == "toself" and finite:
        yield f'<polygon points="{path}" fill="{_safe(trace.get("fillcolor") or stroke)}" fill-opacity="0.25" stroke="none"/>'
    if "lines" in mode and finite and line.get("width") != 0:
        yield f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="1.6"/>'
    yield from _errors(trace, points, colours, x, y)
    if "markers" in mode:
        sizes, symbols = marker.get("size", 7), marker.get("symbol", "circle")
        for i, ((a, b), colour) in enumerate(zip(points, colours)):
            if math.isfinite(a) and math.isfinite(b):
                size = sizes[i] if isinstance(sizes, (list, tuple, np.ndarray)) else sizes
                symbol = symbols[i] if isinstance(symbols, (list, tuple, np.ndarray)) else symbols
                yield _point(str(symbol), a, b, float(size) / 2, colour)
    if "text" in mode and trace.get("text") is not None:
        texts = trace["text"]
        texts = [texts] * len(points) if isinstance(texts, str) else texts
        for (a, b), word in zip(points, texts):
            if math.isfinite(a) and math.isfinite(b):
                yield f'<text x="{a:.1f}" y="{b:.1f}" text-anchor="middle">{html.escape(_strip(word))}</text>'


_OUTLINES = {  # corners of a symbol of radius 1; what is not here is drawn as a circle
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "triangle-up": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    "triangle-down": ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
}
_STROKES = {"x": ((-1, -1, 1, 1), (-1, 1, 1, -1)), "cross": ((0, -1.2, 0, 1.2), (-1.2, 0, 1.2, 0))}


def _point(symbol: str, a: float, b: float, radius: float, colour: str) -> str:
    name = symbol.removesuffix("-open")
    look = f'fill="none" stroke="{colour}"' if symbol.endswith("-open") else f'fill="{colour}"'
    if name in _OUTLINES:
        corners = " ".join(f"{a + radius * u:.1f},{b + radius * v:.1f}" for u, v in _OUTLINES[name])
        return f'<polygon points="{corners}" {look}/>'
    if name in _STROKES:
        parts = (
            f"M{a + radius * p:.1f} {b + radius * q:.1f}L{a + radius * r:.1f} {b + radius * s:.1f}"
            for p, q, r, s in _STROKES[name]
        )
        return f'<path d="{"".join(parts)}" stroke="{colour}" stroke-width="2" fill="none"/>'
    return f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius:.1f}" {look}/>'


def _errors(trace: dict, points: list, colours: list[str], x: Axis, y: Axis) -> Iterator[str]:
    for letter, axis in (("x", x), ("y", y)):
        error = trace.get(f"error_{letter}") or {}
        if error.get("array") is None:
            continue
        less = error["array"] if error.get("arrayminus") is None else error["arrayminus"]
        for value, (a, b), up, down, colour in zip(trace[letter], points, error["array"], less, colours):
            ends = axis.at(_number(value) - _number(down)), axis.at(_number(value) + _number(up))
            if not all(map(math.isfinite, (*ends, a, b))):
                continue
            at = (ends[0], b, ends[1], b) if letter == "x" else (a, ends[0], a, ends[1])
            yield '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" '.format(*at) + f'stroke="{colour}"/>'


def _bar(trace: dict, x: Axis, y: Axis) -> Iterator[str]:
    flat = trace.get("orientation") == "h"
    along, across = (x, y) if flat else (y, x)
    places, values = (trace["y"], trace["x"]) if flat else (trace["x"], trace["y"])
    if places is None or values is None or not len(values):
        return
    colours = _colours(trace.get("marker") or {}, len(values), None)
    unit = abs(across.stop - across.start) / max(abs(across.high - across.low), 1e-9)
    thick = 0.7 * unit * float(trace.get("width") or 1.0) if np.isscalar(trace.get("width") or 1.0) else 0.6 * unit
    base = along.at(0.0)
    points = []
    for place, value, colour in zip(places, values, colours):
        a, b = across.at(place), along.at(value)
        points.append((b, a) if flat else (a, b))
        if math.isfinite(a) and math.isfinite(b):
            lo, size = min(base, b), abs(b - base)
            where = (lo, a - thick / 2, size, thick) if flat else (a - thick / 2, lo, thick, size)
            yield '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '.format(*where) + f'fill="{colour}"/>'
    yield from _errors(trace, points, [INK] * len(points), x, y)


def _heatmap(trace: dict, x: Axis, y: Axis) -> Iterator[str]:
    z = np.array([[_number(v) for v in row] for row in trace["z"]])
    if not z.size or not np.isfinite(z).any():
        return
    low, high = (_number(trace.get(k)) for k in ("zmin", "zmax"))
    low = low if math.isfinite(low) else float(np.nanmin(z))
    high = high if math.isfinite(high) else float(np.nanmax(z))
    middle = _number(trace.get("zmid"))
    if math.isfinite(middle):
        reach = max(high - middle, middle - low)
        low, high = middle - reach, middle + reach
    xs = list(range(z.shape[1])) if trace.get("x") is None else list(trace["x"])
    ys = list(range(z.shape[0])) if trace.get("y") is None else list(trace["y"])
    wide = abs(x.stop - x.start) / max(abs(x.high - x.low), 1e-9)
    tall = abs(y.stop - y.start) / max(abs(y.high - y.low), 1e-9)
    for row, b in zip(z, ys):
        for value, a in zip(row, xs):
            px, py = x.at(a), y.at(b)
            if all(map(math.isfinite, (value, px, py))):
                colour = _scale(trace.get("colorscale"), (value - low) / ((high - low) or 1.0))
                yield (
                    f'<rect x="{px - wide / 2:.1f}" y="{py - tall / 2:.1f}" width="{wide:.2f}" height="{tall:.2f}" '
                    f'fill="{colour}"/>'
                )


def _unknown(trace: dict, x: Axis, y: Axis) -> Iterator[str]:
    raise ValueError(f"a plain picture of a {trace.get('type')!r} trace is not known")


_DRAW = {"scatter": _scatter, "scattergl": _scatter, "bar": _bar, "heatmap": _heatmap}


def _colours(marker: dict, n: int, fallback: Any) -> list[str]:
    colour = marker.get("color", fallback)
    if isinstance(colour, (list, tuple, np.ndarray)):
        if len(colour) and isinstance(colour[0], str):
            return [_safe(c) for c in colour]
        values = np.array([_number(c) for c in colour])
        low, high = _number(marker.get("cmin")), _number(marker.get("cmax"))
        low = low if math.isfinite(low) else float(np.nanmin(values))
        high = high if math.isfinite(high) else float(np.nanmax(values))
        return [_scale(marker.get("colorscale"), (v - low) / ((high - low) or 1.0)) for v in values]
    return [_safe(colour or INK)] * n


def _scale(scale: Any, share: float) -> str:
    """A colour of a colour scale; cividis where none is given as stops."""
    from plotly.colors import sample_colorscale

    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    given = "Cividis" if scale is None else scale if isinstance(scale, str) else [list(stop) for stop in scale]
    return _safe(sample_colorscale(given, [share])[0])


# --------------------------------------------------------------------------------------------- words


def _frame(axes: dict[str, Axis]) -> Iterator[str]:
    """Axis lines, ticks and titles; an axis is drawn along its first partner of the other kind."""
    xs = {n: a for n, a in axes.items() if n[0] == "x"}
    ys = {n: a for n, a in axes.items() if n[0] == "y"}
    for name, x in xs.items():
        foot = ys.get("y" + name[1:], next(iter(ys.values()))).start
        yield f'<line x1="{x.start:.1f}" y1="{foot:.1f}" x2="{x.stop:.1f}" y2="{foot:.1f}" stroke="{INK}"/>'
        for value, word in x.ticks:
            at = x.start + (value - x.low) / ((x.high - x.low) or 1.0) * (x.stop - x.start)
            if min(x.start, x.stop) - 1 <= at <= max(x.start, x.stop) + 1:
                yield f'<text x="{at:.1f}" y="{foot + 15:.1f}" text-anchor="middle">{html.escape(_strip(word)[:18])}</text>'
        yield f'<text x="{(x.start + x.stop) / 2:.1f}" y="{foot + 33:.1f}" text-anchor="middle">{html.escape(x.title)}</text>'
    for name, y in ys.items():
        left = xs.get("x" + name[1:], next(iter(xs.values()))).start
        yield f'<line x1="{left:.1f}" y1="{y.start:.1f}" x2="{left:.1f}" y2="{y.stop:.1f}" stroke="{INK}"/>'
        for value, word in y.ticks:
            at = y.start + (value - y.low) / ((y.high - y.low) or 1.0) * (y.stop - y.start)
            if min(y.start, y.stop) - 1 <= at <= max(y.start, y.stop) + 1:
                yield f'<text x="{left - 5:.1f}" y="{at + 4:.1f}" text-anchor="end">{html.escape(_strip(word)[:LONGEST])}</text>'
        middle = (y.start + y.stop) / 2
        yield (
            f'<text transform="translate(13 {middle:.1f}) rotate(-90)" text-anchor="middle">{html.escape(y.title)}</text>'
        )


def _notes(notes: Any, axes: dict[str, Axis], box: tuple[float, float, float, float]) -> Iterator[str]:
    left, top, right, bottom = box
    for note in notes:
        x, y = note.get("xref") or "x", note.get("yref") or "y"  # plotly's own default where a figure has axes
        if note.get("text") is None or note.get("x") is None or note.get("y") is None:
            continue
        px = (
            left + float(note["x"]) * (right - left)
            if x == "paper"
            else axes[x].at(note["x"])
            if x in axes
            else math.nan
        )
        py = (
            bottom - float(note["y"]) * (bottom - top)
            if y == "paper"
            else axes[y].at(note["y"])
            if y in axes
            else math.nan
        )
        if math.isfinite(px) and math.isfinite(py):
            anchor = {"left": "start", "right": "end"}.get(note.get("xanchor", ""), "middle")
            yield f'<text x="{px:.1f}" y="{py:.1f}" text-anchor="{anchor}">{html.escape(_strip(note["text"]))}</text>'


def _bows(shapes: Any, axes: dict[str, Axis]) -> Iterator[str]:
    """Shapes that are paths on axes: moves, lines and quadratic curves."""
    for shape in shapes:
        x, y = axes.get(shape.get("xref") or "x"), axes.get(shape.get("yref") or "y")
        words = re.findall(r"[MLQ]|-?[0-9.]+(?:e-?[0-9]+)?", str(shape.get("path", "")))
        if shape.get("type") != "path" or x is None or y is None or len(words) < 3:
            continue
        out, turn = [], 0
        for word in words:
            if word in "MLQ":
                out.append(word)
                turn = 0
            else:
                out.append(f"{(y if turn % 2 else x).at(word):.1f}")
                turn += 1
        line = shape.get("line") or {}
        look = f'stroke="{_safe(line.get("color"))}" stroke-width="{_number(line.get("width", 2)):.1f}"'
        yield f'<path d="{" ".join(out)}" {look} stroke-opacity="{_number(shape.get("opacity", 1)):.2f}" fill="none"/>'


def _title(lines: Sequence[str]) -> str:
    out = []
    for i, line in enumerate(lines):
        weight = ' font-weight="bold" font-size="15"' if i == 0 else ""
        out.append(f'<text x="8" y="{20 + 16 * i}"{weight}>{html.escape(line)}</text>')
    return "".join(out)


def _text(axis: dict) -> str:
    title = axis.get("title") or ""
    return _strip(title.get("text") or "" if isinstance(title, dict) else title)


def _lines(text: str) -> list[str]:
    return [_strip(part) for part in re.split(r"<br\s*/?>", text) if _strip(part)]


def _strip(text: Any) -> str:
    """plotly's markup as plain text."""
    return html.unescape(re.sub(r"<[^>]*>", "", str(text)))


def _safe(colour: Any) -> str:
    """A colour, or grey for what is none: nothing else may stand in an attribute."""
    found = re.fullmatch(r"#[0-9A-Fa-f]{3,8}|(rgb|rgba)\([0-9., %]+\)|[a-zA-Z]+", str(colour))
    return found[0] if found else INK


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
