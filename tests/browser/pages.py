"""What the browser tests put on a page: views of planted readings and of live toy studies, beside their selection as JSON."""

import json

import ipywidgets as w
import numpy as np
import pandas as pd
import xarray as xr


def told(selection):
    """The selection's traits, written on the page whenever one changes: what Python holds, not what the browser shows."""
    line = w.HTML()

    def tell(change=None):
        traits = {
            name: getattr(selection, name) for name in ("arm", "control", "layer", "head", "shot", "query", "item")
        }
        line.value = f'<pre id="traits">{json.dumps(traits | {"items": len(selection.items)})}</pre>'

    selection.observe(tell)
    tell()
    return line


def geometry(n):
    """The maps of n items whose coordinates are random."""
    from icrl_lab.values import Reading
    from icrl_lab.widgets.geometry import GeometryView
    from icrl_lab.widgets.selection import Selection

    rng, ids = np.random.default_rng(0), [f"item{i}" for i in range(n)]
    spaces, reducers = ["encoder", "slots", "slot 0", "slot 2", "answer 2"], ["pca", "umap"]
    sizes = (2, len(spaces), n, 2)
    arrays = {
        "coordinates": (("reducer", "mapped", "query", "axis"), rng.random(sizes)),
        "trustworthiness": (("reducer", "mapped"), rng.random(sizes[:2])),
    }
    coords = {"query": ids, "mapped": spaces, "reducer": reducers, "target": ("query", rng.standard_normal(n))}
    about = {"task": "planted", "arm": "a", "llm": "none", "target_units": "u", "property": "p", "neighbours": 3}

    class Run:
        manifest: dict = {"task": {}}
        predictions = pd.DataFrame(
            {"arm": "a", "control": "real", "item": ids, "shots": 4, "target": 1.0, "prediction": 0.5}
        )
        items = pd.DataFrame({"id": ids, "text": ids, "target": 1.0, "role": "query"})

    from icrl_lab.plots import geometry as plots

    plots.figures = lambda reading: {"none": plots.style.graph_objects().Figure()}  # the curves have tests of their own
    selection = Selection(Run())
    return w.VBox([told(selection), GeometryView(Reading("geometry", xr.Dataset(arrays, coords), about), selection)])


def live(view, hostile=False):
    """A view of order or similarity that asks a tiny random model."""
    from importlib import import_module

    from icrl_lab.widgets.selection import Selection
    from tests.toy import toy_study

    result = toy_study(seeds=2).run(progress=False)
    selection = Selection(result)
    made = getattr(import_module(f"icrl_lab.widgets.{view}"), f"{view.title()}View")(result, selection)
    return w.VBox([told(selection), made, w.HTML(), order_of(made)])


def order_of(view):
    """The shots' order as Python holds it."""
    line = w.HTML()

    def tell(change=None):
        line.value = f'<pre id="order">{json.dumps(list(view.shots.order))}</pre>'

    view.shots.observe(tell, "order")
    tell()
    return line


def strangers():
    """A figure of the lab with four panels and a long name above, and a figure that is not the lab's and has colours of its own."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    from icrl_lab.plots import style
    from icrl_lab.widgets.base import View
    from icrl_lab.widgets.figure import figure_widget

    panels = make_subplots(2, 2)
    for i in range(4):
        panels.add_scatter(x=[1, 2], y=[1, 2], row=i // 2 + 1, col=i % 2 + 1)
    panels.update_xaxes(title="x").update_yaxes(title="y")

    class Panels(View):
        title = "four panels"

    view = Panels(None)
    view.say("C" * 400)
    view.body.children = [figure_widget(style.finish(panels, "ours", "", 400))]
    theirs = go.FigureWidget(go.Scatter(x=[1, 2], y=[1, 2]), {"title": "theirs", "font": {"color": "#ff0000"}})
    return w.VBox([view, w.VBox([theirs]).add_class("theirs")])
