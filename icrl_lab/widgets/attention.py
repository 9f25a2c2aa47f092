"""Attention: every head at a glance beside its null, where one head's rows look, and arcs from a query to its shots.

A click on the map selects a block and a head, for all views of the page; so do the sliders, by keyboard.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from icrl_lab.plots import attention as whole
from icrl_lab.plots import heads as plots
from icrl_lab.plots.molecules import drawing
from icrl_lab.widgets.base import View, changing, clicked, guarded, pointed, redraw
from icrl_lab.widgets.figure import figure_widget
from icrl_lab.widgets.selection import Selection

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.values import Reading

WIDE = {"width": "430px"}
NO_CASES = "This reading was saved before attention was kept query by query at every head: of this one it has the mean of all queries."
HINT = '<p style="opacity:.8">Point at a shot to see it; click it to pin it.</p>'


class AttentionView(View):
    """A reading of attention. Follows block, head, query and shot, and sets them."""

    title = "Where the model looks"
    follows = ("arm", "layer", "head", "query", "shot")

    def __init__(self, reading: Reading, selection: Selection, **layout: Any) -> None:
        super().__init__(selection, **layout)
        self.reading, data = reading, reading.data
        self.rolled = "rollout" in data
        if self.rolled:  # it has no single heads
            self.body.children = [figure_widget(whole.figure(reading))]
            return
        self.molecules = selection.result.manifest["task"].get("modality") == "molecule"
        self.quantities = plots.quantities(reading)
        self.nulls = [str(c) for c in data["control"].values if str(c) != "real"]
        self._controls(data)
        self._place: Any = None
        self.overview = figure_widget(self._overview())
        self.spans = figure_widget(self._spans())
        self.arcs = figure_widget(self._arcs())
        self.card = w.HTML(HINT)
        self._listen_to_overview()
        self._listen_to_shots()
        wrap = {"flex_flow": "wrap"}
        says = "".join(f"<li>{html.escape(str(s))}</li>" for s in reading.about.get("says", ()))
        limits = "".join(f"<li>{html.escape(str(s))}</li>" for s in reading.about.get("limits", ()))
        more = f"<details><summary>what was found, and what this cannot show</summary><ul>{says}</ul><ul>{limits}</ul></details>"
        self.body.children = [
            w.HBox([self.quantity, self.versus], layout=wrap), self.overview, w.HBox([self.layer, self.head], layout=wrap),
            w.HBox([self.query, self.row, self.target, self.null], layout=wrap), w.HBox([self.arcs, self.card], layout=wrap), self.spans, w.HTML(more),
        ]  # fmt: skip
        self._moved(None)

    def _controls(self, data: Any) -> None:
        first = {n: str(data[f"top_{n}"].values[0]) for n in ("row", "target")}
        layers, heads = data.sizes["layer"], data.sizes["head"]
        kept = [str(q) for q in data["case_query"].values] if "case_query" in data else []
        asked = [str(q) for q in data["query"].values if str(q) in self.selection.queries]
        far = [q for q in asked if q not in kept]
        queries = [*((f"{q} (kept at every head)", q) for q in kept if q in asked), *((q, q) for q in far)]
        self.quantity = w.Dropdown(options=list(self.quantities), description="every head", layout=WIDE)
        self.versus = w.ToggleButtons(options=[("null beside", "beside")], tooltip="real vectors and their null")
        self.versus.options = self._versus()
        self.layer = w.IntSlider(min=0, max=layers - 1, description="block")
        self.head = w.IntSlider(min=0, max=heads - 1, description="head")
        self.query = w.Dropdown(options=queries, value=None, description="query", layout={"width": "330px"})
        rows = [(whole.SHORT[str(r)], str(r)) for r in data["row"].values]
        targets = [str(t) for t in data["target"].values]
        self.row = w.Dropdown(options=rows, value=first["row"], description="from")
        self.target = w.Dropdown(
            options=[(f"the shots' {t}s", t) for t in targets], value=first["target"], description="to"
        )
        own = str(self.reading.about.get("null", "")) or (self.nulls[0] if self.nulls else None)
        self.null = w.Dropdown(options=self.nulls, value=own, description="mirrored")
        self.quantity.observe(self._other_quantity, "value")
        self.versus.observe(self._other_map, "value")
        for name in ("layer", "head", "query"):
            getattr(self, name).observe(self._chosen, "value")
        for box in (self.row, self.target, self.null):
            box.observe(self._other_rows, "value")

    # ------------------------------------------------------------------------------------ what is shown

    def where(self) -> tuple[int, int]:
        """The block and head that are shown: those selected, or the last there is."""
        return min(self.selection.layer, self.layer.max), min(self.selection.head, self.head.max)

    def _versus(self) -> list[tuple[str, str]]:
        null = str(self.reading.about.get("null", ""))
        less = [(f"less its null ({null})", "less")] if self.quantities[self.quantity.value].less else []
        return [("null beside" if null else "no null in this reading", "beside"), *less]

    def _overview(self) -> go.Figure:
        return plots.beside(self.reading, self.quantity.value, self.versus.value, self.where())

    def _spans(self) -> go.Figure:
        return plots.spans(self.reading, *self.where(), self.target.value)

    def asked(self) -> str:
        """The query whose shots are shown: the one selected, or the first of the list where the reading does not have it."""
        known = [value for _, value in self.query.options]
        return self.selection.query if self.selection.query in known else known[0]

    def _arcs(self) -> go.Figure:
        return plots.arcs(
            self.reading, self.asked(), *self.where(), self.row.value, self.target.value, self.null.value or "", self.selection.shot
        )  # fmt: skip

    def _found(self) -> plots.Attended:
        return plots.attended(
            self.reading, self.asked(), *self.where(), self.row.value, self.target.value, self.null.value or ""
        )

    def figures(self) -> Sequence[go.Figure]:
        if self.rolled:
            return (whole.figure(self.reading),)
        return self._overview(), self._arcs(), self._spans()

    def refresh(self) -> None:
        if self.rolled:
            return
        layer, head = self.where()
        self.layer.value, self.head.value = layer, head
        self.query.value = self.asked()
        place = (layer, head, self.asked())
        if place != self._place:
            with changing(self.overview):
                for trace in self.overview.data:
                    if trace.meta == "selected":
                        trace.x, trace.y = (layer,), (head,)
            if self._place is None or place[:2] != self._place[:2]:
                self._update_spans(layer, head)
            if redraw(self.arcs, self._arcs()):
                self._listen_to_shots()
            self._place = place
        ring = next(trace for trace in self.arcs.data if trace.meta == "pinned")
        shown = (self.selection.shot + 1,) if 0 <= self.selection.shot < self.reading.data.sizes["shot"] else ()
        if tuple(ring.x or ()) != shown:
            with changing(self.arcs):
                ring.update(x=shown, y=(0,) * len(shown))
        self._show(self.selection.shot)
        self.say(self._missing())

    def _update_spans(self, layer: int, head: int) -> None:
        """Only what differs from head to head: a figure made anew takes a tenth of a second."""
        share, told, lifts = plots.falls(self.reading, layer, head, self.target.value)
        with changing(self.spans):
            self.spans.data[0].update(z=share, customdata=told)
            self.spans.data[1].update(z=lifts)
            self.spans.layout.coloraxis2.cmax = plots.most(lifts)
            title = self.spans.layout.title.text
            self.spans.layout.title.text = re.sub(r"Block \d+, head \d+", f"Block {layer}, head {head}", title, count=1)

    def _missing(self) -> str:
        """What the selection asks for and the reading does not have, in words."""
        s, data, out = self.selection, self.reading.data, []
        if s.arm != self.reading.about.get("arm"):
            out.append(f"This reading is of the arm {self.reading.about.get('arm')}, not of {s.arm}.")
        if s.layer > self.layer.max:
            out.append(f"Depth {s.layer} is behind the last block; block {self.layer.max} is shown.")
        if s.query and s.query != self.asked():
            out.append(f"This reading was not asked about {s.query}; {self.asked()} is shown.")
        if self._found().kind == "mean":
            kept = "case_query" in data
            some = f"Attention at every head was kept of {data.sizes.get('case', 0)} queries; of this one the mean of all queries is shown."
            out.append(some if kept else NO_CASES)
        return " ".join(out)

    def _show(self, shot: int) -> None:
        """A shot of the query as a card beside the arcs."""
        found = self._found()
        if not 0 <= shot < len(found.items):
            self.card.value = HINT if found.items else ""
            return
        text = found.texts[shot] if found.texts else ""
        picture = drawing(text, 230, 150) if self.molecules and text else None
        alt = html.escape(text, quote=True)
        image = f'<img alt="{alt}" src="{picture}" style="background:#eef0f3;border-radius:6px">' if picture else ""
        lines = [
            found.items[shot],
            text if text != found.items[shot] else "",
            f"shot {shot + 1}, label {found.labels[shot]}",
        ]
        assert found.similarity is not None
        null = f", under {self.null.value} {found.null[shot]:.2f}" if self.null.value else ""
        lines += [
            f"cosine with the query {found.similarity[shot]:.2f}",
            f"attention {found.real[shot]:.2f} times even{null}",
        ]
        pinned = "<div>● pinned</div>" if shot == self.selection.shot else ""
        told = "".join(f"<div>{html.escape(line)}</div>" for line in lines if line)
        self.card.value = (
            f'<div role="status" style="max-width:240px;overflow-wrap:anywhere">{image}{told}{pinned}</div>'
        )

    # ------------------------------------------------------------------------------------ what is clicked

    def _listen_to_overview(self) -> None:
        for trace in self.overview.data:
            if trace.type == "heatmap":
                trace.on_click(self._clicked)

    def _listen_to_shots(self) -> None:
        shots = next(trace for trace in self.arcs.data if trace.meta == "shots")
        shots.on_hover(self._pointed)
        shots.on_click(self._pinned)

    @clicked
    def _clicked(self, trace: Any, points: Any, state: Any) -> None:
        self.selection.layer, self.selection.head = int(points.xs[0]), int(points.ys[0])

    @clicked
    def _pinned(self, trace: Any, points: Any, state: Any) -> None:
        self.pin(int(points.point_inds[0]))

    @pointed
    def _pointed(self, trace: Any, points: Any, state: Any) -> None:
        self._show(int(points.point_inds[0]))

    @guarded
    def pin(self, shot: int) -> None:
        """Select a shot by its place, and its item where the query's own shots are shown."""
        items = self._found().items
        self.selection.shot = shot
        if items:
            self.selection.item = items[shot]
        self.say(self._missing())

    @guarded
    def _chosen(self, change: Any) -> None:
        names = {"block": "layer", "head": "head", "query": "query"}
        name = names[change.owner.description]
        shown = dict(zip(("layer", "head"), self.where())) | {"query": self.asked()}
        if (
            change.new is not None and change.new != shown[name]
        ):  # else the view shows what it has for another selection
            setattr(self.selection, name, change.new)

    @guarded
    def _other_quantity(self, change: Any) -> None:
        options = self._versus()
        if [value for _, value in options] != [value for _, value in self.versus.options]:
            self.versus.options = options  # the first of them is chosen, which draws
        self._draw_overview()

    @guarded
    def _other_map(self, change: Any) -> None:
        self._draw_overview()

    def _draw_overview(self) -> None:
        if redraw(self.overview, self._overview()):
            self._listen_to_overview()

    @guarded
    def _other_rows(self, change: Any) -> None:
        redraw(self.spans, self._spans())
        self._place = None
        self.refresh()
