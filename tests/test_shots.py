"""Shots: always from the pool, chosen and ordered as their names say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_lab.errors import DataError, StudyError
from icrl_lab.shots import ORDERS, SELECTIONS, needs_query, order, select

N, D = 90, 6


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    items = rng.permutation(N)
    return {
        "pool": items[:60],
        "y": np.round(rng.exponential(size=N), 1),  # many ties
        "vectors": rng.standard_normal((N, D)) + 1,
        "query": items[60:],
    }


def call(how, world, k=8, seed=0, **change):
    given = {**world, **change}
    return select(how, k=k, seed=seed, **given)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("how", SELECTIONS)
def test_shots_are_distinct_items_of_the_pool_and_a_function_of_the_seed(how, world):
    for k in (1, 7, 60):
        for seed in range(5):
            got = call(how, world, k, seed)
            assert got.shape == ((len(world["query"]), k) if needs_query(how) else (k,)) and got.dtype == np.int64
            assert set(got.ravel()) <= set(world["pool"])
            assert all(len(set(row)) == k for row in np.atleast_2d(got))
            assert np.array_equal(got, call(how, world, k, seed))
            shuffled = np.random.default_rng(9).permutation(world["pool"])
            assert np.array_equal(got, call(how, world, k, seed, pool=shuffled))
            if not needs_query(how):
                twice = np.concatenate([shuffled, shuffled])  # an item cannot be two shots
                assert np.array_equal(got, call(how, world, k, seed, pool=twice, query=None))
    same = all(np.array_equal(call(how, world, 7, s), call(how, world, 7, 0)) for s in range(1, 6))
    assert same == (how in ("quantile-even", "nearest", "farthest"))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_selection_ever_leaves_the_pool(data):
    n = data.draw(st.integers(2, 25))
    pool = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    how = data.draw(st.sampled_from(sorted(SELECTIONS)))
    k = data.draw(st.integers(1, len(pool) + 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kind = data.draw(st.sampled_from(["numbers", "classes", "constant"]))
    y = {"numbers": rng.standard_normal(n), "classes": rng.integers(0, 3, n), "constant": np.ones(n)}[kind]
    query = data.draw(st.integers(0, n - 1))
    allowed = set(pool) - {query}
    options = {"y": y, "vectors": rng.standard_normal((n, 3)), "query": query}
    if len(allowed) < k:
        with pytest.raises(DataError, match="shots were asked for"):
            select(how, k=k, pool=np.array(pool), seed=1, **options)
    else:
        got = select(how, k=k, pool=np.array(pool), seed=1, **options)
        assert set(got) <= allowed and len(set(got)) == k


def test_quantile_draws_one_item_of_each_bin_and_every_item_can_be_drawn(world):
    pool, y = world["pool"], world["y"]
    ranked = sorted(pool, key=lambda i: (y[i], i))
    bins = [set(ranked[i * 6 : (i + 1) * 6]) for i in range(10)]
    seen = set()
    for seed in range(150):
        got = call("quantile", world, 10, seed)
        assert all(item in members for item, members in zip(got, bins))
        seen |= set(got)
    assert seen == set(pool)


def test_even_quantiles_contain_the_extremes_and_are_evenly_ranked(world):
    pool, y = world["pool"], world["y"]
    got = call("quantile-even", world, 5)
    ranked = sorted(pool, key=lambda i: (y[i], i))
    assert [ranked.index(i) for i in got] == [0, 15, 30, 44, 59]


def test_balanced_gives_every_class_its_share_and_fills_up_when_one_runs_out():
    y = np.repeat([0, 1, 2, 7], [50, 30, 15, 2])
    pool = np.arange(len(y))
    extra = set()
    for seed in range(30):
        count = np.bincount(y[select("balanced", k=14, pool=pool, seed=seed, y=y)], minlength=8)
        assert count[7] == 2 and count[[0, 1, 2]].sum() == 12 and (count[[0, 1, 2]] == 4).all()
        count = np.bincount(y[select("balanced", k=5, pool=pool, seed=seed, y=y)], minlength=8)[[0, 1, 2, 7]]
        assert sorted(count) == [1, 1, 1, 2]
        extra.add(int(count.argmax()))
    assert extra == {0, 1, 2, 3}  # who gets the odd one is chance


def test_balanced_numbers_cover_their_range_though_most_items_are_small():
    y = np.concatenate([np.random.default_rng(0).uniform(0, 1, 300), np.linspace(1, 10, 30)])
    got = y[select("balanced", k=10, pool=np.arange(330), seed=0, y=y)]
    assert sorted(np.minimum(got.astype(int), 9)) == list(range(10))


def test_nearest_and_farthest_are_what_a_brute_force_finds(world):
    near, far = call("nearest", world), call("farthest", world)
    for row, query in enumerate(world["query"]):
        ranked = sorted(world["pool"], key=lambda i: -cosine(world["vectors"][i], world["vectors"][query]))
        assert near[row].tolist() == [int(i) for i in ranked[:8]]
        assert far[row].tolist() == [int(i) for i in ranked[::-1][:8]]
        assert np.array_equal(call("nearest", world, query=int(query)), near[row])


def test_a_query_in_the_pool_is_never_its_own_shot(world):
    query = world["pool"][:5]
    got = call("nearest", world, query=query)
    assert all(q not in row for q, row in zip(query, got))
    for how in SELECTIONS:
        assert query[0] not in call(how, world, k=59, query=int(query[0]))


def test_ties_go_to_the_lower_position():
    rng = np.random.default_rng(0)
    vectors = rng.uniform(0.1, 10, (40, 1)) * rng.standard_normal(7)  # one direction: cosines differ by rounding only
    got = select("nearest", k=20, pool=rng.permutation(30) + 5, seed=0, vectors=vectors, query=0)
    assert got.tolist() == list(range(5, 25))
    assert order("near-first", np.array([7, 5, 8]), seed=0, vectors=vectors, query=0).tolist() == [5, 7, 8]
    assert order("ascending", np.array([7, 5, 8]), seed=0, y=np.zeros(9)).tolist() == [5, 7, 8]


def test_a_given_similarity_replaces_the_cosine(world):
    similarity = np.random.default_rng(4).random((len(world["query"]), N))
    got = call("nearest", world, k=4, vectors=None, similarity=similarity)
    for row, s in zip(got, similarity):
        assert row.tolist() == sorted(world["pool"], key=lambda i: -s[i])[:4]


def test_diverse_is_greedy_max_min_and_spreads_more_than_chance(world):
    vectors = world["vectors"]
    got = call("diverse", world, 12, seed=3)
    chosen = [got[0]]
    for item in got[1:]:
        rest = [i for i in sorted(world["pool"]) if i not in chosen]
        gap = [max(cosine(vectors[i], vectors[c]) for c in chosen) for i in rest]
        assert item == rest[int(np.argmin(gap))]
        chosen.append(item)

    def closest(items):
        return max(cosine(vectors[a], vectors[b]) for a in items for b in items if a < b)

    assert all(closest(got) < closest(call("random", world, 12, seed=s)) for s in range(10))


@pytest.mark.parametrize("how", ORDERS)
def test_an_order_is_a_permutation_of_each_row(how, world):
    shots = call("random", world, 9)
    query = world["query"]
    single = order(how, shots, seed=1, y=world["y"], vectors=world["vectors"], query=int(query[0]))
    assert single.shape == (9,) and sorted(single) == sorted(shots)
    rows = call("nearest", world, 9)
    many = order(how, rows, seed=1, y=world["y"], vectors=world["vectors"], query=query)
    assert many.shape == rows.shape and np.array_equal(np.sort(many, 1), np.sort(rows, 1))
    for i in (0, 7):  # a row does not depend on the others
        one = order(how, rows[i], seed=1, y=world["y"], vectors=world["vectors"], query=int(query[i]))
        assert np.array_equal(one, many[i])
    shared = order(how, shots, seed=1, y=world["y"], vectors=world["vectors"], query=query)
    assert shared.shape == ((len(query), 9) if needs_query(how) else (9,))


def test_orders_do_what_they_say(world):
    shots, y, vectors, query = call("random", world, 9), world["y"], world["vectors"], int(world["query"][2])
    options = {"seed": 0, "y": y, "vectors": vectors, "query": query}
    up = order("ascending", shots, **options)
    assert (np.diff(y[up]) >= 0).all() and np.array_equal(order("descending", shots, **options), up[::-1])
    first = order("near-first", shots, **options)
    assert (np.diff([cosine(vectors[i], vectors[query]) for i in first]) <= 0).all()
    assert np.array_equal(order("near-last", shots, **options), first[::-1])
    assert np.array_equal(order("given", shots, **options), shots)
    draws = {tuple(order("random", shots, seed=s)) for s in range(20)}
    assert len(draws) == 20
    assert np.array_equal(order("random", shots, seed=3), order("random", shots[::-1], seed=3))


def test_numbers_are_not_sorted_as_text():
    y = np.array([10.0, 9.0, -2.0, 100.0])
    assert order("ascending", np.arange(4), seed=0, y=y).tolist() == [2, 1, 0, 3]
    with pytest.raises(StudyError, match="sorted as text"):
        order("ascending", np.arange(4), seed=0, y=y.astype(str))


def test_what_cannot_be_is_refused_in_one_sentence(world):
    with pytest.raises(DataError, match="61 shots were asked for and the pool has 60"):
        call("quantile", world, 61)
    with pytest.raises(StudyError, match="did you mean 'quantile'"):
        call("quantil", world)
    with pytest.raises(StudyError, match="needs y"):
        call("quantile", world, y=None)
    with pytest.raises(StudyError, match="needs a query"):
        call("nearest", world, query=None)
    with pytest.raises(StudyError, match="needs vectors"):
        call("diverse", world, vectors=None)
    with pytest.raises(DataError, match="y has 20 rows"):
        call("quantile", world, y=np.zeros(20))
    with pytest.raises(StudyError, match="at least one"):
        call("random", world, 0)
    with pytest.raises(StudyError, match="needs a query"):
        order("near-last", world["pool"], seed=0)
