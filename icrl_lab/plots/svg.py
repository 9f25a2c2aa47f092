"""A figure as a plain SVG string, for places where nothing runs: an exported notebook, a mail, a page without scripts.

Draws what the lab's figures are made of (points, lines, error bars, bars, heat maps, bands, shapes, pictures, notes) on the
figure's own axes and colours, with its legend and its colour scales. It is a picture of the same data, not plotly: no hover.
Everything that comes from data is escaped.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.plots import svg_marks as marks
from icrl_lab.plots.svg_axes import LETTER, LONGEST, Axis, Box, axes_of, lines, number
from icrl_lab.plots.svg_marks import INK, words

if TYPE_CHECKING:
    import plotly.graph_objects as go

Sign = tuple[str, float]  # of a legend: drawn around y = 0, and the pixels until its words

SIZE = 700
GRID = ' stroke="#888" stroke-opacity="0.22"'
DRAW = {"scatter": marks.scatter, "scattergl": marks.scatter, "bar": marks.bar, "heatmap": marks.heatmap}


def svg(figure: go.Figure | dict[str, Any], width: int = SIZE) -> str:
    """The figure as one <svg> element of the given width; safe to put into any page. ValueError for an unknown kind of trace.

    figure  of plotly, or what its `to_dict` gives
    """
    plain = _unpacked(figure if isinstance(figure, dict) else figure.to_plotly_json())
    layout = plain.get("layout") or {}
    plain["data"] = _scaled(_in_lanes([t for t in plain["data"] if t.get("visible", True) is True], layout), layout)
    title = [line for line in lines((layout.get("title") or {}).get("text") or "") if line]
    notes = [note for note in layout.get("annotations") or () if note.get("text") and note.get("visible") is not False]
    keys = _keys(plain["data"], layout, width)
    high = [
        n for n in notes if n.get("yref") == "paper" and number(n.get("y")) >= 0.99 and n.get("yanchor") == "bottom"
    ]
    over = max((2 + 14 * len(lines(note["text"])) for note in high), default=0)
    top = 18 + 16 * len(title) + 20 * len(keys) + over
    margin = layout.get("margin") or {}
    inner = float(layout.get("height") or 420) - number(margin.get("t", 90)) - number(margin.get("b", 60))
    below = max((14 * len(lines(w)) for a in axes_of(plain, layout, (0, 0, 1, 1)).values() if a.partner[0] == "y" for _, w in a.ticks), default=14)  # fmt: skip
    height = top + max(inner, 120.0) + below + 30
    first = [a for a in axes_of(plain, layout, (0, 0, 1, 1)).values() if a.partner[0] == "x" and a.shown]
    left = 16.0 + max((a.reach() for a in first), default=0) + (20 if any(a.title for a in first) else 0)
    box = (left, top, width - 16.0, height - below - 30)
    axes = axes_of(plain, layout, box)
    body = [_title(title), *_legend(keys, 16 + 16 * len(title)), *_grid(axes)]
    shapes, pictures = layout.get("shapes") or (), layout.get("images") or ()
    body.extend(_shapes([s for s in shapes if s.get("layer") == "below"], axes, box))
    body.extend(_pictures(pictures, axes, box))
    for trace in plain["data"]:
        x, y = axes[trace.get("xaxis") or "x"], axes[trace.get("yaxis") or "y"]
        body.append(_clipped("".join(DRAW.get(trace.get("type") or "scatter", _unknown)(trace, x, y)), x, y, trace))
    body.extend(_shapes([s for s in shapes if s.get("layer") != "below"], axes, box))
    body.extend(_frame(axes))
    body.extend(_notes(notes, axes, box))
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


def _unknown(trace: dict, x: Axis, y: Axis) -> Iterator[str]:
    raise ValueError(f"a plain picture of a {trace.get('type')!r} trace is not known")


def _in_lanes(data: list[dict], layout: dict) -> list[dict]:
    """Bars of several traces beside or upon each other, as the figure's mode says."""
    mode, out = layout.get("barmode") or "group", []
    feet: dict[tuple, dict[str, float]] = {}
    bars = [t for t in data if t.get("type") == "bar"]
    panels = [(t.get("xaxis"), t.get("yaxis")) for t in bars]
    for trace in data:
        if trace.get("type") == "bar" and mode == "stack":
            across, along = ("y", "x") if trace.get("orientation") == "h" else ("x", "y")
            foot = feet.setdefault((trace.get("xaxis"), trace.get("yaxis")), {})
            base = [foot.get(str(place), 0.0) for place in trace[across]]
            foot.update({str(p): b + number(v) for p, b, v in zip(trace[across], base, trace[along])})
            trace = trace | {"base": base}
        elif trace.get("type") == "bar" and mode == "group":
            same = [t for t, panel in zip(bars, panels) if panel == (trace.get("xaxis"), trace.get("yaxis"))]
            at = next(i for i, other in enumerate(same) if other is trace)
            trace = trace | {"lane": (at / len(same), 1 / len(same))}
        out.append(trace)
    return out


def _scaled(data: list[dict], layout: dict) -> list[dict]:
    """Traces that refer to a colour axis of the layout, with its scale and limits as their own."""
    out = []
    for trace in data:
        axis = layout.get(trace.get("coloraxis") or "") or {}
        if axis:
            own = {
                "colorscale": axis.get("colorscale"),
                "zmin": axis.get("cmin"),
                "zmax": axis.get("cmax"),
                "zmid": axis.get("cmid"),
            }
            trace = trace | own | {"colorbar": axis.get("colorbar") or {}, "showscale": axis.get("showscale")}
        out.append(trace)
    return out


def _clipped(body: str, x: Axis, y: Axis, trace: dict) -> str:
    """Marks within their panel; an element of its own clips without a name that two pictures of a page could share."""
    if not body:
        return body
    thin = number(trace.get("opacity", 1))
    faint = f' opacity="{thin:g}"' if thin < 1 else ""
    if trace.get("cliponaxis") is False:
        return f"<g{faint}>{body}</g>"
    edge = 5.0
    a, b = min(x.start, x.stop) - edge, min(y.start, y.stop) - edge
    wide, tall = abs(x.stop - x.start) + 2 * edge, abs(y.stop - y.start) + 2 * edge
    where = f'x="{a:.1f}" y="{b:.1f}" width="{wide:.1f}" height="{tall:.1f}" viewBox="{a:.1f} {b:.1f} {wide:.1f} {tall:.1f}"'
    return f'<svg {where} overflow="hidden"{faint}>{body}</svg>'


# --------------------------------------------------------------------------------------------- legend


def _keys(data: list[dict], layout: dict, width: int) -> list[list[tuple[float, Sign, str]]]:
    """Rows of (place, sign, words): the legend's entries, then a scale for each colour bar."""
    entries: list[tuple[Sign, str]] = []
    named = [t for t in data if t.get("name") and t.get("showlegend") is not False]
    if layout.get("showlegend") is True or (layout.get("showlegend") is None and len(named) > 1):
        entries += [(_sign(trace), " ".join(lines(trace["name"]))) for trace in named]
    seen = set()
    for trace in data:
        found = _ramp(trace)
        if found and found[1] not in seen:
            seen.add(found[1])
            entries.append(found)
    rows: list[list[tuple[float, Sign, str]]] = [[]]
    at = 8.0
    for sign, said in entries:
        need = sign[1] + LETTER * len(said) + 18
        if rows[-1] and at + need > width:
            rows.append([])
            at = 8.0
        rows[-1].append((at, sign, said))
        at += need
    return [row for row in rows if row]


def _legend(rows: list[list[tuple[float, Sign, str]]], top: float) -> Iterator[str]:
    for i, row in enumerate(rows):
        y = top + 20 * i + 12
        for at, (drawn, wide), said in row:
            yield f'<g transform="translate({at:.1f} {y - 4:.1f})">{drawn}</g>{words(at + wide, y, html.escape(said), "start")}'


def _sign(trace: dict) -> Sign:
    """What a trace looks like, 20 pixels wide."""
    ends = Axis(0, 20, 0, 1, (), "", None, False, "y"), Axis(-5, 5, 0, 1, (), "", None, False, "x")
    if trace.get("type") in ("bar", "heatmap"):
        marker = trace.get("marker") or {}
        colour, pattern = marks.colours_of(marker, 1, None)[0], marker.get("pattern") or {}
        shape = marks.hatch(str(pattern.get("shape") or ""), (3, -5, 14, 10), pattern.get("fgcolor") or "#fff")
        return f'<rect x="3" y="-5" width="14" height="10" fill="{colour}"/>{shape}', 26.0
    one = {key: trace.get(key) for key in ("mode", "line", "marker")}
    mode = str(one["mode"] or "lines+markers")
    marker = {k: (v[0] if isinstance(v, (list, tuple, np.ndarray)) and len(v) and k != "colorscale" else v) for k, v in (one["marker"] or {}).items()}  # fmt: skip
    marker["size"] = min(number(marker.get("size", 7)), 10)
    if not isinstance(marker.get("color", ""), str):
        marker.pop("color")
    line = dict(one["line"] or {})
    line["color"] = line.get("color") or marker.get("color")
    parts: list[str] = []
    if trace.get("fill"):
        band = {"fill": "toself", "fillcolor": trace.get("fillcolor")}
        parts += marks.scatter({"x": [0, 1, 1, 0], "y": [0, 0, 1, 1], "mode": "none", "line": line, **band}, *ends)
    if "lines" in mode:
        parts += marks.scatter({"x": [0, 1], "y": [0.5, 0.5], "mode": "lines", "line": line}, *ends)
    if "markers" in mode:
        parts += marks.scatter({"x": [0.5], "y": [0.5], "mode": "markers", "marker": marker, "line": line}, *ends)
    return "".join(parts), 26.0


def _ramp(trace: dict) -> tuple[Sign, str] | None:
    """The colour scale of a heat map or of points, with the values at its ends and its title."""
    marker = trace.get("marker") or {}
    if trace.get("type") == "heatmap" and trace.get("showscale") is not False:
        z = np.array([[number(v) for v in row] for row in trace["z"]])
        if not np.isfinite(z).any():
            return None
        (low, high), given, bar = marks.limits(trace, z, "z"), trace.get("colorscale"), trace.get("colorbar") or {}
    elif marker.get("showscale") and not isinstance(marker.get("color", ""), str):
        values = np.array([number(v) for v in marker["color"]])
        (low, high), given = marks.limits(marker, values, "c"), marker.get("colorscale")
        bar = marker.get("colorbar") or {}
    else:
        return None
    title = bar.get("title") or ""
    said = " ".join(lines(title.get("text") or "" if isinstance(title, dict) else title))
    form = re.fullmatch(r"\+?(\.\d%)", str(bar.get("tickformat")))
    write = (lambda v: format(v, form[1])) if form else (lambda v: f"{v:.2g}")
    start = LETTER * len(write(low)) + 9
    cells = "".join(f'<rect x="{start + 4 * i:.1f}" y="-5" width="4.3" height="10" fill="{marks.scale(given, i / 19)}"/>' for i in range(20))  # fmt: skip
    return (f"{words(0, 4, write(low), 'start')}{cells}", start + 86.0), f"{write(high)} {said}".strip()


# --------------------------------------------------------------------------------------------- frame and words


def _grid(axes: dict[str, Axis]) -> Iterator[str]:
    for axis in axes.values():
        other, across = axes[axis.partner], axis.partner[0] == "y"
        if not axis.shown or axis.start == axis.stop:
            continue
        at = [pixel for pixel, _ in axis.marks()] if axis.grid and axis.names is None else []
        for pixel in at:
            ends = (pixel, other.start, pixel, other.stop) if across else (other.start, pixel, other.stop, pixel)
            yield '<path d="M{:.1f} {:.1f}L{:.1f} {:.1f}"'.format(*ends) + GRID + "/>"


def _frame(axes: dict[str, Axis]) -> Iterator[str]:
    """Axis lines, ticks and titles, each along the axis' partner."""
    for axis in axes.values():
        if not axis.shown:
            continue
        foot, across = axes[axis.partner].start, axis.partner[0] == "y"
        if across:
            yield f'<line x1="{axis.start:.1f}" y1="{foot:.1f}" x2="{axis.stop:.1f}" y2="{foot:.1f}" stroke="{INK}"/>'
        else:
            yield f'<line x1="{foot:.1f}" y1="{axis.start:.1f}" x2="{foot:.1f}" y2="{axis.stop:.1f}" stroke="{INK}"/>'
        deep = 0
        for at, word in axis.marks() if axis.labelled else ():
            rows = [row[:LONGEST] for row in lines(word)]
            said = "<br>".join(html.escape(row, quote=False) for row in rows)
            deep = max(deep, len(rows))
            yield words(at, foot + 15, said) if across else words(foot - 5, at + 4 - 7 * (len(rows) - 1), said, "end")
        middle = (axis.start + axis.stop) / 2
        if axis.title and across:
            yield words(middle, foot + 19 + 14 * deep, html.escape(axis.title, quote=False))
        elif axis.title:
            turned = f' transform="translate({foot - axis.reach() - 12:.1f} {middle:.1f}) rotate(-90)"'
            yield words(0, 0, html.escape(axis.title, quote=False), "middle", turned)


def _place(value: Any, ref: Any, letter: str, axes: dict[str, Axis], box: Box) -> float:
    """Pixel of a value on an axis, on an axis' domain (0 to 1) or on the whole plot."""
    ref = str(ref or letter)  # plotly's own default where a figure has axes
    if ref == "paper":
        start, stop = (box[0], box[2]) if letter == "x" else (box[3], box[1])
        return start + number(value) * (stop - start)
    axis = axes.get(ref.removesuffix(" domain"))
    if axis is None:
        return math.nan
    return axis.start + number(value) * (axis.stop - axis.start) if ref.endswith(" domain") else axis.at(value)


def _notes(notes: list[dict], axes: dict[str, Axis], box: Box) -> Iterator[str]:
    for note in notes:
        x = _place(note.get("x"), note.get("xref"), "x", axes, box) + number(note.get("xshift") or 0)
        y = _place(note.get("y"), note.get("yref"), "y", axes, box) - number(note.get("yshift") or 0)
        if not math.isfinite(x) or not math.isfinite(y):
            continue
        rows = len(lines(note["text"]))
        free = note.get("yref") == "paper" and number(note["y"])
        auto = "middle" if free is False else "bottom" if free < 1 / 3 else "top" if free > 2 / 3 else "middle"
        given = note.get("yanchor") or auto
        y += {"bottom": -4 - 14 * (rows - 1), "top": 12}.get(given if given != "auto" else auto, 4 - 7 * (rows - 1))
        anchor = {"left": "start", "right": "end"}.get(note.get("xanchor") or "", "middle")
        if note.get("xref") == "paper" and note.get("xanchor") in (None, "auto"):
            anchor = "start" if number(note["x"]) < 1 / 3 else "end" if number(note["x"]) > 2 / 3 else "middle"
        font = note.get("font") or {}
        more = f' font-size="{number(font.get("size", 12)):g}"' + (
            f' fill="{marks.safe(font["color"])}"' if font.get("color") else ""
        )
        if note.get("textangle"):
            more += f' transform="rotate({number(note["textangle"]):g} {x:.1f} {y:.1f})"'
        yield words(x, y, note["text"], anchor, more)


def _shapes(shapes: list[dict], axes: dict[str, Axis], box: Box) -> Iterator[str]:
    """Lines, rectangles and paths (moves, lines and quadratic curves)."""
    for shape in shapes:
        line = shape.get("line") or {}
        thin = f' opacity="{number(shape["opacity"]):g}"' if shape.get("opacity") is not None else ""
        look = (stroke := marks.stroke({"width": 2, **line})) + thin
        if shape.get("type") == "path":
            d = _path(
                str(shape.get("path", "")), axes.get(shape.get("xref") or "x"), axes.get(shape.get("yref") or "y")
            )
            if d:
                yield f'<path d="{d}" {look} fill="none"/>'
            continue
        at = {f"{letter}{end}": _place(shape.get(f"{letter}{end}"), shape.get(f"{letter}ref"), letter, axes, box) for letter in "xy" for end in "01"}  # fmt: skip
        if not all(map(math.isfinite, at.values())):
            continue
        if shape.get("type") == "line":
            yield '<path d="M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}" '.format(**at) + f"{look}/>"
        elif shape.get("type") == "rect":
            (a, wide), (b, tall) = ((min(at[f"{c}0"], at[f"{c}1"]), abs(at[f"{c}1"] - at[f"{c}0"])) for c in "xy")
            fill = marks.safe(shape["fillcolor"]) if shape.get("fillcolor") else "none"
            edge = stroke if line.get("width", 2) else 'stroke="none"'
            where = f'd="M{a:.1f} {b:.1f}h{wide:.1f}v{tall:.1f}h{-wide:.1f}z"'
            yield f'<path {where} fill="{fill}" {edge}{thin}/>'


def _path(given: str, x: Axis | None, y: Axis | None) -> str:
    found = re.findall(r"[MLQ]|-?[0-9.]+(?:e-?[0-9]+)?", given)
    if x is None or y is None or len(found) < 3:
        return ""
    out, turn = [], 0
    for word in found:
        if word in "MLQ":
            out.append(word)
            turn = 0
        else:
            out.append(f"{(y if turn % 2 else x).at(word):.1f}")
            turn += 1
    return " ".join(out)


def _pictures(pictures: Any, axes: dict[str, Axis], box: Box) -> Iterator[str]:
    """Pictures that a figure carries in itself, as drawings of molecules; nothing is loaded from elsewhere."""
    for picture in pictures:
        source = str(picture.get("source") or "")
        if not re.fullmatch(r"data:image/(png|jpeg|svg\+xml)(;[a-z0-9=-]+)*,[A-Za-z0-9+/=%._~-]*", source):
            continue
        size = {}
        for letter in "xy":
            ref = picture.get(f"{letter}ref") or "paper"
            first, last = (_place(v, ref, letter, axes, box) for v in (0, picture.get(f"size{letter}") or 0))
            size[letter] = abs(last - first)
        x, y = (_place(picture.get(c), picture.get(f"{c}ref") or "paper", c, axes, box) for c in "xy")
        x -= {"center": 0.5, "right": 1.0}.get(picture.get("xanchor") or "left", 0.0) * size["x"]
        y -= {"middle": 0.5, "bottom": 1.0}.get(picture.get("yanchor") or "top", 0.0) * size["y"]
        if all(map(math.isfinite, (x, y, *size.values()))):
            where = f'x="{x:.1f}" y="{y:.1f}" width="{size["x"]:.1f}" height="{size["y"]:.1f}"'
            yield f'<image {where} href="{html.escape(source, quote=True)}"/>'


def _title(title: list[str]) -> str:
    bold = ' font-weight="bold" font-size="15"'
    return "".join(
        words(8, 20 + 16 * i, html.escape(line, quote=False), "start", "" if i else bold)
        for i, line in enumerate(title)
    )
