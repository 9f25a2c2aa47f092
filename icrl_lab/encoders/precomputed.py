"""Vectors somebody computed elsewhere: `.npz` and `.parquet` with ids.

Pickled objects are refused. A file that is cut, foreign or lacks an id is one sentence, whatever its parser threw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab.errors import DataError, IcrlError, ItemError, StudyError
from icrl_lab.files import sha256
from icrl_lab.values import Vectors
from icrl_lab.values.base import written

SUFFIXES = (".npz", ".parquet")
NAMES = ("values", "vectors", "embeddings")  # what the array of vectors may be called
ID_NAMES = ("id", "ids")


def read(
    path: str | Path,
    id_column: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    among: Sequence[str] | None = None,
) -> Vectors:
    """Vectors of every item in a file, or of those `among` these ids; a DataError where it has none of them.

    .npz      arrays `ids` (n) and `values`, `vectors` or `embeddings` (n, d) or (n, slots, d); with `space`, as
              `Vectors.save` writes it, that space, else "file:<name>@<hash of the file>"
    .parquet  `id_column` (else a column `id` or `ids`, else the only column of strings), and `columns`, or the only
              column of lists, or else every numeric column but a data frame's index. A target left among those would be
              read as a vector

    A vector with a NaN or without a value is an ItemError, also a DataError, that names its item.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"{path}: vectors are read from {' or '.join(SUFFIXES)}, not from {path.suffix or 'this'!r} files"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".npz" and (id_column is not None or columns is not None):
        raise StudyError(f"{path}: id_column and columns are for .parquet; an .npz has the arrays ids and values")
    try:
        found = _npz(path, among) if path.suffix == ".npz" else _parquet(path, id_column, columns, among)
        values, ids, space = found
        return Vectors(values, ids, space or f"file:{path.stem}@{sha256(path)[:12]}")
    except ItemError as error:
        raise ItemError(error.item, f"{path}: {error}") from None
    except IcrlError as error:
        raise type(error)(f"{path}: {error}") from None
    except Exception as error:  # a damaged file makes its parser raise anything at all
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} cannot be read as vectors: {cause}") from error


def _among(ids: Sequence[str], wanted: Sequence[str] | None) -> list[int]:
    """The rows of these ids; all rows where none is wanted."""
    if wanted is None:
        return list(range(len(ids)))
    asked = set(wanted)
    rows = [row for row, name in enumerate(ids) if name in asked]
    if not rows:
        raise DataError(
            f"{len(wanted)} of {len(wanted)} items have no vector in it; the first is {wanted[0]!r}, and the file's ids "
            f"begin {', '.join(map(repr, ids[:3]))}"
        )
    return rows


def _name(cell: Any) -> str:
    """An id as a task writes it."""
    return cell.decode() if isinstance(cell, bytes) else written(cell)


def _npz(path: Path, among: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...], str | None]:
    with open(path, "rb") as handle:
        if handle.read(2) != b"PK":  # numpy takes for pickled whatever it does not know
            raise DataError("it is not an .npz file; write one with numpy.savez(path, ids=..., values=...)")
    with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as archive:
        held = set(archive.files)
        if archive.zip.testzip() is not None:  # numpy reads as far as a shape says, and may meet no checksum
            raise DataError("an array does not have its checksum; the file is damaged")
        found = [n for n in NAMES if n in held]
        lacks = ["'ids'"] * ("ids" not in held) + [f"'values' (or {' or '.join(map(repr, NAMES[1:]))})"] * (not found)
        if lacks:
            raise DataError(f"it lacks the array{'s' * (len(lacks) > 1)} {' and '.join(lacks)}, and has {sorted(held)}")
        try:
            ids, values = archive["ids"], archive[found[0]]
            space = str(archive["space"]) if "space" in held else None
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            raise DataError(
                "it holds pickled objects, which are refused; save ids as strings, vectors as floats"
            ) from None
    if ids.ndim != 1 or ids.dtype.kind not in "USiu":
        raise DataError(f"'ids' must be a row of strings or whole numbers, not {ids.dtype} of shape {ids.shape}")
    if values.dtype.kind not in "fiub":
        raise DataError(f"{found[0]!r} must be numbers, not {values.dtype}")
    names = tuple(_name(i) for i in ids.tolist())
    if not values.ndim or len(values) != len(names):
        return values, names, space  # is refused as it is
    rows = _among(names, among)
    return values[rows], tuple(names[r] for r in rows), space


def _parquet(
    path: Path, id_column: str | None, columns: Sequence[str] | None, among: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...], None]:
    import pyarrow.parquet as pq
    from pyarrow import types

    with open(path, "rb") as handle:  # an open file: pyarrow would read a name with `*` or `=` as a data set
        table = pq.read_table(handle)
    kinds = {f.name: f.type for f in table.schema}
    id_column = id_column or _id_column(kinds)
    for name in [id_column, *(columns or ())]:
        if name not in kinds:
            raise DataError(f"there is no column {name!r}; it has {sorted(kinds)}")
    cells = table[id_column].to_pylist()
    if None in cells:
        raise DataError(f"row {cells.index(None)} has no id in column {id_column!r}")
    ids = [_name(cell) for cell in cells]
    rows = _among(ids, among)
    table, ids = table.take(rows), [ids[r] for r in rows]
    lists = [n for n in columns or kinds if n != id_column and _is_list(kinds[n])]
    if len(lists) > 1:
        raise DataError(f"it has several columns of lists, {lists}; name one: columns=[{lists[0]!r}]")
    if lists and len(columns or lists) > 1:
        raise DataError(
            f"column {lists[0]!r} holds lists and others of columns={list(columns or ())} do not; name it alone"
        )
    if lists:
        return _from_lists(table[lists[0]], ids), tuple(ids), None
    number = lambda t: types.is_floating(t) or types.is_integer(t) or types.is_boolean(t)  # noqa: E731
    # the index of a frame that was filtered or sorted is kept as a column: the place of a row, and often the order of the targets
    index = [n for n in (table.schema.pandas_metadata or {}).get("index_columns", ()) if isinstance(n, str)]
    left_out = {id_column, *index}
    numeric = list(columns) if columns else [n for n in kinds if n not in left_out and number(kinds[n])]
    bad = [n for n in numeric if not number(kinds[n])]
    if bad or not numeric:
        raise DataError(
            f"column {bad[0]!r} does not hold numbers" if bad else f"no column of numbers in {sorted(kinds)}"
        )
    for name in numeric:
        if table[name].null_count:
            row = table[name].is_null().to_pylist().index(True)
            raise ItemError(ids[row], f"item {ids[row]!r} has no value in column {name!r}")
    return np.column_stack([table[n].to_numpy() for n in numeric]), tuple(ids), None


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _id_column(kinds: dict[str, Any]) -> str:
    from pyarrow import types

    named = [n for n in ID_NAMES if n in kinds]
    texts = [n for n, t in kinds.items() if types.is_string(t) or types.is_large_string(t)]
    if named or len(texts) == 1:
        return (named or texts)[0]
    raise DataError(f"which column holds the ids? Name it with id_column; the columns are {sorted(kinds)}")


def _from_lists(column: Any, ids: Sequence[str]) -> np.ndarray:
    """A column of lists (of lists) of equal lengths as an array."""
    shape, cells = [len(column)], column.combine_chunks()
    if hasattr(cells, "chunks"):  # older pyarrow keeps a chunked array
        import pyarrow as pa

        cells = pa.concat_arrays(cells.chunks)
    while _is_list(cells.type):
        lengths = np.nan_to_num(cells.value_lengths().to_numpy(zero_copy_only=False)).astype(int)
        if not lengths.any():
            raise DataError("its lists are empty" if ids else "no rows")
        usual = int(np.bincount(lengths)[1:].argmax()) + 1  # of most, so that the first may be the odd one
        if (lengths != usual).any():
            name = ids[int(np.argmax(lengths != usual)) * len(ids) // len(lengths)]
            raise ItemError(name, f"the list of item {name!r} is empty or not as long as most, {usual}")
        shape.append(usual)
        cells = cells.flatten()
    if cells.null_count:
        per_item = int(np.prod(shape[1:]))
        name = ids[cells.is_null().to_pylist().index(True) // per_item]
        raise ItemError(name, f"item {name!r} has a gap in its list")
    return cells.to_numpy(zero_copy_only=False).reshape(shape)
