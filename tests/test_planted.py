"""Models with a planted mechanism, and what each probe says of them.

First the truth itself, seen through the engine alone; then each probe through its public function: it finds the head, the
layer, the shot, the order that were planted, and nothing where nothing was.
"""

from functools import cache

import numpy as np
import pytest

from icrl_lab.engine.proof import plain, variation
from icrl_lab.probes.geometry import geometry
from icrl_lab.probes.lens import lens
from icrl_lab.probes.scene import Scene, scene
from icrl_lab.studies import Study
from icrl_lab.values import Capture
from tests.planted import BLOCKS, COPY, FAMILIES, HEADS, LETTERS, PREVIOUS, nearest_shot, planted_study, similarity

FAMILY = pytest.mark.parametrize("family", FAMILIES)
SEEDS = (0, 1, 2)


@cache
def study(kind: str = "nearest", family: str = "llama", model_seed: int = 0) -> Study:
    return planted_study(kind, family, model_seed=model_seed)


def letters(one: Scene) -> np.ndarray:
    """(n, k) which letter each shot is shown with."""
    return np.array([[LETTERS.index(one.study.material.written(int(p))) for p in row] for row in one.shots])


def attention(one: Scene) -> np.ndarray:
    """(n, blocks, heads, k) attention of the answer to each shot's label."""
    where = [parts.at("label") for parts in one.parts]
    asked = [Capture(rows=(-1,), columns=tuple(places)) for places in where]
    return np.stack([t.attention[:, :, 0] for t in one.engine.run(one.prompts, [0], asked).traces])


# ------------------------------------------------------------------------------------------------ the truth


@FAMILY
def test_the_answer_is_the_label_of_the_nearest_shot(family):
    hits, explained = [], []
    for seed in SEEDS:
        one = scene(study(family=family), seed=seed)
        n = np.arange(len(one.queries))
        copied = letters(one)[n, nearest_shot(one)]
        said = one.engine.next_token(one.prompts, [path[0] for path in one.tries.cuts[0].labels]).argmax(1)
        assert len(set(copied)) > 3
        hits.append((said == copied).mean())
        explained.append(np.corrcoef(one.read(), one.study.material.format.values[copied])[0, 1])
    assert np.mean(hits) > 0.97 and np.min(explained) > 0.99


@FAMILY
def test_the_engine_runs_the_planted_model_as_transformers_does(family):
    one = scene(study(family=family), queries=3)
    for prompt, row in zip(one.prompts, one.engine.next_token(one.prompts)):
        assert variation(plain(one.study.llm, prompt), row) < 1e-5


@FAMILY
@pytest.mark.parametrize("kind", ["nearest", "recency"])
def test_the_previous_head_looks_at_the_slot(kind, family):
    one = scene(study(kind, family), queries=5)
    for prompt, parts in zip(one.prompts, one.parts):
        shots = range(parts.shown)
        slots = [parts.at("slot", s)[0] for s in (*shots, parts.shown)]
        rows = (*(parts.at("label", s)[0] for s in shots), len(prompt) - 1)
        trace = one.engine.run([prompt], [0], Capture(rows=tuple(rows))).traces[0]
        assert trace.attention[*PREVIOUS, np.arange(len(rows)), slots].min() > 0.999


@FAMILY
def test_the_copy_head_looks_at_the_label_of_the_nearest_shot_and_no_other_head_does(family):
    hits = []
    for seed in SEEDS:
        one = scene(study(family=family), seed=seed)
        found = attention(one)
        assert found[:, *COPY].sum(-1).min() > 0.999
        hits.append((found.argmax(-1) == nearest_shot(one)[:, None, None]).mean(0))
    mean = np.mean(hits, 0)
    assert mean[COPY] == 1
    mean[COPY] = 0
    assert mean.max() < 0.5
    spread = attention(scene(study(family=family))).mean(0)  # and yet the others look somewhere, each somewhere else
    assert len({tuple(row.round(3)) for row in spread.reshape(BLOCKS * HEADS, -1)}) > BLOCKS * HEADS / 2


@FAMILY
def test_order_matters_where_recency_was_planted_and_nowhere_else(family):
    moved = {}
    for kind in ("nearest", "recency"):
        orders = [scene(study(kind, family), order=order) for order in ("random", "ascending", "descending")]
        assert all(np.array_equal(np.sort(orders[0].shots), np.sort(other.shots)) for other in orders)
        read = np.stack([one.read() for one in orders])
        moved[kind] = np.abs(read - read[0]).max(0)
    assert moved["nearest"].max() < 1e-3
    assert moved["recency"].mean() > 0.1


@FAMILY
def test_recency_still_prefers_near_shots(family):
    one = scene(study("recency", family))
    chosen = attention(one)[:, *COPY].argmax(-1)
    cosine = similarity(one)
    n = np.arange(len(chosen))
    assert (chosen >= nearest_shot(one)).all() and (chosen > nearest_shot(one)).any()
    assert (cosine[n, chosen] > np.median(cosine, 1)).mean() > 0.9


@FAMILY
def test_the_blind_model_says_the_last_label_whatever_the_vectors(family):
    values = study("blind", family).material.format.values
    for control in ("real", "noise", "zero"):
        one = scene(study("blind", family), control=control)
        assert np.abs(one.read() - values[letters(one)[:, -1]]).max() < 0.01


def test_a_random_model_follows_nothing():
    hits = [
        (attention(one).argmax(-1) == nearest_shot(one)[:, None, None]).mean()
        for one in (scene(study("random", model_seed=m), seed=m % 3) for m in range(4))
    ]
    assert abs(np.mean(hits) - 1 / 8) < 0.04


# ------------------------------------------------------------------------------------------------ the probes

MOVED, COPIED = (
    PREVIOUS[0] + 1,
    COPY[0] + 1,
)  # depths from which the answer's place has the query's vector, and the answer


@FAMILY
def test_the_lens_finds_the_depth_where_the_answer_is_copied_and_where_the_vector_arrives(family):
    found = lens(study(family=family), queries=24)
    final = found["final"].sel(control="real")
    assert (final[COPIED:] > 0.98).all() and (abs(final[:COPIED]) < 0.5).all()
    real, noise = (found["score_q"].sel(control=c, position="answer") for c in ("real", "noise"))
    assert (real[MOVED:] < 0.05).all() and (real[:MOVED] > 0.5).all() and (noise > 0.05).all()


@FAMILY
def test_geometry_finds_the_depth_where_the_vector_arrives(family):
    found = geometry(study(family=family), queries=24, permutations=100)
    first = found["first"].sel(relation="encoder")
    assert first.sel(position="slot") == 0 and first.sel(position="answer") == MOVED
    assert found["encoder_rsa"].sel(control="real", space=f"answer {MOVED}") > 0.99
    assert found["first_low"].sel(relation="encoder", position="answer") == MOVED
