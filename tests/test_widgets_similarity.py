"""Shots replaced by nearer and farther ones on a page: what is put there is what the model is asked, beside what the labels say."""

import re
import threading
import time
from functools import cache

import numpy as np
import pytest

from icrl_lab.probes import beside, live
from icrl_lab.probes.live import ask
from icrl_lab.probes.scene import scene
from icrl_lab.probes.similarity import similarity
from icrl_lab.studies import Study, open_run
from icrl_lab.values import Task
from icrl_lab.widgets.order import OrderView
from icrl_lab.widgets.selection import Selection
from icrl_lab.widgets.similarity import FARTHER, NEARER, SimilarityView
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

NASTY = "<img src=x onerror=alert(1)>"


@cache
def run(name="llama", tokenizer="digits", classes=False):
    plan = dict(arms=["text", "random-projection"], shots=5, seeds=2, queries=4)
    return toy_study(name, tokenizer, classes, **plan).run(progress=False)


@cache
def molecules():
    """Alcohols, chains and rings of some length."""
    plain = toy_task()
    made = tuple("C" * (2 + i // 6) + ("O", "N", "Cl", "c1ccccc1", "C(=O)O", "C#N")[i % 6] for i in range(len(plain)))
    task = Task("mol", plain.ids, made, made, plain.targets, None, "u", "size", "molecule", plain.pool, plain.queries)  # fmt: skip
    return Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "seeds": 1, "shots": 5, "queries": 3}).run(
        progress=False
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("similarity") / "run"
    result = run()
    result.save(folder)
    reading = similarity(result.study, "random-projection", counts=(5,), queries=None)
    reading.save(folder / "readings" / "similarity.nc")
    return open_run(folder), reading


def settled(view):
    view.runner.join()
    return view


def press(view, place, way):
    view.shots._handle_custom_msg({"card": place, "button": [NEARER, FARTHER].index(way)}, [])


@pytest.mark.parametrize(
    "name,tokenizer,classes", [("llama", "digits", False), ("gemma3", "unigram", False), ("llama", "digits", True)]
)
def test_the_model_is_asked_with_the_shots_that_were_put_there(name, tokenizer, classes):
    result = run(name, tokenizer, classes)
    view = settled(SimilarityView(result, wait=0.0))
    own, study = view.chosen, result.study
    ranks = [view.ranked().index(p) for p in own]
    low, high = int(np.argmin(ranks)), int(np.argmax(ranks))
    press(view, high, NEARER)
    press(view, low, FARTHER)
    settled(view)
    assert [a == b for a, b in zip(own, view.chosen)] == [place not in (low, high) for place in range(5)]
    for control in ("real", "noise"):
        before, now = (
            ask(study, "random-projection", control, query=view.query.value, shots=s) for s in (own, view.chosen)
        )
        assert view.now[control].outcome == pytest.approx(now.outcome, abs=1e-6)
        assert f"moves it by {now.outcome - before.outcome:+.3f}" in view.words.value
    mean = "majority" if classes else "mean"
    said = view.now["real"].simple[mean]
    assert (f"{mean} {said}" if classes else f"{mean} {said:.3f}") in view.words.value
    assert any("labels" in str(t) or "class" in str(t) for t in view.figure.layout.yaxis.ticktext)
    if not classes:
        assert said == pytest.approx(study.task.targets[list(view.chosen)].mean())
    written = [study.material.written(p) for p in view.chosen]
    assert all(c["label"].startswith(word) for c, word in zip(view.shots.cards, written))
    view.buttons["as it was"].click()
    assert settled(view).chosen == own and "moves it" not in view.words.value


@pytest.mark.parametrize("measure", ["cosine", "tanimoto"])
def test_nearer_and_farther_walk_through_the_pool_and_never_show_an_item_twice(measure):
    view = SimilarityView(molecules(), wait=0.0)
    view.measure.value = measure
    view.finding.join()
    study = view.study
    near = study.material.likeness(measure)(np.array([view.at]))[0]
    for place in range(5):
        held = near[view.chosen[place]]
        for way, sign in ((NEARER, 1), (FARTHER, -1)):
            other = view.exchanged(place, way)
            if other is not None:
                assert sign * (near[other[place]] - held) >= 0 and len(set(other)) == 5 and view.at not in other
                between = [p for p in study.task.pool if p not in view.chosen and sign * near[p] > sign * held]
                assert not between or sign * near[other[place]] <= min(sign * near[p] for p in between)
    seen = [view.chosen]
    while (other := view.exchanged(0, NEARER)) is not None:
        view.put(other)
        seen.append(other)
    assert len(set(seen)) == len(seen) > 2 and view.chosen[0] == next(
        p for p in view.ranked() if p not in view.chosen[1:]
    )
    press(view, 0, NEARER)
    assert "No item of the pool" in view.message.value
    view.buttons["all nearest"].click()
    tail = "" if measure == "cosine" else "-tanimoto"
    one = scene(study, "random-projection", selection=f"nearest{tail}", order="given", queries=[view.at])
    assert view.chosen == tuple(one.shots[0].tolist())
    view.buttons["all farthest"].click()
    assert near[list(view.chosen)].max() <= near[[p for p in study.task.pool if p not in view.chosen]].min()
    assert all(c["note"].startswith(measure) and c["picture"].startswith("data:image/svg") for c in view.shots.cards)
    settled(view)


def test_a_press_is_quick_and_two_kinds_of_view_agree(monkeypatch):
    result = molecules()
    hub = Selection(result)
    one, two = SimilarityView(result, hub, wait=0.0), OrderView(result, hub, wait=0.0)
    settled(one), settled(two)
    gate = threading.Event()
    monkeypatch.setattr(live, "ask", lambda *args, **given: gate.wait(10) and ask(*args, **given))
    start = time.perf_counter()
    press(one, 1, FARTHER)
    assert time.perf_counter() - start < 4  # the model answers after ten, unless it is let
    gate.set()
    settled(one), settled(two)
    monkeypatch.undo()
    assert hub.query == one.query.value == two.query.value
    two.query.value = two.query.options[2]
    settled(one), settled(two)
    assert one.query.value == two.query.value and one.chosen == two.chosen
    assert one.now["real"].outcome == pytest.approx(two.now["real"].outcome, abs=1e-6)


def test_an_arm_that_is_fitted_on_its_shots_says_why_no_other_can_stand_there():
    result = toy_study(arms=["ridge"], seeds=1, shots=5, queries=3).run(progress=False)
    view = settled(SimilarityView(result, wait=0.0))
    assert view.now
    press(view, 0, NEARER)
    settled(view)
    assert "fits its map to the shots of the study" in view.message.value and view.stop.disabled


def test_a_stored_run_replays_its_selections(opened):
    result, reading = opened
    view = SimilarityView(result)
    assert "opened without its model" in view.body.children[0].value and view.shots.disabled and not view.shots.buttons
    study = run().study
    for query in view.query.options[:2]:
        view.query.value = query
        for selection, seed in (("nearest", 1), ("farthest", 0), ("random", 1)):
            view.which.value, view.seed.value = selection, seed
            one = scene(
                study, "random-projection", selection=selection, seed=seed, queries=[study.task.ids.index(query)]
            )
            at = reading.data.sel(query=query, seed=seed, selection=selection)
            assert [c["name"] for c in view.shots.cards] == [study.task.ids[p] for p in one.shots[0]]
            near = study.material.likeness("cosine")(one.queries)[0][one.shots[0]]
            assert [c["note"] for c in view.shots.cards] == [f"cosine {v:.2f}" for v in near]
            for name, said in beside.simple(one).items():
                assert float(at["simple"].sel(predictor=name)) == pytest.approx(said[0])
                assert f"{name} of the shots {said[0]:.3f}" in view.words.value
            chosen = [study.task.ids[p] for p in one.shots[0]]
            made = result.predictions.query("arm == 'random-projection' and control == 'real' and item == @query and seed == @seed").iloc[0]  # fmt: skip
            interval = f"real {made['prediction']:.3f} [{made['lower']:.3f}, {made['upper']:.3f}]"
            assert (interval in view.words.value) == (made["shot_items"] == ";".join(chosen))
            assert ("no predictive interval" in view.words.value) == (made["shot_items"] != ";".join(chosen))
            assert all(
                c["label"].endswith(f" = {study.task.targets[p]:.2f}") for c, p in zip(view.shots.cards, one.shots[0])
            )
            real = float(at["outcome"].sel(control="real"))
            assert (
                real == pytest.approx(float(one.read()[0]), abs=2e-5) and f"real vectors {real:.3f}" in view.words.value
            )
            true = float(re.search(r" u; true: (\S+)\.<", view.words.value)[1])
            assert true == float(f"{study.task.targets[study.task.ids.index(query)]:.4g}")
    assert view.message.value == "" and "under these shots" in view.static() and "<script" not in view.static()


def test_a_stored_run_of_classes_replays_its_selections(tmp_path):
    result = run(classes=True)
    result.save(tmp_path / "run")
    reading = similarity(result.study, "random-projection", counts=(5,), queries=None)
    reading.save(tmp_path / "run" / "readings" / "similarity.nc")
    view = SimilarityView(open_run(tmp_path / "run"))
    view.query.value, view.which.value = view.query.options[1], "farthest"
    one = reading.data.sel(query=view.query.value, seed=view.seed.value, selection="farthest")
    assert view.message.value == "" and [c["name"] for c in view.shots.cards] == one["shown_item"].values.tolist()
    assert {c["label"] for c in view.shots.cards} <= {"yes", "no"}  # which stands for itself
    said = {c: f"{float(one['outcome'].sel(control=c)):.3f}" for c in ("real", "noise", "text")}
    answers = f"real vectors {said['real']}, noise vectors {said['noise']}, the item as text {said['text']} log-odds of the true class;"
    assert answers in view.words.value and "text vectors" not in view.words.value
    names = ", ".join(f"{n} of the shots {one['simple'].sel(predictor=n).item()}" for n in one["predictor"].values)
    assert f"; {names}; true: {one['target'].item()}." in view.words.value  # of classes, which have no units


def test_names_from_data_do_nothing(opened):
    plain = toy_task()
    ids = tuple(f"{NASTY}{i}" for i in range(len(plain)))
    task = Task(NASTY, ids, plain.items, tuple(NASTY for _ in ids), plain.targets, None, NASTY, NASTY, "molecule", plain.pool, plain.queries)  # fmt: skip
    view = settled(
        SimilarityView(Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "seeds": 1}).run(progress=False), wait=0.0)
    )
    press(view, 1, FARTHER)
    settled(view)
    assert "moves it by" in view.words.value
    assert "<img src=x" not in view.static() + view.words.value + view.message.value + view.doing.value
