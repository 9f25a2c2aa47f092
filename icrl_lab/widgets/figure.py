"""Figures that share one copy of plotly in the browser.

A plotly FigureWidget sends the whole library, five megabytes, with each figure, and the browser parses it each time. Here it is
sent once a kernel, by `Library`, and every figure on the page waits for that one: a page with six figures paints several times
sooner. What a figure does is plotly's own code, unchanged.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from math import isfinite
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


def _sayable(held: Any) -> Any:
    """A message with None for what is no number: plotly sends tables as lists, and JSON has no word for NaN."""
    if isinstance(held, dict):
        return {key: _sayable(value) for key, value in held.items()}
    if isinstance(held, (list, tuple)):
        return [_sayable(value) for value in held]
    return None if isinstance(held, float) and not isfinite(held) else held


@contextmanager
def _without(name: str) -> Iterator[None]:
    """An optional module that is not loaded yet is taken for missing."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@lru_cache(maxsize=1)
def _figure_class() -> Any:
    # plotly's widget brings nbformat, that jsonschema, and that a checker of addresses in any script, which builds 38 grammars when it
    # is imported: seconds of a page's first paint for a check that no notebook asks for
    with _without("rfc3987_syntax"):
        widget = style.graph_objects().FigureWidget

    class Figure(widget):  # type: ignore[misc, valid-type]
        _esm = HERE / "figure.js"
        _model_role = t.Unicode("figure").tag(sync=True)

        def _send(self, msg: Any, buffers: Any = None) -> None:
            super()._send(_sayable(msg), buffers)

        def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
            """With the figure as it is now: a page that is loaded again asks for it, and plotly would give it as it was made."""
            state = super().get_state(key, drop_defaults)
            if key is not None or "_layout_obj" not in self.__dict__:  # being made
                return _sayable(state)
            now = {"_widget_layout": self._layout_obj._props, "_widget_data": self._data}
            for name in now:
                as_json = self.trait_metadata(name, "to_json", self._trait_to_json)
                state[name] = as_json(deepcopy(now[name]), self)
            return _sayable(state)  # such an answer does not pass `_send`

    return Figure


def figure_widget(figure: go.Figure) -> Any:
    """A figure as a widget: a plotly.graph_objects.FigureWidget in all but where the browser finds plotly."""
    _library()
    return _figure_class()(figure)
