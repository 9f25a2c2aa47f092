"""Widgets without a browser: traits are set and handlers called; every view of a page agrees; nothing from data is markup."""

import threading
import time

import numpy as np
import pytest
import traitlets as t
import xarray as xr

from icrl_lab.errors import DataError
from icrl_lab.studies import Study
from icrl_lab.values import Reading, Task
from icrl_lab.widgets import serve
from icrl_lab.widgets.dashboard import Dashboard
from icrl_lab.widgets.live import Runner, Stopped
from icrl_lab.widgets.reading import ReadingView
from icrl_lab.widgets.selection import Selection
from icrl_lab.widgets.study import StudyView
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def result():
    return toy_study(seeds=2).run(progress=False)


@pytest.fixture(scope="module")
def nasty():
    """A run whose items are called what nobody should run."""
    plain = toy_task()
    ids = tuple(f"{NASTY}{i}" for i in range(len(plain)))
    task = Task(
        NASTY, ids, plain.items, tuple(NASTY for _ in ids), plain.targets, None, NASTY, NASTY, "molecule", plain.pool, plain.queries
    )  # fmt: skip
    return Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "seeds": 2}).run(progress=False)


@pytest.mark.parametrize(
    "trait,wrong",
    [("arm", "nobody"), ("control", "zero"), ("query", "item0"), ("item", "x"), ("items", ("item1", "x")), ("layer", -1), ("layer", 4), ("head", 6), ("shot", 4), ("shot", -2)],
)  # fmt: skip
def test_a_wrong_value_is_refused_and_changes_nothing(result, trait, wrong):
    hub = Selection(result, layers=3, heads=6)
    before = getattr(hub, trait)
    with pytest.raises(t.TraitError, match=trait):
        setattr(hub, trait, wrong)
    assert getattr(hub, trait) == before


def test_the_selection_gives_its_rows_back(result):
    one, two = result.predictions["item"].unique()[[1, 4]]
    hub = Selection(result, arm="zero-pad", control="noise", items=(one, two, one))
    rows = hub.to_dataframe()
    assert hub.items == (one, two)
    assert set(rows["arm"]) == {"zero-pad"} and set(rows["control"]) == {"noise"} and set(rows["item"]) == {one, two}
    hub.items = ()
    assert len(hub.to_dataframe()) == 2 * 6


def test_views_agree_whatever_the_order_of_clicks(result):
    rng = np.random.default_rng(0)
    moves = [
        ("arm", "random-projection"),
        ("control", "noise"),
        ("query", result.predictions["item"].iloc[3]),
        ("arm", "zero-pad"),
    ]
    for _ in range(4):
        hub = Selection(result)
        one, two = StudyView(result, hub), StudyView(result, hub)
        for place in rng.permutation(len(moves)):
            trait, value = moves[place]
            view = (one, two)[rng.integers(2)]
            if trait == "query":
                hub.query = value
            else:
                getattr(view, trait).value = value
        for name in ("arm", "control"):
            assert getattr(one, name).value == getattr(two, name).value == getattr(hub, name)
        assert one.item.value == two.item.value and one.errors.value == two.errors.value
        marks = [[(tuple(d.x), tuple(d.y)) for d in view.parity_figure.data] for view in (one, two)]
        assert marks[0] == marks[1] and len(marks[0]) == 4
        assert one.parity_figure.layout.title.text.count(hub.control)


def test_a_click_on_a_point_pins_its_item(result):
    view = StudyView(result)
    trace = next(d for d in view.parity_figure.data if d.text is not None)

    class Points:
        point_inds = [2]

    view._clicked(trace, Points, None)
    assert view.selection.query == trace.text[2] and trace.text[2] in view.item.value
    view.errors.value = view.errors.options[-1][1]
    assert view.selection.query == view.errors.options[-1][1]


def test_an_error_in_a_callback_is_shown_and_the_page_goes_on(result, monkeypatch):
    view = StudyView(result)
    monkeypatch.setattr(view, "refresh", lambda: (_ for _ in ()).throw(DataError("no such thing <b>")))
    view.arm.value = "random-projection"
    assert "no such thing &lt;b&gt;" in view.message.value and 'role="alert"' in view.message.value
    monkeypatch.undo()
    view.control.value = "noise"
    assert view.message.value == "" and view.selection.arm == "random-projection"


def test_names_from_data_do_nothing(nasty):
    view = Dashboard(nasty)
    view.selection.query = nasty.predictions["item"].iloc[4]
    shown = [view.where.value, view.study.item.value, view.heading.value, view.static(), view.study.static()]
    assert all("<img src=x" not in text for text in shown)
    assert "&lt;img src=x" in view.study.item.value


def test_a_view_says_something_where_no_front_end_runs(result):
    bundle = Dashboard(result)._repr_mimebundle_()
    page = bundle["text/html"]
    assert "<svg" in page and "<script" not in page and "random-projection" in page


def reading(question="attention", layers=3, heads=4):
    data = xr.Dataset({"share": (("layer", "head"), np.random.default_rng(0).random((layers, heads)))})
    data["share"].attrs = {"long_name": "share", "units": "1"}
    return Reading(question, data, {"says": [NASTY], "limits": ["small"], "arm": "zero-pad", "n": "2 seeds"})


def test_a_reading_is_a_view_and_a_click_moves_the_selection(result, monkeypatch):
    import plotly.graph_objects as go

    import icrl_lab.plots as plots

    class Module:
        @staticmethod
        def figures(r):
            return {"map": go.Figure(go.Heatmap(z=r["share"].values.T)), "bars": go.Figure(go.Bar(x=[1, 2], y=[3, 4]))}

    monkeypatch.setattr("icrl_lab.widgets.reading.import_module", lambda name: Module)
    hub = Selection(result, layers=3, heads=4)
    view = ReadingView(reading(), hub)
    assert NASTY not in view.body.children[0].value and "&lt;img" in view.body.children[0].value

    class Points:
        xs, ys = [2], [3]

    view._clicked(view.figure.data[0], Points, None)
    assert (hub.layer, hub.head) == (2, 3)
    Points.ys = [9]
    view._clicked(view.figure.data[0], Points, None)
    assert "head must be" in view.message.value and hub.head == 3
    view.shown.value = "bars"
    assert view.figure.data[0].type == "bar"
    view.shown.value = "map"
    assert view.figure.data[0].type == "heatmap" and plots is not None


# ------------------------------------------------------------------------------------ work in the background


def test_only_the_latest_job_runs_and_errors_come_back():
    done, failed = [], []
    runner = Runner(done.append, failed.append, wait=0.05)
    for value in range(5):
        runner.submit(lambda job, v=value: v)
    runner.join()
    assert done == [4] and not failed
    runner.submit(lambda job: 1 / 0)
    runner.join()
    assert isinstance(failed[0], ZeroDivisionError)


def test_a_job_is_stopped_and_two_never_run_together():
    done, failed, inside, most = [], [], [], []
    started = threading.Event()

    def slow(job):
        inside.append(1)
        most.append(len(inside))
        started.set()
        try:
            for i in range(1000):
                job.step(i / 1000, "")
                time.sleep(0.005)
        finally:
            inside.pop()
        return "never"

    runner = Runner(done.append, failed.append, wait=0.0)
    start = time.perf_counter()
    runner.submit(slow)
    assert time.perf_counter() - start < 0.1  # the page is never blocked
    assert started.wait(5)
    runner.submit(lambda job: most.append(len(inside) + 1) or "second")
    runner.join()
    assert done == ["second"] and not failed and max(most) == 1
    started.clear()
    runner.submit(slow)
    assert started.wait(5)
    runner.stop()
    runner.join()
    assert done == ["second"] and not failed and issubclass(Stopped, Exception)


# ------------------------------------------------------------------------------------ servers


def test_a_working_copy_never_overwrites(tmp_path):
    made = serve.working_copy(tmp_path / "mine")
    assert made and all(path.suffix == ".ipynb" for path in made)
    made[0].write_text("mine")
    assert serve.working_copy(tmp_path / "mine") == [] and made[0].read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="is a file"):
        serve.working_copy(tmp_path / "file")


def test_the_latest_finished_run_is_found(result, tmp_path):
    with pytest.raises(DataError, match="no finished run"):
        serve.find_run(tmp_path)
    result.save(tmp_path / "one")
    assert serve.find_run(tmp_path) == tmp_path / "one" == serve.find_run(tmp_path / "one")
    page = serve.dashboard_notebook(tmp_path / 'a"b\n')
    assert len(page["cells"]) == 1
    compile(page["cells"][0]["source"], "cell", "exec")
