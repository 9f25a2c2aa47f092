"""Slot maps: identities, planted truths, and the geometry that is known from simulation."""

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest

from icrl_lab import maps
from icrl_lab.errors import DataError, StudyError
from icrl_lab.maps import closed_form
from icrl_lab.maps.steps import STEPS, run
from icrl_lab.maps.training_free import hash_vectors
from icrl_lab.maps.transport import match_moments
from icrl_lab.values import SlotMap, Step, Vectors

N, D_FM, D = 40, 12, 20


def cosines(x):
    """The upper triangle of the matrix of cosines between the rows of x."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(x), 1)]


def vectors_of(values, space="fm/1"):
    return Vectors(values, tuple(f"item {i}" for i in range(len(values))), space)


@pytest.fixture(scope="module")
def pool():
    """Skewed, correlated, far from the origin: nothing that a Gaussian assumption would flatter."""
    rng = np.random.default_rng(1)
    return vectors_of(rng.exponential(size=(N, D_FM)) @ rng.standard_normal((D_FM, D_FM)) + 3)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(2)
    table = rng.standard_normal((300, D)) * np.linspace(0.01, 0.3, D) + rng.standard_normal(D) * 0.1
    table[[0, 17, 299]] = 0  # unused tokens
    words = tuple(rng.integers(1, 17, rng.integers(3, 9)) for _ in range(N))
    digits = tuple(rng.integers(20, 30, 15) for _ in range(N))
    labels = {str(i): (30 + i, 40 + i) for i in range(10)}
    return maps.Tokens(table, "llm:small", words, digits, labels)


def fitted(name, pool, tokens, **options):
    if name == "random-noise":
        pool = hash_vectors(pool.ids, pool.ids, D_FM)
    elif name == "identity":
        pool = vectors_of(np.random.default_rng(3).standard_normal((N, D)))
    if maps.NEEDS.get(name) == "labels":
        options.setdefault("labels", {i: str(row % 10) for row, i in enumerate(pool.ids[:15])})
    if name == "sinkhorn":
        options.setdefault("targets", 50)
    return maps.fit(name, pool, tokens, **options), pool


# ------------------------------------------------------------------------------------ theorems of every map


@pytest.mark.parametrize("name", maps.MAPS)
def test_every_map_is_finite_commutes_with_permutation_and_survives_saving_bit_for_bit(name, pool, tokens, tmp_path):
    slot_map, source = fitted(name, pool, tokens, seed=3, slot_scale=0.5)
    out = maps.apply(slot_map, source)
    assert out.values.shape == (N, D) and out.space == "llm:small" and out.ids == source.ids

    order = np.random.default_rng(0).permutation(N)
    mixed = source.take([source.ids[i] for i in order])
    np.testing.assert_allclose(maps.apply(slot_map, mixed).values, out.values[order], rtol=0, atol=2e-5)

    slot_map.save(tmp_path / "map.safetensors")
    loaded = SlotMap.load(tmp_path / "map.safetensors")
    assert np.array_equal(maps.apply(loaded, source).values, out.values)
    assert np.array_equal(maps.apply(pickle.loads(pickle.dumps(slot_map)), source).values, out.values)
    assert json.loads(json.dumps(dict(slot_map.recipe))) == dict(loaded.recipe)


@pytest.mark.parametrize("name", maps.MAPS)
def test_the_seed_decides_and_nothing_else(name, pool, tokens):
    first, source = fitted(name, pool, tokens, seed=5)
    again, _ = fitted(name, pool, tokens, seed=5)
    other, _ = fitted(name, pool, tokens, seed=6)
    a, b, c = (maps.apply(m, source).values for m in (first, again, other))
    assert np.array_equal(a, b)
    assert np.array_equal(a, c) == (name in ("identity", "zero-pad", "ridge", "soft-label"))


@pytest.mark.parametrize("name", maps.MAPS)
def test_slot_scale_is_the_norm_relative_to_the_tokens(name, pool, tokens):
    slot_map, source = fitted(name, pool, tokens, slot_scale=0.7)
    plain = tokens.embeddings[np.linalg.norm(tokens.embeddings, axis=1) > 0]
    want = 0.7 * np.linalg.norm(plain, axis=1).mean()
    np.testing.assert_allclose(np.linalg.norm(maps.apply(slot_map, source).values, axis=1), want, rtol=1e-5)


@pytest.mark.parametrize("name", maps.MAPS)
def test_only_the_pool_is_fitted_so_other_items_map_alone_as_in_company(name, pool, tokens):
    slot_map, source = fitted(name, pool, tokens)
    whole = maps.apply(slot_map, source).values
    alone = maps.apply(slot_map, source.take(source.ids[7:8])).values
    np.testing.assert_allclose(alone[0], whole[7], rtol=0, atol=2e-5)


def test_a_foreign_space_a_foreign_width_and_unknown_names_are_refused(pool, tokens):
    slot_map = maps.fit("zero-pad", pool, tokens)
    with pytest.raises(DataError, match=r"'fm/1'.*'fm/2'"):
        maps.apply(slot_map, vectors_of(pool.values, "fm/2"))
    with pytest.raises(DataError, match="width 12, not of 5"):
        maps.apply(slot_map, vectors_of(pool.values[:, :5]))
    with pytest.raises(StudyError, match="did you mean 'moments-vocab'"):
        maps.fit("moment-vocab", pool, tokens)
    with pytest.raises(StudyError, match=r"no option 'widht'; did you mean 'width'"):
        maps.fit("random-projection", pool, tokens, widht=3)
    with pytest.raises(StudyError, match="no width"):
        maps.fit("moments-vocab", pool, tokens, width=3)
    with pytest.raises(DataError, match="hash_vectors"):
        maps.fit("random-noise", pool, tokens)
    with pytest.raises(DataError, match="text"):
        maps.fit("ot-embed", pool, maps.Tokens(tokens.embeddings, tokens.space))


def test_aliases_are_the_papers_names(pool, tokens):
    for alias, name in maps.ALIASES.items():
        a, b = (maps.apply(maps.fit(n, pool, tokens), pool).values for n in (alias, name))
        assert np.array_equal(a, b) and maps.fit(alias, pool, tokens).name == name


# ------------------------------------------------------------------------------------------------- steps


def test_steps_match_their_formulas_in_float64():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((5, 3, 4)), rng.standard_normal((4, 7)), rng.standard_normal(7)
    want = np.einsum("nsi,io->nso", x, w) + b
    np.testing.assert_allclose(run([Step("linear", {"weight": w, "bias": b})], x), want, atol=1e-5)
    arrays = {"centre": x[0, 0], "scale": w[:, 0], "shift": w[:, 1]}
    np.testing.assert_allclose(run([Step("affine", arrays)], x), (x - x[0, 0]) * w[:, 0] + w[:, 1], atol=1e-5)
    assert run([Step("relu")], x).min() == 0
    np.testing.assert_allclose(run([Step("tanh")], x), np.tanh(x), atol=1e-6)
    gelu = run([Step("gelu")], np.array([-1.0, 0.0, 1.0, 9.0]))
    np.testing.assert_allclose(gelu, [-0.15865525, 0, 0.84134475, 9], atol=1e-6)
    for step in (Step(op) for op in ("relu", "tanh", "gelu")):
        assert run([step], x).dtype == np.float32


def test_zero_pad_is_an_isometry_that_cropping_inverts(pool, tokens):
    out = maps.apply(maps.fit("zero-pad", pool, tokens), pool).values
    assert np.array_equal(out[:, :D_FM], pool.values) and not out[:, D_FM:].any()
    np.testing.assert_allclose(out @ out.T, pool.values @ pool.values.T, rtol=1e-5)


def test_a_vector_longer_than_the_models_is_cut_into_slots(tokens):
    pool = vectors_of(np.random.default_rng(0).standard_normal((6, 2 * D + 3)))
    out = maps.apply(maps.fit("zero-pad", pool, tokens), pool)
    assert out.values.shape == (6, 3, D) and out.slots == 3
    assert np.array_equal(out.values.reshape(6, -1)[:, : 2 * D + 3], pool.values)
    assert not out.values.reshape(6, -1)[:, 2 * D + 3 :].any()


def test_the_pieces_of_a_long_vector_keep_their_sizes_beside_one_another(tokens):
    pool = vectors_of(np.random.default_rng(0).standard_normal((6, 2 * D + 3)) * np.arange(1, 7)[:, None])
    out = maps.apply(maps.fit("zero-pad", pool, tokens, slot_scale=0.7), pool).values
    whole = out.reshape(6, -1)[:, : 2 * D + 3]
    np.testing.assert_allclose(
        whole / pool.values, np.repeat(whole[:, :1] / pool.values[:, :1], 2 * D + 3, 1), rtol=1e-5
    )
    size = np.sqrt((np.linalg.norm(out, axis=2) ** 2).mean(1))
    np.testing.assert_allclose(size, 0.7 * tokens.mean_norm, rtol=1e-5)


def test_a_zero_row_stays_zero_under_a_norm():
    out = run([Step("norm", {"norm": np.array([3.0])})], np.array([[0.0, 0, 0], [1, 2, 2], [1e-30, 0, 0]]))
    np.testing.assert_allclose(out, [[0, 0, 0], [1, 2, 2], [3, 0, 0]], rtol=1e-6)


def test_row_normalisation_gives_the_asked_moments_and_is_safe_in_half_precision():
    arrays = {"mean": np.array([0.25]), "variance": np.array([4.0])}
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((4, 500)) * 6e4).clip(-6e4, 6e4).astype(np.float16)  # its squares overflow float16
    x[1], x[2] = np.float16(60000), np.float16(6e-8)  # constant rows: the largest and a subnormal
    out = STEPS["row-normalise"](x, arrays)
    assert out.dtype == np.float32 and np.isfinite(out).all()
    np.testing.assert_allclose(out.mean(1), 0.25, atol=1e-5)
    np.testing.assert_allclose(out.var(1), [4, 0, 0, 4], rtol=1e-4)
    scaled = 5 * x.astype(np.float64) - 7
    np.testing.assert_allclose(STEPS["row-normalise"](scaled, arrays)[[0, 3]], out[[0, 3]], atol=1e-4)


def test_row_normalised_slots_have_a_tokens_average_moments(pool, tokens):
    out = maps.apply(maps.fit("wide-random", pool, tokens, row_normalise=True), pool).values
    used = tokens.embeddings[tokens.embeddings.any(1)]
    np.testing.assert_allclose(out.mean(1), used.mean(1).mean(), atol=1e-5)
    np.testing.assert_allclose(out.var(1), used.var(1).mean(), rtol=1e-4)


# -------------------------------------------------------------------------------------- moment matching


def target_of(tokens, name, rows):
    """The rows to match, written out: one row for each occurrence that counts."""
    if name == "moments-vocab":
        return tokens.embeddings[tokens.embeddings.any(1)]
    lists = tokens.text_ids if name == "moments-text" else tokens.pca_ids
    if rows == "item-mean":
        return np.stack([tokens.embeddings[t].mean(0) for t in lists])
    ids = [i for t in lists for i in t]
    return tokens.embeddings[sorted(set(ids)) if rows == "unique" else ids]


CASES = [(n, r) for n in ("moments-text", "moments-pca") for r in ("unique", "frequency", "item-mean")]


@pytest.mark.parametrize("name, rows", [*CASES, ("moments-vocab", None)])
def test_the_corrected_form_matches_both_moments_and_the_printed_one_only_the_second(name, rows, pool, tokens):
    options = {} if rows is None else {"rows": rows}
    target = target_of(tokens, name, rows).astype(np.float64)
    corrected, printed = (
        maps.apply(maps.fit(name, pool, tokens, form=form, **options), pool).values for form in ("corrected", "printed")
    )
    for out in (corrected, printed):
        np.testing.assert_allclose(out.std(0), target.std(0), atol=1e-4)
    np.testing.assert_allclose(corrected.mean(0), target.mean(0), atol=1e-4)
    assert np.abs(printed.mean(0) - target.mean(0)).max() > 0.01


def test_the_three_target_sets_differ(tokens):
    stds = [target_of(tokens, "moments-text", r).std(0) for r in ("unique", "frequency", "item-mean")]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in ((stds[0], stds[1]), (stds[1], stds[2]), (stds[0], stds[2])))


def test_the_affine_step_is_the_recipes_scale_and_shift(pool):
    rng = np.random.default_rng(4)
    x, mean, std = pool.values.astype(np.float64), rng.standard_normal(D_FM), rng.uniform(0.1, 2, D_FM)
    scale = std / x.std(0)
    np.testing.assert_allclose(run([match_moments(x, mean, std)], x), scale * x + mean - scale * x.mean(0), atol=1e-4)
    printed = run([match_moments(x, mean, std, "printed")], x)
    np.testing.assert_allclose(printed, scale * x + mean - x.mean(0), atol=1e-4)


@pytest.mark.parametrize("form", ["corrected", "printed"])
def test_a_constant_dimension_becomes_the_targets_mean(form):
    x = np.random.default_rng(0).standard_normal((9, 3))
    x[:, 1] = 7.3
    out = run([match_moments(x, np.array([1.0, 2.0, 3.0]), np.ones(3), form)], x * [1, 1, 1])
    np.testing.assert_allclose(out[:, 1], 2.0, atol=1e-6)
    out = run([match_moments(x, np.array([1.0, 2.0, 3.0]), np.ones(3), form)], x * [1, -5, 1])  # an unseen value too
    np.testing.assert_allclose(out[:, 1], 2.0, atol=1e-6)


def test_all_pool_vectors_equal_collapse_to_the_target_mean_instead_of_failing(tokens):
    pool = vectors_of(np.full((5, D_FM), 0.37))
    out = maps.apply(maps.fit("moments-vocab", pool, tokens), pool).values
    np.testing.assert_allclose(out, np.tile(tokens.mean, (5, 1)), atol=1e-5)


def test_the_known_geometry():
    """Pool vectors of mean cosine 0.90: what the projector keeps, and what each form of matching makes of it."""
    rng = np.random.default_rng(0)
    n, d_fm, d = 200, 512, 4096
    pool = vectors_of(np.sqrt(0.9) * rng.standard_normal(d_fm) + np.sqrt(0.1) * rng.standard_normal((n, d_fm)))
    table = 0.02 * (rng.standard_normal((1000, d)) + np.sqrt(0.05) * rng.standard_normal(d))
    tokens = maps.Tokens(table, "llm:wide", tuple(rng.integers(0, 1000, 30) for _ in range(n)))

    def of(name, seed=0, **options):
        return cosines(maps.apply(maps.fit(name, pool, tokens, seed=seed, **options), pool).values)

    raw = cosines(pool.values)
    assert raw.mean() == pytest.approx(0.90, abs=0.01)
    assert of("random-projection").mean() == pytest.approx(0.90, abs=0.03)
    assert of("moments-text").mean() == pytest.approx(0.05, abs=0.02)
    assert of("moments-text", form="printed").mean() == pytest.approx(0.84, abs=0.05)
    assert of("centre").mean() == pytest.approx(0.0, abs=0.01)
    narrow = np.mean([np.corrcoef(raw, of("random-projection", s))[0, 1] for s in range(3)])
    assert narrow == pytest.approx(0.23, abs=0.05)
    assert np.corrcoef(raw, of("wide-random"))[0, 1] == pytest.approx(0.94, abs=0.02)


def test_relu_inflates_a_cosine_as_theory_says():
    rho, width = 0.3, 3000
    x = vectors_of(np.array([[1, 0, 0], [rho, np.sqrt(1 - rho**2), 0], [0, 0, 1.0]]))
    tokens = maps.Tokens(np.ones((2, width)), "llm:any")
    options = {"width": width, "depth": 2}
    plain, relu = (
        maps.apply(maps.fit("random-projection", x, tokens, activation=a, **options), x).values for a in (None, "relu")
    )
    assert cosines(plain)[0] == pytest.approx(rho, abs=0.06)
    assert cosines(relu)[0] == pytest.approx((np.sqrt(1 - rho**2) + rho * (np.pi - np.arccos(rho))) / np.pi, abs=0.06)


@pytest.mark.parametrize(
    "init, variance", [("normal", 0.02**2), ("uniform", 1 / 3 / 200), ("xavier", 2 / 500), ("kaiming", 1 / 100)]
)
def test_initialisations_have_their_variance(init, variance):
    pool = vectors_of(np.random.default_rng(0).standard_normal((3, 200)))
    tokens = maps.Tokens(np.ones((2, 300)), "llm:any")
    weight = maps.fit("random-projection", pool, tokens, depth=1, init=init).steps[0].arrays["weight"]
    assert weight.shape == (200, 300)
    assert weight.var() == pytest.approx(variance, rel=0.03) and abs(weight.mean()) < 4 * np.sqrt(
        variance / weight.size
    )


def test_an_orthogonal_projector_into_a_wider_space_is_an_isometry(pool, tokens):
    out = maps.apply(maps.fit("wide-random", pool, tokens, init="orthogonal"), pool).values
    np.testing.assert_allclose(out @ out.T, pool.values @ pool.values.T, rtol=1e-4)


def test_one_wide_layer_keeps_norms_and_angles_up_to_its_width():
    pool = vectors_of(np.random.default_rng(0).standard_normal((30, 40)) + 1)
    tokens = maps.Tokens(np.ones((2, 3000)), "llm:any")
    out = maps.apply(maps.fit("wide-random", pool, tokens), pool).values
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), np.linalg.norm(pool.values, axis=1), rtol=0.08)
    np.testing.assert_allclose(cosines(out), cosines(pool.values), atol=0.1)


def test_the_width_bounds_the_rank(pool, tokens):
    for width in (2, 5):
        out = maps.apply(maps.fit("random-projection", pool, tokens, width=width), pool).values
        assert np.linalg.matrix_rank(out / out.std(), tol=1e-4) == width


# ---------------------------------------------------------------------------------- second moments and beyond


def test_centring_takes_off_the_pools_mean_and_no_more(pool, tokens):
    out = maps.apply(maps.fit("centre", pool, tokens, init="orthogonal"), pool).values
    centred = pool.values - pool.values.mean(0)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out @ out.T, centred @ centred.T, atol=1e-2)


def test_whitening_makes_the_pools_covariance_the_identity_and_power_zero_leaves_correlations(pool, tokens):
    def spectrum(**options):
        out = maps.apply(maps.fit("whiten", pool, tokens, init="orthogonal", **options), pool).values
        return np.linalg.eigvalsh(np.cov(out.T, bias=True))[::-1][:D_FM]

    np.testing.assert_allclose(spectrum(shrinkage=0), 1, atol=1e-3)
    plain = np.linalg.eigvalsh(np.corrcoef(pool.values.T))[::-1]
    np.testing.assert_allclose(spectrum(shrinkage=0, power=0), plain, atol=1e-3)
    between = spectrum(shrinkage=0.3)
    np.testing.assert_allclose(between, plain / (0.7 * plain + 0.3), atol=1e-3)


def test_components_keep_the_first_axes(pool, tokens):
    out = maps.apply(
        maps.fit("whiten", pool, tokens, shrinkage=0, power=0, components=3, init="orthogonal"), pool
    ).values
    got = np.linalg.eigvalsh(np.cov(out.T, bias=True))[::-1]
    np.testing.assert_allclose(got[:3], np.linalg.eigvalsh(np.corrcoef(pool.values.T))[::-1][:3], rtol=1e-3)
    np.testing.assert_allclose(got[3:], 0, atol=1e-4)
    with pytest.raises(StudyError, match="components"):
        maps.fit("whiten", pool, tokens, components=0)


def test_whitening_ignores_the_units_of_a_descriptor(pool, tokens):
    factor = np.logspace(-3, 6, D_FM)
    a = maps.apply(maps.fit("whiten", pool, tokens, seed=1, init="orthogonal"), pool).values
    scaled = vectors_of(pool.values * factor)
    b = maps.apply(maps.fit("whiten", scaled, tokens, seed=1, init="orthogonal"), scaled).values
    np.testing.assert_allclose(a @ a.T, b @ b.T, atol=2e-2)


def test_more_dimensions_than_items_and_constant_dimensions_whiten_to_finite_rows(tokens):
    x = np.random.default_rng(0).standard_normal((6, 15))
    x[:, 3] = 2
    for shrinkage in (0, "auto"):
        assert np.isfinite(
            maps.apply(maps.fit("whiten", vectors_of(x), tokens, shrinkage=shrinkage), vectors_of(x)).values
        ).all()


def test_gaussian_transport_pushes_mean_and_covariance_onto_the_vocabularys(tokens):
    rng = np.random.default_rng(0)
    pool = vectors_of(rng.exponential(size=(200, D + 6)) @ rng.standard_normal((D + 6, D + 6)))
    out = maps.apply(maps.fit("gaussian-ot", pool, tokens, shrinkage=0.0), pool).values.astype(np.float64)
    used = tokens.embeddings[tokens.embeddings.any(1)].astype(np.float64)
    target = np.cov(used.T, bias=True)
    np.testing.assert_allclose(out.mean(0), used.mean(0), atol=1e-3)
    assert np.abs(np.cov(out.T, bias=True) - target).max() < 0.01 * np.abs(target).max()
    before = maps.apply(maps.fit("wide-random", pool, tokens), pool).values
    assert np.abs(np.cov(before.T, bias=True) - target).max() > np.abs(target).max()


def test_gaussian_transport_is_a_gradient_of_a_convex_function(pool, tokens):
    """Its matrix is symmetric and positive definite: what distinguishes the optimal map from any other that matches."""
    weight = maps.fit("gaussian-ot", pool, tokens).steps[-1].arrays["weight"]
    np.testing.assert_allclose(weight, weight.T, atol=1e-4 * np.abs(weight).max())
    assert np.linalg.eigvalsh(weight).min() > 0


def test_colouring_gives_a_full_rank_pool_the_vocabularys_covariance(tokens):
    rng = np.random.default_rng(0)
    pool = vectors_of(rng.standard_normal((300, D)) @ rng.standard_normal((D, D)) + 5)
    out = maps.apply(
        maps.fit("vocab-covariance", pool, tokens, shrinkage=0, power=1, components=None), pool
    ).values.astype(np.float64)
    np.testing.assert_allclose(np.cov(out.T, bias=True), tokens.covariance, atol=1e-4)
    np.testing.assert_allclose(out.mean(0), tokens.mean, atol=1e-4)


def test_tokens_statistics_equal_numpys_over_the_used_rows(tokens):
    used = tokens.embeddings[tokens.embeddings.any(1)].astype(np.float64)
    np.testing.assert_allclose(tokens.mean, used.mean(0))
    np.testing.assert_allclose(tokens.std, used.std(0))
    np.testing.assert_allclose(tokens.covariance, np.cov(used.T, bias=True))
    assert tokens.mean_norm == pytest.approx(np.linalg.norm(used, axis=1).mean())
    value, axes = tokens.spectrum
    np.testing.assert_allclose((axes * value) @ axes.T, tokens.covariance, atol=1e-12)


@pytest.mark.parametrize("of", ["vocabulary", "text"])
def test_the_entropic_map_equals_pots_barycentres_on_the_pool(of, pool, tokens):
    ot = pytest.importorskip("ot")
    slot_map = maps.fit("sinkhorn", pool, tokens, targets=30, epsilon=0.5, of=of)
    out = maps.apply(slot_map, pool).values
    arrays = slot_map.steps[-1].arrays
    x, y = run(slot_map.steps[:-1], pool.values).astype(np.float64), arrays["targets"].astype(np.float64)
    plan = ot.sinkhorn(ot.unif(len(x)), ot.unif(len(y)), ot.dist(x, y), arrays["epsilon"].item(), numItermax=20000)
    np.testing.assert_allclose(out, plan @ y / plan.sum(1, keepdims=True), atol=1e-3 * np.abs(y).max())
    assert slot_map.recipe["chosen"]["marginal_error"] < 1e-4
    assert out.std() > 0.1 * y.std()  # it has not collapsed onto one point


def test_a_small_epsilon_sends_every_item_to_a_token(pool, tokens):
    slot_map = maps.fit("sinkhorn", pool, tokens, targets=N, epsilon=1e-3)
    out, y = maps.apply(slot_map, pool).values, slot_map.steps[-1].arrays["targets"]
    distance = np.linalg.norm(out[:, None] - y[None], axis=-1).min(1)
    assert np.median(distance) < 0.1 * np.linalg.norm(y, axis=1).mean()


def test_landmarks_are_read_as_their_tokens_and_slots_stay_in_the_hull(pool, tokens):
    slot_map = maps.fit("landmarks", pool, tokens, landmarks=8, temperature=1e-4)
    values = slot_map.steps[-1].arrays["values"]
    out = maps.apply(slot_map, pool).values
    exact = [np.abs(values - row).max(1).min() < 1e-4 for row in out]
    assert sum(exact) >= 8
    assert all((np.abs(tokens.embeddings - v).max(1) == 0).any() for v in values)
    slot_map = maps.fit("landmarks", pool, tokens, landmarks=8, temperature=0.5)
    soft, keys = maps.apply(slot_map, pool).values, slot_map.steps[-1].arrays["targets"]
    values = slot_map.steps[-1].arrays["values"]
    weight = np.exp(run(slot_map.steps[:-1], pool.values) @ keys.T / 0.5)  # the cosine: both sides have norm 1
    np.testing.assert_allclose(soft, weight @ values / weight.sum(1, keepdims=True), atol=1e-4)
    low, high = values.min(0), values.max(0)
    assert (soft >= low - 1e-5).all() and (soft <= high + 1e-5).all()


# ----------------------------------------------------------------------------------------- ridge and PCA text


def test_ridge_recovers_a_planted_linear_map(tokens):
    rng = np.random.default_rng(0)
    pool = vectors_of(rng.standard_normal((80, D_FM)) * np.logspace(0, 1, D_FM) + 2)
    truth, bias = rng.standard_normal((D_FM, D)), rng.standard_normal(D)
    labels = Vectors(pool.values[:60] @ truth + bias + 1e-3 * rng.standard_normal((60, D)), pool.ids[:60], tokens.space)
    for standardise in (False, True):
        out = maps.apply(maps.fit("ridge", pool, tokens, labels=labels, standardise=standardise), pool).values
        want = pool.values[60:] @ truth + bias
        assert np.abs(out[60:] - want).max() < 0.01 * want.std()


def test_ridge_solves_its_normal_equations_and_takes_the_best_leave_one_out_penalty(pool, tokens):
    rng = np.random.default_rng(0)
    m = 15
    x = pool.values[:m].astype(np.float64)
    y = (x @ rng.standard_normal((D_FM, D)) + 4 * rng.standard_normal((m, D))).astype(np.float32)
    labels = Vectors(y, pool.ids[:m], tokens.space)

    def solve(x, y, alpha, at):
        xc, yc = x - x.mean(0), y - y.mean(0)
        return (at - x.mean(0)) @ np.linalg.solve(xc.T @ xc + alpha * np.eye(D_FM), xc.T @ yc) + y.mean(0)

    def left_out(alpha):
        rest = [np.delete(np.arange(m), i) for i in range(m)]
        return sum(((solve(x[r], y[r], alpha, x[i]) - y[i]) ** 2).sum() for i, r in enumerate(rest))

    slot_map = maps.fit("ridge", pool, tokens, labels=labels)
    alpha = slot_map.recipe["chosen"]["alpha"]
    np.testing.assert_allclose(maps.apply(slot_map, pool).values, solve(x, y, alpha, pool.values), atol=1e-2)
    size = ((x - x.mean(0)) ** 2).sum() / m
    grid = size * np.logspace(-5, 3, 25)
    assert alpha == pytest.approx(grid[np.argmin([left_out(a) for a in grid])])


def test_ridge_leaves_out_an_item_with_all_its_slots(tokens):
    """Its penalty is the best of refits without each item, here written out; one row left out beside its twin would say another."""
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(5)
    base, y = rng.standard_normal((12, 1, 40)), rng.standard_normal((12, tokens.width)).astype(np.float32)
    pool = vectors_of((base + 0.2 * rng.standard_normal((12, 3, 40))).astype(np.float32))
    chosen = maps.fit("ridge", pool, tokens, labels=Vectors(y, pool.ids, tokens.space)).recipe["chosen"]["alpha"]
    x, rows = pool.values.astype(np.float64), np.repeat(y[:, None], 3, axis=1)
    centred = x.reshape(-1, 40) - x.reshape(-1, 40).mean(0)
    grid = (centred**2).sum() / len(centred) * np.logspace(-5, 3, 25)

    def error(alpha):
        total = 0.0
        for i in range(len(x)):
            rest = np.delete(np.arange(len(x)), i)
            one = Ridge(alpha=alpha).fit(x[rest].reshape(-1, 40), rows[rest].reshape(-1, tokens.width))
            total += ((one.predict(x[i]) - rows[i]) ** 2).sum()
        return total

    errors = [error(a) for a in grid]
    assert chosen == pytest.approx(grid[int(np.argmin(errors))])
    assert closed_form._left_out_errors(centred, rows.reshape(-1, tokens.width), grid, 3) == pytest.approx(errors)
    apart = vectors_of(pool.values.reshape(36, 40))
    labels = Vectors(rows.reshape(36, -1), apart.ids, tokens.space)
    assert chosen > 10 * maps.fit("ridge", apart, tokens, labels=labels).recipe["chosen"]["alpha"]


def places(slots, points):
    """Where rows lie on the line through points, and how far from it: nearest by brute force over its pieces."""
    best, at = np.full(len(slots), np.inf), np.zeros(len(slots))
    for i, (a, b) in enumerate(pairwise(points)):
        part = np.clip(((slots - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
        off = np.linalg.norm(slots - (a + part[:, None] * (b - a)), axis=1)
        at, best = np.where(off < best, i + part, at), np.minimum(best, off)
    return at, best


def test_soft_labels_lie_where_ridge_expects_them_between_two_labels(tokens):
    """A planted place that is linear in the vector comes back, in the order of the labels and not of their names, at an end beyond it."""
    rng = np.random.default_rng(0)
    names = ("b", "a", "d", "c", "e")
    order = maps.Tokens(
        tokens.embeddings, tokens.space, label_ids={n: (50 + i, 60 + i)[: 1 + i % 2] for i, n in enumerate(names)}
    )
    pool = vectors_of(rng.standard_normal((90, D_FM)))
    place = pool.values @ rng.standard_normal(D_FM) * 0.6 + 2
    seen = np.flatnonzero((np.abs(place - place.round()) < 0.5) & (place > -0.4) & (place < 4.4))[:60]
    labels = {pool.ids[i]: names[round(place[i])] for i in seen}
    points = maps.label_rows({n: n for n in names}, order).values.astype(np.float64)
    for standardise in (False, True):
        slot_map = maps.fit("soft-label", pool, order, labels=labels, standardise=standardise)
        at, off = places(maps.apply(slot_map, pool).values, points)
        assert off.max() < 1e-5 and slot_map.recipe["label_budget"] == len(labels)
        inside = (place > 0.3) & (place < 3.7)
        assert np.corrcoef(at[inside], place[inside])[0, 1] > 0.95
        assert (at[place > 6] == 4).all() and (at[place < -2] == 0).all() and (place > 6).any() and (place < -2).any()
    # the same regression as ridge's onto rows that stand on one straight line
    rows = Vectors(np.array([[names.index(b)] for b in labels.values()], np.float32) * np.ones((1, D)), tuple(labels), order.space)  # fmt: skip
    ridge = maps.fit("ridge", pool, order, labels=rows)
    plain = maps.fit("soft-label", pool, order, labels=labels)
    want = np.clip(maps.apply(ridge, pool).values[:, 0], 0, 4)
    np.testing.assert_allclose(places(maps.apply(plain, pool).values, points)[0], want, atol=1e-3)
    assert plain.recipe["chosen"]["alpha"] == pytest.approx(ridge.recipe["chosen"]["alpha"])


def test_a_turned_line_keeps_its_geometry_and_lies_at_no_label(pool, tokens):
    labels = {i: str(row % 10) for row, i in enumerate(pool.ids[:15])}
    straight, *turned = (
        maps.fit("soft-label", pool, tokens, labels=labels, turned=t, seed=s)
        for t, s in ((False, 0), (True, 0), (True, 1))
    )
    plain, *others = (maps.apply(m, pool).values.astype(np.float64) for m in (straight, *turned))
    points = maps.label_rows({b: b for b in tokens.label_ids}, tokens).values
    assert places(plain, points)[1].max() < 1e-5
    for other in others:
        np.testing.assert_allclose(other @ other.T, plain @ plain.T, rtol=1e-4, atol=1e-5)
        assert places(other, points)[1].min() > 0.3 * np.linalg.norm(plain, axis=1).mean()
    assert np.abs(others[0] - others[1]).max() > 0.1


def test_soft_labels_need_labels_as_they_are_written(pool, tokens):
    rows = maps.label_rows({i: str(row % 10) for row, i in enumerate(pool.ids[:15])}, tokens)
    for labels in (None, rows, {pool.ids[0]: "1"}):
        with pytest.raises(DataError, match="at least two labelled items"):
            maps.fit("soft-label", pool, tokens, labels=labels)
    with pytest.raises(DataError, match="label 'x'"):
        maps.fit("soft-label", pool, tokens, labels={pool.ids[0]: "x", pool.ids[1]: "1"})
    with pytest.raises(DataError, match="'stranger'"):
        maps.fit("soft-label", pool, tokens, labels={pool.ids[0]: "2", "stranger": "1"})


@pytest.mark.parametrize("name", ["ridge", "soft-label", "moments-vocab", "whiten", "sinkhorn", "landmarks"])
def test_a_vector_in_several_slots_is_one_vector_of_the_pool(name, pool, tokens):
    several = Vectors(np.repeat(pool.values[:, None], 4, axis=1), pool.ids, pool.space)
    (one, _), (other, _) = (fitted(name, p, tokens) for p in (pool, several))
    assert one.recipe == other.recipe
    found = maps.apply(other, several)
    want = maps.apply(one, pool).values[:, None]
    assert found.slots == 4
    assert np.abs(found.values - want).max() < 1e-5 * np.abs(want).max()  # more rows may round otherwise


def test_the_label_budget_is_what_the_map_saw_and_labels_outside_the_pool_are_refused(pool, tokens):
    labels = {i: str(row % 10) for row, i in enumerate(pool.ids[:15])}
    assert maps.fit("ridge", pool, tokens, labels=labels).recipe["label_budget"] == 15
    assert maps.fit("moments-vocab", pool, tokens, labels=labels).recipe["label_budget"] == 0
    with pytest.raises(DataError, match="'stranger'"):
        maps.fit("ridge", pool, tokens, labels={**labels, "stranger": "3"})
    with pytest.raises(DataError, match="at least two"):
        maps.fit("ridge", pool, tokens)
    with pytest.raises(DataError, match="label 'x'"):
        maps.fit("ridge", pool, tokens, labels={pool.ids[0]: "x", pool.ids[1]: "1"})


def test_a_labels_row_is_the_mean_of_its_tokens_the_first_of_which_weigh_more(tokens):
    rows = maps.label_rows({"a": "3", "b": "7"}, tokens)
    np.testing.assert_allclose(rows.values[1], (2 * tokens.embeddings[37] + tokens.embeddings[47]) / 3, rtol=1e-6)
    assert rows.ids == ("a", "b") and rows.space == tokens.space


@pytest.mark.parametrize("name", ["ridge", "soft-label"])
def test_labels_of_the_same_tokens_in_another_order_are_other_labels(name, pool, tokens):
    """Digits that are tokens of their own, as those of SmolLM2 are: 12 and 21 are not one place."""
    ids = {f"{n:02}": (30 + n // 10, 30 + n % 10) for n in range(100)}
    digits = maps.Tokens(tokens.embeddings, tokens.space, label_ids=ids)
    points = maps.label_rows({label: label for label in ids}, digits).values
    apart = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(100)
    assert apart.min() > 0.1 * tokens.mean_norm
    of = {item: f"{12 if row % 2 else 21}" for row, item in enumerate(pool.ids[:8])}
    found = maps.apply(maps.fit(name, pool, digits, labels=of, alpha=1e-6), pool.take(pool.ids[:8])).values
    want = points[[int(label) for label in of.values()]]
    np.testing.assert_allclose(found, want, atol=1e-3)  # fewer items than dimensions: what they are labelled is met


def test_pca_text_reads_back_as_the_pools_principal_components(pool):
    from sklearn.decomposition import PCA

    strings = maps.pca_text(pool, pool, dims=5)
    read = np.array([[float(v) for v in s.strip("[]").split(", ")] for s in strings])
    want = PCA(5, svd_solver="full").fit_transform(pool.values.astype(np.float64))
    want *= np.sign((want * read).sum(0))
    np.testing.assert_allclose(read, want, rtol=6e-3, atol=1e-4)
    for s in strings:
        assert s.startswith("[") and s.endswith("]") and "e" not in s and "-0," not in s
        for number in s[1:-1].split(", "):
            assert len(number.replace("-", "").replace(".", "").lstrip("0").rstrip("0")) <= 3


def test_pca_text_uses_what_a_small_pool_spans_and_fits_the_pool_only(pool):
    small = pool.take(pool.ids[:4])
    assert len(maps.pca_text(small, pool, dims=20)[0].split(", ")) == 3
    other = pool.take(pool.ids[4:])
    assert maps.pca_text(small, other) == maps.pca_text(small, pool)[4:]
    with pytest.raises(DataError, match="no principal axis"):
        maps.pca_text(vectors_of(np.ones((3, 4))), pool)


def test_numbers_are_written_without_exponents_at_three_figures():
    from icrl_lab.maps.closed_form import _written

    cases = {1234.5: "1230", -0.00012345: "-0.000123", 0.0: "0", 0.5: "0.5", 99.96: "100", 2e-7: "0.0000002"}
    assert {number: _written(number) for number in cases} == cases and _written(-0.0) == "0"


# ------------------------------------------------------------------------------------- identity codes and slots


def test_hash_vectors_know_the_item_and_nothing_else():
    items, ids = ["CCO", "c1ccccc1", "CCN", "CCO"], list("abcd")
    a = hash_vectors(items, ids, 600)
    assert a.space == "hash/600" and np.abs(a.values).max() < 1 and np.array_equal(a.values[0], a.values[3])
    b = hash_vectors(items[::-1], ids, 600)
    assert np.array_equal(a.values[::-1], b.values)
    assert np.abs(cosines(a.values[:3])).max() < 0.15
    np.testing.assert_allclose(a.values[:3].var(), 1 / 3, rtol=0.1)
    arrays = hash_vectors([np.arange(2000.0), np.arange(2000.0) + (np.arange(2000) == 1000)], ["x", "y"], 4)
    assert not np.array_equal(arrays.values[0], arrays.values[1])


def test_random_noise_is_the_published_projector_on_a_hash(pool, tokens):
    code = hash_vectors(pool.ids, pool.ids, D_FM)
    a, b = (maps.apply(maps.fit(n, code, tokens, seed=4), code).values for n in ("random-noise", "random-projection"))
    assert np.array_equal(a, b)


def test_several_slots_map_each_by_itself(pool, tokens):
    three = Vectors(np.stack([pool.values, 2 * pool.values, pool.values - 1], axis=1), pool.ids, pool.space)
    slot_map = maps.fit("moments-vocab", three, tokens, slot_scale=0.5)
    out = maps.apply(slot_map, three)
    assert out.values.shape == (N, 3, D)
    single = maps.apply(slot_map, Vectors(three.values[:, 1], pool.ids, pool.space))
    np.testing.assert_allclose(out.values[:, 1], single.values, atol=1e-5)


def test_two_kinds_of_vectors_are_mapped_each_by_its_own_map_and_stack(pool, tokens):
    other = Vectors(pool.values[::-1, :7], pool.ids[::-1], "protein/1")
    first, second = (maps.fit("wide-random", kind, tokens, seed=2, slot_scale=1.0) for kind in (pool, other))
    both = maps.stack_slots([maps.apply(first, pool), maps.apply(second, other)])
    assert both.values.shape == (N, 2, D) and both.ids == pool.ids
    np.testing.assert_array_equal(both.values[:, 1], maps.apply(second, other).values[::-1])
    with pytest.raises(DataError, match="share a space"):
        maps.stack_slots([pool, other])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("landmarks", {"temperature": -0.2}), ("landmarks", {"landmarks": -1}), ("landmarks", {"landmarks": 2.5}), ("sinkhorn", {"targets": 0}),
        ("sinkhorn", {"targets": -300}), ("sinkhorn", {"epsilon": 0}), ("sinkhorn", {"epsilon": float("inf")}), ("whiten", {"components": 2.5}),
        ("random-projection", {"std": 0}), ("random-projection", {"width": "64"}), ("random-projection", {"depth": True}), ("ridge", {"alpha": -1.0}),
        ("ridge", {"standardise": "no"}), ("soft-label", {"turned": 1}), ("random-projection", {"activation": "rleu"}),
        ("moments-vocab", {"form": "printd"}), ("moments-text", {"rows": None}), ("moments-pca", {"projector": ["wide-random"]}),
        ("centre", {"init": "Normal"}), ("sinkhorn", {"of": "vocab"}),
    ],
)  # fmt: skip
def test_an_impossible_value_of_an_option_is_refused_by_its_name(name, option, pool, tokens):
    with pytest.raises(StudyError, match=next(iter(option))):
        fitted(name, pool, tokens, **option)


@pytest.mark.parametrize(
    "argument",
    [{"slot_scale": "a"}, {"slot_scale": 0}, {"slot_scale": True}, {"seed": -1}, {"seed": 1.5}, {"seed": None}],
)
def test_an_impossible_argument_is_refused_by_its_name(argument, pool, tokens):
    with pytest.raises(StudyError, match=next(iter(argument))):
        maps.fit("random-projection", pool, tokens, **argument)


@pytest.mark.parametrize("shape", [(N, 1, D), (N, 2, D), (N, D - 1)])
def test_rows_of_labels_of_another_shape_are_refused(shape, pool, tokens):
    with pytest.raises(DataError, match=f"one row of {D} numbers"):
        maps.fit("ridge", pool, tokens, labels=Vectors(np.ones(shape), pool.ids, tokens.space))


@pytest.mark.parametrize("dims", [0, -1, 2.5])
def test_a_string_of_no_component_is_refused(dims, pool):
    with pytest.raises(StudyError, match="dims"):
        maps.pca_text(pool, pool, dims=dims)


def test_what_is_none_by_default_may_be_said(pool, tokens):
    for name, option in (
        ("whiten", {"components": None}),
        ("ridge", {"alpha": None}),
        ("landmarks", {"landmarks": np.int64(5)}),
    ):
        assert fitted(name, pool, tokens, **option)[0].steps
