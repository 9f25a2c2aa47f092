"""A figure in a notebook leaves a picture behind: what is stored, exported or shown by a code host still says something.

plotly stores a figure as JSON that only a page with plotly's script can draw. Its renderers may be chained, so one more is put
behind the notebook's own; the page takes the best that it can show.
"""

from __future__ import annotations

import os
from typing import Any

import plotly.io as pio
from plotly.io.base_renderers import MimetypeRenderer

from icrl_lab.plots.svg import svg

NAME = "icrl-lab"


class Still(MimetypeRenderer):
    """The figure as SVG; nothing for a kind of figure that is not known here."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        # any figure of the page may come here, also the user's own: then there is no picture, and plotly's own stays
        try:
            return {"image/svg+xml": svg(fig_dict)}
        except Exception:
            return {}


def beside() -> None:
    """Add pictures to a notebook's figures, once; a renderer that the user has chosen is left alone."""
    if NAME in pio.renderers:
        return
    pio.renderers[NAME] = Still()
    if pio.renderers.default.split("+")[0] == "plotly_mimetype" and "PLOTLY_RENDERER" not in os.environ:
        pio.renderers.default += f"+{NAME}"
