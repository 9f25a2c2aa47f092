"""Figures of similarity: every selection for the arm, its controls and simple predictors on the same shots; curves; influence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.plots import style
from icrl_lab.plots.beside import (
    DASHES,
    LOOKS,
    METRICS,
    bars,
    called,
    dots,
    finish,
    least_room,
    metric_of,
    share,
    unit_of,
)
from icrl_lab.plots.molecules import drawing
from icrl_lab.plots.words import marks, sampled

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.values import Reading

CARD = "rgba(236,238,242,0.94)"  # behind a molecule, whose bonds are dark on any page


def figure(reading: Reading, metric: str | None = None) -> go.Figure:
    """Each way of choosing shots: what the arm reaches, what the others do on the same shots, and what is left for the arm."""
    names = {name: _words(name) for name in reading.data["selection"].values.tolist()}
    caption = f"{reading.about.get('shots', '')} shots chosen in {len(names)} ways; open shapes are simple predictors on the very same shots."
    return dots(reading, "selection", names, metric, "What near shots are worth, and to whom", caption)


def _words(selection: str) -> str:
    rule, dash, measure = selection.rpartition("-")
    how, by = (rule, "Tanimoto") if dash and measure == "tanimoto" else (selection, "cosine")
    return f"{how},<br>{by}" if how in ("nearest", "farthest", "diverse") else style.safe(how)


def curves(reading: Reading, metric: str | None = None) -> go.Figure:
    """A metric over the number of shots, with bands, for the arm and everything that stands beside it."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    if "curve_score" not in data:
        raise DataError("this reading has no curves over the number of shots; ask for counts")
    metric = metric_of(data, metric)
    chosen, counts, by = (data[c].values.tolist() for c in ("curve", "count", "by"))
    made = make_subplots(
        1, len(chosen), shared_yaxes=True, horizontal_spacing=0.04, subplot_titles=[f"{c} shots" for c in chosen]
    )
    for col, name in enumerate(chosen, 1):
        for who in by[::-1]:
            cell = data.sel(metric=metric, curve=name, by=who)
            values = tuple(cell[f"curve_score{tail}"].values for tail in ("", "_low", "_high"))
            _band(made, col, values, (who, called(who, about)), legend=col == 1)
    score, low, high = (data[f"curve_score{tail}"].sel(metric=metric).values for tail in ("", "_low", "_high"))
    room = max(float(score.max() - score.min()), least_room(metric, score, 0.2))
    reach = [max(low.min(), score.min() - 0.5 * room), min(high.max(), score.max() + 0.5 * room)]
    made.update_yaxes(range=[reach[0] - 0.04 * room, reach[1] + 0.04 * room])
    made.update_yaxes(title=unit_of(reading, metric), row=1, col=1)
    made.update_xaxes(
        tickvals=np.arange(len(counts)),
        ticktext=[str(c) for c in counts],
        title="number of shots",
        zeroline=False,
        title_standoff=6,
    )
    made.update_layout(legend_traceorder="reversed")
    words = (
        f"n = {about['n']}; random shots are the same for all queries, and what is the same for all orders nothing (r = 0). Bands are 95 % "
        f"intervals over new {sampled(about)}."
    )
    name = METRICS.get(metric, metric)
    return finish(made, f"{name[:1].upper()}{name[1:]} and the number of shots", words, 380, len(by), panels=True)


def _band(made: go.Figure, col: int, values: Any, named: tuple[str, str], legend: bool) -> None:
    (value, low, high), (who, words) = values, named
    colour, shape = LOOKS.get(who, style.look(who))
    x = np.arange(len(value))
    made.add_scatter(
        x=np.concatenate([x, x[::-1]]), y=np.concatenate([low, high[::-1]]), fill="toself", mode="lines", line={"width": 0},
        fillcolor=_pale(colour), hoverinfo="skip", showlegend=False, legendgroup=who, row=1, col=col,
    )  # fmt: skip
    made.add_scatter(
        x=x, y=value, mode="lines+markers", name=words, legendgroup=who, showlegend=legend,
        line={"color": colour, "width": 1.8, "dash": DASHES.get(who, "solid")}, marker={"color": colour, "symbol": shape, "size": 8},
        customdata=marks(value, low, high), hovertemplate=f"<b>{words}</b><br>%{{customdata}}<extra></extra>",
        row=1, col=col,
    )  # fmt: skip


def _pale(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.09)"


# ------------------------------------------------------------------------------------------------ influence


def influence(reading: Reading, measure: str | None = None) -> go.Figure:
    """What each shot does to an answer against how similar it is to the query, a panel for each control."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    if "influence" not in data:
        raise DataError("this reading has no influences; they take prompts of at least 3 shots")
    measure = str(data["measure"].values[0]) if measure is None else measure
    controls = data["control"].values.tolist()
    titles = [f"{called(c, reading.about)}<br>ρ {_rho(data, measure, c)}" for c in controls]
    made = make_subplots(1, len(controls), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    near = data["near"].sel(measure=measure).values.ravel()
    cuts = np.quantile(near, np.linspace(0, 1, 9))
    for col, control in enumerate(controls, 1):
        size = np.abs(data["influence"].sel(control=control).values.ravel())
        colour, shape = LOOKS.get(control, style.look(control))
        made.add_scatter(
            x=near, y=size, mode="markers", marker={"color": colour, "symbol": shape, "size": 3, "opacity": 0.35}, hoverinfo="skip", row=1, col=col,
        )  # fmt: skip
        bins = np.clip(np.searchsorted(cuts, near, side="right") - 1, 0, len(cuts) - 2)
        held = [b for b in range(len(cuts) - 1) if (bins == b).any()]
        middle, mean = (np.array([v[bins == b].mean() for b in held]) for v in (near, size))
        made.add_scatter(
            x=middle, y=mean, mode="lines+markers", line={"color": style.GREY, "width": 2.5}, marker={"color": style.GREY, "size": 7},
            hovertemplate=f"{called(control, reading.about)}<br>similarity %{{x:.2f}}: mean size %{{y:.3g}}<extra></extra>", row=1, col=col,
        )  # fmt: skip
    top = float(np.quantile(np.abs(data["influence"].values), 0.99))
    made.update_yaxes(range=[-0.02 * top, 1.05 * top or 1.0], zeroline=False)
    made.update_yaxes(title=f"size of influence [{style.safe(about.get('units', ''), 30)}]", row=1, col=1)
    made.update_xaxes(title=f"{measure} to the query", zeroline=False, title_standoff=6)
    made.update_annotations(font_size=12)
    words = (
        f"n = {about['n']}; influence {about.get('influence', '')}; grey: means of eight groups of equal size; ρ: mean over "
        f"queries of Spearman's correlation over a query's shots, 95 % interval over new {sampled(about)}. The largest 1 % lie outside."
    )
    return finish(made, "Do similar shots do more?", words, 380, 1, panels=True).update_layout(showlegend=False)


def _rho(data: Any, measure: str, control: str) -> str:
    value, low, high = (float(data[f"follows{t}"].sel(measure=measure, control=control)) for t in ("", "_low", "_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def follows(reading: Reading) -> go.Figure:
    """Rank correlations of influence and pull with similarity, by measure and control, and what the arm has over its controls."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    measures, controls = data["measure"].values.tolist(), data["control"].values.tolist()
    made = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.03, column_widths=[0.55, 0.45])
    rows = [
        (name, words, m)
        for name, words in (("follows", "size of influence"), ("pulls", "pull to its label"))
        for m in measures
    ]
    tops = -(len(controls) + 0.8) * np.arange(len(rows))
    for row, (name, _, measure) in enumerate(rows):
        for place, control in enumerate(controls):
            cell = data.sel(measure=measure, control=control)
            at = [tops[row] - place]
            values = ([float(cell[name])], at, [float(cell[f"{name}_low"])], [float(cell[f"{name}_high"])])
            bars(made, 1, 1, values, control, flat=True, legend=row == 0, words=called(control, about))
            if place and f"{name}_gain" in data:
                cell = data.sel(measure=measure, other=control)
                values = (
                    [float(cell[f"{name}_gain"])],
                    at,
                    [float(cell[f"{name}_gain_low"])],
                    [float(cell[f"{name}_gain_high"])],
                )
                bars(
                    made,
                    1,
                    2,
                    values,
                    control,
                    flat=True,
                    legend=False,
                    words=f"real less {called(control, reading.about)}",
                )
    made.add_vline(x=0, line={"color": style.LINE, "width": 1.4})
    ticks = [f"{words},<br>{measure}" for _, words, measure in rows]
    made.update_yaxes(range=[tops[-1] - len(controls) + 0.3, 0.7], showgrid=False, zeroline=False)
    made.update_yaxes(tickvals=tops - (len(controls) - 1) / 2, ticktext=ticks, row=1, col=1)
    made.update_xaxes(title="Spearman's ρ with similarity", title_standoff=6, row=1, col=1)
    made.update_xaxes(title="real less other", title_standoff=6, row=1, col=2)
    words = (
        f"n = {about['n']}; influence {about.get('influence', '')}; bars are 95 % intervals over new {sampled(about)}."
    )
    height = int(22 * (len(controls) + 0.8) * len(rows)) + 30
    return finish(made, "Does what a shot does follow its similarity to the query?", words, height, len(controls))


# ------------------------------------------------------------------------------------------------ neighbours


def neighbours(reading: Reading, query: str | None = None) -> go.Figure:
    """A query and its nearest items of the pool by each measure, drawn where they are molecules; None: the query in the middle."""
    go = style.graph_objects()
    data, about = reading.data, reading.about
    ids = data["query"].values.tolist()
    query = ids[len(ids) // 2] if query is None else query
    if query not in ids:
        raise DataError(f"the reading has no query {query!r}; it has {len(ids)}, the first {ids[0]!r}")
    one = data.sel(query=query)
    measures, ranks = one["measure"].values.tolist(), one.sizes["rank"]
    made = go.Figure(
        go.Scatter(x=[0, ranks + 1], y=[0, len(measures)], mode="markers", marker={"opacity": 0}, hoverinfo="skip")
    )
    text = str(one["text"].item() if "text" in one.coords else query)
    units = f" {style.safe(about.get('units', ''), 16)}" if data["neighbour_label"].dtype.kind == "f" else ""
    _card(made, text, 0.5, len(measures) / 2, f"<b>the query</b><br>{_number(one['target'].item())}{units}", about)
    for row, measure in enumerate(measures):
        y = len(measures) - row - 0.5
        for rank in range(ranks):
            cell = one.sel(measure=measure).isel(rank=rank)
            words = f"{measure} {float(cell['neighbour_near']):.2f}<br>{_number(cell['neighbour_label'].item())}{units}"
            _card(made, str(cell["neighbour"].item()), 1.6 + rank, y, words, about)
    made.update_xaxes(range=[-0.05, ranks + 1.15], visible=False)
    made.update_yaxes(range=[-0.02, len(measures) + 0.02], visible=False)
    words = f"One query of {len(ids)} and the items of the pool that each measure calls nearest, with their similarity and their label."
    return style.finish(made, "What is near", words, 170 * len(measures))


def replay(reading: Reading, query: str, seed: int, selection: str) -> go.Figure:
    """What was answered to one query under one selection of shots and under random ones, beside noise and the simple predictors."""
    from icrl_lab.plots.live import Row, strip

    data = reading.data.sel(query=query, seed=seed)
    names = data["selection"].values.tolist()
    base = "random" if "random" in names and selection != "random" else None
    rows = []
    for control in data["control"].values.tolist():
        for how, words in ((base, "random shots, as it was"), (selection, selection)):
            if how is not None:
                value = float(data["outcome"].sel(control=control, selection=how))
                rows.append(Row(f"{called(control, reading.about)}, {words}", control, value))
    number = "simple" in data and data["simple"].dtype.kind == "f"
    names = data["predictor"].values.tolist() if number else []
    simple = data["simple"].sel(selection=selection).values.tolist() if number else []
    rows += [Row(called(name, reading.about), name, float(value)) for name, value in zip(names, simple)]
    truth = float(data["target"]) if data["target"].dtype.kind == "f" else None
    also = "; open: the same under random shots" if base else ""
    words = f"Seed {seed}{also}. The simple predictors see the shots of {selection!r}."
    return strip(rows, truth, str(reading.about.get("units", "")), "What the model answered under these shots", words)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else style.safe(value, 12)


def _card(made: go.Figure, text: str, x: float, y: float, words: str, about: Any) -> None:
    """A drawing, or the text of what is no molecule, above its words."""
    picture = drawing(text, 130, 110) if about.get("modality") == "molecule" else None
    made.add_shape(
        type="rect", x0=x - 0.46, x1=x + 0.46, y0=y - 0.2, y1=y + 0.46, fillcolor=CARD, line={"width": 0}, layer="below"
    )
    if picture is not None:
        made.add_layout_image(
            source=picture, xref="x", yref="y", x=x, y=y + 0.13, sizex=0.88, sizey=0.62, xanchor="center", yanchor="middle", sizing="contain",
        )  # fmt: skip
    else:
        made.add_annotation(
            x=x, y=y + 0.13, text=style.safe(text, 14), showarrow=False, font={"size": 11, "color": "#333333"}
        )
    made.add_annotation(x=x, y=y - 0.23, text=words, showarrow=False, font={"size": 11}, yanchor="top")


def figures(reading: Reading) -> dict[str, go.Figure]:
    """Every figure of the reading, the main one first."""
    metrics = reading.data["metric"].values.tolist()
    found = {"similarity": figure(reading)} | {f"selections-{m}": figure(reading, m) for m in metrics[1:]}
    if "curve_score" in reading.data:
        found |= {f"curves-{m}": curves(reading, m) for m in metrics}
    if "influence" in reading.data:
        found |= {"influence": influence(reading), "follows": follows(reading)}
    if "share" in reading.data:
        found["share"] = share(reading)
    return found | {"neighbours": neighbours(reading)}
