"""One page for a run: what the study found, and every question that was asked of the model, with one selection."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from icrl_lab.widgets.base import View
from icrl_lab.widgets.reading import ReadingView
from icrl_lab.widgets.selection import Selection
from icrl_lab.widgets.study import StudyView

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.studies import StudyResult

STYLE = """<style>
.icrl-view { margin: .4rem 0 1rem; } .icrl-title { margin: .3rem 0; font-size: 1.1rem; }
.icrl-message [role=alert] { border-left: 4px solid #D55E00; padding: .3rem .7rem; }
.icrl-view :focus-visible { outline: 2px solid #0072B2; outline-offset: 2px; }
</style>"""


class Dashboard(View):
    """The dashboard of a run, stored or live. Readings are built when their tab is opened for the first time."""

    def __init__(self, result: StudyResult, selection: Selection | None = None, **layout: Any) -> None:
        self.result = result
        about = result.manifest["task"]
        self.title = f"{about.get('name', 'run')}: does the model use the vectors?"
        self.readings = result.readings()
        sizes = _sizes(self.readings)
        super().__init__(selection or Selection(result, **sizes), **layout)
        self.study = StudyView(result, self.selection)
        self.views: dict[str, ReadingView] = {}
        self.where = w.HTML()
        self.tabs = w.Tab(children=[w.VBox() for _ in self.readings])
        for place, question in enumerate(self.readings):
            self.tabs.set_title(place, question)
        self.tabs.observe(self._opened, "selected_index")
        self.selection.observe(self._moved_to)
        self._moved_to(None)
        none = (
            "No question was asked of this run's model: add [probes] to its study file, and run it again with --resume."
        )
        inside = self.tabs if self.readings else w.HTML(f"<p>{none}</p>")
        self.body.children = [w.HTML(STYLE), self.where, self.study, w.HTML("<h3>Inside the model</h3>"), inside]
        if self.readings:
            self.tabs.selected_index = 0
            self._build(0)

    @classmethod
    def of_run(cls, folder: str | os.PathLike, *, live: bool = False) -> Dashboard:
        """The dashboard of a run folder; live: with its model, see `open_run`."""
        from icrl_lab.studies import open_run

        return cls(open_run(folder, live=live, progress=False))

    def figures(self) -> Sequence[go.Figure]:
        return self.study.figures()

    def _opened(self, change: Any) -> None:
        if change.new is not None:
            self._build(change.new)

    def _build(self, place: int) -> None:
        question = list(self.readings)[place]
        if question not in self.views:
            self.views[question] = ReadingView(self.readings[question], self.selection)
            self.tabs.children[place].children = [self.views[question]]

    def _moved_to(self, change: Any) -> None:
        s = self.selection
        told = {"arm": s.arm, "control": s.control, "query": s.query, "layer": s.layer, "head": s.head}
        words = ", ".join(f"{name} <b>{html.escape(str(value))}</b>" for name, value in told.items())
        self.where.value = f'<div role="status" aria-live="polite">selected: {words}</div>'


def _sizes(readings: dict[str, Any]) -> dict[str, int]:
    """Blocks and heads of the run's model, where a reading says so."""
    for reading in readings.values():
        sizes = reading.data.sizes
        if "layer" in sizes and "head" in sizes:
            return {"layers": int(sizes["layer"]), "heads": int(sizes["head"])}
    return {}
