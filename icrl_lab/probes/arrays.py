"""The arrays of a reading: each with its axes, its words and its units, an estimate with the ends of its interval beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import MissingExtra
from icrl_lab.stats.words import estimate

if TYPE_CHECKING:
    import xarray as xr

Named = dict[str, tuple[tuple[str, ...], Any, str, str]]  # name -> dims, values, long name, units
ENDS = {  # what is put behind a name -> what it is, in words
    "": "", "_low": ", 95 % interval from", "_high": ", 95 % interval to", "_p": ", p", "_q": ", p corrected over the cells",
}  # fmt: skip

BOUNDS = {  # units -> what a number of them can be at all; an interval ends there
    "Pearson r": (-1.0, 1.0), "Spearman rho": (-1.0, 1.0), "difference of r": (-2.0, 2.0), "difference of rho": (-2.0, 2.0),
    "share of all tokens": (0.0, 1.0),
}  # fmt: skip


def put(into: Named, name: str, dims: tuple[str, ...], values: Sequence[Any], words: str, units: str) -> None:
    """Adds an estimate and, as far as `values` go, the ends of its interval, its p-value and its corrected p-value."""
    for (end, what), value in zip(ENDS.items(), values):
        tested = end in ("_p", "_q")
        into[name + end] = (dims, value if tested else bounded(value, units), words + what, "" if tested else units)


def bounded(value: Any, units: str) -> Any:
    """Numbers cut off where their units end."""
    return np.clip(value, *BOUNDS[units]) if units in BOUNDS else value


def looked_at(seeds: int, queries: int, what: str = "queries") -> str:
    """How much a reading has seen, in words: "3 seeds x 12 queries"."""
    return f"{seeds} seed{'s' * (seeds != 1)} x {queries} {what}"


def over(method: str, seeds: int) -> str:
    """How intervals were made, of `method`, which has them over seeds and queries: of one seed they are over queries alone."""
    return method if seeds > 1 else method.replace("seeds and queries", "queries alone, for one seed", 1)


def xarray() -> Any:
    """The library of labelled arrays; a MissingExtra where it is not installed."""
    try:
        import xarray as xr
    except ImportError:
        raise MissingExtra('probes need xarray: pip install "icrl-lab[probes]"') from None
    return xr


def dataset(arrays: Named, coords: Mapping[str, Any]) -> xr.Dataset:
    """The arrays as an xarray.Dataset, on axes that are not empty."""
    made = {n: (d, v, {"long_name": words, "units": units}) for n, (d, v, words, units) in arrays.items()}
    return xarray().Dataset(made, {name: held for name, held in coords.items() if len(held)})


def tell(data: xr.Dataset, name: str, at: Mapping[str, Any], units: str = "", form: str = ".2f") -> str:
    """One number of a reading with its interval, as a sentence quotes it."""
    value, low, high = (float(data[f"{name}{tail}"].sel(at)) for tail in ("", "_low", "_high"))
    told = estimate(value, low, high, form=form, ends=".2f")
    return f"{told} {units}" if units else told


def ci(data: xr.Dataset, name: str, units: str = "", **at: Any) -> str:
    """The same, with its place by the names of axes."""
    return tell(data, name, at, units)
