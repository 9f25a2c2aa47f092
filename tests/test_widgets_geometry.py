"""The geometry view without a browser: what is lassoed in one map is lassoed everywhere, and only places travel."""

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from icrl_lab.errors import DataError
from icrl_lab.plots import clouds, geometry, style
from icrl_lab.values import Reading
from icrl_lab.widgets.geometry import NO_TOKENS, GeometryView, mistakes, thinned
from icrl_lab.widgets.scatter import unit
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


def lasso(view, *caught):
    """What the browser does."""
    view.scatter.chosen = list(caught)


def placed(view):
    return np.frombuffer(view.scatter.places, np.float32).reshape(3, -1, 2)


def looks(view):
    return [tuple(view.scatter.palette[i]) for i in view.scatter.paints]


def test_a_lasso_in_any_map_selects_in_all_and_on_the_page(result):
    ids, hub = asked(result), Selection(result)
    views = [GeometryView(reading(ids), hub, result), GeometryView(reading(ids[::-1]), hub)]
    study = StudyView(result, hub)
    for caught in ([4, 1], [0, 2, 3]):
        lasso(views[0], *caught)
        assert hub.items == tuple(ids[i] for i in caught)
        assert views[1].scatter.chosen == [len(ids) - 1 - i for i in caught]  # its items stand the other way round
        assert set(study.rows()["item"]) == set(hub.items)
    assert f"3 of {len(ids)}" in views[1].state.value
    views[1].scatter.chosen = None  # Escape
    assert hub.items == () and views[0].scatter.chosen is None
    lasso(views[1], 0)
    assert hub.items == (ids[-1],)
    views[1].clear.click()
    assert hub.items == () and views[0].scatter.chosen is None and views[1].scatter.chosen is None
    hub.items = (ids[2],)
    assert views[0].scatter.chosen == [2]


def test_a_click_pins_rings_and_tells(result):
    ids, hub = asked(result), Selection(result)
    one = reading(ids)
    view, other = GeometryView(one, hub, result), GeometryView(one, hub)
    view.scatter.pinned = 3
    assert hub.item == ids[3] and view.pin.value == ids[3] == other.pin.value
    for held in (view, other):
        assert held.scatter.pinned == 3
        assert ids[3] in held.card.value and "Nearest token" in held.card.value and "&lt;img" in held.card.value
    assert "predicted" in view.card.value
    view.scatter.pointed = 1
    assert ids[1] in view.card.value and hub.item == ids[3]  # pointing previews, and pins nothing
    view.scatter.pointed = -1
    assert ids[3] in view.card.value
    view.pin.value = "nobody"
    assert "nobody&#x27; is not in this run" in view.message.value and hub.item == ids[3]
    view.pin.value = ""
    assert hub.item == "" and view.scatter.pinned == -1
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
        for shown, panel in zip(placed(held), clouds.panels(one, "pca", "slot", 3)):
            assert shown.min() == 0 and shown.max() == 1
            assert [np.corrcoef(shown[:, k], panel.flat[:, k])[0, 1] for k in (0, 1)] == pytest.approx([1, 1])
        assert "depth 3" in held.scatter.titles[2][0]
    hub.layer = 1
    assert view.depth.value in (0, 2) and "no map of depth 1" in view.message.value and hub.layer == 1
    view.position.value = "answer"
    assert view.depth.options == (0, 3) and view.depth.value == 0 and hub.layer == 1
    view.method.value = "umap"
    panel = clouds.panels(one, "umap", "answer", 0)[2]
    assert np.corrcoef(placed(view)[2, :, 0], panel.flat[:, 0])[0, 1] == pytest.approx(1) and "UMAP" in view.above.value
    assert f"{panel.trust:.2f}" in view.scatter.titles[2][1]


def test_colours_are_targets_errors_and_roles(result):
    ids, hub = asked(result), Selection(result, arm="zero-pad")
    one = reading([*ids, "stranger"])
    view = GeometryView(one, hub, result)
    assert is_scale(looks(view), one.data["target"].values)
    view.colour.value = "error"
    rows = hub.to_dataframe()
    mean = (rows["prediction"].astype(float) - rows["target"]).abs().groupby(rows["item"]).mean()
    seen = looks(view)
    assert is_scale(seen[:-1], np.array([mean[i] for i in ids])) and seen[-1] == (style.GREY, "x")
    assert view.scatter.key["low"] == f"{mean.min():.3g}" and view.scatter.key["high"] == f"{mean.max():.3g}"
    assert "absolute error, zero-pad, real" in view.above.value and "(1 items have none)" in view.above.value
    hub.control = "noise"
    assert "zero-pad, noise" in view.above.value and looks(view) != seen
    lasso(view, 1, 2)
    view.colour.value = "role"
    names = {name: (colour, shape) for name, colour, shape in view.scatter.key["classes"]}
    assert set(names) == {"query", "neither"} and len(set(names.values())) == 2
    assert looks(view)[-1] == names["neither"] and set(looks(view)[:-1]) == {names["query"]}
    assert view.scatter.chosen == [1, 2]
    view.scatter.pinned = 0
    assert hub.item == ids[0]
    view.colour.value = "target"
    assert "gradient" in view.scatter.key and view.scatter.chosen == [1, 2] and view.message.value == ""
    assert GeometryView(one, hub).colour.options == ("target",)
    by_class = GeometryView(reading(ids, classes=True), hub)
    assert {shape for _, shape in looks(by_class)} == {"circle", "square"}


def is_scale(seen, values):
    """Looks follow values from one end of the palette to the other."""
    colours = [colour for colour, shape in seen if shape == "circle"]
    scale = clouds.paints(clouds.Colours("", "", np.linspace(0, 1, clouds.STEPS)))[0]
    place = np.array([[c for c, _ in scale].index(c) for c in colours])
    share = (values - values.min()) / (values.max() - values.min())
    return (
        len(colours) == len(values)
        and np.abs(place / (clouds.STEPS - 1) - share).max() <= 0.5 / (clouds.STEPS - 1) + 1e-9
    )


@pytest.mark.parametrize("n", [1, 3, 60])
def test_every_class_has_a_look_while_there_are_looks(n):
    names = [f"c{i:02d}" for i in range(n)] * 2
    palette, paints = clouds.paints(clouds.Colours("kind", "", np.array(names)))
    assert len({tuple(palette[i]) for i in paints}) == min(n, 49) and (paints[:n] == paints[n:]).all()
    told = clouds.legend(clouds.Colours("kind", "", np.array(names)))["classes"]
    assert all((colour, shape) == tuple(palette[paints[names.index(name)]]) for name, colour, shape in told)


def test_a_constant_axis_stands_in_the_middle():
    flat = np.array([[[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]], [[0.0, 0.0], [1.0, 4.0], [0.0, 1.0]]])
    assert unit(flat).tolist() == [[[0, 0.5], [1, 0.5], [0.5, 0.5]], [[0, 0], [1, 1], [0, 0.25]]]


def test_wrong_answers_are_counted():
    rows = pd.DataFrame({"item": ["a", "a", "b"], "target": ["yes", "yes", "no"], "prediction": ["yes", "no", "no"]})
    assert mistakes(rows) == ("wrong answers", {"a": 0.5, "b": 0.0})


def test_a_failure_is_as_wrong_as_the_mean_of_its_shots_and_is_told(result):
    rows = pd.DataFrame({"item": ["a", "a", "b"], "target": [1.0, 1.0, 2.0], "prediction": [1.5, np.nan, np.nan], "reference": 4.0, "status": ["ok", "no", "no"]})  # fmt: skip
    assert mistakes(rows) == ("absolute error", {"a": 1.75, "b": 2.0})
    words = rows.assign(target="yes", prediction=["no", None, None], reference="yes")
    assert mistakes(words) == ("wrong answers", {"a": 0.5, "b": 0.0})
    frame = result.predictions.assign(prediction=result.predictions["prediction"].mask(result.predictions["seed"] == 0))
    run = replace(result, predictions=frame)
    view = GeometryView(reading(asked(run)), Selection(run), run)
    view.colour.value = "error"
    assert "absolute error, zero-pad, real, 6 of 12 failed" in view.above.value
    assert (style.GREY, "x") not in looks(view)


def test_words_select_what_holds_them(result):
    ids, hub = asked(result), Selection(result)
    view = GeometryView(reading(ids, text=["phenol" if i % 2 else "ether" for i in range(len(ids))]), hub)
    view.find.value = " PHENOL "
    assert hub.items == tuple(ids[1::2]) and view.scatter.chosen == list(range(1, len(ids), 2))
    view.find.value = "gold"
    assert "No item here" in view.message.value and hub.items == tuple(ids[1::2])
    view.scatter.pointed = 2  # looking takes no message away
    assert "No item here" in view.message.value
    view.clear.click()
    assert hub.items == () and view.find.value == "" and view.message.value == ""


def test_views_agree_whatever_the_order(result):
    ids, rng = asked(result), np.random.default_rng(0)
    for _ in range(3):
        hub = Selection(result, layers=3)
        views = [GeometryView(reading(ids), hub, result), GeometryView(reading(ids), hub, result)]
        moves = [
            lambda v: lasso(v, 0, 3),
            lambda v: setattr(v.scatter, "pinned", 2),
            lambda v: setattr(v.depth, "value", 3),
            lambda v: setattr(hub, "arm", "random-projection"),  # noqa: B023
            lambda v: lasso(v, 1, 4),
        ]
        for place in rng.permutation(len(moves)):
            moves[place](views[rng.integers(2)])
        one, two = views
        assert one.scatter.chosen == two.scatter.chosen == [ids.index(i) for i in hub.items]
        assert one.scatter.pinned == two.scatter.pinned == 2 and one.depth.value == two.depth.value == hub.layer == 3
        assert one.card.value == two.card.value


def test_nothing_from_data_is_markup_and_errors_are_shown(result, monkeypatch):
    ids = [f"{NASTY}{i}" for i in range(9)]
    hub = Selection(result)
    hub.known = frozenset(ids)
    view = GeometryView(reading(ids, text=[NASTY] * 9, classes=True), hub)
    view.scatter.pinned, view.scatter.pointed = 1, 2
    view.find.value = NASTY + "9"
    texts = [view.static(), view.card.value, view.message.value, view.state.value, view.above.value]
    texts += [c.value for c in (view.body.children[4], view.body.children[-1])]
    assert not any("<img" in text for text in texts) and "&lt;img" in view.card.value
    assert "<svg" in view.static() and "<script" not in view.static()
    monkeypatch.setattr(clouds, "panels", lambda *a: (_ for _ in ()).throw(DataError("no <b>")))
    hub.layer = 3
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
        manifest: dict = {"task": {}}
        predictions = pd.DataFrame({"arm": "a", "control": "real", "item": ids, "shots": 4, "target": 1.0})
        predictions["prediction"] = np.random.default_rng(1).standard_normal(n)
        items = pd.DataFrame({"id": ids, "text": ids, "target": 1.0, "role": "query"})

    hub = Selection(Run())
    view = GeometryView(reading(ids, tokens=False), hub, Run())
    assert len(view.scatter.places) == 3 * n * 2 * 4 and len(view.scatter.paints) == n
    sent, times = [], []
    view.scatter.send_state = lambda key=None: sent.append(key)
    for caught in np.random.default_rng(0).permutation(n)[:9000].reshape(3, 3000).tolist():
        times.append(spent(lambda: lasso(view, *caught)))  # noqa: B023
        assert len(hub.items) == 3000 and view.scatter.chosen == caught
    assert sorted(times)[1] < 0.3
    assert {str(k) for k in sent} <= {"chosen", "{'chosen'}"}
    colours = [spent(lambda: setattr(view.colour, "value", c)) for c in ("error", "role", "target", "error", "role")]  # noqa: B023
    assert sorted(colours)[2] < 0.5
    print(f"lasso {1000 * sorted(times)[1]:.0f} ms, colour {[round(1000 * c) for c in colours]} ms")
    assert len(view.static()) < 400_000
    figure = thinned(view._figure(), list(range(5)))
    assert len(figure.data[0].x) == len(figure.data[0].marker.color) == 5


def spent(what):
    start = time.process_time()
    what()
    return time.process_time() - start
