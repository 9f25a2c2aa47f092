"""Figures of `pause`: is the vector read, or is its slot only a place?

figure       the verdict table: skill of every cell, what is compared standing together
differences  the paired differences that the verdicts rest on, with the margin within which they count as none
movements    how far a cut moves an answer, beside its placebo
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.plots import style
from icrl_lab.plots.words import sampled
from icrl_lab.stats.words import estimate, tested

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

SHAPES = {  # a control's colour stays; a cell that is cut is an open shape, a placebo's a crossed one
    "any": (style.GREY, "circle"),
    "text": (style.GREY, "square"),
    **style.CONTROLS,
}
BLOCKS = (  # (heading, controls, cuts)
    ("content", ("real", "shuffled"), ("nothing",)),
    ("place", ("noise", "shared", "zero", "dummy"), ("nothing",)),
    ("slots cut", ("any",), ("slots",)),
    ("query's slot cut", ("real", "shuffled", "noise", "shared", "zero"), ("query's slot",)),
    ("placebo cut", ("real",), ("placebo of slots", "placebo of query's slot")),
    ("text", ("text",), ("nothing",)),
)
KINDS = {"content": (style.BLUE, "circle"), "place": (style.VERMILLION, "diamond"), "text": (style.GREY, "square")}
SKILL = {"pearson": "Pearson r of answer and target", "accuracy": "accuracy"}


def figure(reading: Reading) -> go.Figure:
    """Skill of every cell, without and with text; the verdicts in the title."""
    go = style.graph_objects()
    data = reading.data
    made, y, ticks = go.Figure(), 0.0, []
    for text in _halves(data):
        word = "with text" if text else "without text"
        made.add_annotation(
            x=0, xref="paper", y=y, text=f"<b>{word}</b>", showarrow=False, xanchor="left", font_size=13
        )
        y -= 1
        for heading, controls, cuts in BLOCKS:
            rows = [i for c in controls for cut in cuts for i in _rows(data, text, c, cut)]
            for place, i in enumerate(rows):
                _dot(made, data, i, y)
                ticks.append((y, _label(data, i, heading, place)))
                y -= 1
            y -= 0.35 * bool(rows)
        y -= 0.25
    made.update_yaxes(
        tickvals=[t for t, _ in ticks], ticktext=[name for _, name in ticks], range=[y + 0.4, 0.9], showgrid=False, zeroline=False,
    )  # fmt: skip
    made.add_vline(x=0, line={"color": style.LINE, "width": 1.2}, layer="below")
    about = reading.about
    made.update_xaxes(title=SKILL[about["metric"]], range=_reach(data, "skill", 0.6), title_standoff=8, zeroline=False)
    words = f"{_which(about)}. n = {about['n']}; bars are 95 % intervals over {sampled(about)}. Open shapes: slots no later token sees; crossed: as many other tokens."
    return style.finish(made, _title(data), words, int(19 * -y) + 24)


def differences(reading: Reading) -> go.Figure:
    """The paired differences of skill that the verdicts rest on; the band is the margin within which one counts as none."""
    go = style.graph_objects()
    data, about = reading.data, reading.about
    made, names = go.Figure(), []
    order = np.argsort(data["of_text"].values, kind="stable")
    made.add_vrect(
        x0=-about["margin"], x1=about["margin"], fillcolor="rgba(128,128,128,0.22)", line_width=0, layer="below"
    )
    made.add_vline(x=0, line={"color": style.LINE, "width": 1.4}, layer="below")
    for place, i in enumerate(order):
        kind, q = str(data["kind"].values[i]), float(data["difference_q"].values[i])
        look = KINDS[kind]
        p = tested(q, "p")
        name = str(data["comparison"].values[i])
        _mark(made, (data, "difference", i), -float(place), look, f"{name}<br>{kind}, {tested(q)}")
        made.add_annotation(
            x=1, xref="paper", y=-place, text=p, showarrow=False, xanchor="right", yshift=11, font={"size": 11}
        )
        names.append(
            f"{style.safe(name.removesuffix(', with text').removesuffix(', without text'), 44)}<br><i>{kind}, {_word(data, i)}</i>"
        )
    made.update_yaxes(
        tickvals=[-float(p) for p in range(len(order))], ticktext=names, range=[0.6 - len(order), 0.7], showgrid=False, zeroline=False,
    )  # fmt: skip
    metric = {"pearson": "Pearson r", "accuracy": "accuracy"}[about["metric"]]
    made.update_xaxes(
        title=f"difference of {metric}", range=_reach(data, "difference", 0.4), title_standoff=8, zeroline=False
    )
    words = (
        f"{_which(about)}. n = {about['n']}, paired; bars are 95 % intervals over {sampled(about)}; p corrected over each half (Holm). "
        f"The band is ±{about['margin']:g}: a difference whose whole interval lies in it counts as none."
    )
    return style.finish(made, "Content, place and text: what the verdicts rest on", words, 46 * len(order) + 20)


def movements(reading: Reading) -> go.Figure:
    """How far an answer moves when tokens are cut off: the slots, and as many tokens of the frame."""
    go = style.graph_objects()
    data, about = reading.data, reading.about
    made, ticks = go.Figure(), []
    looks = (("moved", "slots", (style.BLUE, "circle-open")), ("placebo", "placebo", (style.GREY, "x")))
    for i, name in enumerate(data["removal"].values.tolist()):
        for k, (array, what, look) in enumerate(looks):
            _mark(made, (data, array, i), -float(i) - 0.3 * k, look, f"{name}: {what}")
            made.data[-1].update(
                name="the slots are cut off" if k == 0 else "as many tokens of the frame are", showlegend=i == 0
            )
        p = tested(float(data["extra_q"].values[i]), "p")
        ticks.append(f"{style.safe(name, 40)}<br><i>difference: {p}</i>")
    made.update_yaxes(
        tickvals=[-i - 0.15 for i in range(len(ticks))], ticktext=ticks, range=[0.35 - len(ticks), 0.5], showgrid=False, zeroline=False,
    )  # fmt: skip
    units = f" [{style.safe(about['units'])}]" if about.get("units") else ""
    made.update_xaxes(title=f"mean absolute change of the answer{units}", rangemode="tozero", title_standoff=8)
    words = f"{_which(about)}, real vectors. n = {about['n']}; bars are 95 % intervals over {sampled(about)}; p corrected over the rows (Holm)."
    return style.finish(made, "How far a cut moves an answer", words, 56 * len(ticks) + 20, 1)


def figures(reading: Reading) -> dict[str, go.Figure]:
    """All figures of the reading, the main one first; without movements where nothing could be cut."""
    out = {"pause": figure(reading), "differences": differences(reading)}
    return out | ({"movements": movements(reading)} if "moved" in reading.data else {})


# ------------------------------------------------------------------------------------------------ marks and words


def _halves(data: xr.Dataset) -> list[bool]:
    return sorted({bool(t) for t in data["text"].values})


def _rows(data: xr.Dataset, text: bool, control: str, cut: str) -> list[int]:
    mask = (data["text"].values == text) & (data["control"].values == control) & (data["cut"].values == cut)
    return np.flatnonzero(mask).tolist()


def _label(data: xr.Dataset, i: int, heading: str, place: int) -> str:
    control, cut = str(data["control"].values[i]), str(data["cut"].values[i])
    name = {"any": "any vector", "text": "text alone"}.get(control, control)
    if cut.startswith("placebo"):
        name += f", {cut.removeprefix('placebo ')}"
    return (f"<i>{heading}</i>: " if place == 0 and control != "text" else "") + style.safe(name, 40)


def _dot(made: go.Figure, data: xr.Dataset, i: int, y: float) -> None:
    colour, shape = SHAPES.get(str(data["control"].values[i]), (style.GREY, "circle"))
    cut = str(data["cut"].values[i])
    shape = shape if cut == "nothing" else "circle-x-open" if cut.startswith("placebo") else f"{shape}-open"
    _mark(made, (data, "skill", i), y, (colour, shape), str(data["cell"].values[i]))


def _mark(made: go.Figure, what: tuple[xr.Dataset, str, int], y: float, look: Sequence[str], name: str) -> None:
    """One estimate with its interval; an interval that is not known has no bar."""
    data, array, i = what
    value, low, high = (float(data[f"{array}{tail}"].values[i]) for tail in ("", "_low", "_high"))
    reach: dict[str, Any] = {"array": [high - value], "arrayminus": [value - low]}
    lines = "<br>".join(style.safe(line) for line in name.split("<br>"))
    made.add_trace(
        style.graph_objects().Scatter(
            x=[value], y=[y], mode="markers", showlegend=False,
            marker={"color": look[0], "symbol": look[1], "size": 9, "line": {"width": 1.6, "color": look[0]}},
            error_x={**reach, "color": look[0], "thickness": 1.5, "width": 3},
            hovertemplate=f"<b>{lines}</b><br>{estimate(value, low, high)}<extra></extra>",
        )
    )  # fmt: skip


def _reach(data: xr.Dataset, name: str, least: float) -> list[float]:
    """All estimates, and their intervals as far as they do not crush them; zero stands in it."""
    value = data[name].values
    low, high = np.nan_to_num(data[f"{name}_low"].values), np.nan_to_num(data[f"{name}_high"].values)
    bottom, top = min(-0.2, value.min()), max(least, value.max())
    wide = top - bottom
    bottom, top = min(bottom, max(low.min(), bottom - wide)), max(top, min(high.max(), top + wide))
    pad = 0.04 * (top - bottom)
    return [bottom - pad, top + pad]


def _title(data: xr.Dataset) -> str:
    return "; ".join(f"{h.capitalize() if i == 0 else h}: {v}" for i, (h, v) in enumerate(zip(data["half"].values.tolist(), data["verdict"].values.tolist())))  # fmt: skip


def _word(data: xr.Dataset, i: int) -> str:
    return "with text" if bool(data["of_text"].values[i]) else "without text"


def _which(about: Any) -> str:
    return f"{about['task']}, {about['arm']}, {about['llm']}"
