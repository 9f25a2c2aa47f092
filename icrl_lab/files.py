"""Where files go and how they get there whole.

Owns the cache folder and the one way to write a file: beside its name, flushed, then renamed, so that a
kill at any moment leaves the old file or the new one and never half of either.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import get_ident

from icrl_lab.errors import IcrlError


def cache_dir(*parts: str) -> Path:
    """The lab's folder in the user's cache (`ICRL_LAB_CACHE`, else `XDG_CACHE_HOME`, else ~/.cache), made if missing; IcrlError, a problem
    of the machine, where it cannot be made. An empty variable is as good as none."""
    root = os.environ.get("ICRL_LAB_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "icrl_lab")
    path = Path(os.path.expanduser(root), *parts)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise IcrlError(
            f"the cache folder {path} cannot be made ({error.strerror}); set ICRL_LAB_CACHE to a folder of yours"
        ) from error
    return path


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` on success, delete it on any exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.part")  # of this thread alone
    try:
        yield part
        with open(part, "rb") as written:
            os.fsync(written.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def sha256(path: str | os.PathLike) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
