"""The printed table of a study holds the summary's numbers, and the labels that each row has seen beside them."""

from __future__ import annotations

import pandas as pd
import pytest

from icrl_lab import tables


def summary(seen=(20, 20, 20), shots=(20, 20, 20)) -> pd.DataFrame:
    table = pd.DataFrame({"arm": ["text", "mapped", "mapped"], "control": ["real", "real", "noise"], "shots": shots})
    table = table.assign(with_text=[True, False, False], labels="true", selection="quantile", order="random")
    table = table.assign(n=40, seeds=5, failures=[0, 1, 0], verdict=["not tested", "uses the vector", "control"])
    table = table.assign(pearson=[0.4, 0.5, 0.0], pearson_low=0.1, pearson_high=0.6, rmse=1.234)
    return table if seen is None else table.assign(gold_labels=seen)


BASELINES = pd.DataFrame({"baseline": ["ridge"], "pearson": [0.6], "pearson_low": [0.5], "pearson_high": [0.7], "rmse": [1.0], "shots": [20]})  # fmt: skip


def column(name: str, *args) -> list[str]:
    header, body = tables.rows(*args, "")
    return [line[header.index(name)] for line in body]


def test_a_row_that_saw_more_labels_than_its_shots_gives_the_table_a_column():
    assert column("labels seen", summary(seen=(20, 300, 300)), BASELINES) == ["20", "300", "300", "20"]
    for write in (tables.text, tables.markdown, tables.html):
        page = write(summary(seen=(20, 300, 300)), BASELINES)
        assert "labels seen" in page and "300" in page and "labels of its shots" not in page
    assert column("labels seen", summary(seen=(20, float("nan"), 300)), None) == ["20", "", "300"]


def test_the_labels_of_the_shots_take_no_column_and_are_said_below():
    for write in (tables.text, tables.html):
        page = write(summary(), BASELINES)
        assert "labels seen" not in page and "each row saw the 20 labels of its shots;" in page
    several = tables.text(summary(seen=(80, 20, 80), shots=(80, 20, 80)))
    assert "each row saw the 20 to 80 labels of its shots;" in several and "labels seen" not in several
    unknown = tables.text(summary(seen=None))  # of a run that did not count them
    assert "labels" not in unknown and "5 seeds; intervals" in unknown


@pytest.mark.parametrize("seen", [(20, 20, 20), (20, 300, 300)])
def test_every_line_has_a_cell_for_every_column(seen):
    header, body = tables.rows(summary(seen), BASELINES, "kcal/mol")
    assert {len(line) for line in body} == {len(header)}
    assert body[1][-5:] == ["+0.50 [+0.10, +0.60]", "1.23", "", "1/40", "uses the vector"]
    assert body[3][-5] == "+0.60 [+0.50, +0.70]" and body[2][-1] == ""


def test_errors_of_small_targets_keep_their_digits_and_others_two_decimals():
    def rmse(scale, *more):
        return column("RMSE", summary().assign(rmse=[scale * 1.234, scale * 0.5, scale * 0.009]), *more)

    assert rmse(1.0, BASELINES) == ["1.23", "0.50", "0.01", "1.00"]
    assert rmse(1e-6, None) == ["1.23e-06", "5e-07", "9e-09"]
    assert rmse(1e-6, BASELINES.assign(rmse=2e-6)) == ["1.23e-06", "5e-07", "9e-09", "2e-06"]
    assert rmse(0.0, None) == ["0.00"] * 3
    assert column("Pearson r [95 %]", summary().assign(rmse=1e-6), None)[0] == "+0.40 [+0.10, +0.60]"


def test_a_label_of_several_lines_stays_in_its_cell_and_commands_nothing():
    table = summary().assign(arm=["text", "two\nlines\r\tand \x1b[31ma colour", "mapped"])
    header, body = tables.rows(table, BASELINES, "kcal/\nmol")
    assert body[1][0] == "two lines and [31ma colour" and "RMSE kcal/ mol" in header
    for write in (tables.text, tables.markdown):
        assert len(write(table, BASELINES).splitlines()) == 2 + len(body) + (write is tables.text)


def test_one_prediction_is_one():
    assert "\n1 prediction a row over 1 seed;" in tables.text(summary().assign(n=1, seeds=1))
