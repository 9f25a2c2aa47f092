"""Attention rows reduced to spans equal eager attention; what follows the encoder is found, what does not is not."""

from functools import cache
from itertools import permutations

import numpy as np
import pytest

from icrl_lab.errors import DataError, StudyError
from icrl_lab.plots import attention as plots
from icrl_lab.probes.attention import attention, similarity
from icrl_lab.probes.matching import beyond, crossed, matching, p_value
from icrl_lab.probes.rollout import rollout
from icrl_lab.probes.scene import scene
from icrl_lab.probes.spans import PARTS, TARGETS, captured, look, reduced, spans
from icrl_lab.stats import adjusted
from icrl_lab.studies import Study
from icrl_lab.values import Reading, Task
from tests.planted import COPY, planted_study
from tests.test_engine import eager
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

FAMILIES = [("llama", "digits"), ("gemma3", "unigram")]


@pytest.fixture(scope="module")
def small():
    """The reading of a random model, with text and noise beside it."""
    return attention(toy_study(shots=5, queries=6), seeds=[0, 1], queries=5)


@cache
def planted(family):
    return attention(planted_study("nearest", family), "zero-pad", queries=16, against=["noise"])


# ------------------------------------------------------------------------------------------------ spans


@pytest.mark.parametrize("name,tokenizer", FAMILIES)
@pytest.mark.parametrize("plan", [{}, {"with_text": True, "markers": "paren"}, {"repeat": 2, "layout": "question"}])
def test_reduced_rows_are_eager_attention_part_by_part(name, tokenizer, plan):
    study = toy_study(name, tokenizer, shots=5, **plan)
    one = scene(study, "zero-pad", queries=3)
    found = look(one)
    assert np.abs(found.share.sum(2) - 1).max() < 1e-5
    for i, (prompt, parts) in enumerate(zip(one.prompts, one.parts)):
        full = eager(study.llm, prompt).astype(np.float64)
        places = [len(prompt) - 1, parts.at("slot", parts.shown)[-1]]
        for r, place in enumerate(places):
            row = full[:, :, place]
            left = 1 - row[..., 0]
            assert np.abs(found.sink[i, r] - row[..., 0]).max() < 1e-5
            mine, total = parts.shot == parts.shown, 0
            for p, part in enumerate(PARTS):
                want = {
                    "own vector": mine & (parts.role == "slot"),
                    "own text": mine & (parts.role == "text"),
                    "question": mine & np.isin(parts.role, ["question", "template"]),
                    "vector": ~mine & (parts.role == "slot"),
                    "text": ~mine & (parts.role == "text"),
                    "template": ~mine & (parts.role == "template"),
                }.get(part, parts.role == part)
                raw = row[..., 1:] @ want[1:]
                total = total + raw
                assert np.abs(found.share[i, r, p] * left - raw).max() < 1e-5
            assert np.abs(total + row[..., 0] - 1).max() < 1e-5  # parts and sink are everything
            for s in range(5):
                at = [c for copy in range(study.plan.repeat) for c in parts.at("label", s + 5 * copy)]
                lift = row[..., at].mean(-1) / left * place  # `place` columns are seen but the sink
                assert np.abs(found.shots[i, r, TARGETS.index("label"), s] - lift).max() < 1e-3


@pytest.mark.parametrize("layout,with_text,repeat", [("arrow", False, 1), ("question", True, 1), ("arrow", True, 3)])
def test_even_attention_has_a_lift_of_one_everywhere(layout, with_text, repeat):
    one = scene(toy_study(layout=layout, with_text=with_text, repeat=repeat, shots=5), "zero-pad", queries=4)
    for number in range(4):
        found = spans(one, number)
        rows = np.zeros((2, 3, 2, len(one.prompts[number])))
        for r, place in enumerate(found.rows):
            rows[:, :, r, 1 : place + 1] = 0.5 / place  # the rest goes to the sink
            rows[:, :, r, 0] = 0.5
        sink, share, shots = reduced(rows, found)
        assert np.allclose(sink, 0.5)
        wide = found.extent[..., None, None]
        assert np.allclose(share, np.broadcast_to(wide, share.shape)) and np.allclose(share.sum(1), 1)
        assert np.isfinite(shots).any() and np.allclose(shots[np.isfinite(shots)], 1)


def test_a_row_that_is_all_sink_has_shares_of_nothing():
    one = scene(toy_study(shots=5), "zero-pad", queries=3)
    rows = np.zeros((2, 2, 2, len(one.prompts[0])))
    rows[..., 0] = 1
    sink, share, shots = reduced(rows, spans(one, 0))
    assert (sink == 1).all() and (share == 0).all() and (shots[np.isfinite(shots)] == 0).all()


@pytest.mark.parametrize("weighting", ["weight", "norm"])
def test_chunks_change_nothing_and_keep_to_the_limit(weighting, monkeypatch):
    study = toy_study("gemma3", "unigram", shots=5)
    one = scene(study, "zero-pad", queries=6)
    whole = look(one, weighting=weighting)
    each = 4 * 3 * 6 * max(map(len, one.prompts)) * (2 + (weighting == "norm"))
    monkeypatch.setattr(study.engine, "limit", 2.5 * each)
    calls, run = [], study.engine.run
    monkeypatch.setattr(
        study.engine, "run", lambda prompts, *a, **k: calls.append(len(prompts)) or run(prompts, *a, **k)
    )
    parts = look(one, weighting=weighting)
    assert calls == [2, 2, 2]
    for name in ("sink", "share", "shots"):
        assert np.nanmax(np.abs(getattr(whole, name) - getattr(parts, name))) < 1e-4


def test_value_weighted_rows_are_attention_times_what_values_write():
    study = toy_study(shots=5)
    one = scene(study, "zero-pad", queries=3)
    rows = dict(zip(range(3), (w for _, w in captured(one, weighting="norm"))))
    plain = dict(zip(range(3), (w for _, w in captured(one))))
    hidden = {}
    model = study.llm.model
    hook = model.model.layers[1].self_attn.v_proj.register_forward_hook(lambda m, i, o: hidden.update(v=o[0].detach()))
    eager(study.llm, one.prompts[2])
    hook.remove()
    values = hidden["v"].reshape(len(one.prompts[2]), 2, 8).numpy()
    weight = model.model.layers[1].self_attn.o_proj.weight.detach().numpy()
    for head in range(6):
        written = values[:, head // 3] @ weight[:, 8 * head : 8 * head + 8].T
        want = plain[2][1, head] * np.linalg.norm(written, axis=1)
        assert np.abs(rows[2][1, head] - want).max() < 1e-4


def test_shots_are_the_same_however_often_they_are_repeated():
    one = scene(toy_study(shots=5, repeat=3), "zero-pad", queries=3)
    found = spans(one, 0)
    assert found.members.shape[:2] == (3, 5) and one.parts[0].shown == 15
    assert found.members[TARGETS.index("label")].sum(1).tolist() == [3] * 5
    assert found.members[0].sum(1).tolist() == [2, 3, 3, 3, 3]  # the first shot's vector is at position 0


# ------------------------------------------------------------------------------------------------ matching


def test_crossed_is_spearman_of_every_row_with_every_similarity():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    shots = rng.random((4, 2, 7, 3, 2))
    shots[:, :, 2] = np.nan  # a shot without tokens
    shots[1, 0, :, 1, 1] = 0.3  # no preference
    similar = rng.random((4, 4, 7)).round(1)
    got = crossed(shots, similar)
    keep = [0, 1, 3, 4, 5, 6]
    for i, j, r, layer, head in [(0, 0, 0, 0, 0), (2, 3, 1, 2, 1), (3, 1, 0, 1, 0)]:
        want = spearmanr(shots[i, r, keep, layer, head], similar[i, j, keep]).statistic
        assert got[r, layer, head, i, j] == pytest.approx(want, abs=1e-6)
    assert (got[0, 1, 1, 1] == 0).all()


def test_what_all_queries_share_cancels():
    """A head that likes places, or shots that are similar to everybody: a large rho, and nothing beyond other queries."""
    rng = np.random.default_rng(1)
    liked, own = rng.random(8), rng.random((9, 8))
    of_all = np.broadcast_to(liked + 0.05 * own, (9, 9, 8))  # [i, j]: similarities of query j to the shots of query i
    cross = crossed((liked + 0.05 * rng.random((9, 8)))[:, None, :, None, None], of_all)
    assert np.diagonal(cross, axis1=-2, axis2=-1).mean() > 0.9
    assert np.abs(beyond(cross).mean()) < 0.02 and p_value(matching(cross)) > 0.05
    cross = crossed((liked + own)[:, None, :, None, None], np.broadcast_to(liked + own, (9, 9, 8)))
    assert beyond(cross).mean() > 0.2 and p_value(matching(cross)) < 1e-6


def test_matching_has_the_mean_and_variance_of_all_permutations():
    rng = np.random.default_rng(2)
    c = rng.standard_normal((3, 6, 6))
    turns = list(permutations(range(6)))
    sums = np.stack([c[:, range(6), t].sum(-1) for t in turns], -1)
    want = (np.trace(c, axis1=-2, axis2=-1) - sums.mean(-1)) / sums.std(-1)
    assert np.allclose(matching(c), want)
    assert (matching(np.ones((2, 6, 6))) == 0).all()


@pytest.mark.parametrize("name,tokenizer", FAMILIES)
def test_unrelated_similarities_are_found_at_the_nominal_rate(name, tokenizer):
    """A random model and random vectors, and similarities of other random vectors: p-values are uniform, few survive Holm."""
    study = toy_study(name, tokenizer, shots=8, queries=20)
    one = scene(study, "random-projection", "noise", queries=20)
    shots = look(one).shots[:, :, TARGETS.index("label")]
    found = []
    for draw in range(60):
        x = np.random.default_rng([draw, 9]).standard_normal((len(study.task), 12))
        similar = np.stack([x[one.queries] @ x[s].T for s in one.shots])
        found.append(p_value(matching(crossed(shots, similar))).ravel())
    p = np.array(found)
    p = p[:, (p < 1).any(0)]  # behind a sliding window nothing is seen
    assert p.shape[1] >= 12
    assert 0.03 < (p < 0.05).mean() < 0.07 and 0.3 < (p < 0.4).mean() < 0.5
    assert np.mean([(adjusted(row) < 0.05).any() for row in p]) < 0.15  # 60 draws at 5 %


# ------------------------------------------------------------------------------------------------ the probe


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_planted_head_is_found_and_noise_is_not(family):
    data = planted(family).data
    where = {"row": "answer", "target": "label", "layer": COPY[0], "head": COPY[1]}
    assert [data[f"top_{n}"].values[0].item() for n in ("row", "target", "layer", "head")] == list(where.values())
    assert float(data["gain_q"].sel(where)) < 1e-6 and float(data["gain_low"].sel(where)) > 0.3
    assert float(data["rho"].sel(control="real", **where)) > 0.95
    assert float(data["share"].sel(control="real", part="label", row="answer", layer=COPY[0], head=COPY[1])) > 0.9
    others = data["gain_q"].values[data["gain_q"].values != float(data["gain_q"].sel(where))]
    assert (data["follows_q"].sel(control="noise") > 0.05).all() and (others > 0.05).all()
    assert abs(float(data["rho"].sel(control="noise", **where))) < 0.25
    assert any("it follows the encoder" in s for s in planted(family).about["says"])
    lifts = data["top_lift"].sel(control="real", top=0).values
    assert (lifts.argmax(-1) == data["similarity"].values.argmax(-1)).mean() > 0.95


def test_a_head_that_looks_at_the_last_shot_does_not_follow():
    found = attention(planted_study("blind"), "zero-pad", queries=12, against=["noise"])
    data = found.data
    one = data.sel(control="real", row="answer", target="label", layer=COPY[0], head=COPY[1])
    assert (one["by_shot"].argmax("shot") == data.sizes["shot"] - 1).all()
    assert (data["gain_q"] > 0.05).all() and any("no evidence that it follows" in s for s in found.about["says"])


def test_numbers_are_those_of_the_table(small):
    """Estimates are plain means over seeds and queries; shares sum to one; the difference is the difference."""
    data, study = small.data, toy_study(shots=5, queries=6)
    looks = [look(scene(study, "zero-pad", seed=s, queries=5)) for s in (0, 1)]
    want = np.mean([x.share.mean(0) for x in looks], 0)
    assert np.abs(data["share"].sel(control="real").values - want).max() < 1e-5
    assert np.abs(data["share"].sum("part") - 1).max() < 1e-5
    gap = data["share"].sel(control="real") - data["share"].sel(control="noise")
    assert np.abs(gap - data["shift"]).max() < 1e-9
    assert np.abs(data["share"].mean(("layer", "head")) - data["total_share"]).max() < 1e-9
    left = data["follows"].sel(control="real") - data["follows"].sel(control="noise")
    assert np.abs(left - data["gain"]).max() < 1e-6
    for name in ("share", "lift", "rho", "follows", "gain", "shift"):
        inside = (data[f"{name}_low"] <= data[name] + 1e-9) & (data[name] - 1e-9 <= data[f"{name}_high"])
        assert (inside | np.isnan(data[name])).all()
    own = np.stack([similarity(scene(study, "zero-pad", seed=s, queries=5))[range(5), range(5)] for s in (0, 1)])
    assert np.allclose(data["similarity"], own)
    assert small.names[0] == "share" and all(data[n].attrs["long_name"] for n in small.names)


def test_text_stands_in_for_the_vector(small):
    """Prompts of text, whether the study has that arm or not; and as the arm that is asked about."""
    data = small.data
    assert data["control"].values.tolist() == ["real", "noise", "text"]
    study = toy_study(arms=["text", "zero-pad"], shots=5, queries=6)
    alone = attention(study, "text", seeds=[0, 1], queries=5)
    assert alone.data["control"].values.tolist() == ["real"] and "gain" not in alone.data and "shift" not in alone.data
    assert np.allclose(alone["share"].sel(control="real"), data["share"].sel(control="text"), atol=1e-6)
    one = scene(study, "text", queries=2)
    found, parts = spans(one, 0), one.parts[0]
    assert (found.part[1:] == PARTS.index("vector"))[: found.rows[1] - 3].sum() == len(parts.of_shots("text")) - 1
    assert found.rows[1] == parts.at("text", parts.shown)[-1]


def test_what_stands_beside_can_be_chosen():
    study = toy_study(shots=5, with_text=True)
    found = attention(study, seeds=[0], queries=4, against=["dummy", "shared"], rows=["answer"], top=2)
    assert found.data["control"].values.tolist() == ["real", "dummy", "shared"] and found.about["null"] == "dummy"
    assert found.data["target"].values.tolist() == list(TARGETS) and found.data["row"].values.tolist() == ["answer"]
    one = scene(study, control="dummy", queries=2)
    assert one.prompts[0].vectors.size == 0 and spans(one, 0).rows[1] == one.parts[0].at("marker", 5)[-1]
    bare = attention(study, seeds=[0], queries=4, against=[])
    assert "gain" not in bare.data and any("Without a control" in s for s in bare.about["limits"])


def test_a_task_without_text_says_that_the_null_is_absent():
    task = toy_task()
    bare = Task(
        "bare", task.ids, task.items, None, task.targets, None, "u", "size", "table", task.pool, task.queries
    )  # fmt: skip
    study = Study(bare, toy_vectors(bare), toy_llm(), **{**PLAN, "shots": 5})
    found = attention(study, seeds=[0], queries=4)
    assert found.data["control"].values.tolist() == ["real", "noise"]
    assert any("text is absent" in s for s in found.about["limits"]) and "shot_text" not in found.data
    assert plots.example(found).data[0].type == "bar"


def test_classes_and_shots_of_each_query():
    study = toy_study(classes=True, selection="nearest", shots=5, arms=["zero-pad"])
    found = attention(study, seeds=[0, 1], queries=4, against=["noise"])
    assert (np.diff(np.sort(found["similarity"].values, -1)) >= 0).all()
    assert len(np.unique(found["shot_item"].sel(seed=0).values)) > 5


def test_what_cannot_be_asked_is_refused():
    study = toy_study()
    with pytest.raises(StudyError, match="weighting 'norms' is unknown; did you mean 'norm'"):
        attention(study, weighting="norms")
    with pytest.raises(StudyError, match="row 'slots' is unknown; did you mean 'slot'"):
        attention(study, rows=["slots"])
    with pytest.raises(StudyError, match="top is 0; it must be a whole number, at least 1"):
        attention(study, top=0)
    with pytest.raises(StudyError, match="control 'nois' is unknown"):
        attention(study, against=["nois"])
    with pytest.raises(StudyError, match="cannot be ranked"):
        attention(toy_study(shots=2))
    with pytest.raises(DataError, match="at least 3"):
        attention(study, queries=2)


# ------------------------------------------------------------------------------------------------ rollout


@pytest.mark.parametrize("name,tokenizer", FAMILIES)
def test_rollout_is_the_product_of_mean_attention(name, tokenizer):
    study = toy_study(name, tokenizer, shots=5, queries=6)
    found = rollout(study, "zero-pad", seeds=[0], queries=3)
    one = scene(study, "zero-pad", queries=3)
    want = []
    for i, prompt in enumerate(one.prompts):
        product = np.eye(len(prompt))
        for block in eager(study.llm, prompt).astype(np.float64):
            product = (block.mean(0) + np.eye(len(prompt))) / 2 @ product
        want.append([product[r] for r in spans(one, i).rows])
    data = found.data.sel(control="real", layer=0)
    sinks = np.mean([[row[0] for row in rows] for rows in want], 0)
    assert np.abs(data["sink"].values - sinks).max() < 1e-5
    shares = [
        [row[[c for c in parts.of_shots("slot") if c]].sum() / row[1:].sum() for row in rows]
        for rows, parts in zip(want, one.parts)
    ]
    vector = np.mean(shares, 0)
    assert np.abs(data["rollout"].sel(part="vector").values - vector).max() < 1e-5
    assert np.abs(found["rollout"].sum("part") - 1).max() < 1e-5
    assert list(plots.figures(found)) == ["rollout"]


# ------------------------------------------------------------------------------------------------ figures


def test_figures_show_the_reading_s_numbers(tmp_path):
    planted("llama").save(tmp_path / "attention.nc")
    again = Reading.load(tmp_path / "attention.nc")
    drawn = plots.figures(again)
    assert next(iter(drawn)) == "overview"
    overview = drawn["overview"]
    maps = [t for t in overview.data if t.type == "heatmap"]
    assert np.array_equal(
        np.asarray(maps[0].z, float), again["share"].sel(control="real", part="label", row="answer").T
    )
    assert np.array_equal(np.asarray(maps[2].z, float), again["gain"].sel(target="label", row="answer").T)
    axes = overview.layout.coloraxis, overview.layout.coloraxis2
    assert axes[0].cmin == 0 and axes[1].cmin == -axes[1].cmax and axes[1].cmid == 0
    crosses = [t for t in overview.data if t.type == "scatter" and t.marker.symbol == "x-thin" and len(t.x)]
    assert [(t.x[0], t.y[0]) for t in crosses] == [COPY]
    one = drawn["example"]
    assert one.data[0].y[0] == max(one.data[0].y)  # most attention on the most similar shot
    for figure in drawn.values():
        assert figure.layout.width == 700 and ("n = " in figure.layout.title.text or "Seed" in figure.layout.title.text)
    assert again.plot(part="vector").data[0].type == "heatmap"
    with pytest.raises(DataError, match="no part 'labels'; did you mean 'label'"):
        again.plot(part="labels")
    with pytest.raises(DataError, match="no query"):
        plots.example(again, query="nobody")


def test_hostile_items_are_only_text(small):
    nasty = "<img src=x onerror=alert(1)>"
    called = {str(q): f"{nasty}{i}" for i, q in enumerate(small.data["query"].values)}
    data = small.data.assign_coords(query=list(called.values()))
    data["case_query"] = (data["case_query"].dims, [called[str(q)] for q in data["case_query"].values])
    for name in ("shot_item", "shot_label", "shot_text", "query_text"):
        data[name] = data[name].astype(object).where(False, nasty)
    for figure in plots.figures(Reading("attention", data, small.about)).values():
        assert "<img" not in figure.to_json(engine="json").replace("\\u003c", "<")


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_has_a_sink_and_reads_labels(smollm2):
    from icrl_lab import encode, load_task

    task = load_task("freesolv")
    study = Study(
        task, encode(task, "morgan", progress=False), smollm2,
        **{**PLAN, "arms": ["random-projection"], "shots": 10, "seeds": 1, "queries": 4, "layout": "question"},
    )  # fmt: skip
    found = attention(study, against=["noise"])
    assert float(found["total_sink"].sel(control="real", row="answer")) > 0.2  # even attention gives it a hundredth
    assert float(found["total_lift"].sel(control="real", row="answer", part="label")) > 0.2
    assert np.abs(found["share"].sum("part") - 1).max() < 1e-4
