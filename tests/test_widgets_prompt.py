"""The view of the prompt without a browser: what is shown is what the model is given, with the model and as a run kept it."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from icrl_lab.errors import DataError
from icrl_lab.prompts import Piece, pieces
from icrl_lab.studies import Study, open_run, shown
from icrl_lab.studies.shown import Kept, Live, kept
from icrl_lab.values import Task
from icrl_lab.widgets.prompt import NONE, PromptView
from icrl_lab.widgets.selection import Selection
from tests.toy import PLAN, toy_llm, toy_study, toy_task, toy_vectors

NASTY = "<img src=x onerror=alert(1)>"
MANY = {
    "arms": ["text", "zero-pad", "random-projection"],
    "controls": ["real", "noise", "dummy"],
    "with_text": [False, True],
}


@cache
def live():
    return toy_study(**MANY, shots=5, seeds=2, queries=4).run(progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "run"
    live().save(path)
    return path


def told(prompt):
    return [(p.role, p.tokens, p.shot, p.item) for p in prompt]


@pytest.mark.parametrize("family", [("llama", "digits"), ("gemma3", "unigram")])
@pytest.mark.parametrize("plan", [{}, {"with_text": True, "markers": "paren"}, {"repeat": 2, "layout": "question"}])
def test_pieces_are_all_of_the_prompt(family, plan):
    study = toy_study(*family, shots=5, **plan)
    cell = next(c for c in study.cells() if c.arm.has_slots)
    for rendered in study.material.rendered(cell, 0)[0]:
        found = pieces(rendered)
        assert sum((p.tokens for p in found), ()) == rendered.tokens
        slots = [p for p in found if p.role == "slot"]
        assert np.allclose([n for p in slots for n in p.norms], np.linalg.norm(rendered.vectors, axis=1))
        sizes = np.arange(1.0, 1 + len(rendered.vectors))
        longer = pieces(replace(rendered, vectors=rendered.vectors * sizes[:, None].astype(np.float32)))
        each = [n / m for p, q in zip(longer, found) for n, m in zip(p.norms, q.norms)]
        assert each == pytest.approx(sizes)
        assert all(p.item and p.text == "" for p in slots)
    with pytest.raises(ValueError, match="extended"):
        pieces(rendered.extend([1]))


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"queries_per_prompt": 3, "queries": 5, "layout": "paper", "decode": "greedy", "label_format": "digit"},
        {"selection": "nearest"},
        {"repeat": 2},
    ],
)
def test_a_kept_prompt_is_the_live_one(plan):
    if plan.get("layout") == "paper":
        plan = {**plan, "layout": {"name": "numbered", "shot": "{item} -> {label}", "query": "{number}: {item} ->"}}
    study = toy_study(**{**MANY, "shots": 5, "seeds": 2, "queries": 4, **plan})
    stored = Kept(json.loads(json.dumps(kept(study).data)))
    asked = Live(study)
    assert stored.queries == asked.queries and stored.token == pytest.approx(asked.token)
    for cell in study.cells():
        if cell.seed == 0:
            for query in asked.queries:
                at = (cell.arm.label, cell.control, query)
                a, b = (x.pieces(*at, with_text=cell.with_text) for x in (asked, stored))
                assert told(a) == told(b)
                assert all(np.allclose(x.norms, y.norms, rtol=1e-3) for x, y in zip(a, b))
                assert query in {p.item for p in a}


def test_a_live_prompt_is_the_study_s_own():
    study = live().study
    for cell in study.cells():
        rendered, groups = study.material.rendered(cell, 0)
        queries = [q for g in groups for q in g.queries]
        for prompt, q in zip(rendered, queries):
            found = Live(study).pieces(
                cell.arm.label, cell.control, study.task.ids[q], with_text=cell.with_text, seed=cell.seed
            )
            assert sum((p.tokens for p in found), ()) == prompt.tokens
            norms = [n for p in found for n in p.norms]
            assert np.allclose(norms, np.linalg.norm(prompt.vectors, axis=1) if norms else [])


def test_fewer_queries_are_kept_where_they_would_be_too_many():
    study = live().study
    size = len(json.dumps(kept(study).data))
    small = kept(study, limit=int(0.8 * size))
    assert 1 <= len(small.queries) < 4 and small.asked == 4 and len(json.dumps(small.data)) <= 0.8 * size
    assert len(kept(study, limit=1).queries) == 1
    with pytest.raises(DataError, match="not of"):
        small.pieces("zero-pad", "real", next(q for q in Live(study).queries if q not in small.queries))


def test_a_run_keeps_its_prompts_under_its_checksum(folder, tmp_path):
    opened = open_run(folder)
    assert "prompts.json" in opened.manifest["files"]
    query = opened.prompts().queries[1]
    assert told(opened.prompts().pieces("zero-pad", "real", query)) == told(
        live().prompts().pieces("zero-pad", "real", query)
    )
    again = opened.save(tmp_path / "copy")
    assert (again / "prompts.json").read_bytes() == (folder / "prompts.json").read_bytes()
    (again / "prompts.json").write_text("{}")
    with pytest.raises(DataError, match=r"prompts.json was changed"):
        open_run(again).prompts()


def test_a_run_folder_has_them_at_its_end(tmp_path):
    toy_study(shots=3, seeds=1, queries=2).run(tmp_path / "run", progress=False)
    assert len(open_run(tmp_path / "run").prompts().queries) == 2


def test_an_older_run_says_that_it_kept_none(folder):
    opened = open_run(folder)
    opened.record.manifest["files"].pop("prompts.json")
    view = PromptView(opened)
    assert NONE in view.body.children[0].value and NONE in view.static()
    view.selection.arm = "zero-pad"
    assert view.message.value == ""


def test_chips_follow_the_selection():
    view = PromptView(live(), Selection(live(), arm="zero-pad"))
    chips = [p for p in view.chips.pieces if p[3]]
    assert [p[0] for p in chips] == ["slot"] * 6 and [p[2] for p in chips] == list(range(6))
    assert view.chips.cards[-1]["item"] == view.selection.query and "the query" in view.chips.cards[-1]["lines"]
    labels = [p[1][0].strip() for p in view.chips.pieces if p[0] == "label"]
    assert [f"shot {i + 1}, label {lab}" for i, lab in enumerate(labels)] == [
        c["lines"][1] for c in view.chips.cards[:-1]
    ]
    before = view.chips.cards
    view.selection.query = view.selection.queries[2]
    assert view.chips.cards[:-1] == before[:-1] and view.chips.cards[-1]["item"] == view.selection.query
    view.selection.control = "dummy"
    assert [p[0] for p in view.chips.pieces if p[3]] == ["marker"] * 6
    view.conditions["with_text"].value = True
    assert [p[0] for p in view.chips.pieces if p[3]] == ["text"] * 6
    view.conditions["seed"].value = 1
    assert view.chips.cards[0]["item"] != before[0]["item"]
    view.selection.arm = "text"
    assert "no vectors" not in view.count.value or "dummy" not in view.count.value
    view.selection.control = "noise"
    assert "no vectors that" in view.count.value


def test_each_card_tells_the_norm_of_its_own_vector(monkeypatch):
    """Slots of a study are scaled to one length, so that a neighbour's would not be noticed: here every item has one of its own."""
    monkeypatch.setattr(
        shown, "pieces", lambda *given: tuple(replace(p, norms=(own(p.item),) * len(p.norms)) for p in pieces(*given))
    )
    study, view = live().study, PromptView(live(), Selection(live(), arm="zero-pad"))
    for source in (Live(study), Kept(json.loads(json.dumps(kept(study).data)))):
        view.shown, view._drawn = source, None
        for query in (*source.queries[1:], source.queries[0]):
            view.selection.query = query
            cards = view.chips.cards
            assert [c["lines"][-1].split()[:2] for c in cards] == [["norm", f"{own(c['item']):.3g}"] for c in cards]
            assert len({c["lines"][-1] for c in cards}) == 6


def own(item):
    return 100.0 + int(item.removeprefix("item") or 0)


def test_a_click_pins_item_and_shot_and_a_query_has_no_place():
    view = PromptView(live(), Selection(live(), arm="zero-pad"))
    view._sent(view.chips, {"pin": 2}, [])
    assert view.selection.item == view.chips.cards[2]["item"] and view.selection.shot == 2 and view.chips.pinned == [2]
    view._sent(view.chips, {"pin": 5}, [])
    assert view.selection.item == view.selection.query and view.selection.shot == 2 and view.chips.pinned == [5]
    view._sent(view.chips, {"pin": 99}, [])
    assert 'role="alert"' in view.message.value


def test_what_another_view_pins_is_brought_into_view():
    hub = Selection(live(), arm="zero-pad")
    view = PromptView(live(), hub)
    assert view.chips.seen == -1
    names = [card["item"] for card in view.chips.cards]
    hub.item = names[3]
    assert view.chips.seen == 3 and view.chips.pinned == [3]
    hub.shot = 1  # of a view that knows places alone: the item stays pinned, the shot is what is looked at
    assert view.chips.seen == 1 and view.chips.pinned == [3]
    hub.query = view.query.options[2]
    assert view.chips.cards[view.chips.seen]["item"] == hub.query and view.chips.seen == 5
    hub.control = "noise"
    assert view.chips.cards[view.chips.seen]["item"] == hub.query
    hub.shot = 4
    assert view.chips.seen == 4
    hub.shot = -1
    assert view.chips.seen == -1
    hub.item = next(i for i in sorted(hub.known) if i not in names)  # which this prompt does not have
    assert view.chips.seen == -1 and view.chips.pinned == []
    hub.item = names[2]
    late = PromptView(live(), hub)  # a view that is made later shows what is pinned
    assert late.chips.seen == 2
    view.pin(0)
    assert view.chips.seen == late.chips.seen == 0 and hub.shot == 0
    view.arm.value = "text"
    assert view.chips.seen == 0 and view.chips.cards[0]["item"] == names[0]


def test_shots_that_are_repeated_are_the_same_shots():
    result = toy_study(shots=3, repeat=2, seeds=1, queries=2).run(progress=False)
    view = PromptView(result)
    view.pin(4)
    assert view.selection.shot == 1 and len(view.chips.pinned) == 2
    assert view.chips.seen == 4  # the one that was clicked, not its first copy


def test_views_agree_whatever_the_order():
    rng = np.random.default_rng(1)
    moves = [
        ("arm", "text"),
        ("arm", "zero-pad"),
        ("control", "noise"),
        ("query", live().predictions["item"].iloc[3]),
        ("control", "real"),
    ]
    for _ in range(3):
        hub = Selection(live())
        one, two = PromptView(live(), hub), PromptView(live(), hub)
        for place in rng.permutation(len(moves)):
            name, value = moves[place]
            getattr((one, two)[rng.integers(2)], name).value = value
        assert (
            one.chips.pieces == two.chips.pieces
            and one.chips.cards == two.chips.cards
            and one.count.value == two.count.value
        )
        for name in ("arm", "control", "query"):
            assert getattr(one, name).value == getattr(two, name).value == getattr(hub, name)


def test_no_query_is_no_prompt_and_no_error(folder):
    for run in (live(), open_run(folder)):
        view = PromptView(run)
        first, view.selection.query = view.selection.query, ""
        assert view.message.value == "" and "Choose a query." in view.count.value
        assert view.chips.pieces == [] and view.query.value is None and "Choose a query." in view.static()
        view.selection.query = first
        assert view.chips.pieces and "tokens" in view.count.value


def test_a_prompt_that_is_not_there_is_never_another_s(folder):
    opened = open_run(folder)
    view = PromptView(opened, Selection(opened, arm="zero-pad"))
    data = {**opened.prompts().data, "queries": list(opened.prompts().queries)[:1]}
    view.shown = Kept(data)
    view.selection.query = opened.prompts().queries[3]
    assert view.chips.pieces == [] and 'role="alert"' in view.message.value and "tokens" not in view.count.value
    view.selection.query = opened.prompts().queries[0]
    assert view.chips.pieces and view.message.value == ""


def test_names_from_data_are_only_text():
    plain = toy_task()
    ids = tuple(f"{NASTY}{i}" for i in range(len(plain)))
    task = Task(
        NASTY, ids, plain.items, tuple(NASTY for _ in ids), plain.targets, None, "u", "size", "molecule", plain.pool, plain.queries
    )  # fmt: skip
    result = Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "seeds": 1, "queries": 2}).run(progress=False)
    view = PromptView(result)
    view.pin(0)
    assert all("<img src=x" not in text for text in (view.static(), view.count.value, view.message.value))
    assert "&lt;img src=x" in view.static() and "<script" not in view.static()
    assert view.chips.cards[0]["picture"] is None
    source = (view.chips._esm if isinstance(view.chips._esm, str) else view.chips._esm.read_text())  # fmt: skip
    assert "innerHTML" not in str(source) and "insertAdjacent" not in str(source)


def test_molecules_are_drawn_as_pictures_where_nothing_runs():
    plain = toy_task()
    text = tuple("CCO" for _ in plain.ids)
    task = Task(
        "m", plain.ids, plain.items, text, plain.targets, None, "u", "size", "molecule", plain.pool, plain.queries
    )
    result = Study(task, toy_vectors(task), toy_llm(), **{**PLAN, "seeds": 1, "queries": 2}).run(progress=False)
    view = PromptView(result)
    assert view.chips.cards[0]["picture"].startswith("data:image/svg+xml;base64,")
    page = view._repr_mimebundle_()["text/html"]
    assert page.count('src="data:image/svg+xml') == 5


def test_tokens_are_shown_on_demand():
    view = PromptView(live())
    view.tokens.value = True
    assert view.chips.tokens and f"{sum(len(p[1]) for p in view.chips.pieces)} tokens" in view.count.value
    assert Piece("text", ("a", "b")).text == "ab"
