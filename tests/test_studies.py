"""Studies: the grid, what may be looked at, controls that share everything but one thing, resuming, the planted truth."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import icrl_lab as lab
from icrl_lab import report, tables
from icrl_lab.encoders import repeat
from icrl_lab.errors import DataError, StudyError
from icrl_lab.probes.scene import scene
from icrl_lab.studies import Study, open_run
from icrl_lab.studies.cells import cells
from icrl_lab.studies.manifest import manifest
from icrl_lab.studies.material import Material
from icrl_lab.studies.spec import plan_of
from icrl_lab.values import SLOT, Task, Vectors


@pytest.fixture(scope="module")
def llm():
    """A tiny random model behind a real tokenizer that splits digits."""
    from tests.conftest import tiny_llm
    from tests.families import family

    return tiny_llm("llama", tokenizer=family("digits"))


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    n = 60
    y = rng.standard_normal(n) * 2 - 1
    ids = tuple(f"item{i}" for i in range(n))
    pool = np.arange(0, n, 2)
    return Task(
        "toy",
        ids,
        tuple(range(n)),
        tuple("abcdefgh"[i % 8] * 3 for i in range(n)),
        y,
        None,
        "u",
        "size",
        "table",
        pool,
        np.arange(1, n, 2),
    )


@pytest.fixture(scope="module")
def vectors(task):
    rng = np.random.default_rng(1)
    return Vectors(rng.standard_normal((len(task), 10)), task.ids, "toy/1")


PLAN = dict(
    arms=["text", "random-projection", "ridge"],
    controls=["real", "noise", "dummy"],
    with_text=False,
    labels="true",
    shots=4,
    seeds=3,
    queries=8,
)


def test_the_grid_counts_what_applies():
    plan = plan_of(
        {
            **PLAN,
            "with_text": [False, True],
            "labels": ["true", "permuted"],
            "shots": [2, 4],
            "order": ["random", "ascending"],
        }
    )
    got = list(cells(plan))
    assert len(got) == 3 * 2 * 2 * 2 * (
        1 + 2 * 2 * 3
    )  # seeds, labels, shots, orders; text once, two arms x views x controls
    assert len({c.key for c in got}) == len(got)
    assert [c.seed for c in got] == sorted(c.seed for c in got)  # whole seeds first


def test_shots_and_maps_come_from_the_pool_only(task, vectors, llm):
    """Changing every query's target, and every query's vector but the one asked about, changes no shot and no map."""
    changed = np.array(task.targets)
    changed[task.queries] = 1e3 * np.arange(len(task.queries))
    other = np.array(vectors.values)
    other[task.queries] = 7.0
    fields = {k: getattr(task, k) for k in task.__dataclass_fields__}
    twin = Task(**{**fields, "targets": changed})
    plan = plan_of(
        {
            **PLAN,
            "arms": ["moments-vocab", "ridge", "whiten", "pca-text", "moments-text", "moments-pca"],
            "selection": ["quantile", "diverse", "random"],
        }
    )
    a, b = Material(task, vectors, llm, plan), Material(twin, Vectors(other, task.ids, vectors.space), llm, plan)
    pool = set(task.pool.tolist())
    for cell in cells(plan):
        for x, y in zip(a.shots(cell, 0), b.shots(cell, 0)):
            assert (x.positions == y.positions).all() and x.written == y.written
            assert set(x.positions.tolist()) <= pool and not set(x.positions.tolist()) & set(x.queries)
        if cell.arm.has_slots:
            for s, t in zip(a.fitting.slot_maps(cell, 0)[0].steps, b.fitting.slot_maps(cell, 0)[0].steps):
                assert all((s.arrays[k] == t.arrays[k]).all() for k in s.arrays)
    assert a.format.values.tolist() == b.format.values.tolist()


def test_every_arm_and_control_sees_the_same_shots_and_queries(task, vectors, llm):
    result = Study(task, vectors, llm, **PLAN).run(progress=False)
    frame = result.to_dataframe()
    for _, rows in frame.groupby("seed"):
        assert rows["shot_items"].nunique() == 1
        assert rows.groupby(["arm", "control"])["item"].apply(lambda c: tuple(sorted(c))).nunique() == 1
    assert frame["item"].nunique() == 8
    assert set(frame["status"]) == {"ok"}
    assert frame["prediction"].between(task.targets.min(), task.targets.max()).all()
    assert (frame.query("arm == 'ridge'")["gold_labels"] == 4).all()


def test_the_prompt_of_a_control_differs_in_its_vectors_alone(task, vectors, llm):
    plan = plan_of(
        {
            **PLAN,
            "arms": ["random-projection"],
            "controls": ["real", "shuffled", "noise", "shared", "zero", "back-translated", "dummy"],
        }
    )
    material = Material(task, vectors, llm, plan)
    found = {c.control: material.rendered(c, 0)[0] for c in cells(plan) if c.seed == 1}
    for name, prompts in found.items():
        for real, other in zip(found["real"], prompts):
            if name == "dummy":
                assert not (other.ids == SLOT).any()
            else:
                assert (real.ids == other.ids).all()
                assert (name == "real") == bool((real.vectors == other.vectors).all())


def test_permuted_labels_are_the_same_labels_on_other_shots(task, vectors, llm):
    plan = plan_of({**PLAN, "arms": ["random-projection"], "labels": ["true", "permuted"], "shots": 12})
    material = Material(task, vectors, llm, plan)
    by = {c.labels: material.shots(c, 0)[0] for c in cells(plan) if c.seed == 0 and c.control == "real"}
    assert (by["true"].positions == by["permuted"].positions).all()
    assert sorted(by["true"].written) == sorted(by["permuted"].written)
    assert by["true"].written != by["permuted"].written
    cell = next(c for c in cells(plan) if c.labels == "permuted")
    shown = material.shown_targets(by["permuted"], cell)
    assert [material.format.write(y) for y in shown] == list(
        by["permuted"].written
    )  # baselines see what the prompt shows


def test_draws_differ_in_map_and_order_and_are_mixed(task, vectors, llm):
    many = Study(
        task,
        vectors,
        llm,
        **{**PLAN, "arms": [{"name": "random-projection", "draws": 3}], "controls": ["real"], "seeds": [2]},
    )
    cell = many.cells()[0]
    rendered = [many.material.rendered(cell, d) for d in range(3)]
    orders = [tuple(groups[0].positions.tolist()) for _, groups in rendered]
    assert len(set(orders)) == 3 and len({tuple(sorted(o)) for o in orders}) == 1
    frame = many.compute(cell)
    each = [[a.mean for a in many._answers(cell, r, g, d)] for d, (r, g) in enumerate(rendered)]
    assert np.allclose(frame["prediction"], np.mean(each, 0))  # a mixture's mean is the mean of the means
    assert (frame["draws"] == 3).all()


@pytest.mark.parametrize(
    "selection,order", [("nearest", "near-last"), ("random", "near-first"), ("farthest", "random")]
)
def test_shots_that_depend_on_the_query(task, vectors, llm, selection, order):
    study = Study(
        task,
        vectors,
        llm,
        **{
            **PLAN,
            "arms": ["random-projection"],
            "controls": ["real"],
            "selection": selection,
            "order": order,
            "seeds": 1,
        },
    )
    frame = study.run(progress=False).to_dataframe()
    assert frame["shot_items"].nunique() > 1
    unit = vectors.values / np.linalg.norm(vectors.values, axis=1, keepdims=True)
    place = {name: i for i, name in enumerate(task.ids)}
    for _, row in frame.iterrows():
        shown = [place[i] for i in row["shot_items"].split(";")]
        near = unit[shown] @ unit[place[row["item"]]]
        if order != "random":
            assert (np.diff(near if order == "near-last" else near[::-1]) >= 0).all()
        every = np.sort(unit[task.pool] @ unit[place[row["item"]]])
        if selection == "nearest":
            assert np.allclose(np.sort(near), every[-4:])
        if selection == "farthest":
            assert np.allclose(np.sort(near), every[:4])


def test_classification_with_options(vectors, llm, task):
    fields = {k: getattr(task, k) for k in task.__dataclass_fields__}
    labels = tuple("low" if y < -1.5 else "lower" if y < 0 else "high" for y in task.targets)
    classes = Task(**{**fields, "targets": None, "labels": labels})
    result = Study(classes, vectors, llm, **{**PLAN, "arms": ["random-projection"], "selection": "balanced"}).run(
        progress=False
    )
    frame = result.to_dataframe()
    assert set(frame["prediction"]) <= {"low", "lower", "high"}
    assert {"accuracy", "accuracy_low"} <= set(result.summary())
    assert set(result.baselines()["baseline"]) == {"majority", "knn", "logistic"}


@pytest.mark.parametrize("decode", ["greedy", "sample"])
def test_free_text_failures_are_rows(task, vectors, llm, decode):
    study = Study(
        task,
        vectors,
        llm,
        **{
            **PLAN,
            "arms": ["random-projection"],
            "controls": ["real", "noise"],
            "decode": decode,
            "label_format": "as-written",
        },
    )
    result = study.run(progress=False)
    frame = result.to_dataframe()
    assert len(frame) == 2 * 3 * 8
    failed = frame["status"] != "ok"
    assert frame.loc[failed, "prediction"].isna().all() and failed.any()  # a random model does not write numbers
    assert (result.summary()["failures"].sum()) == failed.sum()


def test_several_queries_a_prompt(task, vectors, llm):
    result = Study(
        task,
        vectors,
        llm,
        **{
            **PLAN,
            "arms": ["random-projection"],
            "controls": ["real"],
            "queries_per_prompt": 3,
            "decode": "greedy",
            "layout": "paper",
            "shots": 2,
            "seeds": 1,
        },
    ).run(progress=False)
    frame = result.to_dataframe()
    assert len(frame) == 8 and frame["item"].is_unique


def test_a_run_is_the_same_with_and_without_a_folder_and_after_resuming(task, vectors, llm, tmp_path, monkeypatch):
    whole = Study(task, vectors, llm, **PLAN).run(progress=False).to_dataframe()
    study = Study(task, vectors, llm, **PLAN)
    real, count = study.compute, []

    def stops(cell):
        if len(count) == 7:
            raise KeyboardInterrupt
        count.append(cell.key)
        return real(cell).assign(seconds=100.0)

    monkeypatch.setattr(study, "compute", stops)
    with pytest.raises(KeyboardInterrupt):
        study.run(tmp_path / "run", progress=False)
    again = Study(task, vectors, llm, **PLAN)
    done = []
    monkeypatch.setattr(again, "compute", lambda cell, f=again.compute: done.append(cell.key) or f(cell))
    result = again.run(tmp_path / "run", resume=True, progress=False)
    assert not set(done) & set(count) and len(done) + len(count) == len(again.cells())  # nothing twice
    drop = ["seconds"]
    pd.testing.assert_frame_equal(whole.drop(columns=drop), result.to_dataframe().drop(columns=drop), check_dtype=False)
    opened = open_run(tmp_path / "run")
    seconds = opened.to_dataframe()["seconds"].sum()  # of both processes, as what is said of the run
    assert opened.manifest["seconds"] >= seconds - 0.01
    pd.testing.assert_frame_equal(opened.summary(), result.summary(), check_dtype=False, rtol=1e-9)
    assert len(opened.maps) == 6 and opened.plot() is not None  # two arms x three seeds
    with pytest.raises(StudyError, match="resume"):
        study.run(tmp_path / "run")
    with pytest.raises(StudyError, match="another study"):
        Study(task, vectors, llm, **{**PLAN, "shots": 5}).run(tmp_path / "run", resume=True)


def test_saved_results_open(task, vectors, llm, tmp_path):
    result = Study(task, vectors, llm, **PLAN).run(progress=False)
    result.save(tmp_path / "kept")
    opened = open_run(tmp_path / "kept")
    pd.testing.assert_frame_equal(opened.to_dataframe(), result.to_dataframe(), check_dtype=False)
    assert (tmp_path / "kept" / "report.html").stat().st_size > 10_000
    assert (
        "<table" in result._repr_html_() and result.paper_mode()["selection_of_seeds"].str.contains("test score").all()
    )


def test_the_rows_of_a_run_folder_stand_in_the_order_of_the_study(task, vectors, llm, tmp_path):
    """As those of the result do: "10" is before "2" and "random-projection" before "text" in a dictionary alone."""
    plan = {**PLAN, "arms": ["text", "random-projection"], "controls": ["real"], "shots": [2, 10], "seeds": [3, 12]}
    result = Study(task, vectors, llm, **plan).run(tmp_path / "run", progress=False)
    opened = open_run(tmp_path / "run")
    pd.testing.assert_frame_equal(opened.to_dataframe(), result.to_dataframe(), check_dtype=False)
    assert opened.parity("text").layout.title.text == result.parity("text").layout.title.text
    page = report.write(tmp_path / "run").read_text()
    assert "2, 10 shots" in page
    paper = page.split("paper mode beside all seeds")[1]
    assert paper.index(">text<") < paper.index(">random-projection<")


def test_a_saved_result_is_resumed_as_a_run_is(task, vectors, llm, tmp_path, monkeypatch):
    plan = {**PLAN, "labels": ["true", "permuted"], "with_text": [False, True]}
    plan["arms"] = ["text", "random-projection", {"name": "random-projection", "as": "other", "width": 8}]
    study = Study(task, vectors, llm, **plan)
    result = study.run(progress=False)
    result.save(tmp_path / "kept")
    open_run(tmp_path / "kept").save(tmp_path / "again")
    monkeypatch.setattr(Study, "compute", lambda *_: pytest.fail("a finished cell is computed again"))
    by = ["arm", "control", "labels", "with_text", "seed", "item"]
    for name in ("kept", "again"):
        resumed = study.run(tmp_path / name, resume=True, progress=False)
        one, other = (r.to_dataframe().sort_values(by).reset_index(drop=True) for r in (result, resumed))
        pd.testing.assert_frame_equal(one, other, check_dtype=False)
        assert len(open_run(tmp_path / name).to_dataframe()) == len(one)


def test_shots_of_each_querys_own_are_what_its_figures_are_measured_against(task, vectors, llm):
    """R2 of the mean of the shots is 0 by definition, and the order of rows is nothing to any figure."""
    plan = {**PLAN, "arms": ["text", "random-projection"], "controls": ["real", "noise"], "selection": "nearest"}
    result = Study(task, vectors, llm, **plan).run(progress=False)
    frame = result.to_dataframe()
    assert (frame.groupby(["arm", "control", "seed"])["reference"].nunique() > 4).all()
    assert result.baselines().set_index("baseline").loc["mean", "r2"] == pytest.approx(0, abs=1e-12)
    turned = replace(result, predictions=frame[::-1].reset_index(drop=True)).summary().set_index(["arm", "control"])
    here = result.summary().set_index(["arm", "control"]).loc[turned.index]
    assert np.allclose(here["r2"], turned["r2"], atol=1e-9) and np.allclose(here["r2_low"], turned["r2_low"], atol=1e-6)
    failed = frame.assign(prediction=np.nan, status="no number")
    lost = replace(result, predictions=failed).summary()
    simple = result.baselines().set_index("baseline").loc["mean"]
    result.summary()  # a table that was made for other predictions is not shown for these
    result.predictions = failed
    pd.testing.assert_frame_equal(result.summary(), lost)
    assert np.allclose(lost["rmse"], simple["rmse"]) and np.allclose(lost["r2"], 0, atol=1e-12)


def test_the_parity_of_classes_is_their_confusion():
    from tests.toy import toy_study

    result = toy_study(classes=True, arms=["zero-pad"], seeds=2).run(progress=False)
    drawn = result.parity("zero-pad", "noise")
    assert drawn.data[0].type == "heatmap" and "zero-pad, noise" in drawn.layout.title.text


def test_arms_are_compared_on_the_same_shots_and_queries(task, vectors, llm, tmp_path):
    """The difference of a study's own table against noise; turned round with its sides; zero with itself; condition by condition."""
    plan = {**PLAN, "labels": ["true", "permuted"], "shots": [3, 5], "seeds": 3}
    result = Study(task, vectors, llm, **plan).run(tmp_path / "run", progress=False)
    one, other = [a for a in result.summary()["arm"].unique() if a != "text"][:2]
    noise = result.compare(one, other_control="noise").query("metric == 'pearson'").set_index(["labels", "shots"])
    mine = result.summary().query("arm == @one and control == 'real'").set_index(["labels", "shots"]).loc[noise.index]
    assert len(noise) == 4
    for name in ("", "_low", "_high"):
        assert np.allclose(noise["difference" + name], mine["delta_pearson" + name])
    assert np.allclose(noise["p"], mine["p"], equal_nan=True) and np.allclose(noise["one"], mine["pearson"])
    there, back = result.compare(one, other), result.compare(other, one)
    assert np.allclose(there["difference"], -back["difference"]) and np.allclose(there["one"], back["other"])
    assert np.allclose(there["difference_low"], -back["difference_high"]) and there["difference"].abs().max() > 0
    assert (result.compare(one, one)["difference"] == 0).all()
    for alone in ({}, {"other_control": "real"}, {"control": "noise", "other_control": "noise"}):
        with pytest.raises(StudyError, match="would be compared with itself; name another arm"):
            result.compare(one, **alone)
    text = result.compare(one, "text")  # whose prompts always hold the text
    assert len(text) == len(there) and text["difference"].notna().all()
    assert text["other_with_text"].all() and not there["other_with_text"].any() and not text["with_text"].any()
    simple = result.compare(one, baseline="knn").set_index(["labels", "shots", "metric"])
    table = result.baselines().query("baseline == 'knn'").set_index(["labels", "shots"])
    for labels, shots in table.index:
        assert np.isclose(simple.loc[(labels, shots, "rmse"), "other"], table.loc[(labels, shots), "rmse"])
    assert (simple["other_gold_labels"] == simple.index.get_level_values("shots")).all()
    told = result.predictions.assign(gold_labels=result.predictions["shots"] + 7 * (result.predictions["arm"] == other))
    found = replace(result, predictions=told).compare(one, other)
    assert (found["gold_labels"] == found["shots"]).all() and (found["other_gold_labels"] == found["shots"] + 7).all()
    lacks = (result.predictions["arm"] == other) & (result.predictions["labels"] == "permuted")
    less = replace(result, predictions=result.predictions[~lacks])
    assert set(less.compare(one, other)["labels"]) == {"true"}  # labels that one side lacks are compared with nothing
    with pytest.raises(DataError, match=r"no arm 'rige'.*ridge"):
        result.compare(one, "rige")
    with pytest.raises(DataError, match=r"no baseline 'k-nn'.*knn"):
        result.compare(one, baseline="k-nn")
    with pytest.raises(DataError, match="one of the two"):
        result.compare(one, other, baseline="knn")
    with pytest.raises(DataError, match="'zero'"):
        result.compare(one, control="zero")
    opened = open_run(tmp_path / "run")
    pd.testing.assert_frame_equal(opened.compare(one, other), there, check_dtype=False)
    with pytest.raises(DataError, match="baselines"):
        opened.compare(one, baseline="knn")


def test_a_parity_plot_is_of_one_condition_and_says_which(task, vectors, llm):
    """By itself the first with true labels; that of a run with one condition alone names none."""
    plan = {**PLAN, "with_text": [False, True], "labels": ["permuted", "true"], "shots": [2, 4], "queries": 5}
    result = Study(task, vectors, llm, **plan).run(progress=False)
    of = lambda **at: result.predictions.query(" and ".join(f"{k} == {v!r}" for k, v in at.items()))  # noqa: E731
    for asked, words in (
        ({}, "ridge, real, without text, true labels, 2 shots"),
        ({"shots": 4, "with_text": True}, "ridge, real, with text, true labels, 4 shots"),
        ({"labels": "permuted"}, "ridge, real, without text, permuted labels, 2 shots"),
    ):
        figure = result.parity("ridge", **asked)
        mine = of(arm="ridge", control="real", **{"with_text": False, "labels": "true", "shots": 2} | asked)
        assert f"<b>{words}</b>" in figure.layout.title.text and len(mine) == 15
        np.testing.assert_array_equal(figure.data[1].y, mine["prediction"].astype(float))
    assert "<b>text, real, true labels, 2 shots</b>" in result.parity("text").layout.title.text
    one = replace(result, predictions=of(with_text=False, labels="true", shots=2))
    assert "<b>ridge, noise</b>" in one.parity("ridge", "noise", shots=2).layout.title.text
    with pytest.raises(DataError, match=r"are of shots=3; there are: .*with text, true labels, 4 shots"):
        result.parity("ridge", shots=3)
    with pytest.raises(DataError, match=r"no condition 'shot'; did you mean 'shots'"):
        result.parity("ridge", shot=3)
    with pytest.raises(DataError, match=r"no predictions of arm 'text' under 'noise'; valid: real"):
        result.parity("text", "noise")


@pytest.mark.parametrize(
    ("layout", "with_text", "says"),
    [
        ("{text} -> {label}", False, "shot has no {item}"),
        ("{text} -> {label}", True, "shot has no {item}"),
        ({"shot": "{item} -> {label}", "query": "{text} ->"}, False, "query has no {item}"),
        ({"shot": "{item} -> {label}", "query": "{text} {item} ->"}, False, "query says {text}"),
        ({"shot": "{text} {item} -> {label}"}, False, "shot says {text}"),
        ({"shot": "{item} -> {label}", "query": "->"}, True, "a query needs {item}"),
    ],
)
def test_a_layout_that_hides_the_vector_or_shows_the_text_is_refused(task, vectors, llm, layout, with_text, says):
    """Arms and controls would all be one prompt, with the text that the study asks to leave out."""
    with pytest.raises(StudyError, match=re.escape(says)):
        Study(task, vectors, llm, **{**PLAN, "layout": layout, "with_text": with_text})
    if says.startswith("shot"):  # of text alone there is nothing to hide
        Study(task, vectors, llm, **{**PLAN, "layout": layout, "arms": ["text"]})


def test_a_layout_may_show_the_text_itself_where_text_is_asked_for(task, vectors, llm):
    """Also with a map that looks at the labels' tokens: they are those of the plain layout."""
    plan = {**PLAN, "arms": ["ridge"], "with_text": True}
    own, plain = (Study(task, vectors, llm, **{**plan, "layout": x}) for x in ("{text}: {item} -> {label}", "arrow"))
    assert own.material.tokens.label_ids == plain.material.tokens.label_ids
    assert (own.run(progress=False).to_dataframe()["status"] == "ok").all()


def test_numbers_of_numpy_are_numbers(task, vectors, llm, tmp_path):
    arms = [{"name": "random-projection", "width": np.int64(8)}, {"name": "ridge", "budget": np.int32(6)}]
    plan = {
        **PLAN,
        "arms": arms,
        "with_text": np.bool_(False),
        "shots": np.int64(4),
        "seeds": np.array([0, 1]).tolist(),
    }
    plain = {**PLAN, "arms": [{"name": "random-projection", "width": 8}, {"name": "ridge", "budget": 6}], "seeds": 2}
    study = Study(task, vectors, llm, **plan)
    study.run(tmp_path / "run", progress=False)
    assert study.plan == Study(task, vectors, llm, **plain).plan
    Study(task, vectors, llm, **plain).run(tmp_path / "run", resume=True, progress=False)  # it is the same study


@pytest.mark.parametrize("given", [[], "array", ["array", 3], [3]])
def test_vectors_that_are_none_are_refused_by_what_they_are(task, vectors, llm, given):
    given = vectors.values if given == "array" else [vectors.values if g == "array" else g for g in given]
    with pytest.raises(StudyError, match="takes Vectors"):
        Study(task, given, llm, **PLAN)


@pytest.mark.parametrize("change, what", [(lambda v: v * 0, "zero"), (lambda v: v * 0 + v[:1] * (1 + 1e-7 * (v > 0)), "the same")])  # fmt: skip
def test_vectors_that_do_not_differ_are_refused_where_an_arm_maps_them(task, vectors, llm, change, what):
    """Those of the pool, of one of several kinds, and up to rounding; a column that differs among others that do not is enough."""
    values = vectors.values.copy()
    values[task.pool] = change(values[task.pool])
    alike = Vectors(values, vectors.ids, "alike/1")
    for given in (alike, [vectors, alike], repeat(alike, 2)):
        with pytest.raises(DataError, match=f"the 30 vectors of 'alike/1' in the pool of task 'toy' are all {what}"):
            Study(task, given, llm, **PLAN)
        Study(task, given, llm, **{**PLAN, "arms": ["text", "random-noise"]})
    values[task.pool[3], 2] += 1e-3
    Study(task, Vectors(values * 1e3 + 1e6 * (np.arange(10) == 7), vectors.ids, "alike/1"), llm, **PLAN)


@pytest.mark.parametrize(
    "order, says",
    [
        (lambda task, vectors, llm: (vectors, task, llm), "a Task, then its Vectors, then an LLM, and the first is Vectors"),
        (lambda task, vectors, llm: (task, vectors, "smollm2-135m"), r"an LLM that is loaded, not 'smollm2-135m'; load it"),
        (lambda task, vectors, llm: (task, llm, vectors), "takes Vectors"),
        (lambda task, vectors, llm: (task, vectors, vectors), "loaded, not Vectors"),
    ],
)  # fmt: skip
def test_what_a_study_is_made_of_is_refused_by_what_it_is(task, vectors, llm, order, says):
    with pytest.raises(StudyError, match=says):
        Study(*order(task, vectors, llm), **PLAN)


def test_conditions_of_the_text_arm_alone_stand_in_the_table(task, vectors, llm):
    result = Study(
        task, vectors, llm, **{**PLAN, "arms": ["text"], "shots": [2, 4], "labels": ["true", "permuted"]}
    ).run(progress=False)
    header, body = tables.rows(result.summary(), result.baselines(), "u")
    assert {"shots", "labels"} <= set(header) and "with_text" not in header
    assert len({tuple(row[: header.index("shots") + 2]) for row in body}) == len(body)


def test_one_seed_claims_nothing_of_new_ones(task, vectors, llm):
    one, three = (Study(task, vectors, llm, **{**PLAN, "seeds": n}).run(progress=False).summary() for n in (1, 3))
    assert "over 1 seed; each" in tables.text(one) and "new items only" in tables.text(one)
    assert "over 3 seeds;" in tables.text(three) and "new seeds and new items" in tables.text(three)


def test_what_cannot_be_is_refused_before_anything_runs(task, vectors, llm):
    with pytest.raises(DataError, match=r"30 items in its pool .* 31 shots"):
        Study(task, vectors, llm, **{**PLAN, "shots": 31})
    with pytest.raises(DataError, match="no vector"):
        Study(task, vectors.take(task.ids[:50]), llm, **PLAN)
    fields = {k: getattr(task, k) for k in task.__dataclass_fields__}
    bare = Task(**{**fields, "text": None})
    with pytest.raises(StudyError, match="no text"):
        Study(bare, vectors, llm, **PLAN)
    long = Task(**{**fields, "text": tuple("ab " * 400 for _ in task.ids)})
    with pytest.raises(DataError, match="context"):
        Study(long, vectors, llm, **PLAN).run(progress=False)


def test_items_that_are_refused_together_are_left_out_in_one_pass(task, llm):
    from icrl_lab.studies.loading import _fits, _taken

    fields = {k: getattr(task, k) for k in task.__dataclass_fields__}
    texts = tuple("ab " * 400 + t if i % 2 else t for i, t in enumerate(task.text))
    passes = []
    left, _ = _taken(Task(**{**fields, "text": texts}), "drop", lambda t: (passes.append(t), _fits(t, llm)))
    assert left.ids == task.ids[::2] and len(passes) == 2
    assert [d.id for d in left.dropped] == list(task.ids[1::2])
    assert all(repr(d.id) in d.reason for d in left.dropped)


@pytest.mark.real
@pytest.mark.slow
def test_the_whole_pipeline_finds_a_planted_signal_and_none_where_there_is_none(smollm2):
    """Real model, synthetic task y = w.x + noise: found through the ridge map, not found where vectors are another's."""
    task = lab.load_task("synthetic", n=300, d=8, noise=0.1)
    vectors = lab.encode(task, "raw")
    plan = dict(
        arms=["ridge", "moments-vocab x4"],
        controls=["real", "noise"],
        with_text=False,
        labels="true",
        shots=20,
        seeds=5,
        queries=48,
    )
    found = (
        Study(task, vectors, smollm2, **plan).run(progress=False).summary().query("control == 'real'").set_index("arm")
    )
    assert found.loc["ridge", "verdict"] == "uses the vector" and found.loc["ridge", "pearson_low"] > 0
    turn = np.random.default_rng(5).permutation(len(task))
    empty = Vectors(vectors.values[turn], task.ids, vectors.space + "/turned")
    null = Study(task, empty, smollm2, **plan).run(progress=False).summary().query("control == 'real'")
    assert (null["verdict"] == "no evidence").all()
    assert (null["pearson_low"] < 0).all()


def test_a_mixture_is_the_mean_of_what_its_arms_say_and_costs_no_forward_pass_beside_them(task, vectors, llm, tmp_path):
    alone = ["random-projection x3", {"name": "ridge", "budget": 6, "slot_scale": 1.0}]
    mixed = {"name": "random-projection", "draws": 3, "also": [alone[1]]}
    asked = {**PLAN, "label_format": "letter", "controls": ["real", "noise"], "seeds": 2}
    both = Study(task, vectors, llm, **{**asked, "arms": [*alone, mixed]})
    frame = both.run(tmp_path / "run", progress=False).to_dataframe()
    one, other, mix = (
        frame[frame["arm"] == arm.label].set_index(["control", "seed", "item"]) for arm in both.plan.arms
    )
    assert both.plan.arms[2].label == "random-projection x3 + ridge budget=6 slot_scale=1"
    assert np.allclose(mix["prediction"], (one["prediction"] + other["prediction"]) / 2, rtol=1e-6)
    assert not np.allclose(one["prediction"], other["prediction"], rtol=1e-3)
    assert (mix["draws"] == 4).all() and (mix["gold_labels"] == 6).all() and (one["gold_labels"] == 4).all()
    without = Study(task, vectors, llm, **{**asked, "arms": alone})
    without.run(progress=False)
    assert both.engine.computed == without.engine.computed
    only = Study(task, vectors, llm, **{**asked, "arms": [mixed]}).run(tmp_path / "run2", progress=False)
    assert np.allclose(
        only.to_dataframe().set_index(["control", "seed", "item"])["prediction"], mix["prediction"], rtol=1e-5
    )
    # what is killed goes on; the manifest's plan is the study's
    again = Study(task, vectors, llm, **{**asked, "arms": [mixed]}).run(tmp_path / "run2", resume=True, progress=False)
    assert again.to_dataframe().equals(only.to_dataframe())
    assert plan_of(only.manifest["study"]["study"]).arms == plan_of({**asked, "arms": [mixed]}).arms
    assert scene(both, both.plan.arms[2].label).cell.arm == both.plan.arms[0]  # a probe looks at prompts of one arm


def test_repeated_shots_stand_twice_and_letters_are_read(task, vectors, llm):
    once, twice = (
        {
            **PLAN,
            "arms": ["random-projection"],
            "controls": ["real"],
            "repeat": r,
            "label_format": "letter",
            "layout": "space",
        }
        for r in (1, 2)
    )
    a, b = Study(task, vectors, llm, **once), Study(task, vectors, llm, **twice)
    (one, _), (two, _) = (s.material.rendered(s.cells()[0], 0) for s in (a, b))
    for x, y in zip(one, two):
        shots = (x.ids == SLOT).sum() - 1
        assert (y.ids == SLOT).sum() == 2 * shots + 1
        assert (y.vectors[:shots] == y.vectors[shots:-1]).all() and (y.vectors[-1] == x.vectors[-1]).all()
    frame = b.run(progress=False).to_dataframe()
    assert set(frame["raw"]) <= set("abcdefghij") and (frame["status"] == "ok").all()


def test_label_tokens_are_those_of_the_prompt(task, vectors, llm):
    for layout, fmt in (("space", "letter"), ("arrow", "digit"), ("arrow", "as-written")):
        plan = plan_of(
            {**PLAN, "arms": ["random-projection"], "controls": ["dummy"], "layout": layout, "label_format": fmt}
        )
        material = Material(task, vectors, llm, plan)
        cell = next(cells(plan))
        (prompt, *_), (group,) = material.rendered(cell, 0)
        shown = [prompt.ids[s.start : s.stop].tolist() for s in prompt.spans if s.role == "label"]
        for written, ids in zip(group.written, shown):
            wanted = list(material.tokens.label_ids[written])
            n = min(len(ids), len(wanted))  # a space before the label may stand on either side of the span
            assert ids[-n:] == wanted[-n:] and llm.tokenizer.decode(wanted).strip() == written


def test_slots_that_repeat_a_vector_change_nothing_but_the_prompts(task, vectors, llm):
    rng = np.random.default_rng(9)
    other = Vectors(rng.standard_normal((len(task), 7)), task.ids, "other/1")
    arms = [{"name": "pca-text", "dims": 3}, "random-projection", "random-noise", "ridge"]
    plan = plan_of({**PLAN, "arms": arms, "controls": ["real"], "selection": "random", "shots": 5})
    one, four = (Material(task, [v, other], llm, plan) for v in (vectors, repeat(vectors, 4)))
    assert (one.vectors.values == four.vectors.values).all() and one.vectors.space == four.vectors.space
    for cell in cells(plan):
        (a, shown), (b, same) = one.rendered(cell, 0), four.rendered(cell, 0)
        assert [g.positions.tolist() for g in shown] == [g.positions.tolist() for g in same]
        for p, q in zip(a, b):
            if cell.arm.name == "pca-text":
                assert (p.ids == q.ids).all()
                continue
            first, second = p.vectors.reshape(-1, 2, llm.width), q.vectors.reshape(-1, 5, llm.width)
            close = 1e-5 * np.abs(first).max()  # a product of more rows may round otherwise
            assert np.abs(second[:, :4] - first[:, :1]).max() < close
            assert np.abs(second[:, 4:] - first[:, 1:]).max() < close
    near = replace(plan, arms=plan.arms[1:2], selection=("nearest",))
    a, b = (Material(task, [v, other], llm, near).shots(next(cells(near)), 0) for v in (vectors, repeat(vectors, 4)))
    assert [g.positions.tolist() for g in a] == [g.positions.tolist() for g in b]
    asked = {**PLAN, "arms": ["random-projection"]}
    two, three = (manifest(Study(task, repeat(vectors, n), llm, **asked), 0.0)["inputs"] for n in (2, 3))
    assert two != three  # they are other studies


def test_two_encoders_give_two_slots_each_with_its_own_map(task, vectors, llm):
    rng = np.random.default_rng(9)
    other = Vectors(rng.standard_normal((len(task), 7)), task.ids, "other/1")
    plan = plan_of({**PLAN, "arms": ["random-projection", "ridge"], "controls": ["real", "shuffled"]})
    both, one = (Material(task, v, llm, plan) for v in ([vectors, other], vectors))
    for cell in cells(plan):
        pair = [p.vectors for p in both.rendered(cell, 0)[0]]
        first = [p.vectors for p in one.rendered(cell, 0)[0]]
        assert all(len(p) == 2 * len(f) for p, f in zip(pair, first))
        if cell.control == "real":
            assert all(
                (p[::2] == f).all() for p, f in zip(pair, first)
            )  # the first kind's slots are as they were alone
        a, b = both.fitting.slot_maps(cell, 0)
        assert (a.source, b.source) == ("toy/1", "other/1") and a.recipe["seed"] != b.recipe["seed"]
    with pytest.raises(DataError, match="no vector"):
        Material(task, [vectors, other.take(task.ids[:9])], llm, plan)
    result = Study(task, [vectors, other], llm, **{**PLAN, "arms": ["random-projection"]}).run(progress=False)
    assert set(result.to_dataframe()["encoder"]) == {"toy/1 + other/1"}
