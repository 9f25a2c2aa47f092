"""A run on disk: where finished cells go the moment they are finished, and how a run is read back whole.

Owns the run folder's files and the checksums that let a reader say "this file is damaged" instead of returning a wrong
number. Whether a folder may be one at all, and its lock, are place.py's; the manifest's form is sealed.py's. It does not
know what a cell is: a cell is a key and a table of predictions.

While a study runs, each finished cell is appended to `cells.journal` (journal.py). `finish` then writes the files
that people read, each beside its name and renamed, and last the manifest with everybody's checksum: a folder
either has a manifest that vouches for all of it, or it is unfinished and says so. The journal stays behind: it is
what makes a finished run resumable, at the price of a second copy of its predictions.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.files import atomic, sha256, write_text
from icrl_lab.studies.journal import Journal, records
from icrl_lab.studies.place import JOURNAL, LOCK, MANIFEST, disk_trouble, refuse_foreign, refuse_unmakeable, take_lock
from icrl_lab.studies.sealed import plain, read_manifest, same_study, write_manifest

if TYPE_CHECKING:
    import pandas as pd

    from icrl_lab.values import SlotMap

COLUMNS = (
    *("task", "encoder", "llm", "arm", "control", "with_text", "labels", "shots", "selection", "order", "seed"),
    *("item", "target", "prediction", "status", "raw", "seconds", "prompt_tokens", "gold_labels", "draws"),
    *("shot_items", "reference", "copied", "lower", "upper", "crps", "failed_draws"),
)  # of predictions.parquet, in this order; a study may add columns behind them
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
        now: dict[str, Any] = plain(manifest)
        with disk_trouble(path):
            refuse_foreign(path)
            path.mkdir(parents=True, exist_ok=True)
            lock = take_lock(path)
            try:
                if _started(path):
                    _refuse_second(path, resume)
                    before = read_manifest(path)
                    same_study(path, before, now)
                    now["start"] = before.get("start", now.get("start"))
                    now["resumed"] = before.get("resumed", 0) + 1
                    now |= {key: before[key] for key in ("seconds", "tokens") if key in before}
                for left in [*path.glob(".*.part"), *path.glob("maps/.*.part")]:
                    left.unlink()  # of a run that was killed: we hold the lock, so nobody is writing them
                write_manifest(path, {**now, "finished": False})
                journal = Journal(path / JOURNAL)
            except BaseException:
                os.close(lock)
                raise
        return cls(path, now, lock, journal)

    @staticmethod
    def refuse(path: str | os.PathLike, resume: bool = False) -> None:
        """Raise the StudyError that `open_for_writing` would for a folder that is taken: before anything is loaded."""
        path = Path(path)
        with disk_trouble(path):
            refuse_foreign(path)
            refuse_unmakeable(path)
            if (path / LOCK).exists():
                os.close(take_lock(path))
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
            self.manifest.update(plain(dict(manifest_updates)))
            files = {name: sha256(self.path / name) for name in names}
            write_manifest(self.path, {**self.manifest, "finished": True, "files": files})

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
        """Read a finished run, every table and its prompts checked against the manifest. DataError names what is missing or damaged."""
        path = Path(path)
        try:
            folder = stat.S_ISDIR(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{path}: no such run folder") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        if not folder:
            raise DataError(f"{path}: not a folder")
        manifest = read_manifest(path)
        if not manifest.get("finished"):
            raise DataError(
                f"{path} holds an unfinished run; finish it with: icrl-lab run STUDY.toml --out {path} --resume"
            )
        tables = [_read_table(path, name, manifest) for name in _TABLES]
        if PROMPTS in manifest["files"]:
            _check(path, PROMPTS, manifest)  # read when they are asked for
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


def _started(path: Path) -> bool:
    """Whether the folder holds anything that was computed; a run that kept no cell is begun anew, also as another study."""
    if not (path / MANIFEST).exists() and not (path / JOURNAL).exists():
        return False
    journal = (path / JOURNAL).read_bytes() if (path / JOURNAL).exists() else None
    if journal is None or any(records(journal)):
        return True
    try:
        return bool(read_manifest(path).get("finished"))
    except DataError:
        return True  # damaged: not ours to throw away


def _refuse_second(path: Path, resume: bool) -> None:
    if not resume:
        raise StudyError(f"{path} already holds a run; add --resume to go on with it, or choose another --out")
