"""A manifest on disk: plain JSON, sealed with its own checksum, and whether two of them are of one study."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icrl_lab.errors import DataError, StudyError
from icrl_lab.files import write_text
from icrl_lab.studies.place import MANIFEST

FORMAT = 1  # of the folder; a reader refuses another
SAME = ("study", "inputs")  # keys of the manifest that must agree for a run to be resumed


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the folder at `path`, without its seal. DataError where there is none, or not the one that was written."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        seal = manifest.pop("sha256")
    except FileNotFoundError:
        raise DataError(f"{path} is not a run folder: it has no {MANIFEST}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{file} is damaged; run the study again into another --out") from None
    if seal != _seal(manifest):
        raise DataError(f"{file} was changed or damaged: it does not match its own checksum; run the study again")
    if manifest.get("format") != FORMAT:
        raise DataError(f"{file} has format {manifest.get('format')}, and this version reads {FORMAT}")
    return manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write it whole, sealed."""
    body = {"format": FORMAT, **manifest}
    write_text(path / MANIFEST, json.dumps({**body, "sha256": _seal(body)}, indent=1) + "\n")


def plain(value: Any) -> Any:
    """`value` as JSON has it: string keys, lists, finite numbers (a NaN becomes null), anything else as its str."""
    if hasattr(value, "tolist"):  # numpy numbers and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def same_study(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """StudyError, naming the first difference, where the run at `path` is not of the study that is to go on."""
    for key in SAME:
        found = _first_difference(before.get(key), now.get(key), key)
        if found:
            name, there, here = found
            raise StudyError(
                f"{path} holds another study: {name} is {_short(there)} there and {_short(here)} here; "
                "choose another --out, or resume with the study it was started with"
            )


def _first_difference(a: Any, b: Any, name: str) -> tuple[str, Any, Any] | None:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*b, *(k for k in a if k not in b)]
        found = (_first_difference(a.get(k), b.get(k), f"{name}.{k}") for k in keys)
        return next((difference for difference in found if difference), None)
    return None if a == b else (name, a, b)


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
