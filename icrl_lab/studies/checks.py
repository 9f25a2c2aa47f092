"""What a value in a study file may be, key by key, and the sentence where it may not.

A check takes a value and returns it as it is kept, or raises `Bad` with the end of a sentence that begins with the key.
Names belong to their rooms and are looked up there, when they are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab.errors import StudyError, nearest

TEXT_ARMS = ("text", "pca-text")  # arms that put no vector into the prompt


class Wrong(Exception):
    """A sentence about the value at `keys`; `value` is what to look for where that value spans several lines."""

    def __init__(self, keys: tuple[str, ...], sentence: str, value: str | None = None) -> None:
        super().__init__(sentence)
        self.keys, self.value = keys, value


class Bad(Exception):
    """The end of a sentence that begins with the key; `value` as in Wrong."""

    def __init__(self, text: str, value: str | None = None) -> None:
        super().__init__(text)
        self.value = value


Check = Callable[[Any], Any]  # a value -> the value as it is kept, or Bad


# ------------------------------------------------------------------------------------------- names


def names_of(kind: str) -> tuple[str, ...]:
    """The valid names of one kind, from the room that owns them."""
    if kind == "arm":
        from icrl_lab.maps import MAPS

        return (*TEXT_ARMS, *MAPS)

    room, name = _OWNERS[kind]
    return tuple(getattr(import_module(f"icrl_lab.{room}"), name))


_OWNERS = {
    "task": ("tasks", "TASKS"),
    "modality": ("tasks", "MODALITIES"),
    "encoder": ("encoders", "ENCODERS"),
    "llm": ("fetch", "EMBEDDED"),
    "dtype": ("models", "DTYPES"),
    "control": ("controls", "CONTROLS"),
    "selection": ("shots", "SELECTIONS"),
    "order": ("shots", "ORDERS"),
    "layout": ("prompts", "LAYOUTS"),
    "markers": ("prompts", "MARKERS"),
    "label format": ("answers", "FORMATS"),
    "bins of labels": ("answers", "BINS"),
    "probe": ("probes", "QUESTIONS"),
}


# ----------------------------------------------------------------------------------- checks of one value


def show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\x00" in value:
        raise Bad(f"must be a string that is not empty, not {show(value)}")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise Bad(f"must be true or false, not {show(value)}")
    return bool(value)


def whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
            raise Bad(f"must be a whole number from {low} to {high}, not {show(value)}")
        return int(value)

    return check


def _number(low: float, high: float, what: str) -> Check:
    def check(value: Any) -> float:
        number = isinstance(value, Real) and not isinstance(value, bool)
        if not number or not low < value < high:  # a NaN is not between
            raise Bad(f"must be {what}, not {show(value)}")
        return float(value)

    return check


def _one_of(*valid: str) -> Check:
    def check(value: Any) -> str:
        if value not in valid or not isinstance(value, str):
            raise Bad(f"must be one of {', '.join(valid)}, not {show(value)}; {nearest(str(value), valid)}")
        return value

    return check


def _name(kind: str, foreign: bool = False) -> Check:
    """A name of this kind; with `foreign`, also any that is not merely a misspelling of one (a hub name, a folder)."""

    def check(value: Any) -> str:
        valid = names_of(kind)
        if text(value) in valid:
            return value
        hint = nearest(value, valid)
        misspelt = hint.startswith("did you mean") and "/" not in value and ":" not in value and "." not in value
        if not foreign or misspelt:
            raise Bad(f"has an unknown name {value!r}; {hint}", value)
        return value

    return check


def _many(check: Check) -> Check:
    """One value or a list of different ones, kept as a tuple."""

    def checked(value: Any) -> tuple:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if not values:
            raise Bad("must not be empty")
        found: list[Any] = []
        for one in values:
            kept = check(one)
            if kept in found:
                raise Bad(f"has {show(kept)} twice", str(one))
            found.append(kept)
        return tuple(found)

    return checked


def _seeds(value: Any) -> tuple[int, ...]:
    if isinstance(value, (list, tuple)):
        return _many(whole(0, 2**31 - 1))(value)
    return tuple(range(whole(1, 10_000)(value)))


def _list(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise Bad(f"must be a list, not {show(value)}")
    if not value:
        raise Bad("must not be empty")
    return value


def _layout(value: Any) -> Any:
    """The name of a layout, a shot's format string, or a table of a template's fields."""
    if isinstance(value, str) and "{" not in value:
        return _name("layout")(value)
    from icrl_lab.prompts import layout

    kept = value if isinstance(value, str) else _options(value)
    try:
        layout(kept)
    except StudyError as error:
        raise Bad(f"is no template: {error}") from None
    return kept


def _markers(value: Any) -> str | tuple[str, str]:
    """The name of a pair of markers, or a pair."""
    if isinstance(value, (list, tuple)):
        if len(value) != 2 or not all(isinstance(m, str) for m in value):
            raise Bad("must be a pair of strings, or the name of one")
        return (value[0], value[1])
    return _name("markers")(value)


_SCALE = _number(0, 1e6, 'a number above 0 or "own"')


def scale(value: Any) -> float | str:
    """Norms of slots relative to a token's, or "own": as the map gives them."""
    return value if isinstance(value, str) and value == "own" else _SCALE(value)


def option(value: Any) -> Any:
    """A plain value of an option; what it may be is for its owner to say."""
    if isinstance(value, (list, tuple)):
        return [option(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (Integral, Real)) and value == value:
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, str):
        return value
    raise Bad(f"must be a string, a number, true, false or a list of them, not {show(value)}")


def _options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise Bad(f"must be a table, not {show(value)}")
    return {str(k): option(v) for k, v in value.items()}


def _tables(value: Any) -> dict[str, dict[str, Any]]:
    """A table of options for each probe."""
    if not isinstance(value, Mapping):
        raise Bad(f"must be a table of tables, not {show(value)}")
    return {_name("probe")(name): _options(options) for name, options in value.items()}


ENCODER: dict[str, Check] = {
    "name": _name("encoder", foreign=True),
    "path": text,
    "options": _options,
    "slots": whole(1, 64),
}


def _encoders(value: Any) -> tuple[dict[str, Any], ...]:
    """Encoders: the name of each, or a table with the keys of one."""
    found = []
    for one in _list(value):
        kept = {}
        for key, given in (one if isinstance(one, Mapping) else {"name": one}).items():
            if key not in ENCODER:
                raise Bad(f"has no key {key!r}; {nearest(key, ENCODER)}", str(key))
            try:
                kept[key] = ENCODER[key](given)
            except Bad as bad:
                raise Bad(f"has one whose {key} {bad}", bad.value or str(given)) from None
        found.append(kept)
    return tuple(found)


DRAWS = whole(1, 10_000)

SECTIONS: dict[str, dict[str, Check]] = {
    "task": {
        **dict.fromkeys(("path", "text", "target", "label", "id", "split"), text),
        **dict.fromkeys(("units", "property"), lambda value: value if value == "" else text(value)),
        "name": _name("task"),
        "modality": _name("modality"),
        "on_bad": _one_of("error", "drop"),
        "query_fraction": _number(0, 1, "a number between 0 and 1"),
        "options": _options,
    },
    "encoder": {**ENCODER, "also": _encoders},
    "llm": {"name": _name("llm", foreign=True), "dtype": _name("dtype")},
    "study": {
        "arms": _list,
        "controls": _many(_name("control")),
        "with_text": _many(flag),
        "labels": _many(_one_of("true", "permuted")),
        "shots": _many(whole(1, 100_000)),
        "selection": _many(_name("selection")),
        "order": _many(_name("order")),
        "draws": DRAWS,
        "layout": _layout,
        "label_format": _name("label format"),
        "label_bins": _name("bins of labels"),
        "slot_scale": scale,
        "seeds": _seeds,
        "queries": whole(1, 10**9),
        "point": _one_of("mean", "median", "mode"),
        "decode": _one_of("score", "greedy", "sample"),
        "per_token": flag,
        "calibrate": flag,
        "markers": _markers,
        "queries_per_prompt": whole(1, 1000),
        "repeat": whole(1, 16),
        "split_seed": whole(0, 2**31 - 1),
    },
    "probes": {
        "questions": _many(_name("probe")),
        "arm": text,
        "seeds": _seeds,
        "queries": whole(3, 10**9),
        "options": _tables,
    },
}


# ----------------------------------------------------------------------------------------- a section


def section(name: str, document: Mapping[str, Any], base: Path) -> dict[str, Any]:
    table, checks = document.get(name, {}), SECTIONS[name]
    if not isinstance(table, Mapping):
        raise Wrong((name,), f"{name} must be a section, [{name}], not {show(table)}")
    found = {}
    for key, value in table.items():
        if key not in checks:
            raise Wrong((name, key), f"[{name}] has no key {key!r}; {nearest(key, checks)}")
        try:
            found[key] = checks[key](value)
        except Bad as bad:
            raise Wrong((name, key), f"in [{name}], {key} {bad}", bad.value) from None
    for placed in (found, *found.get("also", ())):
        for key in ("path", "name"):
            if key in placed and name != "study":
                placed[key] = _place(placed[key], base, is_path=key == "path", kind=name)
    return found


def _place(value: str, base: Path, is_path: bool, kind: str) -> str:
    """A path as an absolute one; a name unless it is written like a path, or is none of this kind and a folder beside the study file."""
    written = value.startswith(("./", "../", "/", "~")) or value.endswith((".gguf", ".npz", ".parquet"))
    if is_path or written or (value not in names_of(kind) and (base / value).is_dir()):
        return os.path.normpath(base / Path(value).expanduser())
    return value
