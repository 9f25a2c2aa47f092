"""Maps from one space to another, as frozen steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.files import atomic
from icrl_lab.values.base import frozen


@dataclass(frozen=True, eq=False)
class Step:
    """One numpy operation of a slot map: its name in `maps.steps.STEPS` and its arrays."""

    op: str
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = {k: frozen(v, np.float32) for k, v in self.arrays.items()}
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
