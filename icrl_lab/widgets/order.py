"""Does it matter where a shot stands? Drag the shots of a query into another order and ask the model, or replay stored orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as w
import numpy as np

from icrl_lab import shots as room
from icrl_lab.plots import order as stored_plots
from icrl_lab.widgets.base import digits, guarded, redraw
from icrl_lab.widgets.shots import ShotsView

ORDERS = {
    "labels ascending": "ascending", "labels descending": "descending", "nearest first": "near-first",
    "nearest last": "near-last", "random": "random", "as it was": "given",
}  # fmt: skip


class OrderView(ShotsView):
    """The shots of the selected query in an order of one's own. Card i is the i-th shot of the study's order."""

    title = "Does the order of the shots matter?"
    question = "order"
    what = (
        "Drag a card, or focus one and press Alt with an arrow key; space grabs a card for the arrow keys. The first card stands first "
        "in the prompt, the last one next to the query. Bars: attention of the query's item to each shot, dark to its vector; "
        "the prompt's first token, where attention rests, is left out."
    )
    what_stored = "The slider goes through the orders that were asked; the first card stood first in the prompt, the last one next to the query."

    # ------------------------------------------------------------------------------------ with the model

    def controls(self) -> Sequence[w.Widget]:
        self.turn = 0
        self.shots.observe(self._reordered, "order")
        self.buttons = {name: w.Button(description=name, layout={"width": "auto"}) for name in ORDERS}
        for button in self.buttons.values():
            button.on_click(self._arranged)
        return list(self.buttons.values())

    def refresh(self) -> None:
        self.shots.unobserve(self._reordered, "order")  # what is laid out anew has not been dragged
        super().refresh()
        if self.study is not None:
            self.shots.observe(self._reordered, "order")

    def cards(self) -> list[dict[str, str]]:
        assert self.study is not None
        self.own = self.chosen
        near = self._near()(np.array([self.at]))[0]
        return [self.card(p, label, f"cosine {near[p]:.2f}") for p, label in zip(self.chosen, self.labels())]

    def _near(self) -> room.Likeness:
        assert self.study is not None
        if not hasattr(self, "like"):
            self.like = self.study.material.likeness("cosine")
        return self.like

    def _of_cards(self) -> Sequence[int]:
        return self.own

    def what_moved(self) -> str:
        return "this order"

    def arrange(self, how: str) -> tuple[int, ...]:
        """The cards in one of ORDERS' orders; "random" is another one every time."""
        study = self.study
        assert study is not None
        given: dict[str, Any] = {"y": study.material.y}
        if room.needs_query(how):
            given |= {"query": self.at, "similarity": self._near()}
        self.turn += how == "random"
        found = room.order(how, np.array(self.own), seed=self.turn, **given)
        where = {p: i for i, p in enumerate(self.own)}
        return tuple(where[int(p)] for p in found)

    @guarded
    def _arranged(self, button: Any) -> None:
        if self.query.value is not None:
            self.shots.order = self.arrange(ORDERS[button.description])

    @guarded
    def _reordered(self, change: Any) -> None:
        if change.new:
            self.chosen = tuple(self.own[i] for i in change.new)
            self.ask()

    # ------------------------------------------------------------------------------------ stored

    def stored(self) -> Sequence[w.Widget]:
        self.shots.movable = False
        count = len(self._coordinate("permutation"))
        self.slider = w.IntSlider(
            value=0, min=0, max=max(count - 1, 0), description="stored order", continuous_update=False
        )
        self.slider.observe(self._slid, "value")
        self.slider.disabled = count == 0
        off = [w.Button(description=name, disabled=True, layout={"width": "auto"}) for name in ORDERS]
        return [self.slider, *off]

    def replay(self) -> None:
        assert self.reading is not None
        data = self.reading.data.sel(query=self.query.value, seed=self.seed.value)
        ids = [str(i) for i in data["shown_item"].values] if "shown_item" in data else []
        labels = [str(i) for i in data["shown_label"].values] if ids else []
        k = data.sizes["position"]
        cards = [self.item(i, label, "") for i, label in zip(ids, labels)]
        self.shots.show(cards or [self._card(f"shot {i + 1}", f"shot {i + 1}", "", "") for i in range(k)])
        self._order()

    def _order(self) -> None:
        """The stored order of the slider."""
        assert self.reading is not None
        data = self.reading.data.sel(query=self.query.value, seed=self.seed.value)
        at, form = self.slider.value, digits(self.result, 3)
        self.shots.order = tuple(int(i) for i in data["orders"].values[at])
        told = ", ".join(
            f"{c} {float(data['outcome'].sel(control=c)[at]):{form}}" for c in data["control"].values.tolist()
        )
        arm, units = (str(self.reading.about.get(key, "")) for key in ("arm", "units"))
        line = f"Arm {arm}, order {at + 1} of {self.slider.max + 1}: {told} {units}."
        own = [str(i) for i in data["shown_item"].values] if "shown_item" in data else []
        self._say_stored(line, self.predicted(own))
        redraw(self.figure, stored_plots.replay(self.reading, self.query.value, self.seed.value, at))

    @guarded
    def _slid(self, change: Any) -> None:
        if self.query.value is not None:
            self._order()
