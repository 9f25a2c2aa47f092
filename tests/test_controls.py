"""Controls: what each leaves of the real signal, and what it must destroy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_lab.controls import CONTROLS, apply, join, nearest_tokens
from icrl_lab.errors import DataError, StudyError
from icrl_lab.maps import Tokens
from icrl_lab.values import Prompt, Slot, Text, Vectors

N, D = 30, 12


def prompt_of(ids, width=1):
    parts = [Text("What? ")]
    for i, item in enumerate(ids):
        parts += [Slot(f"s{i}", item, width, i), Text(f" -> {i}\n", "label", i)]
    return Prompt(tuple(parts))


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)) @ rng.standard_normal((D, D)) + 2
    return Vectors(x * rng.uniform(0.5, 2, (N, 1)), tuple(f"m{i:02d}" for i in range(N)), "llm:small")


@pytest.fixture(scope="module")
def tokens():
    table = np.random.default_rng(1).standard_normal((200, D)).astype(np.float32)
    table[:3] = 0
    return Tokens(table, "llm:small")


def slots_of(vectors, slots=3):
    rng = np.random.default_rng(5)
    x = np.stack([vectors.values + i + rng.standard_normal(vectors.values.shape) for i in range(slots)], 1)
    return Vectors(x, vectors.ids, vectors.space)


def mixed(vectors):
    order = np.random.default_rng(3).permutation(len(vectors))
    return vectors.take([vectors.ids[i] for i in order])


@pytest.mark.parametrize("name", [n for n in CONTROLS if n != "dummy"])
@pytest.mark.parametrize("slots", [1, 3])
def test_a_control_keeps_shape_space_and_prompt_and_depends_on_seed_not_on_row_order(name, slots, vectors, tokens):
    real = vectors if slots == 1 else slots_of(vectors)
    prompt = prompt_of(real.ids[:5], slots)
    same, out = CONTROLS[name](prompt, real, seed=4, tokens=tokens)
    assert same == prompt and out.values.shape == real.values.shape and (out.ids, out.space) == (real.ids, real.space)
    _, again = CONTROLS[name](prompt_of(real.ids[5:9], slots), real, seed=4, tokens=tokens)
    assert np.array_equal(out.values, again.values)  # another prompt of the study gets the same vectors
    _, turned = CONTROLS[name](prompt, mixed(real), seed=4, tokens=tokens)
    np.testing.assert_allclose(turned.take(real.ids).values, out.values, atol=1e-4)
    _, other = CONTROLS[name](prompt, real, seed=5, tokens=tokens)
    assert np.array_equal(out.values, other.values) == (name in ("real", "shared", "zero", "back-translated"))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 10**6))
def test_shuffling_is_a_derangement_that_keeps_every_row(n, seed):
    real = Vectors(np.arange(2.0 * n).reshape(n, 2), tuple(f"id{i}" for i in range(n)), "llm:x")
    _, out = CONTROLS["shuffled"](prompt_of(real.ids), real, seed=seed)
    assert (out.values[:, 0] != real.values[:, 0]).all()
    assert sorted(map(tuple, out.values)) == sorted(map(tuple, real.values))


def test_every_derangement_of_four_comes_up_equally_often():
    real = Vectors(np.arange(4.0)[:, None], tuple("abcd"), "llm:x")
    seen = {}
    for seed in range(1800):
        key = tuple(CONTROLS["shuffled"](Prompt(()), real, seed=seed)[1].values[:, 0])
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 9 and min(seen.values()) > 140 and max(seen.values()) < 260


def test_shuffling_moves_all_slots_of_an_item_together(vectors):
    real = slots_of(vectors)
    _, out = CONTROLS["shuffled"](prompt_of(real.ids, 3), real, seed=0)
    donors = [int(np.flatnonzero((real.values == row).all((1, 2)))[0]) for row in out.values]
    assert sorted(donors) == list(range(N))


@pytest.mark.parametrize("slots", [1, 3])
def test_noise_has_the_clouds_moments_and_norms_and_nothing_of_the_item(slots, vectors):
    real = vectors if slots == 1 else slots_of(vectors)
    flat = real.values.reshape(N, -1)
    draws = np.stack([CONTROLS["noise"](Prompt(()), real, seed=s)[1].values for s in range(400)])
    for slot in range(slots):
        got, want = (np.linalg.norm(v.reshape(-1, N, slots, D)[:, :, slot], axis=-1) for v in (draws, real.values))
        np.testing.assert_allclose(np.sort(got[0]), np.sort(want[0]), rtol=1e-5)
        assert abs(np.mean([np.corrcoef(g, want[0])[0, 1] for g in got])) < 0.05  # nobody keeps its own norm
    noise = draws.reshape(-1, slots * D)
    scale = flat.std()
    np.testing.assert_allclose(noise.mean(0), flat.mean(0), atol=0.15 * scale)
    a, b = np.cov(noise.T), np.cov(flat.T)
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98  # the full covariance, off-diagonal too
    assert np.trace(a) == pytest.approx(np.trace(b), rel=0.15)
    mean = flat.mean(0)
    within = ((draws.reshape(400, N, -1) - mean) * (flat - mean)).sum(-1)
    assert abs(within.mean()) < 0.05 * ((flat - mean) ** 2).sum(-1).mean()  # item by item: no overlap with the real one


def test_shared_has_rank_one_at_the_mean_norm_and_points_to_the_mean(vectors):
    _, out = CONTROLS["shared"](Prompt(()), vectors)
    assert np.linalg.matrix_rank(out.values) == 1 and len(np.unique(out.values, axis=0)) == 1
    row, mean = out.values[0], vectors.values.mean(0)
    assert np.linalg.norm(row) == pytest.approx(np.linalg.norm(vectors.values, axis=1).mean(), rel=1e-5)
    assert row @ mean / np.linalg.norm(row) / np.linalg.norm(mean) == pytest.approx(1, abs=1e-5)


def test_shared_vectors_of_a_centred_cloud_are_a_real_items(vectors):
    centred = Vectors(vectors.values - vectors.values.mean(0), vectors.ids, vectors.space)
    for name, real in (("shared", centred), ("shared-item", vectors)):
        _, out = CONTROLS[name](Prompt(()), real, seed=1)
        assert len(np.unique(out.values, axis=0)) == 1 and (out.values[0] == real.values).all(1).any()


def test_a_dummy_leaves_no_slot_and_nothing_else_changes(vectors):
    prompt = prompt_of(vectors.ids[:4], width=2)
    out, none = CONTROLS["dummy"](prompt, vectors)
    assert out.slots == () and len(out.parts) == len(prompt.parts) and len(none) == 0 and none.space == vectors.space
    for before, after in zip(prompt.parts, out.parts):
        assert after == (Text("? ?", "marker", before.shot) if isinstance(before, Slot) else before)


def test_zero_is_zero(vectors):
    assert not CONTROLS["zero"](Prompt(()), vectors)[1].values.any()


@pytest.mark.parametrize("slots", [1, 3])
def test_back_translation_takes_the_nearest_token_by_cosine_and_is_idempotent(slots, vectors, tokens):
    real = vectors if slots == 1 else slots_of(vectors)
    _, once = CONTROLS["back-translated"](Prompt(()), real, tokens=tokens)
    _, twice = CONTROLS["back-translated"](Prompt(()), once, tokens=tokens)
    assert np.array_equal(once.values, twice.values)
    for row, got in zip(real.values.reshape(-1, D), once.values.reshape(-1, D)):
        cosine = [t @ row / np.linalg.norm(t) / np.linalg.norm(row) if t.any() else -2 for t in tokens.embeddings]
        assert np.array_equal(got, tokens.embeddings[int(np.argmax(cosine))])


def test_nearest_tokens_do_not_depend_on_the_chunk_and_never_name_an_unused_token(vectors, tokens):
    whole = nearest_tokens(vectors.values, tokens)
    assert np.array_equal(whole, nearest_tokens(vectors.values, tokens, chunk=7)) and whole.min() >= 3
    assert nearest_tokens(np.zeros((2, D)), tokens).tolist() == [3, 3]
    twice = Tokens(np.concatenate([tokens.embeddings[3:], tokens.embeddings[3:]]), "llm:small")
    assert np.array_equal(nearest_tokens(vectors.values, twice, chunk=50), whole - 3)  # of two equal tokens the lower


def test_many_prompts_get_what_each_would_get_alone(vectors, tokens):
    prompts = [prompt_of(vectors.ids[i : i + 3]) for i in range(4)]
    for name in CONTROLS:
        several, out = apply(name, prompts, vectors, seed=2, tokens=tokens)
        for prompt, got in zip(prompts, several):
            alone, same = CONTROLS[name](prompt, vectors, seed=2, tokens=tokens)
            assert alone == got and np.array_equal(same.values, out.values)


def test_what_cannot_be_is_refused_in_one_sentence(vectors, tokens):
    one = vectors.take(vectors.ids[:1])
    for name in ("shuffled", "noise", "shared", "shared-item"):
        with pytest.raises(DataError, match="at least two"):
            CONTROLS[name](Prompt(()), one)
    with pytest.raises(StudyError, match="did you mean 'shuffled'"):
        apply("shufled", [], vectors)
    with pytest.raises(StudyError, match="no tokens"):
        CONTROLS["back-translated"](Prompt(()), vectors)
    with pytest.raises(StudyError, match="llm:other"):
        CONTROLS["back-translated"](Prompt(()), vectors, tokens=Tokens(tokens.embeddings, "llm:other"))


def test_two_who_join_a_noisy_cloud_get_noise_of_their_own():
    """Each new item's draw is its own seed's: not its neighbour's, and the same whoever joins with it."""
    rng = np.random.default_rng(5)
    held = Vectors(rng.standard_normal((7, 4)), tuple("abcdefg"), "s")
    _, drawn = CONTROLS["noise"](Prompt(()), held, seed=3)
    new = Vectors(np.ones((2, 4)), ("x", "y"), "s")
    both = join("noise", held, drawn, new, seeds=(11, 12)).values
    alone = join("noise", held, drawn, new.take(("y",)), seeds=(12,)).values
    assert np.array_equal(both[:7], drawn.values) and np.array_equal(both[8], alone[7])
    assert np.abs(both[7] - both[8]).max() > 1e-3
