"""Figures of one query asked again: each answer with its predictive interval, beside noise and what the shots say by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from icrl_lab.plots import style
from icrl_lab.plots.beside import LOOKS, NAMES

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.probes.live import Answered


class Row(NamedTuple):
    """One answer: what it is called, who gave it, its value, and the ends of its interval (NaN: none)."""

    name: str
    who: str
    value: float
    low: float = float("nan")
    high: float = float("nan")


def answers(before: Mapping[str, Answered], now: Mapping[str, Answered], truth: Any, caption: str) -> go.Figure:
    """Each control's answer as it was and as it is now, then the simple predictors on the shots as they are now.

    Of numbers: the expected value with the 0.05 to 0.95 quantiles of the predictive distribution; of classes: the probability of
    each, which is one for the class that a simple predictor names.
    """
    first = next(iter(now.values()))
    if np.isfinite(first.interval[0]):
        rows = []
        for control in now:
            for when, held in (("as it was", before), ("now", now)):
                if control in held:
                    found = held[control]
                    rows.append(Row(f"{_called(found)}, {when}", control, found.outcome, *found.interval))
        rows += [Row(NAMES.get(n, n), n, float(v)) for n, v in first.simple.items()]
        words = f"{caption} Bars: 0.05 to 0.95 quantiles of the predictive distribution, no error of the estimate."
        return strip(rows, truth, first.units, "What the model answers", words)
    return chances(before, now, truth, caption)


def _called(found: Answered) -> str:
    """The control, or of an arm of text the text."""
    return NAMES["text"] if found.arm == "text" else NAMES.get(found.control, found.control)


def strip(rows: Sequence[Row], truth: float | None, units: str, title: str, caption: str) -> go.Figure:
    """Answers below one another on one axis, with the true value as a line; an answer as it was is an open mark."""
    go = style.graph_objects()
    made = go.Figure()
    for place, row in enumerate(rows):
        colour, shape = LOOKS.get(row.who, style.look(row.who))
        old = row.name.endswith("as it was")
        bar = np.isfinite(row.low)
        reach = {"array": [row.high - row.value], "arrayminus": [row.value - row.low]} if bar else {"array": None}
        told = f" [{row.low:.3g}, {row.high:.3g}]" if bar else ""
        made.add_scatter(
            x=[row.value], y=[-place], mode="markers", showlegend=False,
            error_x={**reach, "color": colour, "thickness": 1.2 if old else 2.2, "width": 5},
            marker={"color": colour, "symbol": f"{shape}-open" if old and not shape.endswith("-open") else shape, "size": 11, "line": {"width": 1.6, "color": colour}},
            hovertemplate=f"<b>{style.safe(row.name)}</b><br>{row.value:.3g}{told} {style.safe(units, 24)}<extra></extra>",
        )  # fmt: skip
    if truth is not None:
        made.add_scatter(
            x=[truth, truth], y=[0.6, -len(rows) + 0.4], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": style.ORANGE, "dash": "dash", "width": 1.6},
        )  # fmt: skip
        made.add_annotation(
            x=truth, y=0.85, text="true value", showarrow=False, font={"size": 11, "color": style.ORANGE}
        )
    made.update_yaxes(
        tickvals=[-i for i in range(len(rows))], ticktext=[style.safe(r.name, 44) for r in rows], zeroline=False, showgrid=False,
        range=[-len(rows) + 0.3, 1.2],
    )  # fmt: skip
    made.update_xaxes(title=style.safe(units, 40), title_standoff=6, zeroline=False)
    return style.finish(made, title, caption, 30 * len(rows) + 40)


def chances(before: Mapping[str, Answered], now: Mapping[str, Answered], truth: Any, caption: str) -> go.Figure:
    """The probability of each class, a row of marks for each answer; the true class is named."""
    go = style.graph_objects()
    made = go.Figure()
    rows: list[str] = []
    first = next(iter(now.values()))
    options = first.said.options  # type: ignore[union-attr]
    held = [(f"{_called(of[c])}, {when}", c, of[c].said.probs) for c in now for when, of in (("as it was", before), ("now", now)) if c in of]  # fmt: skip
    held += [(NAMES.get(n, n), n, np.array([float(o == v) for o in options])) for n, v in first.simple.items()]
    for name, who, probs in held:
        for number, option in enumerate(options):
            colour = style.COLOURS[number % len(style.COLOURS)]
            made.add_scatter(
                x=[float(probs[number])], y=[-len(rows)], mode="markers", name=style.safe(option, 30), legendgroup=str(number),
                showlegend=not rows,
                marker={"color": colour, "symbol": style.SHAPES[number % len(style.SHAPES)] + ("-open" if who in first.simple or name.endswith("as it was") else ""), "size": 11, "line": {"width": 1.6, "color": colour}},
                hovertemplate=f"<b>{style.safe(name)}</b><br>{style.safe(option)}: %{{x:.3f}}<extra></extra>",
            )  # fmt: skip
        rows.append(name)
    made.update_yaxes(
        tickvals=[-i for i in range(len(rows))], ticktext=[style.safe(r, 44) for r in rows], zeroline=False, range=[-len(rows) + 0.4, 0.6],
    )  # fmt: skip
    made.update_xaxes(title="probability", title_standoff=6, range=[-0.03, 1.03], zeroline=False)
    words = f"{caption} The true class is {truth}." if truth is not None else caption
    return style.finish(made, "What the model answers", words, 30 * len(rows) + 30, -(-len(options) // 2))
