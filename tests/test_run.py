# ruff: noqa: F811, a fixture's name is an argument's
"""The loop of a study: every row says what was asked, of which item, and what came back; a memo changes nothing."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from icrl_lab import answers, baselines
from icrl_lab.errors import DataError, StudyError
from icrl_lab.maps import apply, fit
from icrl_lab.models import wrap
from icrl_lab.studies import Study
from icrl_lab.studies.manifest import items_table, manifest
from icrl_lab.studies.spec import plan_of
from icrl_lab.values import Task, Vectors
from tests.conftest import tiny_llm
from tests.families import family
from tests.test_material import N, classes, llm, task, vectors  # noqa: F401, the fixtures

PLAN = dict(
    arms=["text", {"name": "random-projection", "draws": 3}, "ridge"], controls=["real", "noise", "dummy"],
    with_text=False, labels=["true", "permuted"], shots=6, seeds=2, queries=7,
)  # fmt: skip


def study(task, vectors, llm, **changes) -> Study:
    return Study(task, vectors, llm, **{**PLAN, **changes})


@pytest.fixture(scope="module")
def done(task, vectors, llm):
    made = study(task, vectors, llm)
    return made, made.run(progress=False)


def asked(made: Study, cell):
    """For each query its mixed answer and the tokens of its prompts, one prompt at a time, by a study that has asked nothing."""
    fresh = Study(made.task, made.vectors, made.llm, **{**PLAN, "queries": made.plan.queries})
    found: dict[int, list] = {int(q): [] for q in fresh.material.queries}
    tokens = dict.fromkeys(found, 0)
    for draw in range(cell.arm.draws):
        prompts, groups = fresh.material.rendered(cell, draw)
        for query, prompt in zip([q for g in groups for q in g.queries], prompts):
            slots = [span.item for span in prompt.spans if span.role == "slot"]
            assert len(slots) == (7 if cell.arm.has_slots and cell.control != "dummy" else 0)
            assert not slots or slots[-1] == made.task.ids[query]
            found[query] += answers.score_numbers(fresh.engine, [prompt], fresh.material.format, made.llm.tokenizer)
            tokens[query] += len(prompt)
    return {query: answers.mix(each) for query, each in found.items()}, tokens


@pytest.mark.parametrize("unread", [(0, 2), (0, 1, 2)])
def test_draws_that_cannot_be_read_are_counted_where_the_others_answer(task, vectors, llm, monkeypatch, unread):
    """A mixture answers while one of its draws does: how many did not stands in the rows and in the summary."""
    made = study(task, vectors, llm, arms=PLAN["arms"][1:2], controls=["real"], labels="true", decode="greedy")
    decode, asked = answers.decode_numbers, []

    def some(engine, prompts, fmt, tokenizer, **given):
        asked.append(len(asked) % 3)
        if asked[-1] in unread:
            return [[answers.Answer.failed("no number", "none")] for _ in prompts]
        return [[answers.Answer(np.array([1.0, 2.0]), np.array([0.25, 0.75]), raw="2")] for _ in prompts]

    monkeypatch.setattr(answers, "decode_numbers", some)
    result = made.run(progress=False)
    frame, (row,) = result.to_dataframe(), result.summary().to_dict("records")
    assert decode is not answers.decode_numbers and asked == [0, 1, 2, 0, 1, 2]
    assert (frame["failed_draws"] == len(unread)).all() and (frame["draws"] == 3).all()
    if len(unread) == 3:
        assert (
            (frame["status"] == "no number").all() and row["failures"] == 14 and row["note"].count("draws failed") == 0
        )
    else:
        assert (frame["status"] == "ok").all() and row["failures"] == 0
        assert "28 of 42 draws failed and are left out of their mixtures" in row["note"]


def test_a_row_holds_what_the_model_answers_about_its_item(done):
    made, result = done
    frame, place = result.to_dataframe(), {name: i for i, name in enumerate(made.task.ids)}
    keys = ["arm", "control", "labels", "seed"]
    for cell in made.cells():
        mixed, tokens = asked(made, cell)
        rows = frame[(frame[keys] == [cell.arm.label, cell.control, cell.labels, cell.seed]).all(axis=1)]
        assert len(rows) == 7 and set(rows["draws"]) == {cell.arm.draws}
        for row in rows.to_dict("records"):
            query = place[row["item"]]
            answer, y = mixed[query], made.task.targets[query]
            assert row["target"] == y and row["status"] == "ok"
            assert row["prediction"] == pytest.approx(answer.mean, abs=1e-3)
            assert row["crps"] == pytest.approx(answer.crps(y), abs=1e-3)
            assert row["lower"] == answer.quantile(0.025) and row["upper"] == answer.quantile(0.975)
            assert row["lower"] <= row["prediction"] <= row["upper"] and row["lower"] < row["upper"]
            assert row["prompt_tokens"] == tokens[query] and row["raw"] == answer.raw
            shown = [place[name] for name in row["shot_items"].split(";")]
            assert row["reference"] == pytest.approx(made.task.targets[shown].mean())


def test_whether_an_answer_was_copied_is_whether_a_shot_was_shown_with_it(done):
    made, result = done
    by_cell = {(c.arm.label, c.control, c.labels, c.seed): c for c in made.cells()}
    found = set()
    for row in result.to_dataframe().to_dict("records"):
        cell = by_cell[row["arm"], row["control"], row["labels"], row["seed"]]
        written = made.material.shots(cell, 0)[0].written
        if cell.arm.draws == 1:  # a mixture's most probable label need not be that of any draw
            assert row["copied"] == (row["raw"].strip() in written)
            found.add(row["copied"])
    assert found == {True, False}
    frame, labels = result.to_dataframe(), made.material.format
    for cell in (c for c in made.cells() if c.arm.draws > 1 and c.seed == 0 and c.control == "real"):
        mixed, _ = asked(made, cell)
        written = made.material.shots(cell, 0)[0].written
        rows = frame[(frame["arm"] == cell.arm.label) & (frame["control"] == "real") & (frame["labels"] == cell.labels)]
        rows = rows[rows["seed"] == 0].set_index("item")["copied"]
        for query, answer in mixed.items():
            label = labels.labels[int(np.argmax(np.isclose(labels.values, answer.mode)))]
            assert rows[made.task.ids[query]] == (label in written)


@pytest.mark.parametrize("fmt", ["as-written", "digit", "letter"])
def test_what_is_generated_is_copied_whatever_stands_around_it(task, vectors, llm, monkeypatch, fmt):
    """A model that says a shot's label, or another, in words of its own."""
    made = study(task, vectors, llm, arms=["random-projection"], controls=["real"], labels="true", label_format=fmt, decode="greedy", seeds=1, queries=4, shots=3)  # fmt: skip
    cell = made.cells()[0]
    written = made.material.shots(cell, 0)[0].written
    other = next(made.material.written(p) for p in made.task.pool if made.material.written(p) not in written)
    zeros = "0" if fmt == "as-written" and "." in written[1] else ""
    said = [
        f" {written[0]}\nX -> {other}",
        f" **{written[1]}{zeros}**",
        f" {other}\nX -> {written[0]}",
        " none of them",
    ]
    monkeypatch.setattr(answers.numbers, "generated", lambda *given: said)
    frame = made.compute(cell)
    assert frame["copied"].tolist() == [True, True, False, False]
    assert frame["status"].eq("ok").tolist() == [True, True, True, False]


def test_the_point_is_the_one_asked_for(task, vectors, llm):
    few = dict(arms=["random-projection"], controls=["real"], labels="true", seeds=1)
    points = {p: study(task, vectors, llm, point=p, **few).run(progress=False).to_dataframe()["prediction"] for p in ("mean", "median", "mode")}  # fmt: skip
    made = study(task, vectors, llm, **few)
    cell = made.cells()[0]
    found = made._answers(cell, *made.material.rendered(cell, 0), 0)
    for point, values in points.items():
        assert np.allclose(values, [a.point(point) for a in found], atol=1e-3)
    assert len({tuple(v.round(6)) for v in points.values()}) == 3


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(decode="sample", draws=2, label_format="as-written"),
        dict(decode="greedy"),
        dict(decode="sample", queries_per_prompt=3, layout="paper", shots=2, label_format="as-written", seeds=1),
    ],
)
def test_what_was_asked_before_changes_no_answer(task, vectors, llm, changes):
    """The memo of prompts, the engine's kept path and the company of other cells: the same as of each cell alone."""
    arms = ["text", "random-projection", "moments-vocab"]
    plan = {**PLAN, "arms": arms, "labels": "true", "controls": ["real", "noise", "dummy"], "queries": 4, **changes}
    shared = Study(task, vectors, llm, **plan)
    for cell in shared.cells():
        one = Study(task, vectors, llm, **plan).compute(cell).drop(columns="seconds")
        other = shared.compute(cell).drop(columns="seconds")
        pd.testing.assert_frame_equal(one, other, rtol=1e-3, atol=1e-3)


def test_sampling_differs_by_seed_draw_and_prompt_and_greedy_does_not(task, vectors, llm):
    calls: list[dict] = []

    def watched(engine, prompts, *a, **k):
        calls.append({"prompts": len(prompts), **k})
        return [[answers.Answer.failed("not read", "")] * k["queries"] for _ in prompts]

    plan = dict(arms=["random-projection"], controls=["real", "noise"], labels="true", draws=2, layout="paper", shots=2, queries_per_prompt=3)  # fmt: skip
    for decode, temperature in (("sample", 0.6), ("greedy", 0.0)):
        calls.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(answers, "decode_numbers", watched)
            made = study(task, vectors, llm, decode=decode, label_format="as-written", **plan)
            frame = made.run(progress=False).to_dataframe()
        assert len(frame) == 2 * 2 * 7 and frame.groupby(["control", "seed"])["item"].nunique().eq(7).all()
        assert {c["temperature"] for c in calls} == {temperature}
        assert [(c["prompts"], c["queries"]) for c in calls[:2]] == [(2, 3), (1, 1)]  # seven queries by three
        seeds = [c["seed"] for c in calls]
        assert len(seeds) == 2 * 2 * 2 * 2 and len(set(seeds)) == 8  # seeds, draws and parts; controls share a stream


def test_each_of_several_queries_a_prompt_gets_its_own_answer(task, vectors, llm, monkeypatch):
    """A model that answers each query with a number that names it, but for every fifth item, of which it says nothing."""
    named = changed(task, text=tuple("abc " * (1 + i % 5) + f"item{i}" for i in range(N)))
    arms = ["text", {"name": "random-projection", "draws": 2}]
    form = {"name": "numbered", "shot": "{item} -> {label}", "query": "{number}: {item} ->"}
    made = study(named, vectors, llm, arms=arms, controls=["real", "noise"], with_text=True, labels="true", shots=2, layout=form, label_format="as-written", decode="greedy", queries_per_prompt=3)  # fmt: skip
    said: dict[int, list[tuple[str, int]]] = {}
    sizes: list[int] = []

    def names(engine, prompts, *given):
        texts = []
        for prompt in prompts:
            spans = [s for s in prompt.spans if s.role == "text" and (s.shot or 0) >= 2]  # behind the two shots
            items = [int("".join(prompt.tokens[s.start : s.stop]).split("item")[1]) for s in spans]
            texts.append("\n".join(f"Answer {k}: {item}.25" for k, item in enumerate(items, 1) if item % 5))
            sizes.append(len(items))
            for item in items:
                said.setdefault(item, []).append((texts[-1], len(prompt)))
        return texts

    monkeypatch.setattr(answers.numbers, "generated", names)
    queries = {int(q) for q in made.material.queries}
    assert len(queries) == 7 and 0 < sum(q % 5 == 0 for q in queries) < 7
    for cell in made.cells():
        said.clear(), sizes.clear()
        frame, draws = made.compute(cell), cell.arm.draws
        assert sizes == [3, 3, 1] * draws
        assert {task.ids.index(item) for item in frame["item"]} == queries == set(said) and len(frame) == 7
        for row in frame.to_dict("records"):
            item = task.ids.index(row["item"])
            assert row["target"] == task.targets[item]
            assert row["prompt_tokens"] == sum(length for _, length in said[item]) and len(said[item]) == draws
            if item % 5:
                assert (row["prediction"], row["status"], row["raw"]) == (item + 0.25, "ok", said[item][0][0])
            else:
                assert pd.isna(row["prediction"]) and row["status"] == "no number in the text"


@pytest.mark.parametrize("decode, times", [("score", 1), ("greedy", 1), ("sample", 2)])
def test_equal_prompts_are_asked_once_unless_chance_decides(task, vectors, llm, decode, times, monkeypatch):
    """Two names of the text arm, two draws of an order without chance: one list of prompts a seed."""
    arms = ["text", {"name": "text", "as": "again", "draws": 2}]
    made = study(task, vectors, llm, arms=arms, order="ascending", labels="true", seeds=1, decode=decode, shots=2)
    asked_for = []
    name = "_score" if decode == "score" else "_ask"
    real = getattr(made, name)
    monkeypatch.setattr(made, name, lambda *a: asked_for.append(a) or real(*a))
    made.run(progress=False)
    assert len(asked_for) == times


@pytest.mark.parametrize("decode", ["score", "greedy"])
def test_cells_that_are_asked_together_answer_as_each_alone(task, vectors, llm, decode, monkeypatch):
    """A run asks short prompts of several draws and cells in one call; what a cell says is what `compute` says of it alone."""
    arms = ["random-projection", {"name": "moments-vocab", "draws": 3}]
    plan = dict(arms=arms, controls=["real", "noise"], labels="true", seeds=2, shots=4, queries=5, decode=decode)
    made, calls = study(task, vectors, llm, **plan), []
    real = made.engine.run
    monkeypatch.setattr(
        made.engine, "run", lambda prompts, *a, **k: calls.append(len(prompts)) or real(prompts, *a, **k)
    )
    frame = made.run(progress=False).to_dataframe()
    if decode == "score":  # 8 cells with 16 draws between them, of which those of a seed fit in one call
        assert calls == [2 * (1 + 3) * 5] * 2
    assert (frame["seconds"] > 0).all()
    alone = pd.concat([study(task, vectors, llm, **plan).compute(cell) for cell in made.cells()])
    for column in ("prediction", "lower", "upper", "crps"):
        by = ["arm", "control", "seed", "item"]
        one, other = (x.set_index(by)[column].sort_index() for x in (frame, alone))
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("room, most", [(1, 1), (10_000, 8)])
def test_what_is_asked_ahead_fits_a_pack_and_is_paid_by_its_own_cell(task, vectors, llm, room, most, monkeypatch):
    """Scoring takes 10 ms a prompt here, of whichever cell: every row takes that a draw, however many were asked at once."""
    arms = ["random-projection", {"name": "moments-vocab", "draws": 3}]
    made = study(task, vectors, llm, arms=arms, controls=["real", "noise"], labels="true", seeds=1, shots=4, queries=5)
    made.engine.pack, real, calls = room, made._score, []

    def slow(engine, prompts):
        calls.append(len(prompts) // 5)
        time.sleep(0.01 * len(prompts))
        return real(engine, prompts)

    monkeypatch.setattr(made, "_score", slow)
    frame = made.run(progress=False).to_dataframe()
    assert calls == [most] * (8 // most)
    assert (frame["seconds"] >= 0.01 * frame["draws"]).all()
    if most == 8:  # no cell pays for another: those with three draws take about three times as long
        by = frame.groupby("draws")["seconds"].mean()
        assert 2 < by[3] / by[1] < 4


def test_a_prompt_that_cannot_be_stops_no_cell_before_it(task, vectors, llm, monkeypatch):
    made, done = study(task, vectors, llm, arms=["text", "random-projection"], labels="true", seeds=2), []
    real, last = made.material.rendered, made.cells()[-1]

    def breaks(cell, draw):
        if cell.key == last.key:
            raise DataError("this one is too long")
        return real(cell, draw)

    monkeypatch.setattr(made.material, "rendered", breaks)
    with pytest.raises(DataError, match="too long"):
        for cell, _ in made._computed(made.cells(), False):
            done.append(cell.key)
    assert done == [c.key for c in made.cells()[:-1]]


def test_what_cannot_be_is_found_before_anything_is_computed(task, vectors, llm, tmp_path, monkeypatch):
    made = study(
        task, vectors, llm, arms=["text", "random-projection", "identity"]
    )  # vectors are not as wide as the model
    monkeypatch.setattr(made, "compute", None)
    for out in (None, tmp_path / "run"):
        with pytest.raises(DataError, match="identity"):
            made.run(out, progress=False)
    study(task, vectors, llm, arms=["text"], seeds=1).run(tmp_path / "run", progress=False)  # the folder kept nothing


# ---------------------------------------------------------------------------------------- the baselines


@pytest.mark.parametrize("of", [lambda task: task, classes])
def test_baselines_see_the_shots_labels_and_items_that_the_arms_saw(task, vectors, llm, of):
    few = dict(arms=["random-projection"], controls=["real"], shots=[5, 8], selection=["random", "nearest"])
    made = study(of(task), vectors, llm, **few)
    result = made.run(progress=False)
    frame, simple = result.to_dataframe(), result.baseline_predictions
    place = {name: i for i, name in enumerate(task.ids)}
    cells = {(c.labels, c.shots, c.selection, c.seed): c for c in made.cells()}
    names = set(simple["baseline"])
    assert len(simple) == len(frame) * len(names)
    truth = made.task.targets if made.task.targets is not None else np.array(made.task.labels)
    for row in frame.to_dict("records"):
        key = row["labels"], row["shots"], row["selection"], row["seed"]
        shown, query = [place[name] for name in row["shot_items"].split(";")], place[row["item"]]
        group = next(g for g in made.material.shots(cells[key], 0) if query in g.queries)
        y = made.material.shown_targets(group, cells[key])
        assert list(group.positions) == shown
        same = (simple[["labels", "shots", "selection", "seed"]] == list(key)).all(axis=1) & (
            simple["item"] == row["item"]
        )
        rows = simple[same].set_index("baseline")
        assert set(rows.index) == names and (rows["target"] == truth[query]).all()
        for name in names - {"gp"}:
            wanted = baselines.baseline(name, vectors.values[shown], y, vectors.values[[query]], seed=row["seed"])[0]
            got = rows.loc[name, "prediction"]
            assert got == wanted or got == pytest.approx(wanted, rel=1e-4, abs=1e-4)
        said = rows["reference"].unique()  # summed in another order
        assert len(said) == 1 and (said[0] == row["reference"] or said[0] == pytest.approx(row["reference"]))


@pytest.mark.parametrize("of", [lambda task: task, classes])
def test_a_study_of_one_shot_has_baselines_that_say_its_label(task, vectors, llm, of):
    made = study(of(task), vectors, llm, arms=["text", "random-projection"], shots=1)
    result = made.run(progress=False)
    simple, shown = result.baseline_predictions, result.to_dataframe().groupby("seed")["reference"].first()
    assert len(simple) and (simple["prediction"] == simple["seed"].map(shown)).all()
    assert len(result.summary()) and len(result.baselines())


def test_efficiency_is_against_the_ridge_of_the_same_shots(done):
    _, result = done
    summary, simple = result.summary(), result.baselines()
    for row in summary[summary["control"] == "real"].to_dict("records"):
        ridge = simple[(simple["baseline"] == "ridge") & (simple["labels"] == row["labels"])]["pearson"].iloc[0]
        if ridge > 0:
            assert row["efficiency"] == pytest.approx(row["pearson"] / ridge, rel=0.05, abs=0.05)
    assert summary["efficiency"].notna().any()


# ----------------------------------------------------------------------------------------- the manifest


def changed(task: Task, **fields) -> Task:
    return Task(**{k: getattr(task, k) for k in task.__dataclass_fields__} | fields)


def test_a_run_is_resumed_only_on_the_same_inputs(task, vectors, llm):
    inputs = lambda task, vectors: manifest(study(task, vectors, llm), 0.0)["inputs"]  # noqa: E731
    first = inputs(task, vectors)
    targets, moved, text = task.targets.copy(), vectors.values.copy(), list(task.text)
    targets[7] += 1e-9
    moved[3, 2] += 1e-6
    text[5] += "!"
    turned = changed(
        task, pool=np.append(task.pool[1:], task.queries[0]), queries=np.append(task.queries[1:], task.pool[0])
    )
    for name, other in {
        "task": inputs(changed(task, targets=targets), vectors),
        "vectors": inputs(task, Vectors(moved, task.ids, vectors.space)),
        "encoder": inputs(task, Vectors(vectors.values, task.ids, "toy/2")),
        "split": inputs(turned, vectors),
    }.items():
        assert {k for k in first if first[k] != other[k]} == {name}
    for same in (dict(text=tuple(text)), dict(units="mol"), dict(property="weight"), dict(modality="molecule")):
        assert inputs(changed(task, **same), vectors)["task"] != first["task"]
    assert inputs(task, vectors) == first


def test_a_run_is_resumed_only_on_the_same_model_in_the_same_precision(task, vectors, tmp_path):
    """Also where the weights are such that both precisions hold the very same numbers, as of a model published in bfloat16."""
    half, again, other = (tiny_llm("llama", seed=s, dtype=d, tokenizer=family("digits")) for s, d in ((0, "bfloat16"), (0, "bfloat16"), (1, "float32")))  # fmt: skip
    single = wrap(half.name, again.model.float(), half.tokenizer, prove=False)
    renamed = wrap("another", single.model, single.tokenizer, prove=False)
    few = dict(arms=["random-projection"], controls=["real"], labels="true", seeds=1, shots=2, queries=2)
    first = manifest(study(task, vectors, single, **few), 0.0)["inputs"]
    study(task, vectors, single, **few).run(tmp_path / "run", progress=False)
    for name, another in (("model", other), ("model", renamed), ("dtype", half)):
        found = manifest(study(task, vectors, another, **few), 0.0)["inputs"]
        assert {key for key in first if first[key] != found[key]} == {name}
        with pytest.raises(StudyError, match=rf"holds another study: inputs\.{name} is .* there and .* here"):
            study(task, vectors, another, **few).run(tmp_path / "run", resume=True, progress=False)
    same = wrap(single.name, single.model, single.tokenizer, prove=False)
    result = study(task, vectors, same, **few).run(tmp_path / "run", resume=True, progress=False)
    assert len(result.to_dataframe()) == 2


def test_the_table_of_items_says_who_played_which_part(task, vectors, llm):
    made = study(task, vectors, llm)
    table = items_table(made).set_index("id")
    assert list(table.index) == list(task.ids) and len(table) == N
    assert set(table.index[table["role"] == "pool"]) == {task.ids[p] for p in task.pool}
    assert set(table.index[table["role"] == "query"]) == {task.ids[q] for q in made.material.queries}
    assert table["target"].tolist() == task.targets.tolist() and table["text"].tolist() == list(task.text)


@pytest.mark.parametrize("plan, room", [(dict(decode="score"), 16), (dict(decode="greedy"), 40), (dict(decode="greedy", queries_per_prompt=3, layout="paper"), 112)])  # fmt: skip
def test_room_for_the_answer_is_asked_for_before_anything_is_computed(task, vectors, llm, monkeypatch, plan, room):
    plan = dict(arms=["random-projection"], controls=["real"], labels="true", seeds=1, queries=3, shots=2, **plan)
    made = study(task, vectors, llm, **plan)
    longest = max(len(p) for p in made.material.rendered(made.cells()[0], 0)[0])
    monkeypatch.setattr(llm, "context", longest + room)
    assert len(study(task, vectors, llm, **plan).run(progress=False).to_dataframe()) == 3
    monkeypatch.setattr(llm, "context", longest + room - 1)
    monkeypatch.setattr(Study, "compute", lambda *given: pytest.fail("a cell was computed"))
    with pytest.raises(DataError, match=rf"the prompt has {longest} tokens \(and needs {room} for the answer\)"):
        study(task, vectors, llm, **plan).run(progress=False)


@pytest.mark.parametrize("name", ["random-projection", "moments-vocab", "zero-pad"])
def test_a_map_keeps_its_own_norms_where_they_are_asked_for(task, vectors, llm, name):
    """The published maps set no norm: what stands in the prompt is what the map alone makes of the vectors."""
    arms = [name, {"name": name, "slot_scale": "own"}]
    made = study(task, vectors, llm, arms=arms, controls=["real"], labels="true", seeds=1)
    assert [arm.label for arm in made.plan.arms] == [name, f"{name} slot_scale=own"]
    pool = vectors.take(tuple(task.ids[p] for p in task.pool))
    for cell in made.cells():
        (fitted,) = made.material.fitting.slot_maps(cell, 0)
        own = cell.arm.slot_scale == "own"
        plain = fit(name, pool, made.material.tokens, seed=fitted.recipe["seed"], slot_scale=None if own else 0.5)
        shown = np.concatenate([p.vectors for p in made.material.rendered(cell, 0)[0]])
        want = apply(plain, vectors).values.reshape(-1, shown.shape[1])
        assert np.abs(shown[:, None] - want).max(2).min(1).max() < 1e-5 * np.abs(want).max()
    assert plan_of({"arms": [arm.to_dict() for arm in made.plan.arms]}).arms == made.plan.arms


@pytest.mark.parametrize("arm, with_text", [("text", False), ("random-projection", True)])
def test_a_later_seed_whose_texts_are_too_long_is_said_before_anything_is_computed(
    task, vectors, llm, monkeypatch, arm, with_text
):
    plan = dict(arms=[arm], controls=["real"], labels="true", with_text=with_text, seeds=5, shots=4, queries=3)
    made = study(task, vectors, llm, **plan)
    longest = {c.seed: max(map(len, made.material.rendered(c, 0)[0])) for c in made.cells()}
    least = min(longest, key=longest.__getitem__)
    assert longest[least] < max(longest.values())
    seeds = [least, *(s for s in longest if s != least)]
    monkeypatch.setattr(llm, "context", longest[least] + made.material.room)
    monkeypatch.setattr(Study, "compute", lambda *given: pytest.fail("a cell was computed"))
    with pytest.raises(DataError, match=r"the prompt has \d+ tokens"):
        study(task, vectors, llm, **{**plan, "seeds": seeds}).run(progress=False)


def test_rows_are_normalised_where_an_arm_asks_for_it(task, vectors, llm):
    """What stands in the prompt has a token's average moments, times the slot's scale; without, it has not."""
    arms = [{"name": "wide-random", "row_normalise": True}, {"name": "wide-random", "as": "plain"}]
    made = study(task, vectors, llm, arms=arms, controls=["real"], labels="true", seeds=1, slot_scale=2.0)
    off = []
    for cell in made.cells():
        rows = np.concatenate([p.vectors for p in made.material.rendered(cell, 0)[0]])
        off.append(np.abs(rows.std(1) / rows.std(1).mean() - 1).max())
    assert off[0] < 1e-4 < 1e-2 < off[1]
