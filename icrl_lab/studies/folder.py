"""A run on disk: where finished cells go the moment they are finished, and how a run is read back whole.

Owns the run folder: its lock, its manifest, and the checksums that let a reader say "this file is damaged"
instead of returning a wrong number. It does not know what a cell is: a cell is a key and a table of predictions.

While a study runs, each finished cell is appended to `cells.journal` (journal.py). `finish` then writes the files
that people read, each beside its name and renamed, and last the manifest with everybody's checksum: a folder
either has a manifest that vouches for all of it, or it is unfinished and says so. The journal stays behind: it is
what makes a finished run resumable, at the price of a second copy of its predictions.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icrl_lab.errors import DataError, IcrlError, StudyError, nearest
from icrl_lab.files import atomic, sha256, write_text
from icrl_lab.studies.journal import Journal, records

if TYPE_CHECKING:
    import pandas as pd

    from icrl_lab.values import SlotMap

COLUMNS = (
    *("task", "encoder", "llm", "arm", "control", "with_text", "labels", "shots", "selection", "order", "seed"),
    *("item", "target", "prediction", "status", "raw", "seconds", "prompt_tokens", "gold_labels", "draws"),
    *("shot_items", "reference", "copied", "lower", "upper", "crps"),
)  # of predictions.parquet, in this order; a study may add columns behind them
FORMAT = 1  # of the folder; a reader refuses another
SAME = ("study", "inputs")  # keys of the manifest that must agree for a run to be resumed

_JOURNAL, _MANIFEST, _LOCK = "cells.journal", "manifest.json", ".lock"
PROMPTS = "prompts.json"
_TABLES = ("predictions.parquet", "summary.csv", "baselines.csv", "items.parquet")
_WORDS = ("task", "encoder", "llm", "arm", "control", "labels", "selection", "order", "baseline", "verdict", "note")


# ------------------------------------------------------------------------------------------- writing


class RunFolder:
    """A run folder open for writing, held by this process alone. A context manager; leaving it frees the lock.

    Open with `RunFolder.open_for_writing`, `put` each finished cell, `finish` once; read with `RunFolder.read`.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], lock: int, journal: Journal) -> None:
        self.path, self.manifest = path, manifest
        self._lock, self._journal = lock, journal

    @classmethod
    def open_for_writing(cls, path: str | os.PathLike, manifest: Mapping[str, Any], resume: bool = False) -> RunFolder:
        """Make or reopen the folder and take its lock.

        manifest  JSON-able; on `resume`, its "study" and "inputs" must equal those of the folder
        Raises StudyError if another process writes there, if the folder holds something and `resume` is False, or
        if it holds another study; DataError if its manifest is damaged; IcrlError if the disk refuses.
        """
        path = Path(path)
        now: dict[str, Any] = _plain(manifest)
        with disk_trouble(path):
            _refuse_foreign(path)
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
            try:
                if _started(path):
                    _refuse_second(path, resume)
                    before = _read_manifest(path)
                    _same_study(path, before, now)
                    now["start"] = before.get("start", now.get("start"))
                    now["resumed"] = before.get("resumed", 0) + 1
                    now |= {key: before[key] for key in ("seconds", "tokens") if key in before}
                for left in [*path.glob(".*.part"), *path.glob("maps/.*.part")]:
                    left.unlink()  # of a run that was killed: we hold the lock, so nobody is writing them
                _write_manifest(path, {**now, "finished": False})
                journal = Journal(path / _JOURNAL)
            except BaseException:
                os.close(lock)
                raise
        return cls(path, now, lock, journal)

    @staticmethod
    def refuse(path: str | os.PathLike, resume: bool = False) -> None:
        """Raise the StudyError that `open_for_writing` would for a folder that is taken: before anything is loaded."""
        path = Path(path)
        with disk_trouble(path):
            _refuse_foreign(path)
            _refuse_place(path)
            if (path / _LOCK).exists():
                os.close(_take_lock(path))
            if _started(path):
                _refuse_second(path, resume)

    def put(self, cell_key: str, rows: pd.DataFrame) -> None:
        """Keep one finished cell, whole or not at all. A key that is put twice keeps the later rows."""
        with disk_trouble(self.path):
            self._journal.append(cell_key, rows)

    def put_map(self, name: str, slot_map: SlotMap) -> None:
        """Save a fitted slot map under maps/, in a file named after `name`."""
        from safetensors import SafetensorError

        with disk_trouble(self.path):
            try:
                slot_map.save(self.path / "maps" / f"{_slug(name)}.safetensors")
            except SafetensorError as error:  # it hides the errno of a full disk in its text
                full = "No space left" in str(error) or "StorageFull" in str(error)
                raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from None

    def finished(self) -> set[str]:
        """Keys of the cells that are done."""
        return set(self._journal.cells)

    def predictions(self) -> pd.DataFrame:
        """The rows of all finished cells, columns in the order of COLUMNS, cells sorted by their key."""
        return _columned(self._journal.table())

    def finish(
        self,
        manifest_updates: Mapping[str, Any],
        summary: pd.DataFrame,
        baselines: pd.DataFrame | None = None,
        maps: Mapping[str, SlotMap] | None = None,
        items: pd.DataFrame | None = None,
        prompts: Mapping[str, Any] | None = None,
        predictions: pd.DataFrame | None = None,
    ) -> None:
        """Write the tables, the maps and, last, the manifest with the SHA-256 of every file.

        items        one row an item: id, text, target or label, role ("pool", "query" or "")
        prompts      some of the prompts, as `shown.kept` gives them; None: none are kept
        predictions  the rows of all cells in an order of their own; None: cells sorted by their key
        """
        import pandas as pd

        for name, slot_map in (maps or {}).items():
            self.put_map(name, slot_map)
        rows = self.predictions() if predictions is None else _columned(predictions)
        tables = (rows, summary, pd.DataFrame() if baselines is None else baselines, items)
        with disk_trouble(self.path):
            for name, table in zip(_TABLES, tables):
                if table is not None:
                    _write_table(self.path / name, table)
            if prompts is not None:
                write_text(self.path / PROMPTS, json.dumps(prompts, ensure_ascii=False))
            names = [name for name in (*_TABLES, PROMPTS) if (self.path / name).exists()]
            names += sorted(f"maps/{p.name}" for p in self.path.glob("maps/*.safetensors"))
            self.manifest.update(_plain(dict(manifest_updates)))
            files = {name: sha256(self.path / name) for name in names}
            _write_manifest(self.path, {**self.manifest, "finished": True, "files": files})

    def close(self) -> None:
        """Free the lock. Everything that was put stays. Closing twice is harmless."""
        self._journal.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @staticmethod
    def read(path: str | os.PathLike) -> Record:
        """Read a finished run, every table checked against the manifest. DataError names what is missing or damaged."""
        path = Path(path)
        try:
            folder = stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{path}: no such run folder") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        if not folder:
            raise DataError(f"{path}: not a folder")
        manifest = _read_manifest(path)
        if not manifest.get("finished"):
            raise DataError(
                f"{path} holds an unfinished run; finish it with: icrl-lab run STUDY.toml --out {path} --resume"
            )
        tables = [_read_table(path, name, manifest) for name in _TABLES]
        return Record(path, manifest, *tables)


# ------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True, eq=False)
class Record:
    """A finished run as read from disk: the manifest and the tables of the contract (`items` may be empty)."""

    path: Path
    manifest: dict[str, Any]
    predictions: pd.DataFrame
    summary: pd.DataFrame
    baselines: pd.DataFrame
    items: pd.DataFrame

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the saved slot maps."""
        return tuple(n[len("maps/") : -len(".safetensors")] for n in self.manifest["files"] if n.startswith("maps/"))

    def load_prompts(self) -> dict[str, Any] | None:
        """The prompts that the run kept, the file checked first; None for a run that kept none."""
        if PROMPTS not in self.manifest["files"]:
            return None
        _check(self.path, PROMPTS, self.manifest)
        return json.loads((self.path / PROMPTS).read_text(encoding="utf-8"))

    def load_map(self, name: str) -> SlotMap:
        """One fitted slot map, its file checked first."""
        from icrl_lab.values import SlotMap

        if name not in self.maps:
            raise DataError(f"{self.path}: no slot map {name!r}; {nearest(name, self.maps)}")
        _check(self.path, f"maps/{name}.safetensors", self.manifest)
        return SlotMap.load(self.path / "maps" / f"{name}.safetensors")

    def __repr__(self) -> str:
        return f"Record({str(self.path)!r}, {len(self.summary)} cells, {len(self.predictions)} predictions)"


def _columned(frame: pd.DataFrame) -> pd.DataFrame:
    """With all of COLUMNS, and in their order."""
    frame = frame.assign(**{c: None for c in COLUMNS if c not in frame})
    return frame[[*COLUMNS, *(c for c in frame if c not in COLUMNS)]]


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        seal = manifest.pop("sha256")
    except FileNotFoundError:
        raise DataError(f"{path} is not a run folder: it has no {_MANIFEST}") from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{file} is damaged; run the study again into another --out") from None
    if seal != _seal(manifest):
        raise DataError(f"{file} was changed or damaged: it does not match its own checksum; run the study again")
    if manifest.get("format") != FORMAT:
        raise DataError(f"{file} has format {manifest.get('format')}, and this version reads {FORMAT}")
    return manifest


def _check(path: Path, name: str, manifest: Mapping[str, Any]) -> None:
    try:
        right = sha256(path / name) == manifest["files"][name]
    except FileNotFoundError:
        raise DataError(f"{path}: {name} is missing; run the study again with --resume") from None
    except OSError as error:
        raise DataError(f"{path}: {name} cannot be read: {error.strerror}") from None
    if not right:
        raise DataError(f"{path}: {name} was changed or damaged after the run; run the study again with --resume")


def _read_table(path: Path, name: str, manifest: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    if name not in manifest["files"]:
        return pd.DataFrame()
    _check(path, name, manifest)
    if name.endswith(".parquet"):
        return pd.read_parquet(path / name)
    if (path / name).stat().st_size <= 1:
        return pd.DataFrame()  # a run without baselines
    table = pd.read_csv(path / name, dtype=str, keep_default_na=False)
    return table.apply(lambda column: column if column.name in _WORDS else _numbers(column))


def _numbers(column: pd.Series) -> pd.Series:
    """A column of a CSV as Python reads numbers, to the last digit, which pandas' own reader has not always done."""
    import pandas as pd

    cells = column.tolist()
    if set(cells) <= {"True", "False"}:
        return column == "True"
    for number in (int, float):
        try:
            return pd.Series([number(c) if c or number is int else math.nan for c in cells], column.index)
        except ValueError:
            continue
    return column


# ------------------------------------------------------------------------------------------- manifest


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    body = {"format": FORMAT, **manifest}
    write_text(path / _MANIFEST, json.dumps({**body, "sha256": _seal(body)}, indent=1) + "\n")


def _plain(value: Any) -> Any:
    """`value` as JSON has it: string keys, lists, finite numbers (a NaN becomes null), anything else as its str."""
    if hasattr(value, "tolist"):  # numpy numbers and arrays
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _same_study(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
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


# ---------------------------------------------------------------------------------------------- disk


def _write_table(path: Path, table: pd.DataFrame) -> None:
    with atomic(path) as part:
        if path.suffix == ".parquet":
            table.to_parquet(part, index=False, compression="zstd")
        else:
            table.to_csv(part, index=False, lineterminator="\n")


def _slug(name: str) -> str:
    """A file name made of `name`: its plain characters, and a hash wherever that lost something."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:80]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


def _refuse_foreign(path: Path) -> None:
    """A folder that holds somebody else's files is not a place for a run; look before touching anything."""
    if path.exists() and not path.is_dir():
        raise StudyError(f"{path} is a file, and a run needs a folder; choose another --out")
    seen = {p.name for p in path.iterdir()} if path.is_dir() else set()
    if not seen & {_MANIFEST, _JOURNAL, _LOCK} and any(not name.startswith(".") for name in seen):
        raise StudyError(f"{path} is not empty and holds no run (it has {min(seen)!r}); choose another --out")


def _refuse_place(path: Path) -> None:
    """Where no folder can be made, looking at what is there already and making nothing."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    if not there.is_dir():
        what = "a link to what is not there" if there.is_symlink() else "a file"
        raise StudyError(f"{path} cannot be made, {there} is {what}; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StudyError(f"{path} cannot be made, nothing may be written in {there}; choose another --out")


def _started(path: Path) -> bool:
    """Whether the folder holds anything that was computed; a run that kept no cell is begun anew, also as another study."""
    if not (path / _MANIFEST).exists() and not (path / _JOURNAL).exists():
        return False
    journal = (path / _JOURNAL).read_bytes() if (path / _JOURNAL).exists() else None
    if journal is None or any(records(journal)):
        return True
    try:
        return bool(_read_manifest(path).get("finished"))
    except DataError:
        return True  # damaged: not ours to throw away


def _refuse_second(path: Path, resume: bool) -> None:
    if not resume:
        raise StudyError(f"{path} already holds a run; add --resume to go on with it, or choose another --out")


def _take_lock(path: Path) -> int:
    """The lock file's descriptor; the kernel frees the lock when the process dies, however it dies."""
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(lock, 32).decode(errors="replace").strip()
        os.close(lock)
        who = f"process {owner}" if owner.isdigit() else "another process"
        raise StudyError(f"{path} is in use by {who}; wait until it has finished, or choose another --out") from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


@contextmanager
def disk_trouble(path: Path) -> Iterator[None]:
    """A disk that is full, read-only or gone is the user's to mend: say so, and that nothing finished is lost."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise IcrlError(
                f"{path}: the disk is full; free some space and run again with --resume, every finished cell is kept"
            ) from None
        raise IcrlError(f"{path} cannot be written: {error.strerror or error}") from None
