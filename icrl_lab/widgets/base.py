"""What every view has: a title, a place for messages, figures that are redrawn in place, a plain picture where nothing runs."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from icrl_lab.errors import IcrlError
from icrl_lab.studies.result import counted

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from icrl_lab.studies import StudyResult
    from icrl_lab.widgets.selection import Selection

WRAPPED = "overflow-wrap:anywhere"  # an item may be called by a text of hundreds of letters without a space


def _caught(callback: Callable[..., Any], clears: bool) -> Callable[..., Any]:
    @functools.wraps(callback)
    def safe(self: View, *args: Any, **kwargs: Any) -> Any:
        if clears:
            self.say("")  # before, and not after: a callback that this one sets off may have something to say
        try:
            return callback(self, *args, **kwargs)
        except Exception as error:  # whatever it is, the person who clicked must see it
            self.complain(error)
            return None

    return safe


def guarded(callback: Callable[..., Any]) -> Callable[..., Any]:
    """A callback of a view: an error is shown in the view and does not break the page."""
    return _caught(callback, clears=True)


def quietly(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The same for what only looks, such as pointing: it takes no message away."""
    return _caught(callback, clears=False)


def clicked(callback: Callable[..., Any]) -> Callable[..., Any]:
    """What a click on a trace's points does; guarded.

    At each click plotly calls the handlers of every trace, with no points for those that were not hit: then nothing happens, and
    what another handler said stays.
    """
    return _hit(_caught(callback, clears=True))


def pointed(callback: Callable[..., Any]) -> Callable[..., Any]:
    """The same for pointing at a trace's points, and for leaving them; quietly."""
    return _hit(quietly(callback))


def _hit(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def only(self: View, trace: Any, points: Any, state: Any) -> Any:
        return callback(self, trace, points, state) if points.point_inds else None

    return only


class View(w.VBox):
    """A view of one selection. A subclass fills `self.body` and overrides `figures` and, to follow the selection, `refresh`.

    follows  names of the selection's traits after which the view is redrawn
    """

    title = ""
    follows: tuple[str, ...] = ()

    def __init__(self, selection: Selection, **layout: Any) -> None:
        self.selection = selection
        self.heading = w.HTML(f'<h3 class="icrl-title">{html.escape(self.title)}</h3>')
        self.message = w.HTML("")
        self.message.add_class("icrl-message")
        self.body = w.VBox()
        super().__init__([self.heading, self.message, self.body], **layout)
        self.add_class("icrl-view")
        if self.follows:
            selection.observe(self._moved, list(self.follows))

    def figures(self) -> Sequence[go.Figure]:
        """The view as plain figures, for the selection as it is."""
        return ()

    def refresh(self) -> None:
        """Redraw for the selection as it is."""

    @guarded
    def _moved(self, change: Any) -> None:
        self.refresh()

    def say(self, sentence: str, error: bool = False) -> None:
        """A message above the view; "" takes it away. It is read aloud by a screen reader."""
        role = "alert" if error else "status"
        told = f'<div role="{role}" aria-live="polite" style="{WRAPPED}">{html.escape(sentence)}</div>'
        self.message.value = told if sentence else ""

    def complain(self, error: BaseException) -> None:
        """Show an error in one sentence."""
        known = isinstance(error, IcrlError) or type(error).__name__ == "TraitError"
        self.say(str(error) if known else f"{type(error).__name__}: {error}", error=True)

    def close(self) -> None:
        """Leave the selection and the page; a second time does nothing."""
        with suppress(ValueError):  # it has left: ipywidgets closes a widget again when nobody holds it any more
            if self.follows:
                self.selection.unobserve(self._moved, list(self.follows))
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None:
            try:
                data["text/html"] = self.static()
            except Exception as error:  # the view itself is whole, and matters more than its still
                words = html.escape(f"{type(error).__name__}: {error}")
                data["text/html"] = f"<p>A picture of this view where nothing runs could not be drawn ({words}).</p>"
        return bundle

    def static(self) -> str:
        """The view as HTML in which nothing runs: its title and plain pictures of its figures."""
        from icrl_lab.plots.svg import svg

        pictures = "".join(svg(figure) for figure in self.figures())
        return f"<div><h3>{html.escape(self.title)}</h3>{pictures}</div>"


def digits(result: StudyResult, decimals: int = 2) -> str:
    """The format of numbers in a run's units: so many decimals, or three significant digits where its targets are small."""
    target = result.predictions["target"]
    return ".3g" if target.dtype.kind in "fi" and target.abs().max() < 0.1 else f".{decimals}f"


def measured(value: Any) -> str:
    """What was measured, to four digits or whole; a class as it is called."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def card(result: StudyResult, item: str, rows: pd.DataFrame, units: str) -> str:
    """An item as a small card of HTML: its drawing, its text, what was measured and what was predicted in `rows`."""
    from icrl_lab.plots.molecules import drawing

    items = result.items
    found = items[items["id"].astype(str) == item] if len(items) else items
    text = str(found["text"].iloc[0]) if len(found) else ""
    molecule = result.manifest["task"].get("modality") == "molecule"
    picture = drawing(text) if molecule and text else None
    shown = (
        f'<img alt="{html.escape(text, quote=True)}" src="{picture}" style="background:#fff;border-radius:6px">'
        if picture
        else ""
    )
    mine = counted(rows[rows["item"].astype(str) == item])
    said = ""
    if len(mine):
        answers, failed = mine["prediction"][~mine["failed"]], int(mine["failed"].sum())
        number = mine["target"].dtype.kind in "fi"
        guess = f"{answers.mean():{digits(result)}}" if number else ", ".join(map(str, answers))
        said = f"measured {measured(mine['target'].iloc[0])}" + (f", predicted {guess}" if len(answers) else "")
        said = html.escape(f"{said} {units}" + (f", failed in {failed} of {len(mine)} seeds" if failed else ""))
    name = html.escape(item) + (f"<br>{html.escape(text)}" if text and text != item else "")
    return f'<div class="icrl-card" style="max-width:280px;overflow-wrap:anywhere">{shown}<div><b>{name}</b><br>{said}</div></div>'


# ------------------------------------------------------------------------------------ figures that change in place

# what a person changed in the browser, and no figure takes back
OWN = {"uid", "visible", "selectedpoints", "dragmode", "selections"}


@contextmanager
def changing(shown: Any) -> Iterator[None]:
    """Changes of a FigureWidget, which leave as one message and also reach a page that comes later.

    plotly tells them to the views that are there and to nobody else, so a figure in a tab that opens later would be the first one.
    While there is no view, a figure's whole state is brought up to date instead.
    """
    with shown.batch_update():
        yield
    if not shown._view_count:
        shown._widget_layout, shown._widget_data = deepcopy(shown._layout_obj._props), deepcopy(shown._data)


def redraw(shown: Any, figure: go.Figure) -> bool:
    """Make a FigureWidget show another figure. In place where the traces are of the same kinds, so that click handlers stay, and
    then only what differs is sent; else the traces are replaced. Returns whether they were replaced."""
    same = [trace.type for trace in shown.data] == [trace.type for trace in figure.data]
    with changing(shown):
        if same:
            for trace, new in zip(shown.data, figure.data):
                trace.update(_changes(trace._props, new._props), overwrite=False)
        else:
            shown.data = ()
        old, new = shown.layout._props, figure.layout._props
        differs = {name for name in _names(old, new) if not _equal(old.get(name), new.get(name))}
        shown.layout.update({name: deepcopy(new.get(name)) for name in differs}, overwrite=True)
    if not same:
        with changing(shown):
            shown.add_traces(list(figure.data))
    return not same


def _names(old: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    return {*old, *new} - (OWN - {*new})


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What makes the properties `old` to `new`; None takes one away."""
    out: dict[str, Any] = {}
    for name in _names(old, new):
        before, after = old.get(name), new.get(name)
        if not _equal(before, after):
            if isinstance(before, Mapping) and isinstance(after, Mapping) and "bdata" not in {*before, *after}:
                out[name] = _changes(before, after)
            else:
                out[name] = deepcopy(after)
    return out


def _equal(one: Any, two: Any) -> bool:
    from plotly.basedatatypes import BasePlotlyType

    return BasePlotlyType._vals_equal(one, two)
