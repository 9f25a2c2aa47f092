"""The lens ends in the model's own answer, and a probe finds what was planted and nothing else."""

import numpy as np
import pytest

from icrl_lab import stats
from icrl_lab.errors import DataError, StudyError
from icrl_lab.plots import lens as plots
from icrl_lab.probes.lens import lens
from icrl_lab.probes.linear import Labels, held_out, labels_for, p_values, score, within
from icrl_lab.probes.scene import scene
from icrl_lab.studies import Study
from icrl_lab.values import Reading, Vectors
from tests.toy import PLAN, toy_llm, toy_study, toy_task

CASES = {
    "llama": dict(name="llama", tokenizer="digits", label_format="letter", arms=["zero-pad", "text"]),
    "gemma3": dict(name="gemma3", tokenizer="unigram", label_format="digit", arms=["random-projection"]),
    "classes": dict(name="llama", tokenizer="gpt2", classes=True, arms=["zero-pad"], seeds=1),
}


def planted(seed=0):
    """A study whose encoder knows the target: it stands among nine other numbers."""
    task = toy_task()
    values = np.random.default_rng(seed).standard_normal((len(task), 10))
    values[:, 3] = 3 * task.targets
    plan = {**PLAN, "queries": 30, "arms": ["zero-pad"], "seeds": 2, "shots": 3}
    return Study(task, Vectors(values, task.ids, "knows/1"), toy_llm(), **plan)


@pytest.fixture(scope="module", params=CASES)
def read(request):
    study = toy_study(queries=20, shots=3, **CASES[request.param])
    return study, lens(study, permutations=1, top=3)


def test_at_the_last_depth_it_is_the_models_own_answer(read):
    study, reading = read
    last = reading.data.sizes["depth"] - 1
    assert last == study.llm.model.config.num_hidden_layers and reading.about["lens against answer"] < 1e-5
    for seed in reading.data["seed"].values:
        for control in ("real", "noise"):
            own = scene(study, control=control, seed=int(seed)).read()
            assert np.abs(reading["outcome"].sel(control=control, seed=seed, depth=last).values - own).max() < 1e-4
    assert np.allclose(reading["final"].sel(depth=last), 1)


def test_the_words_of_the_last_depth_are_the_next_tokens(read):
    study, reading = read
    one = scene(study, seed=int(reading.data["seed"][0]))
    places = np.flatnonzero(reading.data["kind"].values == "answer")
    assert len(places) == 4
    for place in places:
        prompt = one.prompts[one.ids.index(str(reading.data["item"].values[place]))]
        logp = study.engine.next_token([prompt])[0]
        shown = reading.data.isel(place=place, depth=-1)
        assert np.allclose(shown["probability"], np.exp(np.sort(logp)[::-1][:3]), atol=1e-5)
        best = study.llm.tokenizer.decode([int(logp.argmax())]).replace(" ", "␣").replace("\n", "⏎")
        assert str(shown["token"].values[0]) == best or "�" in str(shown["token"].values[0])


def test_a_state_that_all_queries_share_says_nothing(read):
    _, reading = read
    at = {"control": "real", "depth": 0}
    assert float(reading["score"].sel(position="answer", **at)) == 0 and float(reading["target"].sel(**at)) == 0
    assert np.ptp(reading["outcome"].sel(**at).values, axis=-1).max() == 0 or "true class" in reading.about["units"]


@pytest.mark.real
def test_the_real_models_lens_ends_in_its_answer(smollm2):
    task = toy_task()
    study = Study(
        task,
        Vectors(np.random.default_rng(1).standard_normal((60, 10)), task.ids, "t/1"),
        smollm2,
        **PLAN | {"queries": 10},
    )
    reading = lens(study, "zero-pad", seeds=[0], permutations=1)
    own = scene(study, "zero-pad", seed=0).read()
    assert np.abs(reading["outcome"].sel(control="real", seed=0, depth=30).values - own).max() < 1e-3
    assert reading.about["lens against answer"] < 1e-3


def test_correlations_have_the_studys_intervals():
    reading = lens(toy_study(queries=30, seeds=3, arms=["zero-pad"]), permutations=1)
    target = toy_task().targets[[int(i[4:]) for i in reading.data["query"].values]]
    for depth in (1, 3):
        table = reading["outcome"].sel(control="real", depth=depth).values
        expected = stats.interval(table, target, "pearson")
        got = [float(reading[n].sel(control="real", depth=depth)) for n in ("target", "target_low", "target_high")]
        assert np.allclose(got, [expected.estimate, expected.low, expected.high], atol=1e-6)


def test_a_planted_label_is_found_at_the_slot_and_not_under_noise():
    reading = lens(planted(), permutations=39)
    slot = reading.data.sel(position="slot", depth=0)
    assert float(slot["score"].sel(control="real")) > 0.8 and float(slot["score_q"].sel(control="real")) == 1 / 40
    assert abs(float(slot["score"].sel(control="noise"))) < 0.5 and float(slot["score_q"].sel(control="noise")) > 0.05
    assert float(slot["gain_low"]) > 0 and float(reading["ceiling"]) > 0.8
    assert float(slot["r2"].sel(control="real")) > 0.5
    assert "finds the label" in reading.about["says"][2] and "noise" in reading.about["says"][2]


# ------------------------------------------------------------------------------------------------ the probe


@pytest.mark.parametrize("classes", [False, True])
def test_a_planted_direction_is_found_and_shuffled_labels_are_not(classes):
    rng = np.random.default_rng(1)
    states = rng.standard_normal((61, 140)) * 5 + 2  # more dimensions than items
    y = states[:, :4].sum(1) / 5 + 0.5 * rng.standard_normal(61)
    states[:, 4:20] += 8 * y[:, None]
    labels = labels_for(np.digitize(y, [-1, 4]) if classes else y, 19, seed=3)
    found = score(held_out(states, labels), labels)
    assert found[0] > (0.5 if classes else 0.8) and np.abs(found[1:]).max() < 0.45
    assert p_values(found)[0] == 1 / 20


def random_p(rng, n, width, permutations, classes=False, cells=1):
    labels = labels_for(
        rng.integers(0, 2, n) if classes else rng.standard_exponential(n), permutations, int(rng.integers(99))
    )
    return p_values(np.array([score(held_out(rng.standard_normal((n, width)), labels), labels) for _ in range(cells)]))


def test_the_null_is_calibrated():
    rng = np.random.default_rng(2)
    p, q = (np.array(v) for v in zip(*(random_p(rng, 25, 30, 19, cells=3) for _ in range(40))))
    for level in (0.05, 0.25, 0.5):
        spread = 2.6 * np.sqrt(level * (1 - level) / len(p))
        assert abs((p[:, 0] <= level + 1e-9).mean() - level) < spread
        assert abs((q.min(1) <= level + 1e-9).mean() - level) < spread  # of any of three


def test_the_null_of_classes_is_calibrated():
    rng = np.random.default_rng(3)
    p = np.array([random_p(rng, 24, 30, 9, classes=True)[0][0] for _ in range(6)])
    assert abs(p.mean() - 0.55) < 2.6 * np.sqrt(0.0825 / 6)  # uniform on 0.1, 0.2, ..., 1


def test_one_seed_is_no_test_of_real_less_noise():
    """Out-of-fold predictions of one seed share their fits: a fifth of such p-values would be below .05 where there is nothing."""
    for seeds, tested in ((1, False), (2, True)):
        found = lens(toy_study(queries=20, shots=3, arms=["zero-pad"], seeds=seeds), permutations=1)
        for name in ("gain_p", "gain_q", "unsaid_p"):
            assert np.isfinite(found[name].values).all() == tested and np.isnan(found[name].values).all() != tested
        assert ("not tested, for one seed" in found.about["says"][-1]) != tested
        assert any("intervals of probes are too narrow" in limit for limit in found.about["limits"]) != tested


def test_a_state_never_holds_less_than_what_is_said_of_it():
    """The answer is a function of the last state: where the probe finds less, that is the probe's."""
    from icrl_lab.probes.lens import _says

    found = lens(toy_study(queries=20, shots=3, arms=["zero-pad"]), permutations=1).data.copy()
    for gap, says in ((-0.8, "the probe finds less than the answer says"), (0.8, "holds more than it says")):
        found["unsaid"], found["unsaid_p"] = gap, 0.001
        assert says in _says(found)[-1]


def test_an_interval_ends_where_its_units_do():
    found = lens(toy_study(queries=12, shots=3, arms=["zero-pad"], seeds=2), permutations=1)
    for name, least, most in (("gain", -2, 2), ("mass", 0, 1), ("final", -1, 1), ("unsaid", -2, 2)):
        low, high = found[f"{name}_low"].values, found[f"{name}_high"].values
        assert least <= low.min() and high.max() <= most and (low <= found[name].values + 1e-12).all()


def test_an_items_own_label_does_not_reach_its_prediction():
    rng = np.random.default_rng(4)
    states, y = rng.standard_normal((31, 50)), rng.standard_normal(31)
    other = y.copy()
    other[7] += 100
    one, two = (held_out(states, labels_for(v, 1))[0, 0] for v in (y, other))
    own = labels_for(y, 1).fold
    assert np.abs(one - two)[own == own[7]].max() < 1e-9  # nor that of anything held out with it
    assert np.abs(one - two)[own != own[7]].min() > 1e-3


def test_a_probe_that_learned_nothing_scores_zero():
    y = np.random.default_rng(5).standard_normal(40)
    labels = labels_for(y, 1)
    mean = np.empty(40)
    for train, held in labels.splits:
        mean[held] = y[train].mean()
    assert np.corrcoef(mean, y)[0, 1] < -0.1  # it would seem to be worse than nothing
    assert score(np.stack([mean, mean])[:, None], labels)[0] == 0
    assert np.allclose(within(mean + labels.fold, labels.fold), 0)


def test_rare_classes_are_left_out_and_too_few_items_refused():
    labels = labels_for(np.repeat([0, 1, 2], [12, 3, 15]), 2)
    assert isinstance(labels, Labels) and labels.columns == (0, 2) and len(labels.kept) == 27
    assert labels.truth.shape == (2, 30) and labels.sought.shape == (3, 2, 27)
    with pytest.raises(DataError, match="at least 10 queries"):
        labels_for(np.arange(9.0))
    with pytest.raises(DataError, match="two classes"):
        labels_for(np.repeat([0, 1], [12, 3]))
    with pytest.raises(DataError, match="labels have several"):
        lens(toy_study(queries=30, label_format="two-digit"))
    with pytest.raises(StudyError, match="at least 1"):
        lens(toy_study(queries=30), top=0)


def test_a_reading_is_saved_and_drawn(read, tmp_path):
    _, reading = read
    reading.save(tmp_path / "lens.nc")
    again = Reading.load(tmp_path / "lens.nc")
    drawn = plots.figures(again)
    assert next(iter(drawn)) == "lens" and {"mass", "tokens", "shots", "noise"} < set(drawn)
    lines = {t.name: t for t in again.plot().data}
    assert np.allclose(lines["with the final answer"].y, reading["final"].sel(control="real"))
    probe = [t for t in again.plot().data if t.name == "probe, noise vectors"]
    assert np.allclose(probe[1].y, reading["score"].sel(control="noise", position="answer"))
    assert reading.about["n"] in drawn["lens"].layout.title.text
    cells = drawn["tokens"].data[0]
    assert cells.text[-1][1] == plots.style.safe(str(reading["token"].values[1, -1, 0]), 9)
