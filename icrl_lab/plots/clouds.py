"""Three spaces side by side, the same items in each: the encoder's, the slots', and the residual stream at one depth.

Takes a reading of `probes.geometry`, which holds the coordinates. Point i of every panel is item i of the reading, so that what
is picked in one panel is picked in all by its index. A colour scheme (`Colours`) is a number, drawn in cividis, or a class, which
has a shape beside its colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, nearest
from icrl_lab.plots import style

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.values import Reading

NAMES = {"pca": "PCA", "umap": "UMAP"}
POSITIONS = {"slot": "at the query's slot", "answer": "at the answer position"}
ASK = 'ask the probe for methods=("pca",)'
MANY = 1000  # points beyond which a browser needs WebGL
FADED = 0.12
PANELS = 3
STEPS = 64  # colours of a scale on a canvas
TITLE = "The same items in three spaces"


@dataclass(frozen=True, eq=False)
class Colours:
    """What the points' colours say.

    words, units  how it is called
    values        (n,) numbers, NaN where there is none, or (n,) strings
    """

    words: str
    units: str
    values: np.ndarray

    @property
    def classes(self) -> list[str]:
        """The classes, or nothing where values are numbers."""
        return sorted(set(self.values.tolist())) if self.values.dtype.kind not in "fiub" else []


@dataclass(frozen=True, eq=False)
class Panel:
    """A space on the page: its name in the reading, coordinates (n, 2), and the share of neighbours there that are true."""

    space: str
    flat: np.ndarray
    trust: float

    @property
    def titles(self) -> tuple[str, str]:
        kind, _, depth = self.space.partition(" ")
        named = {"encoder": "encoder", "slots": "slots as injected"}
        return f"depth {depth}, {POSITIONS[kind]}" if depth else named[kind], f"trustworthiness {self.trust:.2f}"

    @property
    def title(self) -> str:
        return "{}<br><span style='font-size:11px'>{}</span>".format(*self.titles)


def methods(reading: Reading) -> tuple[str, ...]:
    """The maps that the reading holds; empty where it has none."""
    return tuple(map(str, reading.data["reducer"].values)) if "coordinates" in reading.data else ()


def depths(reading: Reading, position: str) -> tuple[int, ...]:
    """The depths of a position of the residual stream that the reading has a map of, ascending."""
    spaces = [str(s).split() for s in reading.data["mapped"].values] if methods(reading) else []
    return tuple(sorted(int(s[1]) for s in spaces if s[0] == position))


def panels(reading: Reading, method: str, position: str, depth: int) -> tuple[Panel, ...]:
    """The three spaces; DataError where the reading has no such map."""
    known, data = methods(reading), reading.data
    if method not in known:
        raise DataError(f"this reading has no map {method!r}; {nearest(method, known) if known else ASK}")
    spaces = [str(s) for s in data["mapped"].values]
    wanted = ("encoder", "slots", f"{position} {depth}")
    missing = [name for name in wanted if name not in spaces]
    if missing:
        raise DataError(f"this reading has no map of {missing[0]!r}; {nearest(missing[0], spaces)}")
    here, row = data["coordinates"].values, known.index(method)
    trust = data["trustworthiness"].values
    return tuple(Panel(s, here[row, i], float(trust[row, i])) for s in wanted for i in [spaces.index(s)])


def target(reading: Reading) -> Colours:
    """The items' targets, or their classes."""
    data, about = reading.data, reading.about
    words, units = str(about.get("property") or "target"), str(about.get("target_units", ""))
    if "target" in data.coords:
        return Colours(words, units, data["target"].values.astype(float))
    return Colours(words, "", data["label"].values.astype(str))


def marker(colours: Colours, bar: bool = False) -> dict[str, Any]:
    """plotly's marker of one panel; `bar` shows what the colours mean beside it."""
    look: dict[str, Any] = {"size": 7, "opacity": 0.9}
    if colours.classes:
        place = {name: i for i, name in enumerate(colours.classes)}
        at = [place[v] for v in colours.values.tolist()]
        shown = {"color": [_class(i)[0] for i in at], "symbol": [_class(i)[1] for i in at], "showscale": False}
        return look | shown
    low, high = _range(colours)
    return look | {
        "color": colours.values, "colorscale": "Cividis", "cmin": low, "cmax": high, "symbol": "circle", "showscale": bar,
        "colorbar": {"title": {"text": style.safe(colours.units or colours.words, 14), "font": {"size": 12}}, "thickness": 10, "len": 0.9, "x": 1.01, "tickfont": {"size": 11}},
    }  # fmt: skip


def paints(colours: Colours) -> tuple[list[tuple[str, str]], np.ndarray]:
    """The same looks for a canvas: a palette of at most 65 (colour, shape), and of each point its place there, uint8 (n,)."""
    if colours.classes:
        place = {name: i % 49 for i, name in enumerate(colours.classes)}  # 7 colours x 7 shapes
        return [_class(i) for i in range(min(len(place), 49))], np.array(
            [place[v] for v in colours.values.tolist()], np.uint8
        )
    low, high = _range(colours)
    there = np.isfinite(colours.values)
    step = np.where(there, (np.where(there, colours.values, low) - low) / (high - low) * (STEPS - 1), STEPS)
    return [*((c, "circle") for c in _cividis()), (style.GREY, "x")], step.round().astype(np.uint8)


def legend(colours: Colours) -> dict[str, Any]:
    """What the looks of `paints` mean, in plain text: a title and either classes, or a gradient with its ends."""
    if colours.classes:
        return {"title": colours.words, "classes": [(name, *_class(i)) for i, name in enumerate(colours.classes[:49])]}
    low, high = _range(colours)
    units = f" [{colours.units}]" if colours.units else ""
    return {"title": colours.words + units, "low": f"{low:.3g}", "high": f"{high:.3g}", "gradient": _cividis()[::9]}


def _range(colours: Colours) -> tuple[float, float]:
    fine = colours.values[np.isfinite(colours.values)]
    low, high = (float(fine.min()), float(fine.max())) if len(fine) else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def _cividis() -> list[str]:
    from plotly.colors import sample_colorscale

    return list(sample_colorscale("Cividis", np.linspace(0, 1, STEPS).tolist()))


def _class(place: int) -> tuple[str, str]:
    return style.COLOURS[place % 7], style.SHAPES[(place + place // 7) % 7]


def labels(reading: Reading) -> list[str]:
    """What is said of each item when it is pointed at."""
    data = reading.data
    text = data["text"].values if "text" in data.coords else data["query"].values
    return [f"<b>{style.safe(i, 40)}</b><br>{style.safe(t, 60)}" for i, t in zip(data["query"].values, text)]


def caption(reading: Reading, method: str, colours: Colours) -> str:
    """What the marks are."""
    about, n = reading.about, reading.data.sizes["query"]
    none = int((~np.isfinite(colours.values)).sum()) if not colours.classes else 0
    scheme = f"Colour: {colours.words}{f' [{colours.units}]' if colours.units and not colours.classes else ''}"
    return (
        f"{about.get('task', '')}, {about.get('llm', '')}, arm {about.get('arm', '')}; {n} items, {NAMES.get(method, method)} of the first "
        f"seed's real vectors ({about.get('metric', 'cosine')}), axes without units. {scheme}"
        f"{f' ({none} items have none)' if none else ''}. Trustworthiness: share of {about.get('neighbours', 8)} neighbours here that are "
        "neighbours in the space."
    )


def heading(reading: Reading, method: str, colours: Colours) -> str:
    """Title and caption, as they stand above the panels."""
    bare = style.finish(style.graph_objects().Figure(), TITLE, caption(reading, method, colours), 0)
    return str(bare.layout.title.text)


def figure(reading: Reading, method: str = "pca", position: str = "slot", depth: int | None = None, colours: Colours | None = None, at: Any = None) -> go.Figure:  # fmt: skip
    """The three spaces, as traces 0 to 2, with rings around item `at` (or none) as traces 3 to 5.

    depth  None: the last there is; colours None: by target
    """
    go = style.graph_objects()
    from plotly.subplots import make_subplots

    known = depths(reading, position)
    if depth is None and not known:
        raise DataError(f"this reading has no maps of the residual stream; {ASK}")
    three = panels(reading, method, position, known[-1] if depth is None else depth)
    colours = target(reading) if colours is None else colours
    made = make_subplots(1, PANELS, subplot_titles=[p.title for p in three], horizontal_spacing=0.03)
    made.update_annotations(font_size=13)
    kind = go.Scattergl if len(three[0].flat) > MANY else go.Scatter
    text, said = labels(reading), hover(colours)
    for i, panel in enumerate(three):
        trace = kind(
            x=panel.flat[:, 0], y=panel.flat[:, 1], mode="markers", marker=marker(colours, i == PANELS - 1), text=text, customdata=said,
            showlegend=False, hovertemplate="%{text}<br>%{customdata}<extra></extra>",
            selected={"marker": {"opacity": 1.0}}, unselected={"marker": {"opacity": FADED}},
        )  # fmt: skip
        made.add_trace(trace, row=1, col=i + 1)
    for i, panel in enumerate(three):
        x, y = around(panel, at)
        ring = {"size": 17, "color": style.VERMILLION, "symbol": "circle-open", "line": {"width": 2.5, "color": style.VERMILLION}}  # fmt: skip
        made.add_trace(
            kind(x=x, y=y, mode="markers", marker=ring, hoverinfo="skip", showlegend=False), row=1, col=i + 1
        )
    for i, name in enumerate(colours.classes):
        made.add_trace(key(name, i), row=1, col=1)
    made.update_xaxes(showticklabels=False, zeroline=False, showgrid=False, showline=True, mirror=True)
    made.update_yaxes(showticklabels=False, zeroline=False, showgrid=False, showline=True, mirror=True)
    classes = len(colours.classes)
    style.finish(made, TITLE, caption(reading, method, colours), 270, -(-classes // 2))
    room = 38  # for the panels' titles
    made.update_layout(height=made.layout.height + room, margin_t=made.layout.margin.t + room, margin_r=30)
    made.update_layout(legend_y=1 + room / 270, dragmode="lasso", hovermode="closest")
    return made.update_xaxes(linecolor=style.GRID).update_yaxes(linecolor=style.GRID)


def key(name: str, place: int) -> go.Scatter:
    """A class in the legend."""
    colour, symbol = _class(place)
    look = {"color": colour, "symbol": symbol, "size": 9}
    return style.graph_objects().Scatter(x=[None], y=[None], mode="markers", name=style.safe(name, 24), marker=look)


def hover(colours: Colours) -> list[str]:
    """The value of each item in words."""
    if colours.classes:
        return [style.safe(v, 40) for v in colours.values]
    units = f" {style.safe(colours.units, 30)}" if colours.units else ""
    words = style.safe(colours.words, 40)
    return [f"{words} {v:.3g}{units}" if np.isfinite(v) else f"no {words}" for v in colours.values.tolist()]


def around(panel: Panel, at: Any) -> tuple[list[float], list[float]]:
    """Coordinates of a ring around item `at`, or none."""
    return ([], []) if at is None else ([float(panel.flat[at, 0])], [float(panel.flat[at, 1])])
