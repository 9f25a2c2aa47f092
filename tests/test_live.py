"""Asking again: the numbers of a live answer are those of the scene, under any shots and any control."""

import threading
from functools import cache

import numpy as np
import pytest

from icrl_lab import controls
from icrl_lab.errors import StudyError
from icrl_lab.probes import beside
from icrl_lab.probes.live import ask, own_shots
from icrl_lab.probes.scene import arranged, replaced, scene
from icrl_lab.probes.spans import captured
from icrl_lab.values import Vectors
from tests.planted import nearest_shot, planted_study
from tests.toy import toy_study

FAMILY = pytest.mark.parametrize("name,tokenizer", [("llama", "digits"), ("gemma3", "unigram")])

NEAR = 2e-5  # a float32 prompt that is packed with others, or of which something is kept, differs by its rounding


@cache
def small(name="llama", tokenizer="digits", arms=("zero-pad", "random-projection", "text"), **plan):
    return toy_study(name, tokenizer, arms=list(arms), **plan)


@FAMILY
@pytest.mark.parametrize("fmt", ["letter", "two-digit"])
@pytest.mark.parametrize(
    "arm,control", [("random-projection", "real"), ("random-projection", "noise"), ("text", "real")]
)
def test_an_answer_is_the_scenes_own_and_follows_an_arrangement(name, tokenizer, fmt, arm, control):
    study = small(name, tokenizer, label_format=fmt, labels="permuted", shots=5)
    whole = scene(study, arm, control, seed=1)
    before = whole.read()
    row = [3, 0, 4, 2, 1]
    after = arranged(whole, [row] * len(before)).read()
    for i in (0, 2, 5):
        query, shots = int(whole.queries[i]), whole.shots[i]
        one = scene(study, arm, control, seed=1, queries=[query])
        for given in (None, shots):
            found = ask(study, arm, control, query=query, seed=1, shots=given)
            assert found.outcome == pytest.approx(float(one.read()[0]), abs=NEAR) and np.array_equal(found.shots, shots)
            assert found.outcome == pytest.approx(before[i], abs=NEAR)
        there = ask(study, arm, control, query=whole.ids[i], seed=1, shots=shots[row])
        assert there.outcome == pytest.approx(float(arranged(one, [row]).read()[0]), abs=NEAR)
        assert there.outcome == pytest.approx(after[i], abs=NEAR)
        assert there.said.mean == pytest.approx(there.outcome, abs=1e-6)
        low, high = there.interval
        p, x = there.said.probs, there.said.values
        assert p[x <= low].sum() >= 0.05 > p[x < low].sum() and p[x <= high].sum() >= 0.95 > p[x < high].sum()
    assert np.abs(after - before).max() > 1e-3  # the order does something here at all


@FAMILY
def test_of_classes_an_answer_has_probabilities_and_the_scenes_log_odds(name, tokenizer):
    study = small(name, tokenizer, classes=True, arms=("zero-pad",))
    one = scene(study, "zero-pad", seed=2)
    for i in range(len(one.queries)):
        outcome = float(scene(study, "zero-pad", seed=2, queries=[int(one.queries[i])]).read()[0])
        found = ask(study, "zero-pad", query=int(one.queries[i]), seed=2)
        p = found.said.probs[study.task.options.index(study.task.labels[one.queries[i]])]
        assert found.outcome == pytest.approx(outcome, abs=NEAR) == pytest.approx(np.log(p / (1 - p)), abs=1e-5)
        assert np.isnan(found.interval).all() and found.said.probs.sum() == pytest.approx(1)


@FAMILY
def test_attention_is_the_captured_row_of_the_querys_own_place(name, tokenizer):
    study = small(name, tokenizer, shots=5, repeat=2, label_format="two-digit")
    for arm in ("random-projection", "text"):
        one = scene(study, arm, seed=0, queries=3)
        for i, (found, weights) in enumerate(captured(one, rows=("slot",))):
            answer = ask(study, arm, query=int(one.queries[i]), seed=0)
            rest = weights[:, :, 0, 1:].astype(float)
            share = (rest / rest.sum(-1, keepdims=True)).mean((0, 1))
            by_hand = [share[found.shot[1:] == s].sum() for s in range(5)]
            assert np.abs(answer.attention - by_hand).max() < 1e-6
            assert (answer.on_vector <= answer.attention + 1e-9).all() and answer.on_vector.max() > 0
            assert 0 < answer.attention.sum() < 1


@FAMILY
@pytest.mark.parametrize(
    "control", ["real", "noise", "shuffled", "shared", "shared-item", "zero", "dummy", "back-translated"]
)
def test_another_shot_changes_its_own_line_and_vector_and_no_other(name, tokenizer, control):
    study = small(name, tokenizer, shots=5)
    one = scene(study, "random-projection", control, seed=1, queries=3)
    pool = [int(p) for p in study.task.pool if p not in one.shots]
    other = one.shots.copy()
    other[:, 2] = pool[:3]
    there = replaced(one, other)
    for i, (a, b) in enumerate(zip(one.prompts, there.prompts)):
        groups = [study.material.group(one.cell, (int(one.queries[i]),), x.shots[i]) for x in (one, there)]
        whole = study.material.arranged(one.cell, 0, groups)
        old, new = ("".join(p.tokens).removeprefix("<s>").split("\n") for p in whole)
        label = study.material.written(pool[i])
        assert [x == y for x, y in zip(old, new)][:2] == [True] * 2 and old[3:] == new[3:] and new[2].endswith(label)
        if control == "dummy":
            assert not len(b.vectors)
            continue
        keep = [0, 1, 3, 4, 5]
        assert a.vectors[keep].tobytes() == b.vectors[keep].tobytes()
        same = np.abs(a.vectors[2] - b.vectors[2]).max() < 1e-6
        assert control == "shuffled" or same == (control in ("shared", "shared-item", "zero"))
    if control == "real":  # the vectors are those of a study that shows these shots anyway
        again = replaced(there, one.shots)
        assert all(a.vectors.tobytes() == b.vectors.tobytes() for a, b in zip(again.prompts, one.prompts))
    if control == "noise":  # each newcomer has its own draw, the same whoever comes with it
        rows = [p.vectors[2] for p in there.prompts]
        assert max(abs(np.corrcoef(rows[a], rows[b])[0, 1]) for a, b in ((0, 1), (0, 2), (1, 2))) < 0.9
        pair = other.copy()
        pair[:, 4] = pool[5]
        again = replaced(one, pair).prompts
        assert max(np.abs(a.vectors[2] - b.vectors[2]).max() for a, b in zip(again, there.prompts)) < 1e-5


def test_who_joins_a_shuffled_cloud_gets_anothers_vector():
    values = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    old, new = Vectors(values[:4], tuple("abcd"), "s"), Vectors(values[4:], ("x", "y"), "s")
    _, drawn = controls.apply("shuffled", (), old, seed=3)
    found = controls.join("shuffled", old, drawn, new, seeds=[1, 2])
    assert found.values[:4].tobytes() == drawn.values.tobytes() and found.ids == (*old.ids, "x", "y")
    for row, own in ((4, 4), (5, 5)):
        assert (found.values[row] == values[:4]).all(1).any() and not (found.values[row] == values[own]).all()


def test_the_simple_predictors_are_those_of_the_shots_that_are_asked():
    study = small(shots=5)
    query = int(study.material.queries[1])
    shots = study.task.pool[[7, 1, 12, 4, 20]]
    found = ask(study, "zero-pad", query=query, shots=shots)
    assert found.simple["mean"] == pytest.approx(study.task.targets[shots].mean())
    one = replaced(scene(study, "zero-pad", queries=[query]), shots[None])
    assert found.simple == {name: said[0] for name, said in beside.simple(one).items()}
    assert found.outcome == pytest.approx(float(one.read()[0]), abs=1e-6)


def test_a_planted_model_answers_with_the_nearest_of_whatever_shots_are_put_there():
    study = planted_study("nearest", shots=6, queries=4)
    format_ = study.material.format
    for query in study.material.queries:
        near = study.material.likeness("cosine")(np.array([query]))[0]
        rng = np.random.default_rng(int(query))
        shots = rng.choice([p for p in study.task.pool if p != query], 6, replace=False)
        best = shots[near[shots].argmax()]
        found = ask(study, query=int(query), shots=shots)
        value = format_.values[format_.labels.index(study.material.written(int(best)))]
        assert found.said.mode == pytest.approx(value)
        noise = ask(study, None, "noise", query=int(query), shots=shots)
        assert noise.said.values.tolist() == found.said.values.tolist() and noise.control == "noise"
    assert nearest_shot(scene(study)).shape == (4,)


def test_own_shots_are_those_of_the_scene_and_need_no_model(monkeypatch):
    for plan in (dict(selection="nearest"), dict(order="near-last"), {}):
        study = small(shots=5, **plan)
        one = scene(study, "zero-pad", seed=1)
        monkeypatch.setattr(type(study), "engine", property(lambda s: pytest.fail("asked the model")))
        for query, row in zip(one.queries, one.shots):
            assert own_shots(study, "zero-pad", "real", int(query), 1).tolist() == row.tolist()
        monkeypatch.undo()


def test_what_cannot_be_asked_is_said():
    study = small(shots=5)
    query, pool = int(study.material.queries[0]), study.task.pool
    with pytest.raises(StudyError, match="is not among the study's queries; did you mean"):
        ask(study, "zero-pad", query=f"{study.task.ids[query]}x")
    with pytest.raises(StudyError, match="not among the study's queries"):
        ask(study, "zero-pad", query=int(pool[0]))
    with pytest.raises(StudyError, match="cannot be a shot"):
        ask(study, "zero-pad", query=query, shots=[*pool[:4], query])
    with pytest.raises(StudyError, match="stands twice"):
        ask(study, "zero-pad", query=query, shots=[*pool[:4], pool[0]])
    taught = small(arms=("ridge",), shots=5)
    own = own_shots(taught, "ridge", "real", query)
    other = next(p for p in pool if p not in own)
    with pytest.raises(StudyError, match="fits its map to the shots"):
        ask(taught, "ridge", query=query, shots=[*own[:4], other])
    assert np.isfinite(ask(taught, "ridge", query=query, shots=own[::-1]).outcome)


def test_two_who_ask_at_once_get_what_each_would_get_alone():
    study = small("gemma3", "unigram", shots=5)
    asked = [("real", 0), ("noise", 1), ("real", 2), ("noise", 0)]
    query = int(study.material.queries[0])
    want = [ask(study, "random-projection", c, query=query, seed=s).outcome for c, s in asked]
    got, failed = {}, []

    def one(i, control, seed):
        try:
            for _ in range(3):
                got[i] = ask(study, "random-projection", control, query=query, seed=seed).outcome
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(i, *each)) for i, each in enumerate(asked)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed and [got[i] for i in range(4)] == pytest.approx(want, abs=1e-6)
