"""The report of a run: one HTML file that says what was run, what came out and what to make of it.

Owns the order in which things are told. It needs the run folder and nothing else: no model, no network. It quotes numbers
and computes none, except to pick which predictions to show. Whatever came from outside (ids, SMILES, answers of a model,
names in a study file) is text to it and never markup.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import MissingExtra
from icrl_lab.files import write_text
from icrl_lab.plots import page, study
from icrl_lab.plots.page import text
from icrl_lab.plots.words import many
from icrl_lab.studies.folder import Record, RunFolder
from icrl_lab.studies.place import disk_trouble

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MOST = 200  # rows of a list that could be as long as the data
SHOWN = 4  # molecules drawn of the best and of the worst predictions, or of the wrong and of the right

WORDS = {  # columns of the summary, as the report calls them
    "p_holm": "p (Holm)",
    "n": "predictions",
    "copy_rate": "copies of shot labels",
    "spread_ratio": "spread of predictions over targets",
    "efficiency": "skill over ridge's",
}

OVER = (  # what an interval is over: with one seed, and with several
    "An interval is over new items of this task alone: one seed says nothing of other shots, map draws and orders. It says "
    "nothing about another task, encoder or model.",
    "An interval is over new seeds (shots, map draws, orders) and new items of this task. It says nothing about another "
    "task, encoder or model.",
)
CAVEATS = (
    "The verdict compares an arm with noise in place of its vectors, on the same prompts, seeds and items, corrected over "
    "all arms and settings of this study. “No evidence” is not evidence of none: a small study may miss a small effect.",
    "A failed answer counts as the mean of its shots (or their most frequent class) in every metric; it is never dropped.",
    "An answer copies a shot where its most probable value is that of a label shown: with ten labels, and shots spread over all of "
    "them, nearly every answer does, under noise, too.",
    "Arms see different numbers of labels where their label budget differs; compare those that see the same.",
    "Controls without the item's vector show what the prompt, the labels and the format give by themselves.",
)


def write(folder: str | os.PathLike) -> Path:
    """Read a finished run, write its report.html and return where that is. DataError for a folder that cannot be read."""
    record = RunFolder.read(folder)
    path = record.path / "report.html"
    html = render(record)
    with disk_trouble(record.path):
        write_text(path, html)
    return path


def render(record: Record) -> str:
    """The report as a string of HTML; the same run gives the same bytes."""
    record = replace(record, summary=_with_labels(record))
    record = replace(record, summary=_in_order(record))
    figures: dict[str, go.Figure] = {}
    about = _about(record)
    body = [
        _head(record, about),
        _result(record, about, figures),
        _baselines(record, about),
        _figures(record, about, figures),
        _examples(record, about),
        _probes(record, figures),
        _paper(record, about),
        _failures(record),
        _dropped(record),
        _run(record),
        "<h2>How to read this</h2>\n" + _list([OVER[record.predictions["seed"].nunique() > 1], *CAVEATS]),
    ]
    return page.page(f"{about['name']}: a study of in-context representations", "\n".join(filter(None, body)), figures)


# --------------------------------------------------------------------------------------------- parts


def _with_labels(record: Record) -> pd.DataFrame:
    """The summary with the labels that each arm saw: from the predictions, where it does not have them itself."""
    summary, frame = record.summary, record.predictions
    if "gold_labels" in summary or "shots" not in summary or "gold_labels" not in frame:
        return summary
    seen = frame.groupby(["arm", "shots"])["gold_labels"].max().to_dict()
    return summary.assign(gold_labels=[seen.get(key, np.nan) for key in zip(summary["arm"], summary["shots"])])


def _in_order(record: Record) -> pd.DataFrame:
    """The summary with its arms in the order of the study file."""
    found = record.manifest.get("study")
    arms = found.get("study", {}).get("arms", []) if isinstance(found, Mapping) else []
    place = {arm.get("as"): i for i, arm in enumerate(arms) if isinstance(arm, Mapping)}
    order = record.summary["arm"].map(lambda arm: place.get(arm, len(place)))
    return record.summary.iloc[np.argsort(order.to_numpy(), kind="stable")].reset_index(drop=True)


def _about(record: Record) -> dict[str, Any]:
    """What the parts need to know of the task."""
    task = record.manifest.get("task")
    task = dict(task) if isinstance(task, Mapping) else {}
    first = record.predictions.iloc[0] if len(record.predictions) else {}
    task.setdefault("name", str(first.get("task", "run")))
    task.setdefault("units", "")
    task.setdefault("property", "")
    metric = "accuracy" if "accuracy" in record.summary and "pearson" not in record.summary else "pearson"
    return {**task, "metric": metric}


def _head(record: Record, about: Mapping[str, Any]) -> str:
    one = lambda name: ", ".join(map(str, record.predictions[name].unique()))  # noqa: E731
    frame = record.predictions
    took = record.manifest.get("seconds")
    parts = [
        f"{about['property'] or about['name']}" + (f" in {about['units']}" if about["units"] else ""),
        f"{many(frame['item'].nunique(), 'item')} asked about, {many(frame['seed'].nunique(), 'seed')}, {one('shots')} shots",
        f"encoder {one('encoder')}, model {one('llm')}",
        many(len(frame), "prediction") + (f" in {took:,.0f} s" if isinstance(took, (int, float)) else ""),
    ]
    lines = "".join(f"<li>{text(p)}</li>" for p in parts)
    return f"<h1>{text(about['name'])}: does the model use the vectors?</h1>\n<ul>{lines}</ul>"


def _result(record: Record, about: Mapping[str, Any], figures: dict[str, go.Figure]) -> str:
    """The table of the arms with their intervals and verdicts, a figure beside it, all cells below."""
    metric, out = about["metric"], ["<h2>What came out</h2>"]
    parts = sorted(study.conditions(record.summary), key=lambda part: "permuted" in part[0])
    for number, (words, rows) in enumerate(parts):
        real = rows[rows["control"] == "real"] if (rows["control"] == "real").any() else rows
        name = f"arms-{number}"
        figures[name] = study.arms(rows, record.baselines, metric, about["units"])
        cells = _cells(rows, about) + _notes(rows)
        inner = (
            _cells(real, about, short=True)
            + page.figure(name)
            + (
                f"<details><summary>all {len(rows)} cells, with every control</summary>{cells}</details>"
                if len(rows) > len(real)
                else ""
            )
        )
        title = words[:1].upper() + words[1:]
        if number == 0:
            out.append((f"<h3>{text(title)}</h3>" if title else "") + inner)
        else:
            out.append(f"<details><summary>{text(title)}</summary>{inner}</details>")
    return "\n".join(out)


def _cells(rows: pd.DataFrame, about: Mapping[str, Any], short: bool = False) -> str:
    """A table of cells; the short one has what a reader asks first: the verdict, the main metric, the difference to noise."""
    metric = about["metric"]
    metrics = [m for m in (("rmse",) if short else study.METRICS) if m in rows and m != metric]
    plain = ["p_holm", "failures", *(() if short else ("copy_rate", "spread_ratio", "efficiency", "n", "seeds"))]
    plain = [c for c in plain if c in rows]
    header = ["arm", *([] if short else ["control"]), "verdict", study.METRICS[metric], "difference to noise"]
    header += [
        *(study.measured(m, about["units"]) for m in metrics),
        "labels seen",
        "draws",
        *(WORDS.get(c, c) for c in plain),
    ]
    body = []
    for _, row in rows.iterrows():
        verdict = row.get("verdict")
        verdict = verdict if isinstance(verdict, str) else ""
        kind = {"uses the vector": "uses", "harmed by it": "harmed"}.get(verdict, "")
        body.append(
            [
                text(row["arm"]),
                *([] if short else [text(row["control"])]),
                f'<span class="{kind}">{text(verdict)}</span>',
                _interval(row, metric),
                _interval(row, f"delta_{metric}"),
                *(_interval(row, m) for m in metrics),
                _number(row.get("gold_labels")),
                _number(row.get("draws")),
                *("&lt;0.001" if c == "p_holm" and row[c] < 0.001 else _number(row[c]) for c in plain),
            ]
        )
    return page.table(body, header, raw=range(len(header)))


def _notes(rows: pd.DataFrame) -> str:
    """What the statistics say beside the numbers of some cells."""
    said = rows[rows["note"].astype(str).str.len() > 0] if "note" in rows else rows.iloc[:0]
    lines = [
        f"<li>{text(r['arm'])}, {text(r['control'])}: {text(r['note'])}</li>"
        for _, r in said.iterrows()
        if isinstance(r["note"], str)
    ]
    return f'<ul class="soft">{"".join(lines[:MOST])}</ul>' if lines else ""


def _interval(row: Mapping[str, Any], name: str) -> str:
    numbers: list[Any] = [row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high")]
    if None in numbers or not _number(numbers[0]):
        return _number(numbers[0])
    small = max(abs(v) for v in numbers if v == v) < 0.1  # else the digits of an end near zero say nothing
    value, low, high = (_number(v, ".2f" if not small and abs(v) < 10 else ".3g") for v in numbers)
    return f"{value} <small>{f'[{low}, {high}]' if low and high else 'no interval'}</small>"


def _number(value: Any, form: str | None = None) -> str:
    """A number with three significant figures at most, or nothing."""
    if value is None or isinstance(value, str) or value != value:
        return ""
    value = 0.0 if abs(value) < 1e-12 else value  # rounding, not a result
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{int(value)}".replace("-", "−")
    told = f"{value:{form or ('.2f' if 0.005 <= abs(value) < 10 else '.3g')}}"
    return "0.00" if told == "-0.00" else told.replace("-", "−")


def _baselines(record: Record, about: Mapping[str, Any]) -> str:
    frame = record.baselines
    if not len(frame):
        return ""
    metrics = [m for m in dict.fromkeys([about["metric"], *study.METRICS]) if m in frame]
    name = next(c for c in ("baseline", "arm", frame.columns[0]) if c in frame)
    others = [c for c in ("labels", "shots", "selection", "n", "seeds") if c in frame]
    body = [
        [text(row[name]), *(_interval(row, m) for m in metrics), *(text(row[c]) for c in others)]
        for _, row in frame.iterrows()
    ]
    header = ["baseline", *(study.measured(m, about["units"]) for m in metrics), *others]
    return "<h2>Baselines on the same shots and items</h2>\n" + page.table(body, header, raw=range(len(header)))


def _best(record: Record, about: Mapping[str, Any]) -> tuple[str, pd.DataFrame]:
    """The predictions of the real cell with the best main metric, true labels; and in words, whose they are: the arm, and of a
    study of several conditions, which."""
    rows, frame = record.summary, record.predictions
    for column, value in (("control", "real"), ("labels", "true")):
        if (rows[column] == value).any():
            rows = rows[rows[column] == value]
    if not len(rows) or not len(frame):
        return "", frame.iloc[:0]
    best = rows.iloc[int(np.nanargmax(np.nan_to_num(rows[about["metric"]].to_numpy(float), nan=-np.inf)))]
    keep = np.ones(len(frame), bool)
    for column in ("arm", "control", *study.CONDITIONS):
        if column in rows:
            keep &= (frame[column] == best[column]).to_numpy()
    condition = next(words for words, part in study.conditions(record.summary) if best.name in part.index)
    control = "" if best["control"] == "real" else str(best["control"])
    return ", ".join(filter(None, [str(best["arm"]), control, condition])), frame[keep]


def _figures(record: Record, about: Mapping[str, Any], figures: dict[str, go.Figure]) -> str:
    name, best = _best(record, about)
    if not len(best):
        return ""
    if about["metric"] == "accuracy":
        figures["best"] = study.confusion(best, title=f"True class and answer, {name}")
    else:
        figures["best"] = study.parity(
            best, about["units"], about["property"], title=f"Predicted against measured, {name}"
        )
    out = [f"<h2>The best arm's predictions ({text(name)})</h2>", page.figure("best")]
    for axis in ("shots", "draws"):
        if study.has_curve(record.summary, axis):
            figures[f"by-{axis}"] = study.curve(record.summary, axis, about["metric"], about["units"])
            out += [f"<h2>The number of {axis}</h2>", page.figure(f"by-{axis}")]
    return "\n".join(out)


def _examples(record: Record, about: Mapping[str, Any]) -> str:
    """Molecules that the best arm predicts best and worst, drawn; a failure counts as in every metric."""
    from icrl_lab.studies.result import counted

    items = record.items
    if about.get("modality") != "molecule" or not {"id", "text"} <= set(items.columns):
        return ""
    name, best = _best(record, about)
    if not len(best):
        return ""
    classes = about["metric"] == "accuracy"
    parts = _by_right(counted(best)) if classes else _by_error(counted(best))
    smiles = dict(zip(items["id"].astype(str), items["text"].astype(str)))
    said = _classes if classes else partial(_numbers, units=about["units"])
    try:
        drawn = [
            (title, [_card(str(i), smiles.get(str(i), ""), said(row)) for i, row in some.iterrows()])
            for title, some in parts
            if len(some)
        ]
    except MissingExtra as missing:
        return f'<h2>Molecules</h2>\n<p class="soft">{text(missing)}</p>'
    if not drawn:
        return ""
    cards = "".join(f'<h3>{text(title)}</h3><div class="cards">{"".join(some)}</div>' for title, some in drawn)
    return f"<h2>Molecules of the best arm ({text(name)})</h2>\n{cards}"


def _by_error(best: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The molecules nearest to their measurement and those farthest from it, over all seeds; one alone is neither."""
    answer, error = best["prediction"].where(~best["failed"]), (best["prediction"] - best["target"]).abs()
    by = best.assign(answer=answer, error=error, seeds=1).groupby("item")
    each = by.agg({"target": "first", "answer": "mean", "error": "mean", "failed": "sum", "seeds": "sum"})
    each = each[each["error"].notna()].sort_values("error", kind="stable")
    few = min(SHOWN, len(each) // 2)
    return [("Nearest to the measurement", each.iloc[:few]), ("Farthest from it", each.iloc[::-1].iloc[:few])]


def _by_right(best: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The molecules whose class is answered wrong most often, and those where it is right; of equals, the first of the task."""
    answer = best["prediction"].where(~best["failed"])
    by = best.assign(answers=answer, right=best["prediction"] == best["target"], seeds=1).groupby("item", sort=False)
    each = by.agg({"target": "first", "answers": list, "right": "sum", "failed": "sum", "seeds": "sum"})
    share, several = each["right"] / each["seeds"], bool((each["seeds"] > 1).any())
    order = share.sort_values(kind="stable").index, share.sort_values(kind="stable", ascending=False).index
    wrong, right = ([i for i in some if (share[i] > 0.5) == good][:SHOWN] for some, good in zip(order, (False, True)))
    titles = ("Wrong in half of the seeds or more", "Right in most seeds") if several else ("Wrong", "Right")
    return list(zip(titles, (each.loc[wrong], each.loc[right])))


def _card(name: str, smiles: str, said: str) -> str:
    from icrl_lab.plots.molecules import drawing

    picture = drawing(smiles)
    shown = f'<img alt="{text(smiles)}" src="{picture}">' if picture else ""
    label = f"<b>{text(name)}</b><br>" + (f"{text(smiles)}<br>" if smiles != name else "")
    return f'<div class="card">{shown}<div>{label}{said}</div></div>'


def _numbers(row: Mapping[str, Any], units: str) -> str:
    """What was measured and predicted of a molecule."""
    guess = _number(row["answer"])  # "" where it always failed
    numbers = f"measured {_number(row['target'])}" + (f", predicted {guess}" if guess else "") + f" {text(units)}"
    error = f"mean error {_number(row['error'])} {text(units)}".rstrip()
    return f"{numbers}<br>{error}{_lost(row)}"


def _classes(row: Mapping[str, Any]) -> str:
    """A molecule's class and those that were answered, each with its seeds where they differ."""
    given = [answer for answer in row["answers"] if isinstance(answer, str)]
    count = {c: given.count(c) for c in sorted(set(given), key=lambda c: (-given.count(c), c))}
    where = {c: "" if n == row["seeds"] else f" in {n} of {many(row['seeds'], 'seed')}" for c, n in count.items()}
    told = [f"true class: {text(row['target'])}", *(f"predicted{some}: {text(c)}" for c, some in where.items())]
    return "<br>".join(told) + _lost(row)


def _lost(row: Mapping[str, Any]) -> str:
    return f"<br>failed in {row['failed']:.0f} of {row['seeds']:.0f} seeds" if row["failed"] else ""


def _probes(record: Record, figures: dict[str, go.Figure]) -> str:
    """What was probed: for each reading what it says, its figures, and what it cannot show."""
    from importlib import import_module

    from icrl_lab.probes.running import saved

    out = []
    for question, reading in saved(record.path).items():
        drawn = import_module(f"icrl_lab.plots.{question}").figures(reading)
        named = {f"{question}-{number}": figure for number, figure in enumerate(drawn.values())}
        figures |= named
        first, *rest = named
        about = f"{reading.about.get('arm', '')}; {reading.about.get('n', '')}"
        more = f"<details><summary>more figures</summary>{''.join(map(page.figure, rest))}</details>" if rest else ""
        out.append(
            f'<h3>{text(question.capitalize())}</h3>\n<p class="soft">{text(about)}</p>\n{_list(reading.about.get("says", ()))}'
            f"{page.figure(first)}{more}\n<details><summary>what this cannot show, and how it was measured</summary>"
            f"{_list([*reading.about.get('limits', ()), *filter(None, [reading.about.get('interval', '')])])}</details>"
        )
    return "<h2>Inside the model</h2>\n" + "\n".join(out) if out else ""


def _list(sentences: Iterable[Any]) -> str:
    return "<ul>" + "".join(f"<li>{text(s)}</li>" for s in sentences) + "</ul>"


def _paper(record: Record, about: Mapping[str, Any]) -> str:
    """The published way of scoring beside the honest one, named for what it is."""
    from icrl_lab import stats

    frame = record.predictions
    for column, wanted in (("control", "real"), ("labels", "true")):
        frame = frame[frame[column] == wanted] if (frame[column] == wanted).any() else frame
    if not len(frame):
        return ""
    table = stats.paper_mode(frame)
    table = table[table["metric"].isin([about["metric"], "rmse"])]
    varying = [c for c in study.CONDITIONS if c in table and table[c].nunique() > 1]
    names = [study.measured(m, about["units"]) for m in table["metric"]]
    body = [
        [
            row["arm"],
            *(str(row[c]) for c in varying),
            _number(row.get("gold_labels")),
            name,
            _number(row["honest"]),
            _number(row["paper"]),
            row["selection_of_seeds"],
        ]
        for name, (_, row) in zip(names, table.iterrows())
    ]
    note = (
        "The source paper reports the mean of its best 3 of 10 seeds, chosen by their score on the test items. Chosen that "
        "way, a figure is biased upwards; it is here only to compare with numbers published so."
    )
    header = ["arm", *varying, "labels seen", "metric", "all seeds", "paper mode", "what paper mode is"]
    return (
        f'<h2>Paper mode: seeds chosen on the test score</h2>\n<p class="warning">{text(note)}</p>\n'
        f"<details><summary>paper mode beside all seeds</summary>{page.table(body[:MOST], header)}</details>"
    )


def _failures(record: Record) -> str:
    frame = record.predictions
    failed = frame[frame["status"] != "ok"]
    intro = f"<h2>Failures</h2>\n<p>{len(failed):,} of {len(frame):,} predictions failed; a failure counts in every metric.</p>"
    if not len(failed):
        return intro
    counts = failed.groupby(["arm", "control", "status"], sort=True).size().reset_index(name="rows")
    samples = failed.drop_duplicates("status")
    raw = dict(zip(samples["status"], samples["raw"].astype(str).str.slice(0, 120)))
    body = [[*row, raw.get(row[2], "")] for row in counts.itertuples(index=False, name=None)]
    return (
        intro
        + page.table(body[:MOST], ["arm", "control", "reason", "rows", "an answer of this kind"], wide=[2, 4])
        + _more(len(body))
    )


def _dropped(record: Record) -> str:
    task = record.manifest.get("task")
    dropped = task.get("dropped", []) if isinstance(task, Mapping) else []
    intro = f"<h2>Rows left out of the data</h2>\n<p>Left out or merged: {len(dropped):,}.</p>"
    keys = ("row", "id", "column", "reason")
    place = lambda d: d.get("place") or ("" if d.get("row") is None else f"row {d['row'] + 1}")  # noqa: E731
    body = [[place(d), *(d.get(k, "") for k in keys[1:])] for d in dropped[:MOST]]
    return intro + (page.table(body, keys, wide=[3]) + _more(len(dropped)) if body else "")


def _more(count: int) -> str:
    return f'<p class="soft">The first {MOST} of {count:,}; all stand in the run folder.</p>' if count > MOST else ""


def _run(record: Record) -> str:
    """The manifest as a table: everything that was set, measured and hashed."""
    skip = {"files", "format", "finished"}
    rows = [pair for key, value in record.manifest.items() if key not in skip for pair in _flat(key, value)]
    files = [[name, digest] for name, digest in record.manifest["files"].items()]
    listed = f"<details><summary>{len(files)} files and their SHA-256</summary>{page.table(files[:MOST], ['file', 'SHA-256'])}{_more(len(files))}</details>"
    return "<h2>What was run</h2>\n" + page.table(rows, ["key", "value"], wide=[1]) + listed


def _flat(key: str, value: Any) -> list[list[str]]:
    if isinstance(value, Mapping) and value and len(json.dumps(value)) > 60:
        return [pair for k, v in value.items() if k != "dropped" for pair in _flat(f"{key}.{k}", v)]
    return [[key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]]
