"""The order of a query's shots on a page: what is dragged is what the model is asked, and what was stored is replayed."""

import html
import itertools
import re
import threading
import time
from functools import cache

import numpy as np
import pytest
import traitlets as t

from icrl_lab.probes import live
from icrl_lab.probes.live import ask
from icrl_lab.probes.order import order
from icrl_lab.studies import Study, open_run
from icrl_lab.values import Task
from icrl_lab.widgets.order import ORDERS, OrderView
from icrl_lab.widgets.selection import Selection
from icrl_lab.widgets.shots import ShotList
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

NASTY = "<img src=x onerror=alert(1)>"


@cache
def run(name="llama", tokenizer="digits", classes=False):
    return toy_study(name, tokenizer, classes, arms=["text", "random-projection"], shots=5, seeds=2, queries=4).run(
        progress=False
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run without a model, and its stored reading."""
    folder = tmp_path_factory.mktemp("order") / "run"
    result = run()
    result.save(folder)
    reading = order(result.study, "random-projection", permutations=5, places=3, squares=1, queries=None)
    reading.save(folder / "readings" / "order.nc")
    return open_run(folder), reading


def settled(view):
    view.runner.join()
    return view


def test_a_list_takes_permutations_and_nothing_else():
    shown = ShotList()
    shown.show([{"name": str(i)} for i in range(4)])
    assert shown.order == (0, 1, 2, 3)
    shown.order = [3, 1, 0, 2]  # a front end sends lists
    assert shown.order == (3, 1, 0, 2)
    for wrong in ((0, 1, 2), (0, 0, 1, 2), (0, 1, 2, 4), (0, 1, 2, "3"), (False, 1, 2, 3)):
        with pytest.raises(t.TraitError, match="permutation"):
            shown.order = wrong
        assert shown.order == (3, 1, 0, 2)


@pytest.mark.parametrize(
    "name,tokenizer,classes", [("llama", "digits", False), ("gemma3", "unigram", False), ("llama", "digits", True)]
)
def test_the_model_is_asked_what_was_dragged(name, tokenizer, classes):
    result = run(name, tokenizer, classes)
    view = settled(OrderView(result, wait=0.0))
    own, query = view.chosen, view.query.value
    assert len(view.shots.bars) == 5 and view.stop.disabled and view.message.value == ""
    row = (4, 2, 0, 1, 3)
    view.shots.order = row
    settled(view)
    want = {c: [ask(result.study, "random-projection", c, query=query, shots=s) for s in (own, [own[i] for i in row])] for c in ("real", "noise")}  # fmt: skip
    assert view.chosen == tuple(own[i] for i in row)
    for control, (before, now) in want.items():
        assert view.now[control].outcome == pytest.approx(now.outcome, abs=1e-6)
        assert f"moves it by {now.outcome - before.outcome:+.3f}" in view.words.value
    bars = np.array(view.shots.bars)  # by card, not by place
    assert np.abs(bars[list(row), 0] - want["real"][1].attention).max() < 1e-6
    assert np.abs(bars[list(row), 1] - want["real"][1].on_vector).max() < 1e-6
    labels = view.figure.layout.yaxis.ticktext
    assert "real vectors, as it was" in labels and "noise vectors, now" in labels and len(labels) == 7
    if not classes:
        low, high = want["real"][1].interval
        mark = view.figure.data[1]
        assert mark.x[0] + mark.error_x.array[0] == pytest.approx(high) and mark.x[0] - mark.error_x.arrayminus[
            0
        ] == pytest.approx(low)


def test_the_named_orders_are_what_they_say():
    view = settled(OrderView(run(), wait=0.0))
    study, own = view.study, view.own
    y = study.task.targets[list(own)]
    near = study.material.likeness("cosine")(np.array([view.at]))[0][list(own)]
    for words, value, sign in (("labels ascending", y, 1), ("labels descending", y, -1), ("nearest first", near, -1), ("nearest last", near, 1)):  # fmt: skip
        view.buttons[words].click()
        assert (np.diff(sign * value[list(view.shots.order)]) >= 0).all() and len(view.shots.order) == 5
    seen = set()
    for _ in range(4):
        view.buttons["random"].click()
        seen.add(view.shots.order)
    assert len(seen) > 1
    view.buttons["as it was"].click()
    assert view.shots.order == (0, 1, 2, 3, 4) and set(view.buttons) == set(ORDERS)
    settled(view)
    assert view.chosen == own and "moves it" not in view.words.value


def test_two_views_agree_whatever_the_order_of_changes():
    result = run()
    moves = [("arm", "text"), ("control", "noise"), ("query", result.predictions["item"].unique()[2])]
    for turn in itertools.permutations(moves):
        hub = Selection(result)
        one, two = OrderView(result, hub, wait=0.0), OrderView(result, hub, wait=0.0)
        for (trait, value), view in zip(turn, (one, two, one)):
            if trait == "query":
                view.query.value = value
            else:
                setattr(hub, trait, value)
        settled(one), settled(two)
        assert one.query.value == two.query.value == hub.query == moves[2][1]
        assert one.shots.cards == two.shots.cards and list(one.now) == list(two.now) == ["real"]  # a text has no noise
        assert one.words.value == two.words.value != ""


def test_nothing_blocks_the_page_and_it_can_be_stopped(monkeypatch):
    view = settled(OrderView(run(), wait=0.0))
    going, gate, said = threading.Event(), threading.Event(), view.words.value

    def slow(*args, **given):
        going.set()
        gate.wait(10)
        return ask(*args, **given)

    monkeypatch.setattr(live, "ask", slow)
    start = time.perf_counter()
    view.shots.order = (1, 0, 2, 3, 4)
    assert time.perf_counter() - start < 4  # the job waits for ten
    assert going.wait(10) and not view.stop.disabled and view.bar.layout.visibility == "visible"
    start = time.perf_counter()
    view.stop.click()
    assert time.perf_counter() - start < 4
    gate.set()
    settled(view)
    assert view.words.value == said and view.stop.disabled and "Stopped" in view.message.value
    assert view.shots.order == (1, 0, 2, 3, 4)


def test_an_error_of_the_job_is_shown_and_the_page_goes_on(monkeypatch):
    view = settled(OrderView(run(), wait=0.0))
    monkeypatch.setattr(live, "ask", lambda *a, **g: (_ for _ in ()).throw(RuntimeError(NASTY)))
    view.shots.order = (1, 0, 2, 3, 4)
    settled(view)
    assert "RuntimeError: &lt;img" in view.message.value and 'role="alert"' in view.message.value and view.stop.disabled
    monkeypatch.undo()
    view.shots.order = (2, 0, 1, 3, 4)
    settled(view)
    assert view.message.value == "" and "moves it by" in view.words.value


def test_an_answer_that_comes_late_is_not_shown():
    result = run()
    view = settled(OrderView(result, wait=0.0))
    old = ({"real": view._key("real")}, view.chosen, dict(view.now), dict(view.now))
    view.selection.query = result.predictions["item"].unique()[1]
    settled(view)
    shown = view.words.value
    view._answered(old)
    assert view.words.value == shown and view.now["real"].query == view.at


def test_a_stored_run_replays_its_orders_and_cannot_be_asked(opened):
    result, reading = opened
    view = OrderView(result)
    assert "opened without its model" in view.body.children[0].value
    assert not view.shots.movable and view.shots.disabled and not view.shots.bars
    for query in view.query.options[1:3]:
        view.query.value = query
        for seed, at in ((1, 3), (0, 2)):
            view.seed.value, view.slider.value = seed, at
            one = reading.data.sel(query=query, seed=seed).isel(permutation=at)
            assert view.shots.order == tuple(one["orders"].values.tolist())
            for control in ("real", "noise"):
                assert f"{control} {float(one['outcome'].sel(control=control)):.3f}" in view.words.value
            assert view.figure.data[1].x[0] == float(one["outcome"].sel(control="real"))
            own = live.own_shots(run().study, "random-projection", "real", query, seed)
            assert [c["name"] for c in view.shots.cards] == [run().study.task.ids[p] for p in own]
            text = {c["name"]: c["label"] for c in view.shots.cards}
            task, material = run().study.task, run().study.material
            assert text == {task.ids[p]: f"{material.written(int(p))} = {task.targets[p]:.2f}" for p in own}
            rows = result.predictions.query("arm == 'random-projection' and item == @query and seed == @seed").set_index("control")  # fmt: skip
            for control in ("real", "noise"):
                said = rows.loc[control, ["prediction", "lower", "upper"]]
                assert "{} {:.3f} [{:.3f}, {:.3f}]".format(control, *said) in view.words.value
    assert view.selection.query == view.query.value
    box = next(b for b in view.body.children if type(b).__name__ == "Accordion")
    assert not box.children[0].children
    box.selected_index = 0
    assert box.children[0].children[0].reading.question == "order" and view.message.value == ""


def test_a_stored_run_of_classes_replays_its_orders(tmp_path):
    result = run(classes=True)
    result.save(tmp_path / "run")
    reading = order(result.study, "random-projection", permutations=3, places=3, squares=1, queries=None)
    reading.save(tmp_path / "run" / "readings" / "order.nc")
    view = OrderView(open_run(tmp_path / "run"))
    view.query.value, view.slider.value = view.query.options[1], 2
    one = reading.data.sel(query=view.query.value, seed=view.seed.value).isel(permutation=2)
    assert view.message.value == "" and view.shots.order == tuple(one["orders"].values.tolist())
    assert {c["label"] for c in view.shots.cards} <= {"yes", "no"}  # which stands for itself
    assert f"real {float(one['outcome'].sel(control='real')):.3f}" in view.words.value


def test_a_query_that_the_reading_did_not_ask_is_said(opened):
    result, _ = opened
    view = OrderView(result)
    view.query.options = view.query.options[:2]
    view.selection.query = result.predictions["item"].unique()[3]
    assert "did not ask about" in view.message.value and view.shots.cards == []
    view.selection.query = ""
    assert "Choose a query" in view.message.value
    bare = open_run(result.path)
    bare.readings = dict
    assert "Nothing was stored" in OrderView(bare).message.value


def test_names_from_data_do_nothing_and_a_view_says_something_where_nothing_runs(opened):
    plain = toy_task()
    ids = tuple(f"{NASTY}{i}" for i in range(len(plain)))
    task = Task(NASTY, ids, plain.items, tuple(NASTY for _ in ids), plain.targets, None, NASTY, NASTY, "molecule", plain.pool, plain.queries)  # fmt: skip
    result = Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "seeds": 1}).run(progress=False)
    view = settled(OrderView(result, wait=0.0))
    view.shots.order = (1, 0, 3, 2)
    settled(view)
    assert "moves it by" in view.words.value and not any(c["picture"] for c in view.shots.cards)
    page = view.static()
    assert "<img src=x" not in page + view.words.value + view.message.value and "<svg" in page and "<script" not in page
    assert "What the model answers" in page
    assert "innerHTML" not in (ShotList._esm if isinstance(ShotList._esm, str) else ShotList._esm.__str__())
    assert page.count("<li>") >= 4 and NASTY not in page  # the shots, in the order of the prompt
    names = re.findall(r"<li>([^:]*):", page.split("</ol>")[0])
    assert names == [html.escape(view.shots.cards[i]["name"]) for i in (1, 0, 3, 2)]
    early = OrderView(result, wait=30.0)
    assert "had not answered" in early.static() and "had not answered" not in page
    early.close()
    still = OrderView(opened[0])._repr_mimebundle_()["text/html"]
    assert "under each order" in still and "<svg" in still and "<script" not in still
