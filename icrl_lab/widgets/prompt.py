"""The prompt as the model is given it: text as text, vectors as chips with the drawn molecule, tokens on demand.

With its model, a study writes any prompt anew (no forward pass); of a run on disk, those that it kept are shown.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as w
import traitlets as t

from icrl_lab.plots.molecules import drawing
from icrl_lab.widgets.base import View, guarded
from icrl_lab.widgets.selection import Selection

if TYPE_CHECKING:
    from icrl_lab.prompts import Piece
    from icrl_lab.studies import StudyResult

NONE = "This run kept no prompts: run its study again, or open it with its model, to see what the model was given."
WORDS = {"with_text": "text beside vectors", "shots": "number of shots"}
KEY = (
    '<p style="font-size:12px;opacity:.85;margin:2px 0">Boxes are vectors; dotted: an item as text; <b style="border-bottom:3px solid '
    '#D55E00">bold, underlined</b>: labels; <i style="border-bottom:2px dashed #0072B2">italic, dashed</i>: what is asked.</p>'
)


class Chips(anywidget.AnyWidget):
    """The prompt on the page.

    pieces  (role, tokens, number of its card or -1, whether it is a chip) of each
    cards   what is told of each shot and query: item, lines, picture, text
    pinned  numbers of the cards that are pinned
    seen    number of the card that is brought into view and told of while nothing is pointed at; -1 is none
    """

    _esm = Path(__file__).with_name("prompt.js")
    _css = Path(__file__).with_name("prompt.css")
    pieces: Any = t.List().tag(sync=True)
    cards: Any = t.List().tag(sync=True)
    pinned: Any = t.List().tag(sync=True)
    seen = t.Int(-1).tag(sync=True)
    tokens = t.Bool(False).tag(sync=True)


class PromptView(View):
    """The prompt of the selected arm, control and query. A click on an item pins it, and its place where it is a shot.

    What another view pins, an item, a shot or a query, is brought into view.
    """

    title = "The prompt"
    follows = ("arm", "control", "query", "item", "shot")

    def __init__(self, result: StudyResult, selection: Selection | None = None, **layout: Any) -> None:
        super().__init__(selection or Selection(result), **layout)
        self.result = result
        self.shown = result.prompts()
        if self.shown is None:
            self.body.children = [w.HTML(f"<p>{NONE}</p>")]
            return
        self.molecules = result.manifest["task"].get("modality") == "molecule"
        table = result.items
        self.texts = dict(zip(table["id"].astype(str), table["text"].astype(str))) if len(table) else {}
        self.pictures: dict[str, str | None] = {}
        self.arm = w.Dropdown(options=self.selection.arms, value=self.selection.arm, description="arm")
        self.control = w.Dropdown(options=self.selection.controls, value=self.selection.control, description="control")
        known = [q for q in self.shown.queries if q in self.selection.queries]
        self.query = w.Dropdown(options=known, value=None, description="query")
        several = {name: values for name, values in self.shown.axes.items() if len(values) > 1}
        self.conditions = {
            name: w.Dropdown(
                options=[(_word(v), v) for v in values], description=WORDS.get(name, name), style={"description_width": "initial"}
            )
            for name, values in several.items()
        }  # fmt: skip
        self.tokens = w.ToggleButton(value=False, description="tokens", tooltip="show where each token begins")
        self.chips = Chips()
        self.count = w.HTML()
        self.size = 0
        self._drawn: Any = None
        self._last = "item"
        for name in ("arm", "control", "query"):
            getattr(self, name).observe(self._chosen, "value")
        for box in (*self.conditions.values(), self.tokens):
            box.observe(self._changed, "value")
        self.chips.on_msg(self._sent)
        boxes = [self.arm, self.control, self.query, *self.conditions.values(), self.tokens]
        self.body.children = [w.HBox(boxes, layout={"flex_flow": "wrap"}), self.count, self.chips, w.HTML(KEY)]
        self._moved(None)

    # ------------------------------------------------------------------------------------ what is shown

    def refresh(self) -> None:
        if self.shown is None:
            return
        s = self.selection
        self.arm.value, self.control.value = s.arm, s.control
        self.query.value = s.query if s.query in self.query.options else None
        wanted = (s.arm, s.control, s.query, *(box.value for box in self.conditions.values()))
        if wanted != self._drawn:
            self._drawn, held = None, {name: box.value for name, box in self.conditions.items()}
            try:
                self._write(self.shown.pieces(s.arm, s.control, s.query, **held) if s.query else ())
            except Exception:  # never another query's prompt under this one's name, nor its size
                self._write(())
                self.count.value = ""
                raise
            self._drawn = wanted
        pinned = [i for i, card in enumerate(self.chips.cards) if card["item"] == s.item]
        if pinned != self.chips.pinned:
            self.chips.pinned = pinned
        self.chips.seen = self._seen()
        told = self._told() if s.query else "Choose a query."
        self.count.value = f'<p role="status" style="margin:2px 0">{html.escape(told)}</p>'

    def _seen(self) -> int:
        """The card of what was selected last: the item, the shot or the query; the one that is in view where it is several."""
        s, cards = self.selection, self.chips.cards
        if self._last == "shot":
            found = [i for i, place in enumerate(self.places) if place >= 0 and place % s.shots == s.shot]
        else:
            found = [i for i, card in enumerate(cards) if card["item"] and card["item"] == getattr(s, self._last)]
            if self._last == "query":  # which may be shown before, with its label, too
                found = [i for i in found if self.places[i] < 0]
        return self.chips.seen if self.chips.seen in found else (*found, -1)[0]

    def _write(self, pieces: Sequence[Piece]) -> None:
        numbers = sorted({p.shot for p in pieces if p.shot is not None and p.item})
        label = {p.shot: p.text.strip() for p in pieces if p.role == "label"}
        norms = {p.shot: p.norms for p in pieces if p.norms}
        items = {p.shot: p.item for p in pieces if p.item}
        cards = [self._card(items[n], n, label.get(n), norms.get(n, ())) for n in numbers]
        own = {p.shot for p in pieces if p.role in ("slot", "text")}
        rows = []
        for p in pieces:
            stands_in = p.role == "marker" and p.shot not in own  # a dummy's marker, where the vector would be
            card = numbers.index(p.shot) if p.shot in numbers else -1
            rows.append([p.role, list(p.tokens), card, card >= 0 and (p.role in ("slot", "text") or stands_in)])
        self.size = sum(len(p.tokens) for p in pieces)
        self.places = [n if label.get(n) is not None else -1 for n in numbers]
        with self.chips.hold_sync():  # one message: cards and pieces belong together
            self.chips.cards, self.chips.pieces, self.chips.pinned = cards, rows, []

    def _card(self, item: str, place: int, label: str | None, norms: Sequence[float]) -> dict[str, Any]:
        text = self.texts.get(item, "")
        lines = [text] if text and text != item else []
        lines.append("the query" if label is None else f"shot {place + 1}, label {label}")
        if norms:
            length = ", ".join(f"{n:.3g}" for n in norms)
            token = self.shown.token  # type: ignore[union-attr]
            beside = f" (a token's: {token:.3g}, median)" if token == token else ""
            lines.append(f"norm {length}{beside}")
        if item not in self.pictures:
            self.pictures[item] = drawing(text, 220, 140) if self.molecules and text else None
        return {"item": item, "text": text, "lines": lines, "picture": self.pictures[item]}

    def _told(self) -> str:
        """In one line: which prompt this is."""
        s, shown = self.selection, self.shown
        assert shown is not None
        told = [f"{self.size} tokens"]
        if s.control != "real" and not any(p[0] == "slot" for p in self.chips.pieces) and s.control != "dummy":
            told.append(f"an arm of text has no vectors that {s.control!r} could change")
        if len(shown.axes["seed"]) == 1 and len(self.result.manifest["seeds"]) > 1:
            told.append(f"seed {shown.axes['seed'][0]}, the one whose prompts this run kept")
        if len(shown.queries) < shown.asked:
            told.append(f"it kept those of {len(shown.queries)} of its {shown.asked} queries")
        return "; ".join(told) + "."

    def static(self) -> str:
        title = f"<h3>{html.escape(self.title)}</h3>"
        if self.shown is None:
            return f"<div>{title}<p>{NONE}</p></div>"
        out = []
        for role, tokens, card, chip in self.chips.pieces:
            told = self.chips.cards[card] if card >= 0 else {}
            text = html.escape("".join(tokens))
            if chip and role == "slot":
                name = html.escape(told["item"])
                seen = (
                    f'<img alt="" src="{told["picture"]}" style="height:46px;width:auto;vertical-align:middle;background:#eef0f3">'
                    if told["picture"]
                    else ""
                )
                text = f'<span style="border:1px solid #888;border-radius:5px;padding:1px">{seen}{name}</span>'
            out.append(f"<b>{text}</b>" if role == "label" else f"<i>{text}</i>" if role == "question" else text)
        return f'<div>{title}{self.count.value}<div style="white-space:pre-wrap;font-family:monospace">{"".join(out)}</div></div>'

    # ------------------------------------------------------------------------------------ what is clicked

    @guarded
    def _moved(self, change: Any) -> None:
        if change is not None and change.name in ("item", "shot", "query"):
            self._last = change.name
        self.refresh()

    @guarded
    def _chosen(self, change: Any) -> None:
        if change.new is not None:
            setattr(self.selection, change.owner.description, change.new)

    @guarded
    def _changed(self, change: Any) -> None:
        self.chips.tokens = self.tokens.value
        self.refresh()

    @guarded
    def _sent(self, chips: Any, content: Any, buffers: Any) -> None:
        self.pin(int(content["pin"]))

    def pin(self, number: int) -> None:
        """Select the item of a card, and its place where it is a shot."""
        card, place = self.chips.cards[number], self.places[number]
        self.chips.seen = number
        self.selection.item = card["item"]
        if place >= 0:
            self.selection.shot = place % self.selection.shots  # shots that are repeated are the same shots


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
