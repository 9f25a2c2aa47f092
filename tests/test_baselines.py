"""Baselines on the same shots: exact where a formula exists, sane at the edges, blind to the shots' order."""

import numpy as np
import pytest

from icrl_lab import baselines
from icrl_lab.baselines import CLASSIFIERS, FARTHEST, REGRESSORS, baseline
from icrl_lab.errors import DataError, StudyError

ALL = [(n, "y") for n in REGRESSORS] + [(n, "c") for n in CLASSIFIERS]


def data(k=20, d=12, n=40, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    x, q, w = rng.normal(size=(k, d)), rng.normal(size=(n, d)), rng.normal(size=d)
    y, z = x @ w + noise * rng.normal(size=k), q @ w
    return (
        x,
        q,
        {"y": y, "c": np.where(y > np.median(y), "high", "low")},
        {"y": z, "c": np.where(z > np.median(y), "high", "low")},
    )


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_the_order_of_the_shots_does_not_matter(name, kind):
    x, q, labels, _ = data()
    x[3], x[8] = x[0], x[1]  # ties in distance
    order = np.random.default_rng(1).permutation(len(x))
    np.testing.assert_array_equal(baseline(name, x, labels[kind], q), baseline(name, x[order], labels[kind][order], q))


@pytest.mark.parametrize(("name", "kind"), ALL)
@pytest.mark.parametrize("k,d", [(2, 1), (2, 300), (3, 2), (20, 500)])
@pytest.mark.parametrize("flat", [False, True])
def test_few_shots_many_features_and_constant_features_work(name, kind, k, d, flat):
    x, q, labels, _ = data(k=k, d=d)
    if flat:
        x[:] = 1.7
    got = baseline(name, x, labels[kind], q)
    assert got.shape == (40,)
    if kind == "c":
        assert set(got) <= {"high", "low"}
    else:
        assert np.isfinite(got).all()
        if flat:
            assert got == pytest.approx(labels["y"].mean())


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_the_scale_of_a_feature_and_a_constant_column_do_not_matter(name, kind):
    x, q, labels, _ = data()
    scale, shift = np.exp(np.linspace(-5, 5, 12)), np.linspace(-9, 9, 12)
    more = lambda v: np.hstack([v * scale + shift, np.full((len(v), 1), 3.3)])  # noqa: E731
    one, other = baseline(name, x, labels[kind], q), baseline(name, more(x), labels[kind], more(q))
    if kind == "c":
        assert (one == other).mean() >= 0.95  # an optimiser's last digits may turn a coin toss
    else:
        assert other == pytest.approx(one, abs=2e-3 * np.std(labels["y"]) if name == "gp" else 1e-8)


def test_regressors_follow_an_affine_change_of_the_labels():
    x, q, labels, _ = data()
    for name in REGRESSORS:
        assert baseline(name, x, 3 * labels["y"] - 5, q) == pytest.approx(
            3 * baseline(name, x, labels["y"], q) - 5, abs=1e-2
        )


def test_a_linear_truth_is_found_by_ridge_and_the_process_and_not_by_the_mean():
    x, q, labels, truth = data(k=40, noise=0.05)
    error = {
        n: np.sqrt(((baseline(n, x, labels["y"], q) - truth["y"]) ** 2).mean()) / truth["y"].std() for n in REGRESSORS
    }
    assert error["ridge"] < 0.05 and error["gp"] < 0.5 and error["mean"] > 0.95 and error["knn"] < error["mean"]
    hits = {n: (baseline(n, x, labels["c"], q) == truth["c"]).mean() for n in CLASSIFIERS}
    assert hits["logistic"] > 0.8 and hits["logistic"] > hits["majority"] and hits["knn"] > hits["majority"]


def test_labels_without_a_signal_shrink_ridge_towards_the_mean():
    x, q, _, _ = data(d=300)
    y = np.random.default_rng(5).normal(size=20)
    spread = [np.std(baseline("ridge", x, np.random.default_rng(s).permutation(y), q)) for s in range(20)]
    assert np.median(spread) < 0.3 * y.std()


def test_ridge_chooses_the_penalty_that_refitting_without_each_shot_chooses():
    """The closed form against the definition, over the same grid and the same standardisation."""
    from sklearn.linear_model import Ridge

    x, q, labels, _ = data(k=15, d=6, noise=2.0)
    y = labels["y"]
    scale = x.std(0) * np.sqrt(6)
    z, zq = (x - x.mean(0)) / scale, (q - x.mean(0)) / scale
    grid = np.logspace(-4, 4, 25) * (z**2).sum() / 15

    def left_out(a):
        return np.mean(
            [
                (y[i] - Ridge(alpha=a).fit(np.delete(z, i, 0), np.delete(y, i)).predict(z[i : i + 1])[0]) ** 2
                for i in range(15)
            ]
        )

    best = min(grid, key=left_out)
    cut = np.clip(zq, np.minimum(-FARTHEST / np.sqrt(6), z.min(0)), np.maximum(FARTHEST / np.sqrt(6), z.max(0)))
    assert baseline("ridge", x, y, q) == pytest.approx(Ridge(alpha=best).fit(z, y).predict(cut))


@pytest.mark.parametrize("name", ["ridge", "gp", "knn"])
def test_a_feature_that_hardly_varies_over_the_shots_does_not_decide(name):
    """Such features carry nothing; among queries they vary a thousand times as much."""
    rng, found = np.random.default_rng(0), []
    for _ in range(5):
        x, q = rng.standard_normal((30, 6)), rng.standard_normal((200, 6))
        w = rng.standard_normal(6)
        still = [1e-3 * rng.standard_normal((30, 3)), rng.standard_normal((200, 3))]
        y = x @ w + rng.standard_normal(30)
        one = baseline(name, np.hstack([x, still[0]]), y, np.hstack([q, still[1]]))
        found.append(np.corrcoef(one, q @ w)[0, 1])
    assert np.mean(found) > 0.4


def test_a_query_that_is_a_shot_stands_where_the_shot_stands():
    """Of a bit that one shot in thirty has, that shot lies five deviations away."""
    x = np.eye(30)[:, :25] + np.random.default_rng(0).standard_normal((30, 25)) * 1e-3
    shots, queries = baselines._standardised(x, x)
    assert np.array_equal(shots, queries) and shots.max() * np.sqrt(25) > 5
    far = baselines._standardised(x, 10 * x)[1] * np.sqrt(25)
    assert far.max() == pytest.approx(shots.max() * np.sqrt(25)) and far.min() >= -FARTHEST


def test_ridge_never_says_the_same_of_everything():
    """A constant has no correlation, and would count as one of zero, where the weakest slope has the same error and a sign."""
    x, q, _, _ = data(d=300)
    y = np.random.default_rng(5).normal(size=20)
    for s in range(20):
        assert np.std(baseline("ridge", x, np.random.default_rng(s).permutation(y), q)) > 0


def test_neighbours_by_hand():
    x, q = np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([[0.4], [10.4]])
    assert baseline("knn", x, [0.0, 0.0, 5.0, 5.0], q) == pytest.approx([0, 5])
    assert baseline("knn", x, ["a", "a", "b", "b"], q).tolist() == ["a", "b"]
    assert baseline("majority", x, ["b", "a", "b", "a"], q).tolist() == ["a", "a"]
    assert baseline("mean", x, [1, 2, 3, 6], q).tolist() == [3.0, 3.0]


def test_several_slots_an_item_are_one_long_vector_and_the_arguments_are_left_alone():
    x, q, labels, _ = data()
    before = x.copy()
    one = baseline("ridge", x.reshape(20, 3, 4), labels["y"], q.reshape(40, 3, 4))
    assert one == pytest.approx(baseline("ridge", x, labels["y"], q)) and (x == before).all()


def test_bad_input_is_one_clear_sentence():
    x, q, labels, _ = data()
    with pytest.raises(StudyError, match="did you mean 'ridge'"):
        baseline("rigde", x, labels["y"], q)
    with pytest.raises(StudyError, match="no baseline for classes is called 'ridge'"):
        baseline("ridge", x, labels["c"], q)
    with pytest.raises(DataError, match="at least two shots"):
        baseline("mean", x[:1], labels["y"][:1], q)
    with pytest.raises(DataError, match="NaN"):
        baseline("mean", x * np.nan, labels["y"], q)
