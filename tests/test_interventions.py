"""Interventions do what they say, to what they were given and to nothing else; a placebo does as much."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_lab.errors import DataError
from icrl_lab.probes import interventions as edit
from icrl_lab.probes.scene import scene
from icrl_lab.values import SLOT, Capture, Cut, Patch, Rendered, Span
from tests.toy import toy_study

FAMILY = pytest.mark.parametrize("name,tokenizer", [("llama", "digits"), ("gemma3", "unigram")])


def prompt(items: int = 5, width: int = 2, d: int = 7, seed: int = 0) -> Rendered:
    """Items of `width` slots each, with a few tokens between."""
    ids, spans = [3], [Span("template", 0, 1)]
    for i in range(items):
        spans.append(Span("slot", len(ids), len(ids) + width, i, f"s{i}", f"item{i}"))
        ids += [SLOT] * width
        spans.append(Span("label", len(ids), len(ids) + 2, i))
        ids += [5 + i, 6]
    vectors = np.random.default_rng(seed).standard_normal((items * width, d))
    return Rendered(np.array(ids), vectors, tuple(spans))


def slots(p: Rendered) -> list[int]:
    return np.flatnonzero(p.ids == SLOT).tolist()


def norms(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x.astype(np.float64), axis=-1)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(10)), st.integers(1, 5))
def test_a_swap_is_an_involution_and_moves_what_it_names(order, n):
    p = prompt()
    places = slots(p)
    a, b = [places[i] for i in order[:n]], [places[i] for i in order[n : 2 * n]]
    once = edit.swap(p, a, b)
    assert np.array_equal(edit.vectors_at(once, a), edit.vectors_at(p, b))
    assert np.array_equal(edit.vectors_at(once, b), edit.vectors_at(p, a))
    rest = [s for s in places if s not in (*a, *b)]
    assert not rest or np.array_equal(edit.vectors_at(once, rest), edit.vectors_at(p, rest))
    assert np.array_equal(edit.swap(once, a, b).vectors, p.vectors)
    assert np.array_equal(edit.swap(p, b, a).vectors, once.vectors)


def test_mean_zero_noise_and_other_do_what_they_say_and_only_there():
    p, source = prompt(), prompt(seed=1)
    at = slots(p)[2:5]
    rest = [s for s in slots(p) if s not in at]
    means = [p.vectors[0::2].mean(0), p.vectors[1::2].mean(0)]  # of an item's first vectors, and of its second
    changed = {
        "mean": (edit.mean(p, at), np.stack([means[0], means[1], means[0]])),
        "zero": (edit.zero(p, at), np.zeros((3, 7))),
        "other": (edit.other(p, at, source), source.vectors[2:5]),
    }
    for name, (got, wanted) in changed.items():
        assert np.allclose(edit.vectors_at(got, at), wanted, atol=1e-6), name
        assert np.array_equal(edit.vectors_at(got, rest), edit.vectors_at(p, rest)), name
        assert np.array_equal(got.ids, p.ids) and got.spans == p.spans, name
    noisy = edit.noise(p, at, 3)
    assert np.allclose(norms(edit.vectors_at(noisy, at)), norms(edit.vectors_at(p, at)), rtol=1e-6)
    assert np.abs(edit.vectors_at(noisy, at) - edit.vectors_at(p, at)).min(0).max() > 0.1
    assert np.array_equal(edit.vectors_at(noisy, rest), edit.vectors_at(p, rest))
    assert np.array_equal(noisy.vectors, edit.noise(p, at, 3).vectors)
    assert not np.array_equal(noisy.vectors, edit.noise(p, at, 4).vectors)


@pytest.mark.parametrize("d", [7, 300])
def test_a_placebo_goes_as_far_and_nowhere(d):
    p = prompt(d=d)
    places = slots(p)
    edited = edit.swap(edit.zero(p, places[:1]), places[3:5], places[6:8])
    way = edited.vectors.astype(np.float64) - p.vectors
    cosines = []
    for seed in range(200):
        away = edit.placebo(p, edited, seed).vectors.astype(np.float64) - p.vectors
        assert np.allclose(norms(away), norms(way), rtol=1e-5, atol=0)
        moved = norms(way) > 0
        assert moved.sum() == 5 and not away[~moved].any()
        cosines.append((away * way).sum(1)[moved] / norms(way)[moved] ** 2)
    assert abs(np.mean(cosines)) < 4 / np.sqrt(d * len(cosines) * 5)
    assert np.std(cosines) == pytest.approx(d**-0.5, rel=0.2)  # uniform on the sphere


def test_a_nudge_goes_as_far_and_nowhere():
    p, far = prompt(), np.array([0.5, 2.0, 0.0])
    draws = [edit.nudge(p, 2, (1, 4, 8), far, 30, seed).edits[0] for seed in range(150)]
    assert all(d.add and d.layer == 2 and d.positions == (1, 4, 8) for d in draws)
    values = np.stack([d.values for d in draws])
    assert np.allclose(norms(values), far, rtol=1e-5)
    assert np.abs(values.mean(0)).max() < 5 * 2.0 / np.sqrt(30 * 150)
    assert not np.array_equal(draws[0].values, edit.nudge(p, 1, (1, 4, 8), far, 30).edits[0].values)
    assert edit.nudge(p, 1, (1, 4, 8), far, 30, head=3).edits[0].head == 3


def test_prompts_that_begin_alike_get_the_same_draws_there():
    long, short = prompt(5), prompt(4)
    at = slots(short)
    assert np.array_equal(edit.noise(long, at).vectors[:8], edit.noise(short, at).vectors)
    other = Rendered(short.ids, short.vectors, tuple(s if s.item != "item2" else Span("slot", s.start, s.stop, 2, s.key, "x") for s in short.spans))  # fmt: skip
    same = (edit.noise(other, at).vectors == edit.noise(short, at).vectors).all(1)
    assert same.tolist() == [True] * 4 + [False] * 4  # another item: other draws from there on
    key = slots(short)[0]
    assert not np.array_equal(edit.directions(short, [key], 9, "a"), edit.directions(short, [key], 9, "b"))
    assert np.allclose(norms(edit.directions(short, at, 9, "a")), 1)


def test_what_cannot_be_changed_is_refused():
    p = prompt()
    with pytest.raises(DataError, match=r"position 3 holds no vector; the prompt's slots are at \[1, 2, 5"):
        edit.zero(p, [3])
    with pytest.raises(DataError, match="no position"):
        edit.zero(p, [])
    for a, b in (([1], [2, 5]), ([1], [1])):
        with pytest.raises(DataError, match="as many positions on either side"):
            edit.swap(p, a, b)
    with pytest.raises(DataError, match="no placebo"):
        edit.placebo(p, p)
    with pytest.raises(DataError, match="changes no state"):
        edit.moved(p, 1, p, p)


def test_cuts_of_what_nothing_sees_are_refused():
    p = prompt()
    made = edit.cut(p, [8, 6], [2, 1], (0,)).edits[0]
    assert isinstance(made, Cut) and (made.rows, made.columns, made.layers) == ((6, 8), (1, 2), (0,))
    for at, columns in (([5], [5]), ([5], [6, 7]), ([], [1]), ([3], [])):
        with pytest.raises(DataError, match="takes nothing away"):
            edit.cut(p, at, columns)
    with pytest.raises(DataError, match="takes nothing away"):
        edit.cut(p, [2], [len(p) - 1], onwards=True)
    assert edit.cut(p, [2], [5], onwards=True).edits[0].onwards


@given(st.sets(st.integers(0, 30), min_size=2, max_size=12), st.integers(0, 5))
def test_decoys_are_as_many_others(columns, seed):
    got = edit.decoys(columns, range(40), seed)
    assert len(set(got)) == len(columns) and got == edit.decoys(columns, range(40), seed)
    assert not set(got) & (columns - {0})
    assert (0 in got) == (0 in columns)  # where attention goes that has nowhere to go: lost by both or neither
    assert set(edit.decoys(columns, [*columns, 35, 36], seed)) - {0} <= {35, 36}
    with pytest.raises(DataError, match="no other position"):
        edit.decoys(columns, columns, seed)


@FAMILY
def test_states_of_depth_zero_are_the_vectors_in_the_slots(name, tokenizer):
    one = scene(toy_study(name, tokenizer), "random-projection", queries=3)
    for p, parts in zip(one.prompts, one.parts):
        at = parts.at("slot")[:2].tolist()
        slotted = edit.noise(p, at, 1)
        both = [slotted, edit.moved(p, 0, p, slotted), edit.patch(p, 0, at, edit.vectors_at(slotted, at)), p]
        a, b, c, d = one.engine.next_token(both)
        assert np.abs(a - b).max() < 1e-5 and np.abs(a - c).max() < 1e-5 and np.abs(a - d).max() > 1e-2


@FAMILY
def test_a_state_put_where_it_stood_changes_nothing(name, tokenizer):
    one = scene(toy_study(name, tokenizer), "zero-pad", queries=3)
    blocks = one.study.llm.model.config.num_hidden_layers
    kept = one.engine.run(one.prompts, [0], Capture(hidden=(2, -2, -1), outputs=(1, -1))).traces
    same = []
    for p, trace in zip(one.prompts, kept):
        last = len(p) - 1
        same += [edit.patch(p, d, (2, last - 1, last), trace.hidden[d]) for d in range(blocks + 1)]
        same += [edit.patch(p, b, (1, last), trace.outputs[b, h], head=h) for b in range(blocks) for h in (0, 5)]
        same.append(p.edited(*(Patch(d, (last,), trace.hidden[d, 2:]) for d in range(blocks + 1))))
    of = np.repeat(np.arange(3), len(same) // 3)
    assert np.abs(one.read(same, of) - one.read()[of]).max() < 1e-5


@FAMILY
def test_who_sees_nothing_else_does_not_depend_on_it(name, tokenizer):
    study = toy_study(name, tokenizer)
    real, noise = (scene(study, "random-projection", c, queries=3) for c in ("real", "noise"))
    plain, cut_off = [], []
    for i, (p, parts) in enumerate(zip(real.prompts, real.parts)):
        shots = parts.of_shots("slot").tolist()
        wrong = edit.other(p, shots, noise.prompts[i])  # other shots, the same query
        begin = int(parts.query.min())
        plain += [p, wrong]
        cut_off += [edit.cut(q, [begin], range(begin), onwards=True) for q in (p, wrong)]
    of = np.repeat(np.arange(3), 2)
    assert np.abs(np.diff(real.read(plain, of).reshape(3, 2))).min() > 1e-3
    assert np.abs(np.diff(real.read(cut_off, of).reshape(3, 2))).max() < 1e-6
