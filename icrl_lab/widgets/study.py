"""What a study found: arms and controls with their intervals, predicted against measured, the items with the largest errors."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np

from icrl_lab.plots import study as plots
from icrl_lab.plots import style
from icrl_lab.studies.result import counted
from icrl_lab.widgets.base import View, card, clicked, digits, guarded, redraw
from icrl_lab.widgets.figure import figure_widget
from icrl_lab.widgets.selection import Selection

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from icrl_lab.studies import StudyResult

WORST = 8


class StudyView(View):
    """The study of a run. Choosing an arm and a control moves every view of the page, a condition what is shown here; a click on a
    point pins its item."""

    title = "What the study found"
    follows = ("arm", "control", "query", "items")

    def __init__(self, result: StudyResult, selection: Selection | None = None, **layout: Any) -> None:
        super().__init__(selection or Selection(result), **layout)
        self.result = result
        self.units, self.property = (str(result.manifest["task"].get(k, "")) for k in ("units", "property"))
        self.summary = result.summary()
        self.summaries = dict(plots.conditions(self.summary))
        first = next(iter(self.summaries.values()))
        shown = [m for m in plots.METRICS if m in first]
        self.metric = w.Dropdown(options=[(plots.METRICS[m], m) for m in shown], description="metric")
        self.condition = w.Dropdown(
            options=[(words or "all", words) for words in self.summaries], description="condition"
        )
        self.arm = w.Dropdown(options=self.selection.arms, value=self.selection.arm, description="arm")
        self.control = w.Dropdown(options=self.selection.controls, value=self.selection.control, description="control")
        for box in (self.metric, self.condition):
            box.observe(self._filtered, "value")
        for name in ("arm", "control"):
            getattr(self, name).observe(self._chosen, "value")
        self.arms_figure, self.parity_figure = figure_widget(self._arms()), figure_widget(self._parity())
        self._listen()
        whole = {"description_width": "initial"}  # else cut to what fits into 80 px
        self.errors = w.Select(
            options=(), rows=WORST, description="largest errors", style=whole, layout={"width": "420px"}
        )
        self.errors.observe(self._picked, "value")
        self.item = w.HTML()
        many = len(self.summaries) > 1
        self.body.children = [
            w.HBox(
                [self.metric, *([self.condition] if many else []), self.arm, self.control], layout={"flex_flow": "wrap"}
            ),
            self.arms_figure,
            w.HBox([self.parity_figure, w.VBox([self.errors, self.item])], layout={"flex_flow": "wrap"}),
        ]
        self.refresh()

    # ------------------------------------------------------------------------------------ what is shown

    def figures(self) -> Sequence[go.Figure]:
        return self._arms(), self._parity()

    def _arms(self) -> go.Figure:
        table = self.summaries[self.condition.value]
        return plots.arms(table, self.result.baselines(), self.metric.value, self.units, self.condition.value)

    def cell(self) -> tuple[str, pd.Series | None]:
        """The summary of the arm and control in the chosen condition, and in words what sets it apart from their other cells; None
        for what was never asked."""
        table, s = self.summary, self.selection
        mine = table[(table["arm"] == s.arm) & (table["control"] == s.control)]
        for words, rows in plots.conditions(mine):
            there = rows[rows.index.isin(self.summaries[self.condition.value].index)]
            if len(there):
                return words, there.iloc[0]
        return "", None

    def rows(self) -> pd.DataFrame:
        """The predictions that are shown: those of the selection in the chosen condition."""
        frame, (_, cell) = self.selection.to_dataframe(), self.cell()
        if cell is None:
            return frame.iloc[:0]
        return frame[np.all([frame[c] == cell[c] for c in plots.CONDITIONS if c in cell], axis=0)]

    def missing(self) -> str:
        """Why there is nothing to show of the selection, in a sentence; "" where there is something."""
        s, table = self.selection, self.summary
        if self.cell()[1] is None:
            elsewhere = ((table["arm"] == s.arm) & (table["control"] == s.control)).any()
            where = f", {self.condition.value}" if elsewhere else ""
            return f"{s.arm} was not asked under {s.control}{where}."
        return "" if len(self.rows()) else "None of the selected items was asked about."

    def _parity(self) -> go.Figure:
        rows = self.rows()
        title = ", ".join(filter(None, [self.selection.arm, self.selection.control, self.cell()[0]]))
        if not len(rows):
            bare = {"xaxis": {"visible": False}, "yaxis": {"visible": False}}
            return style.finish(style.graph_objects().Figure(layout=bare), title, self.missing(), 60)
        if ("accuracy" in self.metric.options and len(self.metric.options) == 1) or rows[
            "target"
        ].dtype.kind not in "fi":
            return plots.confusion(rows, title)
        figure = plots.parity(rows, self.units, self.property, title)
        mine = rows[rows["item"] == self.selection.query]
        if len(mine):
            ring = {"size": 15, "color": style.VERMILLION, "symbol": "circle-open", "line": {"width": 2}}
            point = mine[["target", "prediction"]].astype(float).mean()
            figure.add_scatter(
                x=[point["target"]], y=[point["prediction"]], mode="markers", marker=ring, hoverinfo="skip"
            )
        return figure

    def refresh(self) -> None:
        for box in (self.arm, self.control):
            box.value = getattr(self.selection, box.description)
        if redraw(self.parity_figure, self._parity()):
            self._listen()
        if not len(self.rows()):
            self.say(self.missing())
        self._list_errors()
        self.item.value = card(self.result, self.selection.query, self.rows(), self.units)

    def _list_errors(self) -> None:
        rows = counted(self.rows())
        number, form = rows["target"].dtype.kind in "fi", digits(self.result)
        differ = rows["target"].astype(str) != rows["prediction"].astype(str)
        each = ((rows["prediction"] - rows["target"]).abs() if number else differ).groupby(rows["item"], sort=False)
        wrong = each.mean() if number else each.sum()
        lost = rows["failed"].groupby(rows["item"]).agg(["sum", "size"])
        options = []
        for item, value in wrong[wrong > 0].sort_values(ascending=False, kind="stable").head(WORST).items():
            words = f"off by {value:{form}} {self.units}" if number else f"wrong in {value} seeds"
            failed, of = lost.loc[item]
            options.append((f"{item}: {words}" + (f", failed in {failed} of {of} seeds" if failed else ""), item))
        self.errors.unobserve(self._picked, "value")  # a list that is made anew has not been clicked
        self.errors.options = options
        self.errors.value = self.selection.query if self.selection.query in dict(options).values() else None
        self.errors.observe(self._picked, "value")

    # ------------------------------------------------------------------------------------ what is clicked

    def _listen(self) -> None:
        """A click on a large point of the parity plot pins its item."""
        for trace in self.parity_figure.data:
            if trace.ids is not None:
                trace.on_click(self._clicked)

    @guarded
    def _filtered(self, change: Any) -> None:
        redraw(self.arms_figure, self._arms())
        self.refresh()

    @guarded
    def _chosen(self, change: Any) -> None:
        setattr(self.selection, change.owner.description, change.new)

    @guarded
    def _picked(self, change: Any) -> None:
        if change.new:
            self.selection.query = change.new

    @clicked
    def _clicked(self, trace: Any, points: Any, state: Any) -> None:
        self.selection.query = html.unescape(trace.ids[points.point_inds[0]])
