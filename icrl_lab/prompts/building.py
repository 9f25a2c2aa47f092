"""Building: a template, shots and queries become a Prompt: parts in order, each knowing its role and its shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.prompts.templates import FIELDS, SOUGHT, Template, pieces
from icrl_lab.values import Prompt, Slot, Text

VIEWS = ("text", "vector", "both")


@dataclass(frozen=True)
class Example:
    """An item as a prompt shows it.

    text   its own text, e.g. SMILES
    label  its label as written; "" for a query
    code   text that stands where the vector would, without markers, e.g. a PCA string; None where there is a slot
    """

    id: str
    text: str = ""
    label: str = ""
    code: str | None = None


def build(template: Template, shots: Sequence[Example], queries: Sequence[Example], **options: Any) -> Prompt:
    """The prompt that shows `shots` with their labels and asks about `queries`; options of `build_all`."""
    return build_all(template, shots, [queries], **options)[0]


def build_all(
    template: Template,
    shots: Sequence[Example],
    asked: Sequence[Sequence[Example]],
    *,
    view: str = "vector",
    width: int = 1,
    property: str = "property",
    units: str = "",
    scale: str = "",
    noun: str = "item",
    sought: str = "number",
) -> list[Prompt]:
    """A prompt for each of `asked`, lists of queries, behind the same shots. What stands before the queries is built once.

    view    "text", "vector", or "both" (the text first, then the slot); an Example's `code` stands in for its slot
    width   vectors a slot
    scale   how labels are written, e.g. "from 0 (lowest) to 9 (highest)"; default: "in <units>"
    sought  what a label is: "number", "letter" (which stands for a range of numbers) or "class"

    Slots are named shot0.. and query0..; parts of query j carry `shot` k + j. Of a plain layout with one query, the prompt
    ends where the label begins; a chat opens the assistant's turn with `template.answer`. Several queries in a prompt are
    answered by generation, and need a layout that numbers them.
    """
    if view not in VIEWS:
        raise StudyError(f"unknown view {view!r}: {nearest(view, VIEWS)}")
    if sought not in SOUGHT:
        raise StudyError(f"unknown kind of answer {sought!r}: {nearest(sought, SOUGHT)}")
    template.shows(view)
    numbered = "number" in [n for f, n in pieces(template.query or "", template.name, FIELDS) if f]
    for queries in asked:
        if not queries:
            raise StudyError("a prompt needs at least one query")
        if len(queries) > 1 and not numbered:
            raise StudyError(
                f"layout {template.name!r} asks one query a prompt; for {len(queries)}, take 'paper' or put {{number}} in its query"
            )
    scale = scale or (f"in {units}" if units else "")
    common = {
        "property": property,
        "units": units,
        "scale": f" {scale}" if scale else "",
        "noun": noun,
        "sought": sought,
    }
    common["how"] = _fill(SOUGHT[sought], template, common)
    heads: dict[int, _Writer] = {}
    out = []
    for queries in asked:
        if len(queries) not in heads:  # a layout may say how many are asked
            write = _Writer(template, view, width, {**common, "count": str(len(queries))})
            heads[len(queries)] = write.opened(shots)
        out.append(heads[len(queries)].copy().asked(queries, len(shots)))
    return out


def _fill(text: str, template: Template, values: Mapping[str, str]) -> str:
    return "".join(values[name] if is_field else name for is_field, name in pieces(text, template.name, FIELDS))


class _Writer:
    """Collects parts; joins neighbouring texts of one role and one shot."""

    def __init__(self, template: Template, view: str, width: int, common: Mapping[str, str]) -> None:
        self.template, self.view, self.width, self.common = template, view, width, common
        self.parts: list[Text | Slot] = []

    def opened(self, shots: Sequence[Example]) -> _Writer:
        """What stands before the queries is written."""
        template = self.template
        if template.header:
            self.form(template.header, "template")
            self.put(template.separator)
        for i, shot in enumerate(shots):
            self.form(template.shot, "template", i, f"shot{i}", shot)
            self.put(template.separator)
        if template.bridge:
            self.form(template.bridge, "template")
            self.put(template.separator)
        return self

    def copy(self) -> _Writer:
        other = _Writer(self.template, self.view, self.width, self.common)
        other.parts = list(self.parts)
        return other

    def asked(self, queries: Sequence[Example], shots: int) -> Prompt:
        """The prompt, when the queries behind so many shots are written."""
        template = self.template
        ask = template.query if template.query is not None else template.shot
        for j, query in enumerate(queries):
            if j:
                self.put(template.separator)
            self.form(ask, "question", shots + j, f"query{j}", query, until_label=True, number=j + 1)
        if template.footer:
            self.put(template.separator)
            self.form(template.footer, "question")
        one = {**self.common, "number": "1"}
        system, answer = _fill(template.system, template, one), _fill(template.answer, template, one)
        return Prompt(tuple(self.parts), system, answer if template.chat and len(queries) == 1 else "", template.chat)

    def put(self, text: str, role: str = "template", shot: int | None = None) -> None:
        if not text:
            return
        last = self.parts[-1] if self.parts else None
        if isinstance(last, Text) and (last.role, last.shot) == (role, shot) and role in ("template", "question"):
            self.parts[-1] = Text(last.text + text, role, shot)
        else:
            self.parts.append(Text(text, role, shot))

    def form(
        self,
        text: str,
        role: str,
        shot: int | None = None,
        key: str = "",
        example: Example | None = None,
        until_label: bool = False,
        number: int = 1,
    ) -> None:
        values = {**self.common, "number": str(number)}
        for is_field, name in pieces(text, self.template.name, FIELDS):
            if not is_field:
                self.put(name, role, shot)
            elif name == "label":
                assert example is not None
                if until_label:
                    return
                if not example.label:
                    raise DataError(f"shot {example.id!r} has no label")
                self.put(example.label, "label", shot)
            elif name == "text":
                assert example is not None
                self.put(example.text, "text", shot)
            elif name == "item":
                assert example is not None
                self.item(example, role, shot, key)
            else:
                self.put(values[name], role, shot)

    def item(self, example: Example, role: str, shot: int | None, key: str) -> None:
        form = getattr(self.template, f"as_{self.view}")
        for is_field, name in pieces(form, self.template.name, ("text", "slot", "noun")):
            if not is_field:
                self.put(name, role, shot)
            elif name == "noun":
                self.put(self.common["noun"], role, shot)
            elif name == "text":
                if not example.text:
                    raise DataError(
                        f"item {example.id!r} has no text to show; use vectors without text, or give the task a text column"
                    )
                self.put(example.text, "text", shot)
            elif example.code is not None:
                self.put(example.code, "text", shot)
            else:
                before, after = self.template.markers
                self.put(before, "marker", shot)
                self.parts.append(Slot(key, example.id, self.width, shot))
                self.put(after, "marker", shot)
