"""What the views of order and similarity share: the shots of one query as cards, and a model that is asked about them.

A run with its model is asked again whenever the shots were changed: after a pause, in the background, with a bar and a stop.
A run without one shows what was stored. Which shots stand where is a tuple of numbers; texts and drawings cross to the page once.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as w
import numpy as np
import traitlets as t

from icrl_lab.plots import live as plots
from icrl_lab.plots import style
from icrl_lab.plots.molecules import drawing
from icrl_lab.probes import live
from icrl_lab.probes.scene import cell_of
from icrl_lab.widgets.base import View, digits, guarded, redraw
from icrl_lab.widgets.figure import figure_widget
from icrl_lab.widgets.live import Job, Runner
from icrl_lab.widgets.reading import ReadingView
from icrl_lab.widgets.selection import Selection

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.studies import StudyResult

KEPT = 64  # answers to the study's own shots that a view remembers
NO_MODEL = (
    "This run was opened without its model, so its shots cannot be changed here and nothing new can be asked; "
    "what was stored is shown. Open it live to ask the model."
)
UNANSWERED = (
    "The model had not answered when this was written; view.runner.join() waits for it, then show the view again."
)
picture = lru_cache(maxsize=4096)(lambda text: drawing(text, 150, 100))


class ShotList(anywidget.AnyWidget):
    """Shots as cards that can be moved with mouse and keyboard.

    cards    of each its name, text, picture (data URI, or ""), label and note
    order    which card stands where: a permutation of their numbers
    bars     (attention to the shot, and of it to its vector) of each card; empty is none
    buttons  names of the buttons of each card; a press is told to `pressed(card, button)`
    """

    _esm = Path(__file__).with_name("shots.js")
    _css = Path(__file__).with_name("shots.css")
    cards: Any = t.List().tag(sync=True)
    order: Any = t.Tuple().tag(sync=True)
    bars: Any = t.List().tag(sync=True)
    buttons: Any = t.List().tag(sync=True)
    label = t.Unicode("shots").tag(sync=True)
    movable = t.Bool(True).tag(sync=True)
    disabled = t.Bool(False).tag(sync=True)

    @t.validate("order")
    def _permutation(self, proposal: Any) -> tuple[int, ...]:
        found = tuple(proposal.value)
        if found and (not all(type(i) is int for i in found) or sorted(found) != list(range(len(self.cards)))):
            raise t.TraitError(f"order: {found!r} is no permutation of {len(self.cards)} shots")
        return found

    def show(self, cards: Sequence[dict[str, str]]) -> None:
        """Other cards, in the order given."""
        with self.hold_sync():
            self.order, self.bars = (), []
            self.cards = list(cards)
            self.order = tuple(range(len(cards)))


class ShotsView(View):
    """The shots of the selected query. A subclass says what can be done with them and how what was stored is shown.

    chosen    positions in the task of the shots as they stand now, in the order of the prompt (of a run with its model)
    original  the study's own
    seed      which of the study's seeds: its shots, its map
    """

    question = ""
    what = ""  # what a person can do with the cards, in words
    what_stored = ""  # the same where there is no model
    follows = ("arm", "control", "query")
    chosen: Any = t.Tuple()

    def __init__(
        self, result: StudyResult, selection: Selection | None = None, *, wait: float = 0.4, **layout: Any
    ) -> None:
        super().__init__(selection or Selection(result), **layout)
        self.result, self.study = result, result.study
        self.reading = result.readings().get(self.question)
        self.before: dict[Any, live.Answered] = {}
        self.now: dict[str, live.Answered] = {}
        self.runner = Runner(self._answered, self._failed, self._progressed, wait)
        seeds = self.study.plan.seeds if self.study is not None else self._coordinate("seed")
        self.query = w.Dropdown(options=self._queries(), description="query", value=None, layout={"width": "280px"})
        self.seed = w.Dropdown(options=list(seeds), description="seed", layout={"width": "160px"})
        self.shots = ShotList(disabled=self.study is None)
        self.bar = w.FloatProgress(min=0, max=1, layout={"width": "180px", "visibility": "hidden"})
        self.stop = w.Button(description="Stop", icon="stop", disabled=True, tooltip="stop asking the model")
        self.doing, self.words = w.HTML(), w.HTML()
        self.figure = figure_widget(self._empty())
        self.query.observe(self._picked, "value")
        self.seed.observe(self._moved, "value")
        self.stop.on_click(self._stopped)
        self.body.children = self._layout()
        self._moved(None)

    # ------------------------------------------------------------------------------------ what a subclass says

    def controls(self) -> Sequence[w.Widget]:
        """What stands above the cards of a run with its model."""
        return ()

    def cards(self) -> list[dict[str, str]]:
        """The cards of `chosen`."""
        raise NotImplementedError

    def stored(self) -> Sequence[w.Widget]:
        """What stands above the cards of a run without its model."""
        return ()

    def replay(self) -> None:
        """Show what was stored of the selected query."""

    # ------------------------------------------------------------------------------------ what is shown

    def _layout(self) -> list[w.Widget]:
        wrap = {"flex_flow": "wrap", "align_items": "center"}
        above = self.controls() if self.study is not None else self.stored()
        boxes = [w.HBox([self.query, self.seed, *above], layout=wrap)]
        if self.study is None:
            boxes.insert(0, w.HTML(f"<p>{NO_MODEL}</p>"))
        boxes += [
            w.HTML(f"<p>{html.escape(self.what if self.study is not None else self.what_stored)}</p>"),
            self.shots,
        ]
        if self.study is not None:
            boxes.append(w.HBox([self.stop, self.bar, self.doing], layout=wrap))
        boxes += [self.words, self.figure]
        if self.reading is not None:
            more = w.Accordion([w.VBox()], titles=["the stored reading of all queries"], selected_index=None)
            more.observe(self._opened, "selected_index")
            boxes.append(more)
        return boxes

    @guarded
    def _opened(self, change: Any) -> None:
        inside = change.owner.children[0]
        if not inside.children and self.reading is not None:
            inside.children = [ReadingView(self.reading, self.selection)]

    def figures(self) -> Sequence[go.Figure]:
        shown = [style.graph_objects().Figure(self.figure)] if self.figure.data else []
        return (*shown, *([self.reading.plot()] if self.reading is not None else []))

    def static(self) -> str:
        """The shots as a numbered list in the order of the prompt, what was answered, and the figures."""
        title, order = f"<h3>{html.escape(self.title)}</h3>", self.shots.order or range(len(self.shots.cards))
        rows = "".join(f"<li>{self._row(self.shots.cards[i])}</li>" for i in order)
        late = self.study is not None and rows and not self.figure.data
        words = f"<p>{UNANSWERED}</p>" if late else self.words.value
        return f"<div>{title}<ol>{rows}</ol>{words}{super().static().split('</h3>', 1)[1]}"

    @staticmethod
    def _row(card: dict[str, str]) -> str:
        """A card as a line of HTML."""
        source = html.escape(card["picture"], quote=True)
        picture = f'<img alt="" src="{source}" height="40" style="background:#fff"> ' if source else ""
        told = ", ".join(html.escape(part) for part in (card["label"], card["note"]) if part)
        return f"{picture}{html.escape(card['name'])}: {told}"

    def _empty(self) -> go.Figure:
        return style.finish(style.graph_objects().Figure(), "What the model answers", "Nothing was asked yet.", 60)

    def refresh(self) -> None:
        chosen = self.selection.query if self.selection.query in self.query.options else None
        self.query.unobserve(self._picked, "value")  # it follows the selection here, nobody chose it
        self.query.value = chosen
        self.query.observe(self._picked, "value")
        self.runner.stop()
        self._idle()
        self.now = {}
        if chosen is None:
            self._blank()
        elif self.study is None:
            self.replay()
        else:
            s = self.selection
            self.original = tuple(map(int, live.own_shots(self.study, s.arm, s.control, chosen, self.seed.value)))
            self.chosen = self.original
            self.show()
            self.ask()

    def _blank(self) -> None:
        """What is said of a query that there is nothing to show of."""
        self.shots.show([])
        self.words.value = ""
        redraw(self.figure, self._empty())
        if self.selection.query and self.study is None:
            none = "Nothing was stored of this question; add it to [probes] in the study file."
            self.say(
                none
                if self.reading is None
                else f"The stored reading did not ask about {self.selection.query}; choose a query."
            )
        else:
            self.say("Choose a query.")

    def show(self) -> None:
        """The cards of what is chosen."""
        self.shots.show(self.cards())

    def card(self, position: int, label: str, note: str) -> dict[str, str]:
        """An item of the task as a card."""
        assert self.study is not None
        task = self.study.task
        text = task.text[position] if task.text is not None else task.ids[position]
        return self._card(task.ids[position], text, label, note)

    def _card(self, name: str, text: str, label: str, note: str) -> dict[str, str]:
        molecule = self.result.manifest["task"].get("modality") == "molecule"
        return {
            "name": name,
            "text": text,
            "picture": (picture(text) if molecule else None) or "",
            "label": label,
            "note": note,
        }

    def item(self, name: str, label: str, note: str) -> dict[str, str]:
        """An item of a stored run as a card; a true label is followed by the number that it stands for, as where the model is there."""
        rows = self.result.items
        found = rows[rows["id"].astype(str) == name] if len(rows) else rows
        assert self.reading is not None
        if len(found) and self.reading.about.get("labels") == "true" and "target" in found:
            label = f"{label} = {found['target'].iloc[0]:{digits(self.result)}}"
        return self._card(name, str(found["text"].iloc[0]) if len(found) and "text" in found else name, label, note)

    def predicted(self, items: Sequence[str]) -> str:
        """What the run itself predicted from these shots in this order, with the interval that it stored, in words; "" of classes."""
        assert self.reading is not None
        about, units = self.reading.about, self.reading.about.get("units", "")
        frame = self.result.predictions
        mine = (frame["item"] == self.query.value) & (frame["seed"] == self.seed.value) & (frame["status"] == "ok")
        frame = frame[mine & (frame["labels"] == about.get("labels")) & (frame["shot_items"] == ";".join(items))]
        if self.result.predictions["target"].dtype.kind not in "fi":
            return ""
        told, form = [], digits(self.result, 3)
        for control in self._coordinate("control"):
            arm, name = ("text", "real") if control == "text" else (about.get("arm"), control)
            rows = frame[(frame["arm"] == arm) & (frame["control"] == name)]
            if control != "text":
                rows = rows[rows["with_text"] == about.get("with_text")]
            if len(rows):
                value, low, high = (float(rows[n].iloc[0]) for n in ("prediction", "lower", "upper"))
                told.append(f"{control} {value:{form}} [{low:{form}}, {high:{form}}]")
        if not told:
            return "The run itself predicted nothing from just these shots, so that no predictive interval of it is stored."
        bars = "brackets: 0.025 to 0.975 quantiles of the predictive distribution, no error of the estimate"
        return f"The run's own prediction from these shots, in its own order: {', '.join(told)} {units} ({bars})."

    def labels(self) -> list[str]:
        """What each of `chosen` is shown with, and of a number what it stands for, in the task's units."""
        study, s = self.study, self.selection
        assert study is not None
        cell = cell_of(study, s.arm, s.control, seed=self.seed.value)
        group = study.material.group(cell, (self.at,), np.array(self.chosen))
        if study.task.targets is None:
            return list(group.written)
        says = study.material.shown_targets(group, cell)
        form = digits(self.result)
        return [f"{word} = {value:{form}}" for word, value in zip(group.written, says)]

    @property
    def at(self) -> int:
        """Position in the task of the query."""
        assert self.study is not None
        return live.position(self.study, self.query.value)

    def _say_stored(self, *lines: str) -> None:
        said = "".join(f"<p>{html.escape(line)}</p>" for line in lines if line)
        self.words.value = f'<div role="status" aria-live="polite">{said}</div>'

    def _queries(self) -> list[str]:
        return list(self.selection.queries) if self.study is not None else self._coordinate("query")

    def _coordinate(self, name: str) -> list[Any]:
        return self.reading.data[name].values.tolist() if self.reading is not None else []

    # ------------------------------------------------------------------------------------ asking

    def _key(self, control: str) -> tuple[Any, ...]:
        return self.selection.arm, control, self.seed.value, self.query.value

    def ask(self) -> None:
        """Ask the model about the shots as they stand, soon and in the background; returns at once."""
        study, s, seed, query, shots = self.study, self.selection, self.seed.value, self.query.value, self.chosen
        assert study is not None
        arm, own = s.arm, self.original
        names = live.controls_of(study, arm, s.control)
        known = dict(self.before)
        keys = {name: self._key(name) for name in names}

        def work(job: Job) -> tuple[Any, ...]:
            first = [(n, own) for n in names if keys[n] not in known]
            todo = first + ([(n, shots) for n in names] if shots != own else [])
            found = {}
            for number, (name, row) in enumerate(todo):
                job.step(number / len(todo), f"{name} vectors, {'as it was' if row == own else 'now'}")
                found[name, row == own] = live.ask(study, arm, name, query=query, shots=row, seed=seed)
            job.step(1.0)
            before = {n: found.get((n, True), known.get(keys[n])) for n in names}
            return keys, shots, before, {n: found[n, False] for n in names} if shots != own else before

        self.doing.value = "the model will be asked"
        self.stop.disabled = False
        self.runner.submit(work)

    def _answered(self, result: tuple[Any, ...]) -> None:
        keys, shots, before, now = result
        if shots != self.chosen or any(self._key(name) != key for name, key in keys.items()):
            return  # the page has moved on
        try:
            self.before |= {keys[name]: found for name, found in before.items()}
            while len(self.before) > KEPT:
                del self.before[next(iter(self.before))]
            self.now = now
            self._tell(before, now)
            self._idle()
        except Exception as error:
            self._failed(error)

    def _tell(self, before: dict[str, live.Answered], now: dict[str, live.Answered]) -> None:
        study = self.study
        assert study is not None
        task, first = study.task, next(iter(now.values()))
        truth: Any = float(task.targets[self.at]) if task.targets is not None else task.labels[self.at]  # type: ignore[index]
        changed = {} if now is before else before
        caption = f"{first.arm}, seed {first.seed}, {len(first.shots)} shots."
        redraw(self.figure, plots.answers(changed, now, truth, caption))
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in live.says(changed, now, self.what_moved(), truth))
        self.words.value = f'<ul role="status" aria-live="polite">{lines}</ul>'
        places = {p: i for i, p in enumerate(first.shots.tolist())}
        at = [places[p] for p in self._of_cards()]
        self.shots.bars = [[float(first.attention[i]), float(first.on_vector[i])] for i in at]

    def what_moved(self) -> str:
        return "this change"

    def _of_cards(self) -> Sequence[int]:
        """The position in the task of each card, by its number."""
        return self.chosen

    def _failed(self, error: BaseException) -> None:
        self._idle()
        self.complain(error)

    def _progressed(self, share: float, words: str) -> None:
        self.bar.layout.visibility = "visible"
        self.bar.value, self.doing.value = share, html.escape(words)

    def _idle(self) -> None:
        self.bar.layout.visibility, self.doing.value, self.stop.disabled = "hidden", "", True

    # ------------------------------------------------------------------------------------ what is clicked

    @guarded
    def _picked(self, change: Any) -> None:
        if change.new is not None:
            self.selection.query = change.new

    @guarded
    def _stopped(self, button: Any) -> None:
        self.runner.stop()
        self._idle()
        self.say("Stopped. What is shown was asked before; the shots stand as you left them.")

    def close(self) -> None:
        self.runner.stop()
        super().close()
