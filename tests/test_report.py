"""A report is one file that says everything, loads nothing, and in which no data can become markup."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icrl_lab import report, stats
from icrl_lab.errors import DataError
from icrl_lab.plots import page, study, style
from icrl_lab.studies.folder import RunFolder

pytest.importorskip("plotly")

EVIL = ['<img src=x onerror=alert(1)>', "</script><script>alert(2)</script>", '"><b onmouseover="alert(3)">', "&lt;i&gt;", "a\u202eb\x00c"]  # fmt: skip
TASK = {"name": "freesolv", "units": "kcal/mol", "property": "hydration free energy", "modality": "molecule"}
SMILES = ["CCO", "c1ccccc1", "CC(=O)O", "CCN", "Clc1ccccc1", "O=C=O", "CC(C)O", "no molecule"]


def predictions(
    arms=("text", "moments-vocab x16"), controls=("real", "noise"), texts=(False,), seeds=3, n=8, ids=None
) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    target = rng.normal(size=n)
    fixed = {
        "task": "freesolv",
        "encoder": "minimol",
        "llm": "smollm2-135m",
        "labels": "true",
        "shots": 20,
        "selection": "quantile",
    }
    fixed |= {"order": "random", "status": "ok", "raw": "1", "gold_labels": 20, "draws": 1, "reference": 0.0}
    cells = [
        {"arm": arm, "control": control, "with_text": with_text, "seed": seed}
        for arm in arms
        for control in (controls if arm != "text" else ("real",))
        for with_text in (texts if arm != "text" else (True,))
        for seed in range(seeds)
    ]
    items = [{"item": ids[i] if ids else f"m{i}", "target": target[i]} for i in range(n)]
    return pd.DataFrame(
        [
            {**fixed, **c, **i, "prediction": (c["control"] == "real") * i["target"] + 0.4 * rng.normal()}
            for c in cells
            for i in items
        ]
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    return stats.summarise(frame)


BASELINES = pd.DataFrame({"baseline": ["mean", "ridge"], "pearson": [0.0, 0.78], "pearson_low": [-0.1, 0.7], "pearson_high": [0.1, 0.84], "shots": 20})  # fmt: skip


def run(path, frame=None, task=TASK, table=None, baselines=BASELINES, **manifest):
    frame = predictions() if frame is None else frame
    names = list(frame["item"].unique())
    items = pd.DataFrame({"id": names, "text": [SMILES[i % 8] for i in range(len(names))], "role": "query"})
    with RunFolder.open_for_writing(path, {"task": task, **manifest}) as folder:
        folder.put("all", frame)
        folder.finish({"seconds": 12.0}, summary(frame) if table is None else table, baselines, {}, items)
    return RunFolder.read(path)


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, the text of the page, the scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.scripts, self._in = [], [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in = tag if tag in ("script", "style") else self._in
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif not self._in:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def figures(self) -> dict:
        return json.loads(self.scripts[0])


# ------------------------------------------------------------------------------------------ the report


def test_the_report_says_what_was_run_and_what_came_out(tmp_path):
    frame = predictions(n=16)
    frame.loc[5, ["prediction", "status", "raw"]] = [np.nan, "no number in the answer", "I cannot say"]
    dropped = [{"row": 3, "id": "bad", "column": "smiles", "reason": "does not parse"}]
    run(tmp_path / "run", frame, {**TASK, "dropped": dropped}, versions={"numpy": "9.9.9"}, model={"dtype": "float32"})
    path = report.write(tmp_path / "run")
    assert path == tmp_path / "run/report.html"
    words = Page(path.read_text()).words
    for expected in (
        "freesolv", "hydration free energy in kcal/mol", "moments-vocab x16", "uses the vector", "0.70, 0.84", "ridge 0.78",
        "1 of 144 predictions failed", "best 3 of 3 seeds, selected on the test score", "no number in the answer", "I cannot say", "does not parse", "9.9.9", "float32", "labels seen",
        "measured", "CC(=O)O", "evidence of none",
    ):  # fmt: skip
        assert expected in words, expected
    pictures = [a for tag, a in Page(path.read_text()).elements if tag == "img"]
    assert 6 <= len(pictures) <= 8 and all(a["src"].startswith("data:image/svg+xml;base64,") for a in pictures)


def test_what_an_interval_is_over_follows_the_seeds(tmp_path):
    told = [Page(report.render(run(tmp_path / str(n), predictions(seeds=n)))).words for n in (1, 3)]
    assert [("one seed says nothing of other shots" in words, "over new seeds" in words) for words in told] == [
        (True, False),
        (False, True),
    ]


def test_an_interval_that_is_not_known_is_said(tmp_path):
    table = summary(predictions())
    table.loc[table["control"] == "real", ["pearson_low", "pearson_high", "rmse_high"]] = np.nan
    html = report.render(run(tmp_path / "run", table=table))
    first = html[html.index("<table") : html.index("</table>")]
    assert first.count("<small>no interval</small>") == 2 * 2 and "<small>[−" in first
    assert not re.search(r"\[,|, \]", Page(html).words)


@pytest.mark.parametrize("numbers,want", [((0.34, -0.00474, 0.69), "0.34 <small>[0.00, 0.69]</small>"), ((0.0041, -0.00474, 0.012), "0.0041 <small>[−0.00474, 0.012]</small>")])  # fmt: skip
def test_an_end_near_zero_is_no_longer_than_the_numbers_beside_it(numbers, want):
    assert report._interval(dict(zip(("r", "r_low", "r_high"), numbers)), "r") == want


def test_another_process_without_model_or_network_writes_the_same_bytes(tmp_path):
    html = report.render(run(tmp_path / "run"))
    code = (
        "import sys, socket\n"
        "def no(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = no\n"
        "from icrl_lab import report\n"
        "report.write(sys.argv[1])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'a model room was loaded'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)
    assert (tmp_path / "run/report.html").read_text() == html
    for _, attributes in Page(html).elements:
        for name in ("src", "href", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert html.count("Plotly.newPlot(box") == 1 and "cdn.plot.ly" not in html.split("<script>")[0]


def test_the_policy_of_the_page_allows_its_own_two_scripts_and_nothing_else(tmp_path):
    import base64
    import hashlib

    parsed = Page(report.render(run(tmp_path / "run")))
    (policy,) = (
        a["content"] for t, a in parsed.elements if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none';") and "unsafe-eval" not in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    code = [s for s in parsed.scripts[1:]]  # the first holds data
    assert hashes == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in code] and len(code) == 2


def test_arms_stand_in_the_order_of_the_study_file(tmp_path):
    arms = ("b", "a", "text")
    study_file = {"study": {"arms": [{"name": "x", "as": arm} for arm in arms]}}
    record = run(tmp_path / "run", predictions(arms=("a", "b", "text")), study=study_file)
    html = report.render(record)
    first = Page(html[: html.index("<details>")])
    cells = " ".join(first.words.split("failures")[1].split())
    assert cells.index("b ") < cells.index("a ") < cells.index("text ")


def test_hostile_names_do_nothing_anywhere(tmp_path):
    harmless = Page(
        report.render(
            run(tmp_path / "plain", predictions(arms=("text", "aaa", "bbb"), ids=[f"m{i}" for i in range(8)]))
        )
    )
    frame = predictions(arms=("text", EVIL[0], EVIL[1]), ids=[*EVIL, "m1", "m2", "m3"])
    frame[["raw", "status", "llm", "encoder"]] = frame[["raw", "status", "llm", "encoder"]].astype(object)
    frame["llm"], frame["encoder"] = EVIL[0], EVIL[2]
    frame.loc[frame.index[::7], "raw"] = EVIL[1]
    frame.loc[frame.index[::7], "status"] = EVIL[2]
    task = {"name": EVIL[0], "units": EVIL[1], "property": EVIL[2], "modality": "molecule"}
    task["dropped"] = [{"row": 1, "id": EVIL[0], "column": EVIL[1], "reason": EVIL[2]}]
    table = summary(frame).assign(verdict=EVIL[0])
    record = run(
        tmp_path / "evil", frame, task, table, BASELINES.assign(baseline=EVIL[:2]), study={EVIL[0]: EVIL[1], "x": EVIL}
    )
    parsed = Page(report.render(record))
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "ul", "li", "p", "div", "table", "thead",
               "tbody", "tr", "th", "td", "small", "span", "details", "summary", "img", "b", "br", "script"}  # fmt: skip
    assert {tag for tag, _ in parsed.elements} <= allowed
    attributes = {name for _, found in parsed.elements for name in found}
    assert not {a for a in attributes if a.startswith("on")} and attributes <= {
        name for _, f in harmless.elements for name in f
    }
    count = lambda p: sum(t == "script" for t, _ in p.elements)  # noqa: E731
    assert count(parsed) == count(harmless) == 3
    assert EVIL[0] in parsed.words and "\u202e" not in parsed.words and "\x00" not in parsed.words
    shown = [v for v in _strings(parsed.figures) if "alert" in v]
    assert shown and not any("<img" in v or "<script" in v or "<b on" in v for v in shown)


def _strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _strings(v)
    elif isinstance(value, list):
        for v in value:
            yield from _strings(v)


def test_a_figure_cannot_end_the_script_that_carries_it():
    import plotly.graph_objects as go

    figure = go.Figure(layout={"title": {"text": EVIL[1] + "</script x <!--<script "}})
    parsed = Page(page.page("t", page.figure("f"), {"f": figure}))
    assert [t for t, _ in parsed.elements].count("script") == 3
    assert "<" not in parsed.scripts[0]  # a browser ends a script sooner than Python's parser does
    assert parsed.figures["f"]["layout"]["title"]["text"] == EVIL[1] + "</script x <!--<script "


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_text_comes_out_as_text(data):
    parsed = Page(f"<p title='{page.text(data)}'>{page.text(data)}</p>")
    assert [t for t, _ in parsed.elements] == ["p"] and list(parsed.elements[0][1]) == ["title"]
    shown = "".join(parsed.text)
    assert len(shown) == len(data)
    assert all(a == b if b.isprintable() else a in " \ufffd" for a, b in zip(shown, data))
    cells = Page(page.table([[data, 1]], [data, "n"]))
    assert [t for t, _ in cells.elements] == ["div", "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_a_figure_shows_markup_as_letters(data):
    """plotly reads <b>, <i>, <a href> and entities in its labels; after `safe` there is nothing for it to read."""
    import html

    assert "<" not in style.safe(data) and ">" not in style.safe(data)
    assert html.unescape(style.safe(data)) == " ".join(data.split())


def test_a_molecule_that_failed_is_as_far_as_the_mean_of_its_shots_and_says_so(tmp_path):
    frame = predictions(arms=("text",)).assign(reference=50.0)
    for item, seeds in (("m1", 2), ("m2", 3)):
        lost = (frame["item"] == item) & (frame["seed"] < seeds)
        frame = frame.assign(prediction=frame["prediction"].mask(lost), status=frame["status"].mask(lost, "no number"))
    words = Page(report.render(run(tmp_path / "run", frame))).words
    far = words.split("Farthest from it")[1].split("Paper mode")[0]
    assert re.findall(r"m\d ", far)[:2] == ["m2 ", "m1 "]
    first, second = far.split("m1 ")
    assert "failed in 3 of 3 seeds" in first and "predicted" not in first
    assert "failed in 2 of 3 seeds" in second and "predicted" in second.split("failed")[0]
    assert "failed in" not in words.split("Nearest to the measurement")[1].split("Farthest")[0]


def test_the_best_predictions_say_under_which_condition_and_control_they_were_made(tmp_path):
    """Of an arm with and without text, or at several numbers of shots, a reader must know which it is."""
    frame = pd.concat([predictions(texts=(False, True)), predictions(texts=(False, True)).assign(shots=4)])
    worse = (frame["arm"] == "text") | ~frame["with_text"] | (frame["shots"] == 20)
    frame = frame.assign(prediction=frame["prediction"].where(~worse, -frame["prediction"]))
    for name, rows, words in (
        ("several", frame, "moments-vocab x16, with text, 4 shots"),
        ("one", predictions(arms=("moments-vocab x16",)), "moments-vocab x16"),
        ("noise", predictions(arms=("moments-vocab x16",), controls=("noise",)), "moments-vocab x16, noise"),
    ):
        parsed = Page(report.render(run(tmp_path / name, rows)))
        assert f"The best arm's predictions ({words})" in parsed.words
        assert f"Molecules of the best arm ({words})" in parsed.words
        assert f"Predicted against measured, {words}<" in parsed.figures["best"]["layout"]["title"]["text"]


def test_errors_have_the_units_of_the_task_wherever_they_stand(tmp_path):
    parsed = Page(report.render(run(tmp_path / "run", baselines=BASELINES.assign(rmse=1.0, mae=0.5))))
    out, rest = parsed.words.split("Baselines on the same shots")
    simple, paper = rest.split("Paper mode")
    for part in (out, simple, paper):
        assert "RMSE [kcal/mol]" in part and "RMSE " not in part.replace("RMSE [kcal/mol]", "")
    assert "MAE [kcal/mol]" in simple and "Pearson r [" not in parsed.words
    assert len(re.findall(r"mean error [\d.]+ kcal/mol", simple)) == simple.count("mean error") == 8


def test_units_are_letters_in_a_figure_too():
    table = summary(predictions())
    both = pd.concat([table, table.assign(shots=4)])
    shown = [study.arms(table, metric="rmse", units=EVIL[2]).layout.xaxis, study.curve(both, metric="mae", units=EVIL[2]).layout.yaxis]  # fmt: skip
    assert all("onmouseover" in axis.title.text and "<" not in axis.title.text for axis in shown)


def test_one_is_one(tmp_path):
    frame = predictions(seeds=1, n=1)
    parsed = Page(report.render(run(tmp_path / "run", frame)))
    classes = frame.assign(target="x", prediction="x").query("arm == 'text'")
    titles = [f["layout"]["title"]["text"] for f in parsed.figures.values()] + [study.confusion(classes).layout.title.text]  # fmt: skip
    assert "1 item asked about, 1 seed, 20 shots" in parsed.words
    assert "n = 1 prediction a row (1 seed of 1 item)" in titles[0] and "n = 1 item, 1 seed;" in titles[-1]
    assert not re.search(r"\b1 (seeds|items|predictions)\b", " ".join(titles))


def test_one_molecule_is_neither_near_nor_far(tmp_path):
    for n in (1, 2):
        words = Page(report.render(run(tmp_path / str(n), predictions(n=n)))).words
        assert [part in words for part in ("Molecules", "Nearest to", "Farthest from")] == [n > 1] * 3


def test_a_run_without_baselines_or_molecules_or_predictions_that_worked_still_reports(tmp_path):
    words = Page(report.render(run(tmp_path / "a", baselines=None, task={}))).words
    assert "Baselines" not in words and "Molecules" not in words
    frame = predictions().assign(prediction=np.nan, status="no number", raw=None)
    words = Page(report.render(run(tmp_path / "b", frame, table=summary(predictions())))).words
    assert "72 of 72 predictions failed" in words
    nothing = summary(predictions()).assign(pearson=np.nan, pearson_low=np.nan, pearson_high=np.nan, verdict=None)
    assert "nan" not in Page(report.render(run(tmp_path / "c", table=nothing))).words.split()


def test_a_classification_reports_its_confusions(tmp_path):
    frame = predictions()
    frame["target"] = np.where(frame["target"] > 0, "yes", "<b>no")
    frame["prediction"] = np.where(frame["prediction"] > 0, "yes", "<b>no")
    table = (
        summary(predictions())
        .rename(columns=lambda c: c.replace("pearson", "accuracy"))
        .drop(columns=["rmse", "rmse_low", "rmse_high"])
    )
    base = BASELINES.rename(columns=lambda c: c.replace("pearson", "accuracy"))
    parsed = Page(report.render(run(tmp_path / "run", frame, {**TASK, "modality": "image"}, table, base)))
    assert "True class and answer" in json.dumps(parsed.figures) and "accuracy" in parsed.words
    assert "Molecules" not in parsed.words and "img" not in [tag for tag, _ in parsed.elements]


def classified(answers: dict[str, tuple[str, list[str | None]]]) -> pd.DataFrame:
    """Predictions of one arm: of each item its class, and what was answered in each seed, None where it failed."""
    some = predictions(arms=("text",), seeds=1, n=1).iloc[0].to_dict()
    return pd.DataFrame(
        [
            {**some, "item": item, "seed": seed, "target": true, "prediction": said, "reference": "low",
             "status": "no class in the answer" if said is None else "ok"}
            for seed in range(len(next(iter(answers.values()))[1]))
            for item, (true, told) in answers.items() for said in [told[seed]]
        ]
    )  # fmt: skip


def drawn(path, frame: pd.DataFrame) -> dict[str, list[str]]:
    """The words of each molecule's card, by the heading above it; every card has its picture."""
    html = report.render(run(path, frame, baselines=None)).split("<h2>")
    (part,) = [part for part in html if part.startswith("Molecules of")] or [""]
    assert part.count('class="card"') == part.count("<img ")
    found = {}
    for title, cards in re.findall(r"<h3>(.*?)</h3>(.*?)(?=<h3>|$)", part, re.S):
        found[title] = [Page(card).words for card in cards.split('<div class="card">')[1:]]
    return found


def test_the_report_draws_molecules_whose_class_was_answered_wrong_and_right(tmp_path):
    one = {f"m{i}": ("low", ["high" if i in (1, 4) else "low"]) for i in range(7)}
    wrong, right = drawn(tmp_path / "one", classified(one)).items()
    assert wrong == ("Wrong", [f"m{i} {SMILES[i]} true class: low predicted: high" for i in (1, 4)])
    assert right == ("Right", [f"m{i} {SMILES[i]} true class: low predicted: low" for i in (0, 2, 3, 5)])
    several = {
        "m0": ("low", ["low", "high", "high"]),
        "m1": ("high", ["low", "low", "low"]),
        "m2": ("high", ["high", "high", None]),
        "m3": ("low", ["low", "low", "low"]),
        "m4": ("low", [None, None, None]),  # which counts as low, the class of most shots
    }
    found = drawn(tmp_path / "several", classified(several))
    assert found == {
        "Wrong in half of the seeds or more": [
            "m1 c1ccccc1 true class: high predicted: low",
            "m0 CCO true class: low predicted in 2 of 3 seeds: high predicted in 1 of 3 seeds: low",
        ],
        "Right in most seeds": [
            "m3 CCN true class: low predicted: low",
            "m4 Clc1ccccc1 true class: low failed in 3 of 3 seeds",
            "m2 CC(=O)O true class: high predicted in 2 of 3 seeds: high failed in 1 of 3 seeds",
        ],
    }
    assert list(drawn(tmp_path / "right", classified({"m0": ("low", ["low"])}))) == ["Right"]


def test_names_of_classes_are_letters_in_a_card(tmp_path):
    frame = classified({EVIL[0]: (EVIL[1], [EVIL[2]]), "m1": (EVIL[2], [EVIL[2]])})
    parsed = Page(report.render(run(tmp_path / "run", frame, baselines=None)))
    shown = parsed.words.split("Molecules of")[1]
    assert f"true class: {EVIL[1]} predicted: {EVIL[2]}" in shown
    assert not {name for _, found in parsed.elements for name in found if name.startswith("on")}
    assert [tag for tag, _ in parsed.elements].count("script") == 3


def test_a_damaged_folder_is_a_data_error(tmp_path):
    run(tmp_path / "run")
    (tmp_path / "run/summary.csv").write_text("arm,pearson\nx,1\n")
    with pytest.raises(DataError, match=r"summary\.csv"):
        report.write(tmp_path / "run")
    assert not (tmp_path / "run/report.html").exists()


# ----------------------------------------------------------------------------------------- the figures


def _points(figure) -> list[tuple[float, float, float]]:
    """(estimate, low, high) of each row, from top to bottom."""
    return [(t.x[0], t.x[0] - t.error_x.arrayminus[0], t.x[0] + t.error_x.array[0]) for t in figure.data]


def test_the_figure_of_the_arms_draws_every_row_where_the_table_has_it():
    table = summary(predictions(controls=("dummy", "noise", "real")))
    rows = [r for words, r in study.conditions(table)]
    figure = study.arms(rows[0], BASELINES)
    names = list(figure.layout.yaxis.ticktext)
    assert names == ["<b>text</b>", "<b>moments-vocab x16</b>", "noise", "dummy", "<i>mean</i>", "<i>ridge</i>"]
    assert (
        list(figure.layout.yaxis.tickvals)
        == [t.y[0] for t in figure.data]
        == sorted((t.y[0] for t in figure.data), reverse=True)
    )
    expected = [*(table.loc[(table.arm == a) & (table.control == c), ["pearson", "pearson_low", "pearson_high"]].iloc[0]
                  for a, c in [("text", "real"), *((("moments-vocab x16"), c) for c in ("real", "noise", "dummy"))]),
                *BASELINES[["pearson", "pearson_low", "pearson_high"]].to_numpy()]  # fmt: skip
    np.testing.assert_allclose(_points(figure), np.array(expected, float))
    low, high = figure.layout.xaxis.range
    assert all(low < a and b < high for _, a, b in _points(figure))  # no bar is cut off
    gaps = -np.diff(figure.layout.yaxis.tickvals)
    per_row = (figure.layout.height - figure.layout.margin.t - figure.layout.margin.b) / abs(
        np.diff(figure.layout.yaxis.range)[0]
    )
    assert (gaps >= 1).all() and per_row >= 17  # labels of 13 pixels do not overlap
    assert "(3 seeds of 8 items)" in figure.layout.title.text and "95 %" in figure.layout.title.text


def budgeted(seen=300, **options) -> pd.DataFrame:
    """Predictions whose mapped arm has seen `seen` labels."""
    frame = predictions(**options)
    return frame.assign(gold_labels=np.where(frame["arm"] == "text", frame["shots"], seen))


def test_an_arm_that_saw_more_labels_than_its_shots_says_so_in_every_figure():
    names = lambda frame: list(study.arms(summary(frame), BASELINES).layout.yaxis.ticktext)  # noqa: E731
    assert names(budgeted())[:3] == ["<b>text</b>", "<b>moments-vocab x16</b>, 300 labels", "noise"]
    assert names(budgeted(20)) == names(predictions()) == names(predictions().drop(columns="gold_labels"))
    assert names(budgeted(controls=("noise",)))[1] == "<b>moments-vocab x16</b>, noise, 300 labels"
    rows = study.arms(summary(budgeted()), BASELINES).data
    assert ["300 labels seen" in row.hovertemplate for row in rows] == [False, True, True, False, False]
    assert not any("labels" in row.hovertemplate for row in study.arms(summary(predictions())).data)

    both = pd.concat([budgeted(100), budgeted(200).assign(shots=200)])
    assert study.curve(summary(both), "shots").data[-1].name == "moments-vocab x16, 100 to 200 labels"
    plain = pd.concat([budgeted(20), budgeted(200).assign(shots=200)])
    assert study.curve(summary(plain), "shots").data[-1].name == "moments-vocab x16"

    one = budgeted().query("arm != 'text' and control == 'real'")
    classes = one.assign(target="x", prediction="x")
    for figure in (study.parity(one), study.confusion(classes)):
        assert "the arm saw 300 labels" in figure.layout.title.text.replace("<br>", " ")
    for figure in (study.parity(one.assign(gold_labels=20)), study.confusion(classes.assign(gold_labels=20))):
        assert "labels" not in figure.layout.title.text


def test_the_report_says_the_labels_of_each_row_also_where_its_summary_does_not(tmp_path):
    frame = pd.concat([budgeted(100), budgeted(200).assign(shots=200)])
    pages = [
        Page(report.render(run(tmp_path / name, frame, table=table)))
        for name, table in [("a", summary(frame)), ("b", summary(frame).drop(columns="gold_labels"))]
    ]
    told = [page.words.split("What was run")[0] for page in pages]  # behind it stand the hashes of the files
    assert told[0] == told[1] and pages[0].figures == pages[1].figures
    ticks = [f["layout"]["yaxis"].get("ticktext", ()) for f in pages[0].figures.values()]
    assert [t[1] for t in ticks if len(t) > 1] == ["<b>moments-vocab x16</b>, 100 labels", "<b>moments-vocab x16</b>"]
    header, first = re.search(r"<thead>(.*?)</thead>.*?<tr>(.*?)</tr>", report.render(RunFolder.read(tmp_path / "a")), re.S).groups()  # fmt: skip
    cells = lambda tag, line: [re.sub("<.*?>", "", cell) for cell in re.findall(f"<{tag}.*?>(.*?)</{tag}>", line)]  # noqa: E731
    assert dict(zip(cells("th", header), cells("td", first)))["labels seen"] == "20"
    paper = report.render(RunFolder.read(tmp_path / "a")).split("Paper mode: ")[1]
    header = re.search(r"<thead>(.*?)</thead>", paper, re.S)[1]
    rows = [dict(zip(cells("th", header), cells("td", line))) for line in re.findall(r"<tr>(<td.*?)</tr>", paper, re.S)]
    told = {(row["arm"], row["labels seen"]) for row in rows if "labels seen" in row}
    assert {("moments-vocab x16", "100"), ("moments-vocab x16", "200")} <= told and ("text", "20") in told


def test_each_control_has_a_colour_and_a_shape_of_its_own():
    assert len(set(style.CONTROLS.values())) == len(style.CONTROLS)
    assert len({shape for _, shape in style.CONTROLS.values()}) == len(style.CONTROLS)


def test_conditions_split_the_summary_and_show_the_text_arm_beside_both():
    table = summary(predictions(texts=(False, True)))
    parts = dict(study.conditions(table))
    assert set(parts) == {"with text", "without text"}
    assert [sorted(p["arm"].unique()) for p in parts.values()] == [["moments-vocab x16", "text"]] * 2
    assert not parts["without text"].query("arm != 'text'")["with_text"].any()
    assert sum(len(p) for p in parts.values()) == len(table) + 1
    with pytest.raises(DataError, match="several conditions"):
        study.arms(table)
    with pytest.raises(DataError, match="did you mean 'pearson'"):
        study.arms(parts["with text"], metric="pearsn")


def test_one_wild_interval_does_not_crush_the_others():
    table = summary(predictions())
    table["rmse"] = [1.0, 1.1, 1.2]
    table["rmse_high"] = [1.2, 1.3, 1e9]
    low, high = study.arms(table, metric="rmse").layout.xaxis.range
    assert high - low < 3


def test_parity_shows_what_was_predicted_on_equal_axes():
    frame = predictions(arms=("text",), seeds=2)
    frame.loc[0, "prediction"] = np.nan
    figure = study.parity(frame, "kcal/mol", "energy")
    line, each, items = figure.data
    assert list(line.x) == list(line.y) == list(figure.layout.xaxis.range) == list(figure.layout.yaxis.range)
    assert len(each.x) == 15 and len(items.x) == 8
    np.testing.assert_allclose(
        items.y, frame.groupby("item", sort=False)["prediction"].mean().reindex([t for t in items.text])
    )
    assert (
        figure.layout.xaxis.title.text == "measured energy [kcal/mol]"
        and "1 of 16 predictions failed" in figure.layout.title.text
    )
    assert figure.layout.yaxis.scaleanchor == "x"


def test_the_confusions_of_a_class_sum_to_one_and_failures_are_seen():
    frame = pd.DataFrame(
        {"item": list("abcd"), "seed": 0, "target": ["x", "x", "y", "y"], "prediction": ["x", "y", "y", None]}
    )
    figure = study.confusion(frame)
    assert list(figure.layout.xaxis.ticktext) == ["x", "y", "failed"] and list(figure.layout.yaxis.ticktext) == [
        "x",
        "y",
    ]
    np.testing.assert_allclose(figure.data[0].z, [[0.5, 0.5, 0], [0, 0.5, 0.5]])


def test_a_curve_joins_one_arm_at_several_draws():
    frame = pd.concat(
        [predictions(arms=("moments x4",)).assign(draws=4), predictions(arms=("moments x16", "text")).assign(draws=16)]
    )
    table = summary(frame)
    figure = study.draws(table)
    (line,) = figure.data
    assert line.name == "moments" and list(figure.layout.xaxis.ticktext) == ["4", "16"]
    np.testing.assert_allclose(line.y, table.query("arm != 'text' and control == 'real'")["pearson"])
    assert study.has_curve(table, "draws") and not study.has_curve(table, "shots")


def test_importing_the_rooms_of_figures_stays_light():
    code = "import sys, icrl_lab.report, icrl_lab.plots.study\nassert not {'plotly', 'pandas', 'rdkit', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
