"""The place on disk that a run is written to: whether it may be one, who holds it, and what is said when the disk refuses.

It knows the names of a run folder's own files, to tell a run from somebody else's files, and opens none but the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from icrl_lab.errors import IcrlError, StudyError

JOURNAL, MANIFEST, LOCK = "cells.journal", "manifest.json", ".lock"


def refuse_foreign(path: Path) -> None:
    """A folder that holds somebody else's files is not a place for a run; look before touching anything."""
    if path.exists() and not path.is_dir():
        raise StudyError(f"{path} is a file, and a run needs a folder; choose another --out")
    seen = {p.name for p in path.iterdir()} if path.is_dir() else set()
    if not seen & {MANIFEST, JOURNAL, LOCK} and any(not name.startswith(".") for name in seen):
        raise StudyError(f"{path} is not empty and holds no run (it has {min(seen)!r}); choose another --out")


def refuse_unmakeable(path: Path) -> None:
    """Where no folder can be made, looking at what is there already and leaving nothing behind."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink())
    if not there.is_dir():
        what = "a link to what is not there" if there.is_symlink() else "a file"
        raise StudyError(f"{path} cannot be made, {there} is {what}; choose another --out")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StudyError(f"{path} cannot be made, nothing may be written in {there}; choose another --out")
    if there != path:
        try:  # a disk such as /proc says yes to everything, and makes nothing
            os.rmdir(tempfile.mkdtemp(prefix=".icrl-lab-", dir=there))
        except OSError as error:
            raise StudyError(f"{path} cannot be made: {error.strerror}; choose another --out") from None


def take_lock(path: Path) -> int:
    """The lock file's descriptor; the kernel frees the lock when the process dies, however it dies."""
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
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
