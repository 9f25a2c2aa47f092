"""The patching view without a browser: a cell is clicked, and what stands beside it is what the reading says of it."""

import numpy as np
import pytest
import traitlets as t
import xarray as xr

from icrl_lab.plots import cells
from icrl_lab.values import Reading
from icrl_lab.widgets.patching import PatchingView
from icrl_lab.widgets.selection import Selection
from tests.timing import calls
from tests.toy import toy_study

NASTY = "<img src=x onerror=alert(1)>"
DEPTHS, GROUPS = [0, 1, 3], ["all slots", "answer"]
PARTS = ["shot 0 slot", "shot 3 slot", "shot 3 label", "answer"]


@pytest.fixture(scope="module")
def result():
    return toy_study(seeds=2).run(progress=False)


def filled(names, dims, sizes, rng, units="u"):
    """Arrays with intervals around them."""
    out = {}
    for name in names:
        value = rng.standard_normal(sizes)
        for end, shift in (("", 0.0), ("_low", -0.5), ("_high", 0.7)):
            out[name + end] = (dims, value + shift, {"long_name": f"{name} {NASTY}", "units": units})
    return out


def restoring(nasty=False):
    rng = np.random.default_rng(0)
    share = "share of the difference"
    arrays = filled(("share", "placebo", "beyond"), ("group", "depth"), (2, 3), rng, share)
    arrays |= filled(("effect", "placebo_effect"), ("group", "depth"), (2, 3), rng)
    arrays |= filled(("gradient", "gradient_effect"), ("group", "depth"), (2, 3), rng, share)
    arrays |= filled(("fine", "fine_effect", "verified"), ("part", "place"), (4, 5), rng, share)
    arrays["verified"][1][:] = np.nan
    arrays["verified"][1][1, 2] = 0.25
    arrays["verified_low"][1][1, 2], arrays["verified_high"][1][1, 2] = 0.1, 0.5
    arrays["beyond"][1][:] = [[0.9, 0.5, -0.4], [0.1, 0.2, 0.3]]
    q = np.array([[0.0002, 0.03, 0.01], [0.8, np.nan, 1.0]])
    for name in ("beyond_q", "placebo_q", "share_q"):
        arrays[name] = (("group", "depth"), q, {"long_name": "q", "units": ""})
    arrays |= {n: ((), v, {"long_name": n, "units": "u"}) for n, v in (("total_effect", 2.0), ("total", 2.0))}
    parts = [*PARTS[:-1], NASTY if nasty else "answer"]
    data = xr.Dataset(arrays, {"group": GROUPS, "depth": DEPTHS, "part": parts, "place": np.arange(5)})
    return Reading("patching", data, told("restore"))


def told(kind):
    return {"kind": kind, "task": "toy", "llm": "llama", "arm": "zero-pad", "n": "2 seeds x 6 queries", "corrupted": "shuffled",
            "interval": "95 % intervals: crossed; p: turns", "says": [NASTY], "limits": [NASTY]}  # fmt: skip


def cutting():
    rng = np.random.default_rng(1)
    dims, sizes = ("rows", "columns", "window"), (2, 2, 3)
    arrays = filled(("effect", "placebo", "harm", "placebo_harm", "beyond"), dims, sizes, rng)
    arrays["beyond_q"] = (dims, np.full(sizes, 0.2), {"long_name": "q", "units": ""})
    coords = {"rows": ["answer", "query"], "columns": ["shot slots", "query slot"], "window": ["all blocks", "blocks 0 to 1", "blocks 2 to 3"]}  # fmt: skip
    return Reading("patching", xr.Dataset(arrays, coords), told("cuts"))


def headed():
    rng = np.random.default_rng(2)
    dims, sizes = ("group", "layer", "head"), (2, 4, 6)
    arrays = filled(("share", "placebo", "beyond", "gradient"), dims, sizes, rng, "share of the difference")
    arrays |= filled(("effect", "placebo_effect", "gradient_effect"), dims, sizes, rng)
    for name in ("share_q", "placebo_q", "beyond_q"):
        arrays[name] = (dims, np.full(sizes, 0.001), {"long_name": "q", "units": ""})
    arrays |= {n: ((), v, {"long_name": n, "units": "u"}) for n, v in (("total_effect", 2.0), ("total", 2.0))}
    coords = {"group": ["answer", "shot labels"], "layer": np.arange(4), "head": np.arange(6)}
    return Reading("patching", xr.Dataset(arrays, coords), told("heads"))


class Points:
    def __init__(self, x, y):
        self.xs, self.ys, self.point_inds = [x], [y], [[y, x]]


def shown(view):
    """Estimates and intervals that stand beside the map."""
    out = {}
    for d in view.cell.data:
        if len(d.x):
            x = float(d.x[0])
            out[d.y[0]] = (x, x - float(d.error_x.arrayminus[0]), x + float(d.error_x.array[0]))
    return out


def test_a_click_shows_the_readings_own_numbers(result):
    hub, reading = Selection(result, layers=4, heads=6), restoring()
    view, data = PatchingView(reading, hub), reading.data
    for y, group in enumerate(GROUPS):
        for x, depth in enumerate(DEPTHS):
            view._clicked(view.map.data[0], Points(x, y), None)
            assert hub.layer == depth and view.position == group
            here = data.sel(group=group, depth=depth)
            for words, name in (("the edit", "share"), ("its placebo", "placebo"), ("edit less placebo", "beyond")):
                assert shown(view)[words] == pytest.approx([float(here[name + e]) for e in ("", "_low", "_high")])
            for mark in (
                view.map.data[1],
                view.map._widget_data[1],
            ):  # the figure, and what a page that comes later is given
                assert (list(mark["x"]), list(mark["y"])) == ([x], [y])
            assert view.cell._widget_layout["title"]["text"] == view.cell.layout.title.text
            assert float(view.map.data[0].z[y][x]) == float(here["share"])
            low, high = view.cell.layout.xaxis.range
            assert low < 0 < high and all(low < v < high for row in shown(view).values() for v in row)
            same = cells.cell_figure(reading, view.sheet, y, x)
            assert same.layout.title.text == view.cell.layout.title.text and group in same.layout.title.text
            assert "2 seeds x 6 queries" in same.layout.title.text


def test_an_interval_that_is_not_known_is_no_interval_of_width_zero(result):
    whole = restoring()
    gone = {
        f"share{end}": whole.data[f"share{end}"].where(whole.data["share"] != whole.data["share"][0, 1])
        for end in ("_low", "_high")
    }
    reading = Reading("patching", whole.data.assign(gone), whole.about)
    view = PatchingView(reading, Selection(result, layers=4))
    view._clicked(view.map.data[0], Points(1, 0), None)
    value = f"{float(reading.data['share'][0, 1]):.3g}, no interval"
    assert [value in str(said) for said in (view.cell.data[0].customdata, view.map.data[0].customdata[0][1])] == [
        True,
        True,
    ]
    assert "nan" not in str([m.customdata for m in view.cell.data]) and np.isfinite(view.cell.layout.xaxis.range).all()


@pytest.mark.parametrize(
    "cell,words",
    [((0, 0), "More than its placebo (corrected p &lt; 0.001)"), ((0, 1), "More than its placebo (corrected p = 0.030)"), ((0, 2), "Less than its placebo (corrected p = 0.010)"),
     ((1, 0), "Not told apart from its placebo (corrected p = 0.800)"), ((1, 1), "No p-value")],
)  # fmt: skip
def test_the_test_is_told_in_words(result, cell, words):
    view = PatchingView(restoring(), Selection(result, layers=4))
    view._clicked(None, Points(cell[1], cell[0]), None)
    assert words in view.cell.layout.title.text.replace("<br>", " ")


def test_sliders_are_clicks(result):
    hub = Selection(result, layers=4)
    view = PatchingView(restoring(), hub)
    view.across.value = "3"
    view.along.value = "answer"
    assert hub.layer == 3 and view.position == "answer" and list(view.map.data[1].x) == [2]
    before = shown(view)
    other = PatchingView(restoring(), Selection(result, layers=4))
    other._clicked(None, Points(2, 1), None)
    assert before == shown(other)


def test_a_position_of_a_shot_is_the_pages_shot_and_back(result):
    hub = Selection(result, layers=4)
    one, two = PatchingView(restoring(), hub), PatchingView(restoring(), hub)
    for view in (one, two):
        view.edit.value = "single parts: share by the gradient"
    one._clicked(None, Points(2, 1), None)
    assert (hub.layer, hub.shot, one.position, two.position) == (2, 3, "shot 3 slot", "shot 3 slot")
    assert shown(one) == shown(two) and set(shown(one)) == {"by the gradient", "patched exactly"}
    assert shown(one)["patched exactly"] == pytest.approx((0.25, 0.1, 0.5))
    one.position = "shot 3 label"
    assert hub.shot == 3 and "this cell was not patched" in one.cell.layout.title.text.replace("<br>", " ")
    assert set(shown(one)) == {"by the gradient"}
    hub.shot = 0
    assert one.position == "shot 0 slot" == two.position
    one._clicked(None, Points(0, 3), None)
    assert one.position == "answer" and hub.shot == 0  # a place that is no shot leaves the shot alone


def test_a_shot_that_is_shown_again_is_the_pages_shot(result):
    """A map has places of its own for every time that a shot is shown; the page has a shot once."""
    hub, one = Selection(result, layers=4), restoring()
    data = one.data.assign_coords(part=["shot 0 slot", "shot 3 slot", "shot 7 slot", "answer"])
    view = PatchingView(Reading(one.question, data, one.about), hub)
    view.edit.value = "single parts: share by the gradient"
    view.along.value = "shot 7 slot"
    assert (hub.shot, view.position, view.message.value) == (3, "shot 7 slot", "") and drawn(view)
    hub.shot = 0
    assert view.position == "shot 0 slot" and drawn(view)
    hub.shot = 3
    assert view.position == "shot 3 slot" and drawn(view)


def test_people_count_shots_from_one_and_names_stay(result):
    hub = Selection(result, layers=4)
    view = PatchingView(restoring(), hub)
    view.edit.value = "single parts: share by the gradient"
    labels = [label for label, _ in view.along.options]
    assert labels == ["shot 1 slot", "shot 4 slot", "shot 4 label", "answer"] == list(view.map.layout.yaxis.ticktext)
    view.along.label = "shot 4 slot"
    assert (hub.shot, view.position, view.along.value) == (3, "shot 3 slot", "shot 3 slot")
    assert "shot 4 slot" in view.cell.layout.title.text and drawn(view)


def test_what_the_page_refuses_is_drawn_all_the_same(result):
    hub = Selection(result, layers=4, heads=2)
    view = PatchingView(headed(), hub)
    view.along.value = "5"
    assert "head must be" in view.message.value and hub.head == 0 and view.position == "5" and drawn(view)


def drawn(view):
    """Is the cell that is drawn the one that the sliders say?"""
    at = view._ys().index(view.along.value), view._xs().index(view.across.value)
    same = cells.cell_figure(view.reading, view.sheet, *at).layout.title.text == view.cell.layout.title.text
    return same and (view.map.data[1].y[0], view.map.data[1].x[0]) == at


def test_views_agree_on_the_layer_whatever_the_order(result):
    rng = np.random.default_rng(3)
    moves = [("hub", 1), ("one", 2), ("two", 0), ("hub", 3)]
    for _ in range(4):
        hub = Selection(result, layers=4)
        views = {"one": PatchingView(restoring(), hub), "two": PatchingView(restoring(), hub)}
        for place in rng.permutation(len(moves)):
            who, x = moves[place]
            if who == "hub":
                hub.layer = DEPTHS[x % 3]
            else:
                views[who]._clicked(None, Points(x, 1), None)
        values = {v.across.value for v in views.values()}
        assert values == {str(hub.layer)}
        assert len({tuple(v.map.data[1].x) for v in views.values()}) == 1


def test_a_layer_that_was_not_patched_is_said(result):
    hub = Selection(result, layers=4)
    view = PatchingView(restoring(), hub)
    hub.layer = 4
    assert "not made at depth 4; the nearest, 3" in view.message.value and hub.layer == 4
    view.edit.value = "single parts: share by the gradient"
    assert view.message.value == "" and view.across.value == "4"
    with pytest.raises(t.TraitError, match="none of this map's"):
        view.position = "nowhere"
    assert view.position == "shot 0 slot"


def test_every_edit_has_its_map(result):
    hub = Selection(result, layers=4, heads=6)
    view = PatchingView(cutting(), hub)
    assert len(view.sheets) == 4
    for words in view.sheets:
        view.edit.value = words
        title = view.map.layout.title.text
        assert words[1:] in title and view.cell.layout.title.text and view.map.data[0].customdata.shape == (2, 3)
    hub.layer = 3
    assert view.across.value == "all blocks"  # which holds every block
    view._clicked(None, Points(1, 0), None)
    assert hub.layer == 0 and view.across.value == "blocks 0 to 1"
    hub.layer = 3
    assert view.across.value == "blocks 2 to 3"
    heads = PatchingView(headed(), hub)
    heads._clicked(None, Points(2, 5), None)
    assert (hub.layer, hub.head, heads.position) == (2, 5, "5")
    hub.head = 1
    assert heads.position == "1" and list(heads.map.data[1].y) == [1]


def test_nothing_from_data_is_markup_and_errors_are_shown(result, monkeypatch):
    view = PatchingView(restoring(nasty=True), Selection(result, layers=4))
    view.edit.value = "single parts: share by the gradient"
    view._clicked(None, Points(0, 3), None)
    texts = [
        view.static(),
        view.body.children[0].value,
        view.body.children[-1].value,
        view.map.to_json(),
        view.cell.to_json(),
    ]
    assert not any("<img" in text for text in texts)
    assert "<svg" in view.static() and "<script" not in view.static()
    monkeypatch.setattr(cells, "bars", lambda *a: (_ for _ in ()).throw(ValueError("no <b>")))
    view._clicked(None, Points(1, 0), None)
    assert "no &lt;b&gt;" in view.message.value and 'role="alert"' in view.message.value
    monkeypatch.undo()
    view._clicked(None, Points(2, 0), None)
    assert view.message.value == ""


def test_other_figures_and_an_end(result):
    hub = Selection(result, layers=4)
    view = PatchingView(restoring(), hub)
    for name in view.shown.options:
        view.shown.value = name
        assert view.other.layout.title.text == view.others[name].layout.title.text and view.message.value == ""
    view.close()
    hub.layer = 3
    assert view.across.value == "0"


def test_a_click_and_another_edit_are_quick(result):
    """A tenth of a second at most; an edit took 150,000 calls when its figures were put together piece by piece, at every visit."""
    view = PatchingView(restoring(), Selection(result, layers=4))
    assert max(calls(lambda: view._clicked(None, Points(x, 1), None)) for x in (0, 1, 2, 0)) < 40_000  # noqa: B023
    edits = [*list(view.sheets)[1:], next(iter(view.sheets))]
    for limit in (125_000, 70_000):  # the first time, and again
        assert max(calls(lambda: setattr(view.edit, "value", words)) for words in edits) < limit  # noqa: B023
    assert view.message.value == "" and edits[-1][1:] in view.map.layout.title.text
