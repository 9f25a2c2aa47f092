"""Figures of one head among all: a map of every head beside its null, its rows to each part and shot, its arcs from a query to its shots."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.plots import style
from icrl_lab.plots.attention import SHORT, _hover, _known, _marks, _role, _scale, _written
from icrl_lab.plots.beside import called, whose
from icrl_lab.stats.words import estimate

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

VERSUS = {"beside": "real, and its null beside it", "less": "real less its null"}
THICK = 13.0  # pixels of the thickest arc
RING = {"symbol": "square-open", "size": 13, "color": style.ORANGE, "line": {"width": 3, "color": style.ORANGE}}


@dataclass(frozen=True)
class Quantity:
    """A number that every head has.

    name  the array of the reading, over control, block and head
    at    where the rest of its axes is taken
    less  the array of real less null; "" where the reading has none
    """

    name: str
    at: Mapping[str, str]
    less: str = ""


def quantities(reading: Reading) -> dict[str, Quantity]:
    """What a map of all heads can show, by name: shares of parts, and how far a head follows the encoder's similarity."""
    data, about, out = reading.data, reading.about, {}
    rows = [str(r) for r in data["row"].values]
    for row in rows:
        for part in ("vector", "text", "label"):
            if float(data["total_share"].sel(row=row, part=part, control="real")) > 0:
                less = "shift" if "shift" in data else ""
                out[f"share of the shots' {_role(part, about)}s, from {SHORT[row]}"] = Quantity(
                    "share", {"row": row, "part": part}, less
                )
    for row in rows:
        for target in data["target"].values.tolist():
            at, less = {"row": row, "target": str(target)}, "gain" if "gain" in data else ""
            out[f"follows similarity: {_role(str(target), about)}s, from {SHORT[row]}"] = Quantity("follows", at, less)
    for row in rows:
        for target in data["target"].values.tolist():
            out[f"ρ with similarity: {_role(str(target), about)}s, from {SHORT[row]}"] = Quantity(
                "rho", {"row": row, "target": str(target)}
            )
    for row in rows:
        out[f"share of position 0, from {SHORT[row]}"] = Quantity("sink", {"row": row})
    return out


def beside(
    reading: Reading, quantity: str = "", versus: str = "beside", head: tuple[int, int] | None = None
) -> go.Figure:
    """A quantity at every block and head, under real vectors and the null, on one colour scale; or their difference.

    quantity  one of `quantities`; "" takes the first
    versus    one of VERSUS; "less" where the reading has the difference
    head      (block, head) that is marked
    """
    go, data, about = style.graph_objects(), reading.data, reading.about
    known = quantities(reading)
    quantity = _known(quantity or next(iter(known)), list(known), "quantity")
    chosen, null = known[quantity], str(about.get("null", ""))
    if versus not in VERSUS or (versus == "less" and not chosen.less):
        raise DataError(f"the reading has no {versus!r} of {quantity!r}")
    if versus == "less":
        panels = [(chosen.less, dict(chosen.at))]
    else:
        panels = [(chosen.name, {**chosen.at, "control": c}) for c in ("real", *([null] if null else []))]
    titles = [
        called(at["control"], about) + (" (null)" if at["control"] == null else "")
        if "control" in at
        else f"real less {null}"
        for _, at in panels
    ]
    cells = [
        data[name].sel({k: v for k, v in at.items() if k in data[name].dims}).transpose("head", "layer")
        for name, at in panels
    ]
    name = panels[0][0]
    scale = _scale(name, np.stack([c.values for c in cells]))
    bar = {
        "thickness": 12,
        "tickformat": _written(name, np.stack([c.values for c in cells])),
        "nticks": 5,
        "title": None,
    }
    where = ([head[0]], [head[1]]) if head else ([], [])
    traces = []
    for j, ((array, at), z) in enumerate(zip(panels, cells)):
        mine: list[dict[str, Any]] = [{
            "type": "heatmap", "z": z.values, "x": data["layer"].values, "y": data["head"].values, "coloraxis": "coloraxis", "xgap": 0.5, "ygap": 0.5,
            "customdata": _hover(data, array, at), "hovertemplate": "block %{x}, head %{y}<br>%{customdata}<extra></extra>",
        }]  # fmt: skip
        mine += _marks(data, array, at) if f"{array}_q" in data else []
        mine.append({"type": "scatter", "x": where[0], "y": where[1], "mode": "markers", "marker": RING, "hoverinfo": "skip", "showlegend": False, "meta": "selected"})  # fmt: skip
        traces += [{**trace, **_axes(j)} for trace in mine]
    layout = _side_by_side(tuple(titles), horizontal_spacing=0.03)
    layout["coloraxis"] = {**scale, "colorbar": bar}
    for key in layout:
        if key.startswith("xaxis"):
            layout[key] |= {"title": {"text": "block", "standoff": 4}, "showgrid": False, "zeroline": False}
        elif key.startswith("yaxis"):
            layout[key] |= {"showgrid": False, "zeroline": False, "autorange": "reversed"}
    layout["yaxis"] |= {"title": {"text": "head"}}
    made = go.Figure(traces, layout)
    told = {
        "share": "shares are of all but position 0", "sink": "share of all attention", "rho": "ρ: Spearman over shots, attention against the encoder's cosine",
        "follows": "ρ with the query's own similarities, less the ρ with other queries'",
    }[chosen.name]  # fmt: skip
    marks = " Crosses: p < 0.05 after Holm; circles: after Benjamini-Hochberg alone." if f"{name}_q" in data else ""
    caption = f"n = {about['n']}; {told}.{marks} Orange: the selected head. Intervals in the hover."
    style.finish(made, quantity[:1].upper() + quantity[1:], caption, int(np.clip(17 * data.sizes["head"], 140, 440)))
    made.layout.margin.t += 14
    made.layout.height += 14
    return made


def _side_by_side(titles: tuple[str, ...], **given: Any) -> dict[str, Any]:
    """The layout of panels with titles on common rows."""
    return deepcopy(_made(titles, tuple(given.items())))


@lru_cache(maxsize=64)
def _made(titles: tuple[str, ...], given: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    from plotly.subplots import make_subplots

    made = make_subplots(1, len(titles), shared_yaxes=True, column_titles=list(titles), **dict(given))
    made.update_annotations(font_size=12)
    return {k: v for k, v in made.layout.to_plotly_json().items() if k != "template"}


def _axes(panel: int) -> dict[str, str]:
    """The axes of the traces of a panel, counted from 0."""
    number = str(panel + 1) if panel else ""
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}


# ------------------------------------------------------------------------------------------------ rows to spans


def _present(reading: Reading) -> np.ndarray:
    return (reading.data["total_share"] > 0).any(("control", "row")).values


def falls(reading: Reading, layer: int, head: int, target: str) -> tuple[np.ndarray, list[list[str]], np.ndarray]:
    """What `spans` shows of a head: shares (rows x controls, position 0 and parts) and in words with intervals; lifts (same, k)."""
    data, has, at = reading.data, _present(reading), {"layer": layer, "head": head}

    def table(end: str) -> np.ndarray:
        sink = data[f"sink{end}"].sel(at).transpose("row", "control").values
        share = data[f"share{end}"].sel(at).transpose("row", "control", "part").values[..., has]
        return np.concatenate([sink[..., None], share], -1).reshape(sink.size, -1)

    share, low, high = (table(end) for end in ("", "_low", "_high"))
    told = [[estimate(*cell, form=".1%") for cell in zip(*cells)] for cells in zip(share, low, high)]
    lifts = data["by_shot"].sel({"target": target, **at}).transpose("row", "control", "shot").values
    return share, told, lifts.reshape(len(share), -1)


def most(lifts: np.ndarray) -> float:
    """The end of the colour scale of lifts."""
    return max(1.0, float(np.nanmax(lifts, initial=0.0)))


def spans(reading: Reading, layer: int, head: int, target: str = "") -> go.Figure:
    """What one head's rows fall on, under real vectors and the nulls: on the left each part of the prompt, on the right each shot.

    target  one of the reading's targets, of the shots on the right; "" takes that of the head that follows most
    """
    go, data, about = style.graph_objects(), reading.data, reading.about
    target = _known(target or str(data["top_target"].values[0]), data["target"].values, "target")
    names = [f"{r}, {whose(str(c), about)}" for r in data["row"].values for c in data["control"].values]
    parts = [str(p) for p, some in zip(data["part"].values, _present(reading)) if some]
    share, told, lifts = falls(reading, layer, head, target)
    traces = [
        {
            "type": "heatmap", "z": share, "x": ["position 0", *(_role(p, about) for p in parts)], "y": names, "coloraxis": "coloraxis", "xgap": 1, "ygap": 1, "customdata": told,
            "hovertemplate": "%{y} → %{x}<br>%{customdata}<extra></extra>", **_axes(0),
        },
        {
            "type": "heatmap", "z": lifts, "x": data["shot"].values + 1, "y": names, "coloraxis": "coloraxis2", "xgap": 1, "ygap": 1,
            "hovertemplate": "%{y} → shot %{x}<br>%{z:.2f} times even<extra></extra>", **_axes(1),
        },
    ]  # fmt: skip
    bar = {
        "orientation": "h",
        "thickness": 10,
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
        "ypad": 4,
        "nticks": 5,
        "title": None,
    }
    titles = ("share of each part", f"times even attention, each shot's {_role(target, about)}")
    layout = _side_by_side(titles, horizontal_spacing=0.02, column_widths=(0.4, 0.6))
    layout["coloraxis"] = {"colorscale": "Cividis", "cmin": 0, "cmax": 1, "colorbar": {**bar, "len": 0.36, "x": 0.2, "tickformat": ".0%"}}  # fmt: skip
    layout["coloraxis2"] = {"colorscale": "Cividis", "cmin": 0, "cmax": most(lifts), "colorbar": {**bar, "len": 0.52, "x": 0.7}}  # fmt: skip
    for key in ("yaxis", "yaxis2"):
        layout[key] |= {"autorange": "reversed", "showgrid": False, "ticksuffix": " "}
    layout["xaxis"] |= {"showgrid": False, "tickangle": -40}
    layout["xaxis2"] |= {"showgrid": False, "title": {"text": "place of the shot", "standoff": 4}}
    made = go.Figure(traces, layout)
    caption = (
        f"n = {about['n']}; means. From where, under which vectors (down), to which part and shot (across). Shares are of all but position 0, whose "
        "share of everything is the first column; their 95 % intervals stand in the hover."
    )
    style.finish(made, f"Block {layer}, head {head}: from its rows to the prompt", caption, 34 * len(names) + 40)
    made.layout.margin.update(b=104, t=made.layout.margin.t + 14)
    made.layout.height += 66
    return made


# ------------------------------------------------------------------------------------------------ arcs


@dataclass(frozen=True, eq=False)
class Attended:
    """How one head attends to the shots of a query.

    kind        "query": of this query under one seed; "mean": by place, of all queries and seeds, whose shots differ
    real, null  (k) times even attention; NaN where a shot has nothing to look at but position 0
    items, labels, texts, similarity  (k) of each shot; empty for a mean
    """

    kind: str
    seed: int
    real: np.ndarray
    null: np.ndarray
    items: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    similarity: np.ndarray | None = None


def _cases(data: xr.Dataset) -> list[str]:
    """The queries that were kept at every head; none in a reading of before."""
    return data["case_query"].values.tolist() if "case_query" in data else []


def attended(reading: Reading, query: str, layer: int, head: int, row: str, target: str, null: str = "") -> Attended:
    """The best that the reading has: this query at this head, where it was kept; else the mean of all queries."""
    data, at = reading.data, {"row": row, "target": target}
    for name in ("row", "target"):
        _known(at[name], data[name].values, name)
    if query not in data["query"].values:
        raise DataError(f"this reading was not asked about {query!r}")
    seed = int(data["seed"].values[0])
    cases = _cases(data)
    tops = zip(*(data[f"top_{n}"].values.tolist() for n in ("row", "target", "layer", "head")))
    top = next((i for i, found in enumerate(tops) if found == (row, target, layer, head)), None)
    if query in cases:
        cells = data["case_lift"].isel(case=cases.index(query)).sel({"layer": layer, "head": head, **at})
    elif top is not None:
        cells = data["top_lift"].isel(top=top).sel(seed=seed, query=query)
    else:
        cells = data["by_shot"].sel({"layer": layer, "head": head, **at})
    real = cells.sel(control="real").values
    beside = cells.sel(control=null).values if null else np.full(len(real), np.nan)
    if query not in cases and top is None:
        return Attended("mean", seed, real, beside)
    one = {"seed": seed, "query": query}
    words = [
        tuple(map(str, data[n].sel(one).values)) if n in data else () for n in ("shot_item", "shot_label", "shot_text")
    ]
    return Attended("query", seed, real, beside, words[0], words[1], words[2], data["similarity"].sel(one).values)


def arcs(
    reading: Reading, query: str = "", layer: int | None = None, head: int | None = None, row: str = "", target: str = "", null: str | None = None,
    shot: int = -1,
) -> go.Figure:  # fmt: skip
    """From a query to each of its shots: an arc as thick as the head's attention, coloured by the encoder's similarity; under the
    null, mirrored below.

    What is not given is taken from the head that follows most, and from the first query that was kept. `shot` is ringed.
    """
    go = style.graph_objects()
    data, about = reading.data, reading.about
    first = {n: data[f"top_{n}"].values[0].item() for n in ("row", "target", "layer", "head")}
    layer, head = (int(first[n] if v is None else v) for n, v in (("layer", layer), ("head", head)))
    row, target = row or str(first["row"]), target or str(first["target"])
    null = str(about.get("null", "")) if null is None else null
    asked = data["query"].values.tolist()
    query = query or next((q for q in _cases(data) if q in asked), asked[0])
    found = attended(reading, query, layer, head, row, target, null)
    k = len(found.real)
    most = float(np.nanmax([*found.real, *found.null, 1e-9]))
    shade, bar = _shades(found)
    x = np.arange(1, k + 1)
    shapes = [*_bows(found.real, shade, most, 1), *_bows(found.null, shade, most, -1)]
    ring = ([shot + 1], [0]) if 0 <= shot < k else ([], [])
    asks = f"<b>the query</b><br>{style.safe(query, 50)}"
    traces: list[dict[str, Any]] = [
        {
            "x": ring[0], "y": ring[1], "mode": "markers", "marker": {**RING, "symbol": "circle-open", "size": 22}, "hoverinfo": "skip", "meta": "pinned"
        },
        {
            "x": x, "y": np.zeros(k), "mode": "markers", "customdata": _of_shots(found, null), "hovertemplate": "%{customdata}<extra></extra>",
            "marker": {"size": 13, "symbol": "circle", "line": {"width": 1.5, "color": style.LINE}, **bar}, "meta": "shots",
        },
        {
            "x": [k + 1], "y": [0], "mode": "markers", "marker": {"size": 16, "symbol": "star-diamond", "color": style.VERMILLION},
            "customdata": [asks], "hovertemplate": "%{customdata}<extra></extra>",
        },
    ]  # fmt: skip
    ticks = [f"{i}: {style.safe(lab, 6)}" for i, lab in zip(x, found.labels)] if found.labels else list(map(str, x))
    across = {
        "tickvals": [*x, k + 1], "ticktext": [*ticks, "query"], "tickangle": -60, "range": [0.2, k + 1.8], "showgrid": False, "zeroline": False,
        "title": {"text": "place of the shot: its label" if found.labels else "place of the shot", "standoff": 6},
    }  # fmt: skip
    up = {"range": [-1.12, 1.12], "showticklabels": False, "showgrid": False, "zeroline": True}
    null_too = " (null)" if null == about.get("null") else ""
    words = [
        {"x": 0.3, "y": y, "text": f"<b>{words}</b>", "showarrow": False, "xanchor": "left", "font": {"size": 12}}
        for y, words in ((1.04, called("real", about)), (-1.04, called(null, about) + null_too if null else ""))
    ]
    made = go.Figure(
        [{"type": "scatter", **t} for t in traces],
        {"shapes": shapes, "xaxis": across, "yaxis": up, "annotations": words},
    )
    style.finish(made, f"Block {layer}, head {head}: from the query to its shots", _arcs_caption(reading, found, query, most, (layer, head, row, target, null)), 340)  # fmt: skip
    return made


def _arcs_caption(
    reading: Reading, found: Attended, query: str, most: float, where: tuple[int, int, str, str, str]
) -> str:
    layer, head, row, target, null = where
    at = {"layer": layer, "head": head, "row": row, "target": target}

    def rho(control: str) -> str:
        value, low, high = (
            float(reading.data[f"rho{end}"].sel({**at, "control": control})) for end in ("", "_low", "_high")
        )
        return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"

    under = f", under {null} {rho(null)}" if null else ""
    whose = (
        f"Seed {found.seed}, query {style.shortened(query, 34)}"
        if found.kind == "query"
        else f"Mean of all queries ({reading.about['n']}), by place"
    )
    colour = (
        "colour: the encoder's cosine of query and shot"
        if found.kind == "query"
        else "grey: at each place stand different shots"
    )
    return (
        f"{whose}; from {SHORT[row]} to the shots' {_role(target, reading.about)}s. Thickness: attention a token over even attention (the thickest {most:.2g} times); {colour}. "
        f"ρ with similarity over all queries {rho('real')}{under}."
    )


def _shades(found: Attended) -> tuple[list[str], dict[str, Any]]:
    """The colour of each shot's arcs, and of its mark with the colour bar."""
    if found.similarity is None:
        return [style.GREY] * len(found.real), {"color": style.GREY, "showscale": False}
    from plotly.colors import sample_colorscale

    low, high = float(found.similarity.min()), float(found.similarity.max())
    share = (found.similarity - low) / ((high - low) or 1.0)
    bar = {"title": {"text": "cosine", "side": "right"}, "thickness": 12, "len": 0.9}
    held = {
        "color": found.similarity,
        "colorscale": "Cividis",
        "cmin": low,
        "cmax": high,
        "colorbar": bar,
        "showscale": True,
    }
    return sample_colorscale("Cividis", share.tolist()), held


def _bows(value: np.ndarray, shade: list[str], most: float, side: int) -> list[dict[str, Any]]:
    """Arcs as shapes, the thick ones first, so that thin ones lie on them."""
    k, out = len(value), []
    for i in np.argsort(-np.nan_to_num(value), kind="stable"):
        if np.isfinite(value[i]):
            start, stop, rise = i + 1, k + 1, 2 * side * (k - i) / k
            width = max(0.4, THICK * float(value[i]) / most)
            out.append({
                "type": "path", "path": f"M {start},0 Q {(start + stop) / 2},{rise:.4f} {stop},0", "line": {"color": shade[i], "width": width},
                "layer": "below", "opacity": 0.85,
            })  # fmt: skip
    return out


def _of_shots(found: Attended, null: str) -> list[str]:
    out = []
    for i, (real, other) in enumerate(zip(found.real, found.null)):
        lines = [f"<b>shot {i + 1}</b>"]
        if found.similarity is not None:
            text = found.texts[i] if found.texts else ""
            lines += [
                style.safe(found.items[i], 50),
                *([style.safe(text, 60)] if text and text != found.items[i] else []),
            ]
            lines.append(f"label {style.safe(found.labels[i], 12)}, cosine {found.similarity[i]:.2f}")
        lines.append(
            f"{real:.2f} times even" + (f", under {null} {other:.2f}" if null else "")
            if np.isfinite(real)
            else "nothing to look at but position 0"
        )
        out.append("<br>".join(lines))
    return out
