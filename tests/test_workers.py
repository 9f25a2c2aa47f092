"""Passes side by side: the same answers as one after the other, in the order in which they depend on one another, and none left behind."""

import threading
import time

import numpy as np
import pytest
import torch

from icrl_lab.engine import Engine, attention, packs, products, workers
from icrl_lab.engine.tree import build, chain, symbols
from icrl_lab.models import fastest
from icrl_lab.values import Capture, Cut, Patch, Rendered
from tests.conftest import tiny_llm
from tests.test_engine import prompts, reference, short_of_memory

NEAR = 2e-5
EVERYTHING = dict(rows=(-1, 7), hidden=(3, -1), outputs=(7, 40), norms=True)


@pytest.fixture
def beside(monkeypatch):
    """Engines of this model with passes side by side, of two tokens or more; or `alone`."""
    monkeypatch.setattr(packs, "LEAST", 2)

    def make(llm, threads=3, **more):
        monkeypatch.setattr(llm, "threads", threads)
        return Engine(llm, **more)

    return make


def counted(engine):
    """The tokens of each pass, and the most that ran at the same time."""
    real, sizes, now, most = engine._forward, [], set(), [0]

    def forward(job, prefix, pack, *more, **named):
        sizes.append(sum(map(len, pack)))
        now.add(id(pack))
        most[0] = max(most[0], len(now))
        time.sleep(0.01)
        try:
            return real(job, prefix, pack, *more, **named)
        finally:
            now.discard(id(pack))

    engine._forward = forward
    return sizes, most


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("pack,branch", [(16, 8), (64, 4), (512, 0), (40, 12)])
def test_passes_side_by_side_are_the_plain_forward(tiny, beside, pack, branch, threads):
    many = prompts(tiny, seed=1)
    engine = beside(tiny, threads, pack=pack, branch=branch)
    sizes, most = counted(engine)
    got = engine.run(many)
    assert np.abs(got.logprobs - reference(tiny, many)).max() < NEAR
    assert got.computed == build([symbols(p) for p in many]).size == sum(sizes)
    assert 1 < most[0] <= threads
    other = prompts(tiny, seed=7)  # another path, with the first one's passes out of the way
    for some in (other, many, [*many, *other]):
        assert np.abs(engine.run(some).logprobs - reference(tiny, some)).max() < NEAR


def test_what_is_captured_edited_and_generated_is_what_one_pass_after_the_other_gives(tiny, beside):
    many = prompts(tiny, seed=3)
    row = np.random.default_rng(0).standard_normal((1, tiny.width)).astype(np.float32)
    edited = [
        p.edited(e) for p in many for e in (Cut((20,), (5, 17)), Cut((18,), (5,), onwards=True), Patch(1, (7,), row))
    ]
    one, three = beside(tiny, 1, branch=8, pack=64), beside(tiny, 3, branch=8, pack=64)
    for some in (many, [*many, *edited]):
        a, b = (engine.run(some, capture=Capture(**EVERYTHING)) for engine in (one, three))
        assert a.computed == b.computed and np.abs(a.logprobs - b.logprobs).max() < NEAR
        for x, y in zip(a.traces, b.traces):
            for what in ("attention", "norms", "hidden", "outputs"):
                assert np.abs(getattr(x, what) - getattr(y, what)).max() < 1e-4, what
    for temperature in (0.0, 0.9):
        texts = [engine.generate(many, 6, temperature, seed=4) for engine in (one, three)]
        assert texts[0] == texts[1] and len(set(map(tuple, texts[0]))) > 2


def test_queries_are_isolated_bitwise_whoever_runs_beside_them(tiny, beside):
    many = prompts(tiny, seed=5, tails=(6,) * 9, deep=False)
    vectors = many[4].vectors.copy()
    vectors[-1] += 1
    other = [*many[:4], Rendered(many[4].ids, vectors), *many[5:]]
    engines = [beside(tiny, 3, branch=8) for _ in range(4)]
    a, *again = (e.run(x).logprobs for e, x in zip(engines, (many, many, many, other)))
    assert (a == again[0]).all() and (a == again[1]).all()
    same = np.arange(9) != 4
    assert (a[same] == again[2][same]).all() and np.abs(a[4] - again[2][4]).max() > 1e-3


def test_a_chunk_follows_the_chunk_before_it_from_block_to_block(llama, beside, monkeypatch):
    """The first is slow, and nobody reads what it has not written; the second does not wait for the end of the first."""
    seen, lock = [], threading.Lock()
    real = attention.PathBuffer.write

    def write(self, layer, start, key, value):
        if start == 0:
            time.sleep(0.3)  # longer than the second takes in a block, on a busy machine, too
        real(self, layer, start, key, value)
        with lock:
            seen.append((layer, start))

    monkeypatch.setattr(attention.PathBuffer, "write", write)
    many = prompts(llama, seed=2, prefix=60, deep=False)
    assert np.abs(beside(llama, 2, branch=16).run(many).logprobs - reference(llama, many)).max() < NEAR
    of = {place: i for i, place in enumerate(seen)}
    starts = sorted({start for _, start in seen})
    assert len(starts) == 2
    for layer in range(llama.blocks):
        assert of[layer, starts[0]] < of[layer, starts[1]]
        if layer + 1 < llama.blocks:
            assert of[layer, starts[1]] < of[layer + 1, starts[0]]


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_pass_that_fails_ends_the_others_and_says_why(llama, beside, which):
    many, engine = prompts(llama, seed=6), beside(llama, 2, branch=8, pack=20)
    real, calls, lock = engine._forward, [], threading.Lock()
    total = len(counted_passes(llama, beside, many))

    def fails(*given, **named):
        with lock:
            calls.append(given)
            number = len(calls) - 1
        if number == which % total:
            raise RuntimeError("shape mismatch")
        real(*given, **named)

    engine._forward = fails
    before = (torch.get_num_threads(), llama.model.config._attn_implementation)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        engine.run(many)
    assert (torch.get_num_threads(), llama.model.config._attn_implementation) == before
    engine._forward = real
    assert np.abs(engine.run(many).logprobs - reference(llama, many)).max() < NEAR


def counted_passes(llm, beside, many):
    engine = beside(llm, 2, branch=8, pack=20)
    sizes, _ = counted(engine)
    engine.run(many)
    return sizes


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), short_of_memory()])
@pytest.mark.parametrize("what", ["run", "generate"])
def test_where_memory_is_short_for_two_passes_one_runs_after_the_other(tiny, beside, error, what):
    many = prompts(tiny, seed=8, tails=(5,) * 12, deep=False)

    def asked(engine):
        return engine.run(many).logprobs if what == "run" else np.array(engine.generate(many, 4))

    whole, engine = asked(beside(tiny, 1, branch=8)), beside(tiny, 2, branch=8)
    real, now, most, lock = engine._logits, [0], [0], threading.Lock()

    def short(*given, **named):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        try:
            if now[0] > 1:
                raise error
            return real(*given, **named)
        finally:
            with lock:
                now[0] -= 1

    engine._logits = short
    assert np.abs(asked(engine) - whole).max() < NEAR
    assert most[0] == 2 and engine.workers is None and engine.pack == packs.PACK["cpu"]


def test_an_interrupt_ends_what_runs_before_it_is_passed_on(llama, beside, monkeypatch):
    many, engine = prompts(llama, seed=9), beside(llama, 2, branch=8, pack=20)
    real, going, ended = engine._forward, threading.Event(), []

    def slow(job, prefix, pack, turn=None, **named):
        going.set()
        try:
            real(job, prefix, pack, turn, **named)
        except workers.GivenUp:
            ended.append(prefix)
            raise

    def enter(self, block):
        time.sleep(0.05)
        entered(self, block)

    def interrupted(*given, **named):
        going.wait()
        raise KeyboardInterrupt

    entered = workers.Turn.enter
    monkeypatch.setattr(workers.Turn, "enter", enter)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "wait", lambda f, **named: interrupted() if named else waited(f))
        engine._forward = slow
        with pytest.raises(KeyboardInterrupt):
            engine.run(many)
    assert ended  # in the midst of a pass
    engine._forward = real
    monkeypatch.setattr(workers.Turn, "enter", entered)
    assert np.abs(engine.run(many).logprobs - reference(llama, many)).max() < NEAR


waited = workers.wait


def test_threads_are_shared_and_nobody_else_loses_his(llama, beside):
    before, seen, lock = torch.get_num_threads(), [], threading.Lock()
    engine = beside(llama, 4, branch=8)
    real = engine._forward

    def forward(*given, **named):
        with lock:
            seen.append((threading.current_thread().name, torch.get_num_threads()))
        real(*given, **named)

    engine._forward = forward
    engine.run(prompts(llama, prefix=18, tails=(8, 7), deep=False))  # a stretch in four passes, two branches
    assert {count for _, count in seen[-2:]} == {2} and not {name for name, _ in seen} & {"MainThread"}
    assert torch.get_num_threads() == before
    new = []
    thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert new == [before]


@pytest.mark.parametrize(
    "lengths,trees", [([12] * 64, []), ([3, 5, 8, 30, 2, 2, 7], []), ([4] * 9, [(9, 5), (7, 6)]), ([288] * 17, [])]
)
@pytest.mark.parametrize("threads", [2, 5])
def test_passes_are_even_and_hold_each_branch_once(llama, beside, lengths, trees, threads):
    engine = beside(llama, threads)
    branches = [chain(i, 40, 40 + n) for i, n in enumerate(lengths)]
    for i, (left, right) in enumerate(trees):
        branch = chain(100 + i, 40, 40 + left + right)
        branch.parent[left] = 0
        branches.append(branch)
    total, longest = sum(map(len, branches)), max(map(len, branches))
    at_a_time, most = packs.shares(total, engine.pack, engine.threads)
    found = packs.even(branches, most)
    assert at_a_time == threads and at_a_time * most <= engine.pack + at_a_time
    assert sorted(id(b) for p in found for b in p) == sorted(map(id, branches))
    assert all(len({b.is_chain for b in p}) == 1 and sum(map(len, p)) <= most + longest for p in found)
    rounds = -(-total // engine.pack)
    assert len({b.is_chain for b in branches}) > 1 or len(found) <= threads * rounds
    assert packs.shares(3, engine.pack, threads) == (1, engine.pack)  # too few for two


def test_what_one_waits_for_has_begun_also_when_models_share_the_threads(beside):
    """Each has stretches of several chunks, and there are fewer threads than passes that wait."""
    models = [tiny_llm(family) for family in ("llama", "qwen3", "gemma2")]
    many = [prompts(llm, seed=i, prefix=60) for i, llm in enumerate(models)]
    expected, found = [reference(*pair) for pair in zip(models, many)], [None] * 3
    engines = [beside(llm, 2, branch=8, pack=20) for llm in models]
    for engine in engines:
        counted(engine)
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, engines[i].run(many[i]).logprobs)) for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for got, want in zip(found, expected):
        assert np.abs(got - want).max() < NEAR


def test_a_turn_waits_for_what_is_written_and_no_longer():
    first = workers.Turn(None)
    second = workers.Turn(first)
    first.enter(0)
    first.leave(0)
    second.enter(0)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (second.enter(1), done.set()))
    thread.start()
    assert not done.wait(0.1)
    first.leave(1)
    assert done.wait(10)
    first.end()
    second.enter(1)  # what stands, stands
    with pytest.raises(workers.GivenUp):
        second.enter(2)
    second.end()
    with pytest.raises(workers.GivenUp):
        second.enter(0)
    thread.join()


def test_more_is_asked_at_a_time_where_passes_run_side_by_side(llama, beside):
    """Three trees that are asked together are two for one thread and one for the other; twelve are six each."""
    one, two = beside(llama, 1), beside(llama, 2)
    assert one.room == one.pack and two.room >= 4 * two.pack
    two.workers = None  # memory was short
    assert two.room == two.pack


def test_ways_of_products_and_attention_are_compared_on_one_thread(llama, monkeypatch):
    seen = []

    def seconds(calls):
        seen.append((tuple(calls), torch.get_num_threads()))
        return dict.fromkeys(calls, 1.0)

    monkeypatch.setattr(fastest, "_seconds", seconds)
    real = products.possible
    monkeypatch.setattr(products, "possible", lambda dtype: real(dtype) if dtype == torch.float32 else ("torch",))
    before = torch.get_num_threads()
    fastest.measure(llama.model, 3)
    compared = [threads for ways, threads in seen if len(ways) > 1]
    assert len(compared) >= 2 and set(compared) == {1} and torch.get_num_threads() == before
    together = [threads for ways, threads in seen if ways in {("torch",), ("oneDNN",)}]
    assert together == [3, 3]  # on all threads, and only there: one way is not compared
