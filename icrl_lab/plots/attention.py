"""Figures of attention: every head at a glance, where attention lies beside its nulls, the heads that follow most, one example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, nearest
from icrl_lab.plots import style
from icrl_lab.plots.beside import LOOKS, bars, called, finish, whose
from icrl_lab.plots.lens import CARD
from icrl_lab.plots.molecules import drawing
from icrl_lab.plots.words import sampled
from icrl_lab.stats.words import estimate, tested

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

DIVERGING = [[0.0, style.VERMILLION], [0.5, "#DDDDDD"], [1.0, style.BLUE]]
ROWS = {"answer": "the answer position", "slot": "the query's slot"}
SHORT = {"answer": "the answer", "slot": "the query's slot"}
MAPS = {  # name -> title, how numbers are written, scale
    "share": ("share of attention", ".0%"), "lift": ("times even attention", ".2g"), "sink": ("share of position 0", ".0%"),
    "shift": ("share, real less {null}", "+.0%"), "rho": ("ρ with similarity", "+.2f"), "follows": ("ρ beyond other queries", "+.2f"),
    "gain": ("ρ beyond other queries, real less {null}", "+.2f"),
}  # fmt: skip
SIGNED = ("shift", "rho", "follows", "gain")


def figure(reading: Reading, part: str = "", target: str = "") -> go.Figure:
    """Every block and head: on the left its share of a part, on the right how far it follows the encoder's similarity; a row of
    panels for each place that is looked from. Of a rollout: its parts.

    part    one of the reading's parts; "" takes the target
    target  one of the reading's targets; "" takes that of the head that follows most
    """
    data = reading.data
    if "rollout" in data:
        return parts(reading)
    target = _known(target or str(data["top_target"].values[0]), data["target"].values, "target")
    name = "gain" if "gain" in data else "follows"
    left = _known(part or target, data["part"].values, "part")
    title = f"Attention to the shots' {_role(target, reading.about)}s, by block and head"
    return heads_map(
        reading, [("share", {"control": "real", "part": left}), (name, {"control": "real", "target": target})], title
    )


def heads_map(reading: Reading, panels: list[tuple[str, dict[str, Any]]], title: str = "") -> go.Figure:
    """Maps of blocks (across) and heads (down) side by side, each with a colour scale of its own; the reading's rows one below the other.

    panels  arrays of the reading (keys of MAPS) and where they are taken, e.g. ("share", {"control": "noise", "part": "label"})
    """
    go = style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    rows = data["row"].values.tolist()
    names = [MAPS[_known(n, list(MAPS), "map")][0].format(null=about.get("null", "")) for n, _ in panels]
    controls = _controls(reading, panels)
    if len(set(controls) - {""}) > 1:
        names = [f"{name}, {called(c, about)}" if c else name for name, c in zip(names, controls)]
    made = make_subplots(
        len(rows), len(panels), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.05, vertical_spacing=0.06,
        column_titles=names,
    )  # fmt: skip
    for j, (name, at) in enumerate(panels):
        cells = data[name].sel({k: v for k, v in at.items() if k in data[name].dims})
        scale = _scale(name, cells.values)
        wide = 1 / len(panels)
        made.update_layout(
            {
                f"coloraxis{j + 1 if j else ''}": {
                    **scale,
                    "colorbar": {
                        "orientation": "h", "thickness": 10, "len": 0.86 * wide, "x": wide * (j + 0.5), "xanchor": "center", "y": 0,
                        "yref": "container", "yanchor": "bottom", "ypad": 6, "tickformat": _written(name, cells.values), "nticks": 5, "title": None,
                    },
                }
            }
        )  # fmt: skip
        for i, row in enumerate(rows):
            where = {**at, "row": row}
            z = cells.sel(row=row).transpose("head", "layer")
            made.add_trace(
                go.Heatmap(
                    z=z.values, x=data["layer"].values, y=data["head"].values, coloraxis=f"coloraxis{j + 1 if j else ''}", xgap=0.5, ygap=0.5,
                    customdata=_hover(data, name, where), hovertemplate="block %{x}, head %{y}<br>%{customdata}<extra></extra>",
                ),
                row=i + 1, col=j + 1,
            )  # fmt: skip
            if name in ("gain", "follows"):
                for mark in _marks(data, name, where):
                    made.add_trace(mark, row=i + 1, col=j + 1)
    made.update_xaxes(title="block", row=len(rows), title_standoff=4)
    for i, row in enumerate(rows):
        made.update_yaxes(title=f"head, from {SHORT[row]}", title_font_size=12, row=i + 1, col=1, title_standoff=4)
    made.update_xaxes(showgrid=False, zeroline=False)
    made.update_yaxes(showgrid=False, zeroline=False, autorange="reversed")
    caption = f"n = {about['n']}; {'; '.join(_told(reading, panels))} in the hover."
    height = len(rows) * int(np.clip(16 * data.sizes["head"], 130, 420)) + 60
    style.finish(made, title or "Attention by block and head", caption, height)
    made.update_annotations(font_size=12)
    made.update_layout(margin_b=86, margin_t=made.layout.margin.t + 14, height=made.layout.height + 48)
    return made


def _controls(reading: Reading, panels: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """The control that each panel shows; "" of a difference of two."""
    return [str(at["control"]) if "control" in reading.data[name].dims else "" for name, at in panels]


def _told(reading: Reading, panels: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """What a caption says of these panels and of no other: what is counted, under what, and which marks there are."""
    about, shown, controls = reading.about, {name for name, _ in panels}, set(_controls(reading, panels)) - {""}
    out = []
    if shown & {"share", "shift"}:
        out.append(
            "shares are of all but position 0" + ("; that of position 0 is of everything" if "sink" in shown else "")
        )
    if len(controls) == 1:
        out.append(f"under {called(next(iter(controls)), about)}")
    if shown & {"rho", "follows", "gain"}:
        less = ", less the ρ with other queries' similarities" if shown & {"follows", "gain"} else ""
        out.append(f"ρ: Spearman over shots, attention against the encoder's cosine{less}")
    if shown & {"follows", "gain"}:
        out.append(
            "crosses: p < 0.05 after Holm; open circles: after Benjamini-Hochberg alone (matching of queries with similarities)"
        )
    return [*out, "p and intervals" if shown & {"follows", "gain"} else "intervals"]


def _written(name: str, z: np.ndarray) -> str:
    """How the numbers of a map are written: shares that are all small take more digits."""
    form, most = MAPS[name][1], float(np.nanmax(np.abs(z), initial=0.0))
    return form.replace(".0%", ".0%" if most >= 0.05 else ".1%" if most >= 0.005 else ".2%")


def _scale(name: str, z: np.ndarray) -> dict[str, Any]:
    most = float(np.nanmax(np.abs(z), initial=1e-6))
    if name in SIGNED:
        return {"colorscale": DIVERGING, "cmin": -most, "cmax": most, "cmid": 0}
    return {"colorscale": "Cividis", "cmin": 0, "cmax": most}


def _hover(data: xr.Dataset, name: str, at: dict[str, Any]) -> list[list[str]]:
    """(head, layer) the number with its interval, and its corrected p-values where it has them."""

    def table(array: str) -> np.ndarray:
        cells = data[array].sel({k: v for k, v in at.items() if k in data[array].dims})
        return cells.transpose("head", "layer").values

    value, low, high = (table(n) for n in (name, f"{name}_low", f"{name}_high"))
    words = _written(name, value).lstrip("+")
    out = [[estimate(*cell, form=words) for cell in zip(*rows)] for rows in zip(value, low, high)]
    if f"{name}_q" not in data:
        return out
    p = zip(table(f"{name}_p"), table(f"{name}_q"), table(f"{name}_fdr"))
    told = [
        [
            f"p {a:.2g}, after Holm {b:.2g}, Benjamini-Hochberg {c:.2g}" if a == a else tested(a)
            for a, b, c in zip(*rows)
        ]
        for rows in p
    ]
    return [[f"{a}<br>{b}" for a, b in zip(*rows)] for rows in zip(out, told)]


def _marks(data: xr.Dataset, name: str, at: dict[str, Any]) -> list[dict[str, Any]]:
    """Traces that mark where a corrected p-value is below 0.05."""
    q, fdr = (data[f"{name}_{end}"].sel({k: v for k, v in at.items() if k in data[name].dims}).transpose("layer", "head").values for end in ("q", "fdr"))  # fmt: skip
    out = []
    for found, symbol in ((q < 0.05, "x-thin"), ((fdr < 0.05) & ~(q < 0.05), "circle-open")):
        layer, head = np.nonzero(found)
        out.append({
            "type": "scatter", "x": data["layer"].values[layer], "y": data["head"].values[head], "mode": "markers", "showlegend": False, "hoverinfo": "skip",
            "marker": {"symbol": symbol, "size": 7, "color": "#333333", "line": {"width": 1.4, "color": "#333333"}},
        })  # fmt: skip
    return out


def _known(name: str, valid: Any, what: str) -> str:
    names = [str(v) for v in valid]
    if name not in names:
        raise DataError(f"the reading has no {what} {name!r}; {nearest(name, names)}")
    return name


# ------------------------------------------------------------------------------------------------ parts


def parts(reading: Reading) -> go.Figure:
    """What each part of the prompt gets, on the mean of all heads, under real vectors and the nulls: as a share, and a token."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    rolled = "rollout" in data
    names = ("rollout", "lift", "sink") if rolled else ("total_share", "total_lift", "total_sink")
    cells = data.isel(layer=0) if rolled else data
    rows, controls = data["row"].values.tolist(), data["control"].values.tolist()
    has = (cells[names[0]] > 0).any(("control", "row")).values
    shown = [p for p, some in zip(data["part"].values.tolist(), has) if some]
    titles = [f"{what}, from {SHORT[r]}" for r in rows for what in ("share", "a token, times even")]
    made = make_subplots(
        len(rows),
        2,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.11 if len(rows) > 1 else 0,
        subplot_titles=titles,
    )
    y = -np.arange(len(shown) + 1.0)
    for i, row in enumerate(rows):
        for number, control in enumerate(controls):
            at = y - 0.22 * (number - (len(controls) - 1) / 2)
            one = cells.sel(row=row, control=control)
            for j, (name, sink) in enumerate(((names[0], True), (names[1], False))):
                value, low, high = (
                    [float(one[n].sel(part=p)) for p in shown] for n in (name, f"{name}_low", f"{name}_high")
                )
                if sink:
                    value, low, high = (
                        [float(one[n]), *rest]
                        for n, rest in zip((names[2], f"{names[2]}_low", f"{names[2]}_high"), (value, low, high))
                    )
                bars(made, i + 1, j + 1, (value, at if sink else at[1:], low, high), control, flat=True, legend=not i and not j, words=called(control, about))  # fmt: skip
    labels = ["<i>position 0, of all</i>", *(style.safe(_role(p, about)) for p in shown)]
    made.update_yaxes(tickvals=y, ticktext=labels, range=[y[-1] - 0.6, 0.6], showgrid=True, zeroline=False)
    made.update_xaxes(tickformat=".0%", rangemode="tozero", col=1)
    made.update_xaxes(rangemode="tozero", col=2)
    for i in range(len(rows)):
        made.add_vline(x=1, line={"color": style.LINE, "dash": "dot", "width": 1.2}, row=i + 1, col=2)
    role = "Under text, the item's text has the vector's role. " if "text" in controls else ""
    how = "Rollout through all blocks" if rolled else "Mean of all blocks and heads"
    caption = (
        f"n = {about['n']}. {how}; shares are of all but position 0, whose share of everything stands above. On the right, a token of the part "
        f"beside a token under even attention (dotted). {role}Bars are 95 % intervals over {sampled(about)}."
    )
    title = "What could reach each place" if rolled else "Where attention lies, beside its nulls"
    finish(made, title, caption, len(rows) * (30 * len(y) + 40), len(controls), panels=True)
    made.update_annotations(font_size=12)
    return made


def _role(part: str, about: Mapping[str, Any]) -> str:
    """A part of the prompt in words; in an arm of text the item's text has the vector's role."""
    return part.replace("vector", "text") if about.get("arm") == "text" else part


# ------------------------------------------------------------------------------------------------ heads


def heads(reading: Reading) -> go.Figure:
    """The heads that follow the encoder's similarity most: their correlation under real vectors and the nulls, and what is left."""
    style.graph_objects()
    from plotly.subplots import make_subplots

    data, about = reading.data, reading.about
    name = "gain" if "gain" in data else "follows"
    less = f", real less {about['null']}" if name == "gain" else ""
    made = make_subplots(
        1, 2, shared_yaxes=True, horizontal_spacing=0.03, column_widths=[0.6, 0.4],
        subplot_titles=("ρ with the encoder's similarity", f"beyond other queries{less}"),
    )  # fmt: skip
    top = [
        {n: data[f"top_{n}"].values[i] for n in ("row", "target", "layer", "head")} for i in range(data.sizes["top"])
    ]
    y = -np.arange(float(len(top)))
    controls = data["control"].values.tolist()
    for number, control in enumerate(controls):
        cells = [data.sel(control=control, **at) for at in top]
        values = [[float(c[n]) for c in cells] for n in ("rho", "rho_low", "rho_high")]
        at = y - 0.2 * (number - (len(controls) - 1) / 2)
        bars(made, 1, 1, (values[0], at, values[1], values[2]), control, flat=True, words=called(control, about))
    cells = [(data if name == "gain" else data.sel(control="real")).sel(**at) for at in top]
    left = [[float(c[n]) for c in cells] for n in (name, f"{name}_low", f"{name}_high")]
    q = np.array([float(c[f"{name}_q"]) for c in cells])
    bars(
        made,
        1,
        2,
        (left[0], y, left[1], left[2]),
        "real",
        flat=True,
        legend=False,
        p=q,
        words=called("real", about),
    )
    for col in (1, 2):
        made.add_vline(x=0, line={"color": style.LINE, "width": 1.4}, row=1, col=col)
    labels = [
        f"{a['layer']}.{a['head']} {a['row']} → {_role(str(a['target']), about)}{'*' if p < 0.05 else ''}"
        for a, p in zip(top, q)
    ]
    made.update_yaxes(tickvals=y, ticktext=labels, range=[y[-1] - 0.6, 0.6], zeroline=False)
    made.update_xaxes(zeroline=False)
    caption = (
        f"n = {about['n']}. Block.head, from where to what. Spearman's ρ over the shots between attention and the encoder's cosine with the query; on "
        f"the right less the ρ with other queries' similarities{less}. * p < 0.05 after Holm. Chosen as the strongest of "
        f"{data[name].sel(control='real').size if name == 'follows' else data[name].size}, so their ρ is flattered. Bars are 95 % intervals over {sampled(about)}."
    )
    finish(made, "The heads that follow the encoder most", caption, 34 * len(top) + 40, len(controls), panels=True)
    made.update_annotations(font_size=12)
    return made


# ------------------------------------------------------------------------------------------------ one query


def example(reading: Reading, query: str | None = None, seed: int | None = None, top: int = 0) -> go.Figure:
    """One query and the attention of one head to each of its shots, most similar first; some of the items are drawn.

    query, seed  None: the first seed, and the query whose ρ is the median of that seed's
    top          which of the reading's top heads
    """
    go = style.graph_objects()
    data = reading.data
    if not 0 <= top < data.sizes["top"]:
        raise DataError(f"the reading keeps {data.sizes['top']} heads query by query, and top is {top}")
    seed = int(data["seed"].values[0]) if seed is None else int(_known(str(seed), data["seed"].values, "seed"))
    rho = data["top_rho"].sel(control="real", seed=seed).isel(top=top)
    middle = int(np.argsort(rho.values, kind="stable")[(rho.size - 1) // 2])
    query = _known(str(data["query"].values[middle]) if query is None else query, data["query"].values, "query")
    one = data.sel(seed=seed, query=query).isel(top=top)
    order = np.argsort(-one["similarity"].values, kind="stable")
    one = one.isel(shot=order)
    x = np.arange(len(order))
    made = go.Figure()
    for control in [c for c in data["control"].values.tolist() if c != "text"]:
        _attended(made, one, x, control, called(control, reading.about))
    item = [style.safe(t, 16) for t in (one["shot_text"] if "shot_text" in one else one["shot_item"]).values]
    who, what = (
        f"block {int(one['top_layer'])}, head {int(one['top_head'])}",
        _role(str(one["top_target"].item()), reading.about),
    )
    made.update_xaxes(
        tickvals=x, ticktext=[f"{s:.2f}" for s in one["similarity"].values], tickangle=-60, tickfont_size=10, zeroline=False, showgrid=False,
        title="shots by the encoder's cosine with the query, nearest first", title_standoff=6, range=[-0.6, len(x) - 0.4],
    )  # fmt: skip
    made.update_yaxes(title="attention, times even", rangemode="tozero", zeroline=True)
    of_noise = ", ".join(
        f"{float(one['top_rho'].sel(control=c)):+.2f} under {whose(c, reading.about)}"
        for c in one["control"].values.tolist()
    )
    caption = (
        f"Seed {seed}, query {style.shortened(query, 30)} (where no query is asked for, the one whose ρ is the seed's median); {who}, from "
        f"{ROWS[str(one['top_row'].item())]} to the shots' {what}s. ρ = {of_noise}. One case, no statistics."
    )
    drawn = _gallery(one, item)
    height = 330 + 130 * bool(drawn)
    style.finish(made, f"One query: where {who} looks", caption, height, legend_rows=1)
    if drawn:
        share = 130 / height
        made.update_yaxes(domain=[0, 1 - share - 0.09])
        made.update_layout(legend_y=1 - share - 0.085)
        _draw(made, drawn, share)
    return made


def _attended(made: go.Figure, one: xr.Dataset, x: np.ndarray, control: str, words: str) -> None:
    go = style.graph_objects()
    value = one["top_lift"].sel(control=control).values
    colour, shape = LOOKS.get(control, style.look(control))
    place = one["shot"].values
    texts = (one["shot_text"] if "shot_text" in one else one["shot_item"]).values
    told = [
        f"{style.safe(t, 50)}<br>label {style.safe(lab, 12)}, cosine {s:.2f}, shot {p + 1} of {len(x)}"
        for t, lab, s, p in zip(texts, one["shot_label"].values, one["similarity"].values, place)
    ]
    hover = {
        "customdata": told,
        "hovertemplate": f"<b>{words}</b><br>%{{customdata}}<br>%{{y:.2f}} times even<extra></extra>",
    }
    if control == "real":
        made.add_trace(go.Bar(x=x, y=value, name=words, marker={"color": colour, "opacity": 0.85}, width=0.62, **hover))
        return
    marker = {"color": colour, "symbol": shape, "size": 8, "line": {"width": 1, "color": colour}}
    made.add_trace(go.Scatter(x=x, y=value, name=words, mode="markers", marker=marker, **hover))


def _gallery(one: xr.Dataset, names: list[str]) -> list[tuple[str, str, str]]:
    """(picture, title, under) of the query, its nearest and farthest shots and those that are attended most; empty where nothing
    can be drawn."""
    if "query_text" not in one:
        return []
    value = np.nan_to_num(one["top_lift"].sel(control="real").values, nan=-1.0)
    most = np.argsort(-value, kind="stable")[:2].tolist()
    chosen = dict.fromkeys([0, 1, *most, len(value) // 2, len(value) - 1])
    out = [(drawing(str(one["query_text"].item()), 130, 90), "the query", "")]
    for i in list(chosen)[:5]:
        said = (
            "nearest"
            if i == 0
            else "farthest"
            if i == len(value) - 1
            else "attended most"
            if i == most[0]
            else f"{i + 1}. nearest"
        )
        said = "nearest, attended most" if i == most[0] == 0 else said
        under = f"{float(one['similarity'].values[i]):.2f}: {value[i]:.2g} times, {style.safe(one['shot_label'].values[i], 8)}"
        out.append((drawing(str(one["shot_text"].values[i]), 130, 90), said, under))
    return [(p, a, b) for p, a, b in out if p] if out[0][0] and len(out) > 1 else []


def _draw(made: go.Figure, drawn: list[tuple[str, str, str]], share: float) -> None:
    wide = 1 / 6
    for i, (picture, over, under) in enumerate(drawn):
        left = i * wide
        made.add_shape(
            type="rect", xref="paper", yref="paper", x0=left + 0.004, x1=left + wide - 0.004, y0=1 - 0.78 * share, y1=1 - 0.1 * share,
            fillcolor=CARD, line={"width": 0}, layer="below",
        )  # fmt: skip
        made.add_layout_image(
            source=picture, xref="paper", yref="paper", x=left + wide / 2, y=1 - 0.44 * share, sizex=wide - 0.016, sizey=0.62 * share,
            xanchor="center", yanchor="middle", sizing="contain",
        )  # fmt: skip
        for words, y, bold in ((over, 1 - 0.09 * share, True), (under, 1 - 0.8 * share, False)):
            made.add_annotation(
                text=f"<b>{words}</b>" if bold else words, xref="paper", yref="paper", x=left + wide / 2, y=y, showarrow=False,
                xanchor="center", yanchor="bottom" if bold else "top", font_size=10,
            )  # fmt: skip


# ------------------------------------------------------------------------------------------------ places


def places(reading: Reading, top: int = 0) -> go.Figure:
    """The attention of one of the top heads to each place in the prompt, first shot to last, mean of seeds and queries."""
    go = style.graph_objects()
    data = reading.data
    at = {n: data[f"top_{n}"].values[top] for n in ("row", "target", "layer", "head")}
    made = go.Figure()
    for control in data["control"].values.tolist():
        colour, shape = LOOKS.get(control, style.look(control))
        made.add_trace(
            go.Scatter(
                x=data["shot"].values + 1, y=data["by_shot"].sel(control=control, **at).values, name=called(control, reading.about), mode="lines+markers",
                line={"color": colour, "width": 1.5}, marker={"color": colour, "symbol": shape, "size": 7},
                hovertemplate=f"<b>{called(control, reading.about)}</b><br>shot %{{x}}: %{{y:.2f}} times even<extra></extra>",
            )
        )  # fmt: skip
    made.add_hline(y=1, line={"color": style.LINE, "dash": "dot", "width": 1.2})
    made.update_xaxes(
        title=f"place of the shot (1 first, {data.sizes['shot']} next to the query)", zeroline=False, title_standoff=6
    )
    made.update_yaxes(title="attention, times even", rangemode="tozero")
    caption = (
        f"n = {reading.about['n']}; means, without intervals. Block {at['layer']}, head {at['head']}, from {ROWS[str(at['row'])]} to the shots' "
        f"{_role(str(at['target']), reading.about)}s. Dotted: even attention. What a place has for every query, whatever its shot: a head's taste for places."
    )
    return style.finish(
        made, "Does it matter where a shot stands?", caption, 300, legend_rows=-(-data.sizes["control"] // 2)
    )


def figures(reading: Reading) -> dict[str, go.Figure]:
    """Every figure of the reading, the main one first."""
    if "rollout" in reading.data:
        return {"rollout": parts(reading)}
    first = str(reading.data["top_target"].values[0])
    found = {"overview": figure(reading), "parts": parts(reading), "heads": heads(reading), "example": example(reading)}
    others = [str(t) for t in reading.data["target"].values if str(t) != first]
    found |= {f"overview, {t}": figure(reading, target=t) for t in others}
    if "shift" in reading.data:
        panels: list[tuple[str, dict[str, Any]]] = [("sink", {"control": "real"}), ("shift", {"part": "vector"})]
        found["sink and shift"] = heads_map(
            reading, panels, "The sink, and what real vectors draw over " + reading.about["null"]
        )
    from icrl_lab.plots import heads as of_heads  # it is made of this file's parts

    layer, head = int(reading.data["top_layer"].values[0]), int(reading.data["top_head"].values[0])
    found |= {"one head": of_heads.spans(reading, layer, head), "arcs": of_heads.arcs(reading)}
    return found | {"places": places(reading)}
