"""What goes into a cell is a function of the cell alone, and what chance decides is drawn from streams of their own."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from icrl_lab import controls, maps
from icrl_lab.answers import BINS, fit_format
from icrl_lab.errors import DataError, StudyError
from icrl_lab.studies.cells import cells
from icrl_lab.studies.choice import stream
from icrl_lab.studies.material import Material
from icrl_lab.studies.spec import plan_of
from icrl_lab.values import Task, Vectors

N = 60


@pytest.fixture(scope="module")
def llm():
    from tests.conftest import tiny_llm
    from tests.families import family

    return tiny_llm("llama", tokenizer=family("digits"))


@pytest.fixture(scope="module")
def task():
    y = np.random.default_rng(0).standard_normal(N) * 2 - 1
    ids, text = tuple(f"item{i}" for i in range(N)), tuple("abcdefgh"[i % 8] * (1 + i % 5) for i in range(N))
    pool, queries = np.arange(0, N, 2), np.arange(1, N, 2)
    return Task("toy", ids, tuple(range(N)), text, y, None, "u", "size", "table", pool, queries)


def classes(task: Task) -> Task:
    labels = tuple("low" if y < -2 else "middle" if y < 0 else "high" for y in task.targets)
    return Task(**{k: getattr(task, k) for k in task.__dataclass_fields__} | {"targets": None, "labels": labels})


@pytest.fixture(scope="module")
def vectors(task):
    return Vectors(np.random.default_rng(1).standard_normal((N, 10)), task.ids, "toy/1")


def make(task, vectors, llm, **plan) -> tuple[Material, list]:
    given = {"with_text": False, "labels": "true", "controls": ["real"], "shots": 8, "seeds": 3, "queries": 5}
    plan = plan_of({**given, **plan})
    return Material(task, vectors, llm, plan), list(cells(plan))


AXES = dict(
    arms=["text", "pca-text", {"name": "pca-text", "dims": 2}, "random-projection", "moments-vocab", "random-noise", {"name": "ridge", "budget": 9}],
    controls=["real", "noise", "dummy"], with_text=[False, True], labels=["true", "permuted"], shots=[3, 5],
    selection=["quantile", "random"], order=["random", "ascending"], draws=2, seeds=2, queries=3,
)  # fmt: skip


def test_what_was_made_before_changes_no_prompt(task, vectors, llm):
    """Cells in any order, twice, in company of all others: the same prompts as of each cell made alone."""
    shared, every = make(task, vectors, llm, **AXES)
    rng = np.random.default_rng(5)
    for seed in (1, 0, 1):
        of_seed = [cell for cell in every if cell.seed == seed]
        for at in rng.permutation(len(of_seed))[:60]:  # conditions, arms and controls all mixed up
            shared.rendered(of_seed[at], int(rng.integers(2)))
        for at in rng.permutation(len(of_seed))[:20]:
            for draw in (1, 0):
                alone, _ = make(task, vectors, llm, **AXES)
                one, groups = alone.rendered(of_seed[at], draw)
                other, same = shared.rendered(of_seed[at], draw)
                assert [g.written for g in groups] == [g.written for g in same]
                assert all((a.positions == b.positions).all() for a, b in zip(groups, same))
                assert len(one) == len(other) == 3
                for a, b in zip(one, other):
                    assert a.ids.tobytes() == b.ids.tobytes() and a.vectors.tobytes() == b.vectors.tobytes()


def test_arms_of_different_widths_share_no_prompt(task, llm):
    wide = Vectors(np.random.default_rng(2).standard_normal((N, 100)), task.ids, "wide/1")  # the model reads 48
    plan = dict(arms=["random-projection", "zero-pad"], controls=["dummy", "real", "noise"], with_text=[True, False])
    shared, every = make(task, wide, llm, **plan)
    for cell in every:
        prompts, _ = shared.rendered(cell, 0)
        alone, _ = make(task, wide, llm, **plan)
        assert [p.ids.tobytes() for p in prompts] == [p.ids.tobytes() for p in alone.rendered(cell, 0)[0]]
        markers = llm.tokenizer.decode(prompts[0].ids[prompts[0].ids >= 0]).count("?")
        slots, width = (prompts[0].ids < 0).sum(), 3 if cell.arm.name == "zero-pad" else 1
        assert (markers, slots) == ((9 * width, 0) if cell.control == "dummy" else (0, 9 * width))


def test_every_axis_of_a_study_changes_the_prompts(task, vectors, llm):
    arms = ["text", {"name": "pca-text", "dims": 2}, "random-projection", "moments-vocab"]
    shared, every = make(task, vectors, llm, **{**AXES, "arms": arms, "controls": ["real", "noise"], "shots": [5, 7]})
    seen = {
        tuple(p.ids.tobytes() + p.vectors.tobytes() for p in shared.rendered(c, d)[0]) for c in every for d in (0, 1)
    }
    ascending = sum(
        c.order == "ascending" and not c.arm.has_slots for c in every
    )  # draws of a text arm differ in order alone
    assert len(seen) == 2 * len(every) - ascending


def test_streams_are_named_after_what_they_decide(task):
    names = ("selection", "order", "labels", "map", "control", "budget", "sample")
    drawn = {stream(name, seed, draw) for name in names for seed in range(30) for draw in range(4)}
    assert len(drawn) == len(names) * 30 * 4
    assert stream("map", 1) == stream("map", 1)


def test_each_seed_and_draw_has_its_own_shots_order_labels_map_and_control(task, vectors, llm):
    controls_of = ["real", "noise", "shuffled"]
    plan = dict(arms=["random-projection", "zero-pad"], controls=controls_of, labels=["true", "permuted"], seeds=4)
    material, every = make(task, vectors, llm, **plan)
    facts: dict[str, list] = {name: [] for name in ("shots", "order", "turn", "map", "noise", "shuffled")}
    for cell in every:
        (group,) = material.shots(cell, 0)
        by_item = np.argsort(group.positions)
        if (cell.arm.name, cell.control, cell.labels) == ("random-projection", "real", "true"):
            facts["shots"].append(tuple(group.positions[by_item].tolist()))
            for draw in (0, 1):
                facts["order"].append(tuple(np.argsort(material.shots(cell, draw)[0].positions).tolist()))
                facts["map"].append(material.fitting.slot_maps(cell, draw)[0].steps[0].arrays["weight"].tobytes())
        if (cell.arm.name, cell.control, cell.labels) == ("random-projection", "real", "permuted"):
            true = [material.written(p) for p in group.positions[by_item]]
            facts["turn"].append(tuple(true.index(group.written[i]) for i in by_item))
        if (
            cell.arm.name == "zero-pad" and cell.control in facts and cell.labels == "true"
        ):  # a map that chance has no part in
            for draw in (0, 1):
                prompt = material.rendered(cell, draw)[0][0]
                items = [span.item for span in prompt.spans if span.role == "slot"]
                facts[cell.control].append(prompt.vectors[np.argsort(items)].tobytes())
    for what, found in facts.items():
        assert len(found) == (4 if what in ("shots", "turn") else 8) and len(set(found)) == len(found), what


def test_a_control_draws_from_the_items_of_the_prompts_and_no_other(task, vectors, llm, monkeypatch):
    seen = []
    real = controls.apply
    monkeypatch.setattr(controls, "apply", lambda *a, **k: seen.append((a, k)) or real(*a, **k))
    material, every = make(task, vectors, llm, arms=["random-projection", "ridge"], controls=["noise"])
    for cell in every:
        _, (group,) = material.rendered(cell, 0)
        (name, _, given), options = seen.pop()
        assert name == "noise" and set(given.ids) == {task.ids[p] for p in (*group.positions, *group.queries)}
        assert options["tokens"].space == llm.space
    assert len({k["seed"] for _, k in seen}) <= 3


def test_arms_and_controls_of_a_seed_share_what_chance_decided(task, vectors, llm):
    material, every = make(task, vectors, llm, arms=["text", "random-projection", "ridge"], controls=["real", "noise"])
    for seed in range(3):
        groups = [material.rendered(c, 0)[1][0] for c in every if c.seed == seed]
        assert len({(tuple(g.positions), g.written, g.queries) for g in groups}) == 1


# --------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("of", [lambda task: task, classes])
def test_a_simple_predictor_learns_from_the_labels_that_are_shown(task, vectors, llm, of):
    material, every = make(
        of(task), vectors, llm, arms=["random-projection"], labels=["true", "permuted"], shots=[7, 12]
    )
    for cell in every:
        (group,) = material.shots(cell, 0)
        shown = material.shown_targets(group, cell)
        written = [material.format.write(y) for y in shown] if material.format else list(shown)
        assert written == list(group.written)
        true = [material.written(p) for p in group.positions]
        assert (written == true) == (cell.labels == "true") and sorted(written) == sorted(true)


@pytest.mark.parametrize("shots", [2, 3])
def test_permuted_labels_are_never_all_the_true_ones(task, vectors, llm, shots):
    material, every = make(task, vectors, llm, arms=["random-projection"], labels="permuted", shots=shots, seeds=12)
    assert all(not np.array_equal(material._turn(shots, cell), np.arange(shots)) for cell in every)
    assert len({tuple(material._turn(shots, cell)) for cell in every}) > shots - 2  # and drawn, where there is a choice


def test_the_reference_is_what_the_shots_alone_say(task, vectors, llm):
    material, every = make(task, vectors, llm, arms=["random-projection"])
    sides, every_class = make(classes(task), vectors, llm, arms=["random-projection"], shots=9)
    for cell, other in zip(every, every_class):
        (group,), (sorts,) = material.shots(cell, 0), sides.shots(other, 0)
        assert material.reference(group) == pytest.approx(np.mean([task.targets[p] for p in group.positions]))
        seen = [classes(task).labels[p] for p in sorts.positions]
        assert seen.count(sides.reference(sorts)) == max(map(seen.count, seen))


def test_a_label_budget_is_of_the_pool_beyond_the_shots_and_permuted_with_them(task, vectors, llm):
    arms = ["ridge", {"name": "ridge", "budget": 20}]
    material, every = make(task, vectors, llm, arms=arms, labels=["true", "permuted"])
    pool = {task.ids[p] for p in task.pool}
    extra = {}
    for cell in every:
        (group,) = material.shots(cell, 0)
        shots = {task.ids[p]: label for p, label in zip(group.positions, group.written)}
        found = material.fitting._budget(cell, 0)
        assert {k: found[k] for k in shots} == shots and set(found) <= pool
        budget = 20 if "budget" in cell.arm.options else 8
        assert len(found) == budget == material.gold_labels(cell)
        assert material.fitting.slot_maps(cell, 0)[0].recipe["label_budget"] == budget
        if budget == 20:
            extra[cell.seed, cell.labels] = {k: v for k, v in found.items() if k not in shots}
    for seed in range(3):
        true, permuted = extra[seed, "true"], extra[seed, "permuted"]
        assert true == {k: material.written(task.ids.index(k)) for k in true}
        assert set(true) == set(permuted) and sorted(true.values()) == sorted(permuted.values()) and true != permuted
    assert len({tuple(sorted(extra[seed, "true"])) for seed in range(3)}) == 3


# ----------------------------------------------------------------------------------- what a map may see


def test_maps_of_text_and_of_codes_are_given_what_their_name_says(task, vectors, llm):
    material, every = make(task, vectors, llm, arms=["moments-text", "random-noise", "random-projection"])
    assert len(material.tokens.text_ids) == len(task.pool)
    wanted = [llm.tokenizer(task.text[p], add_special_tokens=False)["input_ids"] for p in task.pool]
    assert [t.tolist() for t in material.tokens.text_ids] == wanted
    sources = {c.arm.name: material.fitting.slot_maps(c, 0)[0].source for c in every}
    assert sources["random-noise"].startswith("hash/") and sources["random-projection"] == "toy/1"
    twin = Material(task, Vectors(-vectors.values, task.ids, "toy/1"), llm, material.plan)
    for cell in every:
        same = [a.vectors.tobytes() == b.vectors.tobytes() for a, b in zip(material.rendered(cell, 0)[0], twin.rendered(cell, 0)[0])]  # fmt: skip
        assert all(same) if cell.arm.name == "random-noise" else not any(same)  # a code says nothing of the vector


DIGITS = "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
WORDS = {  # what each layout asks for, of classes, letters and numbers
    ("digits", "question"): [f"The digit of each Image below is given as one of {DIGITS}."],
    ("digits", "chat"): [
        f"You tell the digit of each Image you are asked about as one of {DIGITS}, by comparing it with the solved examples.",
        "Work the class out for the Image in question: do not copy the class of an example.",
        f"the digit of the last Image as one of {DIGITS}. Reply with the class and nothing else.",
    ],
    ("digits", "paper"): [f"Solved examples of digit as one of {DIGITS}:", "Answer 1: <class>"],
    ("letter", "question"): [" is given as a rank from a (lowest) to j (highest)."],
    ("letter", "chat"): [
        "and answer with a letter, which stands for a range of values, as a rank from a (lowest) to j (highest).",
        "as a rank from a (lowest) to j (highest). Reply with the letter and nothing else.",
    ],
    ("letter", "paper"): [" as a rank from a (lowest) to j (highest):", "Answer 1: <letter>"],
    ("digit", "chat"): ["Reply with the number and nothing else.", "You estimate a number for each Molecule"],
    ("digit", "paper"): ["Answer 1: <number>"],
    ("as-written", "chat"): ["Reply with the number and nothing else."],
}  # fmt: skip


@pytest.mark.parametrize("model", [("llama", "digits"), ("gemma3", "unigram")])
@pytest.mark.parametrize(("form", "layout"), WORDS)
def test_a_prompt_asks_for_what_the_study_scores(form, layout, model):
    """A class of the task's options, a letter, or a number: never for another of the three."""
    from icrl_lab.tasks import load_task
    from tests.toy import toy_llm

    task = load_task("digits" if form == "digits" else "huuskonen")
    plan = {} if form == "digits" else {"label_format": form}
    some = Vectors(np.random.default_rng(0).standard_normal((len(task), 4)), task.ids, "toy/1")
    llm = replace(toy_llm(*model), context=4096)
    material, every = make(task, some, llm, arms=["zero-pad"], shots=3, queries=1, layout=layout, **plan)
    (rendered,), _ = material.rendered(every[0], 0)
    said = "".join(rendered.tokens)
    assert all(words in said for words in WORDS[form, layout]), said
    assert ("number" in said) == (form in ("digit", "as-written"))


@pytest.mark.parametrize("form", ["digit", "two-digit", "letter"])
def test_labels_of_a_closed_set_are_known_in_ascending_order(task, vectors, llm, form):
    """All of them, so that the place of a label does not depend on what the pool happens to hold."""
    material, _ = make(task, vectors, llm, arms=["soft-label"], label_format=form)
    found = list(material.tokens.label_ids)
    values = [material.format.read(label) for label in found]
    assert tuple(found) == material.format.labels and values == sorted(values)


@pytest.mark.parametrize("form", ["digit", "letter"])
def test_shots_are_written_and_slots_placed_in_the_bins_that_were_asked_for(task, vectors, llm, form):
    skewed = replace(task, targets=-np.exp(task.targets))
    found = {}
    for bins in BINS:
        material, every = make(skewed, vectors, llm, arms=["soft-label"], label_format=form, label_bins=bins)
        fmt = fit_format(form, skewed.targets[task.pool], bins)  # of the pool alone
        for cell in every:
            (group, *_), slots = material.shots(cell, 0), material.rendered(cell, 0)[0][0].vectors
            assert group.written == tuple(fmt.write(skewed.targets[p]) for p in group.positions)
            found[bins, cell.seed] = group.positions.tolist(), group.written, slots
    for seed in range(3):  # the same shots, in other words
        (shots, even, there), (same, ranks, here) = found["even", seed], found["quantile", seed]
        assert shots == same and even != ranks and np.abs(there - here).max() > 1e-3


def test_soft_labels_are_fitted_on_the_shots_as_they_are_shown(task, vectors, llm):
    """The slot of a query moves with the shots' labels, and with nothing that the queries' own labels say."""
    plan = {"arms": ["soft-label", {"name": "soft-label", "turned": True}], "labels": ["true", "permuted"]}
    material, every = make(task, vectors, llm, **plan)
    elsewhere = ~np.isin(np.arange(N), task.pool)
    other = Material(
        replace(task, targets=np.where(elsewhere, -task.targets, task.targets)), vectors, llm, material.plan
    )
    slots = {}
    for cell in every:
        here, there = (m.rendered(cell, 0)[0][0].vectors for m in (material, other))
        assert (here == there).all()
        slots[cell.seed, cell.arm.label, cell.labels] = here
    for (seed, arm, labels), found in slots.items():
        assert labels == "true" or np.abs(found - slots[seed, arm, "true"]).max() > 1e-3


def test_pca_text_takes_its_option(task, vectors, llm):
    arms = ["pca-text", {"name": "pca-text", "dims": 3}]
    material, every = make(task, vectors, llm, arms=arms, shots=3, seeds=1)
    texts = [llm.tokenizer.decode(material.rendered(c, 0)[0][0].ids) for c in every]
    pool = material.vectors.take([task.ids[p] for p in task.pool])
    query = task.ids[material.queries[0]]
    for text, dims in zip(texts, (20, 3)):
        assert maps.pca_text(pool, material.vectors.take([query]), dims)[0] in text


def test_the_queries_are_of_the_query_side_and_of_the_split_seed_alone(task, vectors, llm):
    first, _ = make(task, vectors, llm, arms=["ridge"])
    again, _ = make(task, vectors, llm, arms=["text"], seeds=[11], labels="permuted", shots=3)
    other, _ = make(task, vectors, llm, arms=["ridge"], split_seed=1)
    assert first.queries.tolist() == again.queries.tolist() != other.queries.tolist()
    for material in (first, other):
        assert len(set(material.queries)) == 5 and set(material.queries) <= set(task.queries.tolist())


# ----------------------------------------------------------------------------- what cannot be, and says so


@pytest.mark.parametrize(
    "plan, says",
    [
        ({"arms": ["ridge"], "selection": "nearest"}, "'ridge' fits one map to the shots"),
        ({"arms": [{"name": "ridge", "budget": 31}]}, "budget of 31 labels, and the pool 30"),
        ({"arms": ["ridge"], "shots": 1}, "two at least"),
        ({"arms": ["soft-label"], "selection": "farthest"}, "'soft-label' fits one map to the shots"),
        (
            {"arms": ["text"], "label_format": "letter", "queries_per_prompt": 2, "decode": "greedy"},
            "'letter' is read for one query a prompt",
        ),
        (
            {"arms": ["text"], "layout": {"shot": "{item} -> {label}", "footer": "Reply."}},
            "a footer would stand between",
        ),
        (
            {"arms": ["text"], "order": "near-last", "queries_per_prompt": 2, "decode": "greedy"},
            "queries_per_prompt = 1",
        ),
        (
            {"arms": ["text"], "queries_per_prompt": 3},
            "queries_per_prompt = 3 asks for several answers .* set decode = 'greedy' or 'sample'",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused_at_once(task, vectors, llm, plan, says):
    with pytest.raises(StudyError, match=says):
        make(task, vectors, llm, **plan)


@pytest.mark.parametrize("decode", ["greedy", "sample"])
def test_several_queries_a_prompt_are_asked_where_answers_are_generated(task, vectors, llm, decode):
    material, every = make(task, vectors, llm, arms=["text"], layout="paper", shots=2, queries_per_prompt=3, decode=decode)  # fmt: skip
    assert len(material.rendered(every[0], 0)[0]) == 2  # five queries


def test_soft_labels_need_neighbours(task, vectors, llm):
    """Classes have none; those of an open set would be labels that the map's budget does not hold."""
    with pytest.raises(StudyError, match="classes have no order; take the arm 'ridge'"):
        make(classes(task), vectors, llm, arms=["soft-label"])
    with pytest.raises(StudyError, match="a closed set; take label_format = 'digit'"):
        make(task, vectors, llm, arms=["soft-label"], label_format="as-written")


def test_an_option_of_the_wrong_kind_is_the_users(task, vectors, llm):
    for arm in ({"name": "whiten", "shrinkage": "x"}, {"name": "vocab-covariance", "power": "x"}, {"name": "gaussian-ot", "shrinkage": 2}):  # fmt: skip
        material, every = make(task, vectors, llm, arms=[arm])
        with pytest.raises(StudyError, match=f"the arm '{arm['name']} .* cannot be fitted with"):
            material.rendered(every[0], 0)


def test_a_map_of_the_shots_allows_an_order_that_depends_on_the_query(task, vectors, llm):
    near, every = make(task, vectors, llm, arms=["ridge"], order="near-last")
    plain, others = make(task, vectors, llm, arms=["ridge"], order="random")
    for cell, other in zip(every, others):
        groups = near.rendered(cell, 0)[1]
        assert len(groups) == 5 and len({frozenset(g.positions.tolist()) for g in groups}) == 1
        a, b = (m.fitting.slot_maps(c, 0)[0].steps for m, c in ((near, cell), (plain, other)))
        assert all(np.allclose(s.arrays[k], t.arrays[k], atol=1e-5) for s, t in zip(a, b) for k in s.arrays)
    with pytest.raises(DataError, match="no vector"):
        Material(task, vectors.take(task.ids[:50]), llm, near.plan)


@pytest.mark.parametrize("form", ["digit", "letter", "two-digit", "as-written"])
def test_an_answer_is_copied_exactly_where_its_most_probable_value_is_that_of_a_label_shown(task, vectors, llm, form):
    """A label shown is written and read back to the number it stands for; a number between two labels is that of none."""
    material, all_cells = make(task, vectors, llm, arms=["random-projection"], label_format=form, shots=3)
    for cell in all_cells:
        shown = material.shots(cell, 0)[0]
        values = [material.format.read(label) for label in shown.written]
        others = [
            material.format.read(material.written(int(p)))
            for p in task.pool
            if material.written(int(p)) not in shown.written
        ]
        assert others and all(material.copied(SimpleNamespace(mode=v), shown) for v in values)
        assert not any(material.copied(SimpleNamespace(mode=v), shown) for v in (*others, max(values) + 1e-3, None))


def test_a_class_is_copied_where_a_shot_has_it(task, vectors, llm):
    material, all_cells = make(classes(task), vectors, llm, arms=["random-projection"], shots=2, selection="random")
    told = set()
    for cell in all_cells:
        shown = material.shots(cell, 0)[0]
        for label in ("low", "middle", "high"):
            told.add(material.copied(SimpleNamespace(label=label), shown))
            assert material.copied(SimpleNamespace(label=label), shown) == (label in shown.written)
    assert told == {True, False}
