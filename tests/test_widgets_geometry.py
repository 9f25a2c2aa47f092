"""The geometry view without a browser: what is lassoed in one map is lassoed everywhere, and only places travel."""

import base64
import time

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from icrl_lab.errors import DataError
from icrl_lab.plots import clouds, geometry, style
from icrl_lab.values import Reading
from icrl_lab.widgets.geometry import NO_TOKENS, GeometryView, mistakes, thinned
from icrl_lab.widgets.selection import Selection
from icrl_lab.widgets.study import StudyView
from tests.toy import toy_study

NASTY = "<img src=x onerror=alert(1)>"
SPACES = ["encoder", "slots", "slot 0", "slot 2", "slot 3", "answer 0", "answer 3"]
REDUCERS = ["pca", "umap"]


@pytest.fixture(scope="module")
def result():
    return toy_study(seeds=2).run(progress=False)


@pytest.fixture(autouse=True)
def curves(monkeypatch):
    """The curves have tests of their own; here two plain figures stand for them."""
    go = style.graph_objects()
    made = {"along": go.Figure(go.Scatter(x=[1], y=[2])), "shape": go.Figure(go.Bar(x=[1], y=[2]))}
    monkeypatch.setattr(geometry, "figures", lambda reading: made)


def reading(ids, text=None, classes=False, tokens=True, seed=0):
    rng, n = np.random.default_rng(seed), len(ids)
    sizes = (len(REDUCERS), len(SPACES), n, 2)
    arrays = {
        "coordinates": (("reducer", "mapped", "query", "axis"), rng.standard_normal(sizes)),
        "trustworthiness": (("reducer", "mapped"), rng.random(sizes[:2])),
    }
    if tokens:
        arrays["nearest_token"] = (("control", "seed", "query"), np.array([[[f"{NASTY}{i}" for i in range(n)]]] * 2))
        arrays["token_cosine_each"] = (("control", "seed", "query"), rng.random((2, 1, n)))
    coords = {"query": list(ids), "mapped": SPACES, "reducer": REDUCERS, "control": ["real", "noise"], "seed": [0]}
    coords["text"] = ("query", list(text or [f"text of {i}" for i in ids]))
    y = rng.standard_normal(n)
    coords |= {"label": ("query", np.where(y > 0, "yes", NASTY))} if classes else {"target": ("query", y)}
    about = {"task": NASTY, "arm": "zero-pad", "llm": "llama", "target_units": NASTY, "property": NASTY, "metric": "cosine",
             "neighbours": 3, "says": [NASTY], "limits": [NASTY], "interval": "jackknife", "with_text": False, "shots": 4}  # fmt: skip
    return Reading("geometry", xr.Dataset(arrays, coords), about)


def asked(result):
    return [str(i) for i in result.predictions["item"].unique()]


class Points:
    def __init__(self, *places):
        self.point_inds = list(places)


def lasso(view, *caught):
    """What plotly does: every map is told, one after the other, and forgets what was faded before."""
    for trace, places in zip(view.figure.data[:3], [*caught, *[()] * (3 - len(caught))]):
        trace.selectedpoints = list(places)
        view._lassoed(trace, Points(*places), None)


def marks(view):
    return [None if t.selectedpoints is None else list(t.selectedpoints) for t in view.figure.data[:3]]


def rings(view):
    return [(list(t.x), list(t.y)) for t in view.figure.data[3:6]]


def plain(value):
    """An array that plotly may have packed."""
    return np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]) if isinstance(value, dict) else value


def test_a_lasso_in_any_map_selects_in_all_and_on_the_page(result):
    ids, hub = asked(result), Selection(result)
    views = [GeometryView(reading(ids), hub, result), GeometryView(reading(ids[::-1]), hub)]
    study = StudyView(result, hub)
    for number in range(3):
        caught = [()] * 3
        caught[number] = (4, 1)
        lasso(views[0], *caught)
        assert hub.items == (ids[4], ids[1])
        assert marks(views[0]) == [[4, 1]] * 3
        assert marks(views[1]) == [[len(ids) - 5, len(ids) - 2]] * 3  # its items stand the other way round
        assert set(study.rows()["item"]) == {ids[4], ids[1]}
    assert f"2 of {len(ids)}" in views[1].state.value
    lasso(views[0])  # nothing was caught: the page keeps what it had, and the maps show it
    assert hub.items == (ids[4], ids[1]) and marks(views[0]) == [[4, 1]] * 3
    views[1].clear.click()
    assert hub.items == () and marks(views[0]) == marks(views[1]) == [None] * 3
    hub.items = (ids[2],)
    assert marks(views[0]) == [[2]] * 3


def test_a_click_pins_rings_and_tells(result):
    ids, hub = asked(result), Selection(result)
    one = reading(ids)
    view, other = GeometryView(one, hub, result), GeometryView(one, hub)
    view._clicked(view.figure.data[1], Points(3), None)
    assert hub.item == ids[3] and view.pin.value == ids[3] == other.pin.value
    flat = [p.flat[3] for p in clouds.panels(one, "pca", "slot", view.depth.value)]
    for held in (view, other):
        assert rings(held) == [([x], [y]) for x, y in flat]
        assert ids[3] in held.card.value and "Nearest token" in held.card.value and "&lt;img" in held.card.value
    assert "predicted" in view.card.value
    view._pointed(view.figure.data[0], Points(1), None)
    assert ids[1] in view.card.value and hub.item == ids[3]  # pointing previews, and pins nothing
    view._left(view.figure.data[0], Points(1), None)
    assert ids[3] in view.card.value
    view.pin.value = "nobody"
    assert "nobody&#x27; is not in this run" in view.message.value and hub.item == ids[3]
    view.pin.value = ""
    assert hub.item == "" and rings(view) == [([], [])] * 3
    bare = GeometryView(reading(ids, tokens=False), hub)
    hub.item = ids[0]
    assert NO_TOKENS in bare.card.value


def test_the_slider_is_the_pages_layer(result):
    ids, hub = asked(result), Selection(result, layers=3, layer=2)
    one = reading(ids)
    view, other = GeometryView(one, hub), GeometryView(one, hub)
    assert view.depth.value == 2 and view.depth.options == (0, 2, 3)
    view.depth.value = 3
    assert hub.layer == 3 and other.depth.value == 3
    for held in (view, other):
        for trace, panel in zip(held.figure.data, clouds.panels(one, "pca", "slot", 3)):
            assert np.allclose(plain(trace.x), panel.flat[:, 0]) and np.allclose(plain(trace.y), panel.flat[:, 1])
        assert "depth 3" in held.figure.layout.annotations[2].text
    hub.layer = 1
    assert view.depth.value in (0, 2) and "no map of depth 1" in view.message.value and hub.layer == 1
    view.position.value = "answer"
    assert view.depth.options == (0, 3) and view.depth.value == 0 and hub.layer == 1
    view.method.value = "umap"
    panel = clouds.panels(one, "umap", "answer", 0)[2]
    assert np.allclose(plain(view.figure.data[2].x), panel.flat[:, 0]) and "UMAP" in view.figure.layout.title.text
    assert f"{panel.trust:.2f}" in view.figure.layout.annotations[2].text


def test_colours_are_targets_errors_and_roles(result):
    ids, hub = asked(result), Selection(result, arm="zero-pad")
    one = reading([*ids, "stranger"])
    view = GeometryView(one, hub, result)
    assert np.allclose(plain(view.figure.data[0].marker.color), one.data["target"].values)
    view.colour.value = "error"
    rows = hub.to_dataframe()
    mean = (rows["prediction"].astype(float) - rows["target"]).abs().groupby(rows["item"]).mean()
    seen = plain(view.figure.data[2].marker.color)
    assert np.allclose(seen[:-1], [mean[i] for i in ids]) and np.isnan(seen[-1])
    assert "absolute error, zero-pad, real" in view.figure.layout.title.text
    assert "(1 items have none)" in view.figure.layout.title.text
    hub.control = "noise"
    noise = plain(view.figure.data[2].marker.color)
    assert "zero-pad, noise" in view.figure.layout.title.text and not np.allclose(noise[:-1], seen[:-1])
    lasso(view, (1, 2))
    view.colour.value = "role"
    names = {t.name: (t.marker.color, t.marker.symbol) for t in view.figure.data[6:]}
    assert set(names) == {"query", "neither"} and len(set(names.values())) == 2
    assert (view.figure.data[0].marker.color[-1], view.figure.data[0].marker.symbol[-1]) == names["neither"]
    assert marks(view) == [[1, 2]] * 3
    view._clicked(view.figure.data[0], Points(0), None)
    assert hub.item == ids[0]
    view.colour.value = "target"
    assert len(view.figure.data) == 6 and marks(view) == [[1, 2]] * 3 and view.message.value == ""
    assert GeometryView(one, hub).colour.options == ("target",)
    by_class = GeometryView(reading(ids, classes=True), hub)
    assert {t.marker.symbol for t in by_class.figure.data[6:]} == {"circle", "square"}


def test_wrong_answers_are_counted():
    rows = pd.DataFrame({"item": ["a", "a", "b"], "target": ["yes", "yes", "no"], "prediction": ["yes", "no", "no"]})
    assert mistakes(rows) == ("wrong answers", {"a": 0.5, "b": 0.0})


def test_words_select_what_holds_them(result):
    ids, hub = asked(result), Selection(result)
    view = GeometryView(reading(ids, text=["phenol" if i % 2 else "ether" for i in range(len(ids))]), hub)
    view.find.value = " PHENOL "
    assert hub.items == tuple(ids[1::2]) and marks(view) == [list(range(1, len(ids), 2))] * 3
    view.find.value = "gold"
    assert "No item here" in view.message.value and hub.items == tuple(ids[1::2])
    view.clear.click()
    assert hub.items == () and view.find.value == "" and view.message.value == ""


def test_views_agree_whatever_the_order(result):
    ids, rng = asked(result), np.random.default_rng(0)
    for _ in range(3):
        hub = Selection(result, layers=3)
        views = [GeometryView(reading(ids), hub, result), GeometryView(reading(ids), hub, result)]
        moves = [
            lambda v: lasso(v, (0, 3)),
            lambda v: v._clicked(v.figure.data[0], Points(2), None),
            lambda v: setattr(v.depth, "value", 3),
            lambda v: setattr(hub, "arm", "random-projection"),  # noqa: B023
            lambda v: lasso(v, (), (1, 4)),
        ]
        for place in rng.permutation(len(moves)):
            moves[place](views[rng.integers(2)])
        one, two = views
        assert marks(one) == marks(two) == [[ids.index(i) for i in hub.items]] * 3
        assert rings(one) == rings(two) and one.depth.value == two.depth.value == hub.layer == 3
        assert one.card.value == two.card.value


def test_nothing_from_data_is_markup_and_errors_are_shown(result, monkeypatch):
    ids = [f"{NASTY}{i}" for i in range(9)]
    hub = Selection(result)
    hub.known = frozenset(ids)
    view = GeometryView(reading(ids, text=[NASTY] * 9, classes=True), hub)
    view._clicked(view.figure.data[0], Points(1), None)
    view._pointed(view.figure.data[0], Points(2), None)
    view.find.value = NASTY + "9"
    texts = [view.static(), view.card.value, view.message.value, view.state.value, view.figure.to_json()]
    texts += [c.value for c in (view.body.children[3], view.body.children[-1])]
    assert not any("<img" in text for text in texts) and "&lt;img" in view.card.value
    assert "<svg" in view.static() and "<script" not in view.static()
    monkeypatch.setattr(clouds, "panels", lambda *a: (_ for _ in ()).throw(DataError("no <b>")))
    hub.item = ids[3]
    assert "no &lt;b&gt;" in view.message.value and 'role="alert"' in view.message.value
    monkeypatch.undo()
    hub.item = ids[4]
    assert view.message.value == ""
    view.close()
    hub.item = ids[5]
    assert view.pin.value == ids[4]


def test_a_reading_without_maps_says_so_and_shows_its_curves(result):
    data = reading(asked(result)).data.drop_dims("reducer")
    view = GeometryView(Reading("geometry", data, {"says": ["it is so"]}), Selection(result))
    assert "no maps" in view.body.children[0].value and len(view.figures()) == 1
    view.shown.value = "shape"
    assert view.curve.data[0].type == "bar"
    view.selection.layer = 2
    assert view.message.value == ""


def test_ten_thousand_points_stay_quick():
    """Only places are sent; the picture of an exported page stays small."""
    n = 10_000
    ids = [f"item{i}" for i in range(n)]

    class Run:
        predictions = pd.DataFrame({"arm": "a", "control": "real", "item": ids, "shots": 4, "target": 1.0})
        items = pd.DataFrame({"id": ids, "text": ids, "target": 1.0, "role": "query"})

    hub = Selection(Run())
    view = GeometryView(reading(ids, tokens=False), hub)
    assert view.figure.data[0].type == "scattergl"
    places, times, sent = np.random.default_rng(0).permutation(n), [], []
    view.figure._send_restyle_msg = lambda data, *a, **k: sent.append(data)
    view.figure._send_update_msg = lambda data, *a, **k: sent.append(data)
    for start in (0, 1000, 2000):
        caught = places[start : start + 3000].tolist()
        begin = time.process_time()
        lasso(view, caught)
        times.append(time.process_time() - begin)
        assert len(hub.items) == 3000 and marks(view) == [caught] * 3
    assert sorted(times)[1] < 0.1
    assert sent and all(set(d) <= {"selectedpoints"} for d in sent)
    assert len(view.static()) < 400_000
    figure = thinned(view._figure(), places[:5].tolist())
    assert len(figure.data[0].x) == len(figure.data[0].marker.color) == 5
