"""The instrument reads right: identities of the metrics, coverage of the intervals, honesty of the verdicts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn import metrics as sk

from icrl_lab import stats
from icrl_lab.errors import DataError, StudyError
from icrl_lab.stats import intervals, metrics, simulate, verdicts
from icrl_lab.stats import words as quoted
from icrl_lab.stats.effects import adjusted, effects

TYPICAL, AGREE, DIFFER, STRONG, NONE, DIGIT = simulate.SCENARIOS


def table(seeds=4, items=23, seed=0, step=0.0):
    rng = np.random.default_rng(seed)
    target = rng.gamma(2.0, size=items)
    pred = (
        0.5 * target
        + 0.4 * rng.normal(size=(seeds, 1))
        + 0.3 * rng.normal(size=items)
        + 0.5 * rng.normal(size=(seeds, items))
    )
    reference = target.mean() + 0.1 * rng.normal(size=seeds)
    return (np.round(pred / step) * step if step else pred), target, reference


# ------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("step", [0.0, 1.0])
def test_metrics_are_those_of_scipy_and_sklearn(step):
    pred, target, reference = table(step=step)
    one = {m: metrics.metric(m).values(pred, target, reference) for m in metrics.REGRESSION}
    for s, p in enumerate(pred):
        assert one["pearson"][s] == pytest.approx(scipy_stats.pearsonr(p, target).statistic)
        assert one["spearman"][s] == pytest.approx(scipy_stats.spearmanr(p, target).statistic)
        assert one["rmse"][s] == pytest.approx(sk.root_mean_squared_error(target, p))
        assert one["mae"][s] == pytest.approx(sk.mean_absolute_error(target, p))
    centred = metrics.r2(pred, target, np.full(len(pred), target.mean()))  # with the queries' own mean it is sklearn's
    assert centred == pytest.approx([sk.r2_score(target, p) for p in pred])
    assert metrics.r2(np.tile(reference[:, None], target.shape), target, reference) == pytest.approx(0)
    words = np.array([["a", "b", "b"], ["a", "a", "b"]])
    assert metrics.accuracy(words, np.array(["a", "b", "a"])) == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("name", metrics.METRICS)
@pytest.mark.parametrize("step", [0.0, 1.0])
def test_leaving_an_item_out_is_computing_without_it(name, step):
    pred, target, reference = table(items=11, step=step)
    if name == "accuracy":
        target = np.round(target)
    pred[1] = 2.0
    pred[1, 4] = 5.0  # constant but for one item
    pred[2] = 0.1 + 0.2  # constant
    one = metrics.metric(name)
    left = one.left_out(pred[None], target, reference[None])[0]
    for i in range(11):
        rest = np.arange(11) != i
        assert left[:, i] == pytest.approx(one.values(pred[:, rest], target[rest], reference), abs=1e-12)


def test_a_constant_answer_orders_nothing_and_is_no_nan():
    pred, target, _ = table()
    pred[:] = 1.1
    for name in ("pearson", "spearman"):
        value = stats.interval(pred, target, name)
        assert (value.estimate, value.low, value.high) == (0, 0, 0)
    assert metrics.spread_ratio(pred, target) == pytest.approx(0)
    assert metrics.spread_ratio(2 * np.tile(target, (3, 1)), target) == pytest.approx(2)


def test_nothing_is_extracted_where_ridge_has_no_skill():
    assert metrics.efficiency(0.3, 0.6) == 0.5 and np.isnan(metrics.efficiency(0.3, -0.1))


# ----------------------------------------------------------------------------------------- intervals


def test_components_are_unbiased_for_planted_ones():
    rng = np.random.default_rng(0)
    s, n, size = 4, 30, 4000
    normal = rng.standard_normal
    parts = intervals.components(2 * normal((size, s, 1)) + 3 * normal((size, 1, n)) + 5 * normal((size, s, n)))
    assert parts.seeds.mean() == pytest.approx(4 / s + 25 / (s * n), rel=0.05)
    assert parts.items.mean() == pytest.approx(9 / n + 25 / (s * n), rel=0.05)
    assert parts.residual.mean() == pytest.approx(25 / (s * n), rel=0.02)


@pytest.mark.parametrize(("seeds", "high"), [(2, 1.0), (3, 1.0), (5, 0.985), (10, 0.98)])
def test_the_half_width_covers_whatever_the_shares_of_seeds_items_and_residual(seeds, high):
    rng = np.random.default_rng(seeds)
    n, size, normal = 64, 3000, rng.standard_normal
    for a, i in [(0, 0), (0, 1), (1, 0), (0.5, 0.5), (0.3, 0.3), (0.7, 0.1)]:  # the rest is residual
        tables = np.sqrt(a * seeds) * normal((size, seeds, 1)) + np.sqrt(i * n) * normal((size, 1, n))
        tables = tables + np.sqrt((1 - a - i) * seeds * n) * normal((size, seeds, n))
        parts = intervals.components(tables)
        inside = (np.abs(tables.mean((1, 2))) <= intervals.half_width(parts)).mean()
        assert 0.935 <= inside <= high, (a, i, inside)


@pytest.mark.parametrize("items", [8, 12, 20])
def test_the_variance_of_a_correlation_is_not_that_of_the_jackknife_which_is_too_large(items):
    drawn = simulate.draw(TYPICAL, 6000, 3, items, np.random.default_rng(items))
    for name in ("pearson", "spearman"):
        mean, table = intervals.pseudo_values(drawn.arm, drawn.target, name)
        parts = intervals.components(table)
        found = (parts.items + parts.seeds - parts.residual).mean() / mean.var()
        assert 0.9 < found < 1.1, (name, found)


def test_a_few_heavy_items_leave_fewer_degrees_of_freedom():
    rng = np.random.default_rng(0)
    normal, squares = rng.standard_normal((500, 3, 4000)), rng.standard_normal((500, 1, 4000)) ** 2
    assert np.median(intervals.components(normal).df_items) > 3900
    assert np.median(intervals.components(squares).df_items) == pytest.approx(2 * 4000 / 14, rel=0.2)  # kurtosis 15


def test_the_interval_is_the_set_of_values_that_the_test_does_not_reject():
    pred, target, reference = table()
    for name in ("rmse", "pearson", "accuracy"):
        _, pseudo = intervals.pseudo_values(pred, target, name, reference)
        parts = intervals.components(pseudo)
        if name != "accuracy":
            assert intervals.p_value(intervals.half_width(parts), parts) == pytest.approx(0.05, abs=1e-5)
            assert intervals.p_value(intervals.half_width(parts, 0.8), parts) == pytest.approx(0.2, abs=1e-5)


def test_with_seeds_that_agree_exactly_only_items_count_and_the_reverse():
    rng = np.random.default_rng(3)
    items = rng.uniform(-1, 1, 40)  # flatter than normal, so all of N-1 degrees of freedom
    parts = intervals.components(np.tile(items, (5, 1)))
    want = scipy_stats.t.ppf(0.975, 39) * items.std(ddof=1) / np.sqrt(40)
    assert intervals.half_width(parts) == pytest.approx(want, rel=1e-4)
    seeds = rng.normal(size=(5, 1))
    parts = intervals.components(np.tile(seeds, (1, 400)))
    assert intervals.half_width(parts) == pytest.approx(
        scipy_stats.t.ppf(0.975, 4) * seeds.std(ddof=1) / np.sqrt(5), rel=0.02
    )
    assert intervals.satterthwaite(parts) == pytest.approx(4)


@pytest.mark.parametrize("name", ["rmse", "mae", "pearson", "spearman", "r2"])
def test_no_interval_depends_on_the_order_of_seeds_or_items(name):
    pred, target, reference = table()
    rng = np.random.default_rng(1)
    s, i = rng.permutation(len(pred)), rng.permutation(len(target))
    one, other = (
        stats.interval(pred, target, name, reference),
        stats.interval(pred[s][:, i], target[i], name, reference[s]),
    )
    for field in ("estimate", "low", "high", "df"):
        assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-5)


def test_units_change_errors_by_their_factor_and_correlations_not_at_all():
    pred, target, reference = table()
    for name, factor in [("rmse", 7), ("mae", 7), ("pearson", 1), ("spearman", 1), ("r2", 1)]:
        one = stats.interval(pred, target, name, reference)
        other = stats.interval(7 * pred + 3, 7 * target + 3, name, 7 * reference + 3)
        assert [other.low, other.high] == pytest.approx([factor * one.low, factor * one.high], rel=1e-4)
    one, other = stats.interval(pred, target, "pearson"), stats.interval(-pred, target, "pearson")
    assert [-other.high, -other.low] == pytest.approx([one.low, one.high], rel=1e-6)


def test_swapping_arm_and_control_turns_the_difference_round():
    pred, target, reference = table()
    control = table(seed=5)[0]
    one, other = stats.paired(pred, control, target, "pearson"), stats.paired(control, pred, target, "pearson")
    assert [other.estimate, other.low, other.high] == pytest.approx([-one.estimate, -one.high, -one.low])
    assert other.p == pytest.approx(one.p)
    same = stats.paired(pred, pred, target, "rmse", reference)
    assert [same.estimate, same.low, same.high, same.p] == pytest.approx([0, 0, 0, 1])


def test_a_failure_counts_as_the_mean_of_the_shots():
    pred, target, reference = table()
    failed, filled = pred.copy(), pred.copy()
    failed[1, 3], filled[1, 3] = np.nan, reference[1]
    one, other = (stats.interval(p, target, "rmse", reference) for p in (failed, filled))
    assert replace(one, p=0) == replace(other, p=0)
    with pytest.raises(DataError, match="seed 1, item 3 failed"):
        stats.interval(failed, target, "rmse")
    words = np.array([["a", None, "b"], ["a", "b", "b"]], object)
    assert stats.interval(words, ["a", "b", "b"], "accuracy", fallback=["b", "b"]).estimate == 1


def test_edges_have_an_answer():
    pred, target, reference = table()
    one = stats.interval(pred[:1], target, "pearson")
    assert one.method == "items only" and one.low < one.estimate < one.high
    perfect = np.tile(target, (3, 1))
    for name, value in [("pearson", 1), ("spearman", 1), ("r2", 1), ("rmse", 0), ("mae", 0)]:
        got = stats.interval(perfect, target, name, reference[:3])
        assert [got.estimate, got.low, got.high] == pytest.approx([value] * 3, abs=1e-9)
    right = stats.interval(np.ones((3, 20)), np.ones(20), "accuracy")
    assert right.high == 1 and 0.7 < right.low < 0.9  # all right of twenty is not all right
    assert stats.interval(pred[:, :2], target[:2], "rmse").method == "none"
    with pytest.raises(DataError, match="no metric is called 'person'; did you mean 'pearson'"):
        stats.interval(pred, target, "person")
    with pytest.raises(DataError, match="mean of each seed's shots"):
        stats.interval(pred, target, "r2")
    with pytest.raises(DataError, match="wanted"):
        stats.interval(pred, target[:5], "rmse")


# ---------------------------------------------------------------------------------------- simulation


def test_the_truth_of_the_simulation_is_the_closed_form():
    flat = replace(TYPICAL, slope_sd=0.0, offset_sd=0.0, control_slope=0.3)
    rest = flat.item_sd**2 + flat.noise_sd**2
    r = flat.slope / np.sqrt(flat.slope**2 + rest)
    mse = (flat.slope - 1) ** 2 + rest
    closed = {
        "pearson": r,
        "spearman": 6 / np.pi * np.arcsin(r / 2),
        "rmse": np.sqrt(mse),
        "mae": np.sqrt(2 * mse / np.pi),
    }
    for name, value in closed.items():
        assert simulate.truth(flat, name) == pytest.approx(value, abs=2e-3)
    assert simulate.difference(flat, "pearson") == pytest.approx(r - 0.3 / np.sqrt(0.09 + rest), abs=2e-3)
    assert simulate.difference(simulate.with_difference(TYPICAL, 0.3), "pearson") == pytest.approx(0.3, abs=3e-3)
    slope = TYPICAL.slope + TYPICAL.slope_sd * np.random.default_rng(0).standard_normal(200_000)
    assert simulate.truth(TYPICAL, "pearson") == pytest.approx((slope / np.sqrt(slope**2 + rest)).mean(), abs=2e-3)


def _holds(scenario, seeds, items, names=None):
    slack = 2 * np.sqrt(0.05 * 0.95 / 1000)  # of 1,000 simulated studies, as `simulate.granted`
    low, high = (0.92, 1.0) if seeds < 5 else (0.93, 0.98)
    found = simulate.coverage(scenario, seeds, items, names)
    wrong = {k: v for k, v in found.items() if not low - slack <= v <= high + slack}
    assert not wrong, (scenario.name, seeds, items, wrong)
    assert low <= np.mean(list(found.values())) <= high  # no slack for all metrics together


@pytest.mark.parametrize(("seeds", "items"), [(3, 64), (5, 128), (10, 32)])
def test_intervals_cover_the_truth(seeds, items):
    _holds(TYPICAL, seeds, items)


def test_correlations_without_a_signal_are_not_covered_too_often():
    """Where nothing but chance moves a few seeds' correlations intervals are widest; no error of the simulation is granted."""
    scenario = next(s for s in simulate.SCENARIOS if s.name == "no signal")
    names = ("pearson", "spearman", "delta pearson", "delta spearman")
    found = simulate.coverage(scenario, 5, 32, names, studies=16_000)
    assert all(0.93 <= v <= 0.979 for v in found.values()), found  # without what holds it down .977 to .981


@pytest.mark.slow
@pytest.mark.parametrize("items", simulate.ITEMS)
@pytest.mark.parametrize("seeds", simulate.SEEDS)
def test_intervals_cover_the_truth_at_every_size(seeds, items):
    _holds(TYPICAL, seeds, items)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", simulate.SCENARIOS, ids=lambda s: s.name)
@pytest.mark.parametrize(("seeds", "items"), [(3, 128), (5, 32), (10, 64)])
def test_intervals_cover_the_truth_in_every_scenario(scenario, seeds, items):
    _holds(scenario, seeds, items)


@pytest.mark.parametrize(
    ("name", "seeds", "items"), [("seeds differ", 5, 256), ("seeds differ", 10, 256), ("strong", 5, 256)]
)
def test_losses_are_covered_where_few_bad_seeds_make_them(name, seeds, items, monkeypatch):
    """What a seed gets wrong adds to its loss whatever its sign, so that few seeds carry most of it, and a sample often has none."""
    scenario = next(s for s in simulate.SCENARIOS if s.name == name)

    def least() -> float:
        return min(simulate.coverage(scenario, seeds, items, ("mae", "rmse", "r2"), studies=4000).values())

    assert least() >= 0.93
    monkeypatch.setattr(intervals, "SKEW", 0.0)
    assert least() < 0.93


def test_an_interval_leans_to_larger_losses_by_the_seeds_share_and_never_past_the_estimate():
    rng = np.random.default_rng(4)
    for seeds in (2, 3, 5, 10):
        ratios = []
        for spread in (0.0, 0.2, 3.0):
            target = rng.normal(size=60)
            pred = target + rng.normal(size=60) + spread * rng.normal(size=(seeds, 1)) ** 2
            for name in ("rmse", "mae", "r2"):
                found = stats.interval(pred, target, name, np.zeros(seeds))
                assert found.low < found.estimate < found.high
            found = stats.interval(pred, target, "rmse")
            ratios.append(np.log(found.high / found.estimate) / np.log(found.estimate / found.low))
        assert ratios[0] == pytest.approx(1) and ratios[0] < ratios[1] < ratios[2] <= 3.0 + 1e-9
        one = stats.interval(pred, target, "pearson")
        ends = np.arctanh([one.low, one.estimate, one.high])
        assert ends[1] - ends[0] == pytest.approx(ends[2] - ends[1])


def test_seeds_with_items_of_their_own_lean_in_losses_alone():
    losses = np.array([0.8, 0.9, 1.0, 1.6])
    plain, loss = intervals.over_seeds(losses), intervals.over_seeds(losses, "rmse")
    t = scipy_stats.t.ppf(0.975, 3) * losses.std(ddof=1) / 2
    assert [plain.low, plain.high] == pytest.approx([losses.mean() - t, losses.mean() + t])
    below, above = np.log(loss.estimate / loss.low), np.log(loss.high / loss.estimate)
    assert above > 1.5 * below and below + above > 2.1 * t / losses.mean()  # and wider: fewer degrees of freedom
    corr = intervals.over_seeds(losses - 1, "pearson")
    ends = np.arctanh([corr.low, corr.estimate, corr.high])
    assert ends[2] - ends[1] == pytest.approx(ends[1] - ends[0])


def test_a_gamma_has_the_degrees_of_freedom_and_the_lean_that_are_written_down():
    """Sample variances of n gamma draws spread as those of fewer normal ones, and their intervals for the mean miss on one side."""
    n, skew, size = 10, 0.8, 200_000
    shape = 4 / skew**2
    drawn = np.random.default_rng(0).gamma(shape, size=(size, n))
    variance = drawn.var(-1, ddof=1)
    assert 2 * (variance.mean() / variance.std()) ** 2 == pytest.approx(intervals._df_seeds(n, skew), rel=0.03)
    t = scipy_stats.t.ppf(0.975, n - 1)
    half = t * np.sqrt(variance / n)
    above, below = (drawn.mean(-1) - half > shape).mean(), (drawn.mean(-1) + half < shape).mean()
    centre = drawn.mean(-1) + half * intervals._lean(1.0, n, skew, 0.95)
    assert below > 2.5 * above
    left = [(centre - half > shape).mean(), (centre + half < shape).mean()]
    assert abs(left[0] - left[1]) < 0.25 * (below - above)


def test_what_others_do_covers_too_little_in_the_same_simulation():
    """Percentile bootstrap of seeds and items, items alone, and the seeds' mean square taken as known."""
    seeds, items, studies = 3, 128, 400
    rng = np.random.default_rng([0, seeds, items])
    drawn = simulate.draw(DIFFER, studies, seeds, items, rng)
    true = simulate.truth(DIFFER, "pearson")
    boots = []
    for _ in range(200):
        s, i = rng.integers(seeds, size=seeds), rng.integers(items, size=items)
        boots.append(metrics.pearson(drawn.arm[:, s][:, :, i], drawn.target[:, :, i]).mean(-1))
    low, high = np.quantile(boots, [0.025, 0.975], axis=0)
    assert ((low <= true) & (true <= high)).mean() < 0.90

    mean, pseudo = intervals.pseudo_values(drawn.arm, drawn.target, "pearson")
    parts = intervals.components(pseudo)
    for variance in (parts.items, parts.items + parts.seeds - parts.residual):
        half = 1.96 * np.sqrt(np.maximum(variance, 0))
        low, high = intervals.bounds(mean, half, "fisher", items)
        assert ((low <= true) & (true <= high)).mean() < 0.90
    low, high = intervals.bounds(mean, intervals.half_width(parts), "fisher", items)
    assert ((low <= true) & (true <= high)).mean() >= 0.92


@pytest.mark.parametrize("base", [0.0, 0.5], ids=["vector", "with text"])
@pytest.mark.parametrize(("seeds", "items"), [(3, 32), (5, 64), (10, 128)])
def test_null_studies_rarely_use_the_vector(base, seeds, items):
    null = replace(TYPICAL, control_slope=base)
    assert simulate.null_rate(null, seeds, items, arms=4) <= 0.05
    assert simulate.null_rate(replace(null, target="skewed", step=0.5), seeds, items, arms=1) <= 0.05


def test_power_grows_with_the_effect_the_seeds_and_the_items():
    weak, strong = (simulate.power(TYPICAL, r, 5, 64) for r in (0.1, 0.4))
    assert weak < 0.3 and strong > 0.7
    assert (
        simulate.power(TYPICAL, 0.3, 10, 128)
        > simulate.power(TYPICAL, 0.3, 5, 128)
        > simulate.power(TYPICAL, 0.3, 5, 32)
    )
    assert simulate.power(TYPICAL, 0.3, 5, 64, arms=4) < simulate.power(TYPICAL, 0.3, 5, 64)
    rows = stats.power_table(effects=(0.4,), seeds=(10,), items=(32, 128), studies=200)
    assert [r["items"] for r in rows] == [32, 128] and rows[0]["r = 0.4"] < rows[1]["r = 0.4"]


@pytest.mark.slow
def test_the_report_passes_all_of_its_own_bounds():
    rows = list(simulate.report())
    about = {"what", "scenario", "seeds", "items", "studies"}
    assert about | {"share", "low", "high", "granted", "bound", "ok"} == set(rows[0])
    assert not [r for r in rows if not r["ok"]]


# ------------------------------------------------------------------------------------------ verdicts


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == pytest.approx([1, 1])
    got = stats.holm([np.nan, 0.02, 0.03])  # what was not tested does not count
    assert np.isnan(got[0]) and got[1:] == pytest.approx([0.04, 0.04])
    assert stats.holm([[0.02, 0.01], [0.01, 0.5]]) == pytest.approx(np.array([[0.02, 0.02], [0.02, 0.5]]))


def test_verdicts_in_words():
    assert stats.verdict(0.2, 0.01) == "uses the vector"
    assert stats.verdict(-0.2, 0.01) == "harmed by it"
    assert stats.verdict(0.2, 0.06) == "no evidence"
    assert stats.verdict(0.2, np.nan) == "not tested"


def frame(pred, target, reference, **named):
    """Rows of predictions.parquet for one cell; NaN is a failure."""
    rows = []
    for s, of_seed in enumerate(pred):
        for i, p in enumerate(of_seed):
            failed = p is None or p != p
            rows.append(
                {"seed": s, "item": f"m{i}", "target": target[i], "prediction": p, "reference": reference[s]}
                | {"status": "no number" if failed else "ok"}
            )
    base = {
        "task": "t",
        "encoder": "e",
        "llm": "l",
        "arm": "a",
        "control": "real",
        "with_text": False,
        "labels": "true",
    }
    base |= {"shots": 20, "selection": "quantile", "order": "random", "draws": 1, "copied": False}
    return pd.DataFrame(rows).assign(**(base | named))


def study(seeds=5, items=64, seed=0):
    """An arm with a signal, one without, one that harms; each with its noise control. And text, which has none."""
    rng = np.random.default_rng(seed)
    target, reference = rng.normal(size=items), rng.normal(size=seeds) / 5
    parts = []
    for arm, slope, base in [("good", 0.7, 0.0), ("empty", 0.0, 0.0), ("bad", 0.0, 0.8), ("text", 0.5, None)]:
        for control, b in [("real", slope), ("noise", base)]:
            if b is not None:
                pred = b * target + 0.1 * rng.normal(size=(seeds, 1)) + 0.5 * rng.normal(size=(seeds, items))
                parts.append(frame(pred, target, reference, arm=arm, control=control))
    return pd.concat(parts, ignore_index=True)


def test_the_table_finds_what_was_planted():
    rows = study()
    got = stats.summarise(rows).set_index(["arm", "control"])
    assert got["verdict"].to_dict() == {
        ("good", "real"): "uses the vector",
        ("good", "noise"): "control",
        ("empty", "real"): "no evidence",
        ("empty", "noise"): "control",
        ("bad", "real"): "harmed by it",
        ("bad", "noise"): "control",
        ("text", "real"): "not tested",
    }
    good = got.loc[("good", "real")]
    assert good["delta_pearson_low"] > 0 and good["n"] == 320 and good["seeds"] == 5
    assert good["p_holm"] >= good["p"] and good["rmse_low"] < good["rmse"] < good["rmse_high"]
    again = stats.summarise(rows.sample(frac=1, random_state=1)).set_index(["arm", "control"])
    assert again.loc[got.index, "delta_pearson_low"].to_numpy() == pytest.approx(
        got["delta_pearson_low"].to_numpy(), nan_ok=True, rel=1e-4
    )


def families(slopes, seeds=4, items=24):
    """Arms of these slopes, {(task, labels): slopes}, each real, shuffled and beside its noise control, and text, which has none."""
    rng, parts = np.random.default_rng(5), []
    for (task, labels), each in slopes.items():
        target, reference = rng.normal(size=items), rng.normal(size=seeds) / 5
        for i, slope in enumerate(each):
            for control in ("real", "shuffled", "noise") if slope is not None else ("real",):
                b = 0.0 if control == "noise" else slope or 0.0
                pred = b * target + 0.2 * rng.normal(size=(seeds, 1)) + rng.normal(size=(seeds, items))
                parts.append(frame(pred, target, reference, task=task, labels=labels, arm=f"arm{i}", control=control))
    return pd.concat(parts, ignore_index=True)


def by_hand(p):
    """Holm's p-values, each by their definition: the largest over tests that are no larger, times the tests that are no smaller."""
    p = p.dropna()
    return {k: max(min(1.0, q * (p >= q).sum()) for q in p[p <= v]) for k, v in p.items()}


def test_the_verdicts_of_a_task_and_a_kind_of_labels_are_corrected_together_and_no_others():
    """Arms with a strong signal, a weak one and none; what is a control, or was not tested, is no test of the family."""
    slopes = {
        ("t", "true"): (1.2, 0.5, 0.45, -1.2, 0.0, None),
        ("t", "permuted"): (0.0, 0.5, None),
        ("u", "true"): (0.4, 0.6, 0.1),
    }
    rows = families(slopes)
    keys = ["task", "labels", "arm"]
    got = stats.summarise(rows)
    controls = got[got["control"] != "real"]
    assert (controls["verdict"] == "control").all() and controls["p_holm"].isna().all()
    assert controls["p"].min() < 0.01  # a test of its own, which makes no family larger
    real = got[got["control"] == "real"].set_index(keys).sort_index()
    wanted = {k: q for _, family in real.groupby(["task", "labels"]) for k, q in by_hand(family["p"]).items()}
    untested = [arm for *_, arm in real.index.difference(wanted)]
    assert len(wanted) == 5 + 2 + 3 and untested == ["arm2", "arm5"]
    for key, row in real.iterrows():
        if key not in wanted:
            assert np.isnan(row["p_holm"]) and row["verdict"] == "not tested"
            continue
        assert row["p_holm"] == pytest.approx(wanted[key], rel=1e-12)
        found = "uses the vector" if row["delta_pearson"] > 0 else "harmed by it"
        assert row["verdict"] == (found if wanted[key] <= 0.05 else "no evidence")
    times = {k: (real.loc[k[:2], "p"] >= real.loc[k, "p"]).sum() for k in wanted}
    assert any(wanted[k] > 1.2 * times[k] * real.loc[k, "p"] for k in wanted)  # some have the value of a smaller one
    before = real[real["p"] <= 0.05]["verdict"]
    assert {"uses the vector", "harmed by it", "no evidence"} == set(before)  # some would do without the correction
    together = by_hand(real["p"])
    assert any(wanted[k] <= 0.05 < together[k] for k in wanted)  # another verdict, were all one family
    merged = rows.assign(arm=rows["task"] + rows["labels"] + rows["arm"]).drop(columns=["task", "labels"])
    one = stats.summarise(merged)
    one = one[one["control"] == "real"].set_index("arm")["p_holm"]
    assert one.dropna().to_dict() == pytest.approx({"".join(k): q for k, q in together.items()}, rel=1e-12)


def test_the_labels_that_a_cell_has_seen_stand_beside_its_figures():
    rows = study()
    assert "gold_labels" not in stats.summarise(rows)  # of predictions that do not count them
    rows["gold_labels"] = np.where(rows["arm"] == "good", 300, rows["shots"])
    for got in (stats.summarise(rows), stats.paper_mode(rows)):
        assert dict(zip(got["arm"], got["gold_labels"])) == {"good": 300, "empty": 20, "bad": 20, "text": 20}
        assert got["gold_labels"].dtype.kind == "i"
    named = list(stats.summarise(rows))
    assert named[named.index("gold_labels") - 1 :][:3] == ["draws", "gold_labels", "n"]
    assert [c for c in named if c != "gold_labels"] == list(stats.summarise(rows.drop(columns="gold_labels")))


def test_failures_stay_in_the_table_and_are_counted():
    rows = study()
    rows.loc[::7, "prediction"] = np.nan
    rows.loc[::7, "status"] = "no number"
    got = stats.summarise(rows)
    assert (got["n"] == 320).all() and got["failures"].sum() == len(rows.loc[::7])
    rows.loc[::7, "prediction"], rows.loc[::7, "status"] = rows.loc[::7, "reference"], "ok"
    filled = stats.summarise(rows)
    assert filled["rmse"].to_numpy() == pytest.approx(got["rmse"].to_numpy())
    assert (filled["failures"] == 0).all()
    with pytest.raises(DataError, match="no `reference`"):
        stats.summarise(rows.assign(prediction=np.nan).drop(columns="reference"))


def hand_made(rows):
    """Rows of (seed, item, target, prediction, copied); a prediction in words is that of a row that failed."""
    made = pd.DataFrame(rows, columns=["seed", "item", "target", "prediction", "copied"])
    made["status"] = ["no number" if isinstance(p, str) else "ok" for p in made["prediction"]]
    made["prediction"] = [float(p) for p in made["prediction"]]
    return made.assign(arm="a", control="real", reference=made["seed"].map({0: 1.0, 1: 3.0, 2: 5.0}))


def test_copies_failures_and_spread_of_a_table_made_by_hand():
    """Three seeds on three items, and an item that one of them lacks: nothing of it counts, neither its copies nor its failure."""
    rows = [
        *((0, "x", 0, 0, True), (0, "y", 2, 2, True), (0, "z", 4, 4, False), (0, "w", 9, 9, True)),
        *((1, "x", 0, 3, False), (1, "y", 2, "99", False), (1, "z", 4, 3, False), (1, "w", 9, "nan", True)),
        *((2, "x", 0, 0, None), (2, "y", 2, 6, False), (2, "z", 4, 12, True)),
    ]
    read = stats.table.read(stats.table.cell(hand_made(rows)))
    (row,) = stats.summarise(hand_made(rows)).to_dict("records")
    for got in (read, row):
        assert (got["n"], got["seeds"], got["failures"]) == (9, 3, 1)
        assert got["failure_rate"] == pytest.approx(1 / 9) and got["copy_rate"] == pytest.approx(3 / 9)
        assert got["spread_ratio"] == pytest.approx(
            (1 + 0 + 3) / 3
        )  # what failed is the mean of its shots, 3, and no 99
        assert got["mae"] == pytest.approx((0 + (3 + 1 + 1) / 3 + (0 + 4 + 8) / 3) / 3)
        assert "2 predictions outside the complete table of 3 seeds x 3 items" in got["note"]
        assert "constant predictions in 1 of 3 seeds" in got["note"]


def test_copies_and_failures_of_seeds_with_items_of_their_own_are_shares_of_all_rows():
    """Two, three and two items that do not cross: every row counts the same, and there is no spread of one table."""
    rows = [
        *((0, "a", 0, 1, True), (0, "b", 2, 2, False)),
        *((1, "c", 0, 1, True), (1, "d", 2, "99", False), (1, "e", 4, 5, False)),
        *((2, "f", 1, "nan", False), (2, "g", 2, 2, True)),
    ]
    read = stats.table.read(stats.table.cell(hand_made(rows)))
    (row,) = stats.summarise(hand_made(rows)).to_dict("records")
    for got in (read, row):
        assert (got["n"], got["seeds"], got["failures"]) == (7, 3, 2) and "spread_ratio" not in got
        assert got["failure_rate"] == pytest.approx(2 / 7) and got["copy_rate"] == pytest.approx(3 / 7)
        assert got["mae"] == pytest.approx(np.mean([(1 + 0) / 2, (1 + 1 + 1) / 3, (4 + 0) / 2]))


def test_an_unfinished_run_is_read_where_it_is_complete_and_says_so():
    rows = study()
    cut = rows[~((rows["arm"] == "good") & (rows["control"] == "real") & (rows["seed"] == 4) & (rows["item"] > "m12"))]
    got = stats.summarise(cut).set_index(["arm", "control"])
    whole = stats.summarise(rows[rows["seed"] < 4]).set_index(["arm", "control"])
    assert "unfinished" in got.loc[("good", "real"), "note"] and got.loc[("good", "real"), "seeds"] == 4
    assert got.loc[("good", "real"), "delta_pearson"] == pytest.approx(whole.loc[("good", "real"), "delta_pearson"])
    with pytest.raises(DataError, match="two predictions"):
        stats.summarise(pd.concat([rows, rows.iloc[:1]]))


def test_seeds_with_items_of_their_own_are_read_between_seeds():
    rows = study()
    rows["item"] = rows["item"] + "s" + rows["seed"].astype(str)
    got = stats.summarise(rows).set_index(["arm", "control"]).loc[("good", "real")]
    assert "items of its own" in got["note"] and got["n"] == 320 and got["verdict"] == "uses the vector"
    per_seed = [
        np.corrcoef(g["prediction"], g["target"])[0, 1]
        for _, g in rows[(rows["arm"] == "good") & (rows["control"] == "real")].groupby("seed")
    ]
    assert got["pearson"] == pytest.approx(np.mean(per_seed))


def test_one_seed_gives_an_interval_over_items_and_no_verdict():
    got = stats.summarise(study(seeds=1)).set_index(["arm", "control"]).loc[("good", "real")]
    assert got["verdict"] == "not tested" and "items only" in got["note"] and got["pearson_low"] < got["pearson"]


def test_classes_get_accuracy_and_the_same_verdicts():
    rng = np.random.default_rng(0)
    target = rng.choice(["cat", "dog"], 64).astype(object)
    wrong = np.where(target == "cat", "dog", "cat")
    parts = []
    for control, hit in [("real", 0.9), ("noise", 0.5)]:
        pred = np.where(rng.random((4, 64)) < hit, target, wrong).astype(object)
        pred[0, 0] = None
        parts.append(frame(pred, target, ["cat"] * 4, control=control))
    rows = pd.concat(parts)
    baselines = pd.concat(
        [
            frame(np.tile(target, (4, 1)), target, ["cat"] * 4, baseline="logistic"),
            frame(np.full((4, 64), "cat", object), target, ["cat"] * 4, baseline="majority"),
        ]
    )
    got = stats.summarise(rows, baselines).set_index("control")
    assert got.loc["real", "verdict"] == "uses the vector" and got.loc["real", "failures"] == 1
    assert "pearson" not in got and 0.8 < got.loc["real", "accuracy"] < 1
    floor = (target == "cat").mean()
    assert got.loc["real", "efficiency"] == pytest.approx((got.loc["real", "accuracy"] - floor) / (1 - floor))


def test_efficiency_is_the_share_of_ridge_on_the_same_shots():
    rows = study()
    target = rows[(rows["arm"] == "good") & (rows["control"] == "real") & (rows["seed"] == 0)]["target"].to_numpy()
    rng = np.random.default_rng(9)
    ridge = frame(target + 0.3 * rng.normal(size=(5, 64)), target, [0.0] * 5, baseline="ridge")
    other = frame(-np.tile(target, (5, 1)), target, [0.0] * 5, baseline="ridge", shots=40)  # other shots do not count
    got = stats.summarise(rows, pd.concat([ridge, other])).set_index(["arm", "control"]).loc[("good", "real")]
    assert got["efficiency"] == pytest.approx(
        got["pearson"] / metrics.pearson(ridge["prediction"].to_numpy().reshape(5, 64), target).mean()
    )


def test_constant_predictions_are_noted():
    target = np.random.default_rng(0).normal(size=20)
    got = stats.summarise(frame(np.full((3, 20), 0.5), target, [0.0] * 3)).iloc[0]
    assert got["pearson"] == 0 and "constant predictions in 3 of 3 seeds" in got["note"]


def test_paper_mode_is_labelled_and_optimistic():
    rows = study(seeds=12)
    got = stats.paper_mode(rows[rows["arm"] == "empty"]).set_index(["control", "metric"])
    assert (got["selection_of_seeds"] == "best 3 of 10 seeds, selected on the test score").all()
    row = got.loc[("real", "pearson")]
    assert row["paper"] > row["honest"] and row["seeds"] == 12
    assert got.loc[("real", "rmse"), "paper"] < got.loc[("real", "rmse"), "honest"]
    cell = rows[(rows["arm"] == "empty") & (rows["control"] == "real")]
    r = [np.corrcoef(g["prediction"], g["target"])[0, 1] for _, g in cell.groupby("seed")]
    best = sorted(r[:10])[-3:]
    assert [row["paper"], row["paper_variance"], row["honest"]] == pytest.approx(
        [np.mean(best), np.var(best, ddof=1), np.mean(r)]
    )


def test_an_ensemble_is_a_cell_of_its_own():
    pred, target, reference = table(items=30)
    rows = pd.concat([frame(pred, target, reference), frame(pred / 2, target, reference, draws=16)])
    got = stats.summarise(rows)
    assert got["draws"].tolist() == [1, 16] and got["pearson"].nunique() <= 2
    assert verdicts.MIN_SEEDS == 2


@pytest.mark.parametrize("metric,most", [("pearson", 2.0), ("spearman", 2.0), ("accuracy", 1.0)])
def test_no_difference_is_said_to_be_larger_than_it_can_be(metric, most):
    """Two seeds that disagree give a huge t interval; a difference of correlations lies within 2, of shares within 1."""
    rng = np.random.default_rng(0)
    target = rng.standard_normal(6) if most == 2 else np.array(list("aabbab"))
    good = np.stack([target, target])
    bad = np.stack([target, rng.permutation(target)[::-1]])
    found = stats.paired(good, bad, target, metric)
    assert found.low >= -most and found.high == most


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_a_correlation_of_four_items_has_no_interval(metric):
    """Without one of three items two are left, which always correlate at 1: the interval would have no width."""
    rng = np.random.default_rng(0)
    for items, known in ((3, False), (4, False), (5, True)):
        pred, control, target = (
            rng.standard_normal((2, items)),
            rng.standard_normal((2, items)),
            rng.standard_normal(items),
        )
        one = intervals.interval(pred, target, metric)
        two = intervals.paired(pred, control, target, metric)
        assert np.isfinite(one.estimate) and np.isfinite(two.estimate)
        assert all(np.isfinite([x.low, x.high]).all() == known for x in (one, two)) and np.isfinite(two.p) == known
        assert np.isfinite(intervals.interval(pred, target, "rmse").low)


def test_p_values_are_corrected_by_a_known_method_and_nan_is_no_test():
    p = np.array([[0.01, np.nan], [0.04, 0.03]])
    for method in ("holm", "fdr"):
        found = adjusted(p, method)
        np.testing.assert_allclose(found.ravel()[[0, 2, 3]], adjusted(p.ravel()[[0, 2, 3]], method))
        assert np.isnan(found[0, 1]) and (found[np.isfinite(p)] >= p[np.isfinite(p)]).all()
    with pytest.raises(StudyError, match="'Holm'"):
        adjusted(p, "Holm")
    unknown = effects(np.array([[np.nan, 1.0, 2.0]]))
    assert np.isnan(unknown.estimate) and np.isnan(unknown.p)


def test_one_perfect_order_of_few_does_not_outweigh_the_others():
    """As z = 7 it turned the sign of a mean of six. Of many values a perfect order is rare, and nothing changes."""
    table = np.array([[-0.4, -0.4, -0.4, -0.4, -0.4, 1.0]])
    assert stats.correlations(table).estimate > 0.5
    found = stats.correlations(table, ranked=4)
    assert found.estimate < 0 and found.estimate == pytest.approx(np.tanh((-5 * np.arctanh(0.4) + np.arctanh(0.9)) / 6))
    assert stats.correlations(-table, ranked=4).estimate == pytest.approx(-found.estimate)
    plain = np.random.default_rng(0).uniform(-0.9, 0.9, (3, 5, 8))
    assert all(np.array_equal(a, b) for a, b in zip(stats.correlations(plain), stats.correlations(plain, ranked=20)))


NAN = float("nan")


@pytest.mark.parametrize(
    "ends,known", [((0.3, 0.7), True), ((NAN, 0.7), False), ((0.3, NAN), False), ((0.3, float("inf")), False)]
)
def test_an_estimate_is_quoted_with_both_ends_of_its_interval_or_with_none(ends, known):
    assert quoted.estimate(0.5, *ends, form="+.2f", ends=".1f") == (
        "+0.50 [0.3, 0.7]" if known else "+0.50, no interval"
    )
    assert quoted.estimate(0.5, *ends) == ("0.5 [0.3, 0.7]" if known else "0.5, no interval")
    assert quoted.estimate(NAN, *ends) == "not known"


@pytest.mark.parametrize("p,words", [(0.0, "p < 0.001"), (0.0009, "p < 0.001"), (0.001, "p = 0.001"), (0.0134, "p = 0.013"), (1.0, "p = 1.000"), (NAN, "not tested")])  # fmt: skip
def test_a_p_value_is_never_quoted_as_zero_or_nan(p, words):
    assert quoted.tested(p, "p") == words
    assert quoted.tested(p) == (words if p != p else f"corrected {words}")
