"""Widgets without a browser: traits are set and handlers called; every view of a page agrees; nothing from data is markup."""

import ast
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
import traitlets as t
import xarray as xr

from icrl_lab.errors import DataError, StudyError
from icrl_lab.plots import style
from icrl_lab.studies import Study
from icrl_lab.values import Reading, Task
from icrl_lab.widgets import serve
from icrl_lab.widgets.base import measured, redraw
from icrl_lab.widgets.dashboard import Dashboard
from icrl_lab.widgets.figure import figure_widget
from icrl_lab.widgets.live import Runner, Stopped
from icrl_lab.widgets.order import OrderView
from icrl_lab.widgets.reading import ReadingView
from icrl_lab.widgets.selection import Selection
from icrl_lab.widgets.study import StudyView
from tests.toy import PLAN, click, toy_llm, toy_study, toy_task, toy_vectors

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


def test_a_condition_moves_everything_that_the_study_shows():
    run = toy_study(seeds=2, arms=["text", "zero-pad"], with_text=[False, True], labels=["true", "permuted"], shots=[2, 4], queries=5).run(progress=False)  # fmt: skip
    view = StudyView(run)
    view.metric.value = "rmse"
    assert len(view.condition.options) == 8
    for words in (*(value for _, value in view.condition.options), next(iter(view.summaries))):
        view.condition.value = words
        at = {"labels": "permuted" if "permuted" in words else "true", "shots": 2 if "2 shots" in words else 4}
        own = {"text": (words.split(", ", 1)[1], True), "zero-pad": (words, "without" not in words)}
        for arm, (told, with_text) in own.items():
            view.arm.value = arm
            mine = run.predictions
            for column, value in {**at, "arm": arm, "control": "real", "with_text": with_text}.items():
                mine = mine[mine[column] == value]
            assert len(mine) == 10 and view.rows()["prediction"].tolist() == mine["prediction"].tolist()
            assert list(view.parity_figure.data[1].y) == mine["prediction"].tolist()
            assert f"<b>{arm}, real, {told}</b>" in view.parity_figure.layout.title.text
            error = (mine["prediction"] - mine["target"]).abs().groupby(mine["item"]).mean()
            assert view.errors.options[0][1] == error.idxmax() and view.message.value == ""
            here = mine[mine["item"] == view.selection.query]
            assert f"predicted {here['prediction'].mean():.2f}" in view.item.value
    assert view.arms_figure.layout.title.text.count(words)


def test_what_was_not_asked_is_said():
    run = toy_study(seeds=2, arms=["text", "zero-pad"], queries=5).run(progress=False)
    view = StudyView(run)
    view.arm.value, view.control.value = "text", "noise"
    for told in (view.message.value, view.parity_figure.layout.title.text, view.static()):
        assert "text was not asked under noise." in told
    assert not view.parity_figure.data and not view.errors.options
    view.control.value = "real"
    assert view.message.value == "" and "n = 5 items" in view.parity_figure.layout.title.text
    assert view.parity_figure.layout.xaxis.visible is not False
    click(view.parity_figure, (2, 3, 0.0, 0.0))
    assert view.selection.query == view.parity_figure.data[2].text[3]
    view.selection.items = ("item0",)  # which is a shot
    assert "None of the selected items was asked about." in view.message.value and not view.parity_figure.data
    view.selection.items = ()
    assert view.message.value == "" and len(view.errors.options) == 5


def failing(run, item, seeds, reference):
    """The same run, but that an item fails in so many of its seeds."""
    frame = run.predictions
    lost = (frame["item"] == item) & (frame["seed"] < seeds)
    frame = frame.assign(prediction=frame["prediction"].astype(object).mask(lost, None), reference=reference)
    return replace(run, predictions=frame.assign(status=frame["status"].mask(lost, "no number")))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_failure_is_an_error_as_large_as_that_of_its_shots_mean_and_is_told(result, seeds):
    item = result.predictions["item"].iloc[2]
    view = StudyView(failing(result, item, seeds, 1000.0))
    view.selection.query = item
    label, first = view.errors.options[0]
    mine = result.predictions.query("item == @item and arm == @view.arm.value and control == 'real'")
    left = mine[mine["seed"] >= seeds]
    error = ((left["prediction"] - left["target"]).abs().sum() + seeds * abs(1000 - mine["target"].iloc[0])) / 2
    assert first == item and label == f"{item}: off by {error:.2f} u, failed in {seeds} of 2 seeds"
    assert f"failed in {seeds} of 2 seeds" in view.item.value and "nan" not in view.item.value
    assert ("predicted" in view.item.value) == (seeds == 1)  # of the seeds that answered
    assert not any("failed" in told for told, name in view.errors.options if name != item)


def test_a_failure_of_a_class_counts_as_the_majority_of_its_shots():
    run = toy_study(classes=True, seeds=2, queries=5).run(progress=False)
    item, true = run.predictions[["item", "target"]].iloc[0]
    for reference, wrong in ((true, False), ("no" if true == "yes" else "yes", True)):
        view = StudyView(failing(run, item, 2, reference))
        told = [label for label, name in view.errors.options if name == item]
        assert told == [f"{item}: wrong in 2 seeds, failed in 2 of 2 seeds"] * wrong
        view.selection.query = item
        assert "failed in 2 of 2 seeds" in view.item.value and "None" not in view.item.value


def test_numbers_of_small_targets_keep_their_digits():
    task = toy_task()
    task = replace(task, targets=1e-6 * task.targets)
    run = Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "seeds": 1}).run(progress=False)
    view, row = StudyView(run), run.predictions.iloc[0]
    told = {item: float(re.search("off by (.*) u", words)[1]) for words, item in view.errors.options}
    error = (run.predictions["prediction"] - run.predictions["target"]).abs()[run.predictions["item"] == row["item"]]
    assert told[row["item"]] == pytest.approx(error.iloc[0], rel=0.01) and error.iloc[0] > 0
    assert f"measured {row['target']:.4g}, predicted {row['prediction']:.3g} u" in view.item.value
    shots = OrderView(run, view.selection, wait=30.0)
    labels = [float(card["label"].split(" = ")[1]) for card in shots.shots.cards]
    assert labels == pytest.approx(task.targets[list(shots.chosen)], rel=0.01)
    shots.close()


def test_what_was_measured_is_told_to_four_digits():
    values = (0.1257302210933933, -3.8, 0.0, 1234.5678, 123456.78, "0.12345", True)
    assert [measured(v) for v in values] == ["0.1257", "-3.8", "0", "1235", "123457", "0.12345", "True"]


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


def test_a_closed_dashboard_leaves_the_selection_to_others(result):
    hub = Selection(result)
    stays = StudyView(result, hub)
    before = {name: [len(found) for found in kinds.values()] for name, kinds in hub._trait_notifiers.items()}
    page = Dashboard(result, hub)
    page.tabs.selected_index = page.names.index("order")
    page.views["order"].close()
    page.close()
    page.close()  # as ipywidgets does when nobody holds it any more
    hub.arm = "zero-pad" if hub.arm != "zero-pad" else "random-projection"
    after = {name: [len(found) for found in kinds.values()] for name, kinds in hub._trait_notifiers.items()}
    assert {name: n for name, n in after.items() if any(n)} == {name: n for name, n in before.items() if any(n)}
    assert stays.arm.value == hub.arm


def test_a_view_says_something_where_no_front_end_runs(result):
    bundle = Dashboard(result)._repr_mimebundle_()
    page = bundle["text/html"]
    assert "<svg" in page and "<script" not in page and "random-projection" in page


def test_a_still_that_cannot_be_drawn_does_not_cost_the_view(result, monkeypatch):
    view = StudyView(result)
    monkeypatch.setattr(view, "static", lambda: (_ for _ in ()).throw(ValueError(NASTY)))
    bundle = view._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    assert "could not be drawn (ValueError: &lt;img" in bundle["text/html"] and "<img" not in bundle["text/html"]


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
        xs, ys, point_inds = [2], [3], [[3, 2]]

    view._clicked(view.figure.data[0], Points, None)
    assert (hub.layer, hub.head) == (2, 3)
    Points.ys = [9]
    view._clicked(view.figure.data[0], Points, None)
    assert "head must be" in view.message.value and hub.head == 3
    view.shown.value = "bars"
    assert view.figure.data[0].type == "bar"
    view.shown.value = "map"
    assert view.figure.data[0].type == "heatmap" and plots is not None


def two_maps(monkeypatch):
    """Figures of a reading, the first with two maps and a line between them, all of them clicked."""
    import plotly.graph_objects as go

    class Module:
        @staticmethod
        def figures(r):
            z = r["share"].values.T
            return {
                "maps": go.Figure([go.Heatmap(z=z), go.Scatter(x=[1], y=[1]), go.Heatmap(z=z)]),
                "bars": go.Figure(go.Bar(x=[1], y=[3])),
            }

    monkeypatch.setattr("icrl_lab.widgets.reading.import_module", lambda name: Module)


def test_a_click_on_one_trace_leaves_what_another_said(result, monkeypatch):
    two_maps(monkeypatch)
    hub = Selection(result, layers=3, heads=4)
    view = ReadingView(reading(), hub)
    for number in (0, 2):
        click(view.figure, (number, [9, 1], 1, 9))
        assert "head must be" in view.message.value and hub.head == 0
    click(view.figure, (2, [2, 1], 1, 2))
    assert view.message.value == "" and (hub.layer, hub.head) == (1, 2)


def test_a_click_beside_the_points_leaves_the_error_of_the_last(result, monkeypatch):
    view = StudyView(result)
    large = next(i for i, d in enumerate(view.parity_figure.data) if d.text is not None)
    names = list(view.parity_figure.data[large].text)
    monkeypatch.setattr(view, "refresh", lambda: (_ for _ in ()).throw(DataError("no such thing")))
    click(view.parity_figure, (large, 1, 0.0, 0.0))
    assert view.selection.query == names[1] and "no such thing" in view.message.value
    click(view.parity_figure, (1, 0, 0.0, 0.0))  # a small point, which nobody listens to
    assert view.selection.query == names[1] and "no such thing" in view.message.value
    monkeypatch.undo()
    click(view.parity_figure, (large, 2, 0.0, 0.0))
    assert view.selection.query == names[2] and view.message.value == ""


# ------------------------------------------------------------------------------------ figures that change in place


def full(value):
    """Without what is not there, and without the names of traces."""
    if isinstance(value, dict):
        kept = {k: full(v) for k, v in value.items() if k != "uid"}
        return {k: v for k, v in kept.items() if v not in ({}, [], None)}
    return [full(v) for v in value] if isinstance(value, list | tuple) else value


def different():
    """Figures of the same traces, that have different things, and one of other traces."""
    import plotly.graph_objects as go

    line = {"type": "line", "x0": 0, "x1": 1, "y0": 0, "y1": 1}
    one = go.Figure(
        [
            go.Heatmap(z=np.eye(3), customdata=[["a"] * 3] * 3, hovertemplate="%{z}", zmid=0, colorbar_title_text="u"),
            go.Scatter(x=[1, 2], y=[2, 3], marker={"color": np.array([1.0, 2.0]), "size": 4}, error_x={"array": [1, 2]}),
        ],
        {"shapes": [line] * 3, "coloraxis": {"cmin": 1}, "xaxis2": {"domain": [0, 0.5]}, "title": "one", "template": "none"},
    )  # fmt: skip
    two = go.Figure(
        [go.Heatmap(z=np.ones((4, 5)), colorscale="Viridis"), go.Scatter(x=np.arange(4), y=[2], marker_color="red")],
        {"annotations": [{"text": "two"}], "yaxis": {"title": "v"}, "shapes": [line], "template": "none"},
    )
    return one, two, go.Figure(go.Bar(x=[1], y=[2]), {"title": "three"})


def test_a_figure_that_is_drawn_over_keeps_nothing_of_the_last():
    one, two, three = different()
    shown = figure_widget(one)
    for figure, replaced in ((two, False), (one, False), (three, True), (two, True), (one, False)):
        assert redraw(shown, figure) is replaced
        assert full(shown.to_dict()) == full(figure.to_dict())
        later = {"data": shown._widget_data, "layout": shown._widget_layout}
        assert full(style.graph_objects().Figure(later).to_dict()) == full(figure.to_dict())


def test_only_what_differs_is_sent_to_a_page_that_is_there():
    one = different()[0]
    shown = figure_widget(one)
    before = shown._widget_data
    shown._view_count = 1
    sent = []
    shown._send_update_msg = lambda restyle_data, relayout_data, **_: sent.append((restyle_data, relayout_data))
    other = style.graph_objects().Figure(one)
    other.data[1].x, other.layout.title.text = [1, 5], "another"
    redraw(shown, other)
    assert len(sent) == 1 and set(sent[0][0]) == {"x"} and {k.split(".")[0] for k in sent[0][1]} == {"title"}
    assert shown._widget_data is before  # the view has it all; the whole would be sent for nothing
    redraw(shown, other)
    assert len(sent) == 1


def test_what_a_person_did_to_a_figure_is_left(result):
    shown = figure_widget(different()[0])
    shown.layout.dragmode, shown.data[1].visible = "pan", "legendonly"
    redraw(shown, different()[1])
    assert shown.layout.dragmode == "pan" and shown.data[1].visible == "legendonly"


def test_a_view_that_is_seen_late_shows_what_is_selected(result, monkeypatch):
    """Nobody looks at it when the selection moves, as in a tab that was not opened; what it begins with on a page is then the last."""
    two_maps(monkeypatch)
    hub = Selection(result)
    views = [StudyView(result, hub), ReadingView(reading(), hub)]
    hub.arm, hub.query = "random-projection", hub.queries[2]
    views[1].shown.value = "bars"
    for view, name in ((views[0], "parity_figure"), (views[0], "arms_figure"), (views[1], "figure")):
        shown = getattr(view, name)
        later = {"data": shown._widget_data, "layout": shown._widget_layout}
        assert full(style.graph_objects().Figure(later).to_dict()) == full(shown.to_dict())
    assert "random-projection" in views[0].parity_figure._widget_layout["title"]["text"]
    assert views[1].figure._widget_data[0]["type"] == "bar"


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
    assert time.perf_counter() - start < 2.5  # the page is never blocked: the job takes five seconds
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


def test_a_job_that_is_stopped_while_it_waits_for_the_model_does_not_run():
    done, started, go = [], threading.Event(), threading.Event()
    runner = Runner(done.append, done.append, wait=0.0)

    def slow(job):  # as a forward pass, which does not ask whether it was stopped
        started.set()
        go.wait(5)

    runner.submit(slow)
    assert started.wait(5)
    runner.submit(lambda job: "second")
    time.sleep(0.2)  # its pause is over: it waits for the first
    runner.stop()
    go.set()
    runner.join()
    assert done == []


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
    (tmp_path / "good.csv").write_text("id,y\n")
    with pytest.raises(DataError, match=r"good\.csv is a file, and .*; give the folder that icrl-lab run made"):
        serve.find_run(tmp_path / "good.csv")
    result.save(tmp_path / "one")
    assert serve.find_run(tmp_path) == tmp_path / "one" == serve.find_run(tmp_path / "one")
    for name in ('a"b\n', "µ \U0001f600", "\udce9", "'); 1/0 #"):  # also one that is no UTF-8
        page = json.loads(json.dumps(serve.dashboard_notebook(tmp_path / name)))
        (cell,) = page["cells"]
        call = ast.parse(cell["source"]).body[-1].value
        assert [arg.value for arg in call.args] == [str(tmp_path / name)] and not call.keywords


def test_the_address_that_is_told_is_the_dashboards_own_and_its_token_stands_in_no_command(
    result, tmp_path, monkeypatch, capsys
):
    result.save(tmp_path / "run")
    served = []
    monkeypatch.setattr(
        serve, "_serve", lambda command, environment, opens: served.append((command, environment, opens)) or 0
    )
    with socket.socket() as other:
        other.bind((serve.HOST, 0))
        other.listen()
        taken = other.getsockname()[1]
        assert serve.open_dash(tmp_path / "run", browser=False, port=taken) == 0
        port, token = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", capsys.readouterr().out).groups()
        ((command, environment, opens),) = served
        assert opens == "" and "--no-browser" in command  # Voila's own way leaves the token out
        assert serve.open_dash(tmp_path / "run", port=taken) == 0
        assert served[1][2] in capsys.readouterr().out and "?token=" in served[1][2]
        assert int(port) > taken and f"--port={port}" in command and "--Voila.port_retries=0" in command
        assert environment["JUPYTER_TOKEN"] == token and not any(token in part for part in command)
        with pytest.raises(StudyError, match="no port"):
            serve.free_port(taken, tries=1)


def test_a_browser_is_opened_once_the_server_answers_and_never_for_one_that_ended(monkeypatch):
    opened = []

    def seen(address):
        with urllib.request.urlopen(address, timeout=5) as answer:
            opened.append((address, answer.status))

    monkeypatch.setattr(serve.webbrowser, "open", seen)
    port = serve.free_port(18866)
    late = f"import time, http.server as h; time.sleep(0.6); s = h.HTTPServer(('{serve.HOST}', {port}), h.SimpleHTTPRequestHandler); s.timeout = 5; [s.handle_request() for _ in '12']"  # fmt: skip
    address = f"http://{serve.HOST}:{port}/?token=t"
    assert serve._serve([sys.executable, "-c", late], {}, opens=address) == 0
    until = time.time() + 5
    while not opened and time.time() < until:  # the server may end before its reader has read
        time.sleep(0.05)
    assert opened == [(address, 200)]
    assert serve._serve([sys.executable, "-c", "raise SystemExit(3)"], {}, opens=address) == 3
    assert len(opened) == 1


def test_a_page_that_is_loaded_again_gets_the_figure_as_it_is():
    go = style.graph_objects()
    shown = figure_widget(go.Figure(go.Scatter(x=[1, 2, 3], y=[1, 2, 3]), {"title": "old"}))
    shown._view_count = 1  # a page was there, and is loaded again: the kernel is not told
    redraw(shown, go.Figure(go.Scatter(x=[1, 2, 3], y=[3, 2, 2]), {"title": "new"}))
    state = shown.get_state()
    assert state["_widget_layout"]["title"]["text"] == "new" and list(state["_widget_data"][0]["y"]) == [3, 2, 2]


def test_a_page_that_is_loaded_again_gets_no_word_that_json_has_not():
    go = style.graph_objects()
    shown = figure_widget(go.Figure(go.Scatter(x=[1, 2], y=[float("nan"), 2.0], customdata=[["a", float("inf")]] * 2)))
    state = shown.get_state()
    (trace,) = json.loads(json.dumps(state["_widget_data"], allow_nan=False))
    assert trace["y"] == [None, 2.0] and trace["customdata"] == [["a", None]] * 2


def test_a_reading_alone_has_its_view():
    """Without the run, a selection of what the reading names: nothing else can be chosen, and a click still moves it."""
    from tests.test_widgets_patching import restoring

    one = restoring()
    view = one.widget()
    assert type(view).__name__ == "PatchingView" and view.selection.arms == (one.about["arm"],)
    asked = tuple(map(str, one.data["query"].values)) if "query" in one.data.coords else view.selection.queries
    assert view.selection.queries == asked and len(view.selection.to_dataframe()) == len(asked)
    with pytest.raises(t.TraitError, match="is not in this run"):
        view.selection.query = "nobody"
    other = one.widget(view.selection)
    assert other.selection is view.selection


def test_the_first_figure_brings_no_checker_of_addresses():
    """It costs seconds of the first paint. Who asks for it later gets it: nothing is left in its place."""
    code = (
        "import sys; from icrl_lab.widgets.figure import _figure_class; _figure_class()\n"
        "print('rfc3987_syntax' in sys.modules, 'nbformat' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
