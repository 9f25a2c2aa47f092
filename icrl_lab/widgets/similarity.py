"""Does it matter which shots? Replace a shot by a nearer or a farther item and ask the model, or replay stored selections.

Near shots have labels near the query's own: what the mean of the shown labels says stands beside every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as w
import numpy as np

from icrl_lab import shots as room
from icrl_lab.plots import similarity as stored_plots
from icrl_lab.plots.beside import NAMES
from icrl_lab.widgets.base import digits, guarded, measured, redraw
from icrl_lab.widgets.live import Runner
from icrl_lab.widgets.shots import ShotsView

NEARER, FARTHER = "nearer", "farther"


class SimilarityView(ShotsView):
    """The shots of the selected query, exchanged one by one or all at once for nearer or farther items of the pool."""

    title = "Does it matter which shots?"
    question = "similarity"
    what = (
        "The buttons of a card put the next nearer or farther item of the pool in its place; each item comes with its own label. "
        "Bars: attention of the query's item to each shot, dark to its vector; the prompt's first token, where attention rests, is left out."
    )
    what_stored = (
        "The shots that stood in the prompt under each stored way of choosing them, with their similarity to the query."
    )

    # ------------------------------------------------------------------------------------ with the model

    def controls(self) -> Sequence[w.Widget]:
        assert self.study is not None
        measures = room.MEASURES if self.study.task.modality == "molecule" else ("cosine",)
        self.likes = {"cosine": self.study.material.likeness("cosine")}
        self.finding = Runner(self._found, self._failed, wait=0.0)
        self.measure = w.Dropdown(options=measures, description="similarity", layout={"width": "220px"})
        self.measure.observe(self._measured, "value")
        self.shots.movable, self.shots.buttons = False, [NEARER, FARTHER]
        self.shots.on_msg(self._pressed)
        self.buttons = {
            name: w.Button(description=name, layout={"width": "auto"})
            for name in ("all nearest", "all farthest", "as it was")
        }
        for button in self.buttons.values():
            button.on_click(self._all)
        return [self.measure, *self.buttons.values()]

    def near(self) -> np.ndarray:
        """(N,) similarity of every item of the task to the query, by the measure that is shown; the cosine until it is known."""
        name = self.measure.value if self.measure.value in self.likes else "cosine"
        return self.likes[name](np.array([self.at]))[0]

    def cards(self) -> list[dict[str, str]]:
        near, name = self.near(), self.measure.value if self.measure.value in self.likes else "cosine"
        return [self.card(p, label, f"{name} {near[p]:.2f}") for p, label in zip(self.chosen, self.labels())]

    def ranked(self) -> list[int]:
        """The items of the pool, the nearest to the query first; ties go to the lower position. The query is left out."""
        assert self.study is not None
        near, pool = self.near(), np.unique(self.study.task.pool)
        return [int(p) for p in pool[np.lexsort((pool, -near[pool]))] if p != self.at]

    def exchanged(self, place: int, way: str) -> tuple[int, ...] | None:
        """The shots with the next nearer (or farther) item of the pool that is not shown at `place`; None where there is none."""
        ranked = self.ranked()
        at, used = ranked.index(self.chosen[place]), set(self.chosen)
        left = ranked[:at][::-1] if way == NEARER else ranked[at + 1 :]
        other = next((p for p in left if p not in used), None)
        return None if other is None else (*self.chosen[:place], other, *self.chosen[place + 1 :])

    def put(self, shots: Sequence[int]) -> None:
        """Let these shots stand in the prompt, and ask."""
        self.chosen = tuple(map(int, shots))
        self.show()
        self.ask()

    @guarded
    def _pressed(self, shown: Any, content: Any, buffers: Any = None) -> None:
        place, way = int(content["card"]), self.shots.buttons[int(content["button"])]
        found = self.exchanged(place, way)
        if found is None:
            self.say(f"No item of the pool that is not shown is {way}.")
        else:
            self.put(found)

    @guarded
    def _all(self, button: Any) -> None:
        if self.query.value is None:
            return
        k, name = len(self.chosen), button.description
        if name == "as it was":
            self.put(self.original)
        else:
            self.put(self.ranked()[:k] if name == "all nearest" else self.ranked()[::-1][:k])

    @guarded
    def _measured(self, change: Any) -> None:
        if change.new in self.likes:
            self._found((change.new, self.likes[change.new]))
            return
        assert self.study is not None
        material = self.study.material
        self.doing.value = "fingerprints are being computed"
        self.finding.submit(lambda job: (change.new, material.likeness(change.new)))

    def _found(self, result: tuple[str, room.Likeness]) -> None:
        self.likes[result[0]] = result[1]
        self.doing.value = ""
        if self.query.value is not None:
            bars = list(self.shots.bars)
            self.show()
            self.shots.bars = bars

    # ------------------------------------------------------------------------------------ stored

    def stored(self) -> Sequence[w.Widget]:
        self.shots.movable = False
        self.which = w.Dropdown(options=self._coordinate("selection"), description="shots")
        self.measure = w.Dropdown(options=self._coordinate("measure"), description="similarity")
        for box in (self.which, self.measure):
            box.observe(self._chose, "value")
        off = [
            w.Button(description=n, disabled=True, layout={"width": "auto"})
            for n in ("all nearest", "all farthest", "as it was")
        ]
        return [self.which, self.measure, *off]

    def replay(self) -> None:
        assert self.reading is not None
        data = self.reading.data.sel(query=self.query.value, seed=self.seed.value, selection=self.which.value)
        self.shots.show(self._stood(data))
        units, form = str(self.reading.about.get("units", "")), digits(self.result, 3)
        told = [
            f"{NAMES.get(c, c)} {float(data['outcome'].sel(control=c)):{form}}" for c in data["control"].values.tolist()
        ]
        simple = []
        for name in data["predictor"].values.tolist() if "simple" in data else []:
            value = data["simple"].sel(predictor=name).item()
            simple.append(f"{name} of the shots {f'{value:{form}}' if isinstance(value, float) else value}")
        if "simple" in data and data["simple"].dtype.kind == "f":  # a class has no units
            told, simple = told + simple, []
        parts = [f"{', '.join(told)} {units}", ", ".join(simple), f"true: {measured(data['target'].item())}"]
        line = f"Arm {self.reading.about.get('arm', '')}, {self.which.value} shots: {'; '.join(filter(None, parts))}."
        own = [str(i) for i in data["shown_item"].values] if "shown_item" in data else []
        self._say_stored(line, self.predicted(own))
        redraw(self.figure, stored_plots.replay(self.reading, self.query.value, self.seed.value, self.which.value))

    def _stood(self, data: Any) -> list[dict[str, str]]:
        """The cards of a stored selection; of a reading that kept no shots, the query's neighbours."""
        measure = self.measure.value
        if "shown_item" in data:
            near = data["shown_near"].sel(measure=measure).values
            rows = zip(data["shown_item"].values, data["shown_label"].values, near)
            return [self.item(str(i), str(label), f"{measure} {value:.2f}") for i, label, value in rows]
        one = data.sel(measure=measure)
        rows = zip(one["neighbour"].values, one["neighbour_label"].values, one["neighbour_near"].values)
        return [self._card(str(text), str(text), str(label), f"{measure} {value:.2f}") for text, label, value in rows]

    @guarded
    def _chose(self, change: Any) -> None:
        if self.query.value is not None:
            self.replay()
