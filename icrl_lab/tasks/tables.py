"""Bytes and frames -> Table: cells exactly as they were written, and where each row stands in the user's file.

Nothing is guessed here. A cell of a text file stays a string (an id "NA" or a SMILES "null" survives), a cell that
is truly absent is None, and a file that is not what its name says is refused before anything is read from it.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icrl_lab.errors import DataError

log = logging.getLogger("icrl_lab")

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
SUFFIXES = (*DELIMITERS, ".parquet")
SHEETS = (".xlsx", ".xls", ".xlsm", ".ods")
NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
SIGNS = {  # what a file that is no text begins with, and what it then is
    b"PAR1": "a parquet file",
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\x1f\x8b": "a gzip archive",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
}
PARTS = {"train": "train", "train_val": "train", "valid": "valid", "val": "valid", "test": "test"}


@dataclass(frozen=True, eq=False)
class Table:
    """Named columns of cells.

    columns   name -> n cells: str from a text file; str, int, float, bool or None from parquet and frames
    places    n strings, each row as the user counts: "row 3 (line 4)"
    torn      row -> why its cells do not fit the header
    repeated  names that stand more than once in the header
    """

    name: str
    columns: dict[str, list[Any]]
    places: list[str]
    source: str
    torn: dict[int, str] = field(default_factory=dict)
    repeated: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.places)


def read_table(source: Any) -> Table:
    """A path (csv, tsv, tab, parquet, or a folder of train/valid/test files) or a DataFrame as a Table; else DataError."""
    if not isinstance(source, (str, os.PathLike)):
        return _from_frame(source)
    path = Path(source)
    try:
        if path.is_dir():
            return _from_folder(path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}") from None
    suffix = path.suffix.lower()
    if suffix in SHEETS:
        raise DataError(f"{path} is a spreadsheet; export it as .csv")
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: a table must be named {', '.join(SUFFIXES)}, not {suffix or 'without a suffix'!r}")
    source = f"{path} (sha256 {hashlib.sha256(data).hexdigest()})"
    if suffix == ".parquet":
        return _from_parquet(path.name, data, source)
    return from_text(path.name, data, DELIMITERS[suffix], source)


def from_text(name: str, data: bytes, delimiter: str, source: str) -> Table:
    """The bytes of a text file as a Table; DataError where they are no such text."""
    text = _decode(name, data, delimiter)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    header: list[str] | None = None
    rows: list[list[str]] = []
    places: list[str] = []
    torn: dict[int, str] = {}
    while True:
        line = lines.line_num + 1
        try:
            cells = next(lines, None)
        except csv.Error as error:
            raise DataError(f"{name}, line {line}: broken quotes or an overlong cell ({error}); correct it") from None
        if cells is None:
            break
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue  # a blank line
        if header is None:
            header = _header(name, cells, delimiter)
            continue
        if len(cells) != len(header):
            torn[len(rows)] = f"the row has {len(cells)} cell{'s' * (len(cells) != 1)}, the header {len(header)}"
            cells = (cells + [""] * len(header))[: len(header)]
        places.append(f"row {len(rows) + 1} (line {line})")
        rows.append(cells)
    if header is None:
        raise DataError(f"{name} is empty: it needs a header line and rows")
    if rows and not data.endswith((b"\n", b"\r")):
        source += "; no newline at its end, so the last row may be cut"
        log.warning("%s does not end in a newline: its last row, %s, may be cut", name, places[-1])
    return _table(name, header, [list(c) for c in zip(*rows)] or [[] for _ in header], places, source, torn)


def _decode(name: str, data: bytes, delimiter: str) -> str:
    for sign, kind in SIGNS.items():
        if data.startswith(sign):
            raise DataError(f"{name} is {kind}, not text separated by {NAMES[delimiter]}; convert it or rename it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file with the encoding UTF-8"
        ) from None
    if "\0" in text:
        raise DataError(
            f"{name}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: a zero byte; this is no text file"
        )
    return text


def _header(name: str, cells: list[str], delimiter: str) -> list[str]:
    for other, what in NAMES.items():
        if len(cells) == 1 and other in cells[0]:
            remedy = "rename it to .tsv" if other == "\t" else f"save it with {NAMES[delimiter]}"
            raise DataError(f"{name}: columns are separated by {what}, not by {NAMES[delimiter]}; {remedy}")
    return cells


def _from_parquet(name: str, data: bytes, source: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (data.startswith(b"PAR1") and data.endswith(b"PAR1")):
        raise DataError(f"{name} is not a parquet file, or it is cut; write it again, or rename it to what it is")
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        columns = [[_cell(cell) for cell in column.to_pylist()] for column in table.columns]
    except Exception as error:  # a foreign parser on foreign bytes: whatever it raises, the file is at fault
        raise DataError(f"{name} is not a readable parquet file: {' '.join(str(error).split())[:200]}") from None
    places = [f"row {i + 1}" for i in range(table.num_rows)]
    return _table(name, table.column_names, columns, places, source)


def _from_frame(frame: Any) -> Table:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise DataError(f"a task comes from a bundled name, a path or a DataFrame, not from a {type(frame).__name__}")
    columns = [
        [_cell(cell) for cell in frame.iloc[:, j].tolist()]  # by position: names may repeat
        for j in range(frame.shape[1])
    ]
    places = [f"row {i + 1} (index {label!r})" for i, label in enumerate(frame.index.tolist())]
    return _table("DataFrame", [str(c) for c in frame.columns], columns, places, f"a DataFrame of {len(frame)} rows")


def _from_folder(path: Path) -> Table:
    """Files train, valid and test of one layout as one table with a column `split` (as TDC writes its benchmarks)."""
    files = [f for f in sorted(path.iterdir()) if f.suffix.lower() in SUFFIXES and f.stem.lower() in PARTS]
    found = {PARTS[f.stem.lower()] for f in files}
    if not {"train", "test"} <= found:
        raise DataError(f"{path} is a folder without the files train and test ({', '.join(SUFFIXES)}); name a file")
    tables = [read_table(f) for f in files]
    names = list(tables[0].columns)
    columns: dict[str, list[Any]] = {c: [] for c in names}
    sides: list[str] = []
    places: list[str] = []
    torn: dict[int, str] = {}
    for file, table in zip(files, tables):
        if set(table.columns) != set(names):
            raise DataError(f"{path}: {file.name} has columns {list(table.columns)}, {files[0].name} has {names}")
        torn.update({len(places) + row: why for row, why in table.torn.items()})
        for c in names:
            columns[c] += table.columns[c]
        sides += [PARTS[file.stem.lower()]] * len(table)
        places += [f"{file.name} {place}" for place in table.places]
    repeated = frozenset().union(*(t.repeated for t in tables))
    source = "; ".join(t.source for t in tables)
    return Table(path.name, columns | {"split": sides}, places, source, torn, repeated)


def _table(
    name: str, header: Sequence[str], columns: list, places: list[str], source: str, torn: dict[int, str] | None = None
) -> Table:
    header = [h.strip() for h in header]
    repeated = frozenset(h for h, count in Counter(header).items() if count > 1)
    if not places:
        raise DataError(f"{name} is empty: it has a header and no rows")
    return Table(name, dict(zip(header, columns)), places, source, torn or {}, repeated)


def _cell(cell: Any) -> Any:
    """The cell of a typed column as a Table holds it: None where it is absent, and text where its bytes are a text."""
    try:
        return cell.decode() if isinstance(cell, bytes) else None if _absent(cell) else cell
    except UnicodeDecodeError:
        return cell


def _absent(cell: Any) -> bool:
    """None, NaN, NaT, pandas' NA and a signalling NaN; they differ from themselves, or refuse to be compared."""
    try:
        return cell is None or bool(cell != cell)
    except (TypeError, ArithmeticError):
        return True
    except ValueError:  # an array in a cell
        return False
