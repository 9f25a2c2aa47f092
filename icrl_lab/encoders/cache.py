"""Vectors on disk, keyed by space and by the item's content, never by position.

One sqlite file a space, so that two encoders cannot share an entry. A row is sealed with a checksum over space, key,
shape and bytes: a row that does not fit its seal is as good as absent, and a file that sqlite refuses is deleted. sqlite's
journal makes writes whole or void, also under `kill -9` and with several processes. What cannot be cached is still
computed: a full disk, a locked file or a folder that cannot be made costs a warning, never a result.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np

from icrl_lab.errors import IcrlError
from icrl_lab.files import cache_dir

RECIPE = 2  # raise it when code in this room changes what an encoder returns: old entries are then never read
T = TypeVar("T")

_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, shape TEXT, data BLOB, seal BLOB) WITHOUT ROWID"
_BROKEN = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_ERROR}
_FAILS = (sqlite3.Error, UnicodeDecodeError, OSError, IcrlError)  # the last where no folder can be made


def file_of(space: str) -> Path:
    """The sqlite file of a space: a readable name and a hash that keeps any two spaces apart."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", space).strip("-.")[:60]
    digest = hashlib.sha256(f"{RECIPE}:{space}".encode()).hexdigest()[:16]
    return cache_dir("vectors") / f"{slug}-{digest}.sqlite"


def _seal(space: str, key: bytes, shape: str, data: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in (space.encode(), key, shape.encode(), data):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()[:16]


def _discard(path: Path) -> None:
    for name in (path, path.with_name(path.name + "-journal")):
        name.unlink(missing_ok=True)


def _attempt(path: Path, action: Callable[[sqlite3.Connection], T]) -> T:
    """Run `action` on the open file; a broken file is deleted and the action repeated once on a new one."""
    for last in (False, True):
        try:
            with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as db:
                db.execute(_TABLE)
                if [row[1] for row in db.execute("PRAGMA table_info(vectors)")] != ["key", "shape", "data", "seal"]:
                    raise sqlite3.DatabaseError("its table has other columns")  # a damage that is SQL all the same
                return action(db)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            if last or code & 0xFF not in _BROKEN:
                raise
            _discard(path)
    raise AssertionError("unreachable")


def load(space: str, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
    """The cached vectors among `keys`; what is absent or does not fit its seal is left out."""

    def read(db: sqlite3.Connection) -> dict[bytes, np.ndarray]:
        found = {}
        for start in range(0, len(keys), 500):
            part = list(keys[start : start + 500])
            marks = ",".join("?" * len(part))
            for key, shape, data, seal in db.execute(f"SELECT * FROM vectors WHERE key IN ({marks})", part):
                whole = isinstance(key, bytes) and isinstance(shape, str) and isinstance(data, bytes)
                if whole and seal == _seal(space, key, shape, data):
                    found[key] = np.frombuffer(data, "<f4").reshape(json.loads(shape))
        return found

    try:
        path = file_of(space)
        return _attempt(path, read) if path.exists() else {}
    except _FAILS as error:
        warnings.warn(f"the cache of {space!r} cannot be read ({error}); its vectors are computed anew", stacklevel=3)
        return {}


def store(space: str, vectors: Mapping[bytes, np.ndarray]) -> None:
    """Add vectors to the cache in one transaction."""
    rows = []
    for key, vector in vectors.items():
        shape, data = json.dumps(vector.shape), np.ascontiguousarray(vector, "<f4").tobytes()
        rows.append((key, shape, data, _seal(space, key, shape, data)))

    def write(db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
        db.execute("COMMIT")

    try:
        _attempt(file_of(space), write)
    except _FAILS as error:
        warnings.warn(f"vectors are not cached for {space!r}: {error}", stacklevel=3)
