"""The view of attention without a browser: it follows the selection, moves it, and says what a reading does not have."""

from functools import cache

import numpy as np
import pytest
from traitlets import TraitError

from icrl_lab.errors import DataError
from icrl_lab.plots import attention as whole
from icrl_lab.plots import heads as plots
from icrl_lab.plots.svg import svg
from icrl_lab.probes.attention import attention
from icrl_lab.probes.rollout import rollout
from icrl_lab.values import Reading
from icrl_lab.widgets.attention import AttentionView
from icrl_lab.widgets.selection import Selection
from tests.timing import calls
from tests.toy import click, toy_study

NASTY = "<img src=x onerror=alert(1)>"


class Points:
    """What plotly hands to a click: one point, or none for a trace that was not hit."""

    def __init__(self, x=None, y=None, place=None):
        self.xs, self.ys = ([], []) if x is None else ([x], [y])
        self.point_inds = [place] if place is not None else [[y, x]] if x is not None else []


@cache
def run():
    return toy_study(shots=5, seeds=2).run(progress=False)


@cache
def reading():
    return attention(run().study, "zero-pad", queries=5, cases=3)


def old():
    """The same as it was saved before heads were kept query by query."""
    found = reading()
    return Reading(found.question, found.data.drop_vars(["case_lift", "case_query"]), dict(found.about))


def view(found=None, **chosen):
    found = found or reading()
    hub = Selection(run(), layers=found.data.sizes["layer"], heads=found.data.sizes["head"], arm="zero-pad", **chosen)
    return AttentionView(found, hub), hub


def selected(figure):
    return [(tuple(t.x), tuple(t.y)) for t in figure.data if t.meta == "selected"]


def test_cases_are_the_first_seed_s_own_rows():
    """Every head of a case is what the top heads keep of the same query, and more."""
    data = reading().data
    assert (
        data["case_lift"].dims == ("case", "control", "row", "target", "layer", "head", "shot")
        and data.sizes["case"] == 3
    )
    for i, query in enumerate(data["case_query"].values):
        for top in range(data.sizes["top"]):
            at = {n: data[f"top_{n}"].values[top] for n in ("row", "target", "layer", "head")}
            mine = data["case_lift"].isel(case=i).sel(at)
            kept = data["top_lift"].isel(top=top, seed=0).sel(query=query)
            assert np.allclose(mine, kept, equal_nan=True)


def test_cases_keep_to_their_size(monkeypatch):
    monkeypatch.setattr("icrl_lab.probes.attention.CASE_BYTES", 2.5 * reading()["case_lift"].isel(case=0).nbytes)
    found = attention(run().study, "zero-pad", queries=5)
    assert found.data.sizes["case"] == 2


def test_a_click_on_the_map_selects_block_and_head():
    seen, hub = view()
    seen._clicked(seen.overview.data[0], Points(2, 4), None)
    assert (hub.layer, hub.head) == (2, 4) == (seen.layer.value, seen.head.value)
    assert selected(seen.overview) == [((2,), (4,))] * 2
    assert "Block 2, head 4" in seen.arcs.layout.title.text and "Block 2, head 4" in seen.spans.layout.title.text
    for figure in (seen.arcs, seen.spans):  # what a page is given that comes to see it later
        assert figure._widget_layout["title"]["text"] == figure.layout.title.text
    assert [tuple(d["x"]) for d in seen.overview._widget_data if d.get("meta") == "selected"] == [(2,)] * 2
    maps = [i for i, d in enumerate(seen.overview.data) if d.type == "heatmap"]
    for number in maps:
        click(seen.overview, (number, [9, 2], 2, 9))
        assert "head must be" in seen.message.value and hub.head == 4
    seen._pointed(seen.arcs.data[1], Points(place=1), None)
    assert "head must be" in seen.message.value  # pointing takes no message away
    click(seen.overview, (maps[-1], [3, 1], 1, 3))
    assert (hub.layer, hub.head) == (1, 3) and "head must be" not in seen.message.value


def test_sliders_and_lists_move_the_selection_too():
    seen, hub = view()
    seen.layer.value, seen.head.value = 1, 3
    other = next(value for _, value in seen.query.options if value != hub.query)
    seen.query.value = other
    assert (hub.layer, hub.head, hub.query) == (1, 3, other)


def test_figures_in_place_are_those_made_anew():
    seen, hub = view()
    for layer, head in ((0, 5), (2, 1), (1, 3)):
        hub.layer, hub.head = layer, head
    fresh = seen._spans()
    assert np.allclose(seen.spans.data[0].z, fresh.data[0].z)
    assert np.allclose(seen.spans.data[1].z, fresh.data[1].z, equal_nan=True)
    assert seen.spans.layout.title.text == fresh.layout.title.text
    assert seen.spans.layout.coloraxis2.cmax == fresh.layout.coloraxis2.cmax
    arcs = seen._arcs()
    assert [s.to_plotly_json() for s in seen.arcs.layout.shapes] == [s.to_plotly_json() for s in arcs.layout.shapes]


def test_views_agree_whatever_the_order():
    rng = np.random.default_rng(0)
    queries = [str(q) for q in reading().data["query"].values]
    moves = [("layer", 2), ("head", 5), ("query", queries[3]), ("layer", 1), ("shot", 3), ("query", queries[0])]
    for _ in range(2):
        one, hub = view()
        two = AttentionView(reading(), hub)
        for place in rng.permutation(len(moves)):
            name, value = moves[place]
            target = (one, two)[rng.integers(2)]
            setattr(hub if name == "shot" else getattr(target, name), name if name == "shot" else "value", value)
        assert [s.path for s in one.arcs.layout.shapes] == [s.path for s in two.arcs.layout.shapes]
        assert [s.line.width for s in one.arcs.layout.shapes] == [s.line.width for s in two.arcs.layout.shapes]
        assert selected(one.overview) == selected(two.overview) == [((hub.layer,), (hub.head,))] * 2
        assert one.card.value == two.card.value and one.message.value == two.message.value


def test_arcs_are_as_thick_as_attention_and_the_null_lies_below():
    data = reading().data
    query = str(data["case_query"].values[1])
    figure = plots.arcs(reading(), query, 1, 2, "answer", "label")
    case = data["case_lift"].isel(case=1).sel(layer=1, head=2, row="answer", target="label")
    most = float(case.sel(control=["real", "noise"]).max())
    widths = {(s.path.split(",")[0], "-" in s.path): s.line.width for s in figure.layout.shapes}
    for control, below in (("real", False), ("noise", True)):
        for i, value in enumerate(case.sel(control=control).values):
            assert widths[f"M {i + 1}", below] == pytest.approx(max(0.4, plots.THICK * value / most))
    similar = data["similarity"].sel(query=query).isel(seed=0).values
    shots = next(t for t in figure.data if t.meta == "shots")
    assert np.array_equal(shots.marker.color, similar)
    page = svg(figure)
    assert page.count("<path") >= 2 * len(similar) and " Q" in page


def test_in_the_view_the_null_s_arcs_are_the_null_s():
    """Of a query that was kept at every head, and of the mean of all; told from real ones by values that differ."""
    seen, hub = view()
    data = reading().data
    kept = str(data["case_query"].values[0])
    far = next(str(q) for q in data["query"].values if q not in data["case_query"].values)
    row, target, null = seen.row.value, seen.target.value, seen.null.value
    assert null == "noise"
    for query, layer, head in ((kept, 1, 3), (far, 2, 4), (kept, 0, 5)):
        hub.query, hub.layer, hub.head = query, layer, head
        at = {"layer": layer, "head": head, "row": row, "target": target}
        kind = seen._found().kind
        if query == kept:
            values = data["case_lift"].isel(case=0).sel(at)
        elif kind == "mean":
            values = data["by_shot"].sel(at)
        else:
            values = data["top_lift"].isel(top=next(i for i in range(data.sizes["top"]) if all(data[f"top_{n}"].values[i] == v for n, v in at.items())), seed=0).sel(query=query)  # fmt: skip
        real, noise = (values.sel(control=c).values for c in ("real", null))
        assert not np.allclose(real, noise, equal_nan=True)
        most = max(np.nanmax(real), np.nanmax(noise))
        for below, side in ((False, real), (True, noise)):
            drawn = {s.path.split(",")[0]: s.line.width for s in seen.arcs.layout.shapes if ("-" in s.path) == below}
            want = {f"M {i + 1}": max(0.4, plots.THICK * v / most) for i, v in enumerate(side) if np.isfinite(v)}
            assert drawn == pytest.approx(want) and len(set(drawn.values())) > 1
        if kind == "query":
            seen._pointed(None, Points(place=1), None)
            assert f"attention {real[1]:.2f} times even, under noise {noise[1]:.2f}" in seen.card.value


def test_less_its_null_is_offered_where_the_reading_has_it():
    seen, _ = view()
    for name, quantity in list(seen.quantities.items())[::3]:
        seen.quantity.value = name
        has = [value for _, value in seen.versus.options]
        assert has == (["beside", "less"] if quantity.less else ["beside"])
        assert [t.type for t in seen.overview.data].count("heatmap") == 2
        if quantity.less:
            seen.versus.value = "less"
            (only,) = [t for t in seen.overview.data if t.type == "heatmap"]
            at = {k: v for k, v in quantity.at.items()}
            want = reading()[quantity.less].sel(at).transpose("head", "layer").values
            assert np.allclose(np.asarray(only.z, float), want, equal_nan=True)
            seen.versus.value = "beside"
    with pytest.raises(DataError, match="no 'less'"):
        plots.beside(reading(), next(n for n, q in seen.quantities.items() if not q.less), "less")


def test_a_map_that_is_made_of_new_traces_is_still_clicked():
    seen, hub = view()
    seen.versus.value = "less"
    assert seen.overview.data[0]._click_callbacks
    seen.overview.data[0]._click_callbacks[0](seen.overview.data[0], Points(1, 1), None)
    assert (hub.layer, hub.head) == (1, 1)


def test_a_shot_is_shown_and_pinned():
    seen, hub = view()
    hub.query = str(reading().data["case_query"].values[0])
    seen._pointed(None, Points(place=2), None)
    items = plots.attended(reading(), hub.query, 0, 0, "answer", "label", "noise").items
    assert items[2] in seen.card.value and "pinned" not in seen.card.value and hub.shot == -1
    seen._pinned(None, Points(place=2), None)
    assert (hub.shot, hub.item) == (2, items[2]) and "pinned" in seen.card.value
    ring = next(t for t in seen.arcs.data if t.meta == "pinned")
    assert tuple(ring.x) == (3,)


def test_an_older_reading_shows_what_it_has_and_says_what_is_missing():
    found = old()
    top = {n: found.data[f"top_{n}"].values[0].item() for n in ("row", "target", "layer", "head")}
    seen, hub = view(found, layer=top["layer"], head=top["head"])
    assert "saved before" not in seen.message.value and seen._found().kind == "query"
    hub.head = next(h for h in range(6) if not any(
        (top["row"], top["target"], top["layer"], h) == t
        for t in zip(*(found.data[f"top_{n}"].values.tolist() for n in ("row", "target", "layer", "head")))
    ))  # fmt: skip
    assert "saved before" in seen.message.value and "mean of all queries" in seen.message.value
    means = found.data["by_shot"].sel(
        control="real", layer=hub.layer, head=hub.head, row=top["row"], target=top["target"]
    )
    assert (
        np.allclose(seen._found().real, means, equal_nan=True) and "Mean of all queries" in seen.arcs.layout.title.text
    )
    assert seen.card.value == ""


def test_what_the_reading_was_not_asked_is_said():
    seen, hub = view()
    far = next(q for q in hub.queries if q not in reading().data["query"].values)
    hub.query = far
    assert f"not asked about {far}" in seen.message.value and hub.query == far
    hub.arm = "random-projection"
    assert "of the arm zero-pad" in seen.message.value
    hub.layer = 3
    assert "behind the last block" in seen.message.value and hub.layer == 3 and seen.layer.value == 2


def test_an_error_is_shown(monkeypatch):
    seen, hub = view()
    monkeypatch.setattr(seen, "_arcs", lambda: (_ for _ in ()).throw(DataError("no such <b>")))
    hub.layer = 1
    assert "no such &lt;b&gt;" in seen.message.value and 'role="alert"' in seen.message.value


def test_names_from_data_do_nothing():
    found = reading()
    data = found.data.copy()
    for name in ("shot_item", "shot_label", "shot_text", "query_text"):
        data[name] = data[name].astype(object).where(False, NASTY)
    seen, hub = view(Reading("attention", data, {**found.about, "says": [NASTY], "limits": [NASTY]}))
    hub.query = str(data["case_query"].values[0])
    seen._pinned(None, Points(place=1), None)
    figures = "".join(f.to_json() for f in (seen.arcs, seen.spans, seen.overview))
    said = [seen.card.value, seen.body.children[-1].value, seen.static(), seen.message.value]
    assert all("<img src=x" not in text for text in (*said, figures.replace("\\u003c", "<")))
    assert "&lt;img" in seen.card.value


def test_where_nothing_runs_there_are_pictures():
    seen, _ = view()
    page = seen._repr_mimebundle_()["text/html"]
    assert page.count("<svg xmlns") == 3 and "<script" not in page
    assert {"arcs", "one head"} <= set(whole.figures(reading()))


def test_a_rollout_has_no_heads_to_choose():
    found = rollout(run().study, "zero-pad", seeds=[0], queries=3)
    seen = AttentionView(found, Selection(run()))
    seen.selection.layer = 1
    assert len(seen.figures()) == 1 and seen.message.value == ""


def test_a_change_is_fast():
    """Below a tenth of a second each; a quantity took 190,000 calls when its figure was put together piece by piece."""
    seen, hub = view()
    assert max(calls(lambda: setattr(hub, "layer", layer)) for layer in (1, 2, 0)) < 105_000  # noqa: B023
    for name in [*list(seen.quantities)[1:], next(iter(seen.quantities))]:
        assert calls(lambda: setattr(seen.quantity, "value", name)) < 130_000  # noqa: B023
        assert seen.overview.layout.title.text.count(name[1:]) == 1 and seen.message.value == ""


def test_a_reading_alone_has_its_view_and_its_limits():
    found = reading()
    seen = found.widget()
    assert isinstance(seen, AttentionView) and seen.selection.queries == tuple(found.data["query"].values)
    seen.selection.layer, seen.selection.head = found.data.sizes["layer"] - 1, found.data.sizes["head"] - 1
    assert seen.message.value == ""
    with pytest.raises(TraitError, match="head must be from 0 to"):
        seen.selection.head = found.data.sizes["head"]
    with_text = {str(i) for i in found.data["query"].values}
    assert with_text <= seen.selection.known
