"""A saved reading as a view: what it says, its figures one at a time, and what it cannot show.

Every question has this view; a question whose figures can be clicked to move the selection says how in `CLICKS`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from icrl_lab.widgets.base import View, clicked, guarded, redraw
from icrl_lab.widgets.figure import figure_widget

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.values import Reading
    from icrl_lab.widgets.selection import Selection


def _block_and_head(selection: Selection, x: Any, y: Any) -> None:
    selection.layer, selection.head = int(x), int(y)


def _depth(selection: Selection, x: Any, y: Any) -> None:
    selection.layer = int(x)


# how a click at (x, y) of a question's heat map moves the selection
CLICKS: Mapping[str, Callable[[Selection, Any, Any], None]] = {"attention": _block_and_head, "patching": _depth}


class ReadingView(View):
    """One reading. `shown` names the figure that is shown; a click on a heat map moves the page's selection."""

    def __init__(self, reading: Reading, selection: Selection, **layout: Any) -> None:
        self.reading = reading
        self.title = reading.question.capitalize()
        super().__init__(selection, **layout)
        self.drawn = dict(import_module(f"icrl_lab.plots.{reading.question}").figures(reading))
        names = list(self.drawn)
        self.shown = w.Dropdown(options=names, value=names[0], description="figure")
        self.shown.observe(self._chosen, "value")
        self.figure = figure_widget(self.drawn[names[0]])
        self._listen()
        says, limits = (_sentences(reading.about.get(key, ())) for key in ("says", "limits"))
        about = ", ".join(str(reading.about[k]) for k in ("arm", "n", "interval") if reading.about.get(k))
        small = f"<details><summary>what this cannot show, and how it was measured</summary>{limits}<p>{html.escape(about)}</p></details>"
        self.body.children = [w.HTML(says), self.shown, self.figure, w.HTML(small)]

    def figures(self) -> Sequence[go.Figure]:
        return tuple(self.drawn.values())

    def _listen(self) -> None:
        if self.reading.question in CLICKS:
            for trace in self.figure.data:
                if trace.type == "heatmap":
                    trace.on_click(self._clicked)

    @guarded
    def _chosen(self, change: Any) -> None:
        if redraw(self.figure, self.drawn[change.new]):
            self._listen()

    @clicked
    def _clicked(self, trace: Any, points: Any, state: Any) -> None:
        CLICKS[self.reading.question](self.selection, points.xs[0], points.ys[0])


def _sentences(sentences: Sequence[Any]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(str(s))}</li>" for s in sentences) + "</ul>" if sentences else ""
