"""Patching gives back what was there, takes away what was cut, and finds nothing where nothing is."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from icrl_lab.engine import attention
from icrl_lab.errors import DataError, StudyError
from icrl_lab.plots import cells
from icrl_lab.plots import patching as plots
from icrl_lab.plots.svg import svg
from icrl_lab.probes import changing, coalitions
from icrl_lab.probes import interventions as edit
from icrl_lab.probes import patching as probe
from icrl_lab.probes.changing import cuts, inputs
from icrl_lab.probes.edited import Pair, places
from icrl_lab.probes.patching import Cell, heads, patching
from icrl_lab.probes.recovery import restored
from icrl_lab.probes.scene import Scene, scene
from icrl_lab.values import Capture, Patch, Reading
from tests.toy import toy_study

FAMILIES = {"llama": "digits", "gemma3": "unigram"}
FAMILY = pytest.mark.parametrize("name", FAMILIES)
ARM = "random-projection"
KINDS = ("restore", "heads", "cuts", "inputs")
MORE = {"restore": {"draws": 1}, "heads": {"draws": 1}, "inputs": {"depths": (0, 2), "draws": 1}}


@cache
def study(name: str = "llama", **plan):
    return toy_study(name, FAMILIES[name], **{"label_format": "digit", **plan})


@cache
def read(kind: str, name: str = "llama") -> Reading:
    probe_of = {"restore": patching, "heads": heads, "cuts": cuts, "inputs": inputs}[kind]
    return probe_of(study(name), ARM, queries=6, **MORE.get(kind, {}))


def scenes(name: str = "llama", **options) -> tuple[Scene, Scene]:
    return tuple(scene(study(name), ARM, control, queries=6, **options) for control in ("real", "shuffled"))


# ------------------------------------------------------------------------------------------------ restoring


@FAMILY
def test_the_whole_input_and_the_last_state_restore_everything(name):
    found = read("restore", name)
    top = int(found["depth"][-1])
    total = found["total"].values
    assert np.abs(total).min() > 1e-3
    for at in ({"group": "all slots", "depth": 0}, {"group": "answer", "depth": top}):
        assert np.abs(found["restored"].sel(at).values - total).max() < 1e-4
        assert found["share"].sel(at) == pytest.approx(1, abs=1e-3)
        assert found["share_low"].sel(at) == pytest.approx(1, abs=1e-2)
        assert np.abs(found["unmoved"].sel(at).values - total).max() > 1e-2  # a random direction does not
    assert not found["restored"].sel(group="answer", depth=0).any()  # the same token in both runs
    unread = {"group": "all slots", "depth": top}  # nobody reads them any more: not even rounding is left to be tested
    assert np.abs(found["restored"].sel(unread)).max() < 1e-4 and float(found["share_p"].sel(unread)) == 1
    slots = found["restored"].sel(depth=0)
    assert np.abs(slots.sel(group="query slot") - slots.sel(group="all slots")).max() > 1e-3


@FAMILY
def test_a_cell_is_what_a_patch_by_hand_gives(name):
    found, heads_found = read("restore", name), read("heads", name)
    real, dirty = scenes(name, seed=1)
    depth = int(found["depth"][1])
    for i, (p, parts) in enumerate(zip(dirty.prompts, dirty.parts)):
        at = (*parts.of_shots("label").tolist(), len(p) - 1)
        trace = real.engine.run([real.prompts[i]], [0], Capture(hidden=at, outputs=at)).traces[0]
        made = [
            p.edited(Patch(depth, at[:-1], trace.hidden[depth, :-1])),
            p.edited(Patch(depth, at[-1:], trace.hidden[depth, -1:])),
            p.edited(Patch(1, at[-1:], trace.outputs[1, 4, -1:], head=4)),
        ]
        got = dirty.read(made, [i] * 3) - dirty.read()[i]
        mine = found["restored"].sel(depth=depth, seed=1).isel(query=i)
        head = heads_found["restored"].sel(group="answer", layer=1, head=4, seed=1).isel(query=i)
        wanted = [float(mine.sel(group=g)) for g in ("shot labels", "answer")] + [float(head)]
        assert np.abs(got - wanted).max() < 1e-4
        assert np.abs(wanted).max() > 1e-3


@FAMILY
def test_queries_are_exchangeable(name):
    """Another order of the queries: the same numbers for each, placebo and cuts included, and the same statistics."""
    one = scene(study(name), ARM, queries=5)
    order = [3, 0, 4, 2, 1]
    given = one.queries.tolist()
    for ask, tables in (
        (lambda q: patching(study(name), ARM, seeds=(0,), queries=q, depths=(0, 2), verify=0, draws=1), ("restored", "unmoved", "approximated")),
        (lambda q: cuts(study(name), ARM, seeds=(0,), queries=q, windows=0, rows=("query", "onwards")), ("changed", "placebo_changed")),
        (lambda q: inputs(study(name), ARM, seeds=(0,), queries=q, draws=1, edits=("swap", "noise", "other")), ("changed", "placebo_changed")),
    ):  # fmt: skip
        a, b = ask(given), ask([given[i] for i in order])
        assert b["query"].values.tolist() == [one.ids[i] for i in order]
        for table in tables:
            assert np.abs(a[table].values[..., order] - b[table].values).max() < 2e-5, table
        main = a.names[0]
        assert np.allclose(a[main], b[main], atol=1e-3)
        assert np.allclose(a[f"{main}_low"], b[f"{main}_low"], atol=1e-2)


def bent(name: str, share: float) -> Pair:
    """A clean run that is a little way off from the corrupted one."""
    real, dirty = scenes(name, seed=0)
    bases = tuple(
        replace(d, vectors=d.vectors + share * (r.vectors - d.vectors)) for r, d in zip(real.prompts, dirty.prompts)
    )
    near = replace(real, tries=replace(real.tries, bases=bases))
    return Pair(near, dirty, near.read(), dirty.read())


@FAMILY
@pytest.mark.parametrize("by_head", [False, True])
def test_the_gradient_is_exact_for_small_corruptions(name, by_head):
    """The error is of second order: a difference ten times smaller has an error a hundred times smaller."""
    groups = ["all slots", "shot labels", "answer"]
    cells = [Cell(d, g, 2 if by_head else None) for g in groups for d in range(3)]
    error, size = [], []
    for share in (0.1, 0.01):
        pair = bent(name, share)
        exact = probe._exact(pair, cells)[0]
        slopes = probe._slopes(pair, groups, by_head)
        linear = (slopes[:, :, 2] if by_head else slopes[:, :3]).reshape(exact.shape)
        error.append(np.sqrt(((exact - linear) ** 2).mean()))
        size.append(np.sqrt((exact**2).mean()))
    assert 5 < size[0] / size[1] < 20
    assert 40 < error[0] / error[1] < 250
    assert error[1] < 0.1 * size[1]


def test_the_gradient_adds_up_over_parts_and_its_largest_are_verified():
    found = read("restore")
    fine, parts = found["fine"], found["part"].values.tolist()
    slots = [p for p in parts if p.startswith("shot") and p.endswith("slot")]
    depths = found["depth"].values.tolist()
    assert np.allclose(fine.sel(part=slots, place=depths).sum("part"), found["gradient"].sel(group="shot slots"), atol=1e-5)  # fmt: skip
    exact = found["verified"]
    assert np.isfinite(exact).sum() == min(10, len(parts))
    top = int(found["depth"][-1])
    whole = exact.sel(part="answer").dropna("place")
    assert int(whole.place[0]) != top or whole[0] == pytest.approx(1, abs=1e-3)
    size = found["fine_effect"].sel(part="answer")
    assert size.sel(place=whole.place) == size.max()


def test_heads_that_were_not_patched_say_so():
    found = heads(study(), ARM, seeds=(0,), queries=4, verify=3)
    answer, labels = (found["share"].sel(group=g).values for g in ("answer", "shot labels"))
    assert np.isfinite(answer).all() and np.isfinite(labels).sum() == 3
    assert np.isfinite(found["gradient"]).all()
    assert np.isnan(found["share_q"].sel(group="shot labels")).all()  # chosen for being large: no test
    size = found["gradient_effect"].sel(group="shot labels").values
    assert set(np.flatnonzero(np.isfinite(labels))) == set(np.argsort(-size, axis=None)[:3])
    assert any("largest gradients" in sentence for sentence in found.about["limits"])


def test_labels_of_several_tokens_have_no_gradient_and_say_so():
    many = study("gemma3", label_format="two-digit")
    found = patching(many, ARM, seeds=(0,), queries=3, depths=(0, 1))
    assert "gradient" not in found.data and any("no gradient" in s for s in found.about["limits"])
    assert found["share"].sel(group="all slots", depth=0) == pytest.approx(1, abs=1e-3)
    every = heads(many, ARM, seeds=(0,), queries=3)
    assert np.isfinite(every["share"]).all() and np.isfinite(every["share_q"]).all()


def test_classes_are_read_as_log_odds():
    found = patching(toy_study(classes=True, arms=["zero-pad"]), seeds=(0,), queries=4, depths=(0, 3), verify=0)
    assert found["share"].sel(group="all slots", depth=0) == pytest.approx(1, abs=1e-3)
    assert found["total"].attrs["units"] == "log-odds of the true class"
    off = inputs(toy_study(classes=True, arms=["zero-pad"]), seeds=(0,), queries=4, edits=("zero",), draws=1)
    assert np.allclose(off["harm"], -off["shift"])


# ------------------------------------------------------------------------------------------------ statistics


def null(rng, cells: int, seeds: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Changes that have to do with their query (over seeds and cells), and nothing with its total."""
    total = rng.standard_normal(n) + 0.5 * rng.standard_normal((seeds, n)) + 1
    query = rng.standard_normal((cells, 1, n)) + 0.7 * rng.standard_normal(n)
    return 0.3 + query + 0.5 * rng.standard_normal((cells, seeds, n)), total


def test_p_values_are_uniform_where_changes_have_nothing_to_do_with_the_difference():
    rng = np.random.default_rng(0)
    p, q = [], []
    for number in range(300):
        found = restored(*null(rng, 6, 2, 9), draws=99, seed=number)
        p.append(found.p[0])
        q.append(found.q.min())
    for level in (0.05, 0.2, 0.5, 0.8):
        assert abs(np.mean(np.array(p) <= level) - level) < 3.5 * np.sqrt(level * (1 - level) / 300)
        assert np.mean(np.array(q) <= level) < level + 3.5 * np.sqrt(level * (1 - level) / 300)
    assert np.mean(np.array(q) <= 0.5) > 0.3  # and no more careful than need be


def test_shares_are_found_with_their_interval():
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(150):
        noise, total = null(rng, 1, 3, 12)
        found = restored(0.4 * total + 0.2 * (noise - noise.mean(-1, keepdims=True)), total, draws=0)
        hits.append(found.low[0] <= 0.4 <= found.high[0])
    assert np.mean(hits) > 0.9
    noise, total = null(rng, 4, 2, 15)
    patch = np.array([0, 0.5, 1, -1])[:, None, None] * total + 0.05 * noise
    found = restored(patch, total)
    assert np.allclose(found.share, (patch * total).sum((1, 2)) / (total**2).sum())
    assert found.q[0] > 0.05 and (found.q[1:] < 0.01).all() and (found.p <= found.q).all()
    exact = restored(total, total)
    assert exact.share == exact.low == exact.high == 1
    assert np.allclose(found.effect.estimate, np.abs(patch).mean((1, 2)))


def test_what_all_queries_have_in_common_is_no_evidence():
    total = 1 + 0.1 * np.random.default_rng(2).standard_normal((2, 8))
    flat = restored(np.full((1, 2, 8), 0.9), total)
    assert flat.share > 0.8 and flat.p == 1
    nothing = restored(np.zeros((1, 2, 8)), total)
    assert nothing.share == 0 and nothing.p == nothing.q == 1


# ------------------------------------------------------------------------------------------------ cuts and inputs


@FAMILY
def test_cuts_and_inputs_are_what_is_done_by_hand(name):
    one = scene(study(name), ARM, queries=6, seed=1)
    wrong = scene(study(name), ARM, "shuffled", queries=6, seed=1)
    base = one.read()
    cut, put = (read(kind, name) for kind in ("cuts", "inputs"))
    for i, (p, parts) in enumerate(zip(one.prompts, one.parts)):
        begin, slots, labels = int(parts.query.min()), parts.of_shots("slot").tolist(), parts.of_shots("label").tolist()
        own = parts.at("slot", parts.shown).tolist()
        made = [
            edit.cut(p, [len(p) - 1], labels),
            edit.cut(p, parts.query.tolist(), slots, (0, 1)),
            edit.cut(p, range(slots[0] + 1, len(p)), slots),
            edit.zero(p, own),
            edit.mean(p, slots),
            edit.other(p, slots, wrong.prompts[i]),
        ]
        assert begin <= own[0]
        got = one.read(made, [i] * 6) - base[i]
        cells = [
            {"rows": "answer", "columns": "shot labels", "window": "all blocks"},
            {"rows": "query", "columns": "shot slots", "window": "blocks 0 to 1"},
            {"rows": "onwards", "columns": "shot slots", "window": "all blocks"},
            {"edit": "zero", "target": "query slot", "depth": 0},
            {"edit": "mean", "target": "shot slots", "depth": 0},
            {"edit": "other", "target": "shot slots", "depth": 0},
        ]
        wanted = [float((cut if "rows" in c else put)["changed"].sel(seed=1, **c).isel(query=i)) for c in cells]
        assert np.abs(got - wanted).max() < 1e-4 and np.abs(wanted).min() > 1e-5


def test_copies_of_a_shot_are_one_shot_whose_vectors_change_together():
    """Every list of shots twice, as the demo writes them: no edit meets an item with itself, and none leaves a copy as it was."""
    toy = toy_study(arms=[ARM], controls=["real", "shuffled"], with_text=False, labels="true", shots=4, repeat=2)
    for seed in range(4):  # of every second, two copies of one shot were to be exchanged
        found = inputs(toy, ARM, seeds=(0, 1), queries=3, draws=2, seed=seed)
        assert (np.abs(found["changed"]).max(("seed", "query")) > 0).all()
    one = scene(toy, ARM, queries=3, seed=0)
    prompt, slots = one.prompts[0], coalitions.vectors(one, 0)
    drawn = np.random.default_rng(7).permutation(4)
    ask = lambda kind, target: changing._change(prompt, prompt, slots, kind, target, 7, 0)  # noqa: E731
    changed = lambda p: set(np.flatnonzero(p.ids == -1)[(p.vectors != prompt.vectors).any(1)].tolist())  # noqa: E731
    first, second, query = (set(slots[n].tolist()) for n in (*drawn[:2], 4))
    assert len(first) == 2 and changed(ask("zero", "one shot")) == first
    assert changed(ask("swap", "one shot")) == first | second and changed(ask("swap", "query slot")) == first | query
    turned = ask("swap", "query slot")
    at = lambda p, where: edit.vectors_at(p, sorted(where))  # noqa: E731
    assert (at(turned, first) == at(prompt, query)).all() and (at(turned, query) == at(prompt, first)[:1]).all()
    halves = ask("swap", "shot slots")
    assert changed(halves) == set().union(*(set(s.tolist()) for s in slots[:-1]))


def test_sizes_harms_and_what_is_beyond_the_placebo():
    for kind in ("cuts", "inputs"):
        found = read(kind)
        table = found["changed"].values
        assert np.allclose(found["effect"], np.abs(table).mean((-1, -2)))
        sham = np.abs(found["placebo_changed"].values).mean((-1, -2))
        assert np.allclose(found["beyond"], found["effect"] - sham)
        truth = np.stack([scene(study(), ARM, queries=6, seed=s).target for s in found["seed"].values])
        base = found["outcome"].values
        assert np.allclose(found["harm"], (np.abs(base + table - truth) - np.abs(base - truth)).mean((-1, -2)))
        assert np.allclose(found["shift"], table.mean((-1, -2)))
        assert (found["effect_low"] >= 0).all() and (found["beyond_q"] >= found["beyond_p"]).all()
        assert np.abs(found["placebo_changed"]).max() > 1e-3


def test_zero_instead_of_a_states_is_another_thing_than_instead_of_a_vector():
    found = read("inputs")["changed"].sel(edit="zero", target="query slot")
    assert np.abs(found.sel(depth=0) - found.sel(depth=2)).max() > 1e-3


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_that_does_not_fire_raises(kind, monkeypatch):
    monkeypatch.setattr(attention, "_change", lambda *a: None)
    monkeypatch.setattr(attention.rows, "cut", lambda state, layer, q, k, v, out, lse, *rest: (out, lse))
    ask = {"restore": patching, "heads": heads, "cuts": cuts, "inputs": inputs}[kind]
    more = {"depths": (1,)} if kind in ("restore", "inputs") else {}
    with pytest.raises(RuntimeError, match="were to be edited and 0 were"):
        ask(study(), ARM, seeds=(0,), queries=3, **more)


def test_what_cannot_be_asked_is_refused():
    texts = toy_study(arms=["text", "zero-pad"])
    for ask in (patching, heads, cuts, inputs):
        with pytest.raises(StudyError, match="has no slots"):
            ask(texts, "text")
        with pytest.raises(DataError, match="at least 3, not 2"):
            ask(study(), ARM, queries=2)
    with pytest.raises(StudyError, match="'dummy' has other tokens"):
        patching(study(), ARM, corrupted="dummy", queries=3)
    with pytest.raises(DataError, match="nothing to restore"):
        patching(study(), ARM, corrupted="real", queries=3)
    with pytest.raises(StudyError, match=r"no group of positions 'anser'.*did you mean 'answer'"):
        patching(study(), ARM, groups=("anser",), queries=3)
    with pytest.raises(StudyError, match="no 'shot texts'; leave it out"):
        patching(study(), ARM, groups=("shot texts",), queries=3)
    for ask in (patching, inputs):
        with pytest.raises(StudyError, match="depth 9 is not in tiny-llama, which has depths from 0 to 3"):
            ask(study(), ARM, depths=(0, 9), queries=3)
    with pytest.raises(StudyError, match="no rows 'querry'"):
        cuts(study(), ARM, rows=("querry",), queries=3)
    with pytest.raises(StudyError, match="windows is 4"):
        cuts(study(), ARM, windows=4, queries=3)
    with pytest.raises(StudyError, match="no 'swop' for vectors; did you mean 'swap'"):
        inputs(study(), ARM, edits=("swop",), queries=3)


def test_groups_are_where_they_say():
    one = scene(study(with_text=True, repeat=2, markers="paren"), ARM, queries=3)
    for p, parts in zip(one.prompts, one.parts):
        last, own = len(p) - 1, parts.at("slot", 8)[-1]
        assert places(parts, "answer") == (last,)
        assert set(places(parts, "between")) == {t for t in range(own + 1, last) if parts.shot[t] == 8}
        assert set(places(parts, "all slots")) == {*places(parts, "shot slots"), *places(parts, "query slot")}
        assert len(places(parts, "shot slots")) == 8 and len(places(parts, "shot texts")) >= 8
        assert places(parts, "shot 3 label") == (places(parts, "shot labels")[3],)
    each = patching(study(), ARM, seeds=(0,), queries=3, depths=(0,), groups=("each slot", "all slots"), gradient=False)
    assert each["group"].values.tolist() == [*(f"shot {s} slot" for s in range(4)), "all slots"]


# ------------------------------------------------------------------------------------------------ readings and figures


@pytest.mark.parametrize("kind", KINDS)
def test_a_reading_says_what_it_is_and_comes_back(kind, tmp_path):
    found = read(kind)
    told = json.loads(json.dumps(dict(found.about)))
    assert found.question == "patching" and told["kind"] == kind and told["n"] == "2 seeds x 6 queries"
    assert 1 <= len(told["says"]) <= 5 and told["limits"] and told["interval"] and told["arm"] == ARM
    assert not any(word in " ".join(told["says"]) for word in ("nan", "inf"))
    for name in found.names:
        assert found[name].attrs["long_name"] and "units" in found[name].attrs, name
    found.save(tmp_path / "r.nc")
    again = Reading.load(tmp_path / "r.nc")
    assert all(np.array_equal(again[n], found[n], equal_nan=True) for n in found.names)
    assert len(again.to_dataframe()) == found[found.names[0]].size


@pytest.mark.parametrize("kind", KINDS)
def test_figures_show_the_numbers(kind):
    found = read(kind)
    drawn = plots.figures(found)
    assert next(iter(drawn)) == kind and len(drawn) >= 2
    for figure in drawn.values():
        assert found.about["n"] in figure.layout.title.text.replace("<br>", " ") and figure.layout.width == 700
        assert svg(figure).startswith("<svg") and figure.to_json()
    main = found.plot()
    if kind in ("cuts", "inputs"):
        dim = found["beyond"].dims[2]
        own = found.data.isel({dim: 0})
        for bar, name in zip(main.data, ("effect", "placebo")):
            assert np.allclose(np.asarray(bar.x, float), own[name].values.T.ravel())
            assert np.allclose(bar.x + bar.error_x.array, own[f"{name}_high"].values.T.ravel())
    else:
        maps = [t for t in main.data if t.type == "heatmap"]
        wanted = found["share"] if kind == "restore" else found["share"].sel(group="answer").T
        assert np.allclose(maps[0].z, wanted) and {(m.zmin, m.zmid, m.zmax) for m in maps} == {(maps[0].zmin, 0, maps[0].zmax)}  # fmt: skip
        assert maps[0].zmin == -maps[0].zmax


def test_hostile_names_do_nothing():
    found = read("restore")
    hostile = found.data.assign_coords(group=["<img src=x onerror=alert(1)>", *found["group"].values[1:].tolist()])
    hostile["effect"].attrs["units"] = "<script>u</script>"
    for figure in plots.figures(Reading("patching", hostile, {**found.about, "corrupted": "<b>x"})).values():
        said = figure.to_json().replace("\\u003c", "<")
        assert "<img" not in said and "<script" not in said
    with pytest.raises(DataError, match="no figure of patching for readings of the kind 'head'; did you mean 'heads'"):
        plots.figure(Reading("patching", found.data, {**found.about, "kind": "head"}))


@pytest.mark.parametrize("kind", ["restore", "heads"])
def test_figures_count_shots_from_one(kind):
    found = read(kind)
    groups = ["shot 0 slot", *found["group"].values[1:].tolist()]
    named = Reading("patching", found.data.assign_coords(group=groups), found.about)
    drawn = plots.figures(named)
    for name, sheet in cells.sheets(named).items():
        drawn |= {
            f"{name}, map": cells.sheet_figure(named, sheet),
            f"{name}, cell": cells.cell_figure(named, sheet, 0, 0),
        }
    told = [figure.to_json() for figure in drawn.values()]
    assert "shot 1 slot" in told[0] and not any("shot 0 " in said for said in [*told, *cells.sheets(named)])
    if kind == "restore":
        slots = [y for y in drawn["parts"].data[0].y if y.startswith("shot") and y.endswith("slot")]
        assert slots == [f"shot {n} slot" for n in range(1, len(slots) + 1)]


@pytest.mark.real
@pytest.mark.slow
def test_the_real_model_gets_its_answer_back(smollm2):
    import icrl_lab as lab

    task = lab.load_task("freesolv")
    options = dict(arms=["moments-vocab"], with_text=False, labels="true", shots=6, seeds=1, queries=6)
    real = lab.Study(task, lab.encode(task, "minimol"), smollm2, label_format="letter", **options)
    found = patching(real, queries=4, depths=(0, 30), groups=("all slots", "answer"), gradient=False)
    ends = found["share"].sel(group="all slots", depth=0), found["share"].sel(group="answer", depth=30)
    assert np.allclose(ends, 1, atol=1e-3)
    assert found["share"].sel(group="answer", depth=0) == 0
