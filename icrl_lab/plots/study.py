"""Figures of a study: what each arm reached under each control, and what it predicted.

Every function takes the tables of a run (`summary`, `baselines`, `predictions`, the columns of the run folder) and
returns a plotly figure of 700 pixels. Rows are labelled where they stand instead of in a legend; only where lines run
across the figure is there one, below it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, nearest
from icrl_lab.plots import style
from icrl_lab.plots.words import many
from icrl_lab.stats import more_labels
from icrl_lab.stats.words import estimate

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

METRICS = {
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R² against the mean",
    "accuracy": "accuracy",
}
BOUNDED = {"pearson": (-0.1, 0.6), "spearman": (-0.1, 0.6), "accuracy": (0.0, 1.0)}  # shown at least
CONDITIONS = ("task", "encoder", "llm", "with_text", "labels", "shots", "selection", "order")


def conditions(summary: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(words, rows) of each condition of a study: each combination of everything that is neither arm nor control.

    An arm that is text and nothing else stands with text only; it is the measure of the arms without text too, and is
    shown beside them.
    """
    varying = _varying(summary)
    if not varying:
        yield "", summary
        return
    for values, rows in summary.groupby(varying, sort=False, dropna=False):
        if "with_text" in varying and not rows["with_text"].any():
            rest = [c for c in varying if c != "with_text"]
            same = (summary[rest] == rows[rest].iloc[0]).all(axis=1)
            rows = summary[(same & _text_only(summary)) | summary.index.isin(rows.index)]
        yield ", ".join(_words(c, v) for c, v in zip(varying, values)), rows


def _text_only(summary: pd.DataFrame) -> pd.Series:
    """Which rows are of arms that stand with text only."""
    without = summary.loc[~summary["with_text"].astype(bool), "arm"]
    return ~summary["arm"].isin(without)


def _varying(summary: pd.DataFrame) -> list[str]:
    """The conditions that a study varies. That a text arm has text is not a condition of its own."""
    found = [c for c in CONDITIONS if c in summary and summary[c].nunique(dropna=False) > 1]
    if "with_text" in found and summary.loc[~_text_only(summary), "with_text"].nunique() == 1:
        found.remove("with_text")
    return found


def _words(column: str, value: Any) -> str:
    if column == "with_text":
        return "with text" if value else "without text"
    return {"labels": f"{value} labels", "shots": f"{value} shots", "order": f"order {value}"}.get(column, str(value))


def _main(metric: str | None, table: pd.DataFrame) -> str:
    metric = metric or next((m for m in ("pearson", "accuracy") if m in table), "pearson")
    if metric not in table:
        known = [m for m in METRICS if m in table]
        raise DataError(f"the summary has no metric {metric!r}; {nearest(metric, known)}")
    return metric


def measured(metric: str, units: str) -> str:
    """What a metric is called, with the units of those that have the task's."""
    return METRICS.get(metric, metric) + (f" [{units}]" if units and metric in ("rmse", "mae") else "")


def _bars(rows: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimates, and how far their intervals reach below and above (NaN, which draws no bar, where there is none)."""
    value = rows[metric].to_numpy(float)
    none = np.full(len(value), np.nan)
    low, high = (rows[c].to_numpy(float) if c in rows else none for c in (f"{metric}_low", f"{metric}_high"))
    known = np.isfinite(low) & np.isfinite(high)
    return value, np.where(known, value - low, np.nan), np.where(known, high - value, np.nan)


def _span(metric: str, tables: list[pd.DataFrame]) -> list[float]:
    """The x range: all estimates, and intervals as far as they do not crush them."""
    parts = [_bars(t, metric) for t in tables if len(t) and metric in t]
    value = np.concatenate([p[0] for p in parts])
    low, high = (np.concatenate([p[0] + sign * np.nan_to_num(p[i]) for p in parts]) for sign, i in ((-1, 1), (1, 2)))
    fine = np.isfinite(value)
    if not fine.any():
        return [0.0, 1.0]
    least, most = BOUNDED.get(metric, (value[fine].min(), value[fine].max()))
    first, last = min(least, value[fine].min()), max(most, value[fine].max())
    reach = 1.0 if metric in BOUNDED else 1.5 * (last - first) or abs(last)
    first, last = min(first, max(low[fine].min(), first - reach)), max(last, min(high[fine].max(), last + reach))
    pad = 0.04 * (last - first) or 0.5 * abs(last) or 0.5
    return [first - pad, last + pad]


def _labels(rows: pd.DataFrame) -> str:
    """ "300 labels" where an arm has seen others than those of its shots, "100 to 300 labels" where its rows differ; else ""."""
    if not len(more_labels(rows)):
        return ""
    low, high = int(rows["gold_labels"].min()), int(rows["gold_labels"].max())
    return f"{low} labels" if low == high else f"{low} to {high} labels"


# ---------------------------------------------------------------------------------------------- arms


def arms(
    summary: pd.DataFrame,
    baselines: pd.DataFrame | None = None,
    metric: str | None = None,
    units: str = "",
    title: str = "",
) -> go.Figure:
    """One row an arm and control, with its interval; each baseline a row below and a dotted line through all others.

    An arm that has seen more labels than those of its shots says how many beside its name.

    summary  one condition of a study (see `conditions`): several would be drawn over one another, so they raise
    metric   a column of the summary; None takes Pearson's r, or accuracy
    """
    go = style.graph_objects()
    metric = _main(metric, summary)
    if summary.duplicated(["arm", "control"]).any():
        raise DataError("this summary holds several conditions; draw each of plots.study.conditions(summary) by itself")
    base = _baselines(summary, baselines, metric)
    figure, y, ticks = go.Figure(), 0.0, []
    for arm, rows in summary.groupby("arm", sort=False):
        rows = rows if "control" in rows else rows.assign(control="real")
        known = {control: place for place, control in enumerate(style.CONTROLS)}
        rows = rows.iloc[np.argsort([known.get(c, len(known)) for c in rows["control"]], kind="stable")]
        for place, (control, (_, row)) in enumerate(zip(rows["control"], rows.iterrows())):
            name = f"<b>{style.safe(arm, 30)}</b>" if place == 0 else style.safe(control, 24)
            if place == 0 and control != "real":
                name = f"<b>{style.safe(arm, 20)}</b>, {style.safe(control, 14)}"
            if place == 0 and _labels(rows):
                name += f", {_labels(rows)}"
            _row(go, figure, y, row, metric, f"{arm}, {control}", style.look(control, place))
            ticks.append((y, name))
            y -= 1
        y -= 0.35
    for place, (_, row) in enumerate(base.iterrows()):
        name = _baseline_name(row)
        _row(go, figure, y, row, metric, f"baseline {name}", (style.GREY, f"{style.SHAPES[place % 5]}-open"))
        ticks.append((y, f"<i>{style.safe(name, 24)}</i>"))
        if np.isfinite(row[metric]):
            figure.add_vline(x=row[metric], line={"color": style.LINE, "width": 1, "dash": "dot"}, layer="below")
        y -= 1
    figure.update_yaxes(
        tickvals=[t for t, _ in ticks],
        ticktext=[n for _, n in ticks],
        range=[y + 0.3, 0.7],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(
        range=_span(metric, [summary, base]), title=style.safe(measured(metric, units)), title_standoff=8
    )
    names = "; italic rows and dotted lines are baselines on the same shots and items" if len(base) else ""
    words = f"{_sizes(summary)}; {_intervals(summary)}{names}."
    return style.finish(
        figure, title or f"{METRICS.get(metric, metric)} of each arm and its controls", words, int(20 * -y) + 20
    )


def _row(go: Any, figure: go.Figure, y: float, row: pd.Series, metric: str, name: str, look: tuple[str, str]) -> None:
    value, below, above = (part[0] for part in _bars(row.to_frame().T, metric))
    verdict = f"<br>{style.safe(row['verdict'])}" if isinstance(row.get("verdict"), str) and row["verdict"] else ""
    seen = _labels(row.to_frame().T)
    seen = f"<br>{seen} seen" if seen else ""
    figure.add_trace(
        go.Scatter(
            x=[value],
            y=[y],
            mode="markers",
            marker={"color": look[0], "symbol": look[1], "size": 10, "line": {"width": 1, "color": look[0]}},
            error_x={"array": [above], "arrayminus": [below], "color": look[0], "thickness": 1.6, "width": 3},
            hovertemplate=f"<b>{style.safe(name)}</b><br>{estimate(value, value - below, value + above)}{seen}{verdict}<extra></extra>",
        )
    )


def _baselines(summary: pd.DataFrame, baselines: pd.DataFrame | None, metric: str) -> pd.DataFrame:
    """The baselines of the summary's condition."""
    if baselines is None or not len(baselines) or metric not in baselines:
        return summary.iloc[:0]
    keep = np.ones(len(baselines), bool)
    for column in CONDITIONS:
        if column in baselines and column in summary:
            keep &= (baselines[column].isin(summary[column]) | baselines[column].isna()).to_numpy()
    return baselines[keep]


def _baseline_name(row: pd.Series) -> str:
    return str(next((row[c] for c in ("baseline", "arm", "name") if c in row), "baseline"))


def _intervals(summary: pd.DataFrame) -> str:
    one = "seeds" in summary and len(summary) and int(summary["seeds"].max()) == 1
    return "bars are 95 % intervals over " + (
        "items only, for one seed says nothing of others" if one else "seeds and items"
    )


def _sizes(summary: pd.DataFrame) -> str:
    """How much the figure rests on: "n = 320 predictions a row (5 seeds of 64 items)", with ranges where rows differ."""
    if not len(summary) or "n" not in summary or "seeds" not in summary:
        return "n not stated"
    n, seeds = (sorted({int(v) for v in summary[c]}) for c in ("n", "seeds"))
    if len(n) > 1 or len(seeds) > 1:
        return f"n = {n[0]} to {n[-1]} predictions a row"
    return f"n = {many(n[0], 'prediction')} a row ({many(seeds[0], 'seed')} of {many(n[0] // seeds[0], 'item')})"


# ------------------------------------------------------------------------------------------- curves


def curve(
    summary: pd.DataFrame, x: str = "shots", metric: str | None = None, units: str = "", title: str = ""
) -> go.Figure:
    """The metric of each arm along a numeric axis of the study ("shots", "draws"), real vectors and true labels."""
    go = style.graph_objects()
    metric = _main(metric, summary)
    groups = _lines(summary, x)
    steps = sorted({v for _, g in groups for v in g[x]})
    figure = go.Figure()
    for place, (values, group) in enumerate(groups):
        value, below, above = _bars(group, metric)
        colour, shape = style.COLOURS[place % 7], style.SHAPES[(place + place // 7) % 7]
        at = np.array([steps.index(v) for v in group[x]]) + 0.06 * (place - (len(groups) - 1) / 2)
        figure.add_trace(
            go.Scatter(
                x=at,
                y=value,
                name=", ".join(filter(None, [style.safe(values, 40), _labels(group)])),
                mode="lines+markers",
                line={"color": colour, "width": 1.6},
                marker={"color": colour, "symbol": shape, "size": 9},
                error_y={"array": above, "arrayminus": below, "color": colour, "thickness": 1.2, "width": 3},
            )
        )
    figure.update_xaxes(
        tickvals=list(range(len(steps))), ticktext=[str(s) for s in steps], title=x, range=[-0.4, len(steps) - 0.6]
    )
    figure.update_yaxes(title=style.safe(measured(metric, units)), range=_span(metric, [g for _, g in groups]))
    words = f"{_sizes(summary)}; real vectors, true labels; {_intervals(summary)}."
    return style.finish(
        figure, title or f"{METRICS.get(metric, metric)} and the number of {x}", words, 320, -(-len(groups) // 2)
    )


def _lines(summary: pd.DataFrame, x: str) -> list[tuple[str, pd.DataFrame]]:
    """(name, rows) of everything that has two or more places on the axis `x`, real vectors and true labels."""
    rows = summary
    for column, wanted in (("control", "real"), ("labels", "true")):
        if column in rows and (rows[column] == wanted).any():
            rows = rows[rows[column] == wanted]
    by = [c for c in _varying(rows) if c != x]
    if x == "draws":  # "moments x4" and "moments x16" are one arm at two numbers of draws
        rows = rows.assign(arm=rows["arm"].str.replace(r"\s+[x×]\d+$", "", regex=True))
    named = [
        (", ".join([str(values[0]), *(_words(c, v) for c, v in zip(by, values[1:]))]), group.sort_values(x))
        for values, group in rows.groupby(["arm", *by], sort=False)
    ]
    return [(name, group) for name, group in named if group[x].nunique() > 1]


def has_curve(summary: pd.DataFrame, x: str) -> bool:
    """Is there anything for `curve` to draw along `x`?"""
    return x in summary and bool(_lines(summary, x))


def draws(summary: pd.DataFrame, metric: str | None = None, units: str = "", title: str = "") -> go.Figure:
    """What mixing over draws of the map and the order of shots is worth."""
    return curve(summary, "draws", metric, units, title)


# --------------------------------------------------------------------------------------- predictions


def parity(predictions: pd.DataFrame, units: str = "", property: str = "", title: str = "") -> go.Figure:
    """Predicted against measured, with the line where they are equal. `predictions` are those of one cell.

    Small points are single seeds, large ones an item's mean over them; failures have no point and are counted below.
    """
    go = style.graph_objects()
    rows = predictions[predictions["prediction"].notna()].astype({"prediction": float, "target": float})
    failed, seeds = len(predictions) - len(rows), predictions["seed"].nunique()
    items = rows.groupby("item", sort=False)[["target", "prediction"]].mean()
    figure = go.Figure()
    ends = rows[["target", "prediction"]].to_numpy()
    low, high = (float(ends.min()), float(ends.max())) if len(ends) else (0.0, 1.0)
    pad = 0.05 * (high - low) or 0.5 * abs(high) or 0.5
    span = [low - pad, high + pad]
    figure.add_trace(go.Scatter(x=span, y=span, mode="lines", line={"color": style.LINE, "dash": "dash", "width": 1.4}, hoverinfo="skip"))  # fmt: skip
    if seeds > 1:
        each = {"color": style.SKY, "size": 4, "opacity": 0.45, "symbol": "circle"}
        figure.add_trace(
            go.Scatter(x=rows["target"], y=rows["prediction"], mode="markers", marker=each, hoverinfo="skip")
        )
    figure.add_trace(
        go.Scatter(
            x=items["target"],
            y=items["prediction"],
            mode="markers",
            marker={"color": style.BLUE, "size": 8, "opacity": 0.8, "symbol": "circle"},
            ids=[html.escape(str(i)) for i in items.index],  # whole, for a click; the text may be shortened
            text=[style.safe(i, 60) for i in items.index],
            hovertemplate="%{text}<br>measured %{x:.3g}, predicted %{y:.3g}<extra></extra>",
        )
    )
    unit = f" [{style.safe(units)}]" if units else ""
    what = f" {style.safe(property, 40)}" if property else ""
    figure.update_xaxes(range=span, title=f"measured{what}{unit}", title_standoff=8, zeroline=False, constrain="domain")
    figure.update_yaxes(range=span, title=f"predicted{what}{unit}", zeroline=False, scaleanchor="x", constrain="domain")
    marks = f"small points are the {seeds} seeds, large ones their mean; " if seeds > 1 else ""
    seen = f"the arm saw {_labels(rows)}; " if _labels(rows) else ""
    lost = f" {failed} of {len(predictions)} predictions failed and have no point." if failed else ""
    return style.finish(figure, title or "Predicted against measured", f"n = {many(predictions['item'].nunique(), 'item')}; {seen}{marks}on the dashed line prediction and measurement agree.{lost}", 520)  # fmt: skip


def confusion(predictions: pd.DataFrame, title: str = "") -> go.Figure:
    """Share of each class's items by predicted class, all seeds of one cell; failures have a column of their own."""
    go = style.graph_objects()
    truth, lost = predictions["target"].astype(str), predictions["prediction"].isna()
    said = predictions["prediction"].astype(object).where(~lost, "").astype(str)
    rows = sorted(set(truth), key=_natural)
    columns = [*rows, *sorted(set(said[~lost]) - set(rows), key=_natural)]
    at = np.where(lost, len(columns), [columns.index(c) if c in columns else 0 for c in said])
    share = np.zeros((len(rows), len(columns) + 1))
    np.add.at(share, (np.array([rows.index(c) for c in truth]), at), 1)
    if lost.any():
        columns = [*columns, "failed"]
    share = share[:, : len(columns)] / share.sum(1, keepdims=True)
    hover = [[f"{style.safe(a)} answered as {style.safe(b)}" for b in columns] for a in rows]
    figure = go.Figure(
        go.Heatmap(
            z=share, x=np.arange(len(columns)), y=np.arange(len(rows)), zmin=0, zmax=1, colorscale=[[0, "rgba(0,114,178,0.06)"], [1, style.BLUE]],
            texttemplate="%{z:.0%}" if len(columns) <= 12 else None, colorbar={"title": "share", "tickformat": ".0%", "thickness": 12},
            customdata=hover, hovertemplate="%{customdata}: %{z:.1%}<extra></extra>",
        )
    )  # fmt: skip
    for names, update in ((columns, figure.update_xaxes), (rows, figure.update_yaxes)):
        step = -(-len(names) // 40)
        places = np.arange(0, len(names), step)  # not the names: two may be alike where they are shortened
        update(tickvals=places, ticktext=[style.safe(n, 16) for n in names[::step]], showgrid=False, zeroline=False)
    figure.update_xaxes(title="answered", side="bottom", range=[-0.5, len(columns) - 0.5])
    figure.update_yaxes(title="true class", range=[len(rows) - 0.5, -0.5])
    seeds = predictions["seed"].nunique()
    seen = f"the arm saw {_labels(predictions)}; " if _labels(predictions) else ""
    return style.finish(figure, title or "True class and answer", f"n = {many(predictions['item'].nunique(), 'item')}, {many(seeds, 'seed')}; {seen}each row sums to 100 %.", 440)  # fmt: skip


def _natural(name: str) -> list[str | int]:
    """A key by which "2" stands before "10"."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))]
