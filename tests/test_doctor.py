"""What the doctor prints of the simulations is what they were held to."""

import pytest

from icrl_lab import doctor
from icrl_lab.stats import simulate

ROW = {"what": "coverage mae", "scenario": "typical", "seeds": 5, "items": 64, "studies": 1000}
ROW |= {"low": 0.93, "high": 0.98, "granted": 0.0138, "bound": True}


@pytest.mark.parametrize(
    "row, says",
    [
        (
            {"share": 0.95, "ok": True},
            "limits 0.93 to 0.98, 0.0138 granted (2 Monte Carlo errors)",
        ),
        ({"share": 0.92, "ok": True}, "granted (2 Monte Carlo errors), needed here"),
        ({"share": 0.985, "ok": True}, "granted (2 Monte Carlo errors), needed here"),
        ({"share": 0.91, "ok": False}, "granted (2 Monte Carlo errors), exceeded"),
        ({"share": 0.02, "ok": True, "low": 0.0, "high": 0.05, "granted": 0.0}, "limits 0.00 to 0.05, nothing granted"),
        ({"share": 0.9, "ok": True, "bound": False}, "listed, not bound to limits"),
        ({"share": 0.9, "ok": True, "studies": 4000}, "0.900 of 4,000 studies of 5 seeds x 64 items, "),
    ],
)
def test_a_rate_is_printed_with_its_limits_and_what_is_granted_beyond_them(monkeypatch, row, says):
    monkeypatch.setattr(simulate, "report", lambda: iter([ROW | row]))
    (check,) = doctor.statistics()
    assert says in check.says and check.ok == row["ok"] and check.needed == row.get("bound", True)
    assert says.endswith(", ") or check.says.endswith(says)


@pytest.mark.parametrize(
    "seeds, share, ok",
    [
        (5, 0.93, True), (5, 0.917, True), (5, 0.916, False), (5, 0.993, True), (5, 0.994, False),
        (3, 0.907, True), (3, 0.906, False), (3, 1.0, True),
    ],
)  # fmt: skip
def test_coverage_may_lie_two_standard_errors_of_1000_studies_beyond_its_limits(monkeypatch, seeds, share, ok):
    monkeypatch.setattr(simulate, "SEEDS", (seeds,))
    monkeypatch.setattr(simulate, "coverage", lambda *_, **__: {"mae": share})
    row = next(simulate.report())
    assert (row["seeds"], row["share"], row["ok"], row["studies"]) == (seeds, share, ok, 1000)
    assert row["granted"] == pytest.approx(2 * 0.0069, abs=1e-4)


@pytest.mark.parametrize("share, ok", [(0.0, True), (0.05, True), (0.051, False), (0.066, False)])
def test_null_studies_are_granted_nothing(monkeypatch, share, ok):
    monkeypatch.setattr(simulate, "coverage", lambda *_, **__: {})
    monkeypatch.setattr(simulate, "null_rate", lambda *_, **__: share)
    row = next(simulate.report())
    assert row["what"].startswith("null study") and (row["high"], row["granted"], row["ok"]) == (0.05, 0.0, ok)
