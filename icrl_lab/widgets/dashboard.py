"""One page for a run: what the study found, and every question that was asked of the model, with one selection."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from icrl_lab.widgets.base import WRAPPED, View, guarded
from icrl_lab.widgets.selection import Selection, sizes_of
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
    """The dashboard of a run, stored or live. A view is built when its tab is opened for the first time."""

    def __init__(self, result: StudyResult, selection: Selection | None = None, **layout: Any) -> None:
        self.result = result
        about = result.manifest["task"]
        self.title = f"{about.get('name', 'run')}: does the model use the vectors?"
        self.readings = result.readings()
        sizes: dict[str, int] = next(filter(None, map(sizes_of, self.readings.values())), {})
        super().__init__(selection or Selection(result, **sizes), **layout)
        self.study = StudyView(result, self.selection)
        self.views: dict[str, View] = {}
        self.where = w.HTML()
        live = ["order", "similarity"] if result.study is not None else []  # these two ask the model themselves
        self.names = ["prompt", *dict.fromkeys([*self.readings, *live])]
        self.tabs = w.Tab(children=[w.VBox() for _ in self.names], titles=self.names)
        self.tabs.observe(self._opened, "selected_index")
        self.selection.observe(self._moved_to)
        self._moved_to(None)
        none = (
            "No question was asked of this run's model: add [probes] to its study file, and run it again with --resume."
        )
        more = [] if self.readings else [w.HTML(f"<p>{none}</p>")]
        self.body.children = [
            w.HTML(STYLE), self.where, self.study, w.HTML("<h3>Inside the model</h3>"), *more, self.tabs,
        ]  # fmt: skip
        self.tabs.selected_index = 0
        self._build(0)

    @classmethod
    def of_run(cls, folder: str | os.PathLike, *, live: bool = False) -> Dashboard:
        """The dashboard of a run folder; live: with its model, see `open_run`."""
        from icrl_lab.studies import open_run

        return cls(open_run(folder, live=live, progress=False))

    def figures(self) -> Sequence[go.Figure]:
        return self.study.figures()

    def close(self) -> None:
        for view in (self.study, *self.views.values()):
            view.close()  # they follow the selection, too, and one may be asking the model
        with suppress(ValueError):
            self.selection.unobserve(self._moved_to)
        super().close()

    @guarded
    def _opened(self, change: Any) -> None:
        if change.new is not None:
            self._build(change.new)

    def _build(self, place: int) -> None:
        name = self.names[place]
        if name not in self.views:
            self.views[name] = view_of(name, self.result, self.readings.get(name), self.selection)
            self.tabs.children[place].children = [self.views[name]]

    def _moved_to(self, change: Any) -> None:
        s = self.selection
        told = {"arm": s.arm, "control": s.control, "query": s.query, "layer": s.layer, "head": s.head}
        told |= {"shot": s.shot + 1} if s.shot >= 0 else {}
        told |= {"item": s.item} if s.item else {}
        told |= {"items": len(s.items)} if s.items else {}
        words = ", ".join(f"{name} <b>{html.escape(str(value))}</b>" for name, value in told.items())
        self.where.value = f'<div role="status" aria-live="polite" style="{WRAPPED}">selected: {words}</div>'


def view_of(name: str, result: StudyResult, reading: Any, selection: Selection) -> View:
    """The view of a question of a run, or of its prompts; `reading` is None where the run has none."""
    match name:
        case "prompt":
            from icrl_lab.widgets.prompt import PromptView

            return PromptView(result, selection)
        case "order":
            from icrl_lab.widgets.order import OrderView

            return OrderView(result, selection)
        case "similarity":
            from icrl_lab.widgets.similarity import SimilarityView

            return SimilarityView(result, selection)
    return view_of_reading(reading, selection, result)


def view_of_reading(reading: Any, selection: Selection | None = None, result: StudyResult | None = None) -> View:
    """The view of a reading. A question without a view of its own, or one that needs its run, has that of any reading."""
    selection = selection or Selection.of_reading(reading)
    match reading.question:
        case "attention":
            from icrl_lab.widgets.attention import AttentionView

            return AttentionView(reading, selection)
        case "geometry":
            from icrl_lab.widgets.geometry import GeometryView

            return GeometryView(reading, selection, result)
        case "patching":
            from icrl_lab.widgets.patching import PatchingView

            return PatchingView(reading, selection)
    from icrl_lab.widgets.reading import ReadingView

    return ReadingView(reading, selection)
