"""Figures of the lens: what states say and what can be read from them, by depth, and the tokens themselves."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.plots import style
from icrl_lab.plots.beside import called
from icrl_lab.plots.molecules import drawing
from icrl_lab.plots.words import marks, sampled

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

LOOKS = {"real": style.CONTROLS["real"], "noise": style.CONTROLS["noise"], "text": (style.GREEN, "square")}
CARD = "rgba(236,238,242,0.94)"  # behind a molecule, whose bonds are dark on any page


def figure(reading: Reading) -> go.Figure:
    """Through the lens at the answer, and linear probes at slot and answer, by depth."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    titles = ("Lens at the answer", "Linear probe at the query's slot", "Linear probe at the answer")
    made = make_subplots(3, 1, shared_xaxes=True, vertical_spacing=0.085, subplot_titles=titles)
    _line(made, 1, data.sel(control="real"), "final", "with the final answer", (style.PURPLE, "x"), dash="dot")
    for control in data["control"].values.tolist():
        rows = data.sel(control=control)
        _line(made, 1, rows, "target", f"with the truth, {called(control, about)}", LOOKS[control])
    for row, position in ((2, "slot"), (3, "answer")):
        _band(made, row, data.sel(control="real", position=position), first=row == 2)
        for control in data["control"].values.tolist():
            rows = data.sel(control=control, position=position)
            _line(made, row, rows, "score", f"probe, {called(control, about)}", LOOKS[control], legend=False)
        _ceiling(made, row, data, first=row == 2)
    made.update_yaxes(title="Pearson r", range=_range(data), zeroline=True)
    made.update_xaxes(showgrid=False, zeroline=False)
    made.update_xaxes(title="depth: blocks passed", title_standoff=6, row=3, col=1)
    caption = (
        f"n = {about['n']}. Above: correlation over queries of what the state says with the final answer and with the truth. "
        f"Below: r of {about['probe']}, out of fold; grey: shuffled labels (95 %), dashed: the same probe on the encoder's vectors. "
        f"Bars are 95 % intervals over {sampled(about)}."
    )
    style.finish(made, "What is said and what is there, by depth", caption, 660, legend_rows=4)
    _titles(made)
    return made


def _line(
    made: go.Figure, row: int, data: xr.Dataset, name: str, label: str, look: tuple[str, str], **options: Any
) -> None:
    go = style.graph_objects()
    value, low, high = (data[n].values for n in (name, f"{name}_low", f"{name}_high"))
    colour, shape = look
    p = data[f"{name}_q"].values if f"{name}_q" in data else None
    made.add_trace(
        go.Scatter(
            x=data["depth"].values, y=value, name=label, mode="lines+markers", showlegend=options.get("legend", True),
            line={"color": colour, "width": 1.6, "dash": options.get("dash", "solid")},
            marker={"color": colour, "symbol": shape, "size": 6},
            error_y={"array": high - value, "arrayminus": value - low, "color": colour, "thickness": 0.8, "width": 0},
            customdata=marks(value, low, high, p, ".2f"),
            hovertemplate=f"<b>{label}</b><br>depth %{{x}}: %{{customdata}}<extra></extra>",
        ),
        row=row, col=1,
    )  # fmt: skip


def _band(made: go.Figure, row: int, data: xr.Dataset, first: bool) -> None:
    go = style.graph_objects()
    x = data["depth"].values
    outline = {"color": style.LINE, "width": 0}
    made.add_trace(
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([data["null_low"].values, data["null_high"].values[::-1]]),
            fill="toself", fillcolor="rgba(128,128,128,0.28)", line=outline, mode="lines", hoverinfo="skip",
            name="probe, shuffled labels", showlegend=first,
        ),
        row=row, col=1,
    )  # fmt: skip


def _ceiling(made: go.Figure, row: int, data: xr.Dataset, first: bool) -> None:
    go = style.graph_objects()
    value, low, high = (float(data[n]) for n in ("ceiling", "ceiling_low", "ceiling_high"))
    text = f"probe on the encoder's vectors: {value:.2f} [{low:.2f}, {high:.2f}]"
    made.add_trace(
        go.Scatter(
            x=data["depth"].values[[0, -1]], y=[value, value], mode="lines", name="probe, encoder's vectors",
            line={"color": style.ORANGE, "width": 1.8, "dash": "dash"}, showlegend=first,
            hovertemplate=f"{text}<extra></extra>",
        ),
        row=row, col=1,
    )  # fmt: skip


def _range(data: xr.Dataset) -> list[float]:
    """Every estimate, and intervals as far as they do not crush them."""
    names = ("score", "target", "final", "null_low", "null_high", "ceiling")
    low = min(float(data[n].min()) for n in names)
    return [min(-0.25, low - 0.1), 1.05]


def _titles(made: go.Figure) -> None:
    """Panel titles at the left, and the legend above the first."""
    made.update_annotations(x=0, xanchor="left", font_size=13)
    made.update_layout(legend_y=1.035)


def mass(reading: Reading) -> go.Figure:
    """The probability that the lens gives to the labels, by depth."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    made = make_subplots(1, 1)
    for control in data["control"].values.tolist():
        _line(made, 1, data.sel(control=control), "mass", called(control, about), LOOKS[control])
    made.update_yaxes(title="probability of all labels together", range=[-0.02, 1.02], tickformat=".0%")
    made.update_xaxes(title="depth: blocks passed", title_standoff=6, zeroline=False)
    words = f"n = {about['n']}; the answer position through the lens; bars are 95 % intervals over {sampled(about)}."
    return style.finish(made, "When the states begin to speak in labels", words, 320, legend_rows=2)


# ------------------------------------------------------------------------------------------------ tokens


def tokens(
    reading: Reading, kinds: tuple[str, ...] = ("query slot", "answer"), most: int = 8, title: str = ""
) -> go.Figure:
    """The most probable token of some places at each depth; `kinds` of places, at most `most` of them.

    A column a place, under the item's drawing; colour is the token's probability, and more tokens stand in the hover.
    """
    go = style.graph_objects()
    data = reading.data
    places = [i for kind in kinds for i in np.flatnonzero(data["kind"].values == kind)]
    if not places:
        raise DataError(
            f"the reading shows no place of the kinds {kinds}; there are {sorted(set(data['kind'].values))}"
        )
    if len(kinds) > 1:  # slot and answer of one item side by side
        places = sorted(places, key=lambda i: (list(data["item"].values).index(data["item"].values[i]), i))
    places = places[:most]
    shown = data.isel(place=places)
    first = shown.isel(rank=0)
    text = [[style.safe(t, 9) for t in row] for row in first["token"].values.T]
    made = go.Figure(
        go.Heatmap(
            z=first["probability"].values.T, x=np.arange(len(places)), y=data["depth"].values, text=text,
            texttemplate="%{text}", textfont={"size": 10}, customdata=_hover(shown), zmin=0, zmax=1,
            colorscale=[[0, "rgba(0,114,178,0.05)"], [1, "rgba(0,114,178,0.75)"]], xgap=1, ygap=1,
            colorbar={"title": {"text": "probability", "side": "right"}, "thickness": 12, "tickformat": ".0%"},
            hovertemplate="%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    made.update_yaxes(title="depth: blocks passed", showgrid=False, zeroline=False, dtick=5)
    words = [f"{k}<br>label {style.safe(lab, 8)}" for k, lab in zip(shown["kind"].values, shown["label"].values)]
    made.update_xaxes(
        tickvals=np.arange(len(places)), ticktext=words, side="bottom", showgrid=False, zeroline=False, tickangle=0,
        range=[-0.5, len(places) - 0.5], tickfont_size=11,
    )  # fmt: skip
    caption = (
        f"Seed {reading.about['seeds'][0]}; the token that each state would say next through the model's final norm and unembedding "
        f"({style.safe('␣')} is a space). Below: which place, and the item's label. Single cases, no statistics."
    )
    height = 17 * data.sizes["depth"] + 90
    style.finish(made, title or f"In words: {' and '.join(kinds)}", caption, height)
    _draw(made, shown, 84 / height)
    return made


def _hover(shown: xr.Dataset) -> list[list[str]]:
    """The best tokens of each cell, as lines."""
    out = []
    for d in range(shown.sizes["depth"]):
        row = []
        for p in range(shown.sizes["place"]):
            cell = shown.isel(depth=d, place=p)
            best = [f"{style.safe(t)} {q:.1%}" for t, q in zip(cell["token"].values, cell["probability"].values)]
            near = f"nearest embedding: {style.safe(cell['nearest'].item())} (cosine {float(cell['cosine']):.2f})"
            who = "<br>".join(
                style.safe(line) for line in textwrap.wrap(str(cell["text"].item() or cell["item"].item()), 40)
            )
            row.append(f"<b>{who}</b>, depth {d}<br>" + "<br>".join(best) + f"<br>{near}")
        out.append(row)
    return out


def _draw(made: go.Figure, shown: xr.Dataset, share: float) -> None:
    """The items above their columns, one drawing for neighbouring columns of one item."""
    items, texts = shown["item"].values.tolist(), shown["text"].values.tolist()
    top = 1.0 - share
    made.update_yaxes(domain=[0, top])
    start = 0
    while start < len(items):
        stop = start + 1
        while stop < len(items) and items[stop] == items[start]:
            stop += 1
        place_molecule(made, texts[start], (start + stop - 1) / 2, stop - start, top + 0.01, share - 0.02)
        start = stop


def place_molecule(made: go.Figure, smiles: str, x: float, wide: float, bottom: float, height: float) -> None:
    """A drawing centred on x of the x axis, on a card; nothing for what is no molecule. Heights are shares of the plot."""
    picture = drawing(smiles, int(90 * wide), 80) if smiles else None
    if picture is None:
        return
    half = 0.46 * wide
    made.add_shape(
        type="rect", xref="x", yref="paper", x0=x - half, x1=x + half, y0=bottom, y1=bottom + height,
        fillcolor=CARD, line={"width": 0}, layer="below",
    )  # fmt: skip
    made.add_layout_image(
        source=picture, xref="x", yref="paper", x=x, y=bottom + height / 2, sizex=2 * half, sizey=height,
        xanchor="center", yanchor="middle", sizing="contain",
    )  # fmt: skip


def shots(reading: Reading) -> go.Figure:
    """The most probable token at the slots of the first shots."""
    return tokens(reading, ("shot slot",), most=10, title="In words: the slots of the first shots")


def noise(reading: Reading) -> go.Figure:
    """One query under real vectors and under noise."""
    return tokens(
        reading,
        ("query slot", "noise query slot", "answer", "noise answer"),
        most=4,
        title="In words: one query, real and noise",
    )


def figures(reading: Reading) -> dict[str, go.Figure]:
    """Every figure of the reading, the main one first."""
    kinds = set(reading.data["kind"].values.tolist())
    found = {"lens": figure(reading), "mass": mass(reading), "tokens": tokens(reading)}
    if "noise answer" in kinds:
        found["noise"] = noise(reading)
    return found | ({"shots": shots(reading)} if "shot slot" in kinds else {})
