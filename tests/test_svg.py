"""Plain pictures: where plotly would put a mark, in its colour, with nothing of the data as markup."""

import ast
import itertools
import re
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from plotly.subplots import make_subplots

from icrl_lab.plots import still, style
from icrl_lab.plots.svg import svg
from icrl_lab.plots.svg_marks import scale


def numbers(page: str, tag: str, name: str) -> np.ndarray:
    return np.array([float(m) for m in re.findall(rf"<{tag} [^>]*?\b{name}=\"([-0-9.]+)\"", page)])


def discs(page: str, colour: str = '[^"]+') -> np.ndarray:
    """(n, 2) centres of the discs of a colour: lines of no length with round ends."""
    found = "".join(re.findall(r'<g stroke-width="[^"]+" stroke-linecap="round">(.*?)</g>', page))
    paths = re.findall(rf'<path d="([^"]+)" stroke="{colour}"/>', found)
    return np.array([pair for d in paths for pair in re.findall(r"M([-0-9.]+?) ?(-?[0-9.]+)h0", d)], float)


def test_points_keep_their_order_and_spacing():
    x, y = np.array([0.0, 1.0, 3.0, 7.0]), np.array([5.0, -2.0, 0.0, 1.0])
    page = svg(go.Figure(go.Scatter(x=x, y=y, mode="markers", marker={"color": "#0072B2"})))
    cx, cy = discs(page, "#0072B2").T
    assert np.allclose(np.diff(cx) / np.diff(x), np.diff(cx)[0] / np.diff(x)[0], rtol=0.01)
    assert np.corrcoef(cy, y)[0, 1] < -0.9999  # up is a smaller pixel
    assert len(cx) == 4


def test_a_reversed_axis_and_a_named_axis():
    figure = go.Figure(go.Bar(x=[3, 1, 2], y=["a", "b", "c"], orientation="h"))
    figure.update_yaxes(autorange="reversed")
    page = svg(figure)
    assert np.allclose(numbers(page, "rect", "width") / numbers(page, "rect", "width")[1], [3, 1, 2], rtol=0.02)
    assert (np.diff(numbers(page, "rect", "y")) > 0).all()


def test_a_heat_map_is_centred_where_it_says():
    z = np.array([[-1.0, 0.0, 1.0], [0.5, np.nan, -0.5]])
    scale = [[0, "rgb(0,0,255)"], [0.5, "rgb(200,200,200)"], [1, "rgb(255,0,0)"]]
    page = svg(go.Figure(go.Heatmap(z=z, zmid=0, colorscale=scale, showscale=False)))
    cells = {
        fill: re.findall(r"M([-0-9.]+) ([-0-9.]+)h", d)
        for d, fill in re.findall(r'<path d="([^"]+z)" fill="([^"]+)"', page)
    }
    assert sum(map(len, cells.values())) == 5
    low, middle, high = (cells[c][0] for c in ("#0000ff", "#c8c8c8", "#ff0000"))
    assert float(low[0]) < float(middle[0]) < float(high[0]) and low[1] == middle[1] == high[1]


def test_colours_of_a_scale_may_be_written_in_different_ways():
    """Hex digits, rgb and rgba in one scale: each is met at its place, and half way between two lies their mean."""
    stops = [[0, "#D55E00"], [0.5, "rgba(200,200,200,0.35)"], [0.75, "rgb(0, 0, 0)"], [1, "#0072B2"]]
    found = [scale(stops, share) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == ["#d55e00", "rgba(206,147,100,0.68)", "rgba(200,200,200,0.35)", "#000000", "#0072b2"]
    assert scale([[0, "#fff"], [1, "#FF000080"]], 0.0) == "#ffffff"
    assert scale([[0, "no colour"], [1, "url(x)"]], 0.5) == "#666666"


def test_intervals_are_drawn_and_missing_values_are_not():
    figure = go.Figure(
        go.Scatter(
            x=[1, 2, 3], y=[1, None, 2], mode="markers", error_y={"array": [0.5, 1, 0.25], "arrayminus": [0.25, 1, 0.5]}
        )
    )
    page = svg(figure)
    assert len(discs(page)) == 2
    bars = [line for line in re.findall(r"<line [^>]*>", page) if 'stroke="#666"' in line]
    assert len(bars) >= 2


@pytest.mark.parametrize("place", ["name", "title", "tick", "text", "colour"])
def test_nothing_of_the_data_is_markup(place):
    nasty = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
    figure = go.Figure(go.Scatter(x=[1, 2, 3], y=[1, 2, 3], mode="markers+text", text=["a", "b", "c"]))
    if place == "title":
        figure.update_layout(title=nasty)
    elif place == "tick":
        figure.update_xaxes(tickvals=[1, 2], ticktext=[nasty, nasty])
    elif place == "text":
        figure.data[0].text = [nasty] * 3
    elif place == "name":
        figure.data[0].name = nasty
    else:
        figure = go.Figure(go.Scatter(x=[1, 2, 3], y=[nasty, "b", "c"], mode="markers"))
    page = svg(figure)
    assert "<script" not in page and "<img" not in page and "onerror" not in re.sub(r">[^<]*<", "><", page)


def points(page: str, tag: str) -> list[np.ndarray]:
    """Corners of every polyline or polygon."""
    return [
        np.array([pair.split(",") for pair in found.split()], float)
        for found in re.findall(rf'<{tag} points="([^"]+)"', page)
    ]


def test_a_line_stops_where_a_value_is_missing_and_goes_on_behind_it():
    x, y = np.arange(7.0), [1, 2, 4, None, 3, 1, 2]
    apart = points(svg(go.Figure(go.Scatter(x=x, y=y, mode="lines"))), "polyline")
    assert [len(run) for run in apart] == [3, 3]
    joined = points(svg(go.Figure(go.Scatter(x=x, y=y, mode="lines", connectgaps=True))), "polyline")
    assert [len(run) for run in joined] == [6]
    assert np.allclose(np.vstack(apart), joined[0])


def test_marks_outside_a_range_are_cut_at_their_panel():
    figure = make_subplots(1, 2)
    figure.add_trace(go.Scatter(x=[0, 1, 50], y=[0, 1, 90], mode="lines"), 1, 1)
    figure.add_trace(go.Scatter(x=[0, 1, 2], y=[0, 1, 2], mode="lines"), 1, 2)
    figure.update_xaxes(range=[0, 1], col=1).update_yaxes(range=[0, 1], col=1)
    panels = re.findall(r'<svg x="([-0-9.]+)" y="[^"]*" width="([-0-9.]+)"[^>]*overflow="hidden">', svg(figure))
    (left, wide), (right, _) = (tuple(map(float, panel)) for panel in panels)
    assert left + wide < right < 700


def test_axes_that_match_show_one_range():
    figure = make_subplots(1, 2, shared_yaxes=True)
    figure.add_trace(go.Scatter(x=[1, 2, 3], y=[0, 5, 10], mode="markers", marker={"color": "#111111"}), 1, 1)
    figure.add_trace(go.Scatter(x=[1, 2, 3], y=[5, 200, -40], mode="markers", marker={"color": "#222222"}), 1, 2)
    page = svg(figure)
    assert discs(page, "#111111")[1, 1] == discs(page, "#222222")[0, 1]  # 5 lies at one height in both
    assert page.count(">200<") == 1  # and the ticks stand at the first alone


def test_every_named_trace_is_in_the_legend_and_every_colour_scale_has_its_ends():
    figure = go.Figure()
    figure.add_scatter(x=[1, 2], y=[1, 2], name="real <b>&</b>", mode="markers")
    figure.add_scatter(x=[1, 2], y=[2, 1], name="noise", mode="lines")
    figure.add_scatter(x=[1, 2], y=[2, 2], name="unnamed one", showlegend=False)
    figure.add_heatmap(z=[[1, 2, 3.5], [0, 1, 2]], colorbar={"title": "share"})
    page = svg(figure)
    assert ">real &amp;<" in page and ">noise<" in page and "unnamed one" not in page
    assert ">0<" in page and ">3.5 share<" in page


@pytest.mark.parametrize("mode", ["group", "stack", "overlay"])
def test_bars_of_several_traces_stand_as_the_figure_says(mode):
    figure = go.Figure([go.Bar(x=["a", "b", "c"], y=[1, 2, 3]), go.Bar(x=["a", "b", "c"], y=[2, 1, 4])])
    figure.update_layout(barmode=mode, showlegend=False)
    page = svg(figure)
    x, y, tall = (numbers(page, "rect", name).reshape(2, 3) for name in ("x", "y", "height"))
    if mode == "group":
        wide = numbers(page, "rect", "width").reshape(2, 3)
        assert np.allclose(x[0] + wide[0], x[1], atol=0.2)
    else:
        assert np.allclose(x[0], x[1])
    foot = y[0] if mode == "stack" else y[0] + tall[0]
    assert np.allclose(y[1] + tall[1], foot, atol=0.2)


@pytest.mark.parametrize(
    "symbol", ["square", "diamond", "triangle-up", "x", "cross", "circle-open", "square-open", "star"]
)
def test_every_symbol_is_drawn_once_a_point_around_its_point(symbol):
    x, y = [0.0, 1.0, 5.0], [2.0, 0.0, 1.0]
    figure = go.Figure(go.Scatter(x=x, y=y, mode="markers", marker={"symbol": symbol, "color": "#0072B2", "size": 10}))
    (d,) = re.findall(r'<path d="([^"]+)" (?:fill|stroke)="#0072B2"/>', svg(figure))
    plain = svg(figure.update_traces(marker_symbol="circle"))
    starts = np.array(list(dict.fromkeys(re.findall(r"M([-0-9.]+?) ?(-?[0-9.]+)[mh]", d))), float)
    assert np.allclose(starts, discs(plain, "#0072B2"))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_bars_with_a_place_of_their_own_stand_there(flat, turned):
    """As what a shot adds by three methods: side by side in the row of the shot, the first one nearest to where the axis begins."""
    wide, letters = 0.8 / 3, ("y", "x") if flat else ("x", "y")
    figure = go.Figure()
    for i in range(3):
        values = dict(zip(letters, ([0, 1], [1, 2])))
        figure.add_bar(**values, orientation="h" if flat else "v", width=wide, offset=-0.4 + wide * i)
    span = [1.5, -0.5] if turned else [-0.5, 1.5]
    page = svg((figure.update_yaxes if flat else figure.update_xaxes)(range=span))
    start, size = (numbers(page, "rect", name).reshape(3, 2) for name in (("y", "height") if flat else ("x", "width")))
    middle = start + size / 2
    place = size[0, 0] / wide * (1 if turned == flat else -1)  # pixels from a row to the next
    assert np.allclose(np.diff(middle, axis=0), wide * place, atol=0.2)
    assert np.allclose(np.diff(middle, axis=1), place, atol=0.2)


@pytest.mark.parametrize("shape", ["/", "\\", "x", "-", "|", "+", "."])
def test_a_pattern_lies_on_its_bars_and_on_its_sign_in_the_legend(shape):
    """Without names, which two pictures of a page could share."""
    pattern = {"shape": ["", shape], "fgcolor": "#123456"}
    figure = go.Figure(
        [go.Bar(y=["a", "b"], x=[3, 1], orientation="h", marker={"color": "#0072B2", "pattern": pattern})]
    )
    page = svg(figure)
    bars, place = (
        re.findall(r"<rect ([^>]*?) fill", page),
        r'<svg (x="[^"]+" y="[^"]+" width="[^"]+" height="[^"]+") overflow',
    )
    assert re.findall(place, page) == bars[1:] and 'stroke="#123456"' in page and " id=" not in page
    figure.update_traces(marker_pattern_shape=shape, name="one").update_layout(showlegend=True)
    assert re.findall(place, svg(figure))[0] == 'x="3.0" y="-5.0" width="14.0" height="10.0"'
    assert "#123456" not in svg(figure.update_traces(marker_pattern_shape=""))


def test_words_on_a_pattern_have_the_bars_colour_behind_them():
    figure = go.Figure(
        go.Bar(y=["a"], x=[3], text=["74%"], textposition="inside", orientation="h", marker_color="#0072B2")
    )
    behind = re.compile(r'<text [^>]*stroke="#0072B2" stroke-width="4" paint-order="stroke">74%<')
    assert ">74%<" in svg(figure) and not behind.search(svg(figure))
    assert behind.search(svg(figure.update_traces(marker_pattern_shape="+")))


@pytest.mark.parametrize("cells,rows", [(2, ["0.28", "[-1.00, 1.00]"]), (20, ["0.28 [-1.00, 1.00]"])])
def test_words_of_a_cell_stand_in_lines_where_there_is_room(cells, rows):
    words = [["0.28<br>[-1.00, 1.00]"]] * cells
    page = svg(go.Figure(go.Heatmap(z=[[0.28]] * cells, text=words, texttemplate="%{text}", showscale=False)))
    found = re.findall(r'<text x="([^"]+)" y="([^"]+)">([^<]+)</text>', page.split('text-anchor="middle">', 1)[1])
    assert [word for *_, word in found[: len(rows)]] == rows
    assert all(abs(float(b[1]) - float(a[1])) > 10 for a, b in itertools.pairwise(found[: len(rows)]))


def is_symbol(word: str) -> bool:
    try:
        return go.scatter.Marker(symbol=word).symbol == word
    except ValueError:
        return False


def used_symbols() -> list[str]:
    """Every symbol of plotly's that figures of the lab name, and the open shape of each that has one."""
    files = [path for path in Path(still.__file__).parent.glob("*.py") if not path.name.startswith("svg")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    said = {
        n.value for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
    }
    named = {word for word in said if word.replace("-", "").isalpha() and is_symbol(word)}
    opened = {f"{name}-open" for name in named & {*style.SHAPES, *(shape for _, shape in style.CONTROLS.values())}}
    return sorted(named | opened)


def test_every_symbol_that_figures_use_is_a_mark_of_its_own():
    pictures = {}
    for symbol in used_symbols():
        marker = {"symbol": symbol, "color": "#0072B2", "size": 10, "line": {"width": 1.5, "color": "#0072B2"}}
        pictures[symbol] = svg(go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="markers", marker=marker)))
    assert {"star-diamond", "line-ew", "x-thin", "circle-x-open", "x-open", "star"} <= set(pictures)
    assert len(set(pictures.values())) == len(pictures)


@pytest.mark.parametrize("symbol", ["line-ew", "x-thin"])
def test_a_symbol_that_is_only_a_line_has_the_look_of_the_markers_line(symbol):
    marker = {"symbol": symbol, "size": 9, "line": {"color": "#E69F00", "width": 2.5}}
    page = svg(go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="markers", marker=marker)))
    assert re.search(r'<g stroke-width="2.5" fill="none"><path d="[^"]+" stroke="#E69F00"/>', page)


def test_decades_are_named_and_lie_where_their_values_do():
    figure = go.Figure(go.Scatter(x=[1, 2, 3, 4], y=[1, 10, 100, 1000], mode="markers"))
    page = svg(figure.update_yaxes(type="log"))
    cy = discs(page)[:, 1]
    assert np.allclose(np.diff(cy), np.diff(cy)[0], atol=0.2)
    ticks = {
        word: float(y) - 4 for y, word in re.findall(r'<text x="[^"]*" y="([-0-9.]+)" text-anchor="end">(\d+)<', page)
    }
    assert set(ticks) == {"1", "10", "100", "1000"}
    assert np.allclose([ticks[word] for word in ("1", "10", "100", "1000")], cy, atol=0.2)


def test_a_picture_is_drawn_only_if_the_figure_carries_it():
    figure = go.Figure(go.Scatter(x=[0, 1, 2], y=[0, 1, 3], mode="markers"))
    for source in ("data:image/svg+xml;base64,PHN2Zy8+", "https://example.org/a.png", "data:text/html,<b>x</b>"):
        figure.add_layout_image(source=source, xref="x", yref="y", x=0.5, y=2, sizex=1, sizey=1)
    page = svg(figure)
    assert page.count("<image ") == 1 and "example.org" not in page and "text/html" not in page
    assert numbers(page, "image", "width")[0] == pytest.approx(np.diff(discs(page)[:, 0])[0], abs=0.2)


def test_lines_and_areas_on_axes_domains_and_the_whole_plot():
    figure = go.Figure(go.Scatter(x=[0, 1, 4], y=[0, 1, 3], mode="markers"))
    figure.add_vline(x=1, line={"color": "#123456", "dash": "dot"})
    figure.add_shape(
        type="rect", xref="paper", yref="paper", x0=0, x1=0.5, y0=0, y1=1, fillcolor="#654321", line_width=0
    )
    page = svg(figure)
    (line,) = re.findall(
        r'<path d="M([-0-9.]+) [-0-9.]+L([-0-9.]+) [-0-9.]+" stroke="#123456"[^>]*stroke-dasharray', page
    )
    assert float(line[0]) == float(line[1]) == pytest.approx(discs(page)[1, 0], abs=0.2)
    assert 'fill="#654321" stroke="none"' in page


def test_figures_of_a_notebook_carry_a_picture_and_a_chosen_renderer_is_left_alone(monkeypatch):
    before = pio.renderers.default
    try:
        for chosen, after in (("plotly_mimetype", "plotly_mimetype+icrl-lab"), ("json", "json")):
            pio.renderers.default = chosen
            pio.renderers._renderers.pop(still.NAME, None)
            still.beside()
            still.beside()
            assert pio.renderers.default == after
        figure = go.Figure(go.Scatter(x=[1, 2, 3], y=[1, 3, 2], name="a"))
        made = pio.renderers[still.NAME].to_mimebundle(figure.to_dict())
        assert made == {"image/svg+xml": svg(figure)}
        unknown = go.Figure(go.Scatterpolar(r=[1, 2, 3], theta=[10, 20, 30]))
        assert pio.renderers[still.NAME].to_mimebundle(unknown.to_dict()) == {}
    finally:
        pio.renderers.default = before


@pytest.mark.parametrize("clipped", [True, False])
def test_a_faint_trace_is_faint_whether_it_is_cut_or_not(clipped):
    figure = go.Figure(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", opacity=0.4, cliponaxis=clipped))
    assert 'opacity="0.4"' in svg(figure)
