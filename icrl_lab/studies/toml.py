"""Two things the standard library's TOML reader leaves out: on which line a key stands, and writing.

Knows nothing of studies.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

_TOO_LONG = 2000  # lines; finding a line reads every beginning of the file, and no study file is this long


def line_of(text: str, keys: Sequence[str], value: str | None = None) -> int | None:
    """The line (from 1) where the key `keys[-1]` of table `keys[:-1]` is set, or where its value mentions `value`.

    The key's statement begins right after the longest beginning of the file that parses without it, whatever way
    the table is written (header, dotted keys, inline). None where there is no such key.
    """
    lines = text.split("\n")
    parsed = 0
    for stop in range(1, min(len(lines), _TOO_LONG) + 1):
        try:
            found = tomllib.loads("\n".join(lines[:stop]))
        except (ValueError, RecursionError):
            continue  # in the middle of a statement
        if _has(found, keys):
            mentions = (n for n in range(parsed, stop) if value is not None and value in lines[n])
            return next(mentions, parsed) + 1
        parsed = stop
    return None


def _has(table: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(table, Mapping) or key not in table:
            return False
        table = table[key]
    return True


def dumps(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Sections of plain values as TOML; tables inside a section are written inline. What it writes reads back equal."""
    sections = []
    for name, table in document.items():
        sections.append("\n".join([f"[{_key(name)}]", *(f"{_key(k)} = {_value(v)}" for k, v in table.items())]))
    return "\n\n".join(sections) + "\n"


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
