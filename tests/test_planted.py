"""Models with a planted mechanism, and what each probe says of them.

First the truth itself, seen through the engine alone; then each probe through its public function: it finds the head, the
layer, the shot, the order that were planted, and nothing where nothing was.
"""

from functools import cache

import numpy as np
import pytest

from icrl_lab.engine.proof import plain, variation
from icrl_lab.probes.attention import attention as attention_probe
from icrl_lab.probes.attribution import attribution
from icrl_lab.probes.changing import cuts
from icrl_lab.probes.geometry import geometry
from icrl_lab.probes.lens import lens
from icrl_lab.probes.order import order
from icrl_lab.probes.patching import heads, patching
from icrl_lab.probes.pause import pause
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
def test_attention_finds_the_copy_head_first_and_no_other(family):
    found = attention_probe(study(family=family), against=("noise",))
    top = tuple(found[f"top_{name}"].values[0].item() for name in ("row", "target", "layer", "head"))
    assert top == ("answer", "label", *COPY)
    sure = (found["gain_q"] < 0.05).values
    where = found["gain"].sel(row="answer", target="label", layer=COPY[0], head=COPY[1])
    assert sure.sum() == 1 and float(where) > 0.7
    assert float(found["gain_q"].where(found["gain"] == where).min()) < 1e-6
    assert (found["follows_q"].sel(control="noise") > 0.05).all()


def test_attention_finds_no_head_that_follows_where_none_does():
    found = attention_probe(study("blind"), against=("noise",))
    assert (found["gain_p"] > 0.05).all()


@FAMILY
def test_patching_finds_depth_and_position(family):
    found = patching(study(family=family), seeds=SEEDS, depths=range(BLOCKS + 1), gradient=family == "llama")
    share, q, placebo = found["share"], found["share_q"], found["placebo"]
    slots, answer, labels = (share.sel(group=g).values for g in ("all slots", "answer", "shot labels"))
    assert np.abs(slots - (np.arange(BLOCKS + 1) < MOVED)).max() < 1e-3  # from PREVIOUS on it is no longer in the slots
    assert (
        np.abs(answer[COPIED:] - 1).max() < 1e-3 and np.abs(answer[:MOVED]).max() < 1e-3
    )  # from COPY on, all at the answer
    assert (answer[MOVED:COPIED] > 0.2).all() and (answer[MOVED:COPIED] < 0.95).all()  # between, the query's half of it
    assert (labels[MOVED:COPIED] > 0.1).all() and np.abs(np.delete(labels, range(MOVED, COPIED))).max() < 1e-3
    assert np.abs(share.sel(group="query slot").values[MOVED:]).max() < 1e-3
    assert (q.sel(group="answer").values[COPIED:] < 0.01).all() and (
        q.sel(group="all slots").values[:MOVED] < 0.01
    ).all()
    assert float(placebo.sel(group="answer")[COPIED:].max()) < 0.5


@FAMILY
def test_patching_finds_the_two_heads(family):
    found = heads(study(family=family), seeds=SEEDS)
    share, q = found["share"].sel(group="answer").values.copy(), found["share_q"].sel(group="answer").values
    assert abs(share[COPY] - 1) < 1e-3 and share[PREVIOUS] > 0.2
    assert {tuple(at) for at in np.argwhere(q < 0.05).tolist()} == {COPY, PREVIOUS}
    share[COPY] = share[PREVIOUS] = 0
    assert np.abs(share).max() < 1e-3
    assert abs(float(found["placebo"].sel(group="answer", layer=COPY[0], head=COPY[1]))) < 0.3


@FAMILY
def test_cutting_the_answer_from_the_labels_destroys_it_and_a_placebo_does_not(family):
    found = cuts(study(family=family), seeds=SEEDS, rows=("answer",), windows=BLOCKS)
    effect, placebo = found["effect"].sel(rows="answer"), found["placebo"].sel(rows="answer")
    each = effect.isel(window=slice(1, None))
    here = {"shot labels": COPY[0], "query slot": PREVIOUS[0], "shot slots": None}
    for column, block in here.items():
        whole = float(effect.sel(columns=column).isel(window=0))
        moved = each.sel(columns=column).values
        assert (whole > 0.3) == (block is not None)
        assert np.abs(moved - [whole * (b == block) for b in range(BLOCKS)]).max() < 1e-3
    assert float(placebo.max()) < 1e-3
    sure = cuts(study(family=family), seeds=SEEDS, rows=("answer",), windows=0)
    assert (sure["beyond_q"].sel(columns=["shot labels", "query slot"]) < 0.05).all()
    assert (sure["beyond_q"].sel(columns="shot slots") > 0.5).all()


def test_attribution_finds_the_nearest_shot():
    asked = study(family="qwen2")
    found = attribution(asked, methods=("ig", "ablation"), seeds=SEEDS, queries=8)
    size = np.abs(found["attribution"])
    near = np.stack([nearest_shot(scene(asked, seed=s, queries=8)) for s in SEEDS])
    hit = (size.argmax("shot").transpose("by", "control", "seed", "query") == near).mean(("seed", "query"))
    real, noise = hit.sel(control="real"), hit.sel(control="noise")
    assert (real.sel(by=["ablation", "leave-one-out"]) > 0.9).all()
    assert real.sel(by="ig") > 0.25 and real.sel(by="placebo") < 0.4 and (noise < 0.4).all()
    assert found["agreement"].sel(by="ablation", other="leave-one-out", control="real") > 0.8
    assert (found["nearness_low"].sel(by=["ablation", "leave-one-out"], control="real") > 0.4).all()


ORDER = dict(queries=6, places=3, squares=1)  # of four shots: all their permutations


def test_the_order_probe_finds_no_order_where_there_is_none():
    found = order(planted_study("nearest", "qwen2", shots=4, seeds=4), **ORDER)
    assert found.data.sizes["permutation"] == 24 and float(found["between"].min()) > 0.2  # answers differ, and yet
    assert float(found["spread"].max()) < 1e-3 and np.abs(found["recency"]).max() < 1e-3
    for name in ("recency", "swing", "tilt", "trend"):
        assert (found[f"{name}_p"] > 0.01).all(), name
    assert (found["lean_q"] > 0.05).all() and (found["change_q"] > 0.05).all()
    assert (found["share"].sel(control="real", source=["order", "query x order"]) < 1e-4).all()


def test_the_order_probe_finds_recency():
    found = order(planted_study("recency", shots=4, seeds=6), **ORDER)
    for name in ("recency", "swing", "trend"):
        assert (found[name] > 0).all() and found[f"{name}_low"].sel(control="real") > 0, name
        assert found[f"{name}_p"].sel(control="real") < 0.05, name
    assert (found["spread"] > 0.1).all()
    lean, weight = (found[name].sel(control="real").values for name in ("lean", "weight"))
    assert lean.argmax() == 3 and lean.argmin() == 0 and weight[-1] > 2 * weight[0]
    assert (found["recency_gain_q"] > 0.05).all()  # it is not the vectors' doing


def test_pause_says_that_the_vector_is_read():
    found = pause(planted_study("nearest", seeds=8)).about["verdict"]
    assert found == {"without text": "read", "with text": "read"}


def test_pause_says_that_a_blind_model_ignores_it():
    found = pause(planted_study("blind", "qwen2", queries=12)).about["verdict"]
    assert found == {"without text": "ignored", "with text": "ignored"}


def test_the_lens_finds_the_depth_where_the_answer_is_copied_and_where_the_vector_arrives():
    found = lens(study(), seeds=SEEDS[:2], queries=24, permutations=39)
    final = found["final"].sel(control="real")
    assert (final[COPIED:] > 0.98).all() and (abs(final[:COPIED]) < 0.5).all()
    real, noise = (found["score_q"].sel(control=c, position="answer") for c in ("real", "noise"))
    assert (real[MOVED:COPIED] < 0.05).all() and (real[:MOVED] > 0.5).all() and (noise > 0.05).all()


def test_geometry_finds_the_depth_where_the_vector_arrives():
    found = geometry(study(family="qwen2"), queries=24, permutations=100)
    first = found["first"].sel(relation="encoder")
    assert first.sel(position="slot") == 0 and first.sel(position="answer") == MOVED
    assert found["encoder_rsa"].sel(control="real", space=f"answer {MOVED}") > 0.99
    assert found["first_low"].sel(relation="encoder", position="answer") == MOVED
