"""Classes in a study: length-normalised and calibrated scores, as a study file asks for them."""

from dataclasses import replace

import numpy as np
import pytest

from icrl_lab.errors import StudyError
from icrl_lab.studies import Study
from icrl_lab.studies.material import CONTENT_FREE
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

MODELS = [("llama", "digits"), ("gemma3", "unigram")]
ARMS = ["text", "zero-pad", "moments-vocab"]


def chances(study, cell):
    """Log-odds of the classes behind each query of a cell, from the answers that the study keeps."""
    rendered, groups = study.material.rendered(cell, 0)
    answers = study._answers(cell, rendered, groups, 0)
    return np.array([np.log(a.probs / a.probs.sum()) for a in answers])


def cell_of(study, arm, control="real", **more):
    return next(c for c in study.cells() if c.arm.name == arm and c.control == control and all(getattr(c, k) == v for k, v in more.items()))  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("arm", ARMS)
def test_calibration_moves_every_query_of_a_group_alike(model, arm):
    plain = toy_study(*model, classes=True, arms=ARMS, controls=["real", "noise"], with_text=False, labels="true")
    study = toy_study(*model, classes=True, arms=ARMS, controls=["real", "noise"], with_text=False, labels="true", calibrate=True)  # fmt: skip
    before, after = chances(plain, cell_of(plain, arm)), chances(study, cell_of(study, arm))
    moved = after - before
    moved -= moved[:, :1]  # log-odds are known up to a constant
    assert len(before) >= 3 and np.abs(moved[0]).max() > 1e-3
    assert np.allclose(moved, moved[0], atol=2e-4)
    # and it is the log-odds behind the queries that say nothing, the other way round
    cell = cell_of(study, arm)
    (group,) = study.material.shots(cell, 0)
    free = study.material.content_free(cell, 0, group)
    assert len(free) == (len(CONTENT_FREE) if arm == "text" else 1)
    from icrl_lab import answers

    given = answers.score_options(study.engine, free, study.task.options, study.llm.tokenizer)
    said = np.mean([np.log(a.probs / a.probs.sum() * a.mass) for a in given], axis=0)
    assert np.allclose(moved[0], -(said - said[0]), atol=2e-4)


def test_a_group_of_each_query_has_its_own_calibration():
    """Nearest shots differ from query to query, and so does what they say of nothing."""
    plan = {"classes": True, "arms": ["zero-pad"], "controls": ["real"], "with_text": False, "labels": "true", "selection": ["nearest"]}  # fmt: skip
    plain, study = toy_study(**plan), toy_study(**plan, calibrate=True)
    moved = chances(study, study.cells()[0]) - chances(plain, plain.cells()[0])
    moved -= moved[:, :1]
    assert np.abs(moved - moved[0]).max() > 1e-3


def test_the_slot_that_says_nothing_is_the_mean_of_the_shots():
    study = toy_study(classes=True, arms=["moments-vocab"], controls=["real", "noise", "dummy"], with_text=[False, True], calibrate=True)  # fmt: skip
    for control in ("real", "noise"):
        cell = cell_of(study, "moments-vocab", control, with_text=False)
        (group,) = study.material.shots(cell, 0)
        (free,) = study.material.content_free(cell, 0, group)
        (asked, *_) = study.material.rendered(cell, 0)[0]
        same = (asked.vectors[:, None] == free.vectors).all(-1)  # the shots' are those of the cell's own prompts
        assert same.any(0).sum() == len(group.positions) and not same.any(0)[-1]
        vectors, nothing = free.vectors[:-1], free.vectors[-1]
        assert np.allclose(
            nothing / np.linalg.norm(nothing), vectors.mean(0) / np.linalg.norm(vectors.mean(0)), atol=1e-5
        )
        assert np.linalg.norm(nothing) == pytest.approx(np.linalg.norm(vectors, axis=-1).mean(), rel=1e-4)
    with_text = cell_of(study, "moments-vocab", with_text=True)
    assert len(study.material.content_free(with_text, 0, group)) == len(CONTENT_FREE)
    dummy = cell_of(study, "moments-vocab", "dummy", with_text=False)
    (free,) = study.material.content_free(dummy, 0, group)
    assert not len(free.vectors)  # markers alone, as in the prompts of this control
    frame = study.run(progress=False).predictions
    assert (frame["status"] == "ok").all() and set(frame["prediction"]) <= set(study.task.options)


def test_a_label_of_many_tokens_gains_by_its_length():
    """Divided by its length, a longer label's log-probability rises by the factor, and nothing else moves."""
    task = toy_task(classes=True)
    task = replace(task, labels=tuple("no way" if label == "no" else label for label in task.labels), options=())
    plan = {**PLAN, "arms": ["zero-pad"], "controls": ["real"]}
    plain, study = (Study(task, toy_vectors(task), toy_llm(), **plan, per_token=each) for each in (False, True))
    assert len({len(ids) for ids in study.material.fitting.label_ids().values()}) == 2
    from icrl_lab import answers

    cell = plain.cells()[0]
    rendered, _ = plain.material.rendered(cell, 0)
    whole = answers.score_options(plain.engine, rendered, plain.task.options, plain.llm.tokenizer)
    logp = np.array([np.log(a.probs / a.probs.sum() * a.mass) for a in whole])
    by_option = study.material.fitting.label_ids()
    length = np.array([len(by_option[o]) for o in study.task.options])
    score = logp / length
    want = score - np.log(np.exp(score).sum(1, keepdims=True))
    assert np.allclose(chances(study, study.cells()[0]), want, atol=2e-4)


def test_classes_are_asked_one_query_a_prompt():
    with pytest.raises(StudyError, match="answered with numbers; a task with labels needs queries_per_prompt = 1"):
        toy_study(classes=True, queries_per_prompt=2, layout="paper", with_text=False, decode="greedy")


@pytest.mark.parametrize("key", ["calibrate", "per_token"])
def test_numbers_and_generated_answers_have_no_such_score(key):
    for plan in (
        {},
        {"classes": True, "decode": "greedy"},
    ):
        with pytest.raises(StudyError, match=f"{key} changes how classes are scored"):
            toy_study(**plan, **{key: True})
    with pytest.raises(StudyError, match=key):
        toy_study(classes=True, **{key: "yes"})


@pytest.mark.parametrize(
    ("layout", "behind"),
    [
        ({"shot": "{item} -> {label}", "separator": "; "}, ";"),
        ({"shot": "{item} is {label}.", "separator": "\n"}, "."),
        ("question", "\n\n"),
        ("arrow", "\n"),
    ],
)
def test_a_class_ends_as_it_does_in_the_shots(layout, behind, monkeypatch):
    """What tells an option from a longer one is the text that stands behind it in this layout, in studies and in probes."""
    from icrl_lab import answers
    from icrl_lab.probes import scene

    asked = []
    score, tries = answers.score_options, answers.tries
    monkeypatch.setattr(answers, "score_options", lambda *a, end, **k: asked.append(end) or score(*a, end=end, **k))
    monkeypatch.setattr(answers, "tries", lambda p, t, options, end: asked.append(end) or tries(p, t, options, end))
    for calibrate in (False, True):
        study = toy_study(classes=True, arms=["zero-pad"], controls=["real"], with_text=False, labels="true", layout=layout, calibrate=calibrate)  # fmt: skip
        study.run(progress=False)
        scene._tries(study, study.material.rendered(study.cells()[0], 0)[0])
    assert len(asked) > 4 and set(asked) == {behind}
