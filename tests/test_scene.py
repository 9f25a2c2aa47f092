"""A scene is the study's own cell: the same prompts, answers and parts."""

import numpy as np
import pytest

from icrl_lab.errors import StudyError
from icrl_lab.probes.scene import scene
from icrl_lab.values import SLOT
from tests.toy import toy_study


@pytest.mark.parametrize("name,tokenizer", [("llama", "digits"), ("gemma3", "unigram")])
@pytest.mark.parametrize("fmt", ["letter", "two-digit"])
def test_a_scene_reads_what_the_study_predicts(name, tokenizer, fmt):
    study = toy_study(name, tokenizer, label_format=fmt, repeat=2)
    result = study.run()
    for seed in (0, 2):
        for control in ("real", "noise"):
            found = scene(study, "random-projection", control, seed=seed)
            rows = result.predictions.query(
                "arm == 'random-projection' and control == @control and seed == @seed"
            ).set_index("item")
            assert np.abs(found.read() - rows.loc[list(found.ids), "prediction"]).max() < 1e-4
            shown = [";".join(study.task.ids[p] for p in row) for row in found.shots]
            assert shown == rows.loc[list(found.ids), "shot_items"].tolist()


def test_the_outcome_of_a_class_is_its_log_odds():
    study = toy_study(classes=True, arms=["zero-pad"])
    found = scene(study, seed=1)
    prob = study.compute(found.cell)
    odds = found.read()
    right = prob["prediction"].to_numpy() == prob["target"].to_numpy()
    assert ((odds > 0) == right).all()


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("name,tokenizer", [("llama", "gpt2"), ("gemma3", "unigram")])
def test_every_token_has_its_part(name, tokenizer, with_text):
    study = toy_study(name, tokenizer, with_text=with_text, repeat=2, markers="paren")
    found = scene(study, "zero-pad", queries=4)
    assert len(found.prompts) == 4
    for prompt, parts, query in zip(found.prompts, found.parts, found.queries):
        assert len(parts.role) == len(prompt) and parts.shown == 8
        assert (prompt.ids[parts.at("slot")] == SLOT).all() and len(parts.at("slot")) == 9
        slots = [parts.at("slot", s)[0] for s in range(9)]
        assert slots == sorted(slots)
        for s in range(8):
            (label,) = parts.at("label", s)
            assert slots[s] < label < slots[s + 1]
        assert not len(parts.at("label", 8)) and len(prompt) - 1 in parts.query
        assert bool(len(parts.at("text"))) == with_text
        vectors = study.material.fitting.slot_maps(found.cell, 0)
        assert len(vectors) == 1 and study.task.ids[query] in found.ids


def test_what_a_probe_cannot_read_is_refused():
    with pytest.raises(StudyError, match="closed set"):
        scene(toy_study(label_format="as-written"))
    with pytest.raises(StudyError, match="no arm 'random-projektion'; did you mean 'random-projection'"):
        scene(toy_study(), "random-projektion")
    with pytest.raises(StudyError, match="one query each"):
        scene(toy_study(layout="paper", queries_per_prompt=2, label_format="digit", decode="greedy"))
