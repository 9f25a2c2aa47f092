"""Similarity: near shots are near and never the query, what stands beside the arm is computed on the same shots, sources of variance
are told apart, and influence follows similarity where a model was made to read it and nowhere else."""

from functools import cache

import numpy as np
import pytest

from icrl_lab import baselines, stats
from icrl_lab import shots as room
from icrl_lab.errors import DataError, StudyError
from icrl_lab.plots import similarity as plots
from icrl_lab.probes import beside
from icrl_lab.probes.scene import scene
from icrl_lab.probes.similarity import similarity
from icrl_lab.probes.variance import BALANCED, MIXED, components, mean_squares, split
from icrl_lab.studies import Study
from icrl_lab.studies.comparison import baseline_predictions
from icrl_lab.values import Reading, Task, Vectors
from tests.planted import planted_study
from tests.toy import PLAN, toy_llm, toy_study

FAMILY = pytest.mark.parametrize("name,tokenizer", [("llama", "digits"), ("gemma3", "unigram")])
SMILES = (
    "CCO CCCO CCCCO CC(C)O c1ccccc1 Cc1ccccc1 CCc1ccccc1 Oc1ccccc1 Nc1ccccc1 Clc1ccccc1 CC(=O)O CCC(=O)O CC(=O)N CCN CCCN CCCCN "
    "C1CCCCC1 C1CCCC1 CCCCCC CCCCC CCOCC COC CC=O CCC=O CC(C)=O CCC(C)=O C#N CC#N FC(F)F ClCCl"
).split()


def molecules(**plan) -> Study:
    n = len(SMILES)
    y = np.random.default_rng(0).standard_normal(n)
    ids = tuple(f"m{i}" for i in range(n))
    turn = np.random.default_rng(1).permutation(n)
    pool, queries = np.sort(turn[:22]), np.sort(turn[22:])
    task = Task("few", ids, tuple(SMILES), tuple(SMILES), y, None, "u", "size", "molecule", pool, queries)
    vectors = Vectors(np.random.default_rng(2).standard_normal((n, 9)), ids, "toy/1")
    return Study(task, vectors, toy_llm("gemma3", "unigram"), **{**PLAN, "shots": 5, "queries": 8, **plan})


# ------------------------------------------------------------------------------------------------ what is near


def test_tanimoto_is_rdkits_and_cosine_is_the_angle():
    from rdkit import Chem, DataStructs
    from rdkit.Chem import rdFingerprintGenerator

    make = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    prints = [make.GetFingerprint(Chem.MolFromSmiles(s)) for s in SMILES]
    want = np.array([DataStructs.BulkTanimotoSimilarity(p, prints) for p in prints])
    material = molecules().material
    assert np.abs(material.likeness("tanimoto")(np.arange(len(SMILES))) - want).max() < 1e-9
    x = material.vectors.values.astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert np.abs(material.likeness("cosine")(np.array([3, 1])) - x[[3, 1]] @ x.T).max() < 1e-6
    assert (room.tanimoto(np.zeros((2, 4)))(np.array([0])) == 1).all()
    with pytest.raises(DataError, match="0 and 1"):
        room.tanimoto(np.full((2, 4), 0.5))


@pytest.mark.parametrize("measure", room.MEASURES)
def test_near_shots_are_the_nearest_of_the_pool_and_never_the_query(measure):
    study = molecules()
    task, tail = study.task, "" if measure == "cosine" else f"-{measure}"
    like = study.material.likeness(measure)(np.arange(len(task)))
    for how, sign in (("nearest", -1), ("farthest", 1)):
        one = scene(study, "zero-pad", selection=f"{how}{tail}", order="given")
        for query, row in zip(one.queries, one.shots):
            ranked = sorted((sign * like[query, p], p) for p in task.pool)
            assert row.tolist() == [p for _, p in ranked[:5]]
            assert query not in row and set(row) <= set(task.pool)
    diverse = scene(study, "zero-pad", selection=f"diverse{tail}", order="given").shots
    assert (diverse == diverse[0]).all()
    chosen = diverse[0].tolist()
    for i in range(1, 5):  # greedy: nobody left is farther from all that were chosen before
        left = [p for p in task.pool if p not in chosen[: i + 1]]
        assert like[chosen[i], chosen[:i]].max() <= min(like[p, chosen[:i]].max() for p in left) + 1e-9


def test_the_two_measures_choose_different_shots_and_the_seed_changes_neither():
    study = molecules()
    both = [
        scene(study, "zero-pad", selection=s, order="given", seed=k).shots
        for k in (0, 1)
        for s in ("nearest", "nearest-tanimoto")
    ]
    assert not np.array_equal(both[0], both[1])
    assert np.array_equal(both[0], both[2]) and np.array_equal(both[1], both[3])


# ------------------------------------------------------------------------------------------------ beside


@FAMILY
@pytest.mark.parametrize("classes", [False, True])
def test_simple_predictors_are_the_labs_own_on_the_same_shots_and_labels(name, tokenizer, classes):
    plan = dict(selection=["random", "nearest"], labels=["true", "permuted"], shots=[1, 5], seeds=1, queries=4)
    study = toy_study(name, tokenizer, classes=classes, **plan)
    table = (
        baseline_predictions(study)
        .set_index(["selection", "labels", "shots", "baseline", "item"])["prediction"]
        .sort_index()
    )
    for selection in plan["selection"]:
        for labels in plan["labels"]:
            for shots in plan["shots"]:
                one = scene(study, "zero-pad", selection=selection, labels=labels, shots=shots)
                for predictor, said in beside.simple(one).items():
                    want = table.loc[selection, labels, shots, predictor].loc[list(one.ids)].to_numpy()
                    assert (said == want).all() if classes else np.abs(said - want.astype(float)).max() < 1e-9
    one = scene(study, "zero-pad", selection="nearest", shots=5)
    x = study.vectors.values.astype(float)
    truth = study.task.targets if not classes else np.array(study.task.labels)
    for i, (query, row) in enumerate(zip(one.queries, one.shots)):
        for name in beside.predictors(study):
            by_hand = baselines.baseline(name, x[row], truth[row], x[[query]], seed=0)[0]
            assert beside.simple(one)[name][i] == (by_hand if classes else pytest.approx(by_hand, abs=1e-9))


def test_without_orders_the_variance_is_not_split_and_no_order_is_asked():
    study = toy_study(shots=3, queries=3, seeds=2)
    many, none = (similarity(study, "zero-pad", queries=None, selections=("random",), counts=(3,), orders=o) for o in (2, 0))  # fmt: skip
    assert "share" in many.data and "share" not in none.data and none.about["variance"].startswith("not split")
    assert none.about["tokens"]["asked"] < many.about["tokens"]["asked"]
    assert many["score"].equals(none["score"])


def test_scores_and_gains_are_those_of_the_study_that_ran():
    study = toy_study("gemma3", "unigram", selection=["random", "nearest"], shots=5, queries=6)
    found = similarity(study, "zero-pad", queries=None, selections=("nearest", "random"), counts=(5,), orders=2)
    table = (
        study.run().predictions.set_index(["arm", "control", "selection", "seed", "item"])["prediction"].sort_index()
    )
    target, items = found.data["target"].values, found.data["query"].values
    for selection in ("nearest", "random"):
        held = {
            control: np.array([table.loc["zero-pad", control, selection, s].loc[items] for s in range(3)])
            for control in ("real", "noise")
        }
        for metric in ("pearson", "rmse"):
            at = found.data.sel(metric=metric, selection=selection)
            for control, said in held.items():
                want = stats.interval(said, target, metric)
                got = [float(at[f"score{t}"].sel(by=control)) for t in ("", "_low", "_high")]
                assert got == pytest.approx([want.estimate, want.low, want.high], abs=1e-4)
                assert (
                    float(found.data["curve_score"].sel(metric=metric, curve=selection, count=5, by=control)) == got[0]
                )
            want = stats.paired(held["real"], held["noise"], target, metric)
            got = [float(at[f"gain{t}"].sel(versus="noise")) for t in ("", "_low", "_high", "_p")]
            assert got == pytest.approx([want.estimate, want.low, want.high, want.p], abs=1e-3)
    lift = found.data["lift"].sel(metric="rmse", by="real")
    score = found.data["score"].sel(metric="rmse", by="real")
    assert float(lift.sel(selection="nearest")) == pytest.approx(float(score[0] - score[1]), abs=1e-9)
    assert (lift.sel(selection="random") == 0).all()


# ------------------------------------------------------------------------------------------------ variance

SD = {
    "selection": 0.6,
    "seed": 0.4,
    "order": 0.3,
    "query": 1.0,
    "query x selection": 0.5,
    "query x seed": 0.4,
    "query x order": 0.5,
}


def planted_table(shape, rng):
    """Outcomes (A, S, O, Q) with the standard deviations of SD."""
    a, s, o, q = shape
    of = {"selection": (a, 1, 1, 1), "seed": (a, s, 1, 1), "order": (a, s, o, 1), "query": (1, 1, 1, q),
          "query x selection": (a, 1, 1, q), "query x seed": (a, s, 1, q), "query x order": shape}  # fmt: skip
    return sum(SD[name] * rng.standard_normal(size) for name, size in of.items() if a > 1 or "selection" not in name)


@pytest.mark.parametrize("shape", [(4, 3, 2, 12), (1, 3, 5, 12)])
def test_the_moments_of_a_balanced_table_are_unbiased(shape):
    rng = np.random.default_rng(0)
    found = [components(mean_squares(t)[0], shape) for t in (planted_table(shape, rng) for _ in range(400))]
    for source in found[0]:
        each = np.array([f[source] for f in found])
        assert abs(each.mean() - SD[source] ** 2) < 4 * each.std() / 20, source
    square, df = mean_squares(planted_table(shape, rng))
    assert sum(df.values()) == np.prod(shape) - 1 and set(square) == set(df)


def test_the_mixed_model_finds_what_was_planted_and_its_intervals_hold_it():
    rng, shape = np.random.default_rng(1), (4, 3, 2, 16)
    total = sum(v**2 for v in SD.values())
    held, shares = [], []
    for _ in range(8):
        found = split(planted_table(shape, rng))
        truth = np.array([SD[s] ** 2 / total for s in found.sources])
        held.append((found.low <= truth) & (truth <= found.high))
        shares.append(found.share)
        assert found.share.sum() == pytest.approx(1) and found.method.startswith((MIXED, BALANCED))
    assert np.mean(held) > 0.85
    assert np.abs(np.mean(shares, 0) - truth).max() < 0.15


def test_inside_its_boundary_the_mixed_model_is_the_analysis_of_variance():
    rng, inside = np.random.default_rng(2), 0
    for _ in range(6):
        table = planted_table((1, 4, 4, 10), rng)
        moments = components(mean_squares(table)[0], table.shape)
        found = split(table, draws=10)
        if min(moments.values()) > 0.01:
            inside += 1
            assert found.method == MIXED
            assert found.variance == pytest.approx([float(moments[s]) for s in found.sources], rel=0.02)
    assert inside > 2


def test_a_split_that_cannot_be_made_says_so():
    rng = np.random.default_rng(3)
    query = rng.standard_normal(9)
    flat = split(np.broadcast_to(query, (2, 2, 2, 9)))
    assert flat.method.startswith(BALANCED) and "next to nothing" in flat.method
    assert dict(zip(flat.sources, flat.share))["query"] == pytest.approx(1)
    still = split(np.ones((1, 2, 2, 5)))
    assert "do not vary" in still.method and (still.share == 0).all()
    with pytest.raises(DataError, match="at least 2 seeds"):
        split(rng.standard_normal((3, 1, 2, 9)))


# ------------------------------------------------------------------------------------------------ planted


@cache
def planted(kind, family="llama"):
    study = planted_study(kind, family, queries=12)
    return similarity(study, selections=("random", "nearest"), counts=(), queries=12)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_influence_follows_similarity_where_the_nearest_vector_is_read(family):
    data = planted("nearest", family).data
    at = data.sel(measure="cosine")
    assert float(at["follows"].sel(control="real")) > 0.6 and float(at["follows_low"].sel(control="real")) > 0.3
    assert float(at["follows_low"].sel(control="noise")) < 0 < float(at["follows_high"].sel(control="noise"))
    assert float(at["follows_gain_q"].sel(other="noise")) < 0.05
    # only the nearest shot does anything
    moved, near = np.abs(data["influence"].sel(control="real").values), data["near"].sel(measure="cosine").values
    best = near.argmax(-1)
    assert (np.take_along_axis(moved, best[..., None], -1)[..., 0] >= 0.99 * moved.max(-1)).mean() > 0.9


def test_influence_of_the_last_shot_alone_does_not_follow_similarity_and_nothing_is_left_over_noise():
    found = planted("blind")
    at = found.data.sel(measure="cosine")
    assert float(at["follows_low"].sel(control="real")) < 0.15
    assert float(at["follows_gain_p"].sel(other="noise")) > 0.05
    assert np.abs(found.data["gain"].sel(versus="noise").values).max() < 0.02
    # near shots help the blind model, too: that is what the controls are for
    lifted = found.data["lift"].sel(metric="rmse", selection="nearest")
    assert float(lifted.sel(by="real")) < 0 and float(lifted.sel(by="mean")) < 0
    assert "no more than under noise" in " ".join(found.about["says"])


# ------------------------------------------------------------------------------------------------ the reading


def test_a_reading_of_molecules_goes_by_both_measures_and_draws_them(tmp_path):
    study = molecules(arms=["zero-pad", "text"])
    found = similarity(study, counts=(1, 5), queries=4, seeds=(0, 1))
    data = found.data
    want = ["random", "nearest", "nearest-tanimoto", "farthest", "farthest-tanimoto", "diverse", "diverse-tanimoto"]
    assert data["selection"].values.tolist() == want and data["measure"].values.tolist() == ["cosine", "tanimoto"]
    assert data["by"].values.tolist() == ["real", "noise", "text", "mean", "knn", "ridge"]
    closeness = data["closeness"].sel(measure="tanimoto")
    assert (
        closeness.sel(selection="nearest-tanimoto")
        > closeness.sel(selection="random")
        > closeness.sel(selection="farthest-tanimoto")
    )
    assert all(
        v in " ".join(found.about["says"]) for v in ("noise vectors", "mean of the shots' labels", "Left for the model")
    )
    assert found.about["tokens"]["computed"] < found.about["tokens"]["asked"]
    found.save(tmp_path / "similarity.nc")
    again = Reading.load(tmp_path / "similarity.nc")
    drawn = plots.figures(again)
    assert list(drawn)[:2] == ["similarity", "selections-rmse"] and {
        "curves-pearson",
        "influence",
        "follows",
        "share",
        "neighbours",
    } <= set(drawn)
    assert len(drawn["neighbours"].layout.images) == 1 + 2 * 5
    assert all(f.layout.width == 700 for f in drawn.values())
    for who in ("real", "noise", "text", "mean", "knn", "ridge"):  # nobody is left out of the main figure
        assert sum(t.legendgroup == who for t in drawn["similarity"].data) == (1 if who == "real" else 2)
    with pytest.raises(DataError, match="no query"):
        plots.neighbours(again, "m999")


@FAMILY
def test_a_reading_of_classes(name, tokenizer, monkeypatch):
    monkeypatch.setattr("icrl_lab.probes.similarity.COUNTS", (1, 5, 10, 20, 40))
    study = toy_study(name, tokenizer, classes=True, arms=["zero-pad"], queries=5)
    found = similarity(study, counts=None, curves=("random",), queries=5, selections=("random", "nearest"))
    assert found.data["metric"].values.tolist() == ["accuracy"] and found.data["measure"].values.tolist() == ["cosine"]
    assert found.data["by"].values.tolist() == ["real", "noise", "majority", "knn", "logistic"]
    assert found.data["count"].values.tolist() == [1, 4, 5, 10, 20]  # 40 is more than the pool holds
    one = scene(study, "zero-pad", "noise", selection="nearest", seed=1, queries=5)
    assert (
        np.abs(found.data["outcome"].sel(control="noise", selection="nearest", seed=1).values - one.read()).max() < 1e-5
    )
    assert len(plots.figures(found)) >= 5


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(StudyError, match="compares molecules"):
        similarity(toy_study(), measures=("tanimoto",))
    with pytest.raises(StudyError, match="cannot be chosen for each query"):
        similarity(toy_study(arms=["ridge"]))
    with pytest.raises(StudyError, match="did you mean 'nearest'"):
        similarity(toy_study(), selections=("nearst",))
    with pytest.raises(StudyError, match="noise"):
        similarity(toy_study(), controls=())


@pytest.mark.real
@pytest.mark.slow
def test_near_shots_help_the_mean_of_labels_on_real_molecules(smollm2):
    import icrl_lab as lab

    task = lab.load_task("freesolv")
    study = Study(
        task,
        lab.encode(task, "minimol", progress=False),
        smollm2,
        **{**PLAN, "arms": ["random-projection"], "shots": 6, "seeds": 2, "queries": 12},
    )
    found = similarity(study, selections=("random", "nearest"), counts=(), queries=12)
    at = found.data.sel(metric="rmse", selection="nearest")
    assert float(at["lift"].sel(by="mean")) < 0 and float(at["lift"].sel(by="noise")) < 0
    assert float(found.data["closeness"].sel(measure="tanimoto", selection="nearest-tanimoto")) > 0.3
