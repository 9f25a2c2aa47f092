"""An append-only file of finished cells, each record under its own checksum.

Owns the bytes and nothing else: a record is a key and a table. A kill at any byte leaves at most one torn record
at the end; a damaged one anywhere costs that record alone, because a reader looks for the next mark and believes
only what its checksum vouches for. So nothing is ever truncated or repaired, and appending a cell costs one write.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_MARK = b"\x89CELL\r\n\x1a"
_HEAD = struct.Struct("<8sQ32s")  # the mark, the length of the body, the SHA-256 of the body
_KEY = struct.Struct("<I")  # the body: the length of the key, the key, the table


class Journal:
    """The journal of one run, open for appending. `cells` maps each finished cell's key to its packed table."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
        self._synced = time.monotonic()
        self.cells: dict[str, bytes] = dict(records(path.read_bytes()))

    def append(self, key: str, rows: pd.DataFrame) -> None:
        """Write one cell, whole or not at all; OSError if it could not be written, and then nothing has changed."""
        name, table = key.encode(), pack(rows)
        body = _KEY.pack(len(name)) + name + table
        start = os.fstat(self._file).st_size
        view = memoryview(_HEAD.pack(_MARK, len(body), hashlib.sha256(body).digest()) + body)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, start)
            raise
        if time.monotonic() - self._synced > 1:  # a killed process loses nothing, a power cut the last second
            os.fsync(self._file)
            self._synced = time.monotonic()
        self.cells[key] = table

    def table(self) -> pd.DataFrame:
        """All cells' rows, sorted by key: the order in which cells were computed leaves no trace."""
        return unpack([self.cells[key] for key in sorted(self.cells)])

    def close(self) -> None:
        """Close the file; a second time is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(key, packed table) of each whole record of a journal's bytes, in the order they were written."""
    at = data.find(_MARK)
    while at >= 0:
        after = at + 1
        if at + _HEAD.size <= len(data):
            _, size, digest = _HEAD.unpack_from(data, at)
            body = data[at + _HEAD.size : at + _HEAD.size + size]
            if len(body) == size and hashlib.sha256(body).digest() == digest:
                split = _KEY.size + _KEY.unpack_from(body)[0]
                yield body[_KEY.size : split].decode(), body[split:]
                after = at + _HEAD.size + size
        at = data.find(_MARK, after)


def pack(rows: pd.DataFrame) -> bytes:
    """A table as an Arrow stream; its index is not kept."""
    import pyarrow as pa

    table = pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpack(tables: list[bytes]) -> pd.DataFrame:
    """The rows of all packed tables, one below the other; a column that a table lacks is empty there."""
    import pandas as pd
    import pyarrow as pa

    if not tables:
        return pd.DataFrame()
    parts = [pa.ipc.open_stream(table).read_all() for table in tables]
    return pa.concat_tables(parts, promote_options="permissive").to_pandas()
