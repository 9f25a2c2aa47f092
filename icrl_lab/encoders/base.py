"""What an encoder is: a value with a space, a generator of batches and a way to name an item's content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from icrl_lab.errors import DataError, MissingExtra, StudyError, nearest

Batches = Iterator[tuple[list[int], np.ndarray]]  # positions of the items, and their vectors in that order


def text_content(item: Any) -> bytes:
    """The content of an item that is a string; anything else is a TypeError."""
    if not isinstance(item, str):
        raise TypeError("a string")
    return b"text:" + item.encode()


@dataclass(frozen=True, eq=False)
class Encoder:
    """One way from items to vectors.

    name        as the user writes it
    modalities  kinds of items it reads, for messages and listings
    space       options -> name of the space: encoder, version and whatever changes the numbers. It imports nothing heavy
    encode      (items, ids, batch_size, **options) -> batches of (positions, (n, d) or (n, slots, d) array)
    content     item -> bytes that fix its vector, for the cache; a TypeError says what the item should have been.
                None: cheaper to compute than to look up, never cached
    options     the options it takes, with their defaults
    """

    name: str
    modalities: tuple[str, ...]
    space: Callable[..., str]
    encode: Callable[..., Batches]
    content: Callable[[Any], bytes] | None = text_content
    options: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 64

    def settle(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options in force: defaults, overridden by those given. An unknown one is a StudyError."""
        for key in given:
            if key not in self.options:
                what = f"{nearest(key, self.options)}" if self.options else "it takes none"
                raise StudyError(f"encoder {self.name!r} has no option {key!r}; {what}")
        return {**self.options, **given}


def version(distribution: str, extra: str) -> str:
    """The installed version of a package, read without importing it; absent, a MissingExtra that names the extra."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise MissingExtra(f'{distribution} is not installed: pip install "icrl-lab[{extra}]"') from None


def show(item: Any) -> str:
    """An item as a message shows it: short."""
    text = repr(item) if isinstance(item, (str, Path)) else type(item).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def array_content(item: Any) -> bytes:
    """The content of an item that is an array of numbers; anything else is a TypeError."""
    array = np.asarray(item)
    if array.dtype.kind not in "biuf" or not array.size:
        raise TypeError("numbers")
    array = np.ascontiguousarray(array)
    return f"array:{array.dtype.str}:{array.shape}:".encode() + array.tobytes()


def pixels(image: Any) -> Any:
    """A PIL image as RGB; as its array where a pixel has more than eight bits, which RGB would clip."""
    return np.array(image) if image.mode[0] in "IF" else image.convert("RGB")


def file_content(item: Any) -> bytes:
    """The content of an item that may be the path of a file: the file's bytes, never its name.

    An image object counts as its pixels, so that a palette is not forgotten.
    """
    if isinstance(item, (str, os.PathLike)):
        path = Path(item).expanduser()
        if not path.is_file():
            raise DataError(f"there is no file {str(item)!r} (items that are text need modality='text')")
        return b"file:" + path.read_bytes()
    return array_content(pixels(item) if hasattr(item, "convert") else item)


def content_key(content: bytes) -> bytes:
    """32 bytes that name an item's content."""
    return hashlib.sha256(content).digest()


def chunks(order: Sequence[int], size: int) -> Iterator[list[int]]:
    """`order` in pieces of at most `size`."""
    for start in range(0, len(order), size):
        yield [int(i) for i in order[start : start + size]]
