"""What the figures of order and similarity share: an arm, its controls and the simple predictors, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, nearest
from icrl_lab.plots import style
from icrl_lab.plots.words import marks, sampled

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

LOOKS = {  # predictors are open shapes: they have no vectors to read
    **style.CONTROLS,
    "text": (style.GREEN, "square"),
    "mean": (style.ORANGE, "star-open"),
    "majority": (style.ORANGE, "star-open"),
    "knn": (style.GREY, "triangle-up-open"),
    "ridge": (style.GREY, "diamond-open"),
    "logistic": (style.GREY, "diamond-open"),
}
DASHES = {"mean": "dash", "majority": "dash", "knn": "dot", "ridge": "dashdot", "logistic": "dashdot"}
NAMES = {
    "real": "real vectors", "noise": "noise vectors", "text": "the item as text", "mean": "mean of the shots' labels",
    "majority": "most frequent class of the shots", "knn": "neighbours on the same shots", "ridge": "ridge on the same shots",
    "logistic": "logistic on the same shots",
}  # fmt: skip
METRICS = {"pearson": "Pearson r", "rmse": "RMSE", "accuracy": "accuracy"}
SOURCES = {  # colour and pattern of each source of variance
    "query": (style.BLUE, ""), "selection": (style.ORANGE, "/"), "query x selection": (style.GREEN, "x"),
    "seed": (style.VERMILLION, "\\"), "query x seed": (style.PURPLE, "."), "order": (style.SKY, "-"), "query x order": (style.GREY, "+"),
}  # fmt: skip


def whose(control: str, about: Mapping[str, Any]) -> str:
    """What a control's slots hold: the control, or in an arm of text the text."""
    return "text" if control == "real" and about.get("arm") == "text" else control


def called(who: str, about: Mapping[str, Any]) -> str:
    """A control or a predictor in words."""
    who = whose(who, about)
    return NAMES.get(who, f"{who} vectors" if who in style.CONTROLS else who)


def finish(figure: go.Figure, title: str, caption: str, height: int, entries: int, panels: bool = False) -> go.Figure:
    """As style.finish, with room for a legend of so many entries; `panels` have titles of their own, which the legend stands above."""
    rows = -(-entries // 2)
    figure = style.finish(figure, title, caption, height + 22 * panels, rows + panels)
    figure.update_layout(legend_tracegroupgap=0, showlegend=rows > 0)
    if panels and rows:
        figure.update_layout(legend_y=1 + 20 / (height + 22))
    return figure


def metric_of(data: xr.Dataset, metric: str | None) -> str:
    """The metric asked for, or the reading's first."""
    known = data["metric"].values.tolist()
    if metric is not None and metric not in known:
        raise DataError(f"the reading has no metric {metric!r}; {nearest(metric, known)}")
    return metric or str(known[0])


def unit_of(reading: Reading, metric: str) -> str:
    """A metric's name with its units."""
    units = f" [{style.safe(reading.about.get('units', ''))}]" if metric == "rmse" else ""
    return METRICS.get(metric, metric) + units


def bars(figure: go.Figure, row: int, col: int, values: Any, name: str, **options: Any) -> None:
    """One kind of answer as marks with intervals. values: x, y, low, high; `flat` puts the values on the x axis."""
    x, y, low, high = (np.asarray(v, float) for v in values)
    colour, shape = LOOKS.get(name, style.look(name))
    flat = options.get("flat", False)
    value: Any = x if flat else y
    reach: dict[str, Any] = {
        "array": high - value, "arrayminus": value - low, "color": colour, "thickness": 1.3, "width": 3,
    }  # fmt: skip
    words = options.get("words", NAMES.get(name, name))
    figure.add_trace(
        style.graph_objects().Scatter(
            x=x, y=y, name=style.safe(words, 40), legendgroup=name, mode=options.get("mode", "markers"),
            showlegend=options.get("legend", True), **{"error_x" if flat else "error_y": reach},
            line={"color": colour, "width": 1.5, "dash": DASHES.get(name, "solid")},
            marker={"color": colour, "symbol": shape, "size": 8, "line": {"width": 1.4, "color": colour}},
            customdata=marks(value, low, high, options.get("p")),
            hovertemplate=f"<b>{style.safe(words)}</b><br>%{{customdata}}<extra></extra>",
        ),
        row=row, col=col,
    )  # fmt: skip


def dots(reading: Reading, dim: str, names: dict[str, str], metric: str | None, title: str, caption: str) -> go.Figure:
    """Conditions along `dim` as blocks of rows: on the left each answer's score, on the right what the arm has over the others."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data = reading.data
    metric = metric_of(data, metric)
    by, versus = data["by"].values.tolist(), data["versus"].values.tolist()
    figure = make_subplots(1, 2, shared_yaxes=True, column_widths=[0.58, 0.42], horizontal_spacing=0.03)
    conditions = data[dim].values.tolist()
    block = len(by) + 1.2
    tops = -block * np.arange(len(conditions))
    for place, name in enumerate(by):
        cell = data.sel(metric=metric, by=name)
        bars(
            figure,
            1,
            1,
            (cell["score"].values, tops - place, cell["score_low"].values, cell["score_high"].values),
            name,
            flat=True,
            words=called(name, reading.about),
        )
        if name in versus:
            cell = data.sel(metric=metric, versus=name)
            values = (cell["gain"].values, tops - place, cell["gain_low"].values, cell["gain_high"].values)
            bars(
                figure,
                1,
                2,
                values,
                name,
                flat=True,
                legend=False,
                p=cell["gain_q"].values,
                words=f"{whose('real', reading.about)} less {called(name, reading.about)}",
            )
    for top in tops[1:]:
        figure.add_hline(y=top + 1.1, line={"color": style.GRID, "width": 1})
    figure.add_vline(x=0, line={"color": style.LINE, "width": 1.4}, row=1, col=2)
    figure.update_yaxes(range=[tops[-1] - len(by) + 0.2, 0.8], showgrid=False, zeroline=False)
    figure.update_yaxes(
        tickvals=tops - (len(by) - 1) / 2, ticktext=[names.get(c, style.safe(c, 24)) for c in conditions], row=1, col=1
    )
    reach = _reach(data.sel(metric=metric), "score", metric)
    figure.update_xaxes(title=unit_of(reading, metric), range=reach, row=1, col=1, title_standoff=6)
    figure.update_xaxes(
        title="arm less other", range=_reach(data.sel(metric=metric), "gain", metric), row=1, col=2, title_standoff=6
    )
    words = f"{caption} Left: {METRICS.get(metric, metric)}; right: what the arm has over each, paired on the same seeds and queries. "
    words += f"n = {reading.about['n']}; bars are 95 % intervals over new {sampled(reading.about)}."
    return finish(figure, title, words, int(13 * block * len(conditions)) + 20, len(by))


def least_room(metric: str, values: Any, room: float) -> float:
    """The least width of an axis: `room` of a correlation or an accuracy; of a metric with units that share of its largest value."""
    return room if metric in ("pearson", "accuracy") else room * float(np.nanmax(np.abs(values), initial=0.0)) or 1.0


def _reach(data: xr.Dataset, name: str, metric: str) -> list[float]:
    """All estimates, and intervals, where there are any, as far as they do not crush them."""
    value, low, high = (data[f"{name}{tail}"].values for tail in ("", "_low", "_high"))
    if not np.isfinite(value).any():
        return [0.0, least_room(metric, value, 0.3)]
    least, most = float(np.nanmin(value)), float(np.nanmax(value))
    room = max(most - least, least_room(metric, value, 0.3))
    ends = (
        max(float(np.nanmin(low, initial=least)), least - 0.8 * room),
        min(float(np.nanmax(high, initial=most)), most + 0.8 * room),
    )
    return [min(ends[0], 0.0) - 0.05 * room, max(ends[1], 0.0) + 0.05 * room]


def share(reading: Reading) -> go.Figure:
    """Where the variance of answers comes from: stacked bars for each control, and each share with its interval."""
    go = style.graph_objects()
    from plotly.subplots import make_subplots

    data = reading.data
    if "share" not in data:
        raise DataError("this reading has no split of variance; it takes at least 2 seeds and 2 orders")
    controls, sources = data["control"].values.tolist(), data["source"].values.tolist()
    height = [28.0 * len(controls) + 20, 20.0 * (len(controls) + 0.7) * len(sources) + 20]
    figure = make_subplots(2, 1, row_heights=height, vertical_spacing=60 / sum(height), shared_xaxes=False)
    for source in sources:
        colour, pattern = SOURCES[source]
        held = data["share"].sel(source=source).values
        figure.add_trace(
            go.Bar(
                x=held, y=[called(c, reading.about) for c in controls], orientation="h", name=source.replace("x", "×"), showlegend=True,
                marker={"color": colour, "pattern": {"shape": pattern, "size": 5, "solidity": 0.25, "fillmode": "overlay", "fgcolor": "rgba(255,255,255,0.75)"}},
                text=[f"{v:.0%}" if v >= 0.06 else "" for v in held], textposition="inside", insidetextanchor="middle",
                hovertemplate="%{y}: %{x:.1%}<extra>" + source + "</extra>",
            ),
            row=1, col=1,
        )  # fmt: skip
    block = len(controls) + 0.7
    tops = -block * np.arange(len(sources))
    for place, control in enumerate(controls):
        cell = data.sel(control=control)
        marks = (cell["share"].values, tops - place, cell["share_low"].values, cell["share_high"].values)
        bars(figure, 2, 1, marks, control, flat=True, words=called(control, reading.about))
    figure.update_layout(barmode="stack", bargap=0.25)
    figure.update_yaxes(autorange="reversed", row=1, col=1, showgrid=False)
    ticks = [s.replace("x", "×") if len(s.split()) > 1 else s for s in sources]
    figure.update_yaxes(
        tickvals=tops - (len(controls) - 1) / 2, ticktext=ticks, row=2, col=1, showgrid=False, zeroline=False
    )
    figure.update_xaxes(range=[-0.02, 1.02], tickformat=".0%", row=1, col=1)
    figure.update_xaxes(
        range=[-0.02, 1.02], tickformat=".0%", title="share of the variance of answers", row=2, col=1, title_standoff=6
    )
    how = reading.about.get("variance", {})
    words = (
        f"n = {reading.about['n']}; query × order is what an order does to one query alone. Above: {how.get('real', '')}; below with "
        f"{reading.about.get('variance interval', '')}."
    )
    return finish(
        figure, "Where the variance of answers comes from", words, int(sum(height)) + 60, len(sources) + len(controls)
    )
