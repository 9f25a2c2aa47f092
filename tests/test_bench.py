"""The benchmark measures what it says: a cost model that gives the published figures, rows that agree and that all pay for the prefix."""

import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from icrl_lab import bench
from icrl_lab.bench import attention, cases, geometry, limits, lookers, patching, peers, render, rows, ways
from icrl_lab.bench.costs import Costs
from icrl_lab.bench.measure import Meter, Sample, product_rate
from icrl_lab.bench.peer import TURN
from icrl_lab.engine import Engine
from icrl_lab.engine.tree import all_symbols, build, symbols
from icrl_lab.errors import ModelError, StudyError
from icrl_lab.values import SLOT, Rendered

torch.set_num_threads(1)


def costs(name):
    from transformers import LlamaConfig

    return Costs.of(LlamaConfig(**geometry.GEOMETRIES[name].sizes))


@pytest.fixture(scope="module")
def llm():
    made = geometry.make("tiny", "cpu", "float32")
    made.threads = 1
    return made


@pytest.fixture(scope="module")
def work(llm):
    return geometry.workload(llm, 300, 7, 9)  # long enough for a prefix of its own, no multiple of the tail


@pytest.fixture(scope="module")
def result():
    return bench.run("cpu", "tiny", quick=True, progress=False)


# ------------------------------------------------------------------------------------------- the cost model


@pytest.mark.parametrize(
    "prefix,queries,expected", [(512, 64, 24.8), (512, 500, 36.9), (2048, 64, 43.7), (2048, 500, 106.8)]
)
def test_ratios_of_the_small_geometry(prefix, queries, expected):
    assert costs("smollm2-135m").ratio(prefix, 12, queries) == pytest.approx(expected, abs=0.06)


def test_milliseconds_of_the_8b_geometry_on_a_gpu():
    big, rate = costs("llama-3.1-8b"), 788e12
    assert 1e3 * big.naive(2048, 32) / rate == pytest.approx(38.3, abs=0.05)
    assert 1e3 * big.shared(2048, 32) / rate == pytest.approx(0.61, abs=0.005)
    assert 500 * big.naive(2048, 32) / rate == pytest.approx(19.1, abs=0.06)
    assert big.once(2048, 32, 500) / rate == pytest.approx(0.34, abs=0.005)
    assert 788e12 / 4.3e12 == pytest.approx(183, abs=0.5)  # tokens a pack below which the weights' bandwidth binds


def test_parameters_are_those_that_every_token_meets(llm):
    inside = sum(p.numel() for p in llm.model.model.layers.parameters() if p.ndim == 2)
    assert Costs.of(llm.model.config).parameters == inside


def test_costs_add_up():
    c = costs("smollm2-135m")
    parts = c.prefill(500) + c.shared(500, 24)
    assert parts == pytest.approx(c.naive(500, 24), rel=1e-12)  # one query: nothing is saved, nothing is lost
    assert c.ratio(500, 24, 1) == pytest.approx(1, rel=1e-12)
    limit = c.naive(500, 24) / c.shared(500, 24)
    assert c.ratio(500, 24, 10**9) == pytest.approx(limit, rel=1e-3) and c.ratio(500, 24, 64) < limit
    assert c.generated(500, 5) == pytest.approx(c.naive(504, 0) + 4 * c.read, rel=1e-4)  # decoding saves no product


# ------------------------------------------------------------------------------------------- the workload


def test_prompts_share_the_prefix_and_nothing_else(llm, work):
    ids = np.stack([p.ids for p in work.prompts])
    assert (ids[:, : work.prefix] == ids[0, : work.prefix]).all()
    assert (ids[:, work.prefix] == SLOT).all() and (ids[0] == SLOT).sum() == len(work.columns) == 21
    assert (np.flatnonzero(ids[0] == SLOT) == work.columns).all()
    assert build([symbols(p) for p in work.prompts]).size == work.prefix + len(work.prompts) * work.suffix
    again = geometry.workload(llm, 300, 7, 9)
    assert (again.prompts[4].vectors == work.prompts[4].vectors).all() and again.labels == work.labels


def test_symbols_of_many_prompts_are_those_of_each():
    """Vectors are compared with those of the prompt before: one that differs in one bit must not pass for it."""
    base = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    other = base.copy()
    other[2, 5] = np.nextafter(other[2, 5], np.float32(9))
    other[3, 0] = -0.0
    ids = np.array([SLOT, 5, SLOT, SLOT, 7, SLOT])
    many = [Rendered(ids, v) for v in (base, other, base)]
    many += [Rendered(ids[:1], base[:1]), Rendered([5, 7], np.zeros((0, 6))), Rendered(ids, base)]
    together = all_symbols(many)
    for prompt, found in zip(many, together):
        assert (found == symbols(prompt)).all()
    assert (together[0] != together[1]).nonzero()[0].tolist() == [3, 5]
    assert ((together[0] < 0) == (ids == SLOT)).all()


def test_orders_and_left_out_shots_move_whole_shots(work):
    whole = work.prompts[0]
    for prompt in geometry.orders(work, 3, 2, seed=5):
        assert len(prompt) == len(whole)
        assert sorted(prompt.ids[: work.prefix]) == sorted(whole.ids[: work.prefix])
        assert {v.tobytes() for v in prompt.vectors[:20]} == {v.tobytes() for v in whole.vectors[:20]}
    left = geometry.leave_one_out(work, 2)
    assert len(left) == 40
    for number, prompt in enumerate(left):
        a, b = work.shots[number // 2]
        assert len(prompt) == len(whole) - (b - a)
        missing = {v.tobytes() for v in whole.vectors[:20]} - {v.tobytes() for v in prompt.vectors}
        assert missing == {whole.vectors[number // 2].tobytes()}


def test_trees_are_computed_at_their_optimum(llm, result):
    for tree in result["trees"]:
        assert tree["computed"] == tree["optimum"] < tree["asked"] and tree["pass"]
    few = geometry.workload(llm, 60, 6, 2)
    prompts = geometry.leave_one_out(few, 2)
    starts, stop = [a for a, _ in few.shots], few.prefix
    # without shot i the path runs as the whole up to its start; then everything that is left, and the tails
    alone = sum(stop - b + 2 * few.suffix for _, b in few.shots)
    assert build([symbols(p) for p in prompts]).size == starts[-1] + alone
    run = Engine(llm).run(prompts, few.labels)
    assert run.computed == starts[-1] + alone


# ------------------------------------------------------------------------------------------- the rows


def through(row, llm, work, which):
    """(tokens in the prefix part, in the queries' part, log-probabilities)."""
    with torch.inference_mode(), cases.counting(llm) as count:
        state = row.prefix(llm, work) if row.prefix else None
        before = count[0]
        values = row.queries(llm, work, state, which)
    return before, count[0] - before, values


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda r: r.name)
def test_rows_agree_and_pay_for_the_prefix(llm, work, row):
    which = list(range(len(work.prompts)))
    _, _, expected = through(rows.ROWS[0], llm, work, which)
    once, after, got = through(row, llm, work, which)
    t, s, n = work.prefix, work.suffix, len(which)
    paid = {
        rows.FULL: (0, n * (t + s)),
        "prefix repeated in a batch": (0, n * (t + s)),
        "the paper's way": (0, n // 3 * (t + 3 * s + rows.NEW - 1)),
        rows.OURS: (0, t + n * s),
        "ours, attention captured": (0, t + n * s),
        "ours, prefix ready": (t + s, n * s),
    }.get(row.name, (t, n * s))
    assert (once, after) == paid
    if got is not None:
        assert got.shape == (n, 10)
        assert np.abs(got - expected).max() < 2e-5
        assert np.abs(expected - expected[0]).max() > 0.1  # the queries differ, so a mix-up would show


def test_a_row_that_skips_the_prefix_would_be_seen(llm, work):
    def cheat(llm, work, state, which):
        out = llm.model(inputs_embeds=rows.embed(llm, work, 0)[None, work.prefix :], logits_to_keep=1)
        return rows.read(out.logits, work)

    honest, lying = (through(rows.Row("row", f), llm, work, [0]) for f in (rows.full, cheat))
    assert np.abs(honest[2] - lying[2]).max() > 0.01
    assert lying[1] == work.suffix < honest[1]


def test_the_prefix_is_inside_the_measured_time(llm, work):
    """A row's total holds its prefix once, and only the row that says so leaves it out."""
    clock = iter(range(1000))

    class Fake:
        def __call__(self, call):
            value = call()
            return cases.Sample(float(next(clock) % 2 * 2 + 7), 1.0, 0.0, value)  # 7 s, then 9 s, ...

    for name, expected in (("cached prefix, one query at a time", 7 + 9 * 9 / 4), ("ours, prefix ready", 9.0)):
        row = next(r for r in rows.ROWS if r.name == name)
        run = cases.Measured(row, llm, 9, 9 if row.whole else 4)
        with torch.inference_mode():
            run.round(0, work, Fake())
        assert run.total("seconds") == pytest.approx(expected)


def test_an_expanded_batch_that_is_not_full(llm, work, monkeypatch):
    monkeypatch.setattr(rows, "BATCH", 4)
    row = next(r for r in rows.ROWS if r.name == "expanded cache")
    _, _, expected = through(rows.ROWS[0], llm, work, range(9))
    assert np.abs(through(row, llm, work, range(9))[2] - expected).max() < 2e-5


def test_peak_memory_is_seen():
    meter = Meter("cpu")
    if math.isnan(meter.base):
        pytest.skip("no /proc here")
    assert meter(lambda: np.ones(40_000_000).sum()).peak > 300e6 > meter(lambda: 1).peak


# ------------------------------------------------------------------------------------------- the result


def test_the_result_goes_through_json_and_prints_the_same(result):
    back = json.loads(json.dumps(result))
    assert render.table(back) == render.table(result)
    assert {"date", "cpu", "torch", "transformers", "device"} <= set(back["machine"])


@pytest.mark.parametrize("markdown", [False, True])
def test_every_column_row_and_limit_is_printed(result, markdown):
    text = bench.table(result, markdown=markdown)
    for column in [*render.COLUMNS, *render.INSIDE]:
        assert column in text
    scoring, looking = text.split("Looking inside")
    tables = [(case, scoring, render.COLUMNS) for case in result["cases"]]
    tables += [(look, looking, render.INSIDE) for look in result["inside"]]
    for table, part, columns in tables:
        grid = [
            line
            for line in part.splitlines()
            if any(r["method"] in line and r["measured on"] in line for r in table["rows"])
        ]
        assert len(grid) == len(table["rows"])
        assert all(item["limit"] in part for item in table["limits"])
        if markdown:
            lines = [line for line in part.splitlines() if line.startswith("|")]
            assert {line.count("|") for line in lines} == {len(columns) + 1}


def test_a_missed_limit_says_so(result):
    item = limits.limit("queries a second", 3.0, 700)
    assert not item["pass"] and limits.limit("MB", 3.0, 700, at_least=False)["pass"]
    assert not limits.limit("nothing measured", float("nan"), 0.0)["pass"]
    case = {**result["cases"][0], "limits": [item]}
    assert "[SHORT] queries a second 3 (>= 700)" in bench.table({**result, "cases": [case]})


def test_rows_of_the_result(result):
    rows_ = result["cases"][0]["rows"]
    mine = next(r for r in rows_ if r["method"] == rows.OURS)
    assert mine["slower"] == mine["slower CPU"] == 1 and mine["flips"] == 0
    assert next(r for r in rows_ if r["method"] == rows.FULL)["difference"] == 0
    assert any(r["dtype"] == "bfloat16" for r in rows_)
    assert all(r["ms"] * r["queries/s"] == pytest.approx(1000) for r in rows_)


def test_a_share_is_of_the_rate_of_products_measured_in_turn_with_the_rows(llm, result, monkeypatch):
    """The machine's rate changes from round to round: the median counts, and it is taken once a round."""
    rates = iter([(1e9, 5e8), (7e9, 3e9), (3e9, 2e9)])
    monkeypatch.setattr(cases, "product_rate", lambda model, meter: next(rates))
    plan = cases.Plan.of(geometry.GEOMETRIES["tiny"], "cpu", True, 0)
    assert plan.rounds == 3
    found = cases.case([llm], plan, *plan.cases[0], cases.Bar(False))
    assert found["product rate"] == {"float32": {"wall GFLOP/s": 3.0, "CPU GFLOP/s": 2.0}} and not list(rates)
    c = Costs.of(llm.model.config)
    for row in found["rows"]:
        work = cases.operations(row["method"], c, *plan.cases[0], row["queries"])
        assert row["share"] == pytest.approx(work / (row["CPU s"] * row["queries"]) / 2e9)
    text = bench.table({**result, "cases": [found]})
    assert "matrix products: float32 3 GFLOP/s, 2 a CPU second" in text


def test_the_rate_of_products_is_what_was_multiplied_over_what_it_took(llm):
    """Twenty products of 512 tokens with one projection up, by a meter that says how long they took."""

    class Clock(Meter):
        def __call__(self, call):
            return Sample(2.0, 4.0, math.nan, call())

    config = llm.model.config
    wall, cpu = product_rate(llm, Clock("cpu"))
    assert wall == 2 * cpu == 20 * 512 * config.hidden_size * config.intermediate_size


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(StudyError, match=r"smollm2-135m"):
        bench.run("cpu", "smolm2-135m")
    with pytest.raises(StudyError, match="device"):
        bench.run("tpu", "tiny")
    with pytest.raises(StudyError, match="dtype"):
        bench.run("cpu", "tiny", dtype="int8")
    with pytest.raises(StudyError, match="llama-cpp"):
        bench.run("cpu", "tiny", peers={"llamacpp": "/bin/sh"})
    with pytest.raises(StudyError, match="interpreter"):
        bench.run("cpu", "tiny", peers={"vllm": "/nowhere/python"})
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="CUDA"):
            bench.run("cuda", "tiny")


# ------------------------------------------------------------------------------------------- looking inside


def test_captured_rows_are_those_of_eager_attention(llm, work):
    before = llm.model.config._attn_implementation
    with torch.inference_mode():
        got = attention.capture(llm, work, range(9))
        for query in (0, 5):
            expected = attention.eager(llm, work, query)
            assert got.shape == (9, *expected.shape) and expected.shape == (3, 6, 2, 21)
            assert np.abs(got[query] - expected).max() < 1e-6
            # another query, or the two rows in the other order, would be seen; the query slot does not see what is behind it
            assert (
                np.abs(got[query - 1] - expected).max() > 1e-3
                and np.abs(got[query][:, :, ::-1] - expected).max() > 1e-3
            )
    assert llm.model.config._attn_implementation == before


def test_a_table_of_patches_agrees_with_forward_passes(llm, work):
    with torch.inference_mode():
        plain = Engine(llm).next_token(work.prompts[:3], work.labels)
        for table in patching.tables(llm, work, ((2, 3), (3, 4)), seed=1):
            got = patching.ours(llm, work, table, 3)
            expected = [[patching.hooked(llm, work, table, c, q) for q in range(3)] for c in range(len(table.cells))]
            assert np.abs(got - expected).max() < 2e-5
            assert np.abs(got - plain).max(2).min() > 1e-3  # every cell moves every query
            assert all((position < work.prefix) == (table.where == "prefix") for _, position in table.cells)
            assert {p for _, p in table.cells} <= set(work.columns[:-1]) or table.where == "suffix"
            norms = np.linalg.norm(table.values, axis=1)
            assert norms == pytest.approx(np.linalg.norm(work.prompts[0].vectors, axis=1).mean(), rel=1e-5)
    assert not llm.model.model.layers[0]._forward_pre_hooks


def test_a_sample_of_cells_stands_for_its_table():
    assert patching.middles(30, 2) == [7, 22] and patching.middles(20, 4) == [2, 7, 12, 17]
    for count, parts in ((30, 2), (30, 10), (20, 4), (12, 4)):
        assert np.mean(patching.middles(count, parts)) == np.mean(range(count))
    assert patching.middles(3, 5) == [0, 1, 2]
    layers, places = patching.middles(30, 2), patching.middles(20, 4)
    cost = lambda layer, place: (30 - layer) * (500 - 25 * place) + 7 * place  # noqa: E731
    whole = np.mean([cost(i, j) for i in range(30) for j in range(20)])
    assert np.mean([cost(i, j) for i in layers for j in places]) == pytest.approx(whole)


def test_trees_are_packed_apart_from_chains(llm, work, monkeypatch):
    """One tree in a pack of short chains would pad all of them to its length, under its mask."""
    packs = []
    run = Engine._forward
    monkeypatch.setattr(Engine, "_forward", lambda self, job, prefix, pack, *more, **options: packs.append(pack) or run(self, job, prefix, pack, *more, **options))  # fmt: skip
    engine = Engine(llm, branch=40)
    table = patching.tables(llm, work, ((3, 1), (3, 7)), 0)[1]
    engine.next_token(table.prompts(work, 2), work.labels)
    kinds = [{branch.is_chain for branch in pack} for pack in packs]
    assert {True} in kinds and {False} in kinds and {True, False} not in kinds


def way(name, seconds, answers=1, against="", cpu=None):
    made = ways.Way(name, "float32", "", answers, lambda: name, against)
    made.samples = [Sample(s, c, 5e6, None) for s, c in zip(seconds, cpu or seconds)]
    return made


def test_a_ratio_is_the_median_over_rounds_of_an_answer_over_another():
    slow, quick = way("slow", [6.0, 90.0, 8.0], 2, "quick"), way("quick", [2.0, 10.0, 1.0], 4)
    assert ways.times(slow, quick, "seconds") == 16.0  # of 3 / .5, 45 / 2.5 and 4 / .25; that of the medians is 8
    assert ways.times(slow, way("once", [2.0], 4), "seconds") == 4.0 / 0.5  # not called in turn: median over median
    row = ways.record(slow, [slow, quick], "cpu")
    assert (row["ms"], row["CPU s"], row["times"], row["times CPU"], row["peak MB"]) == (4000, 4.0, 16.0, 16.0, 5.0)
    assert row["measured on"] == "2 x 3" and row["against"] == "quick"
    assert ways.record(slow, [slow, quick], "cuda")["times CPU"] is None
    other = ways.Way("quick", "bfloat16", "", 1, lambda: None)
    assert ways.record(slow, [slow, other], "cpu")["times"] is None  # a way of another dtype is no reference


def test_a_limit_on_a_ratio_is_held_by_each_clock():
    a, b = way("a", [3.0], cpu=[1.0]), way("b", [1.0], cpu=[1.0])
    wall, cpu = ways.held("x, {clock}", a, b, "cpu", 2.0)
    assert (wall["limit"], wall["measured"], wall["pass"]) == ("x, wall", 3.0, True)
    assert (cpu["limit"], cpu["measured"], cpu["pass"]) == ("x, CPU time", 1.0, False)
    assert [i["pass"] for i in ways.held("x, {clock}", a, b, "cpu", 2.0, at_least=False)] == [False, True]
    assert len(ways.held("x, {clock}", a, b, "cuda", 2.0)) == 1


def test_ways_are_called_in_turn_forwards_and_backwards():
    order = []
    made = [ways.Way(name, "float32", "", 1, lambda name=name: order.append(name)) for name in "ab"]
    ways.in_turn(made, 3, lambda call: Sample(1.0, 1.0, 0.0, call()))
    assert "".join(order) == "abbaab" and all(len(w.samples) == 3 for w in made)


def test_the_result_looks_inside(result):
    (look,) = result["inside"]
    found = {(r["method"], r["dtype"]): r for r in look["rows"]}
    ready = attention.CAPTURED + attention.READY
    for name in (attention.SCORED, attention.CAPTURED, attention.SCORED + attention.READY, ready, attention.EAGERLY):
        assert (name, "float32") in found
    for where in ("prefix", "suffix"):
        assert {f"ours, patches in the {where}", f"a forward pass a cell, {where}"} <= {m for m, _ in found}
    assert found[attention.EAGERLY, "float32"]["difference"] < limits.WEIGHTS
    assert found["a forward pass a cell, prefix", "float32"]["difference"] < 2e-5
    held = {item["limit"]: item for item in look["limits"]}
    item = held[f"{ready}, float32, 8 queries, CPU time: times scoring alone"]
    assert item["measured"] == found[ready, "float32"]["times CPU"] and item["bound"] == 1.15 and not item["at least"]
    assert held["float32 attention captured, to eager attention's"]["pass"]
    cells = [i for what, i in held.items() if what.startswith("patches in the") and "wall" in what]
    assert [(i["bound"], i["at least"]) for i in cells] == [(5.0, True), (20.0, True)]
    assert cells[1]["measured"] == found["a forward pass a cell, suffix", "float32"]["times"]
    text = bench.table(result)
    assert all(column in text for column in render.INSIDE) and all(what in text for what in held)
    assert any("bfloat16" in note for note in look["notes"]) != ((ready, "bfloat16") in found)


def test_eager_attention_is_held_against_ours_from_a_long_prefix_on(llm, monkeypatch):
    plan = cases.Plan.of(geometry.GEOMETRIES["tiny"], "cpu", True, 0)
    monkeypatch.setattr(attention, "EAGER_PREFIX", 60)
    with torch.inference_mode():
        long = attention.attention([llm], plan, 60, 6, cases.Bar(False))
    (wall, _) = [item for item in long["limits"] if "cheaper than eager" in item["limit"]]
    assert wall["measured"] == long["rows"][-1]["times"] and wall["bound"] == 100 and wall["at least"]
    monkeypatch.setattr(attention, "free", lambda device: 1000.0)
    with torch.inference_mode():
        short = attention.attention([llm], plan, 60, 6, cases.Bar(False))
    assert len(short["rows"]) == 4 and len(short["notes"]) == 1 and "0.0 are free" in short["notes"][0]


# ------------------------------------------------------------------------------------------- peers


def test_measuring_how_exact_float32_is_leaves_the_weights_where_they_lie(llm):
    from icrl_lab.bench import exact

    before = [(p.data_ptr(), p.dtype, p._version) for p in llm.model.parameters()]
    found = exact.exactness(llm, cases.Plan.of(geometry.GEOMETRIES["tiny"], "cpu", True, 0), cases.Bar(False))
    assert found and all(0 < r["ours to float64"] < 1e-4 and 0 < r["full forward to float64"] < 1e-4 for r in found)
    assert [(p.data_ptr(), p.dtype, p._version) for p in llm.model.parameters()] == before


def test_a_second_copy_of_the_weights_counts_as_memory(llm):
    import copy

    from icrl_lab.engine import products

    model = copy.deepcopy(llm.model)
    assert products.copied(model) == 0
    if "oneDNN" not in products.possible(torch.float32):
        pytest.skip("this CPU has one way of products")
    assert products.lay_out(model)
    linear = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert products.copied(model) == sum(w.numel() * 4 for w in linear)


def test_a_peer_is_rows_beside_ours_or_a_note(llm, tmp_path, monkeypatch):
    plan = cases.Plan.of(geometry.GEOMETRIES["tiny"], "cpu", True, 0)
    stand_in = tmp_path / "python"  # an interpreter that checks its input and answers at once
    answer = {
        "name": "stand-in", "dtype": "Q4_0", "rounds": {"prefix": [[4.5, 4.0]] * 3, "queries": [[4.5, 4.0], [9.0, 9.0], [1.5, 1.0]]},
        "whole": {"seconds": 9.0, "cpu": 8.0}, "ready": {"seconds": 4.5, "cpu": 4.0},
    }  # fmt: skip
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    stand_in.write_text(
        f"#!/bin/sh\n[ $(wc -c < prefix.f32) = {60 * 48 * 4} ] && [ $(wc -c < suffixes.f32) = {9 * 6 * 48 * 4} ] && "
        f"[ -f model/model.safetensors ] && for i in 1 2 3; do echo chatter; echo '{TURN}'; read line; done && "
        f"cp {tmp_path}/answer.json answer.json\n"
    )
    stand_in.chmod(0o755)
    taken, ours_ready = [], peers.ours_ready
    monkeypatch.setattr(peers, "ours_ready", lambda *given: taken.append(time.monotonic()) or ours_ready(*given))
    monkeypatch.setattr(peers, "PAUSE", 0.0)
    case = {"prefix": 60, "suffix": 6, "rows": [], "limits": []}
    peers.add(case, llm, plan, {"vllm": str(stand_in)}, cases.Bar(False))
    beside = "ours beside stand-in"
    titles = ["stand-in", beside, "stand-in, prefix ready", f"{beside}, prefix ready"]
    assert [(r["method"], r["dtype"]) for r in case["rows"]] == list(zip(titles, ["Q4_0", "float32"] * 2))
    assert [r["ms"] for r in case["rows"][::2]] == [1000, 500] and "notes" not in case
    assert len(taken) == 3  # a round of ours whenever it waited
    for (theirs, mine), which, once in ((case["rows"][:2], "whole", 1), (case["rows"][2:], "ready", 0)):
        rounds, own = (
            theirs["rounds"],
            np.array(mine["rounds"][which]),
        )  # a ratio is the median over what was measured in turn
        pairs = (np.array(rounds["queries"]) + once * np.array(rounds["prefix"])) / own
        assert [theirs["slower"], theirs["slower CPU"]] == pytest.approx(np.median(pairs, 0).tolist())
        assert mine["slower"] == mine["slower CPU"] == 1 and own.shape == (3, 2)
    assert case["limits"] == []
    stand_in.write_text("#!/bin/sh\necho it broke >&2; exit 3\n")
    peers.add(case, llm, plan, {"vllm": str(stand_in)}, cases.Bar(False))
    assert len(case["rows"]) == 4 and case["notes"] == ["vllm: no row, it ended with status 3: it broke"]
    stand_in.write_text(f"#!/bin/sh\necho '{TURN}'; sleep 60\n")
    monkeypatch.setattr(peers, "SECONDS", 1.0)
    peers.add(case, llm, plan, {"vllm": str(stand_in)}, cases.Bar(False))
    assert len(case["rows"]) == 4 and case["notes"][1] == "vllm: no row, it was stopped after 1.0 s"


def test_a_peer_takes_its_rounds_in_turn():
    """The script that runs under the other interpreter: one to warm up, then one each between two turns of ours."""
    source = "import sys; sys.path[:0] = [sys.argv[1]]; import peer; peer.PAUSE = 0; n = []; " + (
        "peer.rounds(3, lambda: n.append('p'), lambda: n.append('q')); print(*n, sys.stdin.read(), sep='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, str(peers.SCRIPT.parent)],
        input="\n" * 3 + "left",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [*TURN.split() * 3, "pq" * 4 + "left"]


def test_a_peer_that_looks_inside_is_held_against_ours(llm, tmp_path):
    plan = cases.Plan.of(geometry.GEOMETRIES["tiny"], "cpu", True, 0)
    work = geometry.workload(llm, 60, 6, lookers.QUERIES)
    table = patching.tables(llm, work, lookers.SAMPLED, 0)[0]
    stand_in, n = (
        tmp_path / "python",
        lookers.QUERIES,
    )  # an interpreter that checks its input and answers with our numbers
    with torch.inference_mode():
        own = {**lookers.see(llm, work), "patched": patching.ours(llm, work, table, n)}
    for name, values in own.items():
        values.tofile(tmp_path / f"{name}.f32")
    answer = {"name": "stand-in", "seen": [[8.0, 4.0]] * 3, "patched": [[32.0, 16.0]] * 3, "notes": ["it said this"]}
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    stand_in.write_text(
        f"#!/bin/sh\n[ $1 = peer_inside.py ] && [ -f peer.py ] && [ $(wc -c < patches.f32) = {4 * 48 * 4} ] && "
        f"[ -f model/model.safetensors ] && cp {tmp_path}/*.f32 {tmp_path}/answer.json .\n"
    )
    stand_in.chmod(0o755)

    def look():
        with torch.inference_mode():
            return lookers.look(llm, plan, {"nnsight": str(stand_in)}, cases.Bar(False))[0]

    found = look()
    mine, seen, again, patched = found["rows"]
    assert (
        seen["method"] == "stand-in" and seen["ms"] == 2000 and patched["ms"] == 2000
    )  # 8 s / 4, 32 s / (4 cells x 4)
    assert seen["times"] == pytest.approx(2000 / mine["ms"], rel=0.5) and patched["against"] == again["method"]
    assert [item["pass"] for item in found["limits"]] == [True, True] and found["notes"] == ["stand-in: it said this"]
    for name, failing in (("states", 0), ("patched", 1)):
        wrong = own[name].copy()
        wrong.flat[-1] += 1e-3
        wrong.tofile(tmp_path / f"{name}.f32")
        assert [item["pass"] for item in look()["limits"]] == [i != failing for i in range(2)]
        own[name].tofile(tmp_path / f"{name}.f32")
    (tmp_path / "attention.f32").write_bytes(b"1234")
    assert look()["rows"] == [] and "it wrote no attention" in look()["notes"][0]


@pytest.mark.parametrize("name", peers.INSIDE)
def test_tools_that_look_inside_see_the_same(llm, name):
    """With an interpreter that has the tool: ICRL_LAB_TRANSFORMER_LENS=/path/python, ICRL_LAB_NNSIGHT=/path/python."""
    python = os.environ.get(f"ICRL_LAB_{name.upper().replace('-', '_')}")
    if not python:
        pytest.skip(f"no interpreter with {name} was given")
    plan = cases.Plan.of(geometry.GEOMETRIES["tiny"], "cpu", True, 0)
    with torch.inference_mode():
        (found,) = lookers.look(llm, plan, {name: python}, cases.Bar(False))
    assert len(found["rows"]) == 4 and all(item["pass"] for item in found["limits"]), found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_benchmark_on_a_gpu():
    found = bench.run("cuda", "tiny", quick=True, progress=False)
    mine = next(r for r in found["cases"][0]["rows"] if r["method"] == rows.OURS)
    assert mine["dtype"] == "bfloat16" and mine["difference"] < 0.15
