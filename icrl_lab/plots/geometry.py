"""Figures of the geometry: how much of the encoder and of the label there is along the way, the shape of each space, what the
slot map does to norms and cosines, and maps of a few spaces.

All take a reading of `probes.geometry`; `distortion` also that of the slot map alone. Real vectors are blue circles and noise
vectors red diamonds throughout, as in every figure of the lab.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, nearest
from icrl_lab.plots import style
from icrl_lab.plots.words import marks
from icrl_lab.stats.words import estimate

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

WORDS = {"slot": "at the query's slot", "answer": "at the answer position"}
PANELS = (  # array, words, axis type
    ("norm", "norm", "log"),
    ("cosine", "mean pairwise cosine", "linear"),
    ("effective_rank", "effective rank", "linear"),
    ("dimension", "intrinsic dimension", "linear"),
    ("overlap", "shared neighbours (Jaccard)", "linear"),
    ("label_partial", "label RSA at equal encoder RSA", "linear"),
)
RANKS = {"real vectors, RSA": 990, "real vectors, CKA": 991, "noise vectors, RSA": 992, "95 % of shuffled labels": 1002}
BACK = "rgba(232,232,228,0.95)"  # behind drawn molecules, whose bonds are dark


def figure(reading: Reading, **options: Any) -> go.Figure:
    """The question's figure: `along`, or `distortion` for a reading of the slot map alone."""
    return along(reading, **options) if "encoder_rsa" in reading.data else distortion(reading, **options)


def figures(reading: Reading) -> dict[str, go.Figure]:
    """All figures that the reading has numbers for, the main one first."""
    if "encoder_rsa" not in reading.data:
        return {"distortion": distortion(reading)}
    made = {"along": along(reading), "shape": shape(reading), "distortion": distortion(reading)}
    methods = reading.data["reducer"].values if "coordinates" in reading.data else ()
    return made | {f"map-{method}": maps(reading, str(method)) for method in methods}


def _grid(rows: int, columns: int, titles: list[str], **options: Any) -> go.Figure:
    style.graph_objects()
    from plotly.subplots import make_subplots

    made = make_subplots(rows, columns, subplot_titles=titles, **options)
    made.update_annotations(font_size=13)
    return made


def _finish(
    figure: go.Figure, reading: Reading, title: str, words: str, height: int, legend_rows: int = 0
) -> go.Figure:
    """The house's finish, with room for the panels' titles under the legend."""
    about = reading.about
    where = f"{about['task']}, {about['llm']}, arm {about['arm']}{', with text' if about['with_text'] else ''}"
    style.finish(figure, title, f"{where}; n = {about['n']}. {words}", height, legend_rows)
    room = 24
    figure.update_layout(height=figure.layout.height + room, margin_t=figure.layout.margin.t + room)
    return figure.update_layout(legend={"y": 1 + room / height, "tracegroupgap": 0})


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _band(figure: go.Figure, x: Any, low: Any, high: Any, colour: str, at: tuple[int, int], alpha: float = 0.16, **more: Any) -> None:  # fmt: skip
    go, fine = style.graph_objects(), np.isfinite(low) & np.isfinite(high)
    x, low, high = (np.asarray(v, float)[fine] for v in (x, low, high))
    figure.add_trace(
        go.Scatter(
            x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=_rgba(colour, alpha), mode="lines",
            line={"width": 0}, hoverinfo="skip", **{"showlegend": False, **more},
        ), row=at[0], col=at[1],
    )  # fmt: skip


def _line(figure: go.Figure, data: xr.Dataset, name: str, control: str, look: tuple[str, str, str], at: tuple[int, int], words: str, shown: bool, band: bool = True) -> None:  # fmt: skip
    """One array along the depths of `data`, with its band."""
    go, (colour, symbol, dash) = style.graph_objects(), look
    here = data.sel(control=control)
    x, y = here["depth"].values, here[name].values
    low, high = here[f"{name}_low"].values, here[f"{name}_high"].values
    if band:
        _band(figure, x, low, high, colour, at)
    figure.add_trace(
        go.Scatter(
            x=x, y=y, name=words, legendgroup=words, showlegend=shown, mode="lines+markers",
            line={"color": colour, "width": 1.5, "dash": dash}, marker={"color": colour, "symbol": symbol, "size": 5},
            customdata=marks(y, low, high), legendrank=RANKS.get(words, 1000),
            hovertemplate=f"<b>{words}</b><br>depth %{{x}}: %{{customdata}}<extra></extra>",
        ), row=at[0], col=at[1],
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------ along the way

REAL, NOISE = ("#0072B2", "circle", "solid"), ("#D55E00", "diamond", "solid")
TOP = (1.17, 1.06)  # where the two landmarks stand, above all curves


def along(reading: Reading) -> go.Figure:
    """The encoder's and the label's geometry in the residual stream, depth by depth, with noise vectors and shuffled labels."""
    data, last = reading.data, int(reading.data["depth"].max())
    titles = [f"{relation}, {WORDS[p]}" for p in WORDS for relation in ("the encoder", "the label")]
    figure = _grid(2, 2, titles, shared_yaxes=True, horizontal_spacing=0.04, vertical_spacing=0.13)
    for row, position in enumerate(WORDS, 1):
        here = data.isel(space=np.flatnonzero(data["kind"].values == position))
        first = row == 1
        _line(
            figure,
            here,
            "encoder_cka",
            "real",
            (style.SKY, "square", "dot"),
            (row, 1),
            "real vectors, CKA",
            first,
            False,
        )
        low, high = (here[f"label_null_{end}"].sel(control="real").values for end in ("low", "high"))
        words = "95 % of shuffled labels"
        _band(
            figure,
            here["depth"].values,
            low,
            high,
            style.GREY,
            (row, 2),
            0.3,
            name=words,
            showlegend=first,
            legendrank=RANKS[words],
        )
        for column, name in ((1, "encoder_rsa"), (2, "label_rsa")):
            opening = first and column == 1
            _line(figure, here, name, "noise", NOISE, (row, column), "noise vectors, RSA", opening)
            _line(figure, here, name, "real", REAL, (row, column), "real vectors, RSA", opening)
            _landmarks(figure, data, ("encoder", "label")[column - 1], position, (row, column), opening)
        own = float(data["label_rsa"].sel(control="real", space="encoder"))
        _reference(figure, own, (0, last), (row, 2), first)
    lowest = float(np.nanmin([data[n].values for n in ("encoder_rsa_low", "label_rsa_low")]))
    figure.update_yaxes(range=[max(-0.6, min(-0.2, lowest)), 1.28], tickvals=[-0.5, 0, 0.5, 1])
    figure.update_yaxes(title="Spearman ρ, CKA", col=1)
    figure.update_xaxes(range=[-0.03 * last - 0.3, 1.03 * last + 1.3])
    figure.update_xaxes(title="depth (0: input)", title_standoff=4, row=2)
    words = (
        f"Bands: {_short(reading)}. Marks above: depth where a relation is first found, and from which on it is lost, with "
        "95 % of bootstrap resamples; no mark: none found. "
        "Encoder: interval of real less noise above 0; label: above shuffled labels, corrected over depths."
    )
    return _finish(figure, reading, "The encoder's and the label's geometry along the way", words, 520, 4)


def _short(reading: Reading) -> str:
    return str(reading.about["interval"]).split(",")[0] + (", seeds and items crossed" if len(reading.about["seeds"]) > 1 else ", items alone")  # fmt: skip


def _reference(
    figure: go.Figure, y: float, ends: tuple[float, float], at: tuple[int, int], shown: bool = False
) -> None:
    """What the encoder's own vectors have."""
    figure.add_trace(
        style.graph_objects().Scatter(
            x=ends, y=[y, y], mode="lines", name="the encoder's own vectors", legendgroup="own", showlegend=shown,
            line={"color": style.GREY, "width": 1.4, "dash": "dash"}, legendrank=1003,
            hovertemplate="the encoder's own: %{y:.3g}<extra></extra>",
        ), row=at[0], col=at[1],
    )  # fmt: skip


def _landmarks(figure: go.Figure, data: xr.Dataset, relation: str, position: str, at: tuple[int, int], shown: bool) -> None:  # fmt: skip
    """The depths where a relation is first found and lost, each with its range, above the curves."""
    go = style.graph_objects()
    looks = (
        ("first", "first found", style.GREEN, "triangle-up"),
        ("lost", "lost from here on", style.PURPLE, "triangle-down"),
    )
    for (name, words, colour, symbol), y in zip(looks, TOP):
        here = data.sel(relation=relation, position=position)
        depth, low, high = (float(here[name + end]) for end in ("", "_low", "_high"))
        found = str(here[f"{name}_says"].values).startswith("depth")
        depths = f" [{low:.0f}, {high:.0f}]" if np.isfinite([low, high]).all() else ", no interval"
        figure.add_trace(
            go.Scatter(
                x=[depth if found else None], y=[y], name=words, legendgroup=words, showlegend=shown, mode="markers", legendrank=1004,
                marker={"color": colour, "symbol": symbol, "size": 10},
                error_x={"array": [high - depth], "arrayminus": [depth - low], "color": colour, "thickness": 1.5, "width": 3},
                hovertemplate=f"<b>{words}</b>: {style.safe(here[f'{name}_says'].values)}{depths}<extra></extra>",
            ), row=at[0], col=at[1],
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------ the shape of each space


def shape(reading: Reading) -> go.Figure:
    """Norms, cosines, effective rank, dimension, shared neighbours and what is left for the label, depth by depth."""
    data, last = reading.data, int(reading.data["depth"].max())
    figure = _grid(3, 2, [words for _, words, _ in PANELS], horizontal_spacing=0.12, vertical_spacing=0.1)
    looks = {
        ("slot", "real"): (style.BLUE, "circle", "solid"),
        ("slot", "noise"): (style.VERMILLION, "diamond", "solid"),
        ("answer", "real"): (style.SKY, "square", "dot"),
        ("answer", "noise"): (style.ORANGE, "x", "dot"),
    }
    for number, (name, _, kind) in enumerate(PANELS):
        at = number // 2 + 1, number % 2 + 1
        for (position, control), look in looks.items():
            here = data.isel(space=np.flatnonzero(data["kind"].values == position))
            words = f"{control} vectors, {WORDS[position]}"
            _line(figure, here, name, control, look, at, words, number == 0, control == "real")
        if name in ("cosine", "effective_rank", "dimension"):
            own = float(data[name].sel(control="real", space="encoder"))
            _reference(figure, own, (0, last), at, name == "cosine")
        figure.update_yaxes(type=kind, dtick=1 if kind == "log" else None, row=at[0], col=at[1])
    figure.update_xaxes(title="depth (0: input)", title_standoff=4, row=3)
    words = f"Bands of real vectors: {_short(reading)}. About the mean: effective rank (exp of the singular values' entropy)."
    return _finish(figure, reading, "The shape of each space", words, 620, 3)


# ------------------------------------------------------------------------------------------------ the slot map


def distortion(reading: Reading) -> go.Figure:
    """Cosines of pairs and norms of items before and behind the slot map, with theory's curves."""
    go, data = style.graph_objects(), reading.data
    if "slot_cosine" not in data:
        raise DataError("this reading has no cosines of pairs; take one of probes.geometry")
    figure = _grid(1, 2, ["cosine of each pair", "norm of each item"], horizontal_spacing=0.13)
    rho, layer = data["rho"].values, float(data["layer_width"])
    width = f", width {layer:.0f}" if np.isfinite(layer) else ""
    known = bool(np.isfinite(data["theory"]).all())  # not for every activation of a map
    if known:
        _band(figure, rho, data["theory_low"].values, data["theory_high"].values, style.GREY, (1, 1), 0.25, name=f"theory's bound (δ = 0.05{width})", showlegend=True)  # fmt: skip
    ids = data["query"].values
    pair = [f"{style.safe(ids[i], 24)}, {style.safe(ids[j], 24)}" for i, j in zip(data["first_of_pair"].values, data["second_of_pair"].values)]  # fmt: skip
    x = data["encoder_cosine"].values
    for control, alpha in (("noise", 0.3), ("real", 0.55)):
        colour, symbol = style.look(control)
        y = data["slot_cosine"].sel(control=control).values[0]
        figure.add_trace(
            go.Scatter(
                x=x, y=y, mode="markers", name=f"{control} vectors, first seed", text=pair,
                marker={"color": colour, "symbol": symbol, "size": 4, "opacity": alpha},
                hovertemplate="%{text}<br>encoder %{x:.3f}, slot %{y:.3f}<extra></extra>",
            ), row=1, col=1,
        )  # fmt: skip
    curves = [("theory_relu", "theory for one ReLU layer", "dash")]
    for name, words, dash in [("theory", "theory for this map", "solid")] * known + curves:
        line = {"color": style.GREY if name == "theory" else style.PURPLE, "dash": dash, "width": 1.8}
        figure.add_trace(go.Scatter(x=rho, y=data[name].values, mode="lines", name=words, line=line, hoverinfo="skip"), row=1, col=1)  # fmt: skip
    before, after = data["norm_before"].values, data["norm_after"].values
    for number in range(len(before)):
        colour, symbol = style.COLOURS[number % 7], style.SHAPES[number % 7]
        figure.add_trace(
            go.Scatter(
                x=before[number], y=after[number] / after[number].mean() * before[number].mean(), mode="markers",
                text=[style.safe(i, 40) for i in ids], showlegend=False,
                marker={"color": colour, "symbol": symbol, "size": 5, "opacity": 0.7},
                hovertemplate="%{text}<br>before %{x:.3g}, behind %{y:.3g}<extra></extra>",
            ), row=1, col=2,
        )  # fmt: skip
    ends = [float(before.min()), float(before.max())]
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", line={"color": style.GREY, "width": 1.8}, showlegend=False, hoverinfo="skip"), row=1, col=2)  # fmt: skip
    lowest = min(0.0, float(x.min()), float(data["slot_cosine"][:, 0].min()))
    figure.update_xaxes(title="encoder's cosine", range=[min(0.0, float(x.min())) - 0.03, 1.03], row=1, col=1)
    figure.update_yaxes(title="slots' cosine", range=[lowest - 0.05, 1.05], row=1, col=1)
    figure.update_xaxes(title="norm before", row=1, col=2)
    figure.update_yaxes(title="norm behind, at the mean before", row=1, col=2)
    flat = float(np.ptp(before)) <= 1e-5 * float(before.max())
    if flat:  # of unit vectors: their last digits say nothing
        figure.update_xaxes(range=[0.9 * float(before.max()), 1.1 * float(before.max())], row=1, col=2)
    norms = "all norms are equal before" if flat else f"norms correlate at {_number(data, 'norm_correlation')}"
    r, s = (_number(data, name) for name in ("cosine_correlation", "cosine_slope"))
    words = (
        f"Real vectors: cosines correlate at {r}, slope {s}, mean {_number(data, 'cosine_after')} against {_number(data, 'cosine_before')} "
        f"before; {norms} (a colour and shape for each seed; before slots are brought "
        f"to one length). 95 % intervals: {_short(reading).removeprefix('95 % intervals: ')}."
    )
    return _finish(figure, reading, "What the slot map does to cosines and norms", words, 330, 3)


def _number(data: xr.Dataset, name: str) -> str:
    value, low, high = (data[name + end] for end in ("", "_low", "_high"))
    if "control" in value.dims:
        value, low, high = (v.sel(control="real") for v in (value, low, high))
    return estimate(float(value), float(low), float(high), form=".2f")


# ------------------------------------------------------------------------------------------------ maps


def maps(reading: Reading, method: str = "pca") -> go.Figure:
    """The items in two dimensions, in a few spaces, coloured by their target; four of them drawn where they are molecules."""
    data = reading.data
    known = [str(m) for m in data["reducer"].values] if "coordinates" in data else []
    if method not in known:
        raise DataError(
            f"this reading has no map {method!r}; {nearest(method, known) if known else 'ask the probe for methods'}"
        )
    here = data.sel(reducer=method)
    shown = _few([str(s) for s in data["mapped"].values])
    spaces, trust = [str(s) for s in data["mapped"].values[shown]], here["trustworthiness"].values[shown]
    titles = [
        f"{_place(s)}<br><span style='font-size:11px'>trustworthiness {t:.2f}</span>" for s, t in zip(spaces, trust)
    ]
    rows = -(-len(spaces) // 3)
    figure = _grid(rows, 3, titles, horizontal_spacing=0.04, vertical_spacing=0.16)
    marked = _examples(reading)
    classes = 0
    for number in range(len(spaces)):
        at = number // 3 + 1, number % 3 + 1
        flat = here["coordinates"].values[shown[number]]
        classes = _points(figure, reading, flat, at, number == 0)
        for letter, item in zip("ABCD", marked):
            figure.add_annotation(
                x=flat[item, 0], y=flat[item, 1], text=f"<b>{letter}</b>", showarrow=False, xshift=9, yshift=8,
                font_size=12, row=at[0], col=at[1],
            )  # fmt: skip
    figure.update_xaxes(
        showticklabels=False, zeroline=False, showgrid=False, showline=True, mirror=True, linecolor=style.GRID
    )
    figure.update_yaxes(
        showticklabels=False, zeroline=False, showgrid=False, showline=True, mirror=True, linecolor=style.GRID
    )
    name = {"pca": "PCA", "umap": "UMAP"}[method]
    words = (
        f"{name} of the first seed's real vectors ({reading.about['metric']}); axes have no units. Trustworthiness: share of "
        f"{reading.about['neighbours']} neighbours on the map that are neighbours in the space (1: all)."
    )
    made = _finish(figure, reading, f"The items in a few spaces ({name})", words, 230 * rows + 30, -(-classes // 2))
    made.update_layout(margin_t=made.layout.margin.t + 14, height=made.layout.height + 14)
    return _drawn(made, reading, marked)


def _few(spaces: list[str]) -> list[int]:
    """Places of the spaces that a page shows: the encoder, the slots, and of each position the middle and the last depth."""
    chosen: list[str] = [s for s in ("encoder", "slots") if s in spaces]
    for position in WORDS:
        depths = sorted(int(s.split()[1]) for s in spaces if s.split()[0] == position)
        if depths:
            middle = min(depths, key=lambda d: abs(d - (depths[-1] + 1) // 2))
            chosen += [f"{position} {d}" for d in sorted({middle, depths[-1]})]
    return [spaces.index(s) for s in chosen]


def _place(space: str) -> str:
    kind, _, depth = space.partition(" ")
    return f"{kind}, depth {depth}" if depth else {"encoder": "encoder", "slots": "slots as injected"}.get(kind, kind)


def _points(figure: go.Figure, reading: Reading, flat: np.ndarray, at: tuple[int, int], shown: bool) -> int:
    """The items of one panel; returns the number of classes in the legend."""
    go, data = style.graph_objects(), reading.data
    text = data["text"].values if "text" in data.coords else data["query"].values
    names = np.array([f"<b>{style.safe(i, 40)}</b><br>{style.safe(t, 60)}" for i, t in zip(data["query"].values, text)])
    units = str(reading.about["target_units"])
    if "target" in data.coords:
        y = data["target"].values
        marker = {
            "color": y, "colorscale": "Cividis", "size": 7, "symbol": "circle", "showscale": shown, "line": {"width": 0.5, "color": style.LINE},
            "colorbar": {"title": {"text": style.safe(units, 14), "font": {"size": 12}}, "thickness": 10, "len": 0.9, "x": 1.01},
        }  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=flat[:, 0], y=flat[:, 1], mode="markers", marker=marker, text=names, customdata=y, showlegend=False,
                hovertemplate=f"%{{text}}<br>%{{customdata:.3g}} {style.safe(units)}<extra></extra>",
            ), row=at[0], col=at[1],
        )  # fmt: skip
        return 0
    labels = data["label"].values.astype(str)
    classes = sorted(set(labels))
    for place, name in enumerate(classes):
        mine = labels == name
        colour, symbol = style.COLOURS[place % 7], style.SHAPES[(place + place // 7) % 7]
        figure.add_trace(
            go.Scatter(
                x=flat[mine, 0], y=flat[mine, 1], mode="markers", name=style.safe(name, 24), legendgroup=name,
                showlegend=shown, marker={"color": colour, "symbol": symbol, "size": 7}, text=names[mine],
                hovertemplate=f"%{{text}}<br>{style.safe(name, 40)}<extra></extra>",
            ), row=at[0], col=at[1],
        )  # fmt: skip
    return len(classes)


def _examples(reading: Reading) -> list[int]:
    """Up to four molecules from the lowest target to the highest."""
    data = reading.data
    if reading.about["modality"] != "molecule" or "target" not in data.coords or "text" not in data.coords:
        return []
    order = np.argsort(data["target"].values, kind="stable")
    return [int(order[i]) for i in np.linspace(0, len(order) - 1, 4).round().astype(int)]


def _drawn(figure: go.Figure, reading: Reading, marked: list[int]) -> go.Figure:
    """A strip of drawn molecules below the panels."""
    if not marked:
        return figure
    from icrl_lab.plots.molecules import drawing

    data, strip = reading.data, 130
    inner = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    figure.update_layout(height=figure.layout.height + strip, margin_b=figure.layout.margin.b + strip)
    bottom, tall = -(figure.layout.margin.b - 24) / inner, (strip - 20) / inner
    for place, (letter, item) in enumerate(zip("ABCD", marked)):
        picture = drawing(str(data["text"].values[item]), 160, 110)
        left = place * 0.25
        figure.add_shape(type="rect", xref="paper", yref="paper", x0=left, x1=left + 0.235, y0=bottom, y1=bottom + tall, fillcolor=BACK, line_width=0, layer="below")  # fmt: skip
        if picture:
            figure.add_layout_image(source=picture, xref="paper", yref="paper", x=left, y=bottom + tall, sizex=0.235, sizey=tall, xanchor="left", yanchor="top")  # fmt: skip
        words = (
            f"<b>{letter}</b>  {float(data['target'].values[item]):.3g} {style.safe(reading.about['target_units'], 12)}"
        )
        figure.add_annotation(xref="paper", yref="paper", x=left, y=bottom, xanchor="left", yanchor="top", text=words, showarrow=False, font_size=11)  # fmt: skip
    return figure
