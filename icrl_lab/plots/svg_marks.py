"""The marks of a plain picture: points, lines, bands, intervals, bars and heat maps as elements of SVG.

Text from data is escaped, and a colour that is none is grey: nothing of a figure is markup.
"""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from icrl_lab.plots.svg_axes import LETTER, Axis, lines, number

INK = "#666"
DASHES = {"dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "12 5"}


def words(x: float, y: float, text: Any, anchor: str = "middle", more: str = "") -> str:
    """Text at its first line's baseline; a line of plotly's markup is a line here."""
    rows = lines(text)
    if len(rows) == 1:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{html.escape(rows[0])}</text>'
    spans = "".join(
        f'<tspan x="{x:.1f}" dy="{14 if i else 0}">{html.escape(row)}</tspan>' for i, row in enumerate(rows)
    )
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{spans}</text>'


def brief(value: float) -> str:
    """A pixel to a tenth, as short as it can be written."""
    short = f"{value:.1f}".removesuffix(".0")
    return "0" if short == "-0" else short


def safe(colour: Any) -> str:
    """A colour, or grey for what is none: nothing else may stand in an attribute."""
    found = re.fullmatch(r"#[0-9A-Fa-f]{3,8}|(rgb|rgba)\([0-9., %]+\)|[a-zA-Z]+", str(colour))
    return found[0] if found else INK


def stroke(line: dict, colour: Any = None) -> str:
    """Attributes of a line of plotly's."""
    dash = DASHES.get(str(line.get("dash")))
    width = number(line.get("width", 1.6))
    look = f'stroke="{safe(line.get("color") or colour)}" stroke-width="{width if math.isfinite(width) else 1.6:g}"'
    return look + (f' stroke-dasharray="{dash}"' if dash else "")


def _opaque(fill: Any) -> str:
    """A fill; one without an opacity of its own is thinned."""
    return f'fill="{safe(fill)}"' + ("" if str(fill).startswith("rgba") else ' fill-opacity="0.25"')


# --------------------------------------------------------------------------------------------- points and lines


def scatter(trace: dict, x: Axis, y: Axis) -> Iterator[str]:
    xs, ys = trace.get("x"), trace.get("y")
    if xs is None or ys is None:
        return
    points = [(x.at(a), y.at(b)) for a, b in zip(xs, ys)]
    mode = trace.get("mode") or "lines+markers"
    marker, line = trace.get("marker") or {}, trace.get("line") or {}
    colours = colours_of(marker, len(points), line.get("color"))
    first = colours[0] if colours else INK
    runs = _runs(points, bool(trace.get("connectgaps")))
    if trace.get("fill") in ("toself", "tozeroy"):
        for run in runs:
            ends = [(run[-1][0], y.at(0)), (run[0][0], y.at(0))] if trace["fill"] == "tozeroy" else []
            look = _opaque(trace.get("fillcolor") or line.get("color") or first)
            d = "L".join(f"{a:.0f} {b:.0f}" for a, b in [*run, *ends])  # an area's edge need not be finer than a pixel
            yield f'<path d="M{d}z" {look}/>'
    if "lines" in mode and line.get("width") != 0:
        for run in runs:
            yield f'<polyline points="{_path(run)}" fill="none" {stroke(line, first)}/>'
    yield from _errors(trace, points, colours, x, y)
    if "markers" in mode and marker.get("opacity") != 0:
        sizes, symbols = marker.get("size", 7), marker.get("symbol", "circle")
        alike: dict[tuple[str, str], list[str]] = {}  # marks that look alike are one path
        for i, ((a, b), colour) in enumerate(zip(points, colours)):
            if math.isfinite(a) and math.isfinite(b):
                piece, *kind = _point(
                    str(_of(symbols, i)), a, b, number(_of(sizes, i)) / 2, colour, marker.get("line") or {}
                )
                alike.setdefault((kind[0], kind[1]), []).append(piece)
        shapes: dict[str, list[str]] = {}  # and paths that differ in colour alone share the rest
        for (ink, rest), pieces in alike.items():
            shapes.setdefault(rest, []).append(f'<path d="{"".join(pieces)}" {ink}/>')
        yield from (f"<g {rest}>{''.join(paths)}</g>" for rest, paths in shapes.items())
    if "text" in mode and trace.get("text") is not None:
        size = number((trace.get("textfont") or {}).get("size", 12))
        for i, (a, b) in enumerate(points):
            if math.isfinite(a) and math.isfinite(b):
                place = str(_of(trace.get("textposition") or "middle center", i))
                side = {"left": ("end", -7), "right": ("start", 7)}.get(place.split()[-1], ("middle", 0))
                down = {"top": -8, "bottom": 16}.get(place.split()[0], 4)
                yield words(a + side[1], b + down, _of(trace["text"], i), side[0], f' font-size="{size:g}"')


def _of(value: Any, i: int) -> Any:
    return value[i] if isinstance(value, (list, tuple, np.ndarray)) else value


def _runs(points: list[tuple[float, float]], joined: bool) -> list[list[tuple[float, float]]]:
    """Stretches of points without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if all(map(math.isfinite, point)):
            runs[-1].append(point)
        elif runs[-1] and not joined:
            runs.append([])
    return [run for run in runs if len(run) > 1]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{brief(a)},{brief(b)}" for a, b in points)


_OUTLINES = {  # corners of a symbol of radius 1
    "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "triangle-up": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    "triangle-down": ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
    "star": tuple(
        ((r := (1.4, 0.55)[i % 2]) * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i in range(10)
    ),
    "star-diamond": ((0, -1.5), (0.45, -0.45), (1.5, 0), (0.45, 0.45), (0, 1.5), (-0.45, 0.45), (-1.5, 0), (-0.45, -0.45)),
    "x-open": tuple((0.57 * u, 0.57 * v) for u, v in ((0, -1), (1, -2), (2, -1), (1, 0), (2, 1), (1, 2), (0, 1), (-1, 2), (-2, 1), (-1, 0), (-2, -1), (-1, -2))),
    "cross-open": tuple((0.4 * u, 0.4 * v) for u, v in ((1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1), (-1, -3))),
}  # fmt: skip
_STROKES = {
    "x": ((-1, -1, 1, 1), (-1, 1, 1, -1)),
    "cross": ((0, -1.2, 0, 1.2), (-1.2, 0, 1.2, 0)),
    "x-thin": ((-1, -1, 1, 1), (-1, 1, 1, -1)),
    "line-ew": ((-1.4, 0, 1.4, 0),),
}
THIN = ("x-thin", "line-ew")  # nothing but a line, so they have the colour and the width of the marker's line


def _point(symbol: str, a: float, b: float, radius: float, colour: str, line: dict) -> tuple[str, str, str]:
    """A mark as a piece of a path, the path's colour, and what else it needs to be drawn; a circle where the symbol is not known."""
    name, at, open_ = symbol.removesuffix("-open"), f"M{_pair(a, b)}", symbol.endswith("-open")
    if symbol in _STROKES:
        width = number(line.get("width")) if symbol in THIN else 2.0
        ink = safe(line["color"]) if symbol in THIN and isinstance(line.get("color"), str) else colour
        look = f'stroke-width="{width if math.isfinite(width) else 1:g}" fill="none"'
        return at + _strokes(_STROKES[symbol], radius), f'stroke="{ink}"', look
    outline = _OUTLINES.get(symbol) or _OUTLINES.get(name)
    if not open_ and outline is None:  # a line of no length with round ends is a disc, with square ones a square
        ends, wide = ("square", 1.8) if name == "square" else ("round", 2.0)
        return f"{at}h0", f'stroke="{colour}"', f'stroke-width="{brief(wide * radius)}" stroke-linecap="{ends}"'
    if outline is not None:
        corners = [(radius * u, radius * v) for u, v in outline]
        first, *rest = (_pair(u - p, v - q) for (p, q), (u, v) in itertools.pairwise([(0.0, 0.0), *corners]))
        d = f"{at}m{first}l{'l'.join(rest)}z"
    elif name == "square":
        side = brief(1.8 * radius)
        d = f"{at}m{_pair(-0.9 * radius, -0.9 * radius)}h{side}v{side}h-{side}z"
    else:
        r, across = brief(radius), brief(2 * radius)
        d = f"{at}m-{r} 0a{r} {r} 0 1 0 {across} 0a{r} {r} 0 1 0-{across} 0z"
        if name == "circle-x":  # the pen is back at the left end
            d += f"m{r} 0" + _strokes(_STROKES["x"], 0.7 * radius)
    return (d, f'stroke="{colour}"', 'fill="none"') if open_ else (d, f'fill="{colour}"', 'stroke="none"')


def _strokes(found: Sequence[Sequence[float]], radius: float) -> str:
    """Lines (from, to) around where the pen is, one after the other."""
    x, y, parts = 0.0, 0.0, []
    for p, q, u, v in found:
        parts.append(f"m{_pair(radius * p - x, radius * q - y)}l{_pair(radius * (u - p), radius * (v - q))}")
        x, y = radius * u, radius * v
    return "".join(parts)


def _pair(u: float, v: float) -> str:
    down = brief(v)
    return brief(u) + (down if down.startswith("-") else f" {down}")


def _errors(trace: dict, points: list, colours: Sequence[str], x: Axis, y: Axis) -> Iterator[str]:
    for letter, axis in (("x", x), ("y", y)):
        error = trace.get(f"error_{letter}") or {}
        if error.get("array") is None:
            continue
        less = error["array"] if error.get("arrayminus") is None else error["arrayminus"]
        own = safe(error["color"]) if error.get("color") else None
        for value, (a, b), up, down, colour in zip(trace[letter], points, error["array"], less, colours):
            ends = axis.at(number(value) - number(down)), axis.at(number(value) + number(up))
            if axis.names is not None or not all(map(math.isfinite, (*ends, a, b))):
                continue
            at = (ends[0], b, ends[1], b) if letter == "x" else (a, ends[0], a, ends[1])
            yield '<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" '.format(*at) + f'stroke="{own or colour}"/>'


# --------------------------------------------------------------------------------------------- bars and heat maps


def bar(trace: dict, x: Axis, y: Axis) -> Iterator[str]:
    """Bars from their base; `lane` (first, share) of the trace says which part of a category's width is its own."""
    flat = trace.get("orientation") == "h"
    along, across = (x, y) if flat else (y, x)
    places, values = (trace.get("y"), trace.get("x")) if flat else (trace.get("x"), trace.get("y"))
    if values is None or not len(values):
        return
    places = list(range(len(values))) if places is None else places
    colours = colours_of(trace.get("marker") or {}, len(values), None)
    step = across.pixel(1.0) - across.pixel(0.0)
    first, share = trace.get("lane", (0.0, 1.0))
    width, offset = trace.get("width"), trace.get("offset")
    wide = number(width) if width is not None and np.isscalar(width) else 0.72 * share
    if offset is not None and np.isscalar(offset):
        aside = number(offset) + wide / 2
    else:
        aside = 0.0 if width is not None else 0.72 * (first + share / 2 - 0.5)
    thick, shift = abs(step) * wide, step * aside
    pattern = (trace.get("marker") or {}).get("pattern") or {}
    bases = np.zeros(len(values)) if trace.get("base") is None else np.broadcast_to(trace["base"], len(values))
    said, points = trace.get("text"), []
    for i, (place, value, foot, colour) in enumerate(zip(places, values, bases, colours)):
        a, b, base = across.at(place) + shift, along.at(number(value) + number(foot)), along.at(number(foot))
        points.append((b, a) if flat else (a, b))
        if math.isfinite(a) and math.isfinite(b):
            lo, size = min(base, b), abs(b - base)
            where = (lo, a - thick / 2, size, thick) if flat else (a - thick / 2, lo, thick, size)
            yield '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" '.format(*where) + f'fill="{colour}"/>'
            yield hatch(str(_of(pattern.get("shape") or "", i)), where, pattern.get("fgcolor") or _contrast(colour))
            word = "" if said is None else str(_of(said, i))
            if word and trace.get("textposition") == "inside":
                middle = (lo + size / 2, a + 4) if flat else (a, lo + size / 2 + 4)
                behind = f' stroke="{colour}" stroke-width="4" paint-order="stroke"' if pattern.get("shape") else ""
                yield words(*middle, word, "middle", f' fill="{_contrast(colour)}"{behind}')
    yield from _errors(trace, points, [INK] * len(points), x, y)


HATCHES = {"/": (-45,), "\\": (45,), "x": (-45, 45), "|": (0,), "-": (90,), "+": (0, 90), ".": ()}


def hatch(shape: str, where: Sequence[float], colour: Any) -> str:
    """A bar's pattern over `where` (left, top, width, height): dashed lines as wide as the bar, slanted and cut off at its edges.

    A <pattern> would need a name, and two pictures of a page could share it.
    """
    if shape not in HATCHES or not (where[2] > 0.5 and where[3] > 0.5):
        return ""
    wide, tall = where[2:]
    look, body = f'stroke="{safe(colour)}" fill="none"', ""
    for turn in HATCHES[shape]:
        if turn == 90:
            body += f'<path d="M{brief(wide / 2)} 0v{brief(tall)}" stroke-width="{brief(wide)}" stroke-dasharray="1.2 4" {look}/>'
        else:  # what is slanted reaches beyond both ends
            d = f"M{brief(-tall)} {brief(tall / 2)}h{brief(wide + 2 * tall)}"
            slant = f' transform="skewX({turn})"' if turn else ""
            body += f'<path d="{d}" stroke-width="{brief(tall)}" stroke-dasharray="1.4 4.6" {look}{slant}/>'
    if shape == ".":
        rows = "".join(f"M3 {y}h{brief(wide)}" for y in range(3, max(4, round(tall)), 6))
        body = f'<path d="{rows}" stroke-width="2" stroke-linecap="round" stroke-dasharray="0 6" {look}/>'
    box = 'x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"'.format(*where)
    return f'<svg {box} overflow="hidden">{body}</svg>'


def heatmap(trace: dict, x: Axis, y: Axis) -> Iterator[str]:
    z = np.array([[number(v) for v in row] for row in trace["z"]])
    if not z.size or not np.isfinite(z).any():
        return
    low, high = limits(trace, z, "z")
    xs = list(range(z.shape[1])) if trace.get("x") is None else list(trace["x"])
    ys = list(range(z.shape[0])) if trace.get("y") is None else list(trace["y"])
    wide = abs(x.stop - x.start) / max(abs(x.high - x.low), 1e-9)
    tall = abs(y.stop - y.start) / max(abs(y.high - y.low), 1e-9)
    write = _cell_words(trace)
    size = min(number((trace.get("textfont") or {}).get("size", 11)), max(tall - 2, 6))
    room = max(1, int(wide / (LETTER * size / 12)))
    gap = 0.5 if trace.get("xgap") else 0.0
    cells: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for i, (row, b) in enumerate(zip(z, ys)):
        for j, (value, a) in enumerate(zip(row, xs)):
            px, py = x.at(a), y.at(b)
            if all(map(math.isfinite, (value, px, py))):
                colour = scale(trace.get("colorscale"), (value - low) / ((high - low) or 1.0))
                across, down = brief(wide - gap), brief(tall - gap)
                cells.setdefault(colour, []).append(
                    f"M{brief(px - wide / 2)} {brief(py - tall / 2)}h{across}v{down}h-{across}z"
                )
                said = lines(write(i, j, value))
                said = said if 1.3 * size * len(said) < tall else [" ".join(said)]
                for k, row in enumerate(said if any(said) else []):
                    lower = size / 3 + 1.2 * size * (k - (len(said) - 1) / 2)
                    text = f'<text x="{brief(px)}" y="{brief(py + lower)}">{html.escape(row[:room])}</text>'
                    texts.setdefault(_contrast(colour), []).append(text)
    yield from (f'<path d="{"".join(d)}" fill="{colour}"/>' for colour, d in cells.items())
    for colour, found in texts.items():
        yield f'<g font-size="{size:g}" fill="{colour}" text-anchor="middle">{"".join(found)}</g>'


def _cell_words(trace: dict) -> Callable[[int, int, float], str]:
    """What `texttemplate` writes into a cell."""
    template, text = str(trace.get("texttemplate") or ""), trace.get("text")
    if template == "%{text}" and text is not None:
        return lambda i, j, value: str(text[i][j] or "")
    if found := re.fullmatch(r"%\{z:\.(\d)([%f])\}", template):
        return lambda i, j, value: f"{value:.{found[1]}{found[2]}}"
    return lambda i, j, value: ""


def limits(of: dict, values: np.ndarray, letter: str) -> tuple[float, float]:
    """The values at the two ends of a colour scale: of a heat map ("z") or of a marker ("c")."""
    low, high, middle = (number(of.get(letter + end)) for end in ("min", "max", "mid"))
    low = low if math.isfinite(low) else float(np.nanmin(values))
    high = high if math.isfinite(high) else float(np.nanmax(values))
    if math.isfinite(middle):
        reach = max(high - middle, middle - low)
        low, high = middle - reach, middle + reach
    return low, high


def colours_of(marker: dict, n: int, fallback: Any) -> list[str]:
    """One colour for each of n marks."""
    colour = marker.get("color", fallback)
    if isinstance(colour, (list, tuple, np.ndarray)):
        if len(colour) and isinstance(colour[0], str):
            return [safe(c) for c in colour]
        values = np.array([number(c) for c in colour])
        low, high = limits(marker, values, "c")
        return [scale(marker.get("colorscale"), (v - low) / ((high - low) or 1.0)) for v in values]
    return [safe(colour or INK)] * n


def scale(given: Any, share: float) -> str:
    """A colour of a colour scale, given as stops or by plotly's name; cividis where none is given."""
    if given is None or isinstance(given, str):
        from plotly.colors import get_colorscale

        given = get_colorscale(given or "Cividis")
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    places, parts = [stop[0] for stop in given], np.array([_parts(stop[1]) for stop in given])
    red, green, blue, thick = (float(np.interp(share, places, part)) for part in parts.T)
    if thick == 1:
        return f"#{round(red):02x}{round(green):02x}{round(blue):02x}"
    return f"rgba({red:.0f},{green:.0f},{blue:.0f},{thick:.2f})"


def _parts(colour: Any) -> tuple[float, float, float, float]:
    """Red, green and blue up to 255, and how thick a colour is up to 1; grey for what is no colour of hex digits or numbers."""
    plain = str(colour)
    if found := re.fullmatch(r"#([0-9A-Fa-f]{3,4})", plain):
        plain = "#" + "".join(2 * digit for digit in found[1])
    if re.fullmatch(r"#([0-9A-Fa-f]{6}|[0-9A-Fa-f]{8})", plain):
        red, green, blue, *thick = (int(plain[i : i + 2], 16) for i in range(1, len(plain), 2))
        return red, green, blue, thick[0] / 255 if thick else 1.0
    if plain.startswith("rgb") and len(numbers := [float(n) for n in re.findall(r"[0-9.]+", plain)]) in (3, 4):
        return numbers[0], numbers[1], numbers[2], numbers[3] if len(numbers) == 4 else 1.0
    return _parts(INK)


def _contrast(colour: str) -> str:
    """Dark or light words for a cell; a thin colour lies on the page, whose ink they take."""
    red, green, blue, thick = _parts(colour)
    if thick < 0.6:
        return INK
    return "#111" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#fff"
