"""Read or only a place? Verdicts recover what was planted, cuts are what they claim to be, and nothing is claimed of nothing."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, pearsonr

from icrl_lab import stats
from icrl_lab.errors import DataError, StudyError
from icrl_lab.plots import pause as plots
from icrl_lab.probes import pause as room
from icrl_lab.probes import verdict as verdicts
from icrl_lab.probes.pause import pause
from icrl_lab.probes.scene import scene
from icrl_lab.probes.verdict import CLAIMS, CONTROLS, PLACEBO, SLOTS, Cell, judge
from icrl_lab.studies import Study
from icrl_lab.values import Reading
from tests.planted import planted_study
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

FAMILIES = [("llama", "digits"), ("gemma3", "unigram")]

# ---------------------------------------------------------------------------------- verdicts, from planted tables


def tables(skill, *, seeds=4, queries=160, seed=0, loose=(), moves=0.0, frame=0.0):
    """Predictions with a given correlation to the target in each cell, alike in everything else.

    skill  by control, "cut" for the cell in which no slot is seen; those in `loose` have errors of their own
    moves, frame  how far the cut and its placebo move an answer
    """
    rng = np.random.default_rng(seed)
    target = rng.standard_normal(queries)
    shared = rng.standard_normal(queries) + 0.3 * rng.standard_normal((seeds, queries))
    said = {}
    for control, r in skill.items():
        error = rng.standard_normal((seeds, queries)) if control in loose else shared
        cell = Cell("any", True, SLOTS) if control == "cut" else Cell(control, True)
        said[cell] = r * target + np.sqrt(1 - r**2) * error
    outcome = {cell: table.copy() for cell, table in said.items()}
    outcome[Cell("any", True, SLOTS)] = outcome[Cell("real", True)] + moves * rng.choice([-1, 1], (seeds, queries))
    outcome[Cell("real", True, PLACEBO)] = outcome[Cell("real", True)] + frame * rng.choice([-1, 1], (seeds, queries))
    return said, outcome, target


def word(skill, **options) -> str:
    base = {"real": 0.5, "shuffled": 0.5, "noise": 0.5, "dummy": 0.5, "cut": 0.5, "text": 0.5}
    said, outcome, target = tables({**base, **skill}, **options)
    found = judge(said, outcome, target, "pearson", 0.1, fixed=True)
    assert list(found.verdicts) == ["with text"]
    return found.verdicts["with text"]


@pytest.mark.parametrize(
    "expected,skill,options",
    [
        ("read", {"real": 0.7}, {}),
        ("read", {"real": 0.7, "noise": 0.7}, {}),  # the place counts, too; content comes first
        ("read", {"real": 0.7, "text": 0.9}, {}),  # read, although the text alone does better
        ("harmful", {"real": 0.3}, {}),
        ("harmful", {"text": 0.8}, {}),  # worse than without the vectors
        ("harmful", {"noise": 0.2}, {}),  # a place that disturbs
        ("a place to pause", {"dummy": 0.2, "cut": 0.2, "text": 0.2}, {}),
        ("a place to pause", {"cut": 0.2}, {}),
        ("a place at least", {"dummy": 0.2, "cut": 0.2, "text": 0.2}, {"loose": ("shuffled",), "queries": 60}),
        ("seen, not read", {}, {"moves": 0.5, "frame": 0.1}),
        ("ignored", {}, {"moves": 0.02, "frame": 0.02}),
        ("ignored", {}, {"moves": 0.5, "frame": 0.6}),  # no more than any tokens would
        ("ignored", {}, {"moves": 0.02}),  # surely more than the placebo, and less than counts
        ("no evidence", {}, {"loose": ("real", "shuffled", "noise", "dummy", "cut", "text"), "queries": 24}),
        ("not tested", {"real": 0.9, "shuffled": 0.0}, {"seeds": 1}),
        ("not tested", {"real": 0.9, "shuffled": 0.0}, {"queries": 7}),
    ],
)
def test_each_verdict_is_found_where_it_was_planted(expected, skill, options):
    assert word(skill, **options) == expected


def test_ignored_needs_a_cut_and_an_interval_within_the_margin():
    skill = dict.fromkeys(("real", "shuffled", "noise", "dummy", "cut", "text"), 0.5)
    said, outcome, target = tables(skill, moves=0.01)
    one = judge(said, outcome, target, "pearson", 0.1, fixed=True)
    assert one.verdicts == {"with text": "ignored"}
    uncut = {cell: table for cell, table in said.items() if not cell.cut}
    assert judge(uncut, uncut, target, "pearson", 0.1, fixed=True).verdicts == {"with text": "no evidence"}
    loose = tables(skill, moves=0.01, loose=("shuffled",), queries=60)
    assert judge(*loose, "pearson", 0.1, fixed=True).verdicts == {"with text": "no evidence"}
    assert judge(*loose, "pearson", 0.9, fixed=True).verdicts == {"with text": "ignored"}


def test_differences_are_those_of_the_statistics_room_and_corrected():
    said, outcome, target = tables({"real": 0.6, "shuffled": 0.5, "noise": 0.4, "dummy": 0.5, "cut": 0.3, "text": 0.5})
    found = judge(said, outcome, target, "pearson", 0.1, fixed=True)
    assert [(c.kind, c.name) for c in found.comparisons] == [
        ("content", "real - shuffled, with text"),
        ("place", "noise - dummy, with text"),
        ("place", "noise - any vector, slots cut, with text"),
        ("text", "real + text - text alone"),
        ("text", "dummy + text - text alone"),
    ]
    for i, c in enumerate(found.comparisons):
        one = stats.paired(said[c.more], said[c.less], target, "pearson")
        assert (found.difference.estimate[i], found.difference.p[i]) == (one.estimate, one.p)
    assert np.allclose(found.q, stats.holm(found.difference.p)) and (found.q >= found.difference.p).all()
    means = [np.mean([pearsonr(row, target).statistic for row in table]) for table in said.values()]
    assert np.allclose(found.skill.estimate, means)


def test_a_null_world_gets_claims_at_the_nominal_rate():
    """Answers with items and seeds of their own, none of which knows the target."""
    rng, claims, halves = np.random.default_rng(0), 0, 0
    names = [Cell(c, t) for t in (False, True) for c in ("real", "shuffled", "noise", "dummy")]
    names += [Cell("any", False, SLOTS), Cell("any", True, SLOTS), Cell("text", True)]
    for _ in range(150):
        item = rng.standard_normal(24)
        said = {c: item + rng.standard_normal(24) + 0.7 * rng.standard_normal((3, 24)) for c in names}
        found = judge(said, said, rng.standard_normal(24), "pearson", 0.1, fixed=False)
        claims += sum(w in CLAIMS for w in found.verdicts.values())
        halves += len(found.verdicts)
    assert halves == 300 and claims <= binom.ppf(0.999, halves, 0.05)


def test_rounding_has_no_skill():
    """Answers that should be one, and differ in the sixth digit, are one."""
    said, outcome, target = tables({"real": 0.5, "shuffled": 0.5, "noise": 0.5, "dummy": 0.5, "cut": 0.5, "text": 0.5})
    said[Cell("dummy", True)] = 3 + 1e-6 * target * np.ones((4, 1))
    found = judge(said, outcome, target, "pearson", 0.1, fixed=True)
    at = found.cells.index(Cell("dummy", True))
    assert (found.skill.estimate[at], found.skill.low[at], found.skill.high[at]) == (0, 0, 0)


# ---------------------------------------------------------------------------------------------- what a cut is


@pytest.mark.parametrize("name,tokenizer", FAMILIES)
@pytest.mark.parametrize("with_text", [False, True])
def test_slots_that_nobody_sees_are_all_the_same(name, tokenizer, with_text):
    study = toy_study(name, tokenizer, queries=5)
    whole, behind, query = [], [], []
    for control in CONTROLS:
        one = scene(study, "random-projection", control, with_text=with_text, seed=1)
        assert room.separable(one)
        whole.append(one.read())
        behind.append(one.read([room._without(p, room._slots(one, i)) for i, p in enumerate(one.prompts)]))
        query.append(one.read([room._without(p, room._slots(one, i, True)) for i, p in enumerate(one.prompts)]))
    assert np.abs(np.array(behind) - behind[0]).max() < 1e-5
    assert min(np.abs(a - b).max() for i, a in enumerate(whole) for b in whole[:i]) > 1e-3
    assert min(np.abs(a - b).max() for i, a in enumerate(query) for b in query[:i]) > 1e-3  # the shots' are still seen
    if not with_text:  # the query is then seen by nobody
        assert np.ptp(behind[0]) < 1e-5 and max(np.ptp(q) for q in query) < 1e-5


def test_a_cut_that_does_not_cut_is_found_out(monkeypatch):
    monkeypatch.setattr(
        room, "_slots", lambda one, i, query=False: one.parts[i].at("slot", one.parts[i].shown).tolist()
    )
    with pytest.raises(RuntimeError, match="cut slots are read"):
        pause(toy_study(queries=4), seeds=(0,))


@pytest.mark.parametrize("name,tokenizer", FAMILIES)
def test_a_dummy_has_nothing_to_cut_and_is_not_repeated(name, tokenizer):
    study = toy_study(name, tokenizer, queries=8)
    reading = pause(study, "zero-pad", seeds=(0, 1))
    data = reading.data
    cells = list(zip(data["control"].values.tolist(), data["text"].values.tolist(), data["cut"].values.tolist()))
    assert len(set(cells)) == len(cells) == 2 * (5 + 5 + 1 + 2 + 1) + 1
    assert {c for c, _, cut in cells if cut == "nothing"} == {*CONTROLS, "dummy", "text"}
    assert {c for c, _, cut in cells if cut == "query's slot"} == set(CONTROLS)
    assert [c for c, _, cut in cells if cut == "slots"] == ["any", "any"]
    assert not [c for c in cells if c[0] in ("dummy", "text") and c[2] != "nothing"]
    dummy = scene(study, "zero-pad", "dummy", seed=0)
    assert not len(dummy.parts[0].at("slot"))


def test_the_table_is_the_studys_own():
    study = toy_study(queries=8, arms=["zero-pad", "random-projection", "text"], with_text=[False, True])
    found = study.run().predictions
    reading = pause(study, "random-projection")
    for name, *which in (
        ("real", "random-projection", "real", False),
        ("noise + text", "random-projection", "noise", True),
        ("text alone", "text", "real", True),
    ):
        rows = found.set_index(["arm", "control", "with_text"]).sort_index().loc[tuple(which)]
        table = rows.pivot(index="seed", columns="item", values="prediction")[reading.data["query"].values.tolist()]
        assert np.abs(reading["outcome"].sel(cell=name).values - table.to_numpy(float)).max() < 1e-4
        skill = stats.interval(table.to_numpy(float), reading["target"].values, "pearson")
        assert float(reading["skill"].sel(cell=name)) == pytest.approx(skill.estimate, abs=1e-3)
    plain = pause(replace_arms(study, ["random-projection"]), "random-projection")  # the study need not run the text
    assert np.allclose(plain["outcome"].values, reading["outcome"].values, atol=1e-4)


def replace_arms(study, arms):
    return Study(study.task, toy_vectors(study.task), study.llm, **{**PLAN, "queries": 8, "arms": arms})


def test_movements_are_differences_from_the_answer_without():
    reading = pause(toy_study(queries=8))
    out = {c: reading["outcome"].sel(cell=c).values for c in reading.data["cell"].values.tolist()}
    for removal, cut, placebo in (
        ("slots cut, without text", "any vector, slots cut", "real, placebo of slots"),
        ("query's slot cut, with text", "real + text, query's slot cut", "real + text, placebo of query's slot"),
    ):
        real = out["real + text" if removal.endswith("with text") else "real"]
        far, also = np.abs(real - out[cut]), np.abs(real - out[placebo])
        assert float(reading["moved"].sel(removal=removal)) == pytest.approx(far.mean())
        assert float(reading["placebo"].sel(removal=removal)) == pytest.approx(also.mean())
        one = stats.effects(far - also)
        assert float(reading["extra_p"].sel(removal=removal)) == pytest.approx(float(one.p))
    assert np.allclose(reading["extra_q"], stats.holm(reading["extra_p"].values))


@pytest.mark.parametrize("name,tokenizer", FAMILIES)
@pytest.mark.parametrize("with_text", [False, True])
def test_a_placebo_takes_away_as_much_of_nothing(name, tokenizer, with_text):
    one = scene(toy_study(name, tokenizer, queries=6, shots=7, layout="question"), with_text=with_text)
    drawn = [room._placebo(one, i, False, 3) for i in range(6)]
    for i, (at, parts) in enumerate(zip(drawn, one.parts)):
        assert len(at) == len(set(at)) == len(room._slots(one, i)) == 8
        assert set(parts.role[list(at)]) <= set(room.FRAME) and len(parts.role) - 1 not in at and 0 not in at
        (own,) = room._placebo(one, i, True, 3)
        assert parts.shot[own] == parts.shown and parts.role[own] in room.FRAME and own < len(parts.role) - 1
    before = [tuple(p for p in at if parts.shot[p] != parts.shown) for at, parts in zip(drawn, one.parts)]
    assert len(set(before)) == 1  # queries that share their shots lose the same there, and the engine computes it once
    again, other = ([room._placebo(one, i, False, seed) for i in range(6)] for seed in (3, 4))
    assert again == drawn != other


def test_an_answer_read_at_the_slot_cannot_be_parted_from_it():
    """Where a label brings its own space, the last token of "slot label" is the slot."""
    study = toy_study("llama", "gpt2", layout="space", queries=8)
    assert not room.separable(scene(study))
    reading = pause(study)
    assert set(reading.data["cut"].values.tolist()) == {"nothing"} and "moved" not in reading.data
    assert any("read at the query's slot itself" in limit for limit in reading.about["limits"])
    assert not any("ignored" == v for v in reading.about["verdict"].values())
    assert sorted(plots.figures(reading)) == ["differences", "pause"]


# ---------------------------------------------------------------------------------------------- halves and tasks


def test_without_text_a_place_can_only_be_compared_where_prompts_differ():
    same = pause(toy_study(queries=8))
    kinds = list(zip(same.data["kind"].values.tolist(), same.data["of_text"].values.tolist()))
    assert ("place", False) not in kinds and ("place", True) in kinds
    assert any("all dummy prompts of a seed are equal" in limit for limit in same.about["limits"])
    assert float(same["skill"].sel(cell="dummy")) == float(same["skill"].sel(cell="any vector, slots cut")) == 0
    own = pause(toy_study(queries=8, selection="nearest"), seeds=(0, 1))
    kinds = list(zip(own.data["kind"].values.tolist(), own.data["of_text"].values.tolist()))
    assert kinds.count(("place", False)) == 2 and np.ptp(own["outcome"].sel(cell="dummy").values) > 1e-3


def test_a_task_without_text_has_one_half():
    task = replace(toy_task(), text=None)
    reading = pause(Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "queries": 8}))
    assert list(reading.about["verdict"]) == ["without text"] and not reading.data["text"].values.any()
    assert any("no text" in limit for limit in reading.about["limits"])
    assert "text alone" not in reading.data["cell"].values


@pytest.mark.parametrize("name,tokenizer", FAMILIES)
def test_classes_are_counted_right_or_wrong(name, tokenizer):
    study = toy_study(name, tokenizer, classes=True, queries=9)
    reading = pause(study, "zero-pad")
    assert reading.about["metric"] == "accuracy"
    assert np.allclose(reading["skill"].values, reading["right"].values.mean((1, 2)))
    assert ((reading["outcome"].values > 0) == reading["right"].values).all()  # two classes: log-odds of the true one
    one = scene(study, "zero-pad", "shuffled", seed=2, with_text=False)
    assert np.abs(reading["outcome"].sel(cell="shuffled", seed=2).values - one.read()).max() < 1e-4
    assert reading["target"].values.tolist() == [study.task.labels[q] for q in one.queries]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(StudyError, match="has no slots"):
        pause(toy_study(arms=["text", "zero-pad"]), "text")
    for margin in (0, -0.1, 1.0):
        with pytest.raises(StudyError, match="margin"):
            pause(toy_study(), margin=margin)
    with pytest.raises(DataError, match="at least 3"):
        pause(toy_study(), seeds=(0,), queries=2)


# ---------------------------------------------------------------------------------------------- known mechanisms


def test_a_model_that_reads_vectors_reads_them_and_a_blind_one_ignores_them():
    nearest = pause(planted_study("nearest", "qwen2", seeds=4, queries=40, shots=16))
    assert nearest.about["verdict"] == {"without text": "read", "with text": "read"}
    assert float(nearest["extra"].sel(removal="slots cut, with text")) > 0.2
    assert float(nearest["extra_q"].sel(removal="slots cut, with text")) < 0.05
    blind = pause(planted_study("blind", seeds=3, queries=12))
    assert blind.about["verdict"] == {"without text": "ignored", "with text": "ignored"}
    assert float(blind["moved_high"].max()) < 0.02 * float(blind["target"].std())


def test_random_models_give_no_claims():
    words = [
        w
        for seed in range(5)
        for w in pause(planted_study("random", model_seed=seed, data_seed=seed, queries=10, seeds=2, shots=3))
        .about["verdict"]
        .values()
    ]
    assert len(words) == 10 and sum(w in CLAIMS for w in words) <= 2 and words.count("no evidence") >= 8


# ---------------------------------------------------------------------------------------------- reading and figures


def test_the_reading_comes_back_and_is_drawn(tmp_path):
    task = replace(toy_task(), name="<b>toy</b>")
    reading = pause(Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "queries": 8}), margin=0.2)
    reading.save(tmp_path / "pause.nc")
    again = Reading.load(tmp_path / "pause.nc")
    assert again.data.identical(reading.data) and dict(again.about) == dict(reading.about)
    assert again.names[0] == "skill" and 1 <= len(again.about["says"]) <= 5
    for name in again.names:
        assert "units" in again[name].attrs and again[name].attrs["long_name"]
    table = again.to_dataframe()
    assert len(table) == 29 and {"skill", "skill_low", "control", "text", "cut"} <= set(table)
    drawn = plots.figures(again)
    assert list(drawn) == ["pause", "differences", "movements"]
    main = drawn["pause"]
    for half, found in again.about["verdict"].items():
        assert half in main.layout.title.text.lower() and found in main.layout.title.text
    assert len(main.data) == 29 and len(drawn["differences"].data) == again.data.sizes["comparison"]
    for trace in main.data:  # each cell where its number is, with its own interval
        name = trace.hovertemplate.split("<b>")[1].split("</b>")[0].replace("&#x27;", "'")
        cell = again.data.sel(cell=name)
        assert trace.x[0] == float(cell["skill"]) and trace.error_x.array[0] == pytest.approx(
            float(cell["skill_high"] - cell["skill"])
        )
    band = drawn["differences"].layout.shapes[0]
    assert (band.x0, band.x1) == (-0.2, 0.2)
    for figure in drawn.values():
        assert (
            figure.layout.width == 700
            and "<b>toy</b>" not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
            and "n = 3 seeds x 8 queries" in figure.layout.title.text
        )


def test_one_seed_is_not_tested_and_says_so():
    reading = pause(toy_study(queries=8), seeds=(1,))
    assert set(reading.about["verdict"].values()) == {"not tested"} and "one seed" in reading.about["interval"]
    assert np.isnan(reading["difference_q"].values).all() and np.isnan(reading["extra_p"].values).all()
    assert (
        "one seed" in plots.figure(reading).layout.title.text and "not tested" in plots.differences(reading).to_json()
    )


@pytest.mark.real
def test_slots_that_nobody_sees_are_all_the_same_for_the_real_model(smollm2):
    task = toy_task()
    study = Study(task, toy_vectors(task), smollm2, **{**PLAN, "queries": 3, "seeds": 1})
    behind = []
    for control in ("real", "noise"):
        one = scene(study, "random-projection", control, with_text=True)
        behind.append(one.read([room._without(p, room._slots(one, i)) for i, p in enumerate(one.prompts)]))
    assert np.abs(behind[0] - behind[1]).max() < 1e-4 < np.abs(one.read() - behind[0]).max()


def test_the_rules_are_told():
    """Every word that a verdict can be stands in the docstring, with its rule."""
    words = [
        getattr(verdicts, n) for n in ("UNTESTED", "READ", "HARMFUL", "PAUSE", "PLACE", "SEEN", "IGNORED", "NOTHING")
    ]
    assert all(f"        {w}  " in pause.__doc__ for w in words)
