"""Maps of the same points side by side, drawn on a canvas: what is lassoed in one is lassoed in all, in the browser, at once.

A general plotting library redraws everything after each selection; ten thousand points then take seconds on a machine without a
graphics card. Here points are stamped on a canvas in milliseconds, and only their numbers travel. It knows nothing of items.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets as t

HERE = Path(__file__).parent


class Scatter(anywidget.AnyWidget):
    """Panels of n points; point i of each is the same thing.

    places   float32 bytes, (panels, n, 2): each panel within the unit square, see `unit`
    paints   uint8 bytes, (n,): which look of `palette` each point has
    palette  looks, each (CSS colour, shape); shapes are those of plots.style
    titles   of each panel, a headline and a line below it
    names    of the points, shown where the mouse points
    key      what the looks mean: {"title", "low", "high", "gradient": colours} or {"title", "classes": [(name, colour, shape)]}
    chosen   numbers of the lassoed points; None is all. Set by the browser and by Python
    pinned   the ringed point, -1 is none. Set by both
    pointed  the point under the mouse or the keyboard's focus, -1 is none. Set by the browser
    """

    _esm = HERE / "scatter.js"
    _css = HERE / "scatter.css"
    places = t.Bytes().tag(sync=True)
    paints = t.Bytes().tag(sync=True)
    palette: Any = t.List().tag(sync=True)
    titles: Any = t.List().tag(sync=True)
    names: Any = t.List().tag(sync=True)
    key: Any = t.Dict().tag(sync=True)
    label = t.Unicode("maps of the items").tag(sync=True)
    chosen: Any = t.List(t.Int(), default_value=None, allow_none=True).tag(sync=True)
    pinned = t.Int(-1).tag(sync=True)
    pointed = t.Int(-1).tag(sync=True)


def unit(flat: np.ndarray) -> np.ndarray:
    """Coordinates (..., n, 2) moved into the unit square, each panel and axis by itself; float32. A constant axis is put in the middle."""
    flat = np.asarray(flat, np.float64)
    low, high = flat.min(-2, keepdims=True), flat.max(-2, keepdims=True)
    span = np.where(high > low, high - low, 1.0)
    return np.where(high > low, (flat - low) / span, 0.5).astype(np.float32)
