"""The probes of a study file: asked, kept, never computed twice, reopened without a model, shown in the report."""

import pytest

from icrl_lab.errors import DataError, ProbeRefused, StudyError
from icrl_lab.probes import QUESTIONS, probe, running
from icrl_lab.studies import Study, open_run
from icrl_lab.studies.spec import StudySpec
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

ASKED = {
    "questions": ["lens"],
    "arm": "zero-pad",
    "seeds": [0, 2],
    "queries": 12,
    "options": {"lens": {"permutations": 4, "top": 2}},
}


def spec(**probes):
    return StudySpec.from_dict(
        {"task": {"name": "synthetic"}, "study": {**PLAN, "queries": 12}, "probes": {**ASKED, **probes}}
    )


def study(**probes):
    task = toy_task()
    return Study(task, toy_vectors(task), toy_llm(), spec=spec(**probes))


def test_a_run_asks_its_probes_once_and_opens_without_a_model(tmp_path, monkeypatch):
    made = []
    real = running.probe
    monkeypatch.setattr(running, "probe", lambda question, *a, **k: made.append(question) or real(question, *a, **k))
    result = study().run(tmp_path / "run", progress=False)
    assert made == ["lens"] and (tmp_path / "run" / "readings" / "lens.nc").is_file()
    opened = open_run(tmp_path / "run")
    kept = opened.lens()
    assert kept.question == "lens" and kept.about["arm"] == "zero-pad" and opened.study is None
    live = result.lens(arm="zero-pad", seeds=(0, 2), queries=12, permutations=4, top=2)
    first = kept.names[0]
    assert (abs(kept[first].values - live[first].values) < 1e-4).all()
    study().run(tmp_path / "run", resume=True, progress=False)
    assert made == ["lens"]  # the same question is not asked again
    study(seeds=[1]).run(tmp_path / "run", resume=True, progress=False)
    assert made == ["lens", "lens"]  # other options are another question, and the study is still the same one
    with pytest.raises(DataError, match=r"opened without a model.*saved readings: lens"):
        opened.geometry()
    with pytest.raises(DataError, match="with options"):
        opened.lens(queries=3)
    with pytest.raises(DataError, match="no arm 'zeropad'; did you mean 'zero-pad'"):
        opened.lens(arm="zeropad")


def test_a_run_is_saved_elsewhere_with_what_was_probed(tmp_path):
    study().run(tmp_path / "run", progress=False)
    kept = open_run(tmp_path / "run").save(tmp_path / "kept")
    assert open_run(kept).lens().about["says"] == open_run(tmp_path / "run").lens().about["says"]
    assert "<h3>Lens</h3>" in (kept / "report.html").read_text()


def test_the_report_shows_what_was_probed(tmp_path):
    from icrl_lab import report

    study().run(tmp_path / "run", progress=False)
    page = report.write(tmp_path / "run").read_text()
    assert "Inside the model" in page and "<h3>Lens</h3>" in page and 'id="lens-0"' in page
    (tmp_path / "run" / "readings" / "lens.nc").write_bytes(b"CDF\x01 broken")
    with pytest.raises(DataError, match=r"lens\.nc is not a saved reading"):
        report.write(tmp_path / "run")


def test_a_stop_keeps_the_readings_that_are_finished(tmp_path, monkeypatch):
    real = running.probe

    def stops(question, *args, **options):
        if question == "geometry":
            raise KeyboardInterrupt
        return real(question, *args, **options)

    monkeypatch.setattr(running, "probe", stops)
    with pytest.raises(KeyboardInterrupt):
        study(questions=["lens", "geometry"]).run(tmp_path / "run", progress=False)
    opened = open_run(tmp_path / "run")
    assert set(opened.readings()) == {"lens"} and len(opened.predictions)


def test_a_question_that_is_refused_does_not_stop_the_others(tmp_path, monkeypatch):
    real = running.probe

    def refuses(question, *args, **options):
        if question == "geometry":
            raise DataError("too few queries")
        return real(question, *args, **options)

    monkeypatch.setattr(running, "probe", refuses)
    with pytest.raises(ProbeRefused, match="1 of 2 questions could not be asked; geometry: too few queries"):
        study(questions=["geometry", "lens"]).run(tmp_path / "run", progress=False)
    assert set(open_run(tmp_path / "run").readings()) == {"lens"}


def test_an_option_that_cannot_be_is_refused_and_the_next_question_asked(tmp_path):
    wrong = {"geometry": {"neighbours": "8"}, "lens": {"permutations": 4}}
    with pytest.raises(ProbeRefused, match=r"geometry: neighbours is '8'; it must be a whole number, at least 1"):
        study(questions=["geometry", "lens"], options=wrong).run(tmp_path / "run", progress=False)
    assert set(open_run(tmp_path / "run").readings()) == {"lens"}


@pytest.mark.parametrize("key", ["calibrate", "per_token"])
def test_a_probe_says_where_it_reads_classes_otherwise_than_the_table(key):
    from icrl_lab.probes import live

    plain, other = (
        toy_study(classes=True, seeds=2, queries=12, arms=["zero-pad"], **given) for given in ({}, {key: True})
    )
    for asked, told in ((plain, 0), (other, 1)):
        limits = probe("pause", asked).about["limits"]
        answers = {"real": live.ask(asked, query=int(asked.material.queries[0]))}
        for said in (limits, live.says(answers, answers, "this")):
            assert sum(f"scores its classes with {key}" in sentence for sentence in said) == told


WRONG = [
    ("order", {"places": 0}, "places is 0"), ("order", {"squares": 0}, "squares is 0"), ("order", {"queries": []}, "queries is empty"),
    ("order", {"permutations": 2.5}, "permutations is 2.5"), ("order", {"seeds": []}, "seeds is empty"),
    ("order", {"queries": 0}, "queries is 0"), ("lens", {"top": True}, "top is True"), ("lens", {"seeds": [0, 0]}, "seeds has 0 twice"),
    ("geometry", {"neighbours": 2.5}, "neighbours is 2.5"), ("patching", {"groups": []}, "groups is empty"),
    ("patching", {"draws": 0}, "draws is 0"), ("patching", {"verify": -1}, "verify is -1"), ("attention", {"rows": "answer"}, "give a list"),
    ("similarity", {"counts": [0, 2]}, "one of counts is 0"), ("similarity", {"counts": [2, 2]}, "counts has 2 twice"),
    ("similarity", {"shots": 0}, "shots is 0"), ("similarity", {"orders": -1}, "orders is -1"),
    ("similarity", {"curves": ["nearst"]}, "did you mean 'nearest'"), ("attribution", {"methods": []}, "methods is empty"),
    ("attribution", {"steps": 2.5}, "steps is 2.5"), ("pause", {"seeds": []}, "seeds is empty"),
]  # fmt: skip


@pytest.mark.parametrize("question, options, says", WRONG)
def test_an_option_that_cannot_be_is_one_sentence(question, options, says):
    with pytest.raises(StudyError, match=says):
        probe(question, study(), **options)


def test_the_further_questions_refuse_alike():
    from icrl_lab.probes.changing import cuts, inputs
    from icrl_lab.probes.patching import heads
    from icrl_lab.probes.rollout import rollout

    for ask, options, says in (
        (cuts, {"rows": []}, "rows is empty"), (cuts, {"rows": ["answer", "answer"]}, "rows has 'answer' twice"),
        (inputs, {"edits": []}, "edits is empty"), (inputs, {"draws": 0}, "draws is 0"), (rollout, {"rows": []}, "rows is empty"),
        (heads, {"exact": ["anwser"]}, "did you mean 'answer'"), (heads, {"draws": 0}, "draws is 0"),
    ):  # fmt: skip
        with pytest.raises(StudyError, match=says):
            ask(study(), **options)


def test_few_seeds_are_told_as_a_limit():
    two = probe("lens", study(), arm="zero-pad", seeds=(0, 2), queries=12, permutations=4)
    assert any("With 2 seeds" in said for said in two.about["limits"])
    for question, more in (
        ("attention", {}),
        ("patching", {"depths": [0, 1], "draws": 1}),
        ("attribution", {"methods": ["ablation"]}),
    ):
        alone = probe(question, study(), arm="zero-pad", seeds=(0,), queries=4, **more).about
        assert "queries alone, for one seed" in alone["interval"] and alone["n"].startswith("1 seed x 4 queries")
    one = probe("lens", study(), arm="zero-pad", seeds=(0,), queries=12, permutations=4)
    assert not any("seeds an interval" in said for said in one.about["limits"])


@pytest.mark.parametrize(
    "wrong,sentence",
    [
        ({"questions": ["geometri"]}, "did you mean 'geometry'"),
        ({"arm": "ridge"}, "arm 'ridge' is not in the study"),
        ({"queries": 1}, "whole number from 3"),
        ({"options": {"lens": {"permutation": 3}}}, "did you mean 'permutations'"),
        ({"options": {"geometry": {"queries": 3}}}, "options of 'geometry', which it does not ask"),
        ({"option": {}}, "has no key 'option'"),
    ],
)
def test_a_wrong_question_is_one_sentence(wrong, sentence):
    with pytest.raises(StudyError, match=sentence):
        spec(**wrong)


def test_a_study_file_with_probes_reads_back_equal(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(spec().to_toml())
    again = StudySpec.read(path)
    assert again == spec() and again.hash == spec().hash != spec(queries=5).hash


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_has_its_probe_its_figure_and_its_door(question):
    from importlib import import_module

    from icrl_lab.studies.result import StudyResult

    assert callable(getattr(import_module(f"icrl_lab.probes.{question}"), question))
    drawn = import_module(f"icrl_lab.plots.{question}")
    assert callable(drawn.figure) and callable(drawn.figures) and callable(getattr(StudyResult, question))


def test_an_unknown_question_is_refused():
    with pytest.raises(StudyError, match="did you mean 'geometry'"):
        probe("geometri", study())
