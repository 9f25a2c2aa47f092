"""What a probe found: named arrays over named axes, saved and reopened without a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, nearest
from icrl_lab.files import atomic

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import xarray as xr

_BROKEN = (OSError, ValueError, KeyError, TypeError, IndexError, EOFError, OverflowError, MemoryError, AttributeError)


@dataclass(frozen=True, eq=False)
class Reading:
    """The answer to one question about one study.

    question  the probe's name, which is also its figure's
    data      an xarray.Dataset: arrays with named axes; each array's `units` and `long_name` stand in its attributes
    about     JSON-able: task, encoder, llm, arm, seeds, n, how each interval was made, what the reading cannot show
    """

    question: str
    data: xr.Dataset
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "about", MappingProxyType(dict(self.about)))
        words = {n: v for n, v in self.data.variables.items() if v.dtype == object}
        for name, array in words.items():
            if not all(isinstance(value, str) for value in array.values.flat):
                raise ValueError(f"{self.question}: {name!r} holds objects; an array holds numbers, strings or truths")
        data = self.data.assign({n: v.astype(str) for n, v in words.items() if n not in self.data.coords})
        data = data.assign_coords({n: v.astype(str) for n, v in words.items() if n in self.data.coords})
        for held in data.data_vars.values():
            held.values.flags.writeable = False
        object.__setattr__(self, "data", data)

    def __reduce__(self):  # a mapping proxy does not pickle
        return Reading, (self.question, self.data, dict(self.about))

    def __getitem__(self, name: str) -> xr.DataArray:
        if name not in self.data:
            raise DataError(f"the reading {self.question!r} has no array {name!r}; {nearest(name, list(self.data))}")
        return self.data[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays there are."""
        return tuple(str(name) for name in self.data)

    def to_dataframe(self, name: str | None = None) -> pd.DataFrame:
        """One array (None: the first) as a tidy table, a column for each axis; arrays over the same axes stand beside it."""
        first = self[name or self.names[0]]
        same = [n for n in self.names if self.data[n].dims == first.dims]
        if not first.dims:
            import pandas as pd

            return pd.DataFrame({n: [self.data[n].item()] for n in same})
        return self.data[same].to_dataframe(dim_order=list(first.dims)).reset_index()

    def plot(self, **options: Any) -> go.Figure:
        """The question's figure."""
        from importlib import import_module

        return import_module(f"icrl_lab.plots.{self.question}").figure(self, **options)

    def save(self, path: str | Path) -> None:
        """Write one netCDF file that holds arrays, axes and `about`."""
        body = {"question": self.question, "names": list(self.names), "about": dict(self.about)}
        head = json.dumps(body, default=_plain)
        data = self.data.copy()
        data.attrs = {"icrl_lab_reading": head, "icrl_lab_seal": _seal(head, data)}
        with atomic(path) as part:
            part.write_bytes(bytes(data.to_netcdf(engine="scipy")))

    @classmethod
    def load(cls, path: str | Path) -> Reading:
        """Read what `save` wrote, without a model. A file that is cut or foreign is a DataError."""
        import xarray as xr

        try:
            with xr.open_dataset(path, engine="scipy") as file:
                data = file.load()
            written, seal = data.attrs.pop("icrl_lab_reading"), data.attrs.pop("icrl_lab_seal")
            head = json.loads(written)
            found = cls(str(head["question"]), data[head["names"]], head["about"])
            if seal != _seal(written, found.data):
                raise ValueError("it does not match its own checksum")
            return found
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except _BROKEN as error:
            raise DataError(f"{path} is not a saved reading: {error}") from None

    def __repr__(self) -> str:
        arrays = ", ".join(f"{n}{self.data[n].shape}" for n in self.names)
        return f"Reading({self.question!r}, {arrays})"


def _seal(head: str, data: xr.Dataset) -> str:
    """A digest of everything that a reading holds, whatever types a file keeps it in."""
    digest = hashlib.sha256(head.encode())
    for name in sorted(map(str, data.variables)):
        array = data.variables[name]
        values = array.values
        plain = (
            "\x1f".join(values.astype(str).ravel()).encode()
            if values.dtype.kind in "UO"
            else values.astype("<f8").tobytes()
        )
        attrs = json.dumps({str(k): str(v) for k, v in array.attrs.items()}, sort_keys=True)
        digest.update(f"{name} {array.dims} {values.shape} {attrs} ".encode() + plain)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as JSON has them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
