"""Figures of patching: what comes back with a restored state, and what an edit takes away, each beside its placebo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import DataError, nearest
from icrl_lab.plots import style
from icrl_lab.plots.words import sampled, shown_group
from icrl_lab.stats.words import estimate, tested

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr

    from icrl_lab.values import Reading

MIDDLE = "#E4E4E4"
SCALE = [[0, style.VERMILLION], [0.5, MIDDLE], [1, style.BLUE]]
REACH = 1.5  # shares beyond this have the colour of this
WITHOUT = {"answer": "answer", "query": "query", "onwards": "all later tokens"}
EDIT = {"swap": "swapped", "mean": "mean vector", "zero": "zero", "noise": "noise", "other": "another item's"}
UNTESTED = "rings: patched exactly, chosen by their gradient"


def figure(reading: Reading, **options: Any) -> go.Figure:
    """The main figure of a reading's kind: restored shares by depth and position, heads, cuts or inputs, beside the placebo."""
    return _MAIN[_kind(reading)](reading, **options)


def figures(reading: Reading) -> dict[str, go.Figure]:
    """All figures of a reading, the main one first."""
    kind, data = _kind(reading), reading.data
    found = {kind: figure(reading)}
    if "agreement" in data:
        found["gradient"] = agreement(reading)
    if "fine" in data:
        found["parts"] = parts(reading)
    if kind in ("cuts", "inputs"):
        dim = data["beyond"].dims[2]
        for value in data[dim].values[1:].tolist():
            found[f"{kind}, {dim} {value}"] = figure(reading, at=value)
        found["error"] = figure(reading, measure="harm")
    return found


def _kind(reading: Reading) -> str:
    kind = str(reading.about.get("kind", "restore"))
    if kind not in _MAIN:
        raise DataError(f"there is no figure of patching for readings of the kind {kind!r}; {nearest(kind, _MAIN)}")
    return kind


def _panels(rows: int, titles: Sequence[str], columns: int = 1, gap: float = 0.1) -> go.Figure:
    style.graph_objects()
    from plotly.subplots import make_subplots

    return make_subplots(
        rows, columns, subplot_titles=titles, shared_yaxes=columns > 1, horizontal_spacing=0.03, vertical_spacing=gap
    )


def _heat(made: go.Figure, z: Any, x: Any, y: Any, reach: float, hover: Any, row: int, column: int, bar: bool, **options: Any) -> None:  # fmt: skip
    """One heat map of shares, blue above zero and vermillion below; empty where nothing was measured."""
    trace = style.graph_objects().Heatmap(
        z=z, x=x, y=y, zmin=-reach, zmax=reach, zmid=0, colorscale=SCALE, customdata=hover, xgap=1, ygap=1,
        hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, showscale=bar,
        colorbar={"title": {"text": "share", "side": "top"}, "thickness": 11, "x": 1.01, "outlinewidth": 0}, **options,
    )  # fmt: skip
    made.add_trace(trace, row=row, col=column)


def _sure(data: xr.Dataset, name: str) -> np.ndarray:
    """Cells that restore more than their placebo; of the placebo, those that restore anything."""
    name = "beyond" if name == "share" else name
    return (data[f"{name}_q"].values < 0.05) & (data[name].values > 0)


def _rings(made: go.Figure, mask: Any, x: Any, y: Any, size: float, row: int, column: int) -> None:
    """A ring around each cell of a mask (rows, columns)."""
    at = np.argwhere(np.asarray(mask, bool))
    ring = {"symbol": "circle-open", "size": size, "color": style.ORANGE, "line": {"width": 2, "color": style.ORANGE}}
    trace = style.graph_objects().Scatter(
        x=[x[j] for _, j in at],
        y=[y[i] for i, _ in at],
        mode="markers",
        marker=ring,
        hoverinfo="skip",
        showlegend=False,
    )
    made.add_trace(trace, row=row, col=column)


def _words(data: xr.Dataset, name: str, effect: str | None = None, q: str | None = None) -> np.ndarray:
    """What is said of each cell when it is pointed at."""
    dims = [str(d) for d in data[name].dims]
    out = np.empty(data[name].shape, object)

    def told(name: str, at: tuple[int, ...], form: str) -> str:
        return estimate(*(float(data[f"{name}{end}"].values[at]) for end in ("", "_low", "_high")), form=form)

    for at in np.ndindex(out.shape):
        where = ", ".join(
            f"{'' if d in ('group', 'part') else d + ' '}{style.safe(shown_group(str(data[d].values[i])), 40)}"
            for d, i in zip(dims, at)
        )
        text = f"<b>{where}</b><br>share {told(name, at, '.2f')}"
        if q is not None and np.isfinite(data[q].values[at]):
            text += f"<br>{tested(float(data[q].values[at]))}"
        if effect is not None:
            text += f"<br>mean size {told(effect, at, '.3g')} {style.safe(data[effect].attrs['units'], 40)}"
        out[at] = text
    return out


def _reach(*values: np.ndarray) -> float:
    most = max((float(np.nanmax(np.abs(v))) for v in values if np.isfinite(v).any()), default=1.0)
    return min(max(most, 0.05), REACH)


def _left(made: go.Figure) -> None:
    """Panel titles at the left of their panel."""
    axes = sorted({trace.xaxis or "x" for trace in made.data}, key=lambda name: int(name[1:] or 1))
    for note, axis in zip(made.layout.annotations, axes):
        note.update(x=made.layout["xaxis" + axis[1:]].domain[0], xanchor="left", font_size=13)


def _off(reading: Reading) -> str:
    size, units = float(reading.data["total_effect"]), reading.data["total"].attrs["units"]
    return f"n = {reading.about['n']}; vectors {reading.about['corrupted']}, which moves the outcome by {size:.3g} {units} on average"


# ------------------------------------------------------------------------------------------------ restored states


def restored(reading: Reading) -> go.Figure:
    """Restored share by depth and group of positions, with clean states and with random directions of the same length."""
    data = reading.data
    depth, group = (
        [str(d) for d in data["depth"].values],
        [style.safe(shown_group(g), 20) for g in data["group"].values],
    )
    reach = _reach(data["share"].values, data["placebo"].values)
    made = _panels(1, ("clean states", "placebo: random directions"), 2)
    for column, (name, effect) in enumerate((("share", "effect"), ("placebo", "placebo_effect")), 1):
        text = {"texttemplate": "%{z:.2f}", "textfont": {"size": 11}} if len(depth) <= 9 else {}
        words = _words(data, name, effect, "beyond_q" if column == 1 else "placebo_q")
        _heat(made, data[name].values, depth, group, reach, words, 1, column, column == 2, **text)
        _rings(made, _sure(data, name), depth, group, 28 if text else 9, 1, column)
    made.update_yaxes(autorange="reversed", type="category", showgrid=False, zeroline=False)
    made.update_xaxes(type="category", title="depth: blocks passed", title_standoff=6, showgrid=False, zeroline=False)
    caption = (
        f"{_off(reading)}. Share of that difference that comes back when states of the clean run are put in (1: all). Rings: "
        "more than the placebo (right: more than nothing), corrected p < 0.05, differences paired anew with other queries'."
    )
    style.finish(made, "Where the answer's information stands", caption, 40 * len(group) + 30, legend_rows=1)
    _left(made)
    return made


def parts(reading: Reading) -> go.Figure:
    """The gradient's share of every part of the prompt at every depth; what was patched exactly is ringed."""
    data = reading.data
    order = np.argsort([0 if p.endswith("slot") and p.startswith("shot") else 1 if p.startswith("shot") else 2 for p in data["part"].values.tolist()], kind="stable")  # fmt: skip
    data = data.isel(part=order)
    names, place = [style.safe(shown_group(p), 20) for p in data["part"].values], data["place"].values.tolist()
    words = _words(data, "fine", "fine_effect")
    exact = np.isfinite(data["verified"].values) if "verified" in data else np.zeros(words.shape, bool)
    for i, j in np.argwhere(exact):
        value, low, high = (float(data[n][i, j]) for n in ("verified", "verified_low", "verified_high"))
        words[i, j] += f"<br>patched exactly: {estimate(value, low, high, form='.2f')}"
    made = _panels(1, ())
    _heat(made, data["fine"].values, place, names, _reach(data["fine"].values), words, 1, 1, True)
    _rings(made, exact, place, names, 11, 1, 1)
    tall = 13 if len(names) > 24 else 18
    made.update_yaxes(
        autorange="reversed", type="category", tickfont_size=min(tall - 3, 12), dtick=1, showgrid=False, zeroline=False
    )
    made.update_xaxes(title="depth: blocks passed", title_standoff=6, showgrid=False, zeroline=False)
    made.update_xaxes(tick0=0, dtick=-(-len(place) // 16), range=[-0.5, len(place) - 0.5])
    caption = f"{_off(reading)}. Share that would come back, part by part, if the outcome were linear in the states; {UNTESTED}."
    return style.finish(made, "Every part at every depth, by the gradient", caption, tall * len(names) + 20)


def agreement(reading: Reading) -> go.Figure:
    """The gradient's share of each cell against that of exact patching, with the line where they agree."""
    go, data = style.graph_objects(), reading.data
    made = go.Figure()
    fine = np.isfinite(data["share"].values)
    exact, linear = data["share"].values, data["gradient"].values
    ends = np.concatenate([exact[fine], linear[fine]])
    pad = 0.06 * (np.ptp(ends) or 1.0)
    span = [float(ends.min()) - pad, float(ends.max()) + pad]
    made.add_trace(go.Scatter(x=span, y=span, mode="lines", line={"color": style.LINE, "dash": "dash", "width": 1.4}, hoverinfo="skip", showlegend=False))  # fmt: skip
    words = _words(data, "share", "effect")
    groups = data["group"].values.tolist()
    for i, group in enumerate(groups):
        colour, shape = style.COLOURS[i % 7], style.SHAPES[i % 7]
        made.add_trace(
            go.Scatter(
                x=exact[i][fine[i]], y=linear[i][fine[i]], mode="markers", name=style.safe(shown_group(group), 30),
                marker={"color": colour, "symbol": shape, "size": 8, "opacity": 0.85}, customdata=words[i][fine[i]],
                hovertemplate="%{customdata}<br>by the gradient %{y:.2f}<extra></extra>",
            )
        )  # fmt: skip
    made.update_xaxes(title="restored share, patched exactly", range=span, title_standoff=6, constrain="domain")
    made.update_yaxes(title="restored share, by the gradient", range=span)
    r = estimate(*(float(data[f"agreement{end}"]) for end in ("", "_low", "_high")), form=".2f")
    caption = (
        f"n = {reading.about['n']}; a point is a cell. On the dashed line the gradient (clean less corrupted state, times the gradient "
        f"of the corrupted run) says what patching does; r over the cells of a query {r}, 95 % interval over {sampled(reading.about)}."
    )
    return style.finish(made, "The gradient against exact patching", caption, 440, legend_rows=-(-len(groups) // 2))


def heads(reading: Reading) -> go.Figure:
    """Restored share by block and head at each group: patched exactly beside the placebo, or by the gradient."""
    data = reading.data
    panels: list[tuple[str, str, str, str]] = []  # group, array, size, title
    for group in data["group"].values.tolist():
        tested = bool(np.isfinite(data["share_q"].sel(group=group).values).any())
        first = ("share", "effect", "clean outputs") if tested else ("gradient", "gradient_effect", "by the gradient")
        named = shown_group(group)
        panels += [(group, first[0], first[1], f"{named}: {first[2]}")]
        panels += [(group, "placebo", "placebo_effect", f"{named}: placebo, random directions")] if tested else []
    block, head = data["layer"].values.tolist(), data["head"].values.tolist()
    tall = min(max(10, 150 // len(head)), 22) * len(head) + 40
    room = 48  # pixels between panels, for ticks and the next title
    made = _panels(len(panels), [style.safe(p[3], 60) for p in panels], gap=room / (tall * len(panels)))
    reach = _reach(*(data[name].sel(group=group).values for group, name, _, _ in panels))
    for row, (group, name, size, _) in enumerate(panels, 1):
        own = data.sel(group=group)
        q = {"share": "beyond_q", "placebo": "placebo_q"}.get(name)
        mask = _sure(own, name) if q else np.isfinite(own["share"].values)
        words = _words(own, name, size, q)
        for i, j in np.argwhere(mask if not q else np.zeros_like(mask)):
            words[i, j] += "<br>patched exactly: {:.2f} [{:.2f}, {:.2f}]".format(*(float(own[n][i, j]) for n in ("share", "share_low", "share_high")))  # fmt: skip
        _heat(made, own[name].values.T, block, head, reach, words.T, row, 1, row == 1)
        _rings(made, mask.T, block, head, 10, row, 1)
    made.update_yaxes(title="head", dtick=max(1, len(head) // 8), showgrid=False, zeroline=False)
    made.update_xaxes(
        showgrid=False, zeroline=False, tick0=0, dtick=-(-len(block) // 15), range=[-0.5, len(block) - 0.5]
    )
    made.update_xaxes(title="block", title_standoff=6, row=len(panels), col=1)
    rest = f"; where the gradient speaks, {UNTESTED}" if any(p[1] == "gradient" for p in panels) else ""
    caption = (
        f"{_off(reading)}. Share of that difference that comes back when one head's output of the clean run is put in. Rings: more "
        f"than the placebo (placebo: than nothing), corrected p < 0.05{rest}."
    )
    style.finish(made, "Which heads give the answer back", caption, tall * len(panels), legend_rows=1)
    _left(made)
    return made


# ------------------------------------------------------------------------------------------------ edits


def cuts(reading: Reading, at: str | None = None, measure: str = "effect") -> go.Figure:
    """What the outcome loses when edges are cut; `at` is a window of blocks (None: the first), `measure` "effect" or "harm"."""
    data = reading.data
    at = data["window"].values.tolist()[0] if at is None else at
    own = data.sel(window=at)
    rows = [
        (f"{WITHOUT.get(row, row)} without {column}", own.sel(rows=row, columns=column))
        for column in data["columns"].values.tolist()
        for row in data["rows"].values.tolist()
    ]
    title = "What is lost when attention is cut" if measure == "effect" else "What a cut adds to the error"
    words = f"Cut in {at}: who does not see what; placebo: as many other positions are cut"
    return _bars(reading, rows, measure, title, words)


def inputs(reading: Reading, at: int | None = None, measure: str = "effect") -> go.Figure:
    """What the outcome loses with other vectors in slots; `at` is a depth (None: the first), `measure` "effect" or "harm"."""
    data = reading.data
    at = data["depth"].values.tolist()[0] if at is None else at
    own = data.sel(depth=at)
    rows = [
        (f"{target}: {EDIT.get(kind, kind)}", own.sel(edit=kind, target=target))
        for target in data["target"].values.tolist()
        for kind in data["edit"].values.tolist()
    ]
    title = "What is lost with other vectors" if measure == "effect" else "What other vectors add to the error"
    where = "in the slots" if at == 0 else f"at depth {at}"
    words = f"Vectors changed {where}; placebo: moved as far in random directions"
    return _bars(reading, rows, measure, title, words)


def _bars(reading: Reading, rows: list[tuple[str, xr.Dataset]], measure: str, title: str, words: str) -> go.Figure:
    """A pair of bars a row: the edit's and its placebo's, with intervals."""
    go, data = style.graph_objects(), reading.data
    placebo = "placebo" if measure == "effect" else "placebo_harm"
    units = style.safe(data[measure].attrs["units"], 40)
    sure = [float(own["beyond_q"]) < 0.05 for _, own in rows]
    names = [style.safe(name, 40) + (" <b>*</b>" if star else "") for (name, _), star in zip(rows, sure)]
    looks = (("the edit", measure, style.BLUE, ""), ("its placebo", placebo, style.ORANGE, "/"))
    made = go.Figure()
    for label, name, colour, shape in looks:
        value, low, high = (np.array([float(own[n]) for _, own in rows]) for n in (name, f"{name}_low", f"{name}_high"))
        told = [
            f"{estimate(*v)} {units}<br>beyond the placebo: {tested(float(own['beyond_q']))}"
            for v, (_, own) in zip(zip(value, low, high), rows)
        ]
        made.add_trace(
            go.Bar(
                x=value, y=names, orientation="h", name=label,
                marker={"color": colour, "opacity": 0.85, "pattern": {"shape": shape, "fgcolor": MIDDLE, "size": 5, "fillmode": "overlay"}},
                error_x={"array": high - value, "arrayminus": value - low, "color": style.GREY, "thickness": 1.4, "width": 3},
                customdata=told,
                hovertemplate=f"<b>%{{y}}</b>, {label}<br>%{{customdata}}<extra></extra>",
            )
        )  # fmt: skip
    span, cut_off = _span([own for _, own in rows], (measure, placebo))
    made.update_layout(barmode="group", bargap=0.28, bargroupgap=0.06)
    made.update_yaxes(autorange="reversed", type="category", showgrid=False, zeroline=False)
    made.update_xaxes(
        range=span, title=f"{data[measure].attrs['long_name']} [{units}]", title_standoff=6, zeroline=True
    )
    caption = (
        f"n = {reading.about['n']}. {words}. Bars: 95 % intervals over {sampled(reading.about)}{', some longer than the frame' if cut_off else ''}. "
        "*: changes the outcome more than the placebo, corrected p < 0.05 (signs flipped over queries)."
    )
    return style.finish(made, title, caption, 34 * len(rows) + 20, legend_rows=1)


def _span(rows: Sequence[xr.Dataset], names: Sequence[str]) -> tuple[list[float], bool]:
    """All estimates, and intervals as far as they do not crush them; whether one is longer."""
    value, low, high = (
        np.array([[float(own[n + end]) for n in names] for own in rows]) for end in ("", "_low", "_high")
    )
    first, last = min(0.0, value.min()), max(0.0, value.max())
    reach = 1.2 * (last - first) or 1.0
    start, stop = max(first - reach, min(low.min(), first)), min(last + reach, max(high.max(), last))
    pad = 0.03 * (stop - start)
    return [start - pad if start < 0 else 0.0, stop + pad], bool(
        (low < start - 1e-9).any() or (high > stop + 1e-9).any()
    )


_MAIN = {"restore": restored, "heads": heads, "cuts": cuts, "inputs": inputs}
