"""Patching cell by cell: one heat map of layer by position for each edit that a reading holds, and what one cell of it did.

A `Sheet` is such a map: which array of the reading, over which two axes, with which edit and placebo beside it. Numbers,
intervals and p-values are the reading's own.
"""

from __future__ import annotations

import textwrap
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.plots import style
from icrl_lab.plots.patching import EDIT, SCALE, WITHOUT
from icrl_lab.plots.words import shown_group
from icrl_lab.stats.words import estimate, tested

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

LOOKS = {  # of what stands beside a cell, in the order of `Sheet.bars`
    "the edit": (style.BLUE, "circle"),
    "its placebo": (style.ORANGE, "square"),
    "edit less placebo": (style.GREEN, "diamond"),
    "by the gradient": (style.PURPLE, "triangle-up"),
    "patched exactly": (style.BLUE, "circle"),
}
NARROW, LINES = 480, 4  # width of a cell's figure, and lines of words above it
UNTESTED = "No p-value: this cell was chosen for its gradient."


@dataclass(frozen=True)
class Sheet:
    """A heat map of a reading of patching.

    x, y   its axes in the reading, of which x goes through the layers; `at` fixes the other axes
    main   the array that is mapped
    bars   what is shown beside a cell: words (of LOOKS) and array, which has `_low` and `_high`
    test   the array of p-values of "edit less placebo", "" where nothing was tested
    """

    words: str
    x: str
    y: str
    at: tuple[tuple[str, Any], ...]
    main: str
    bars: tuple[tuple[str, str], ...]
    test: str = ""

    def of(self, reading: Reading) -> xr.Dataset:
        """The sheet's part of the reading, its arrays (y, x)."""
        names = dict.fromkeys(n + e for _, n in (("", self.main), *self.bars) for e in ("", "_low", "_high"))
        data = reading.data[[*names, *([self.test] if self.test else [])]].sel(dict(self.at))
        return data.transpose(self.y, self.x)

    @property
    def axis(self) -> str:
        """The layers' axis in words."""
        return {"depth": "depth: blocks passed", "place": "depth: blocks passed", "layer": "block", "window": "where it is cut"}[self.x]  # fmt: skip


PAIR = (("the edit", "share"), ("its placebo", "placebo"), ("edit less placebo", "beyond"))
SIZES = (("the edit", "effect"), ("its placebo", "placebo_effect"))


def sheets(reading: Reading) -> dict[str, Sheet]:
    """Every edit that the reading holds, by its words; the first is the question's own."""
    data, kind = reading.data, str(reading.about.get("kind", "restore"))
    found: list[Sheet] = []
    if kind == "restore":
        found += [
            Sheet("clean states put in: restored share", "depth", "group", (), "share", PAIR, "beyond_q"),
            Sheet("clean states put in: size of the change", "depth", "group", (), "effect", SIZES),
        ]
    if kind == "heads":
        for group in data["group"].values.tolist():
            at, words = (("group", group),), f"clean head outputs put in at the {shown_group(group)}"
            if np.isfinite(data["share"].sel(group=group)).any():
                found.append(Sheet(f"{words}: restored share", "layer", "head", at, "share", PAIR, "beyond_q"))
            if "gradient" in data:
                bars: tuple[tuple[str, str], ...] = (
                    ("by the gradient", "gradient"),
                    ("patched exactly", "share"),
                    ("its placebo", "placebo"),
                )
                found.append(Sheet(f"{words}: by the gradient", "layer", "head", at, "gradient", bars))
    if kind in ("inputs", "cuts"):
        edits, x, y = ("edit", "depth", "target") if kind == "inputs" else ("rows", "window", "columns")
        for name in data[edits].values.tolist():
            words = f"vectors: {EDIT.get(name, name)}" if kind == "inputs" else f"{WITHOUT.get(name, name)} without"
            for array, what in (("effect", "size of the change"), ("harm", "what is added to the error")):
                placebo = "placebo" if array == "effect" else "placebo_harm"
                bars = (("the edit", array), ("its placebo", placebo))
                bars += (("edit less placebo", "beyond"),) if array == "effect" else ()
                test = "beyond_q" if array == "effect" else ""
                found.append(Sheet(f"{words}: {what}", x, y, ((edits, name),), array, bars, test))
    if kind == "restore" and "fine" in data:
        bars = (("by the gradient", "fine"), *((("patched exactly", "verified"),) if "verified" in data else ()))
        found.append(Sheet("single parts: share by the gradient", "place", "part", (), "fine", bars))
    return {sheet.words: sheet for sheet in found}


# ------------------------------------------------------------------------------------------------ the map


def sheet_figure(reading: Reading, sheet: Sheet, cell: tuple[int, int] | None = None) -> go.Figure:
    """The heat map (trace 0) with a frame around `cell`, as places on (y, x) (trace 1)."""
    data = sheet.of(reading)
    z = data[sheet.main].values
    fine = np.abs(z[np.isfinite(z)])
    reach = max(float(fine.max()) if len(fine) else 1.0, 1e-9)
    reach = min(reach, 1.5) if data[sheet.main].attrs["units"].startswith("share") else reach
    xs, ys = names(data, sheet.x), names(data, sheet.y)
    units = style.safe(data[sheet.main].attrs["units"], 30)
    bar = {"title": {"text": units.replace("share of the difference", "share"), "side": "top"}, "thickness": 11, "x": 1.01, "outlinewidth": 0}  # fmt: skip
    cells = {
        "type": "heatmap", "z": z, "x": list(range(len(xs))), "y": list(range(len(ys))), "zmin": -reach, "zmax": reach, "zmid": 0, "colorscale": SCALE,
        "xgap": 1, "ygap": 1, "hoverongaps": False, "customdata": hover(data, sheet), "hovertemplate": "%{customdata}<extra></extra>", "colorbar": bar,
    }  # fmt: skip
    x, y = ([], []) if cell is None else ([cell[1]], [cell[0]])
    tall = 16 if len(ys) > 24 else 24 if len(ys) > 9 else 36
    frame = {"symbol": "square-open", "size": min(tall, 20), "color": style.ORANGE, "line": {"width": 3, "color": style.ORANGE}}  # fmt: skip
    around = {"type": "scatter", "x": x, "y": y, "mode": "markers", "marker": frame, "hoverinfo": "skip", "showlegend": False, "cliponaxis": False}  # fmt: skip
    step = -(-len(xs) // (5 if max(map(len, xs)) > 4 else 16))
    across = {
        "title": {"text": sheet.axis, "standoff": 6}, "tickvals": list(range(0, len(xs), step)), "ticktext": xs[::step],
        "range": [-0.5, len(xs) - 0.5], "showgrid": False, "zeroline": False,
    }  # fmt: skip
    rare = -(-len(ys) // 60)
    up = {
        "title": {"text": sheet.y} if sheet.y == "head" else None, "tickvals": list(range(0, len(ys), rare)), "ticktext": ys[::rare],
        "range": [len(ys) - 0.5, -0.5], "tickfont": {"size": min(tall - 3, 12)}, "showgrid": False, "zeroline": False,
    }  # fmt: skip
    caption = f"{where(reading)}. {_sentence(data[sheet.main].attrs['long_name'])}. Click a cell, or move with the sliders' arrow keys."
    layout = _framed(_sentence(sheet.words), caption, max(tall * len(ys) + 10, 150), across, up)
    return style.graph_objects().Figure([cells, around], layout)


def _framed(title: str, caption: str, height: int, across: dict[str, Any], up: dict[str, Any]) -> dict[str, Any]:
    """The layout of a finished figure with these axes; plotly takes long to finish one, so that of the same words is kept."""
    layout = deepcopy(_frame(title, caption, height))
    for name, mine in (("xaxis", across), ("yaxis", up)):
        layout[name] |= mine | {"title": {**layout[name]["title"], **(mine.get("title") or {})}}
    return layout


@lru_cache(maxsize=128)
def _frame(title: str, caption: str, height: int) -> dict[str, Any]:
    made = style.finish(style.graph_objects().Figure(), title, caption, height)
    return {**made.layout.to_plotly_json(), "template": "none"}


def names(data: xr.Dataset, dim: str) -> list[str]:
    """The places of an axis as they are written."""
    return [style.safe(shown_group(str(v)), 24) for v in data[dim].values.tolist()]


def where(reading: Reading) -> str:
    """Whose numbers these are."""
    about = reading.about
    corrupted = f", corrupted by {about['corrupted']!r}" if about.get("corrupted") else ""
    return f"{about.get('task', '')}, {about.get('llm', '')}, arm {about.get('arm', '')}{corrupted}; n = {about.get('n', '')}"


def hover(data: xr.Dataset, sheet: Sheet) -> np.ndarray:
    """What is said of each cell when it is pointed at."""
    values = [data[sheet.main + end].values for end in ("", "_low", "_high")]
    xs, ys = names(data, sheet.x), names(data, sheet.y)
    out = np.empty(values[0].shape, object)
    for i, j in np.ndindex(values[0].shape):
        out[i, j] = f"<b>{_at(sheet, ys[i], xs[j])}</b><br>{estimate(*(float(v[i, j]) for v in values))}"
    return out


def _at(sheet: Sheet, y: str, x: str) -> str:
    left = f"head {y}" if sheet.y == "head" else y
    return f"{left}, {({'place': 'depth', 'layer': 'block', 'window': ''}.get(sheet.x, sheet.x) + ' ' + x).strip()}"


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


# ------------------------------------------------------------------------------------------------ one cell


def cell_figure(reading: Reading, sheet: Sheet, i: int, j: int) -> go.Figure:
    """The edit and its placebo at place (i, j) of (y, x), each a dot with its interval, and the test of their difference in words."""
    data, traces = sheet.of(reading), []
    for (words, _), values in zip(sheet.bars, bars(data, sheet, i, j)):
        colour, symbol = LOOKS[words]
        reach = {**values["error_x"], "color": colour, "thickness": 2, "width": 6}
        traces.append({
            "type": "scatter", "mode": "markers", "showlegend": False, "marker": {"color": colour, "symbol": symbol, "size": 12}, "name": words,
            "hovertemplate": "%{y}: %{customdata}<extra></extra>", **values, "error_x": reach,
        })  # fmt: skip
    rows = len(sheet.bars)
    units = style.safe(data[sheet.main].attrs["units"], 40)
    up = {
        "type": "category", "categoryorder": "array", "categoryarray": [words for words, _ in sheet.bars], "range": [rows - 0.5, -0.5],
        "showgrid": False, "zeroline": False,
    }  # fmt: skip
    across = {"title": {"text": f"[{units}]", "standoff": 6}, "zeroline": True, "zerolinewidth": 1.5, "range": cell_range(data, sheet, i, j)}  # fmt: skip
    layout, top = _framed("", "", 48 * rows + 20, across, up), 42 + 16 * LINES
    layout |= {"height": layout["height"] - layout["margin"]["t"] + top, "width": NARROW}
    layout["margin"]["t"], layout["title"]["text"] = top, cell_title(reading, data, sheet, i, j)
    return style.graph_objects().Figure(traces, layout)


def bars(data: xr.Dataset, sheet: Sheet, i: int, j: int) -> list[dict[str, Any]]:
    """What changes in the traces of a cell's figure from cell to cell."""
    out = []
    for words, value, low, high in measured(data, sheet, i, j):
        there = np.isfinite(value)
        ends = [end if np.isfinite(end) else value for end in (low, high)]
        reach = (
            {"array": [ends[1] - value], "arrayminus": [value - ends[0]]} if there else {"array": [], "arrayminus": []}
        )
        out.append({"x": [value] if there else [], "y": [words] if there else [], "customdata": [estimate(value, low, high)] if there else [], "error_x": reach})  # fmt: skip
    return out


def cell_range(data: xr.Dataset, sheet: Sheet, i: int, j: int) -> list[float]:
    """Zero, the map's largest value and the cell's intervals: a cell that does next to nothing looks like it."""
    values = data[sheet.main].values
    most = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    ends = [v for _, value, low, high in measured(data, sheet, i, j) for v in (value, low, high) if np.isfinite(v)]
    first, last = min([0.0, *ends]), max([most, *ends])
    pad = 0.05 * ((last - first) or 1.0)
    return [first - pad, last + pad]


def cell_title(reading: Reading, data: xr.Dataset, sheet: Sheet, i: int, j: int) -> str:
    """Where the cell is, its test in words, n and how the intervals were made."""
    title = _at(sheet, *(shown_group(str(data[d].values[k])) for d, k in ((sheet.y, i), (sheet.x, j))))
    how = str(reading.about.get("interval", "")).split(";")[0].split(",")[0]
    lines = [verdict(data, sheet, i, j), f"n = {reading.about.get('n', '')}. Bars: {how}."]
    wrapped = [style.safe(part) for line in lines for part in textwrap.wrap(line, NARROW // 7)][:LINES]
    return "<br>".join([f'<span style="font-size:15px"><b>{style.safe(title, NARROW // 9)}</b></span>', *wrapped])


def measured(data: xr.Dataset, sheet: Sheet, i: int, j: int) -> list[tuple[str, float, float, float]]:
    """What is known of a cell: words, estimate (NaN: not measured), and the ends of its interval (NaN: not known)."""
    out = []
    for words, name in sheet.bars:
        value, low, high = (float(data[name + end].values[i, j]) for end in ("", "_low", "_high"))
        out.append((words, value, low, high))
    return out


def verdict(data: xr.Dataset, sheet: Sheet, i: int, j: int) -> str:
    """The cell's test in words."""
    if sheet.main in ("fine", "gradient"):
        exact = {"fine": "verified", "gradient": "share"}[sheet.main]
        done = exact in data and np.isfinite(data[exact].values[i, j])
        return f"A linear approximation; {'patched exactly, too' if done else 'this cell was not patched'}. {'' if done else 'It has no placebo.'}".strip()  # fmt: skip
    if not sheet.test:
        return "Not tested here; the p-value stands with the share or the size of the change."
    if not np.isfinite(data[sheet.main].values[i, j]):
        return "This cell was not patched."
    q, beyond = float(data[sheet.test].values[i, j]), float(data["beyond"].values[i, j])
    if not np.isfinite(q):
        return UNTESTED
    if q < 0.05:
        return f"{'More' if beyond > 0 else 'Less'} than its placebo ({tested(q)})."
    return f"Not told apart from its placebo ({tested(q)})."
