"""Plain pictures: where plotly would put a mark, in its colour, with nothing of the data as markup."""

import re

import numpy as np
import plotly.graph_objects as go
import pytest

from icrl_lab.plots.svg import svg


def numbers(page: str, tag: str, name: str) -> np.ndarray:
    return np.array([float(m) for m in re.findall(rf"<{tag} [^>]*?\b{name}=\"([-0-9.]+)\"", page)])


def test_points_keep_their_order_and_spacing():
    x, y = np.array([0.0, 1.0, 3.0, 7.0]), np.array([5.0, -2.0, 0.0, 1.0])
    page = svg(go.Figure(go.Scatter(x=x, y=y, mode="markers", marker={"color": "#0072B2"})))
    cx, cy = numbers(page, "circle", "cx"), numbers(page, "circle", "cy")
    assert np.allclose(np.diff(cx) / np.diff(x), np.diff(cx)[0] / np.diff(x)[0], rtol=0.01)
    assert np.corrcoef(cy, y)[0, 1] < -0.9999  # up is a smaller pixel
    assert page.count('fill="#0072B2"') == 4


def test_a_reversed_axis_and_a_named_axis():
    figure = go.Figure(go.Bar(x=[3, 1, 2], y=["a", "b", "c"], orientation="h"))
    figure.update_yaxes(autorange="reversed")
    page = svg(figure)
    assert np.allclose(numbers(page, "rect", "width") / numbers(page, "rect", "width")[1], [3, 1, 2], rtol=0.02)
    assert (np.diff(numbers(page, "rect", "y")) > 0).all()


def test_a_heat_map_is_centred_where_it_says():
    z = np.array([[-1.0, 0.0, 1.0], [0.5, np.nan, -0.5]])
    scale = [[0, "rgb(0,0,255)"], [0.5, "rgb(200,200,200)"], [1, "rgb(255,0,0)"]]
    page = svg(go.Figure(go.Heatmap(z=z, zmid=0, colorscale=scale)))
    fills = re.findall(r'<rect [^>]*fill="([^"]+)"', page)
    assert (
        len(fills) == 5
        and fills[0] == "rgb(0, 0, 255)"
        and fills[1] == "rgb(200, 200, 200)"
        and fills[2] == "rgb(255, 0, 0)"
    )


def test_intervals_are_drawn_and_missing_values_are_not():
    figure = go.Figure(
        go.Scatter(
            x=[1, 2, 3], y=[1, None, 2], mode="markers", error_y={"array": [0.5, 1, 0.25], "arrayminus": [0.25, 1, 0.5]}
        )
    )
    page = svg(figure)
    assert len(numbers(page, "circle", "cx")) == 2
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
