"""Measures of clouds: invariances, planted truths, and nothing where there is nothing."""

import numpy as np
import pytest
from scipy.stats import ortho_group, spearmanr

from icrl_lab.errors import StudyError
from icrl_lab.probes import spaces
from icrl_lab.probes.spaces import gram


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def cloud():
    """20 points in 7 dimensions, none of them alike, far from the origin."""
    return rng(1).standard_normal((20, 7)) * np.linspace(3, 0.2, 7) + 1.5


# ------------------------------------------------------------------------------------ one for a copy, whatever the frame


def test_a_rotated_and_scaled_copy_is_the_same_space(cloud):
    turned = cloud @ ortho_group.rvs(7, random_state=2) * 3.7
    for metric in spaces.METRICS:
        near, far = (spaces.distances(gram(x), metric) for x in (cloud, turned))
        assert spaces.rsa(near, far) == pytest.approx(1, abs=1e-12)
        assert spaces.overlap(near, far, 5) == 1
    assert spaces.cka(gram(cloud), gram(turned)) == pytest.approx(1, abs=1e-12)
    assert spaces.cka(gram(cloud), gram(turned + 5)) == pytest.approx(1, abs=1e-9)  # CKA is blind to where the cloud is
    bent = cloud * np.array([9, 1, 1, 1, 1, 1, 1])  # an affine copy is not the same
    assert spaces.cka(gram(cloud), gram(bent)) < 0.95


def test_no_measure_sees_a_rotation_and_each_is_symmetric(cloud):
    other, turn = rng(3).standard_normal((20, 7)) + cloud, ortho_group.rvs(7, random_state=4)
    one, two, turned = gram(cloud), gram(other), gram(other @ turn)

    def all_of(a, b):
        near, far = spaces.distances(a), spaces.distances(b)
        pair = spaces.cka(a, b), spaces.rsa(near, far), spaces.overlap(near, far, 4), spaces.hsic(a, b)
        return [*pair, spaces.mean_cosine(b), spaces.effective_rank(b), spaces.intrinsic_dimension(far)]

    assert np.allclose(all_of(one, two), all_of(one, turned), atol=1e-10)
    assert np.allclose(all_of(one, two)[:4], all_of(two, one)[:4], atol=1e-12)
    assert 0.2 < all_of(one, two)[0] < 0.99


def test_a_stack_of_clouds_is_measured_as_each_alone(cloud):
    stack = np.stack([cloud, cloud**2, np.cos(cloud)]).reshape(3, 1, 20, 7)
    for measure in (
        spaces.mean_cosine,
        spaces.effective_rank,
        lambda g: spaces.intrinsic_dimension(spaces.distances(g)),
        lambda g: spaces.cka(g, gram(cloud)),
        lambda g: spaces.rsa(spaces.distances(g, "cosine"), spaces.distances(gram(cloud))),
        lambda g: spaces.overlap(spaces.distances(g), spaces.distances(gram(cloud)), 3),
    ):
        assert np.allclose(measure(gram(stack))[:, 0], [measure(gram(x)) for x in stack[:, 0]])


# ------------------------------------------------------------------------------------ against other implementations


def test_against_scipy_and_the_definitions(cloud):
    from scipy.spatial.distance import pdist

    other = np.tanh(cloud)
    for metric in spaces.METRICS:
        found = spaces.rsa(spaces.distances(gram(cloud), metric), spaces.distances(gram(other), metric))
        assert found == pytest.approx(spearmanr(pdist(cloud, metric), pdist(other, metric)).statistic, abs=1e-12)
    unit = cloud / np.linalg.norm(cloud, axis=1, keepdims=True)
    assert spaces.mean_cosine(gram(cloud)) == pytest.approx((unit @ unit.T)[np.triu_indices(20, 1)].mean())
    values = np.linalg.svd(cloud, compute_uv=False)
    share = values / values.sum()
    assert spaces.effective_rank(gram(cloud)) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert np.allclose(spaces.centred(gram(cloud)), gram(cloud - cloud.mean(0)))


def test_the_unbiased_hsic_is_the_mean_over_quadruples(cloud):
    """Song et al.: the U-statistic of h, the mean over ordered quadruples of different points."""
    from itertools import permutations

    k, l = gram(cloud[:6, :3]), gram(np.sin(cloud[:6]))  # noqa: E741
    h = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in permutations(range(6), 4)]
    assert spaces.hsic(k, l) == pytest.approx(np.mean(h), rel=1e-9)


def test_a_partial_correlation_is_that_of_residuals():
    z, a, b = rng(5).standard_normal((3, 200))
    x, y = z + a, z + 0.5 * a + b
    r = np.corrcoef([x, y, z])
    rest = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    assert spaces.partial(r[0, 1], r[0, 2], r[1, 2]) == pytest.approx(np.corrcoef(rest)[0, 1])
    assert np.isnan(spaces.partial(np.array(0.3), np.array(1.0), np.array(0.3)))


# ------------------------------------------------------------------------------------ nothing where there is nothing


def test_independent_clouds_have_no_cka_and_no_rsa_on_average():
    """32 points in 500 dimensions: the biased CKA of independent clouds is 0.9, the unbiased one 0."""
    draw = rng(6)
    one, two = gram(draw.standard_normal((300, 32, 500))), gram(draw.standard_normal((300, 32, 500)))
    for values in (spaces.cka(one, two), spaces.rsa(spaces.distances(one), spaces.distances(two))):
        assert abs(values.mean()) < 4 * values.std() / np.sqrt(300) < 0.03
    a, b = spaces.centred(one), spaces.centred(two)
    biased = (a * b).sum((-1, -2)) / np.sqrt((a**2).sum((-1, -2)) * (b**2).sum((-1, -2)))
    assert biased.mean() > 0.85


def test_chance_neighbours_overlap_as_often_as_chance_says():
    draw = rng(7)
    one, two = (spaces.distances(gram(draw.standard_normal((200, 24, 50)))) for _ in range(2))
    from scipy.stats import hypergeom

    shared = np.arange(7)
    expected = (hypergeom(23, 6, 6).pmf(shared) * shared / (12 - shared)).sum()
    assert spaces.overlap(one, two, 6).mean() == pytest.approx(expected, abs=0.01)


def test_a_constant_cloud_has_no_shape():
    flat = np.full((12, 30), 0.37, np.float32) * np.linspace(1, 100, 30, dtype=np.float32)
    noisy = flat * (1 + 1e-7 * rng(8).standard_normal((12, 30)))  # what float32 cannot tell apart
    other = gram(rng(9).standard_normal((12, 30)))
    for x in (flat, noisy):
        for metric in spaces.METRICS:
            near = spaces.distances(gram(x), metric)
            assert not near.any()
            assert np.isnan(spaces.rsa(near, spaces.distances(other)))
            assert np.isnan(spaces.overlap(near, spaces.distances(other), 3))
            assert np.isnan(spaces.intrinsic_dimension(near))
        assert np.isnan(spaces.cka(gram(x), other))


# ------------------------------------------------------------------------------------ planted truths


def test_the_effective_rank_of_an_orthonormal_cloud_is_its_rank():
    for rank in (2, 5, 17):
        frame = ortho_group.rvs(30, random_state=rank)[:rank]
        assert spaces.effective_rank(gram(frame)) == pytest.approx(rank)
        assert spaces.effective_rank(gram(np.repeat(frame, 3, axis=0))) == pytest.approx(rank, rel=1e-6)
    assert spaces.effective_rank(gram(np.outer(np.arange(1, 9), np.ones(5)))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dimension,n,error", [(2, 400, 0.25), (5, 800, 0.6)])
def test_twonn_finds_a_planted_dimension(dimension, n, error):
    draw = rng(10 + dimension)
    x = draw.uniform(size=(8, n, dimension))
    bent = np.concatenate([x, np.sin(3 * x), x**2], -1) @ draw.standard_normal((3 * dimension, 40))
    found = spaces.intrinsic_dimension(spaces.distances(gram(bent)))
    assert abs(found.mean() - dimension) < error
    doubled = np.concatenate([bent, bent[:, :20]], 1)  # points that stand twice have no ratio, and change little
    assert np.abs(spaces.intrinsic_dimension(spaces.distances(gram(doubled))) - found).max() < 0.15 * dimension


def test_twonn_is_unbiased_for_exponential_ratios():
    """Its rate, from ratios that are exactly exponential: each point's first neighbour at 1, the second at e^t."""
    draw, found = rng(12), []
    for _ in range(400):
        times = draw.exponential(1 / 3, 20)
        apart = np.full((20, 60), 1e9)
        apart[np.arange(20), 20 + 2 * np.arange(20)] = 1
        apart[np.arange(20), 21 + 2 * np.arange(20)] = np.exp(times)
        square = np.full((60, 60), 1e9)
        square[:20] = apart
        square[20:] = 0  # doubles of one another: no ratio of their own
        found.append(spaces.intrinsic_dimension(square))
    assert np.mean(found) == pytest.approx(3, abs=4 * np.std(found) / 20)


def test_a_wide_random_relu_layer_bends_cosines_as_theory_says():
    rho = np.linspace(-0.9, 0.99, 12)
    x = np.zeros((13, 40))
    x[0, 0] = 1
    x[1:, 0], x[1:, 1] = rho, np.sqrt(1 - rho**2)
    for layers in (1, 2):
        y, draw = x, rng(13)
        for _ in range(layers):
            y = np.maximum(y @ draw.standard_normal((y.shape[1], 30_000 if layers == 1 else 6000)), 0)
        found = spaces.cosines(gram(y))[0, 1:]
        assert np.abs(found - spaces.relu_cosine(rho, layers)).max() < (0.02 if layers == 1 else 0.04)
    assert np.array_equal(spaces.relu_cosine(rho, 0), rho)
    assert np.allclose(spaces.relu_cosine(np.array([-1.0, 0.0, 1.0])), [0, 1 / np.pi, 1])


def test_a_random_linear_map_moves_cosines_within_the_bound():
    draw, x = rng(14), rng(15).standard_normal((15, 40))
    before = spaces.pairs(spaces.cosines(gram(x)))
    for width in (50, 800):
        after = spaces.pairs(spaces.cosines(gram(x @ draw.standard_normal((100, 40, width)))))
        error, bound = np.abs(after - before), spaces.concentration(width)
        assert (error > bound).mean() < 0.12 and (error > bound / 4).mean() > 0.3


def test_neighbours_and_the_overlap_of_copies_and_parts():
    x = np.arange(12.0)[:, None] ** 1.5
    near = spaces.distances(gram(x))
    assert (spaces.neighbours(near, 3).sum(1) == 3).all() and not spaces.neighbours(near, 3).diagonal().any()
    assert spaces.overlap(near, near, 3) == 1
    mixed = rng(25).permutation(12)
    assert spaces.overlap(near, near[np.ix_(mixed, mixed)], 3) < 0.5


def test_leaving_a_point_out_is_measuring_without_it(cloud):
    one, two = gram(cloud), gram(np.cos(cloud))
    found = spaces.left_out(spaces.cka, one, two)
    assert found.shape == (20,)
    for i in (0, 7, 19):
        without = spaces.cka(gram(np.delete(cloud, i, 0)), gram(np.delete(np.cos(cloud), i, 0)))
        assert found[i] == pytest.approx(without, rel=1e-12)  # a product of other rows may be summed in another order
    named = spaces.left_out(lambda g: {"a": spaces.mean_cosine(g)}, np.stack([one, two]))
    assert named["a"].shape == (2, 20)


# ------------------------------------------------------------------------------------ tokens and maps


def test_the_nearest_row_is_the_one_with_the_largest_cosine():
    table = rng(16).standard_normal((50, 6)).astype(np.float32) * rng(17).uniform(0.1, 9, (50, 1)).astype(np.float32)
    rows = np.flatnonzero(np.arange(50) % 7)
    x = rng(18).standard_normal((9, 6))
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    score = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ unit[rows].T
    at, value = spaces.nearest_rows(x, table, rows, chunk=10)
    assert (at == rows[score.argmax(1)]).all() and np.allclose(value, score.max(1), atol=1e-6)
    at, value = spaces.nearest_rows(table[rows] * 3, table, rows)
    assert (at == rows).all() and np.allclose(value, 1, atol=1e-6)
    at, value = spaces.nearest_rows(table[rows] * 3, table, rows, own=rows)
    assert (at != rows).all() and (value < 1 - 1e-4).all()


def test_a_map_of_a_plane_is_the_plane():
    plane = rng(19).standard_normal((30, 2)) @ rng(20).standard_normal((2, 50))
    flat = spaces.embedding(plane, "pca", metric="euclidean", neighbours=5)
    assert flat.coordinates.shape == (30, 2) and flat.trustworthiness == pytest.approx(1)
    assert np.allclose(spaces.distances(gram(flat.coordinates)), spaces.distances(gram(plane)))
    wide = spaces.embedding(rng(21).standard_normal((30, 50)), "pca", metric="euclidean", neighbours=5)
    assert wide.trustworthiness < 0.9
    sphere = spaces.embedding(plane * rng(22).uniform(1, 9, (30, 1)), "pca", metric="cosine", neighbours=5)
    same = spaces.embedding(plane, "pca", metric="cosine", neighbours=5)
    assert np.allclose(np.abs(sphere.coordinates), np.abs(same.coordinates), atol=1e-6)


def test_what_cannot_be_mapped_is_said():
    nothing = spaces.embedding(np.ones((20, 4)), "pca")
    assert not nothing.coordinates.any() and np.isnan(nothing.trustworthiness)
    with pytest.raises(StudyError, match="did you mean 'umap'"):
        spaces.embedding(np.eye(20), "umapp")
    with pytest.raises(StudyError, match="8 neighbours need more than 16 points"):
        spaces.embedding(np.eye(16), "pca")
    with pytest.raises(StudyError, match="did you mean 'cosine'"):
        spaces.distances(np.eye(4), "cosinus")


@pytest.mark.slow
def test_umap_keeps_clusters_and_repeats_with_its_seed():
    pytest.importorskip("umap")
    centres = rng(23).standard_normal((3, 40)) * 5
    x = np.repeat(centres, 12, 0) + rng(24).standard_normal((36, 40))
    one, again = (spaces.embedding(x, "umap", neighbours=6, seed=3) for _ in range(2))
    assert np.array_equal(one.coordinates, again.coordinates)
    near = spaces.neighbours(spaces.distances(gram(one.coordinates - one.coordinates.mean(0))), 5)
    assert (near & (np.repeat(np.arange(3), 12)[:, None] == np.repeat(np.arange(3), 12))).sum() / near.sum() > 0.95
    assert one.trustworthiness > 0.8
    assert not np.array_equal(one.coordinates, spaces.embedding(x, "umap", neighbours=6, seed=4).coordinates)
