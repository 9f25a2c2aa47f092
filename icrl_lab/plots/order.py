"""Figures of order: what a shot's place is worth, how far answers move when shots change places, and metrics by named order."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.plots import style
from icrl_lab.plots.beside import LOOKS, bars, called, dots, finish, share
from icrl_lab.plots.words import of_classes, sampled
from icrl_lab.stats.words import estimate

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from icrl_lab.values import Reading

ORDERS = {
    "random": "random", "ascending": "labels ascending", "descending": "labels descending", "near-first": "nearest first",
    "near-last": "nearest last",
}  # fmt: skip


def figure(reading: Reading) -> go.Figure:
    """How far a shot pulls the answer to its own label by where it stands, and how the answer leans on the label at each place."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    k = data.sizes["position"]
    titles = (
        "Weight of a shot: what leaving it out takes away",
        "Lean of the answer: its slope on the label at a place",
    )
    made = make_subplots(2, 1, vertical_spacing=0.16, subplot_titles=titles)
    controls = data["control"].values.tolist()
    for row, name, dim in ((1, "weight", "place"), (2, "lean", "position")):
        for number, control in enumerate(controls):
            cell = data.sel(control=control)
            at = data[dim].values + 0.14 * (number - (len(controls) - 1) / 2)
            values = (at, cell[name].values, cell[f"{name}_low"].values, cell[f"{name}_high"].values)
            bars(
                made,
                row,
                1,
                values,
                control,
                mode="lines+markers",
                legend=row == 1,
                p=cell[f"{name}_q"].values,
                words=called(control, about),
            )
        made.update_yaxes(range=_range([data[name], data[f"{name}_low"], data[f"{name}_high"]]), row=row, col=1)
    if not of_classes(about):  # a class has no distance to a label, so no mean of labels pulls with 1/k
        made.add_hline(
            y=1 / k, line={"color": style.ORANGE, "dash": "dash", "width": 1.5}, row=1, col=1,
            annotation={"text": f"mean of the labels: 1/{k}", "font": {"size": 11}, "xanchor": "left", "x": 0.01, "yanchor": "bottom"},
        )  # fmt: skip
    made.update_xaxes(range=[0.4, k + 0.6], zeroline=False)
    made.update_xaxes(
        title=f"position of the shot in the prompt (1 first, {k} next to the query)", title_standoff=6, row=2, col=1
    )
    made.update_yaxes(title=data["weight"].attrs["units"], row=1, col=1)
    made.update_yaxes(title="slope", row=2, col=1)
    for title in made.layout.annotations[:2]:
        title.update(x=0, xanchor="left", font_size=13)
    words = (
        f"n = {about['n']}; {about.get('permutations', '')}. Above: the same shots stand once on each place (Latin squares). "
        f"Below: slopes over permutations; they sum to about zero. Bars are 95 % intervals over new {sampled(about)}."
    )
    return finish(made, "Does it matter where a shot stands?", words, 600, len(controls), panels=True)


def _range(arrays: list[Any]) -> list[float]:
    """All estimates, and intervals as far as they do not crush them."""
    value, low, high = (np.asarray(a.values) for a in arrays)
    room = max(float(value.max() - value.min()), 0.05)
    bottom, top = max(float(low.min()), float(value.min()) - room), min(float(high.max()), float(value.max()) + room)
    return [min(bottom, 0.0) - 0.06 * room, max(top, 0.0) + 0.06 * room]


def spread(reading: Reading, seed: int | None = None) -> go.Figure:
    """Each query's answers under all permutations of the same shots, for one seed; `seed` None is the reading's first."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    controls = data["control"].values.tolist()
    one = data["outcome"].sel(seed=data["seed"].values[0] if seed is None else seed)
    target = data["target"].values if "target" in data.coords else None
    turn = np.argsort(
        one.sel(control=controls[0]).mean("permutation").values if target is None else target, kind="stable"
    )
    titles = [f"{called(c, reading.about)}: spread over orders {_told(data, c)}" for c in controls]
    made = make_subplots(
        len(controls), 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.24 / (2 * len(controls))
    )
    hover = [style.safe(v, 60) for v in data["text" if "text" in data.coords else "query"].values[turn]]
    for row, control in enumerate(controls, 1):
        _ranges(made, row, one.sel(control=control).values[:, turn], control, hover)
        if target is not None:
            made.add_scatter(
                x=np.arange(len(turn)), y=target[turn], mode="markers", name="true value", showlegend=row == 1, hoverinfo="skip",
                marker={"symbol": "line-ew", "size": 9, "line": {"color": style.ORANGE, "width": 2}}, row=row, col=1,
            )  # fmt: skip
    made.update_xaxes(showticklabels=False, showgrid=False, zeroline=False, range=[-0.8, len(turn) - 0.2])
    what = "the true value" if target is not None else "the answer"
    made.update_xaxes(title=f"queries, by {what}", row=len(controls), col=1)
    held = [one.values.ravel(), *([target] if target is not None else [])]
    low, high = min(map(np.min, held)), max(map(np.max, held))
    pad = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    units = "<br>".join(style.safe(line) for line in textwrap.wrap(str(about.get("units", "")), 24))
    made.update_yaxes(title=units, zeroline=False, range=[low - pad, high + pad])
    for title in made.layout.annotations:
        title.update(x=0, xanchor="left", font_size=13)
    words = (
        f"{about.get('permutations', '')}; one seed of {about['n']}. Thin lines: from the least to the largest answer; thick: "
        f"the middle half; marks: the mean. Spreads are standard deviations with 95 % intervals over {sampled(about)}."
    )
    return finish(
        made, "How far an answer moves when shots change places", words, 200 * len(controls) + 20, int(target is not None), panels=True
    )  # fmt: skip


def replay(reading: Reading, query: str, seed: int, permutation: int) -> go.Figure:
    """One query's answers under every stored permutation, one of them marked, beside noise and the simple predictors."""
    go = style.graph_objects()
    data = reading.data
    one = data["outcome"].sel(query=query, seed=seed)
    made, names = go.Figure(), []
    for place, control in enumerate(data["control"].values.tolist()):
        colour, shape = LOOKS.get(control, style.look(control))
        values = one.sel(control=control).values
        names.append(called(control, reading.about))
        for x, size, faint in ((values, 6, 0.45), (values[permutation : permutation + 1], 15, 1.0)):
            made.add_scatter(
                x=x.tolist(), y=[-place] * len(x), mode="markers", showlegend=False, opacity=faint,
                marker={"color": colour, "symbol": shape, "size": size, "line": {"width": 1.5, "color": colour}},
                hovertemplate=f"<b>{names[-1]}</b><br>%{{x:.3g}}<extra></extra>",
            )  # fmt: skip
    if "simple" in data and data["simple"].dtype.kind == "f":
        for name in data["predictor"].values.tolist():
            colour, shape = LOOKS.get(name, style.look(name))
            made.add_scatter(
                x=[float(data["simple"].sel(predictor=name, query=query, seed=seed))], y=[-len(names)], mode="markers", showlegend=False,
                marker={"color": colour, "symbol": shape, "size": 11, "line": {"width": 1.6, "color": colour}},
                hovertemplate=f"<b>{called(name, reading.about)}</b><br>%{{x:.3g}}<extra></extra>",
            )  # fmt: skip
            names.append(called(name, reading.about))
    if "target" in data.coords:
        truth = float(data["target"].sel(query=query))
        made.add_vline(x=truth, line={"color": style.ORANGE, "dash": "dash", "width": 1.6})
        made.add_annotation(
            x=truth, y=0.75, text="true value", showarrow=False, font={"size": 11, "color": style.ORANGE}
        )
    made.update_yaxes(
        tickvals=[-i for i in range(len(names))], ticktext=names, range=[-len(names) + 0.4, 1.1], zeroline=False, showgrid=False,
    )  # fmt: skip
    made.update_xaxes(title=style.safe(reading.about.get("units", ""), 40), title_standoff=6, zeroline=False)
    words = f"{reading.about.get('permutations', '')}; seed {seed}. Small: every order that was asked; large: the one that is shown. To open shapes order is nothing."
    return style.finish(made, "What the model answered under each order", words, 34 * len(names) + 40)


def _told(data: Any, control: str) -> str:
    value, low, high = (float(data[f"spread{tail}"].sel(control=control)) for tail in ("", "_low", "_high"))
    return estimate(value, low, high)


def _ranges(made: go.Figure, row: int, answers: Any, control: str, hover: list[str]) -> None:
    """answers (permutations, queries) as ranges, middle halves and means."""
    colour, shape = LOOKS.get(control, style.look(control))
    x = np.arange(answers.shape[1])
    for low, high, width in ((0, 1, 1.2), (0.25, 0.75, 5)):
        ends = np.quantile(answers, [low, high], axis=0)
        gaps = np.full(len(x), np.nan)
        made.add_scatter(
            x=np.stack([x, x, gaps], 1).ravel(), y=np.stack([ends[0], ends[1], gaps], 1).ravel(), mode="lines", hoverinfo="skip",
            line={"color": colour, "width": width}, opacity=0.75, showlegend=False, row=row, col=1,
        )  # fmt: skip
    made.add_scatter(
        x=x, y=answers.mean(0), mode="markers", text=hover, showlegend=False, customdata=np.stack([answers.min(0), answers.max(0)], -1),
        marker={"color": colour, "symbol": shape, "size": 6},
        hovertemplate="<b>%{text}</b><br>mean over orders %{y:.3g}, from %{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>",
        row=row, col=1,
    )  # fmt: skip


def orders(reading: Reading, metric: str | None = None) -> go.Figure:
    """A metric under each named order of the same shots, with noise, text and the simple predictors beside it."""
    caption = f"The same {reading.data.sizes['position']} shots in five orders; to the open shapes order is nothing."
    return dots(reading, "order", ORDERS, metric, "What a named order is worth, and to whom", caption)


def strength(reading: Reading) -> go.Figure:
    """Size of a shot's influence by where it stands."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    made = make_subplots(1, 1)
    controls = data["control"].values.tolist()
    for control in controls:
        cell = data.sel(control=control)
        values = (
            data["place"].values,
            cell["strength"].values,
            cell["strength_low"].values,
            cell["strength_high"].values,
        )
        bars(made, 1, 1, values, control, mode="lines+markers", words=called(control, about))
    made.update_xaxes(
        title="position of the shot in the prompt", title_standoff=6, zeroline=False, tickvals=data["place"].values
    )
    made.update_yaxes(title=f"mean size of influence [{style.safe(about.get('units', ''), 30)}]", rangemode="tozero")
    words = (
        f"n = {about['n']}; outcome with a shot less without, without its sign; the same shots stand once on each place. Bars are 95 % "
        f"intervals over new {sampled(about)}."
    )
    return finish(made, "How much a shot does, by where it stands", words, 300, len(controls))


def figures(reading: Reading) -> dict[str, go.Figure]:
    """Every figure of the reading, the main one first."""
    found = {"order": figure(reading), "spread": spread(reading)}
    found |= {f"orders-{m}": orders(reading, m) for m in reading.data["metric"].values.tolist()}
    found["strength"] = strength(reading)
    return found | ({"share": share(reading)} if "share" in reading.data else {})
