"""Encoders: items to vectors of one named space.

Owns how an item becomes a vector: the molecule encoders, raw numbers, vectors computed elsewhere, any Hugging Face model,
and the cache on disk. Knows nothing of language models, targets or splits, so it can fit nothing and scale nothing: a
vector is a function of its item, its encoder, the version and the options, never of the other items. All four stand in
the name of the space, and slot maps refuse vectors of a space they were not fitted on.

Trades: what is slow is computed once and kept (`cache`), so the first run pays for disk; items longer than a model reads
are refused rather than cut, unless `truncate=True`.

In reading order: base (what an encoder is), slots (raw numbers; several vectors an item), molecules, precomputed, cache,
hub (which model), media, hidden (torch).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab.encoders import cache as _cache
from icrl_lab.encoders import precomputed
from icrl_lab.encoders.base import Encoder, content_key, show
from icrl_lab.encoders.molecules import MOLECULES, descriptor_names
from icrl_lab.encoders.slots import RAW, repeat, stack
from icrl_lab.errors import DataError, ItemError, ModelError, StudyError
from icrl_lab.values import Task, Vectors

__all__ = ["ENCODERS", "Encoder", "descriptor_names", "encode", "find", "repeat", "stack"]

ENCODERS: dict[str, Encoder] = {e.name: e for e in (*MOLECULES, RAW)}

Progress = bool | Callable[[int, int], None] | None


def find(name: str, **options: Any) -> Encoder:
    """The Encoder called `name`: one of ENCODERS, else a Hugging Face model by folder or hub name ("hf:" forces that).

    Raises StudyError for a name that is nearly one of ENCODERS, ModelError for a model that cannot be had.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    forced, plain = name.startswith("hf:"), name.removeprefix("hf:")
    close = difflib.get_close_matches(name.lower(), ENCODERS, n=1, cutoff=0.75)
    if not forced and close and "/" not in name and not Path(name).is_dir():
        raise StudyError(f"there is no encoder {name!r}; did you mean {close[0]!r}?")
    if not plain.strip():
        raise StudyError(f"an encoder needs a name; valid: {', '.join(ENCODERS)}, a hub name or a folder")
    if Path(plain).expanduser().is_file():
        raise ModelError(
            f"{plain} is a file that is no encoder: one is a folder with safetensors or a hub name, or a file of vectors, "
            f"{' or '.join(precomputed.SUFFIXES)}; pickled weights are not read"
        )
    from icrl_lab.encoders import hub

    return hub.find(plain, options)


def encode(
    task_or_items: Task | Sequence[Any],
    name: str = "minimol",
    *,
    path: str | Path | None = None,
    ids: Sequence[str] | None = None,
    batch_size: int | None = None,
    progress: Progress = None,
    cache: bool = True,
    **options: Any,
) -> Vectors:
    """Vectors of a task's items, or of any items, in the order of their ids.

    name      a key of ENCODERS; the name or folder of a Hugging Face model; or a file, `.npz` or `.parquet`
    path      such a file, instead of a name
    ids       names of the items where they are no Task (their positions, "0" on, by default)
    progress  None shows a bar on a terminal after two seconds; True and False force it; or a function (done, of)
    cache     keep and use vectors on disk, by encoder, version, options and the item's content
    options   of the encoder: `ENCODERS[name].options`, `encoders.hub.OPTIONS`, or the arguments of `precomputed.read`

    Returns (n, d) float32, or (n, slots, d) where an encoder gives several vectors an item.
    Raises DataError naming an item that cannot be read, StudyError for a bad name or option, ModelError for a model that
    cannot be had, MissingExtra for a library that is not installed.
    """
    if path is None and not isinstance(name, (str, Path)):
        raise StudyError(
            f"encode takes the name of an encoder or a file of vectors, not {name!r}; valid: {', '.join(ENCODERS)}"
        )
    items, names, modality = _items(task_or_items, ids)
    if path is None and str(name).endswith(precomputed.SUFFIXES):
        path = name
    if path is not None:
        return _from_file(path, names, options, task_or_items if isinstance(task_or_items, Task) else None)
    if batch_size is not None and batch_size < 1:
        raise StudyError(f"batch_size is {batch_size}; it must be at least 1")
    encoder = find(str(name), **options)
    chosen = encoder.settle(options)
    space = encoder.space(**chosen)
    keys = _keys(encoder, items, names, modality)
    found = _cache.load(space, list(dict.fromkeys(keys))) if cache and encoder.content else {}
    first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in found}  # each content once
    rows = sorted(first.values())
    if rows:
        batches = encoder.encode(
            [items[r] for r in rows], [names[r] for r in rows], batch_size or encoder.batch_size, **chosen
        )
        for part, block in _watched(batches, len(rows), f"encode ({encoder.name})", progress):
            block = np.ascontiguousarray(block, np.float32)
            for position, vector in zip(part, block):
                if not np.isfinite(vector).all():
                    row = rows[position]
                    raise ItemError(
                        names[row],
                        f"encoder {name!r} gives a NaN or an infinity for item {names[row]!r} ({show(items[row])})",
                    )
            fresh = {keys[rows[p]]: vector for p, vector in zip(part, block)}
            if cache and encoder.content:
                _cache.store(space, fresh)
            found.update(fresh)
    values = np.stack([found[key] for key in keys])
    if encoder is RAW:  # rows of 64 pixels and rows of 13 columns are no common space
        space = f"{space}/{values.shape[1]}"
    return Vectors(values, names, space)


def _items(source: Task | Sequence[Any], ids: Sequence[str] | None) -> tuple[list[Any], tuple[str, ...], str]:
    if isinstance(source, Task):
        if ids is not None:
            raise StudyError("a task brings its own ids: leave out `ids`")
        return list(source.items), source.ids, source.modality
    if isinstance(source, (str, bytes)):
        raise DataError(f"encode takes a task or a list of items, not the single string {source!r}")
    rows: Any = source.to_numpy() if hasattr(source, "to_numpy") else source  # of pandas the rows, not the column names
    items = list(rows)
    if not items:
        raise DataError("there are no items to encode")
    names = tuple(str(i) for i in (range(len(items)) if ids is None else ids))
    if len(names) != len(items):
        raise DataError(f"{len(names)} ids for {len(items)} items")
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise DataError(f"id {twice!r} names two items; ids must be unique")
    return items, names, ""


def _keys(encoder: Encoder, items: Sequence[Any], names: Sequence[str], modality: str) -> list[bytes]:
    """What names each item's content; an item of the wrong kind is an error that names it."""
    if encoder.content is None:
        return [b"%d" % row for row in range(len(items))]
    keys = []
    for item, name in zip(items, names):
        try:
            keys.append(content_key(encoder.content(item)))
        except TypeError as error:
            of = f" of a task of modality {modality!r}" if modality else ""
            raise DataError(
                f"item {name!r}{of} is {type(item).__name__}; encoder {encoder.name!r} reads "
                f"{' or '.join(encoder.modalities)} items, each {error}"
            ) from None
        except DataError as error:
            raise ItemError(name, f"item {name!r}: {error}") from None
    return keys


def _from_file(path: str | Path, names: Sequence[str], options: dict[str, Any], task: Task | None) -> Vectors:
    known = ("id_column", "columns")
    for key in options:
        if key not in known:
            raise StudyError(f"vectors from a file take the options {' and '.join(known)}, not {key!r}")
    vectors = precomputed.read(path, **options, among=names)
    try:
        vectors = vectors.take(names)
    except DataError as error:
        held = set(vectors.ids)
        lacks = [name for name in names if name not in held]
        reasons = {name: f"{path}: item {name!r} has no vector in it" for name in lacks}
        raise ItemError(lacks[0], f"{path}: {error}", reasons) from None
    if task is not None:
        same, what = _answers(vectors.values.reshape(len(names), -1), task)
        if same.any():
            raise DataError(f"{path}: column {int(np.argmax(same))} of the vectors is the {what} itself; leave it out")
    return vectors


def _answers(values: np.ndarray, task: Task) -> tuple[np.ndarray, str]:
    """Which columns of (n, d) are the task's target, or its classes under other names; and what to call it.

    A column of few values may part a few items as their classes do by chance: classes are looked for where a shuffled column
    would not, among all d.
    """
    n, d = values.shape
    if task.targets is not None:
        return (values == task.targets.astype(np.float32)[:, None]).all(0) & (n > 2), "target"
    _, first, code, sizes = np.unique(np.array(task.labels), return_index=True, return_inverse=True, return_counts=True)
    ways = math.lgamma(n + 1) - sum(math.lgamma(k + 1) for k in sizes.tolist())  # to part n items so; a logarithm
    alike = (values == values[first][code]).all(0)  # within a class
    apart = (np.diff(np.sort(values[first], 0), axis=0) > 0).all(0)
    return alike & apart & (math.log(d / 0.05) < ways), "class"


def _watched(batches: Iterator, total: int, title: str, progress: Progress) -> Iterator:
    """The batches, while a bar or the caller's function is told how many items are done."""
    if callable(progress):
        done = 0
        for part, block in batches:
            yield part, block
            done += len(part)
            progress(done, total)
        return
    from tqdm import tqdm

    off = None if progress is None else not progress  # None: no bar where stderr is no terminal
    with tqdm(
        total=total, desc=title, unit="item", disable=off, delay=2 if progress is None else 0, leave=False
    ) as bar:
        for part, block in batches:
            yield part, block
            bar.update(len(part))
