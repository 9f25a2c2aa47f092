"""How every figure looks: colours that colour-blind readers tell apart, a shape beside every colour, both themes.

Nothing here is black or white: a figure is drawn on the page it is put on, light or dark.
"""

from __future__ import annotations

import html
import textwrap
from typing import TYPE_CHECKING, Any

from icrl_lab.errors import MissingExtra

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's palette (2008) without black and yellow, which vanish on one of the two backgrounds; grey for black
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#888888"
COLOURS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, GREY)
SHAPES = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
CONTROLS = {  # each control has its colour and its shape, the same in every figure
    "real": (BLUE, "circle"),
    "shuffled": (ORANGE, "square"),
    "noise": (VERMILLION, "diamond"),
    "shared": (GREEN, "triangle-up"),
    "shared-item": (GREEN, "triangle-down"),
    "dummy": (PURPLE, "x"),
    "zero": (SKY, "cross"),
    "back-translated": (GREY, "star"),
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
WIDTH = 700
GRID = "rgba(128,128,128,0.22)"
LINE = "rgba(128,128,128,0.65)"
TEXT = (
    "#757575"  # contrast 4.6 on white and 4.1 on JupyterLab's dark page; widgets and reports give the page's own colour
)


def graph_objects() -> Any:
    """plotly.graph_objects; a MissingExtra where plotly is not installed."""
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise MissingExtra('figures need plotly: pip install "icrl-lab[figures]"') from None
    from icrl_lab.plots import still

    still.beside()
    return go


def look(control: str, order: int = 0) -> tuple[str, str]:
    """(colour, shape) of a control, or of the `order`-th thing of another kind."""
    return CONTROLS.get(control, (COLOURS[order % len(COLOURS)], SHAPES[order % len(SHAPES)]))


def shortened(text: Any, width: int | None = None) -> str:
    """`text` on one line, of `width` characters at most; for a title or a caption, which `finish` escapes."""
    plain = " ".join(str(text).split())
    return plain[: width - 1] + "…" if width and len(plain) > width else plain


def safe(text: Any, width: int | None = None) -> str:
    """`text` as plotly shows it: markup escaped, on one line, shortened to `width` characters."""
    return html.escape(shortened(text, width), quote=False)


def finish(figure: go.Figure, title: str, caption: str, height: int, legend_rows: int = 0) -> go.Figure:
    """Title and caption (what the marks are, n, how the intervals were made) above the plot, where nothing is cut off.

    height  of the plotting area, in pixels
    """
    lines = [safe(line) for line in textwrap.wrap(caption, 96)]
    top, bottom = 42 + 16 * len(lines) + 22 * legend_rows, 52
    axis = {"gridcolor": GRID, "zerolinecolor": LINE, "automargin": True, "title": {"font": {"size": 13}}}
    old = figure.layout.to_plotly_json()
    old.pop("template", None)
    new = {
        "title": {
            "text": "<br>".join([f'<span style="font-size:16px"><b>{safe(title, 72)}</b></span>', *lines]),
            "font": {"size": 12},
            **{"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"},
            "pad": {"t": 24, "l": 10},
        },
        "template": "none",
        "font": {"family": FONT, "size": 13, "color": TEXT},
        **{"width": WIDTH, "height": top + height + bottom, "margin": {"l": 20, "r": 24, "t": top, "b": bottom}},
        **{"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"},
        "hoverlabel": {"align": "left"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": LINE},
        "showlegend": legend_rows > 0,
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "entrywidth": 0.48, "entrywidthmode": "fraction"},
        **{name: axis for name in {"xaxis", "yaxis", *old} if name[1:5] == "axis"},
    }  # fmt: skip
    figure.layout = _over(old, new)  # at once: plotly takes five times as long for many small updates
    return figure


def _over(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`new` laid over `old`, mapping by mapping."""
    both = {k: _over(old[k], v) if isinstance(v, dict) and isinstance(old.get(k), dict) else v for k, v in new.items()}
    return old | both
