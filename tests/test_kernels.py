"""Kernels of attention: softmax and log-sum-exp as float64 has them, by every way, and no query sees another."""

import math

import pytest
import torch

from icrl_lab.engine import attention, kernels, products

oneDNN = pytest.mark.skipif(
    products.possible(torch.float32) == ("torch",), reason="this build of torch has no oneDNN products"
)


def drawn(batch=3, heads=6, kv=2, rows=7, keys=50, width=24, seed=0):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, rows, width, generator=draw) * 2
    k, v = (torch.randn(batch, kv, keys, width, generator=draw) for _ in range(2))
    return q, k, v


def exact(q, k, v, scale, cap=None, mask=None):
    """The definition, in float64; rows that see nothing are zero and minus infinity."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("bhrw,bhkw->bhrk", q, k) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return torch.softmax(scores, -1).nan_to_num() @ v, scores.logsumexp(-1)


def same(found, wanted, near=2e-6):
    out, lse = found
    assert out.shape == wanted[0].shape and lse.shape == wanted[1].shape
    assert (out - wanted[0]).abs().max() < near * wanted[0].abs().max()
    nothing = wanted[1] == -math.inf
    assert torch.equal(lse == -math.inf, nothing)
    seen = wanted[1][~nothing]
    assert (lse[~nothing] - seen).abs().max() < 1e-5 + 3e-7 * seen.abs().max()  # of the order of float32's steps there


@pytest.mark.parametrize("rows, keys", [(7, 11), (40, 40), (41, 7), (7, 300)])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_free_rows_see_every_key(rows, keys, cap):
    q, k, v = drawn(rows=rows, keys=keys)
    same(kernels.attend(q, k, v, 0.3, cap=cap), exact(q, k, v, 0.3, cap))


@pytest.mark.parametrize("keys", [13, 57])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_causal_rows_see_no_later_key(keys, cap):
    q, k, v = drawn(rows=keys, keys=keys)
    mask = torch.ones(keys, keys, dtype=torch.bool).tril()[None, None]
    same(kernels.attend(q, k, v, 0.3, cap=cap, causal=True), exact(q, k, v, 0.3, cap, mask))


@pytest.mark.parametrize("rows, keys", [(9, 31), (45, 60)])
@pytest.mark.parametrize("cap, blind", [(None, False), (None, True), (5.0, True)])
@pytest.mark.parametrize("each", [False, True])
def test_a_mask_hides_keys_and_may_hide_all(rows, keys, cap, blind, each):
    q, k, v = drawn(rows=rows, keys=keys)
    mask = torch.rand(3 if each else 1, 1, rows, keys, generator=torch.Generator().manual_seed(5)) < 0.4
    mask[..., 3] = True  # every row sees something
    if blind:
        mask[:, :, [2, 5]] = False
    found = kernels.attend(q, k, v, 0.3, cap=cap, mask=mask, sees=not blind)
    same(found, exact(q, k, v, 0.3, cap, mask))


@pytest.fixture
def small(monkeypatch):
    """Blocks that are small, so that there are several of rows and of keys, the last ones cut short."""
    monkeypatch.setattr(kernels, "KEYS", 70)
    monkeypatch.setattr(kernels, "SCORES", 70 * 10)
    monkeypatch.setattr(kernels, "MANY", 1)


def by_products(q, k, v, scale):
    """`attend` with keys laid out; that they were used is part of the answer."""
    used = []

    def laid():
        used.append(kernels.Laid(k, v))
        return used[-1]

    found = kernels.attend(q, k, v, scale, laid=laid)
    assert len(used) == 1
    return found


@oneDNN
@pytest.mark.parametrize("keys", [64, 150, 301])
@pytest.mark.parametrize("loud", [0.1, 1.0, 3.0])
def test_products_are_the_softmax(small, keys, loud, monkeypatch):
    """A few keys say how far to move the scores: not exactly, but well enough, unless scores are loud."""
    if loud < 3:
        monkeypatch.setattr(kernels, "_flash_for_cpu", None)
    q, k, v = drawn(rows=43, keys=keys)
    q = q * loud
    same(by_products(q, k, v, 0.3), exact(q, k, v, 0.3), 5e-6)


@oneDNN
@pytest.mark.parametrize("way", kernels.WAYS)
def test_all_ways_to_attend_to_all_keys_are_the_softmax(small, way):
    q, k, v = drawn(rows=43, keys=150)
    out, lse = kernels.to_all(k, v, way)(q.reshape(*k.shape[:2], -1, q.shape[3]), 0.3)
    same((out.reshape(q.shape), lse.reshape(q.shape[:3])), exact(q, k, v, 0.3), 5e-6)


@oneDNN
def test_scores_far_from_zero_are_as_exact(small):
    """A shift of all scores of a row changes no weight."""
    q, k, v = drawn(rows=43, keys=150)
    k[..., 0], far = 4.0, q.clone()
    q[..., 0], far[..., 0] = 0.0, torch.linspace(-50, 50, 43)
    one, other = by_products(q, k, v, 0.3), by_products(far, k, v, 0.3)
    assert (one[0] - other[0]).abs().max() < 2e-5
    same(other, exact(far, k, v, 0.3), 2e-5)


@oneDNN
def test_a_key_that_no_sample_shows_is_found(small):
    """The sampled keys say that scores are small; one that was not sampled is huge for some rows. The others stay what they were."""
    q, k, v = drawn(rows=43, keys=150)
    q[..., 0], k[..., 0] = 0.0, 0.0
    calm = by_products(q, k, v, 0.3)
    k[:, :, 7, 0] = 60.0  # every fifth is sampled
    misled = [4, 5, 42]
    quiet = [r for r in range(43) if r not in misled]
    still = by_products(q, k, v, 0.3)
    q[:, :, misled, 0] = 10.0
    found = by_products(q, k, v, 0.3)
    same(found, exact(q, k, v, 0.3), 5e-6)
    assert torch.allclose(found[0][:, :, misled], v.repeat_interleave(3, 1)[:, :, 7:8], atol=1e-6)
    for a, b in ((still, found), (calm, still)):
        assert all(torch.equal(x[:, :, quiet], y[:, :, quiet]) for x, y in zip(a, b))


@oneDNN
def test_a_row_of_nan_spoils_no_other(small):
    q, k, v = drawn(rows=43, keys=150)
    whole = by_products(q, k, v, 0.3)
    q[1, 2, 9] = math.nan
    out, lse = by_products(q, k, v, 0.3)
    assert out[1, 2, 9].isnan().all() and lse[1, 2, 9].isnan()
    out[1, 2, 9], lse[1, 2, 9] = whole[0][1, 2, 9], whole[1][1, 2, 9]
    assert torch.equal(out, whole[0]) and torch.equal(lse, whole[1])


@oneDNN
def test_a_row_depends_on_neither_its_neighbours_nor_its_place(small):
    q, k, v = drawn(rows=43, keys=150)
    other = drawn(rows=43, keys=150, seed=1)[0]
    place = torch.randperm(43, generator=torch.Generator().manual_seed(3))
    other[:, :, place[:29]] = q[:, :, :29]
    one, two = by_products(q, k, v, 0.3), by_products(other, k, v, 0.3)
    assert all(torch.equal(a[:, :, :29], b[:, :, place[:29]]) for a, b in zip(one, two))
    assert not torch.equal(one[0][:, :, 29:], two[0][:, :, place[29:]])


@oneDNN
def test_few_scores_and_masks_need_no_layout():
    def never():
        raise AssertionError

    q, k, v = drawn(rows=43, keys=150)
    wanted = exact(q, k, v, 0.3)
    same(kernels.attend(q, k, v, 0.3, laid=never), wanted)
    rough = kernels.attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.3, laid=never)
    assert (rough[0].double() - wanted[0]).abs().max() < 0.05 * wanted[0].abs().max()


@oneDNN
def test_a_path_lays_out_what_it_holds_once():
    path, draw = attention.PathBuffer(), torch.Generator().manual_seed(2)
    stretch = [torch.randn(1, 2, n, 24, generator=draw) for n in (90, 90, 30, 30)]
    q = torch.randn(1, 6, 43, 24, generator=draw)

    def read(stop):
        laid, (k, v) = path.laid(0, stop), path.read(0, stop)
        found = laid(q.reshape(1, 2, -1, 24), 0.3)
        same(found, exact(q.reshape(1, 2, -1, 24), k, v, 0.3), 5e-6)
        return laid

    path.write(0, 0, *stretch[:2])
    first = read(90)
    assert read(90) is first
    assert read(60) is not first  # a shorter prefix is another
    path.write(0, 60, *stretch[2:])
    read(90)  # of the same length, with other keys from 60 on
    path.write(0, 0, *stretch[2:])
    read(90)
    path.write(0, 90, *stretch[:2])
    read(180)


# --------------------------------------------------------------------------------------------------- a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype, near", [(torch.float32, 5e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_a_gpu_gives_the_softmax_too(dtype, near, cap):
    for rows, keys in ((7, 300), (130, 57), (64, 64)):
        q, k, v = (x.to(dtype).cuda() for x in drawn(rows=rows, keys=keys))
        tril = torch.ones(rows, rows, dtype=torch.bool, device="cuda").tril()[None, None]
        some = torch.rand(3, 1, rows, keys, device="cuda") < 0.4
        some[:, :, 2] = False
        for mask, given in (
            (None, {}),
            (some, {"mask": some, "sees": False}),
            *([(tril, {"causal": True})] if rows == keys else []),
        ):
            out, lse = kernels.attend(q, k, v, 0.3, cap=cap, **given)
            wanted = exact(q, k, v, 0.3, cap, mask)
            assert out.shape == wanted[0].shape and (out - wanted[0]).abs().max() < near * wanted[0].abs().max()
            seen = wanted[1] > -math.inf
            assert torch.equal(lse > -math.inf, seen) and (lse - wanted[1])[seen].abs().max() < 2e-5
