"""What a probe found: named arrays over named axes, saved and reopened without a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
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

HEAD = "icrl_lab_reading"


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
        object.__setattr__(self, "about", MappingProxyType(_jsonable(self.about)))
        data = self.data.copy(deep=True)  # nobody else holds a writable view of it
        data.attrs = {}
        if 0 in data.sizes.values():
            raise ValueError(f"{self.question}: an axis is empty: {dict(data.sizes)}; leave out what there is none of")
        for name, array in data.variables.items():
            words = array.dtype == object and all(isinstance(value, str) for value in array.values.flat)
            if array.dtype.kind not in "biufU" and not words:
                raise ValueError(f"{self.question}: {name!r} holds objects; an array holds numbers, strings or truths")
            if not str(name).isascii():
                raise ValueError(f"{self.question}: {name!r} is no name that a file can hold; take plain letters")
            if not all(isinstance(value, (str, int, float, np.number)) for value in array.attrs.values()):
                raise ValueError(f"{self.question}: an attribute of {name!r} is neither a string nor a number")
        words = {n: v.astype(str) for n, v in data.variables.items() if v.dtype == object}
        data = data.assign({n: v for n, v in words.items() if n not in data.coords})
        data = data.assign_coords({n: v for n, v in words.items() if n in data.coords})
        for name, held in data.variables.items():
            if name not in data.xindexes:  # an index is its own keeper
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

    def widget(self, selection: Any = None) -> Any:
        """The question's view. selection: the page's `widgets.Selection`; None makes one of what the reading itself names."""
        from icrl_lab.widgets.dashboard import view_of_reading

        return view_of_reading(self, selection)

    def save(self, path: str | Path) -> None:
        """Write one netCDF file that holds arrays, axes and `about`, with a checksum behind it.

        DataError for what netCDF would not give back as it is; the file that was there before then stays.
        """
        data = _storable(self.data)
        data.attrs = {HEAD: json.dumps({"question": self.question, "names": self.names, "about": dict(self.about)})}
        body = bytes(data.to_netcdf(engine="scipy"))
        with atomic(path) as part:
            part.write_bytes(body + hashlib.sha256(body).digest())
            if not self.load(part).data.identical(self.data):
                raise DataError(f"{path}: the reading {self.question!r} would not come back from its file as it is")

    @classmethod
    def load(cls, path: str | Path) -> Reading:
        """Read what `save` wrote, without a model. A file that is cut, damaged or foreign is a DataError."""
        import xarray as xr

        try:
            content = Path(path).read_bytes()
            body, seal = content[:-32], content[-32:]
            if hashlib.sha256(body).digest() != seal:
                raise ValueError("it is cut, damaged or foreign: it does not match its own checksum")
            # a unit such as "days since birth" is a unit, and no calendar
            with xr.open_dataset(BytesIO(body), engine="scipy", decode_times=False, decode_timedelta=False) as file:
                data = file.load()
            head = json.loads(data.attrs.pop(HEAD))
            held = data[head["names"]].assign_coords(data.coords)  # also those of axes that no array has
            return cls(str(head["question"]), held, head["about"])
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a saved reading: {error}") from None

    def __repr__(self) -> str:
        arrays = ", ".join(f"{n}{self.data[n].shape}" for n in self.names)
        return f"Reading({self.question!r}, {arrays})"


def _storable(data: xr.Dataset) -> xr.Dataset:
    """The same in types that netCDF 3 has: whole numbers of 32 bits, or larger ones as the floats they are equal to."""
    out = data.copy()
    for name, array in data.variables.items():
        values = array.values
        dtype: Any = None
        if values.dtype.kind in "iu":
            dtype = np.dtype("i4") if (values.astype("i4") == values).all() else np.dtype("f8")
            if (values.astype(dtype).astype(values.dtype) != values).any():
                raise DataError(f"{name!r} holds whole numbers beyond 2**53, which a reading cannot keep")
        elif values.dtype == np.float16:
            dtype = np.dtype("f4")
        if dtype is not None:
            out = (
                out.assign_coords({name: array.astype(dtype)})
                if name in data.coords
                else out.assign({name: array.astype(dtype)})
            )
    return out


def _jsonable(about: Mapping[str, Any]) -> dict[str, Any]:
    """A copy as it comes back from a file: lists for tuples, plain numbers for numpy's. TypeError for what JSON cannot say."""
    return json.loads(json.dumps(dict(about), default=_plain))


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as JSON has them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
