"""Attributions add up, treat equals equally, give nothing to who adds nothing, and are what running the prompt by hand gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from icrl_lab.engine.gradients import embeddings
from icrl_lab.errors import DataError, StudyError
from icrl_lab.plots import attribution as plots
from icrl_lab.probes import coalitions, games
from icrl_lab.probes.attribution import attribution
from icrl_lab.probes.scene import scene
from icrl_lab.studies import Study
from icrl_lab.values import SLOT, Reading, Rendered
from tests.conftest import tiny_llm
from tests.planted import nearest_shot, planted_study
from tests.toy import PLAN, toy_study, toy_task, toy_vectors

FAMILIES = {
    "llama": dict(name="llama", tokenizer="digits", label_format="letter"),
    "gemma3": dict(name="gemma3", tokenizer="unigram", label_format="digit", repeat=2),
}


@pytest.fixture(scope="module", params=FAMILIES)
def one(request):
    """A scene of three queries."""
    return scene(toy_study(queries=3, shots=3, arms=["random-projection"], **FAMILIES[request.param]), seed=1)


@pytest.fixture(scope="module", params=FAMILIES)
def reading(request):
    study = toy_study(queries=4, shots=3, arms=["zero-pad"], **FAMILIES[request.param])
    return study, attribution(study, seeds=[0, 2], steps=8, permutations=3)


def game(one):
    return coalitions.Game(one, [coalitions.vectors(one, i) for i in range(3)], coalitions.baselines(one, "mean"))


# ------------------------------------------------------------------------------------------------ captum's methods


def matrix_game(weights, pairs):
    """A game of plain numbers: each player's weight, and what pairs add together; a row an example."""

    def value(present, which):
        x = present.astype(float)
        return (x * weights[which]).sum(1) + np.einsum("mi,mij,mj->m", x, pairs[which], x)

    return value


def test_shapley_shares_out_what_players_add_alone_and_in_pairs():
    rng = np.random.default_rng(0)
    weights, pairs = rng.standard_normal((3, 5)), np.triu(rng.standard_normal((3, 5, 5)), 1)
    weights[:, 2], pairs[:, 2], pairs[:, :, 2] = 0, 0, 0  # a dummy
    pairs[:, 3, 4] = 4
    exact = weights + (pairs + pairs.transpose(0, 2, 1)).sum(1) / 2
    few = games.shapley(matrix_game(weights, pairs), 3, 5, permutations=2, seed=1)
    assert np.abs(few.sum(1) - exact.sum(1)).max() < 1e-5  # efficiency, however few
    assert np.abs(few[:, 2]).max() == 0
    many = games.shapley(matrix_game(weights, pairs), 3, 5, permutations=600, seed=1)
    assert np.abs(many - exact).max() < 0.35
    assert np.abs(few - exact).max() > 0.5
    again = games.shapley(matrix_game(weights, pairs), 3, 5, permutations=2, seed=1)
    other = games.shapley(matrix_game(weights, pairs), 3, 5, permutations=2, seed=2)
    assert (few == again).all() and (few != other).any()


def test_equal_players_get_equal_shares():
    weights, pairs = np.array([[1.0, 1.0, -2.0, 0.5]]), np.zeros((1, 4, 4))
    pairs[0, 0, 1] = 3  # players 0 and 1 are alike, and most of their worth is being there together
    found = games.shapley(matrix_game(weights, pairs), 1, 4, permutations=1500, seed=0)[0]
    assert abs(found[0] - found[1]) < 0.3 and abs(found[0] + found[1] - 5) < 1e-4
    assert abs(np.diff(games.ablation(matrix_game(weights, pairs), 1, 4)[0, :2])[0]) == 0


def test_drawing_orders_leaves_torchs_own_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    games.shapley(matrix_game(np.ones((1, 3)), np.zeros((1, 3, 3))), 1, 3, permutations=2, seed=9)
    assert (torch.rand(3) == expected).all()


def test_a_linear_outcome_gets_gradient_times_difference(monkeypatch):
    llm = SimpleNamespace(model=SimpleNamespace(dtype=torch.float32))
    slope = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("icrl_lab.engine.gradients.outcomes", lambda llm, x, outcome: (x * slope).sum((1, 2)) + 3)
    here, there = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(2))
    path = games.integrated(llm, here, there, None, steps=1)
    assert np.allclose(path.tokens, (slope * (here - there)).sum(-1).numpy(), atol=1e-5)
    assert path.steps == 1 and abs(path.missed) < 1e-5 and abs(path.change - path.tokens.sum()) < 1e-5


def test_a_path_gets_more_points_where_its_sum_misses(one):
    base, at = coalitions.baselines(one, "mean")[0] - 1, np.concatenate(coalitions.vectors(one, 0))
    missed, steps = {}, {}
    for asked in (1, 32):
        path = coalitions.path(one, 0, base, at, asked)
        missed[asked], steps[asked] = abs(path.missed) / np.abs(path.tokens).sum(), path.steps
        assert path.tokens[[i for i in range(len(base)) if i not in at]].tolist() == [0.0] * (len(base) - len(at))
    assert steps[1] == 4 and steps[32] <= 128 and missed[32] < 0.03 and missed[32] < missed[1]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_ig_of_an_outcome_that_is_nearly_linear(family):
    """Between two inputs that lie close together every smooth outcome is linear: gradient times difference."""
    from icrl_lab.engine.gradients import gradient
    from icrl_lab.values import Outcome

    llm, rng = tiny_llm(family), np.random.default_rng(3)
    ids = rng.integers(3, 90, 19)
    ids[[4, 9, 15]] = SLOT
    prompt = Rendered(ids, rng.standard_normal((3, llm.width)).astype(np.float32))
    outcome = Outcome((5, 8, 11, 40), values=np.array([0.0, 1.0, 2.0, 3.0]))
    step = 1e-3 * rng.standard_normal((3, llm.width)).astype(np.float32)
    near = Rendered(ids, prompt.vectors - step)
    path = games.integrated(llm, embeddings(llm, prompt), embeddings(llm, near), outcome, steps=4)
    slopes = gradient(llm, prompt, outcome, [4, 9, 15]).stream[0]
    assert np.allclose(path.tokens[[4, 9, 15]], (slopes * step).sum(1), rtol=0.1, atol=2e-5)


# ------------------------------------------------------------------------------------------------ the game of a scene


def test_ablation_is_running_the_prompt_by_hand(one):
    found = games.ablation(game(one), 3, 4)
    base, full = coalitions.baselines(one, "mean"), one.read()
    for i, prompt in enumerate(one.prompts):
        slots = coalitions.vectors(one, i)
        assert sorted(np.concatenate(slots)) == np.flatnonzero(prompt.ids == SLOT).tolist()
        for player, at in enumerate(slots):
            rows = prompt.vectors.copy()
            rows[np.isin(np.flatnonzero(prompt.ids == SLOT), at)] = base[i][at[0]]
            by_hand = one.read([Rendered(prompt.ids, rows)], [i])[0]
            assert abs(found[i, player] - (full[i] - by_hand)) < 1e-4


def test_shapley_of_a_scene_adds_up_and_gives_a_baseline_vector_nothing(one):
    play = game(one)
    at = coalitions.vectors(one, 0)[1]
    for i in range(3):
        play.base[i][:] = one.prompts[0].vectors[np.isin(np.flatnonzero(one.prompts[0].ids == SLOT), at)][0]
    full, empty = play.all_or_none()
    assert np.abs(full - one.read()).max() < 1e-5 and np.abs(full - empty).min() > 1e-4
    found = games.shapley(play, 3, 4, permutations=3, seed=0)
    assert np.abs(found.sum(1) - (full - empty)).max() < 1e-5
    assert (found[:, 1] == 0).all() and (np.abs(found[:, [0, 2, 3]]) > 0).all()
    assert (games.ablation(play, 3, 4)[:, 1] == 0).all()


def test_the_mean_slot_is_the_mean_of_the_items(one):
    rows = {}
    for prompt in one.prompts:
        spans = [s for s in prompt.spans if s.role == "slot"]
        rows |= {s.item: v for s, v in zip(spans, prompt.vectors)}
    assert len(rows) == 3 + 3
    for base, prompt in zip(coalitions.baselines(one, "mean"), one.prompts):
        assert np.abs(base[prompt.ids == SLOT] - np.mean(list(rows.values()), 0)).max() < 1e-6
        text = one.study.llm.embed(one.study.material.tokens.used).mean(0)
        assert np.abs(base[prompt.ids != SLOT] - text).max() < 1e-5


def test_leaving_a_shot_out_leaves_no_token_of_it(one):
    outcomes = coalitions.left_out(one)
    shorter = toy_study(queries=3, shots=3, arms=["random-projection"], **FAMILIES["llama"])
    assert outcomes.shape == (3, 3) and shorter is not one.study
    from icrl_lab.probes.scene import arranged

    less = arranged(one, [[0, 2]] * 3)
    lost = str(one.study.task.ids[one.shots[0, 1]])
    assert all(span.item != lost for prompt in less.prompts for span in prompt.spans)
    assert np.abs(less.read() - outcomes[:, 1]).max() < 1e-4


def test_replaced_text_is_a_vector_and_its_own_embedding_changes_nothing(one):
    prompt = one.prompts[2]
    at = np.array([1, 4, len(prompt) - 1])
    own = embeddings(one.study.llm, prompt).numpy()[at]
    assert abs(one.read([coalitions.replaced(prompt, at, own)], [2])[0] - one.read()[2]) < 1e-4


# ------------------------------------------------------------------------------------------------ the reading


def test_the_reading_adds_up_and_matches_the_scene(reading):
    study, found = reading
    assert found.data["by"].values.tolist() == ["ig", "shapley", "ablation", "leave-one-out", "placebo"]
    assert float(found["error"].sel(by="shapley").max()) < 1e-5 and float(found["error"].sel(by="ig").max()) < 0.06
    for seed in (0, 2):
        for control in ("real", "noise"):
            at = {"seed": seed, "control": control}
            one = scene(study, control=control, seed=seed, queries=4)
            assert np.abs(found["outcome"].sel(at).values - one.read()).max() < 1e-5
            total = found["attribution"].sel({**at, "by": "shapley"}).sum("shot") + found["own"].sel(
                {**at, "by": "shapley"}
            )
            assert np.abs(total - found["change"].sel(at)).max() < 1e-5
            truth = one.read()[:, None] - coalitions.left_out(one)
            assert np.abs(found["attribution"].sel({**at, "by": "leave-one-out"}).values - truth).max() < 1e-4
    one = scene(study, seed=2, queries=4)
    values = study.vectors.values.astype(float)
    a, b = values[one.queries[3]], values[one.shots[3, 0]]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert abs(float(found["cosine"].sel(seed=2)[3, 0]) - cosine) < 1e-6
    assert str(found.data["item"].sel(seed=2)[3, 0].values) == study.task.ids[one.shots[3, 0]]


def test_agreement_is_symmetric_with_a_placebo_beside(reading):
    _, found = reading
    table = found["agreement"].values
    assert np.allclose(table, table.transpose(1, 0, 2)) and np.allclose(table[range(5), range(5)], 1)
    assert (found["agreement_low"].values >= -1).all() and (found["agreement_high"].values <= 1).all()
    says = " ".join(found.about["says"])
    assert "placebo" in says and "noise" in says and "Completeness" in says
    assert np.isnan(found["own"].sel(by="placebo")).all() and np.isnan(found["nearness_q"].sel(by="placebo")).all()


def test_spans_take_in_the_whole_prompt():
    study = toy_study(queries=3, shots=3, with_text=True, arms=["zero-pad"])
    found = attribution(study, methods=("ig", "ablation"), seeds=[0], steps=2, spans="all")
    table = found["span"].values
    there = ~np.isnan(table[0, 0, 0, 0])
    roles = found.data["role"].values.tolist()
    for role in ("slot", "text", "label"):
        assert there[:3, roles.index(role)].all()
    assert not there[3, roles.index("label")] and there[3, roles.index("slot")]  # the query has none
    one = scene(study, seed=0, queries=3)
    covered = np.concatenate(list(coalitions.spans(one, 0).values()))
    assert sorted(covered) == list(range(len(one.prompts[0])))
    by_hand = found["span"].sel(way="ablation", control="real", seed=0).values[:, :3, roles.index("slot")]
    single = found["attribution"].sel(by="ablation", control="real", seed=0).values
    assert np.abs(by_hand - single).max() < 1e-4  # a slot is the same span either way
    assert np.allclose(found["share"].sum("role"), 1)


def test_a_query_and_a_seed_have_the_same_values_beside_whichever_others():
    """What replaces a vector is the mean over all of the study's queries, and a seed's own chance goes by the seed."""
    study = planted_study("nearest", queries=20, seeds=3)
    q, how = study.material.queries.tolist(), {"methods": ["ig", "ablation"], "seeds": [0]}
    one, other = attribution(study, queries=q[:4], **how), attribution(study, queries=[q[0], *q[10:13]], **how)
    same = [found["attribution"].sel(query=study.task.ids[q[0]], by=["ig", "ablation"]) for found in (one, other)]
    assert np.ptp(same[0].values) > 0.1 and np.abs(same[0] - same[1]).max() < 1e-5
    given = {"methods": ["shapley"], "queries": 3}
    alone, second = attribution(study, seeds=[2], **given), attribution(study, seeds=[0, 2], **given)
    a, b = (found["attribution"].sel(seed=2, by=["shapley", "placebo"]) for found in (alone, second))
    assert np.abs(a - b).max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_no_vector_moves_is_not_ranked(family):
    """A model that reads no vector has attributions of 1e-9, which are rounding: no order of them is a finding."""
    found = attribution(planted_study("blind", family, queries=8, seeds=2), methods=["ig", "shapley"], queries=8)
    vectors = ["ig", "shapley"]
    assert not found["attribution"].sel(by=vectors).any() and not found["agreement"].sel(by="ig", other="shapley").any()
    assert float(found["agreement_p"].sel(by="ig", other="shapley").min()) > 0.99
    for name in ("recency_p", "nearness_p", "nearness_gain_p"):
        assert float(found.data[name].sel(by=vectors).min()) > 0.99
    assert found["attribution"].sel(by="leave-one-out").any()  # its label is gone with a shot


def test_what_cannot_be_attributed_is_refused():
    study = toy_study(queries=4, label_format="two-digit", arms=["text", "zero-pad"])
    with pytest.raises(DataError, match="labels have several"):
        attribution(study, methods=["ig"])
    with pytest.raises(StudyError, match="no vectors"):
        attribution(study, "text")
    with pytest.raises(StudyError, match="knows no method 'shaply'; did you mean 'shapley'"):
        attribution(study, methods=["shaply"])
    with pytest.raises(StudyError, match="steps is 0"):
        attribution(study, steps=0)
    with pytest.raises(DataError, match="at least 3"):
        attribution(study, methods=["ablation"], queries=2)
    found = attribution(study, methods=["ablation"], seeds=[0], queries=3)  # which reads labels of several tokens
    assert np.isfinite(found["attribution"]).all() and "steps" not in found.names


def test_a_reading_is_saved_and_drawn(reading, tmp_path):
    _, found = reading
    found.save(tmp_path / "attribution.nc")
    again = Reading.load(tmp_path / "attribution.nc")
    drawn = plots.figures(again)
    assert next(iter(drawn)) == "attribution" and {"agreement", "nearness", "points", "completeness"} < set(drawn)
    query = str(found.data["query"].values[1])
    bars = {t.name: t for t in again.plot(query=query, seed=2).data}
    expected = found["attribution"].sel({"by": "ig", "control": "real", "seed": 2, "query": query})
    assert np.allclose(bars["integrated gradients"].x, expected)
    z = np.array(drawn["agreement"].data[0].z, float)
    assert np.isclose(z[3, 0], found["agreement"].sel(by="leave-one-out", other="ig", control="real"))
    assert np.isclose(z[0, 3], found["agreement"].sel(by="ig", other="leave-one-out", control="noise"))
    with pytest.raises(DataError, match="no query"):
        again.plot(query="nobody")


@pytest.mark.real
def test_the_real_models_attributions_add_up(smollm2):
    task = toy_task()
    study = Study(task, toy_vectors(task), smollm2, **PLAN | {"arms": ["zero-pad"]})
    found = attribution(study, methods=["ig", "shapley"], seeds=[0], queries=3, steps=2, permutations=1)
    assert float(found["error"].sel(by="shapley").max()) < 1e-4
    # the real model bends sharply on the way from the mean vector: a sum that misses was given all the points it may have, and is told
    missed = found["error"].sel(by="ig") > 0.02
    assert (found["steps"].values[missed.transpose(*found["steps"].dims).values] == 8).all()
    assert any("miss" in sentence for sentence in found.about["says"])


# ------------------------------------------------------------------------------------------------ models whose mechanism is known


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_it_finds_the_shot_whose_label_is_copied(family):
    study = planted_study("nearest", family, seeds=1)
    found = attribution(study, queries=8, steps=8, permutations=4)
    size = np.abs(found["attribution"].sel(seed=0))
    near = nearest_shot(scene(study, seed=0, queries=8))
    # a path leads through mixtures of vectors, for which other shots win: integrated gradients know half of it
    for by, share in (("leave-one-out", 0.85), ("ablation", 0.85), ("shapley", 0.6), ("ig", 0.35), ("placebo", 0.0)):
        hits = [(size.sel({"by": by, "control": c}).values.argmax(1) == near).mean() for c in ("real", "noise")]
        assert hits[0] >= share and hits[1] <= 0.4, (by, hits)
    assert float(found["agreement"].sel(by="ablation", other="leave-one-out", control="real")) > 0.6
    assert abs(float(found["agreement"].sel(by="placebo", other="leave-one-out", control="real"))) < 0.4
    gain = found.data.sel(by="ablation")
    assert float(gain["nearness_gain"]) > 0 and float(gain["nearness_gain_p"]) < 0.05


def test_a_model_that_reads_no_vector_has_nothing_attributed_to_vectors():
    study = planted_study("blind", seeds=1)
    found = attribution(study, queries=4, steps=4, permutations=2)
    real = found["attribution"].sel(control="real", seed=0)
    truth = np.abs(real.sel(by="leave-one-out").values)
    assert (truth.argmax(1) == 7).all()  # it says the last shot's label
    for by in ("ig", "shapley", "ablation"):
        assert np.abs(real.sel(by=by)).max() < 1e-3 * truth.max()


def test_similarity_is_not_found_in_random_models():
    found = [
        attribution(planted_study("random", model_seed=m, data_seed=m, seeds=2), methods=["ablation"], queries=8)
        for m in range(5)
    ]
    p = np.array([float(r["nearness_gain_p"].sel(by="ablation")) for r in found])
    assert (p < 0.05).sum() <= 1 and p.mean() > 0.25
