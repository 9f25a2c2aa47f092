"""The geometry as three linked maps: the encoder's space, the slots', and the residual stream at a depth that a slider moves.

Whatever is lassoed in one map is lassoed in all, and on the whole page; a click pins an item and rings it everywhere. Only
numbers of points travel when something is picked. Coordinates, their trustworthiness and the curves below come from the reading.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import numpy as np

from icrl_lab.plots import clouds, geometry
from icrl_lab.plots.clouds import MANY, NAMES, PANELS, POSITIONS, Colours
from icrl_lab.studies.result import counted
from icrl_lab.widgets.base import View, card, guarded, quietly, redraw
from icrl_lab.widgets.figure import figure_widget
from icrl_lab.widgets.scatter import Scatter, unit

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from icrl_lab.studies import StudyResult
    from icrl_lab.values import Reading
    from icrl_lab.widgets.selection import Selection

NO_MAPS = "This reading has no maps; ask the probe for them with methods, of pca and umap."
NO_TOKENS = "The nearest tokens of its slots are not stored in this reading."
CONDITIONS = ("with_text", "labels", "shots", "selection", "order")
WRAP = {"flex_flow": "wrap"}


class GeometryView(View):
    """Three maps of the same items. `result` (None: not at hand) gives errors, roles and molecule cards."""

    title = "Geometry: from the encoder to the last layer"
    follows = ("layer", "items", "item", "arm", "control")

    def __init__(
        self, reading: Reading, selection: Selection, result: StudyResult | None = None, **layout: Any
    ) -> None:
        super().__init__(selection, **layout)
        self.reading, self.result = reading, result
        self.ids = [str(i) for i in reading.data["query"].values] if "query" in reading.data.coords else []
        self.place = {item: i for i, item in enumerate(self.ids)}
        self.curves = dict(geometry.figures(reading))
        self.maps = clouds.methods(reading)
        below = self._below()
        if not self.maps:
            self.body.children = [w.HTML(f"<p>{NO_MAPS}</p>"), *below]
            return
        self._controls()
        self._follow_layer()
        self.above = w.HTML()
        self.scatter = Scatter(names=self.ids, label=clouds.TITLE, layout={"width": "736px"})
        for name, callback in (("chosen", self._lassoed), ("pinned", self._clicked), ("pointed", self._pointed)):
            self.scatter.observe(callback, name)
        self.body.children = [
            w.HBox([w.Label("map"), self.method, self.position, self.depth, self.colour], layout=WRAP),
            w.HBox([self.find, self.clear, self.state], layout=WRAP),
            self.above,
            w.HBox([self.scatter, w.VBox([self.pin, self.card])], layout=WRAP),
            *below,
        ]
        self._move()
        self._colour()
        self._mark()
        self._ring()

    def _controls(self) -> None:
        there = [p for p in POSITIONS if clouds.depths(self.reading, p)]
        self.method = w.ToggleButtons(options=[(NAMES.get(m, m), m) for m in self.maps], style={"button_width": "70px"})
        self.position = w.Dropdown(options=[(POSITIONS[p], p) for p in there], description="layer space")
        deep = clouds.depths(self.reading, there[0])
        self.depth = w.SelectionSlider(options=deep, value=deep[-1], description="depth")
        schemes = ["target", *(["error", "role"] if self.result is not None else [])]
        self.colour = w.Dropdown(options=schemes, description="colour")
        words = "part of a name or text, then Enter"
        self.find = w.Text(placeholder=words, description="select", continuous_update=False)
        few = {"placeholder": "an item's name", "description": "item", "continuous_update": False}
        self.pin = w.Combobox(options=self.ids[:MANY], **few)
        self.clear = w.Button(description="clear", tooltip="select every item again", layout={"width": "70px"})
        self.state, self.card = w.HTML(), w.HTML()
        self.method.observe(self._other_map, "value")
        self.position.observe(self._moved_on_the_way, "value")
        self.colour.observe(self._coloured, "value")
        self.depth.observe(self._slid, "value")
        self.find.observe(self._searched, "value")
        self.pin.observe(self._named, "value")
        self.clear.on_click(self._cleared)

    def _below(self) -> list[Any]:
        """What the reading says, and its curves."""
        about = self.reading.about
        says, limits = (
            "<ul>" + "".join(f"<li>{html.escape(str(s))}</li>" for s in about.get(key, ())) + "</ul>"
            for key in ("says", "limits")
        )
        self.shown = w.Dropdown(options=list(self.curves), description="figure")
        self.shown.observe(self._other, "value")
        self.curve = figure_widget(self.curves[self.shown.value])
        how = html.escape(str(about.get("interval", "")))
        small = (
            f"<details><summary>what this cannot show, and how it was measured</summary>{limits}<p>{how}</p></details>"
        )
        return [w.HTML(says), self.shown, self.curve, w.HTML(small)]

    # ------------------------------------------------------------------------------------ what is shown

    def figures(self) -> Sequence[go.Figure]:
        main = next(iter(self.curves.values()))
        return (thinned(self._figure(), self._chosen()), main) if self.maps else (main,)

    def _figure(self) -> go.Figure:
        at = self.place.get(self.selection.item)
        return clouds.figure(self.reading, self.method.value, self.position.value, self.depth.value, self._scheme(), at)

    def _scheme(self) -> Colours:
        """What the colours say now."""
        if self.result is None or self.colour.value == "target":
            return clouds.target(self.reading)
        if self.colour.value == "role":
            items = self.result.items
            role = dict(zip(items["id"].astype(str), items["role"].astype(str))) if len(items) else {}
            return Colours("role", "", np.array([role.get(i) or "neither" for i in self.ids]))
        rows = self._rows()
        words, error = mistakes(rows)
        units = str(self.reading.about.get("target_units", "")) if words == "absolute error" else "share"
        failed, of = int(counted(rows)["failed"].sum()), len(rows)
        told = f"{words}, {self.selection.arm}, {self.selection.control}"
        told += f", {failed} of {of} failed" if failed else ""
        return Colours(told, units, np.array([error.get(i, np.nan) for i in self.ids], float))

    def _rows(self) -> pd.DataFrame:
        """The predictions of the selected arm and control, under the conditions that the reading was made in."""
        assert self.result is not None
        frame = self.result.predictions
        frame = frame[(frame["arm"] == self.selection.arm) & (frame["control"] == self.selection.control)]
        for name in CONDITIONS:
            same = frame[name] == self.reading.about.get(name) if name in frame else None
            frame = frame[same] if same is not None and same.any() else frame
        return frame

    def _chosen(self) -> list[int] | None:
        """Places of the lassoed items, None where all are selected."""
        if not self.selection.items:
            return None
        return [self.place[i] for i in self.selection.items if i in self.place]

    def _mark(self) -> None:
        """Selected points stay, the others fade; nothing but their places is sent."""
        chosen = self._chosen()
        if self.scatter.chosen is None or chosen is None or set(self.scatter.chosen) != set(chosen):
            self._quietly(self.scatter, self._lassoed, chosen, "chosen")
        many = "all" if chosen is None else f"{len(chosen)} of"
        self.state.value = f'<span role="status">{many} {len(self.ids)} items are selected</span>'

    def _ring(self) -> None:
        """A ring around the pinned item, and its card."""
        item = self.selection.item
        self._quietly(self.scatter, self._clicked, self.place.get(item, -1), "pinned")
        self._quietly(self.pin, self._named, item)
        self._tell(item)

    def _move(self) -> None:
        """Other coordinates for the same points."""
        three = clouds.panels(self.reading, self.method.value, self.position.value, self.depth.value)
        with self.scatter.hold_sync():
            self.scatter.places = unit(np.stack([panel.flat for panel in three])).tobytes()
            self.scatter.titles = [list(panel.titles) for panel in three]

    def _colour(self) -> None:
        """Other colours for the same points, and the heading that says what they mean."""
        colours = self._scheme()
        palette, paints = clouds.paints(colours)
        with self.scatter.hold_sync():
            self.scatter.palette, self.scatter.paints = [list(look) for look in palette], paints.tobytes()
            self.scatter.key = clouds.legend(colours)
        self.above.value = f'<div class="icrl-above">{clouds.heading(self.reading, self.method.value, colours)}</div>'

    def _tell(self, item: str) -> None:
        """The card of an item, with the tokens that its slots are nearest to."""
        if not item:
            self.card.value = "<p>Point at an item to see it, click to keep it.</p>"
        elif self.result is not None:
            units = str(self.reading.about.get("target_units", ""))
            self.card.value = card(self.result, item, self._rows(), units) + self._tokens(item)
        else:
            text = self.reading.data["text"].values if "text" in self.reading.data.coords else self.ids
            words = html.escape(str(text[self.place[item]])) if item in self.place else ""
            self.card.value = f'<div class="icrl-card"><b>{html.escape(item)}</b><br>{words}</div>{self._tokens(item)}'

    def _tokens(self, item: str) -> str:
        """The nearest token of an item's slots and its cosine, for real and for noise vectors, in the first seed."""
        data = self.reading.data
        if "nearest_token" not in data or "token_cosine_each" not in data or item not in self.place:
            return f"<p>{NO_TOKENS}</p>"
        told = []
        for control in data["control"].values:
            here = data.isel(query=self.place[item], seed=0).sel(control=control)
            token = html.escape(repr(str(here["nearest_token"].values)))
            told.append(f"{html.escape(str(control))}: {token}, cosine {float(here['token_cosine_each']):.2f}")
        return f"<p>Nearest token of its slot, first seed:<br>{'<br>'.join(told)}</p>"

    # ------------------------------------------------------------------------------------ the selection moved

    @guarded
    def _moved(self, change: Any) -> None:
        if not self.maps:
            return
        if change.name == "items":
            self._mark()
        elif change.name == "item":
            self._ring()
        elif change.name == "layer":
            self._follow_layer()
            self._move()
        elif self.colour.value == "error":
            self._colour()
            self._tell(self.selection.item)
        else:
            self._tell(self.selection.item)

    def _follow_layer(self) -> None:
        """The depth of the selection, or the nearest that the reading has a map of."""
        deep, wanted = clouds.depths(self.reading, self.position.value), self.selection.layer
        near = min(deep, key=lambda d: abs(d - wanted))
        self.depth.unobserve(self._slid, "value")
        self.depth.options = deep
        self.depth.value = near
        self.depth.observe(self._slid, "value")
        if near != wanted:
            self.say(f"This reading has no map of depth {wanted}; the nearest that it has, {near}, is shown.")

    def _quietly(self, box: Any, callback: Any, value: Any, name: str = "value") -> None:
        """A control that follows has not been used."""
        box.unobserve(callback, name)
        setattr(box, name, value)
        box.observe(callback, name)

    # ------------------------------------------------------------------------------------ what is clicked

    @guarded
    def _lassoed(self, change: Any) -> None:
        self.selection.items = tuple(self.ids[i] for i in change.new or ())

    @guarded
    def _cleared(self, *_: Any) -> None:
        self.find.value = ""
        self.selection.items = ()

    @guarded
    def _clicked(self, change: Any) -> None:
        self.selection.item = self.ids[change.new] if change.new >= 0 else ""

    @quietly
    def _pointed(self, change: Any) -> None:
        self._tell(self.ids[change.new] if change.new >= 0 else self.selection.item)

    @guarded
    def _searched(self, change: Any) -> None:
        word = change.new.strip().lower()
        if not word:
            return
        data = self.reading.data
        text = data["text"].values if "text" in data.coords else self.ids
        found = tuple(i for i, t in zip(self.ids, text) if word in i.lower() or word in str(t).lower())
        if found:
            self.selection.items = found
        else:
            self.say(f"No item here has {change.new.strip()!r} in its name or text.")

    @guarded
    def _named(self, change: Any) -> None:
        self.selection.item = change.new.strip()

    @guarded
    def _slid(self, change: Any) -> None:
        self.selection.layer = change.new
        self._move()

    @guarded
    def _moved_on_the_way(self, change: Any) -> None:
        self._follow_layer()
        self._move()

    @guarded
    def _other_map(self, change: Any) -> None:
        self._move()
        self._colour()

    @guarded
    def _coloured(self, change: Any) -> None:
        self._colour()

    @guarded
    def _other(self, change: Any) -> None:
        redraw(self.curve, self.curves[change.new])


def mistakes(rows: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """How wrong predictions are, and by item: the mean absolute error, or of classes the share of wrong answers; a failure counts as
    in every metric."""
    rows = counted(rows)
    if rows["target"].dtype.kind in "fi":
        words, wrong = "absolute error", (rows["prediction"] - rows["target"]).abs()
    else:
        words, wrong = "wrong answers", (rows["prediction"].astype(str) != rows["target"].astype(str)).astype(float)
    return words, wrong.groupby(rows["item"].astype(str)).mean().to_dict()


def thinned(figure: go.Figure, chosen: Sequence[int] | None) -> go.Figure:
    """The maps as a picture that no lasso fades: the chosen points alone, and of very many an even share."""
    n = len(figure.data[0].x)
    some = np.arange(n) if chosen is None else np.array(sorted(chosen), int)
    some = some[np.linspace(0, len(some) - 1, min(len(some), MANY)).round().astype(int)] if len(some) else some
    for trace in figure.data[:PANELS] if len(some) < n else ():
        look = trace.marker
        trace.update(x=np.asarray(trace.x)[some], y=np.asarray(trace.y)[some], text=None, customdata=None)
        look.color = np.asarray(look.color)[some]
        look.symbol = look.symbol if isinstance(look.symbol, str) else np.asarray(look.symbol)[some]
    return figure
