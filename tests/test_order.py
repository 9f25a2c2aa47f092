"""Order: arrangements change places and nothing else, planted weights of places are found, and what is blind to order shows none."""

from functools import cache
from itertools import permutations as every
from math import factorial

import numpy as np
import pytest

from icrl_lab import shots as room
from icrl_lab.errors import StudyError
from icrl_lab.plots import order as plots
from icrl_lab.probes import beside
from icrl_lab.probes.influence import influence, lean, permutations, square, trend, weights
from icrl_lab.probes.order import ORDERS, order
from icrl_lab.probes.scene import arranged, scene
from icrl_lab.stats import effects
from icrl_lab.values import SLOT, Reading
from tests.planted import planted_study
from tests.toy import toy_study

FAMILY = pytest.mark.parametrize("name,tokenizer", [("llama", "digits"), ("gemma3", "unigram")])


@cache
def small(name="llama", tokenizer="digits", arms=("zero-pad", "random-projection"), **plan):
    return toy_study(name, tokenizer, arms=list(arms), **plan)


# ------------------------------------------------------------------------------------------------ arrangements


@pytest.mark.parametrize("k", [2, 3, 4, 5, 9])
def test_permutations_are_all_of_them_up_to_four_and_different_beyond(k):
    for count in (2, 24):
        found = permutations(k, count, np.random.default_rng(0))
        assert len(found) == (factorial(k) if k <= 4 else count)
        assert len({tuple(row) for row in found.tolist()}) == len(found)
        assert (np.sort(found, 1) == np.arange(k)).all()
    assert np.array_equal(permutations(k, 24, np.random.default_rng(3)), permutations(k, 24, np.random.default_rng(3)))
    if k == 5:
        assert len(permutations(5, 500, np.random.default_rng(0))) == 120
        assert sorted(map(tuple, permutations(5, 120, np.random.default_rng(0)).tolist())) == sorted(every(range(5)))


@pytest.mark.parametrize("k,places", [(2, 5), (5, 5), (7, 3), (20, 5)])
def test_in_a_square_each_of_its_shots_stands_once_on_each_place_and_all_others_stay(k, places):
    orders, positions = square(k, places, np.random.default_rng(1))
    assert len(positions) == min(k, places) and positions[0] == 0 and positions[-1] == k - 1
    assert (np.sort(orders, 1) == np.arange(k)).all()
    shots = orders[:, positions]
    assert all(len(set(line)) == len(positions) for line in (*shots.tolist(), *shots.T.tolist()))
    rest = np.delete(orders, positions, 1)
    assert (rest == rest[0]).all()


@FAMILY
@pytest.mark.parametrize("control", ["real", "noise", "shuffled"])
def test_a_shot_left_out_is_the_prompt_without_its_line_and_no_other_vector_changes(name, tokenizer, control):
    study = small(name, tokenizer, shots=5, labels="permuted")
    one = scene(study, "random-projection", control, seed=1, queries=3)
    material, n, k = study.material, 3, 5
    for i in range(n):
        group = material.group(one.cell, (int(one.queries[i]),), one.shots[i])
        (whole,) = material.arranged(one.cell, 0, [group])
        lines, slots = "".join(whole.tokens).removeprefix("<s>").split("\n"), whole.vectors
        for left in range(k):
            keep = [j for j in range(k) if j != left]
            (less,) = material.arranged(one.cell, 0, [group.arranged(keep)])
            found = "".join(less.tokens).removeprefix("<s>").split("\n")
            assert len(lines) == k + 1 and found == [line for j, line in enumerate(lines) if j != left]
            assert less.vectors.tobytes() == np.delete(slots, left, 0).tobytes()
            found = arranged(one, [keep], [i])
            assert found.prompts[0].vectors.tobytes() == less.vectors.tobytes()
            assert found.shots.tolist() == [one.shots[i][keep].tolist()]


@FAMILY
@pytest.mark.parametrize("control", ["real", "noise", "dummy"])
def test_permuting_and_permuting_back_is_the_scene_itself(name, tokenizer, control):
    one = scene(small(name, tokenizer, shots=6, repeat=2, with_text=True), "random-projection", control, seed=2)
    n, k = one.shots.shape
    rows = np.array([np.random.default_rng(i).permutation(k) for i in range(n)])
    there = arranged(one, rows)
    back = arranged(there, np.argsort(rows, 1))
    assert any(
        a.ids.tobytes() != b.ids.tobytes() or a.vectors.tobytes() != b.vectors.tobytes()
        for a, b in zip(there.prompts, one.prompts)
    )
    for a, b in zip(back.prompts, one.prompts):
        assert a.ids.tobytes() == b.ids.tobytes() and a.vectors.tobytes() == b.vectors.tobytes()
    assert np.array_equal(back.shots, one.shots) and np.abs(back.read() - one.read()).max() < 1e-5
    for prompt, row in zip(there.prompts, there.shots):  # a vector goes where its item goes
        where = {s.item: prompt.vectors[i] for i, s in enumerate(s for s in prompt.spans if s.role == "slot")}
        for other in one.prompts:
            of = {s.item: other.vectors[i] for i, s in enumerate(s for s in other.spans if s.role == "slot")}
            assert all((where[item] == of[item]).all() for item in set(where) & set(of))
        assert control == "dummy" or (len(where) == k + 1 and (prompt.ids == SLOT).sum() == 2 * k + 1)
        assert len(row) == k


def test_a_scene_is_arranged_whole_and_no_shot_stands_twice():
    one = scene(small(shots=5), "zero-pad", queries=3)
    less = arranged(one, [[0, 1, 2]] * 3)
    for wrong, rows in ((less, [[0, 1]] * 3), (one, [[0, 0, 1]] * 3), (one, [[0, 5]] * 3), (one, [[0, 1]] * 2)):
        with pytest.raises(ValueError):
            arranged(wrong, rows)


@pytest.mark.parametrize("selection", ["quantile", "nearest"])
@pytest.mark.parametrize("control", ["real", "noise"])
def test_named_orders_are_the_studys_own(selection, control):
    from icrl_lab.probes.order import _plan

    study = small(shots=5)
    one = scene(study, "zero-pad", control, seed=1, selection=selection)
    plan = _plan(one, 5, 3, 1, np.random.default_rng(0))
    for how in ORDERS[1:]:
        own = scene(study, "zero-pad", control, seed=1, selection=selection, order=how)
        found = arranged(one, plan.named[how])
        assert np.array_equal(found.shots, own.shots)
        for a, b in zip(found.prompts, own.prompts):
            assert a.ids.tobytes() == b.ids.tobytes() and a.vectors.tobytes() == b.vectors.tobytes()


# ------------------------------------------------------------------------------------------------ numbers


def test_lean_finds_the_weights_of_places_over_all_orders_and_nothing_in_what_sees_no_order():
    k, rng = 4, np.random.default_rng(0)
    orders, y, w = permutations(k, 24, rng), rng.standard_normal((3, k)), np.array([0.1, 0.0, 0.2, 0.5])
    labels = y[:, orders].transpose(1, 0, 2)  # orders, queries, places
    want = [w[p] - (w.sum() - w[p]) / (k - 1) for p in range(k)]
    assert np.abs(lean(labels @ w, labels) - np.array(want)[:, None]).max() < 1e-12
    blind = np.broadcast_to(y.max(1), (24, 3))
    assert (lean(blind, labels) == 0).all()
    assert (lean(labels @ w, np.ones_like(labels)) == 0).all()  # equal labels have no slope


def test_weights_are_one_over_k_for_the_mean_and_one_at_the_place_that_is_copied():
    k, rng = 6, np.random.default_rng(1)
    y = rng.standard_normal(k)
    orders, positions = square(k, k, rng)
    apart = (y - (y.sum() - y) / (k - 1))[orders[:, positions]][:, None]
    shown = y[orders]
    less = lambda read: np.array([[read(o) - read(np.delete(o, p)) for p in positions] for o in shown])[:, None]  # noqa: E731
    assert np.abs(weights(less(np.mean), apart) - 1 / k).max() < 1e-12
    last = weights(less(lambda o: o[-1]), apart)[:, 0]
    assert (last[:-1] == 0).all() and 0.7 < last[-1] < 1.3


def test_trend_takes_each_shots_own_strength_off():
    rng = np.random.default_rng(2)
    orders, positions = square(11, 4, rng)
    place = positions / positions.max()
    own = 10 * rng.random(11)
    size = np.stack([own[orders[:, positions]] + s * place for s in (0.0, 0.7, -2.0)], 1)
    assert np.abs(trend(size, orders, positions) - [0.0, 0.7, -2.0]).max() < 1e-9


def test_a_lean_that_is_not_there_is_found_at_the_nominal_rate():
    """Answers move with order, for all queries together and each alone, but not with the labels: new orders a seed, three seeds."""
    rng, hits, draws = np.random.default_rng(3), [], 400
    for _ in range(draws):
        tables = []
        for _ in range(3):
            orders, y = permutations(7, 16, rng), rng.standard_normal(7)
            labels = np.repeat(y[orders][:, None], 10, 1)
            answers = rng.standard_normal((16, 1)) + rng.standard_normal((16, 10))
            tables.append(lean(answers, labels)[-1])
        hits.append(float(effects(np.array(tables)).p) < 0.05)
    assert np.mean(hits) < 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_influence_is_the_difference_of_two_readings():
    one = scene(small("gemma3", "unigram", shots=4), "zero-pad", seed=1)
    moved, full = influence(one)
    assert moved.shape == (1, len(one.queries), 4) and np.abs(full[0] - one.read()).max() < 1e-5
    for left in range(4):
        less = arranged(one, [[j for j in range(4) if j != left]] * len(one.queries)).read()
        assert np.abs(moved[0, :, left] - (one.read() - less)).max() < 1e-5
    turned, _ = influence(one, np.array([[2, 0, 3, 1]]), np.array([1]))  # position 1 of that order is shot 0
    alone = arranged(one, [[2, 0, 3, 1]] * 6).read() - arranged(one, [[2, 3, 1]] * 6).read()
    assert np.abs(turned[0, :, 0] - alone).max() < 1e-5


# ------------------------------------------------------------------------------------------------ planted


@cache
def planted(kind, family="llama", shots=6):
    study = planted_study(kind, family, queries=10, shots=shots)
    return order(study, permutations=10, places=3, squares=1, queries=10)


def value(reading, name, **at):
    return float(reading.data[name].sel(control="real", **at))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_model_that_reads_the_nearest_vector_shows_no_order_effect(family):
    found = planted("nearest", family)
    for name in ("spread", "recency", "swing", "tilt", "trend"):
        real = found.data[name].sel(control="real") if name != "tilt" else found.data["lean"].sel(control="real")
        assert np.abs(real.values).max() < 5e-3, name
    assert found.data["change"].sel(metric="rmse", control="real").values == pytest.approx(0, abs=5e-3)
    assert value(found, "share", source="order") + value(found, "share", source="query x order") < 1e-3


def test_a_model_that_says_the_last_label_leans_on_it_alone_under_any_vectors():
    found = planted("blind")
    for control in ("real", "noise"):
        at = found.data.sel(control=control)
        # labels are as written, in ten bins: the last counts fully, the others only by not being last
        assert float(at["weight"][-1]) == pytest.approx(1, abs=0.4) and np.abs(at["weight"].values[:-1]).max() < 0.02
        assert float(at["recency"]) > 0.7 and float(at["recency_p"]) < 0.05
        assert float(at["lean"].argmax("position")) == 5
        assert float(at["swing"]) > 1.0 and float(at["swing_p"]) < 0.05
    assert np.abs(found.data["recency_gain"].values).max() < 0.02
    assert "leans to the last label" in found.about["says"][1]


def test_recency_is_found_where_it_was_planted():
    found = planted("recency", shots=8)
    assert value(found, "spread_low") > 0.05 and value(found, "swing_low") > 0
    assert value(found, "recency_low") > 0 and value(found, "lean", position=1) < 0
    weight = found.data["weight"].sel(control="real").values
    assert weight[-1] > weight[0]


# ------------------------------------------------------------------------------------------------ the reading


@FAMILY
def test_a_reading_of_numbers_and_one_of_classes_hold_together(name, tokenizer, tmp_path):
    for classes in (False, True):
        study = small(name, tokenizer, arms=("zero-pad", "text"), classes=classes, shots=3)
        found = order(study, permutations=6, places=2, squares=1, queries=5)
        data = found.data
        assert data["control"].values.tolist() == ["real", "noise", "text"]
        assert data.sizes["permutation"] == 6 and data["versus"].values.tolist()[:2] == ["noise", "text"]
        assert found.about["tokens"]["computed"] < 0.7 * found.about["tokens"]["asked"]
        assert all(
            f"{n}{t}" in data
            for n in ("weight", "lean", "score", "gain", "change", "spread", "share")
            for t in ("_low", "_high")
        )
        one = scene(study, "zero-pad", seed=0, queries=5)
        told = found.about["says"][2]  # a class stands at no distance from a label
        assert ("the mean of 3 labels: 0.33" in told) != classes and ("log-odds per label" in told) == classes
        assert data["weight"].attrs["units"] == ("log-odds per label" if classes else "share of the label's distance")
        said = arranged(one, np.repeat(data["orders"].values[0][:1], 5, 0)).read()
        assert np.abs(data["outcome"].values[0, 0, 0] - said).max() < 1e-5
        simple = beside.simple(one)
        assert set(simple) == set(beside.predictors(study)) == set(data["by"].values.tolist()[3:])
        found.save(tmp_path / "order.nc")
        again = Reading.load(tmp_path / "order.nc")
        assert again.about["says"] == found.about["says"] and len(again.to_dataframe("score"))
        drawn = plots.figures(again)
        assert next(iter(drawn)) == "order" and all(f.layout.width == 700 for f in drawn.values())


def test_an_arm_without_slots_has_no_noise_and_one_seed_no_split():
    found = order(small(arms=("text",), shots=4), permutations=3, places=2, squares=1, queries=4, seeds=(1,))
    assert found.data["control"].values.tolist() == ["real"] and "share" not in found.data
    assert found.data.sizes["permutation"] == 24 and "not split" in found.about["variance"]
    assert "recency_gain" not in found.data and len(plots.figures(found)) >= 4


def test_what_has_no_order_is_refused():
    with pytest.raises(StudyError, match="no order to look at with 1 shots"):
        order(small(shots=1), queries=3)
    with pytest.raises(StudyError, match="noise"):
        order(small(), controls=("text",))
    with pytest.raises(StudyError, match="did you mean 'nearest'"):
        order(small(), selection="nearst")
    assert room.needs_query("nearest-tanimoto") and room.measured("quantile-even") == ("quantile-even", "cosine")
