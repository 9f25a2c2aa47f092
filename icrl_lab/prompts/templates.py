"""Layouts: what a shot and a query look like, and in which words they ask for a number, a letter or a class.

A template is format strings. `{item}` is where the item stands: its text, its slot between markers, or both; `as_text`,
`as_vector` and `as_both` say how. The query is the shot up to its label unless the template says otherwise, so that a
prompt for one query ends right where the label would begin. What does not vary stands before the query's slot: the
suffix behind the prefix that all queries share stays short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from string import Formatter

from icrl_lab.errors import StudyError, nearest

FIELDS = ("item", "text", "label", "property", "units", "scale", "noun", "number", "count", "sought", "how")
MARKERS = {"none": ("", ""), "rep": ("[REP]", "[/REP]"), "paren": ("(", ")")}


@lru_cache(maxsize=256)
def pieces(text: str, name: str, known: tuple[str, ...]) -> tuple[tuple[bool, str], ...]:
    """A format string as (is a field, name or text) in order; anything but a plain known field is a StudyError."""
    pieces: list[tuple[bool, str]] = []
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise StudyError(
            f"layout {name!r}: {text!r} is no format string ({error}); write a brace as {{{{ or }}}}"
        ) from None
    for literal, field, spec, conversion in parsed:
        if literal:
            pieces.append((False, literal))
        if field is None:
            continue
        if field not in known or spec or conversion:
            raise StudyError(f"layout {name!r}: unknown field {{{field}}} in {text!r}: {nearest(field, known)}")
        pieces.append((True, field))
    return tuple(pieces)


@dataclass(frozen=True)
class Template:
    """A layout. Format strings know the FIELDS; `as_*` know {text}, {slot} and {noun}.

    shot       one shot, with {label}
    query      one query; None: the shot up to its label
    separator  between header, shots, bridge, queries and footer
    markers    the two texts around a slot
    answer     opens the assistant's turn of a chat (one query a prompt only)
    """

    name: str
    shot: str
    query: str | None = None
    chat: bool = False
    system: str = ""
    header: str = ""
    bridge: str = ""
    footer: str = ""
    separator: str = "\n"
    markers: tuple[str, str] = ("", "")
    as_text: str = "{text}"
    as_vector: str = "{slot}"
    as_both: str = "{text} {slot}"
    answer: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "markers", tuple(self.markers))
        for what in ("shot", "query", "system", "header", "bridge", "footer", "answer"):
            value = getattr(self, what)
            names = [] if value is None else [name for is_field, name in pieces(value, self.name, FIELDS) if is_field]
            if what not in ("shot", "query") and {"item", "text", "label"} & set(names):
                raise StudyError(
                    f"layout {self.name!r}: {what} speaks of no item, so it cannot hold {{item}}, {{text}} or {{label}}"
                )
            if what == "shot" and names.count("label") != 1:
                raise StudyError(
                    f"layout {self.name!r}: a shot needs {{label}} exactly once, it has it {names.count('label')} times"
                )
            if what == "shot" and not {"item", "text"} & set(names):
                raise StudyError(f"layout {self.name!r}: a shot needs {{item}} where the item or its vector stands")
            if what == "query" and value is not None and not {"item", "text"} & set(names):
                raise StudyError(f"layout {self.name!r}: a query needs {{item}} where the item or its vector stands")
            if what == "query" and "label" in names:
                raise StudyError(f"layout {self.name!r}: a query cannot hold {{label}}, which is what is asked for")
        for what, needed in (("as_text", "text"), ("as_vector", "slot"), ("as_both", "slot")):
            got = [
                name for is_field, name in pieces(getattr(self, what), self.name, ("text", "slot", "noun")) if is_field
            ]
            if got.count(needed) != 1 or (what == "as_text" and "slot" in got):
                raise StudyError(
                    f"layout {self.name!r}: {what} needs {{{needed}}} exactly once (and text alone holds no slot)"
                )
        if self.footer and self.query is None and not self.chat:
            raise StudyError(
                f"layout {self.name!r}: a footer would stand between a query and its label; give the template a query of its own, "
                "or write the text in the header"
            )
        if self.query is None and "item" not in self._before_label() and "text" not in self._before_label():
            raise StudyError(
                f"layout {self.name!r}: {{item}} must stand before {{label}} in a shot, or the template needs a query"
            )

    @property
    def behind(self) -> str:
        """What stands behind a label: the rest of its shot as far as it is written out, or the separator of shots. Without white
        space at its end, which a tokenizer gives to what follows, unless it is nothing else. In a chat an answer ends its turn: a line.
        """
        parts = pieces(self.shot, self.name, FIELDS)
        label = next(i for i, part in enumerate(parts) if part == (True, "label"))
        is_field, rest = parts[label + 1] if label + 1 < len(parts) else (False, self.separator)
        if self.chat or is_field or not rest:
            return "\n"
        return rest.rstrip() or rest

    def shows(self, view: str) -> None:
        """Raise the StudyError of a layout that cannot show items in this view: a vector stands only where there is {item}, and
        {text} would show an item's text beside or in place of it."""
        for what in ("shot", "query"):
            value = getattr(self, what)
            names = [] if value is None else [name for is_field, name in pieces(value, self.name, FIELDS) if is_field]
            if value is not None and view != "text" and "item" not in names:
                raise StudyError(
                    f"layout {self.name!r}: its {what} has no {{item}}, so that no vector can stand in it; write {{item}}, which "
                    "is the text, the vector or both, as an arm asks"
                )
            if view == "vector" and "text" in names:
                raise StudyError(
                    f"layout {self.name!r}: its {what} says {{text}} and would show it to arms without text; write {{item}} alone, "
                    "or take with_text = true"
                )

    def _before_label(self) -> list[str]:
        names = [name for is_field, name in pieces(self.shot, self.name, FIELDS) if is_field]
        return names[: names.index("label")]


# --------------------------------------------------------------------------------------------- the registry

SOUGHT = {  # what an answer may be, {sought}, and how it is to be found, {how}
    "number": "You estimate a number for each {noun} you are asked about, by comparing it with the solved examples. "
    "Work the number out for the {noun} in question: do not copy a number from the examples.",
    "letter": "You estimate the {property} of each {noun} you are asked about, by comparing it with the solved examples, and answer "
    "with a letter, which stands for a range of values,{scale}. Work the letter out for the {noun} in question: do not copy a "
    "letter from the examples.",
    "class": "You tell the {property} of each {noun} you are asked about{scale}, by comparing it with the solved examples. "
    "Work the class out for the {noun} in question: do not copy the class of an example.",
}
_EXPERT = "You are an expert in {property}. {how}"

LAYOUTS: dict[str, Template] = {
    t.name: t
    for t in (
        Template("arrow", shot="{item} -> {label}"),
        Template("space", shot="{item} {label}"),
        Template(
            "question",
            header="The {property} of each {noun} below is given{scale}.",
            shot="{noun}: {item}\n{property}: {label}",
            separator="\n\n",
            as_both="{text}\nVector: {slot}",
        ),
        Template(
            "chat",
            chat=True,
            system=_EXPERT,
            header="Estimate the {property} of the last {noun}{scale}. Reply with the {sought} and nothing else.",
            shot="{item}\nAnswer: {label}",
            query="{item}",
            separator="\n\n",
            as_text="{noun}: {text}",
            as_vector="Vector: {slot}",
            as_both="{noun}: {text}\nVector: {slot}",
            answer="Answer: ",
        ),
        Template(  # the published order: each query ends in its output format, so its suffix is long
            "paper",
            chat=True,
            system=_EXPERT,
            header="Solved examples of {property}{scale}:",
            shot="{item}\nAnswer: {label}",
            bridge="Now the questions ({count}):",
            query="Question {number}. What is the {property} of this {noun}?\n{item}\n"
            "Output format of question {number}:\nAnswer {number}: <{sought}>",
            separator="\n\n",
            markers=MARKERS["rep"],
            as_text="{noun}: {text}",
            as_vector="Representation: {slot}",
            as_both="{noun}: {text}\nRepresentation: {slot}",
            answer="Answer {number}: ",
        ),
    )
}


def layout(spec: str | Template | Mapping[str, object], markers: str | tuple[str, str] | None = None) -> Template:
    """The template of a name, of a shot's format string (it holds `{label}`), or of a table of Template's fields.

    `markers` names a pair of MARKERS or is one; None keeps the template's. Unknown names are a StudyError.
    """
    if isinstance(spec, Template):
        template = spec
    elif isinstance(spec, Mapping):
        template = _from_table(spec)
    elif not isinstance(spec, str):
        raise StudyError(f"layout must be a name, a format string or a table, not {type(spec).__name__}")
    elif spec in LAYOUTS:
        template = LAYOUTS[spec]
    elif "{" in spec:
        template = Template("custom", shot=spec)
    else:
        raise StudyError(
            f"unknown layout {spec!r}: {nearest(spec, LAYOUTS)} (or a format string with {{item}} and {{label}})"
        )
    if markers is None:
        return template
    if isinstance(markers, str):
        if markers not in MARKERS:
            raise StudyError(f"unknown markers {markers!r}: {nearest(markers, MARKERS)}")
        markers = MARKERS[markers]
    return replace(template, markers=markers)


def _from_table(table: Mapping[str, object]) -> Template:
    known = [f.name for f in fields(Template)]
    values: dict = {"name": "custom", **table}
    base = values.pop("base", None)  # a table may change some fields of a named layout
    for key, value in values.items():
        if key not in known:
            raise StudyError(f"layout: unknown key {key!r}: {nearest(key, known)}")
        if key == "chat":
            good = isinstance(value, bool)
        elif key == "markers":
            if isinstance(value, str):
                if value not in MARKERS:
                    raise StudyError(f"unknown markers {value!r}: {nearest(value, MARKERS)}")
                values[key] = value = MARKERS[value]
            good = isinstance(value, Sequence) and len(value) == 2 and all(isinstance(m, str) for m in value)
        else:
            good = isinstance(value, str)
        if not good:
            raise StudyError(f"layout: {key!r} cannot be {value!r}")
    if base is not None:
        return replace(layout(str(base)), **values)
    if "shot" not in values:
        raise StudyError('layout: a table needs "shot", e.g. shot = "{item} -> {label}", or the "base" it starts from')
    return Template(**values)
