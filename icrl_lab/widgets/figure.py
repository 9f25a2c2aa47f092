"""Figures that share one copy of plotly in the browser.

A plotly FigureWidget sends the whole library, five megabytes, with each figure, and the browser parses it each time. Here it is
sent once a kernel, by `Library`, and every figure on the page waits for that one: a page with six figures paints several times
sooner. What a figure does is plotly's own code, unchanged.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets as t

from icrl_lab.plots import style

if TYPE_CHECKING:
    import plotly.graph_objects as go

HERE = Path(__file__).parent


class Library(anywidget.AnyWidget):
    """plotly's own widget code, sent to the browser once, and the page's colour for the text of figures."""

    _esm = HERE / "figure.js"
    _css = HERE / "figure.css"
    _model_role = t.Unicode("library").tag(sync=True)
    code = t.Unicode().tag(sync=True)


@lru_cache(maxsize=1)
def _library() -> Library:
    """The one of this kernel."""
    import plotly

    bundle = Path(plotly.__file__).parent / "package_data" / "widgetbundle.js"
    return Library(code=bundle.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _figure_class() -> Any:
    class Figure(style.graph_objects().FigureWidget):  # type: ignore[misc]
        _esm = HERE / "figure.js"
        _model_role = t.Unicode("figure").tag(sync=True)

    return Figure


def figure_widget(figure: go.Figure) -> Any:
    """A figure as a widget: a plotly.graph_objects.FigureWidget in all but where the browser finds plotly."""
    _library()
    return _figure_class()(figure)
