"""Patching as a map that is asked cell by cell: what an edit there did, what its placebo did, and the interval of both.

A cell is a layer, which is the page's, and a position of the prompt, which is the view's own; where it is a shot or a head, the page
follows. All numbers are the reading's.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w
import traitlets as t

from icrl_lab.plots import cells, patching
from icrl_lab.plots.cells import Sheet
from icrl_lab.plots.words import shown_group
from icrl_lab.widgets.base import View, changing, clicked, guarded, redraw
from icrl_lab.widgets.figure import figure_widget

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.values import Reading
    from icrl_lab.widgets.selection import Selection

SHOT = re.compile(r"shot (\d+) ")
WRAP = {"flex_flow": "wrap"}


class PatchingView(View):
    """One reading of patching. `position` is the row that is looked at, a name of the map's own; the layer is the selection's."""

    title = "Patching: what the answer rests on"
    follows = ("layer", "head", "shot")
    position = t.Unicode()

    def __init__(self, reading: Reading, selection: Selection, **layout: Any) -> None:
        super().__init__(selection, **layout)
        self.reading = reading
        self.sheets = cells.sheets(reading)
        self.others = dict(patching.figures(reading))
        self.edit = w.Dropdown(options=list(self.sheets), description="edit", layout={"width": "480px"})
        self.across = w.SelectionSlider(options=self._xs(), description="layer", layout={"width": "360px"})
        self.along = w.SelectionSlider(options=self._told(), description="position", layout={"width": "360px"})
        self.across.observe(self._slid, "value")
        self.along.observe(self._shifted, "value")
        self.observe(self._named, "position")
        self._stand(self._near(selection.layer), self._ys()[0])
        self.map, self.cell = figure_widget(self._map()), figure_widget(self._cell())
        self._drawn = self._at()
        self._listen()
        self.shown = w.Dropdown(options=list(self.others), description="figure")
        self.other = figure_widget(self.others[self.shown.value])
        self.edit.observe(self._edited, "value")
        self.shown.observe(self._chosen, "value")
        says, limits = (
            "<ul>" + "".join(f"<li>{html.escape(str(s))}</li>" for s in reading.about.get(key, ())) + "</ul>"
            for key in ("says", "limits")
        )
        how = html.escape(str(reading.about.get("interval", "")))
        small = (
            f"<details><summary>what this cannot show, and how it was measured</summary>{limits}<p>{how}</p></details>"
        )
        self.body.children = [
            w.HTML(says),
            self.edit,
            w.HBox([self.across, self.along], layout=WRAP),
            w.HBox([self.map, self.cell], layout=WRAP),
            self.shown,
            self.other,
            w.HTML(small),
        ]

    # ------------------------------------------------------------------------------------ what is shown

    @property
    def sheet(self) -> Sheet:
        return self.sheets[self.edit.value]

    def _values(self, dim: str) -> list[Any]:
        return self.reading.data[dim].values.tolist()

    def _xs(self) -> list[str]:
        return [str(v) for v in self._values(self.sheet.x)]

    def _ys(self) -> list[str]:
        return [str(v) for v in self._values(self.sheet.y)]

    def _told(self) -> list[tuple[str, str]]:
        """The positions under the names that people read, who count shots from one."""
        return [(shown_group(y), y) for y in self._ys()]

    def _at(self) -> tuple[int, int]:
        """Places of the cell on (y, x)."""
        return self._ys().index(self.position), self._xs().index(self.across.value)

    def figures(self) -> Sequence[go.Figure]:
        return self._map(), self._cell(), next(iter(self.others.values()))

    def _map(self) -> go.Figure:
        return cells.sheet_figure(self.reading, self.sheet, self._at())

    def _cell(self) -> go.Figure:
        return cells.cell_figure(self.reading, self.sheet, *self._at())

    def _near(self, layer: int) -> str:
        """The place along the layers that holds a layer, or else the nearest: that which is shown, or the narrowest."""
        names, reach = self._xs(), [_layers(v) for v in self._values(self.sheet.x)]

        def order(k: int) -> tuple[int, bool, int]:
            low, high = reach[k]
            return max(low - layer, layer - high, 0), names[k] != self.across.value, high - low

        return names[min(range(len(names)), key=order)]

    def refresh(self) -> None:
        """The frame and the small figure, where the cell is another than that which is drawn."""
        at = self._at()
        if at == self._drawn:
            return
        with changing(self.map):
            self.map.data[1].x, self.map.data[1].y = [at[1]], [at[0]]
        data = self.sheet.of(self.reading)
        with changing(self.cell):
            for trace, values in zip(self.cell.data, cells.bars(data, self.sheet, *at)):
                trace.update(values)
            self.cell.layout.xaxis.range = cells.cell_range(data, self.sheet, *at)
            self.cell.layout.title.text = cells.cell_title(self.reading, data, self.sheet, *at)
        self._drawn = at

    # ------------------------------------------------------------------------------------ the selection moved

    @guarded
    def _moved(self, change: Any) -> None:
        if change.name == "layer":
            self._stand(self._near(change.new), self.position)
            self._tell_layer()
        else:
            self._stand(self.across.value, self._pointed(change.name, change.new))
        self.refresh()

    def _tell_layer(self) -> None:
        low, high = _layers(self._values(self.sheet.x)[self._at()[1]])
        if not low <= self.selection.layer <= high:
            word = "block" if self.sheet.x in ("layer", "window") else "depth"
            self.say(
                f"This edit was not made at {word} {self.selection.layer}; the nearest, {self.across.value}, is shown."
            )

    def _pointed(self, name: str, number: int) -> str:
        """The position that a shot or a head of the selection is; that which is shown where it is none."""
        if name == "head" and self.sheet.y == "head" and str(number) in self._ys():
            return str(number)
        mine = SHOT.match(self.position)
        if name == "shot" and number >= 0 and not (mine and self._shot(mine) == number):
            role = self.position.split()[-1] if mine else "slot"
            same = [y for y in self._ys() if y.startswith(f"shot {number} ")]
            return next((y for y in same if y.endswith(role)), same[0] if same else self.position)
        return self.position

    def _shot(self, found: re.Match[str]) -> int:
        """The page's shot of a position: where shots are shown several times, every time one has places of its own here."""
        return int(found[1]) % self.selection.shots

    def _stand(self, x: str, y: str) -> None:
        """Let the sliders and `position` say where the view is; nobody has moved them."""
        many: Any = ((self.across, self._slid, self._xs(), x), (self.along, self._shifted, self._told(), y))
        for slider, callback, options, value in many:
            slider.unobserve(callback, "value")
            if list(slider.options) != options:
                slider.options = options
            slider.value = value
            slider.observe(callback, "value")
        self.unobserve(self._named, "position")
        self.position = y
        self.observe(self._named, "position")

    # ------------------------------------------------------------------------------------ what is clicked

    @t.validate("position")
    def _known(self, proposal: Any) -> str:
        if proposal.value not in self._ys():
            raise t.TraitError(f"position: {proposal.value!r} is none of this map's")
        return proposal.value

    def _listen(self) -> None:
        self.map.data[0].on_click(self._clicked)

    def _go(self, x: str, y: str) -> None:
        """Look at another cell, and tell the page what of it concerns everybody."""
        self._stand(x, y)
        low, high = _layers(self._values(self.sheet.x)[self._xs().index(x)])
        shot = SHOT.match(y)
        try:
            with self.selection.hold_trait_notifications():
                if not low <= self.selection.layer <= high:
                    self.selection.layer = low
                if shot:
                    self.selection.shot = self._shot(shot)
                if self.sheet.y == "head":
                    self.selection.head = int(y)
        finally:  # what stands here is what is drawn, whatever the page makes of it
            self.refresh()

    @clicked
    def _clicked(self, trace: Any, points: Any, state: Any) -> None:
        self._go(self._xs()[round(points.xs[0])], self._ys()[round(points.ys[0])])

    @guarded
    def _slid(self, change: Any) -> None:
        self._go(change.new, self.position)

    @guarded
    def _shifted(self, change: Any) -> None:
        self._go(self.across.value, change.new)

    @guarded
    def _named(self, change: Any) -> None:
        self._go(self.across.value, change.new)

    @guarded
    def _edited(self, change: Any) -> None:
        """Another edit: as near as its map goes to where the view is."""
        ys, y = self._ys(), self.position
        if y not in ys:
            y = str(self.selection.head) if self.sheet.y == "head" and str(self.selection.head) in ys else ys[0]
        self._stand(self._near(self.selection.layer), y)
        if redraw(self.map, self._map()):
            self._listen()
        redraw(self.cell, self._cell())
        self._drawn = self._at()
        self._tell_layer()

    @guarded
    def _chosen(self, change: Any) -> None:
        redraw(self.other, self.others[change.new])


def _layers(value: Any) -> tuple[int, int]:
    """The first and the last layer of a place along the layers: a number, or a window of blocks in words."""
    if not isinstance(value, str):
        return int(value), int(value)
    found = [int(n) for n in re.findall(r"\d+", value)]
    return (found[0], found[-1]) if found else (0, 10**6)
