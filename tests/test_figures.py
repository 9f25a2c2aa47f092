"""What figures say and show is what their tables and readings hold, whatever these hold."""

import functools
import itertools
import re
from dataclasses import replace
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from icrl_lab.plots import attention, attribution, beside, geometry, heads, order, patching, similarity, still, study
from icrl_lab.plots.svg import svg
from icrl_lab.probes import probe
from icrl_lab.studies import Study
from icrl_lab.values import Reading
from tests.test_widgets_patching import headed
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

# ------------------------------------------------------------------------------------------------ studies


def answered(target, prediction):
    return pd.DataFrame(
        {"item": np.arange(len(target)).astype(str), "seed": 0, "target": target, "prediction": prediction}
    )


def test_classes_that_are_alike_when_shortened_stay_apart():
    names = [f"a long name of a class, number {i}" for i in range(3)]
    figure = study.confusion(answered(names, names[1:] + names[:1]))
    (heat,) = figure.data
    np.testing.assert_array_equal(heat.z, np.eye(3)[[1, 2, 0]])
    assert list(heat.x) == list(heat.y) == list(figure.layout.xaxis.tickvals) == [0, 1, 2]
    assert heat.customdata[0][1] == f"{names[0]} answered as {names[1]}"
    assert still.Still().to_mimebundle(figure.to_dict())["image/svg+xml"].count("100%") == 3 + 1  # and the scale's end


def test_classes_stand_as_people_count_and_what_failed_is_no_class():
    names = ["0", "1", "2", "10", "11", "failed"]
    figure = study.confusion(answered(names[::-1], [None, *names[-2::-1]]))
    assert list(figure.layout.yaxis.ticktext) == names and list(figure.layout.xaxis.ticktext) == [*names, "failed"]
    np.testing.assert_array_equal(figure.data[0].z, np.eye(7)[[0, 1, 2, 3, 4, 6]])


@pytest.mark.parametrize("ends", [(np.nan, np.nan), (0.1, np.nan), (np.nan, np.inf), (0.1, 0.4)])
def test_an_interval_that_is_not_known_is_no_interval_of_width_zero(ends):
    row = {
        "arm": "zero-pad",
        "control": "real",
        "shots": 4,
        "pearson": 0.274,
        "pearson_low": ends[0],
        "pearson_high": ends[1],
    }
    table = pd.DataFrame([row, {**row, "control": "noise", "pearson_low": 0.2, "pearson_high": 0.3}]).assign(
        n=30, seeds=2
    )
    known = np.isfinite(ends).all()
    figure = study.arms(table)
    drawn = [np.isfinite([*t.error_x.array, *t.error_x.arrayminus]).all() for t in figure.data]
    assert drawn == [known, True] and np.isfinite(figure.layout.xaxis.range).all()
    assert ("0.274, no interval" in figure.data[0].hovertemplate) != known
    assert svg(figure).count("<line ") - svg(study.arms(table.iloc[1:])).count("<line ") == known
    twice = pd.concat([table, table.assign(shots=8)])
    (line,) = study.curve(twice).data
    assert np.isfinite(line.error_y.array).all() == known


# ------------------------------------------------------------------------------------------------ readings

ASKED = {
    "attention": {"queries": 4},
    "lens": {"permutations": 2, "queries": 12},
    "patching": {"queries": 3, "draws": 2},
    "attribution": {"queries": 3, "steps": 4, "permutations": 2},
    "order": {"queries": 3, "permutations": 3},
    "similarity": {"queries": 3},
    "pause": {"queries": 4},
    "geometry": {"queries": 24, "methods": ("pca",)},  # which has words of its own for its intervals
}


@functools.cache
def read(question, classes=False, seeds=1, arm="zero-pad"):
    run = toy_study(classes=classes, seeds=seeds, queries=26, shots=6, arms=["text", "zero-pad"]).run(progress=False)
    return run.probe(question, arm=arm, **ASKED[question])


def figures(question, **options):
    return import_module(f"icrl_lab.plots.{question}").figures(read(question, **options))


def caption(figure):
    return figure.layout.title.text.replace("<br>", " ")


@pytest.mark.parametrize("question", [q for q in ASKED if q != "geometry"])
@pytest.mark.parametrize("seeds,words", [(1, {"queries alone"}), (2, {"seeds and"})])
def test_captions_say_over_what_the_intervals_are(question, seeds, words):
    drawn = figures(question, seeds=seeds).values()
    said = [re.findall(r"intervals? over (?:new )?(\w+ \w+)", caption(figure)) for figure in drawn]
    assert {over for one in said for over in one} == words


@pytest.mark.parametrize("classes", [False, True])
def test_only_labels_that_are_numbers_have_a_mean_and_a_distance(classes):
    figure = figures("order", classes=classes, seeds=2)["order"]
    assert (figure.layout.yaxis.title.text == "log-odds per label") == classes
    assert ("mean of the labels" in figure.to_json()) != classes


@pytest.mark.parametrize("control", ["real", "noise"])
def test_the_caption_of_maps_of_heads_speaks_of_what_is_drawn(control):
    found = read("attention", seeds=2)
    share, rho = ("share", {"control": control, "part": "label"}), ("rho", {"control": control, "target": "label"})
    said = caption(attention.heads_map(found, [share]))
    assert f"under {control} vectors" in said and "shares" in said and not re.search("ρ|rosses|p <", said)
    said = caption(attention.heads_map(found, [rho, ("gain", {"target": "label"})]))
    assert f"under {control} vectors" in said and "ρ: Spearman" in said and "rosses" in said and "shares" not in said
    other = ("sink", {"control": "shared"} if "shared" in found["sink"]["control"] else {"control": "text"})
    figure = attention.heads_map(found, [share, other])
    assert "under" not in caption(figure) and f"{control} vectors" in figure.layout.annotations[0].text


@pytest.mark.parametrize("most,words", [(0.4, "+.0%"), (0.04, "+.1%"), (0.002, "+.2%")])
def test_small_shares_are_written_as_finely_as_they_differ(most, words):
    found = read("attention", seeds=2)
    scale = most / float(np.abs(found["shift"].sel(part="vector")).max())
    data = found.data.assign(shift=found["shift"] * scale)
    figure = attention.heads_map(Reading("attention", data, found.about), [("shift", {"part": "vector"})])
    assert figure.layout.coloraxis.colorbar.tickformat == words and f">{most:{words[1:]}}<" in svg(figure)


@pytest.mark.parametrize("question", ["attention", "lens", "order", "similarity"])
def test_an_arm_of_text_has_no_vectors(question):
    """Its items' texts stand where the others have their vectors."""
    drawn = figures(question, arm="text", seeds=2)
    assert any("the item as text" in figure.to_json() for figure in drawn.values())
    for name, figure in drawn.items():
        shown = [caption(figure), *(note.text for note in figure.layout.annotations)]
        shown += [str(words) for t in figure.data for words in (t.name, t.hovertemplate)]
        shown += [str(axis.ticktext) for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
        assert not re.search(r"real vectors|vectors?'|→ vector|'own vector|shots' vector", " ".join(map(str, shown))), (
            name
        )


def test_only_the_null_is_called_so():
    found = read("attention", seeds=2)
    for null in ("noise", "text"):
        said = [note.text for note in heads.arcs(found, null=null).layout.annotations]
        assert any("(null)" in words for words in said) == (null == found.about["null"])


@pytest.mark.parametrize(
    "question,draw", [("similarity", similarity.figure), ("similarity", similarity.curves), ("order", order.orders)]
)
def test_a_metric_with_units_is_drawn_alike_on_every_scale(question, draw):
    found, tiny = read(question, seeds=2), 1e-6
    names = [n + end for n in ("score", "gain", "curve_score") for end in ("", "_low", "_high") if n in found.names]
    small = Reading(question, found.data.assign({n: found[n] * tiny for n in names}), found.about)
    for axis in ("yaxis",) if draw is similarity.curves else ("xaxis", "xaxis2"):
        ranges = [np.array(draw(reading, "rmse").layout[axis].range) for reading in (found, small)]
        np.testing.assert_allclose(ranges[1], ranges[0] * tiny)


def test_small_numbers_with_units_are_not_zero():
    found, tiny = read("order", seeds=2), 1e-6
    names = [n + end for n in ("spread", "outcome") for end in ("", "_low", "_high") if n + end in found.names]
    small = Reading("order", found.data.assign({n: found[n] * tiny for n in names}), found.about)
    assert "e-0" in order.spread(small).layout.annotations[0].text
    found = read("attribution", seeds=2)
    small = Reading("attribution", found.data.assign(outcome=found["outcome"] * tiny), found.about)
    assert re.search(r"answer -?\d[.\d]*e-0", caption(attribution.figure(small)))


@pytest.mark.parametrize("classes", [False, True])
def test_units_of_answers_are_whole(classes):
    found = read("order", classes=classes, seeds=2)
    title = order.spread(found).layout.yaxis.title.text
    assert title.replace("<br>", " ") == found.about["units"] and max(map(len, title.split("<br>"))) <= 24


def test_open_marks_are_spoken_of_where_there_are_any():
    found = read("similarity", seeds=2)
    query, seed = found["query"].values[0], int(found["seed"].values[0])
    for selection in found["selection"].values.tolist():
        figure = similarity.replay(found, query, seed, selection)
        opened = any(t.hovertemplate and "as it was" in t.hovertemplate for t in figure.data)
        assert opened == ("open: the same" in caption(figure)) == (selection != "random")


@pytest.mark.parametrize("ways,words", [(["ig"], "One method replaces"), (["ig", "shapley"], "Two methods replace"), (["ig", "shapley", "ablation"], "Three methods replace")])  # fmt: skip
def test_the_methods_that_are_drawn_are_counted(ways, words):
    found = read("attribution", seeds=2)
    some = Reading("attribution", found.data.sel(by=[*ways, "leave-one-out", "placebo"]), found.about)
    figure = attribution.figure(some)
    assert f"{words} vectors" in caption(figure) and len(figure.data) == len(ways) + 1


def test_the_name_of_a_query_is_no_markup_beside_its_point():
    found = read("attribution", seeds=2)
    names = ["<img src=x onerror=alert(1)>", *found["query"].values[1:]]
    drawn = attribution.completeness(Reading("attribution", found.data.assign_coords(query=names), found.about))
    said = str([t.customdata.tolist() for t in drawn.data])  # as it is: a figure's JSON has no "<" in any case
    assert "onerror" in said and "<img" not in said


def test_unit_vectors_have_no_correlation_of_norms():
    found = read("geometry", seeds=2)
    ones = 1 - 6e-8 * np.arange(found["norm_before"].size).reshape(found["norm_before"].shape) % 2
    ends = {f"norm_correlation{end}": found[f"norm_correlation{end}"] * np.nan for end in ("", "_low", "_high")}
    data = found.data.assign(norm_before=found["norm_before"] * 0 + ones, layer_width=np.inf, **ends)
    figure = geometry.distortion(Reading("geometry", data, found.about))
    said = caption(figure)
    assert "all norms are equal" in said and not re.search(r"\b(nan|inf)\b", said + str([t.name for t in figure.data]))
    assert np.ptp(figure.layout.xaxis2.range) > 0.1
    assert "norms correlate at" in caption(geometry.distortion(found))


@pytest.mark.parametrize("number", [2, 4, 6])
def test_panels_of_heads_leave_room_for_ticks_and_titles(number):
    found = headed()
    figure = patching.heads(Reading("patching", found.data.isel(head=slice(0, number)), found.about))
    tall = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    ends = sorted(tuple(axis.domain) for axis in figure.select_yaxes())
    assert len(ends) > 1 and min(b[0] - a[1] for a, b in itertools.pairwise(ends)) * tall > 44


@pytest.mark.parametrize(
    "question,name", [("order", "spread"), ("attention", "overview"), ("attention", "sink and shift")]
)
def test_titles_of_panels_do_not_lie_on_the_caption(question, name):
    figure = figures(question, classes=True, seeds=2)[name]
    first = max(figure.layout.annotations, key=lambda note: note.y)
    assert (first.yref, first.yanchor) == ("paper", "bottom") and first.y > 0.99
    assert figure.layout.margin.t >= 42 + 16 * figure.layout.title.text.count("<br>") + 14


@pytest.mark.parametrize("low, high, want", [(np.nan, np.nan, (0.3, 0.5)), (0.2, 0.7, (0.2, 0.7))])
def test_an_axis_shows_estimates_that_have_no_interval(low, high, want):
    """Of three or four queries a correlation has none; and where nothing is known at all there is still an axis."""
    values = {"score": [0.3, 0.5, np.nan], "score_low": [low, np.nan, np.nan], "score_high": [np.nan, high, np.nan]}
    data = xr.Dataset({name: ("by", np.array(value)) for name, value in values.items()})
    least, most = beside._reach(data, "score", "pearson")
    assert least <= min(0.0, want[0]) and want[1] < most < want[1] + 0.1
    nothing = beside._reach(data * np.nan, "score", "pearson")
    assert np.isfinite(nothing).all() and nothing[0] < nothing[1]


# ------------------------------------------------------------------------------------------------ what is not known


@functools.cache
def small(question: str) -> Reading:
    """One seed and three queries, too few for the interval of a correlation and for any test; items with markup for a text."""
    task = toy_task()
    task = replace(task, ids=tuple(f"it & <b>{i}" for i in range(len(task))), text=tuple(f"a & <i>{i}" for i in range(len(task))))  # fmt: skip
    study = Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "arms": ["zero-pad"], "seeds": 1, "queries": 3})
    return probe(question, study)


def words_of(value) -> list[str]:
    """Every string in a figure."""
    if isinstance(value, str):
        return [value]
    value = value.ravel().tolist() if isinstance(value, np.ndarray) and value.dtype == object else value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [word for part in parts for word in words_of(part)]


@pytest.mark.parametrize("question", ["attention", "attribution", "order", "patching", "pause", "similarity"])
def test_what_is_not_known_is_said_in_words_and_items_are_escaped_once(question):
    reading = small(question)
    drawn = [f.to_plotly_json() for f in import_module(f"icrl_lab.plots.{question}").figures(reading).values()]
    templates = [str(t.get("hovertemplate")) for f in drawn for t in f["data"]]
    numbers = (
        r"p %\{|\[%\{"  # p-values and ends of intervals that the browser would write, as NaN where they are not known
    )
    assert not any(re.search(numbers, template) for template in templates)
    shown = [str(w) for f in drawn for t in [f["layout"], *f["data"]] for w in words_of(t)]
    for sentence in [*reading.about["says"], *shown]:
        assert not re.search(r"\bnan\b", sentence), sentence
        assert not re.search(r"&amp;(amp|lt|gt);|(?<!&)<i>\d", sentence), sentence
    if question in ("order", "similarity", "pause"):
        assert any("no interval" in s and "not tested" in s for s in reading.about["says"])


@pytest.mark.parametrize("p,words", [(np.nan, "does not lean"), (0.2, "does not lean"), (0.01, "leans to")])
def test_a_lean_that_was_not_tested_is_no_finding(p, words):
    data = xr.Dataset({"recency": ("control", [0.3]), "recency_p": ("control", [p])}, {"control": ["real"]})
    assert import_module("icrl_lab.probes.order")._leans(data, "recency").startswith(words)
