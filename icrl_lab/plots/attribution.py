"""Figures of attribution: what each shot adds to one answer, and over all answers whether the methods can be believed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, nearest
from icrl_lab.plots import style
from icrl_lab.plots.lens import CARD
from icrl_lab.plots.molecules import drawing
from icrl_lab.plots.words import sampled
from icrl_lab.stats.words import estimate, tested

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

NAMES = {
    "ig": "integrated gradients", "shapley": "Shapley values", "ablation": "ablation of the vector",
    "leave-one-out": "leaving the shot out", "placebo": "random numbers",
}  # fmt: skip
LOOKS = {
    "ig": (style.BLUE, "circle"), "shapley": (style.ORANGE, "square"), "ablation": (style.GREEN, "diamond"),
    "leave-one-out": (style.PURPLE, "x"), "placebo": (style.GREY, "star"),
}  # fmt: skip
PATTERNS = {"ig": "", "shapley": "/", "ablation": "x", "leave-one-out": "."}  # a bar's shape beside its colour
DIVERGING = [[0, style.VERMILLION], [0.5, "rgba(200,200,200,0.35)"], [1, style.BLUE]]


def figure(reading: Reading, query: str | None = None, seed: int | None = None, control: str = "real") -> go.Figure:
    """What each shot adds to the outcome of one query (None: the one with the largest effects), the methods side by side.

    A row a shot, in the order of the prompt, with its drawing, its label and its similarity to the query.
    """
    go = style.graph_objects()
    data = reading.data
    seed = int(data["seed"][0]) if seed is None else seed
    query = _largest(data, seed, control) if query is None else query
    if query not in data["query"].values:
        raise DataError(f"the reading has no query {query!r}; {nearest(query, data['query'].values.tolist())}")
    rows = data.sel({"query": query, "seed": seed, "control": control})
    k, units = data.sizes["shot"], reading.about["units"]
    names = [m for m in data["by"].values.tolist() if m != "placebo"]
    made, y = go.Figure(), np.arange(k)
    made.add_vline(x=0, line={"color": style.LINE, "width": 1})
    for place, name in enumerate(names):
        colour = LOOKS[name][0]
        value = rows["attribution"].sel(by=name).values
        made.add_trace(
            go.Bar(
                x=value, y=y, orientation="h", name=NAMES[name], marker={"color": colour, "opacity": 0.85, "pattern": {"shape": PATTERNS[name], "fgcolor": CARD, "size": 5, "fillmode": "overlay"}},
                width=0.8 / len(names), offset=-0.4 + 0.8 * place / len(names),
                customdata=[_who(rows, s) for s in range(k)],
                hovertemplate=f"%{{customdata}}<br>{NAMES[name]}: %{{x:.3g}}<extra></extra>",
            )
        )  # fmt: skip
    ticks = [f"label {style.safe(lab, 8)}, cos {c:.2f}" for lab, c in zip(rows["label"].values, rows["cosine"].values)]
    made.update_yaxes(tickvals=y, ticktext=ticks, range=[k - 0.5, -0.5], showgrid=False, zeroline=False)
    made.update_xaxes(title=f"what the shot adds to the answer [{style.safe(units)}]", title_standoff=6, zeroline=False)
    caption = (
        f"One query of {reading.about['n']}: {_item(rows, query)}, seed {seed}, {control} vectors; answer "
        f"{float(rows['outcome']):.3g}. Shots from first to last; at the left their label and the cosine of the encoder's vectors "
        f"to the query's. {_ways(names, reading.about['baseline'])}."
    )
    height = max(26, min(44, 900 // k)) * k
    style.finish(made, "What each shot adds to one answer", caption, height, legend_rows=2)
    _molecules(made, rows, k, height)
    return made


def _ways(names: Sequence[str], baseline: str) -> str:
    """What the methods that are drawn do with a shot."""
    replacing = sum(name != "leave-one-out" for name in names)
    many = ("", "One method replaces", "Two methods replace", "Three methods replace")[replacing]
    out = [f"{many} vectors by the {baseline} slot"] if many else []
    out += ["leaving out takes label and all"] if "leave-one-out" in names else []
    said = "; ".join(out)
    return said[:1].upper() + said[1:]


def _largest(data: xr.Dataset, seed: int, control: str) -> str:
    size = np.abs(data["attribution"].sel({"by": "leave-one-out", "seed": seed, "control": control}).values).sum(-1)
    return str(data["query"].values[int(size.argmax())])


def _item(rows: xr.Dataset, query: str) -> str:
    return str(rows["asked"].item() or query)


def _who(rows: xr.Dataset, shot: int) -> str:
    cell = rows.isel(shot=shot)
    name = "<br>".join(style.safe(part) for part in textwrap.wrap(str(cell["text"].item() or cell["item"].item()), 40))
    return f"<b>{name}</b><br>shot {shot + 1}, label {style.safe(cell['label'].item(), 12)}, cosine {float(cell['cosine']):.2f}"


def _molecules(made: go.Figure, rows: xr.Dataset, k: int, height: float) -> None:
    """The shots' drawings beside their rows."""
    wide = 0.13
    pictures = [drawing(str(t), 120, int(1.1 * height / k)) if str(t) else None for t in rows["text"].values]
    if not any(pictures):
        return
    made.update_xaxes(domain=[wide + 0.01, 1])
    made.update_yaxes(anchor="free", position=0)
    for s, picture in enumerate(pictures):
        if picture is None:
            continue
        made.add_shape(
            type="rect", xref="paper", yref="y", x0=0.005, x1=wide, y0=s - 0.46, y1=s + 0.46,
            fillcolor=CARD, line={"width": 0}, layer="below",
        )  # fmt: skip
        made.add_layout_image(
            source=picture, xref="paper", yref="y", x=wide / 2, y=s, sizex=wide - 0.01, sizey=0.9,
            xanchor="center", yanchor="middle", sizing="contain",
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------ over all queries


def agreement(reading: Reading) -> go.Figure:
    """How alike each two methods order a query's shots: real vectors below the diagonal, noise above it."""
    go = style.graph_objects()
    data = reading.data
    names = data["by"].values.tolist()
    n = len(names)
    real, noise = (data.sel(control=c) for c in ("real", "noise"))
    lower = np.tril(np.ones((n, n), bool), -1)
    z = np.where(lower, real["agreement"].values, noise["agreement"].values)
    np.fill_diagonal(z, np.nan)
    text, hover = np.full((n, n), "", object), np.full((n, n), "", object)
    for i in range(n):
        for j in range(n):
            if i != j:
                at = (real if lower[i, j] else noise).isel(by=i, other=j)
                value, low, high, q = (float(at[f"agreement{t}"]) for t in ("", "_low", "_high", "_q"))
                text[i, j] = f"{value:.2f}<br>[{low:.2f}, {high:.2f}]"
                which = "real" if lower[i, j] else "noise"
                hover[i, j] = (
                    f"<b>{NAMES[names[i]]} and {NAMES[names[j]]}</b>, {which} vectors<br>{text[i, j]}<br>{tested(q)}"
                )
    words = [NAMES[m].replace(" of the ", "<br>of the ").replace("leaving the ", "leaving the<br>") for m in names]
    words = [w if "<br>" in w else w.replace(" ", "<br>", 1) for w in words]
    made = go.Figure(
        go.Heatmap(
            z=z, x=np.arange(n), y=np.arange(n), text=text, texttemplate="%{text}", textfont={"size": 11},
            customdata=hover, hovertemplate="%{customdata}<extra></extra>", zmin=-1, zmax=1, zmid=0,
            colorscale=DIVERGING, xgap=2, ygap=2, colorbar={"title": {"text": "Spearman ρ", "side": "right"}, "thickness": 12},
        )
    )  # fmt: skip
    made.update_xaxes(
        tickvals=np.arange(n), ticktext=words, showgrid=False, zeroline=False, tickangle=0, tickfont_size=11
    )
    made.update_yaxes(
        tickvals=np.arange(n), ticktext=words, showgrid=False, zeroline=False, autorange="reversed", tickfont_size=11
    )
    caption = (
        f"n = {reading.about['n']}. Rank correlation over the shots of each query; below the diagonal real vectors, above it noise "
        f"vectors. In brackets 95 % intervals over {sampled(reading.about)}."
    )
    return style.finish(made, "Do the methods name the same shots?", caption, 420)


def completeness(reading: Reading) -> go.Figure:
    """How far the attributions of each answer are from adding up to what they share out."""
    go = style.graph_objects()
    data = reading.data
    made = go.Figure()
    names = [m for m in data["by"].values.tolist() if m in ("ig", "shapley", "ablation")]
    for place, name in enumerate(names):
        colour, shape = LOOKS[name]
        error = data["error"].sel(by=name)
        spread = np.linspace(-0.3, 0.3, error.size)
        queries = np.broadcast_to([style.safe(q, 40) for q in data["query"].values], error.shape).ravel()
        control = np.repeat(data["control"].values, error.size // data.sizes["control"])
        made.add_trace(
            go.Scatter(
                x=place + spread, y=np.maximum(error.values.ravel(), 1e-16), mode="markers", name=NAMES[name],
                marker={"color": colour, "symbol": [shape if c == "real" else f"{shape}-open" for c in control], "size": 7},
                customdata=np.stack([queries, control], -1),
                hovertemplate="%{customdata[0]}, %{customdata[1]} vectors: %{y:.2g}<extra></extra>",
            )
        )  # fmt: skip
    made.update_yaxes(type="log", title="missed, share of all that is attributed", exponentformat="power", dtick=2)
    made.update_xaxes(
        tickvals=list(range(len(names))), ticktext=[NAMES[m] for m in names], showgrid=False, zeroline=False,
        range=[-0.5, len(names) - 0.5],
    )  # fmt: skip
    steps = f" Paths of {int(data['steps'].min())} to {int(data['steps'].max())} points." if "steps" in data else ""
    caption = (
        f"n = {reading.about['n']}, a point a query; filled: real vectors, open: noise. Integrated gradients add up as well as the path is "
        f"sampled and {reading.about['dtype']} allows, Shapley's values exactly, and ablation need not at all.{steps}"
    )
    return style.finish(made, "Do the attributions add up?", caption, 360)


def nearness(reading: Reading) -> go.Figure:
    """Whether attributions go to the shots that the encoder finds similar, real against noise, beside where the shots stand."""
    go = style.graph_objects()
    data = reading.data
    made = go.Figure()
    names = data["by"].values.tolist()
    groups = (("nearness", "size and similarity"), ("recency", "size and place (late)"))
    ticks, y = [], 0.0
    for what, title in groups:
        ticks.append((y, f"<b>{title}</b>"))
        y += 0.9
        for name in names:
            for control, shift in (("real", -0.14), ("noise", 0.14)):
                at = data.sel({"by": name, "control": control})
                value, low, high, q = (float(at[f"{what}{t}"]) for t in ("", "_low", "_high", "_q"))
                colour, shape = style.CONTROLS[control]
                made.add_trace(
                    go.Scatter(
                        x=[value], y=[y + shift], mode="markers", name=f"{control} vectors", legendgroup=control,
                        showlegend=what == "nearness" and name == names[0],
                        marker={"color": colour, "symbol": shape, "size": 10},
                        error_x={"array": [high - value], "arrayminus": [value - low], "color": colour, "thickness": 1.6, "width": 3},
                        hovertemplate=f"<b>{NAMES[name]}, {control}</b><br>{estimate(value, low, high, form='.2f')}, {tested(q)}<extra></extra>",
                    )
                )  # fmt: skip
            ticks.append((y, NAMES[name]))
            y += 1
        y += 0.4
    made.add_vline(x=0, line={"color": style.LINE, "width": 1})
    made.update_yaxes(
        tickvals=[t for t, _ in ticks],
        ticktext=[n for _, n in ticks],
        range=[y - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
    )
    made.update_xaxes(
        title="Spearman ρ over the shots of a query", range=[-1.02, 1.02], zeroline=False, title_standoff=6
    )
    caption = (
        f"n = {reading.about['n']}. Above: size of a shot's attribution and cosine of the encoder's vectors of shot and query; below: size and "
        f"place in the prompt. Bars are 95 % intervals over {sampled(reading.about)}."
    )
    return style.finish(made, "Do attributions go to similar shots?", caption, int(30 * y), legend_rows=1)


def points(reading: Reading, by: str | None = None) -> go.Figure:
    """Every shot of every query: size of its attribution against its similarity, real beside noise."""
    style.graph_objects()
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    data = reading.data
    by = str(data["by"].values[0]) if by is None else by
    titles = [f"{c} vectors" for c in data["control"].values]
    made = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.05, subplot_titles=titles)
    for column, control in enumerate(data["control"].values.tolist(), 1):
        colour, shape = style.CONTROLS[control]
        size = np.abs(data["attribution"].sel({"by": by, "control": control}).values)
        who = [
            f"{style.safe(t, 40)}, label {style.safe(lab, 8)}"
            for t, lab in zip(data["text"].values.ravel(), data["label"].values.ravel())
        ]
        made.add_trace(
            go.Scatter(
                x=data["cosine"].values.ravel(), y=size.ravel(), mode="markers", showlegend=False, customdata=who,
                marker={"color": colour, "symbol": shape, "size": 5, "opacity": 0.55},
                hovertemplate="%{customdata}<br>cosine %{x:.2f}, size %{y:.3g}<extra></extra>",
            ),
            row=1, col=column,
        )  # fmt: skip
    made.update_xaxes(title="cosine of shot and query", title_standoff=6, zeroline=False)
    made.update_yaxes(title=f"size [{style.safe(reading.about['units'])}]", rangemode="tozero", col=1)
    rho = "; ".join(f"{c} ρ = {_told(data, 'nearness', by=by, control=c)}" for c in data["control"].values.tolist())
    caption = f"n = {reading.about['n']}; {NAMES[by]}. Mean over queries: {rho}, 95 % intervals over {sampled(reading.about)}."
    style.finish(made, "Attribution and similarity, shot by shot", caption, 340)
    made.update_layout(margin_t=made.layout.margin.t + 22, height=made.layout.height + 22)
    return made


def spans(reading: Reading) -> go.Figure:
    """What the answers rest on by role: vectors, text, labels, markers and the rest."""
    go = style.graph_objects()
    data = reading.data
    made = go.Figure()
    for place, way in enumerate(data["way"].values.tolist()):
        for control in data["control"].values.tolist():
            rows = data.sel({"way": way, "control": control})
            value, low, high = (rows[f"share{t}"].values for t in ("", "_low", "_high"))
            seen = value > 0
            colour, shape = style.CONTROLS[control]
            shape = shape if place == 0 else f"{shape}-open"
            made.add_trace(
                go.Scatter(
                    x=value[seen], y=np.flatnonzero(seen) + 0.22 * (place - 0.5) + (0.1 if control == "noise" else 0),
                    mode="markers", name=f"{NAMES[way]}, {control}", marker={"color": colour, "symbol": shape, "size": 9},
                    error_x={"array": (high - value)[seen], "arrayminus": (value - low)[seen], "color": colour, "thickness": 1.4, "width": 3},
                    hovertemplate="%{x:.1%}<extra></extra>",
                )
            )  # fmt: skip
    roles = data["role"].values.tolist()
    made.update_yaxes(
        tickvals=list(range(len(roles))), ticktext=roles, autorange="reversed", showgrid=False, zeroline=False
    )
    made.update_xaxes(title="share of all that is attributed", tickformat=".0%", rangemode="tozero", title_standoff=6)
    caption = (
        f"n = {reading.about['n']}; sizes summed over the spans of a role, each replaced by the {reading.about['baseline']} embedding. Bars are "
        f"95 % intervals over {sampled(reading.about)}."
    )
    return style.finish(made, "Vectors, labels, text: what answers rest on", caption, 300, legend_rows=2)


def _told(data: xr.Dataset, name: str, **at: Any) -> str:
    value, low, high = (float(data[f"{name}{t}"].sel(at)) for t in ("", "_low", "_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def figures(reading: Reading) -> dict[str, go.Figure]:
    """Every figure of the reading, the main one first."""
    made = {
        "attribution": figure(reading), "agreement": agreement(reading), "nearness": nearness(reading),
        "points": points(reading), "completeness": completeness(reading),
    }  # fmt: skip
    return made | ({"spans": spans(reading)} if "share" in reading.names else {})
