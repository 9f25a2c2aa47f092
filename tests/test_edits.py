"""Edits, captures and gradients: each equals what plain hooks on a plain forward pass give, on four families.

The reference below shares nothing with the engine: one prompt, no prefix, no pack, attention written out as a softmax over
a full matrix, forward hooks of its own.
"""

from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from icrl_lab.engine import Engine, attention, edits, parts, rows
from icrl_lab.engine.gradients import gradient
from icrl_lab.engine.tree import all_symbols, build
from icrl_lab.errors import DataError
from icrl_lab.values import SLOT, Capture, Cut, Outcome, Patch, Rendered, Trace
from tests.test_engine import eager, prompts

NEAR = 2e-5
NAMES = ("attention", "norms", "hidden", "outputs")

# ---------------------------------------------------------------------------------------------- the reference

_cuts: list[Cut] = []


def _naive(module, query, key, value, attention_mask, scaling=None, softcap=None, sliding_window=None, **rest):
    heads, length = query.shape[1:3]
    key, value = (x.repeat_interleave(heads // key.shape[1], 1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    at = torch.arange(length, device=query.device)
    back = at[:, None] - at[None]
    seen = ((back >= 0) & (back < (sliding_window or length))).repeat(heads, 1, 1)
    for cut in _cuts:
        if cut.layers is None or module.layer_idx in cut.layers:
            lines = range(cut.rows[0], length) if cut.onwards else cut.rows
            for head in range(heads) if cut.heads is None else cut.heads:
                for r in lines:
                    seen[head, r, [c for c in cut.columns if c < r]] = False
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("written_out", _naive)


def embedded(llm, prompt):
    with llm.model.device, torch.no_grad():
        out = llm.model.get_input_embeddings()(torch.tensor(np.where(prompt.ids == SLOT, 0, prompt.ids))).clone()
        out[torch.tensor(np.flatnonzero(prompt.ids == SLOT))] = torch.tensor(prompt.vectors)
    return out[None]


@contextmanager
def implementation(llm, name):
    before = llm.model.config._attn_implementation
    llm.model.set_attn_implementation(name)
    try:
        yield
    finally:
        llm.model.set_attn_implementation(before)


def reference(llm, prompt):
    """(V,) log-probabilities of an edited prompt."""
    blocks, norm = llm.model.model.layers, llm.model.model.norm
    width = blocks[0].self_attn.head_dim

    def hook(patch):
        def before(module, args, kwargs):
            x = args[0].clone()
            own = slice(None) if patch.head is None else slice(patch.head * width, (patch.head + 1) * width)
            for p, value in zip(patch.positions, torch.tensor(patch.values, device=x.device)):
                x[0, p, own] = value + x[0, p, own] * patch.add
            return (x, *args[1:]), kwargs

        return before

    with ExitStack() as stack:
        stack.enter_context(implementation(llm, "written_out"))
        for edit in prompt.edits:
            if isinstance(edit, Cut):
                _cuts.append(edit)
                stack.callback(_cuts.remove, edit)
                continue
            place = [*blocks, norm][edit.layer] if edit.head is None else blocks[edit.layer].self_attn.o_proj
            stack.callback(place.register_forward_pre_hook(hook(edit), with_kwargs=True).remove)
        with torch.inference_mode():
            logits = llm.model(inputs_embeds=embedded(llm, prompt), use_cache=False).logits[0, -1]
    return logits.log_softmax(-1).cpu().numpy()


def expected(llm, many):
    return np.stack([reference(llm, p) for p in many])


def seen_by_hooks(llm, prompt):
    """What plain hooks see of a plain forward: hidden (L, T, d), heads' outputs (L, H, T, w), values (L, H, T, w)."""
    inputs, values = [], []
    with ExitStack() as stack:
        for block in llm.model.model.layers:
            own = block.self_attn
            stack.callback(own.o_proj.register_forward_pre_hook(lambda m, args: inputs.append(args[0][0])).remove)
            stack.callback(own.v_proj.register_forward_hook(lambda m, args, out: values.append(out[0])).remove)
        with torch.inference_mode():
            out = llm.model(inputs_embeds=embedded(llm, prompt), output_hidden_states=True, use_cache=False)
    width = llm.model.model.layers[0].self_attn.head_dim
    split = lambda x: torch.stack(x).unflatten(-1, (-1, width)).transpose(1, 2)  # noqa: E731
    heads = split(inputs)
    spread = split(values).repeat_interleave(heads.shape[1] // split(values).shape[1], 1)
    return torch.stack(out.hidden_states[:-1])[:, 0].cpu().numpy(), heads.cpu().numpy(), spread


def close(a, b, near=NEAR):
    """Whether two arrays are equal to `near` of the second's scale."""
    return np.shape(a) == np.shape(b) and np.abs(a - b).max() <= near * max(1.0, np.abs(b).max())


def vector(llm, n=1, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal((n, llm.width))).astype(np.float32)


def head_width(llm):
    return llm.model.model.layers[0].self_attn.head_dim


# ---------------------------------------------------------------------------------------------- captures


@pytest.mark.parametrize("branch,pack", [(4, 16), (256, 512)])
def test_captures_are_what_plain_hooks_see(tiny, branch, pack):
    many = prompts(tiny, seed=1)
    at = (5, -1, 17, -3, 0)
    run = Engine(tiny, branch=branch, pack=pack).run(
        many, capture=Capture(rows=(-1,), hidden=at, outputs=at, norms=True)
    )
    for prompt, trace in zip(many, run.traces):
        places = [p % len(prompt) for p in at]
        hidden, heads, values = seen_by_hooks(tiny, prompt)
        assert close(trace.hidden[:-1], hidden[:, places]) and trace.depths == (0, 1, 2, 3)
        assert close(trace.outputs, heads[:, :, places]) and trace.layers == (0, 1, 2)
        out = torch.stack([b.self_attn.o_proj.weight.detach() for b in tiny.model.model.layers])
        written = torch.einsum("ldhw,lhtw->lhtd", out.unflatten(-1, (-1, values.shape[-1])), values)
        assert close(trace.norms, written.norm(dim=-1).cpu().numpy())
        assert (trace.rows, trace.positions, trace.at) == ((-1,), at, at)


def test_the_last_place_of_the_stream_unembeds_to_the_answer(tiny):
    many = prompts(tiny, seed=2)
    engine = Engine(tiny, branch=16)
    run = engine.run(many, capture=Capture(hidden=(-1,), depths=(3, 0)))
    last = np.stack([t.hidden[1, 0] for t in run.traces])
    assert run.traces[0].depths == (0, 3)
    assert np.abs(engine.unembed(last) - run.logprobs).max() < NEAR
    assert np.abs(engine.unembed(last[None, :, None], [44, 3])[0, :, 0] - run.logprobs[:, [44, 3]]).max() < NEAR
    first = np.stack([t.hidden[0, 0] for t in run.traces])
    assert np.abs(engine.unembed(first) - run.logprobs).max() > 0.1


@pytest.mark.parametrize("branch", [4, 256])
def test_each_prompt_may_have_rows_and_columns_of_its_own(tiny, branch):
    many = prompts(tiny, seed=3)
    captures = [Capture(rows=(-1, 8 + i, 39), columns=(39 - i, 2, 5, i)) for i in range(len(many))]
    captures[4] = Capture(rows=(12, -2))  # all columns
    captures[6] = Capture(hidden=(7, -1))
    run = Engine(tiny, branch=branch, pack=64).run(many, capture=captures)
    for i, (prompt, one, trace) in enumerate(zip(many, captures, run.traces)):
        if i == 6:
            assert trace.attention is None and close(trace.hidden[:-1], seen_by_hooks(tiny, prompt)[0][:, [7, -1]])
            continue
        columns = list(range(len(prompt))) if one.columns is None else list(one.columns)
        full = eager(tiny, prompt)[:, :, list(one.rows)][..., columns]
        assert trace.columns == tuple(columns) and trace.hidden is None
        assert trace.attention.shape == full.shape and np.abs(trace.attention - full).max() < 1e-5


@pytest.mark.parametrize("branch,pack", [(1, 1), (3, 7), (64, 16), (0, 512)])
def test_captures_do_not_depend_on_packs(tiny, branch, pack):
    many = prompts(tiny, seed=4)
    many[1] = many[1].edited(Cut((len(many[1]) - 1,), (3, 17)), Patch(2, (44 - 2,), vector(tiny)))
    asked = Capture(rows=(-1, 5), hidden=(-1, 5, 17), outputs=(3, -1), norms=True)
    one, two = (
        Engine(tiny, branch=b, pack=p).run(many, capture=asked).traces for b, p in ((branch, pack), (256, 1024))
    )
    for a, b in zip(one, two):
        assert all(close(getattr(a, name), getattr(b, name)) for name in NAMES)


def test_layers_and_depths_of_a_capture_are_a_slice(llama):
    many = prompts(llama, seed=5)
    engine = Engine(llama, branch=16)
    asked = dict(rows=(-1,), hidden=(-1, 4), outputs=(4,), norms=True)
    whole = engine.run(many, capture=Capture(**asked)).traces
    at = [5, 39, 2]
    some = engine.run(many, capture=Capture(**asked, layers=(2, 0, 2), depths=(3, 1), columns=tuple(at))).traces
    for a, b in zip(whole, some):
        assert (b.layers, b.depths, b.columns) == ((0, 2), (1, 3), (5, 39, 2))
        assert close(a.hidden[[1, 3]], b.hidden) and close(a.outputs[[0, 2]], b.outputs)
        assert close(a.attention[[0, 2]][..., at], b.attention) and close(a.norms[[0, 2]][..., at], b.norms)


# ---------------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize("branch", [4, 256])
def test_setting_a_state_to_what_it_is_changes_nothing(tiny, branch):
    many = prompts(tiny, seed=6)
    engine = Engine(tiny, branch=branch)
    plain = engine.run(many, capture=Capture(hidden=(5, 20, -1), outputs=(5, 20, -1)))
    edited, of = [], []
    for number, (prompt, trace) in enumerate(zip(many, plain.traces)):
        places = (5, 20, len(prompt) - 1)
        each = [Patch(depth, places, trace.hidden[depth]) for depth in range(4)]
        each += [
            Patch(layer, places[::-1], trace.outputs[layer, h][::-1], head=h) for layer in range(3) for h in (0, 5)
        ]
        edited += [prompt.edited(e) for e in each] + [prompt.edited(*each)]
        of += [number] * (len(each) + 1)
    assert np.abs(engine.run(edited).logprobs - plain.logprobs[of]).max() < NEAR


def test_the_last_state_of_another_prompt_is_its_answer(tiny):
    many = prompts(tiny, seed=7)
    engine = Engine(tiny, branch=16)
    plain = engine.run(many, capture=Capture(hidden=(-1,)))
    moved = [p.edited(Patch(3, (len(p) - 1,), plain.traces[0].hidden[3])) for p in many]
    assert np.abs(engine.run(moved).logprobs - plain.logprobs[0]).max() < NEAR
    halfway = [p.edited(Patch(2, (len(p) - 1,), plain.traces[0].hidden[2])) for p in many[1:]]
    assert np.abs(engine.run(halfway).logprobs - plain.logprobs[0]).max() > 1e-2  # their keys still differ


@pytest.mark.parametrize("place", [3, 41])
def test_a_patch_where_the_stream_begins_is_an_injected_vector(tiny, place):
    many = [p for p in prompts(tiny, seed=8) if len(p) > place]
    row = vector(tiny)
    begins = (
        Engine(tiny).run([Rendered([SLOT, 3], row)], capture=Capture(hidden=(0,))).traces[0].hidden[0]
    )  # Gemma 2 scales
    edited, injected = [], []
    for p in many:
        ids = p.ids.copy()
        ids[place] = SLOT
        before = int((p.ids[:place] == SLOT).sum())
        injected.append(Rendered(ids, np.insert(p.vectors, before, row[0], axis=0)))
        edited.append(p.edited(Patch(0, (place,), begins)))
    engine = Engine(tiny, branch=16)
    assert np.abs(engine.run(edited).logprobs - engine.run(injected).logprobs).max() < NEAR


def test_adding_is_setting_the_sum(tiny):
    prompt = prompts(tiny, seed=9)[2]
    places = (5, 20, len(prompt) - 2)
    engine = Engine(tiny, branch=8)
    trace = engine.run([prompt], capture=Capture(hidden=places, outputs=places)).traces[0]
    more, small = vector(tiny, 3, seed=1), vector(tiny, 3, seed=2)[:, : head_width(tiny)]
    added = [
        prompt.edited(Patch(1, places, more, add=True)),
        prompt.edited(Patch(1, places, small, head=3, add=True)),
        prompt.edited(Patch(1, places, more, add=True), Patch(1, places, more, add=True)),
    ]
    summed = [
        prompt.edited(Patch(1, places, trace.hidden[1] + more)),
        prompt.edited(Patch(1, places, trace.outputs[1, 3] + small, head=3)),
        prompt.edited(Patch(1, places, trace.hidden[1] + 2 * more)),
    ]
    got = engine.run([prompt, *added, *summed]).logprobs
    assert np.abs(got[1:4] - got[4:]).max() < NEAR and (np.abs(got[1:4] - got[0]).max(1) > 1e-3).all()


def some_edits(llm, prompt, rng):
    """One to four random edits that a prompt can have."""
    length, found = len(prompt), []
    for _ in range(rng.integers(1, 5)):
        places = tuple(int(p) for p in rng.choice(length, rng.integers(1, 4), replace=False))
        layers = [None, (1,), (0, 2)][rng.integers(3)]
        match rng.integers(4):
            case 0:
                found.append(Patch(int(rng.integers(4)), places, vector(llm, len(places), rng.integers(99), 2.0)))
            case 1:
                rows = vector(llm, len(places), rng.integers(99))[:, : head_width(llm)]
                found.append(Patch(int(rng.integers(3)), places, rows, int(rng.integers(6)), bool(rng.integers(2))))
            case 2:
                row = int(rng.integers(1, length))
                columns = tuple(int(c) for c in rng.choice(row, min(row, rng.integers(1, 9)), replace=False))
                found.append(Cut((row, length - 1), columns, layers, [None, (0, 5)][rng.integers(2)]))
            case 3:
                columns = tuple(int(c) for c in rng.choice(length - 1, 6, replace=False))
                found.append(Cut((int(rng.integers(length - 1)),), (*columns, 0), layers, onwards=True))
    return found


@pytest.mark.parametrize("branch,pack", [(3, 8), (8, 64), (256, 1024)])
def test_any_edits_of_any_prompts_equal_the_reference(tiny, branch, pack):
    """Patches and cuts, alone and together, in prefix and suffix, some prompts edited, some twice, some not."""
    rng = np.random.default_rng([branch, pack])
    many = prompts(tiny, seed=10)
    edited = [p.edited(*some_edits(tiny, p, rng)) if rng.random() < 0.8 else p for p in many * 2]
    got = Engine(tiny, branch=branch, pack=pack).run([*many, *edited]).logprobs
    assert np.abs(got - expected(tiny, [*many, *edited])).max() < 2 * NEAR


# ---------------------------------------------------------------------------------------------- cuts


def masked(llm, prompt, cut):
    """Log-probabilities by transformers' own eager attention under an additive mask built by hand."""
    length = len(prompt)
    at = torch.arange(length, device=llm.model.device)
    back = at[:, None] - at[None]
    config, found = llm.model.config, {}
    for kind in sorted(set(getattr(config, "layer_types", None) or ["full_attention"])):
        seen = (back >= 0) & (back < (config.sliding_window if kind == "sliding_attention" else length))
        for r in range(cut.rows[0], length) if cut.onwards else cut.rows:
            seen[r, [c for c in cut.columns if c < r]] = False
        found[kind] = torch.zeros(1, 1, length, length, device=at.device).masked_fill(
            ~seen, torch.finfo(torch.float32).min
        )
    mask = found if "sliding_attention" in found else found["full_attention"]
    with implementation(llm, "eager"), torch.inference_mode():
        out = llm.model(inputs_embeds=embedded(llm, prompt), attention_mask=mask, use_cache=False)
    return out.logits[0, -1].log_softmax(-1).cpu().numpy()


@pytest.mark.parametrize("branch", [8, 256])
@pytest.mark.parametrize(
    "cut",
    [
        Cut((40,), (5, 17, 39)),  # the first row of the suffix
        Cut((20,), (5, 17, 19)),  # in the prefix
        Cut((39, 12, 40), tuple(range(1, 39))),  # several rows
        Cut((18,), (5, 17), onwards=True),  # every later token
        Cut((0,), (0, 5, 6, 7, 41), onwards=True),  # also inside the suffix; each token still sees itself
        Cut((30, 40), tuple(range(0, 40))),  # everything but the token itself
    ],
)
def test_a_cut_is_an_attention_mask(tiny, branch, cut):
    many = prompts(tiny, seed=11)
    edited = [p.edited(cut) for p in many]
    got = Engine(tiny, branch=branch, pack=48).run([*many, *edited]).logprobs
    assert np.abs(got[len(many) :] - np.stack([masked(tiny, p, cut) for p in many])).max() < NEAR
    assert np.abs(got[: len(many)] - expected(tiny, many)).max() < NEAR  # those beside them are untouched
    assert np.abs(got[len(many) :] - got[: len(many)]).max() > 1e-3


@pytest.mark.parametrize("branch", [8, 256])
def test_a_cut_of_some_heads_in_some_layers_leaves_the_others(tiny, branch):
    many = prompts(tiny, seed=12)
    edited = [p.edited(Cut((20, len(p) - 1), (3, 5, 17), layers=(0, 2), heads=(1, 4))) for p in many]
    run = Engine(tiny, branch=branch).run(edited, capture=Capture(rows=(20, -1), outputs=(20,)))
    assert np.abs(run.logprobs - expected(tiny, many)).max() > 1e-4
    assert np.abs(run.logprobs - expected(tiny, edited)).max() < NEAR
    plain = Engine(tiny, branch=branch).run(many, capture=Capture(rows=(20, -1), outputs=(20,)))
    for cut, whole in zip(run.traces, plain.traces):
        at = np.array([3, 5, 17])
        assert not cut.attention[[0, 2]][:, [1, 4]][..., at].any()
        assert np.abs(cut.attention.sum(-1) - 1).max() < 1e-5
        left = [0, 2, 3, 5]
        assert close(cut.attention[0, left, 0], whole.attention[0, left, 0])  # the first block: nothing came before
        rest = whole.attention[0, [1, 4], 0] * (1 - np.isin(np.arange(whole.attention.shape[-1]), at))
        assert close(cut.attention[0, [1, 4], 0], rest / rest.sum(-1, keepdims=True))  # shared among the rest


def test_who_sees_a_token_nowhere_does_not_know_it(tiny):
    """All later tokens cut off from a slot: then its vector is nobody's, whatever it is."""
    a = prompts(tiny, seed=13)
    b = [Rendered(p.ids, np.concatenate([p.vectors[:1], -3 * p.vectors[1:2], p.vectors[2:]])) for p in a]
    engine = Engine(tiny, branch=16)
    gap = np.abs(engine.run(a).logprobs - engine.run(b).logprobs).max()
    whole = Cut((18,), (17,), onwards=True)
    some = Cut((18,), (17,), onwards=True, layers=(1, 2))
    same, nearly = ([engine.run([p.edited(c) for p in x]).logprobs for x in (a, b)] for c in (whole, some))
    assert gap > 1e-2 and np.abs(same[0] - same[1]).max() < NEAR < 1e-4 < np.abs(nearly[0] - nearly[1]).max()


# ---------------------------------------------------------------------------------------------- sharing


def test_different_tokens_under_the_same_edit_are_different(tiny):
    """A cut says the same of every token it touches; tokens with neighbouring ids must not be taken for one another."""
    head = prompts(tiny, seed=14)[0].ids[:20]
    head = np.where(head == SLOT, 7, head)
    many = [Rendered(np.append(head, i), np.zeros((0, tiny.width))).edited(Cut((20,), (3, 4))) for i in range(40, 56)]
    many += [p.extend([9, 9]) for p in many]
    assert np.abs(Engine(tiny).run(many).logprobs - expected(tiny, many)).max() < NEAR


def optimum(many):
    """Distinct prefixes of prompts and their edits, counted naively."""
    found = set()
    for prompt, symbols in zip(many, all_symbols(many)):
        path = []
        for position, symbol in enumerate(symbols.tolist()):
            path.append((symbol, tuple(e.digest(position) for e in prompt.edits if e.touches(position))))
            found.add(tuple(path))
    return len(found)


@pytest.mark.parametrize("branch", [4, 32, 256])
def test_an_edit_costs_what_stands_behind_it(llama, branch):
    many = prompts(llama, seed=15)
    prompt, length = many[2], len(many[2])
    row = vector(llama)
    base = build(all_symbols(many)).size
    for edit, more in (
        (Patch(1, (length - 1,), row), 1),
        (Cut((length - 3,), (5,)), 3),
        (Patch(2, (17,), row), length - 17),
        (Cut((9,), (5,), onwards=True), length - 9),
        (Cut((2,), (5,), onwards=True), length - 6),  # the first that saw it
    ):
        run = Engine(llama, branch=branch).run([*many, prompt.edited(edit)])
        assert run.computed == base + more == optimum([*many, prompt.edited(edit)])
    cells = [prompt.edited(Patch(d, (p,), row)) for d in range(4) for p in (5, 17, length - 1)]
    assert Engine(llama, branch=branch).run([*many, *cells, *cells]).computed == optimum([*many, *cells])
    again = [prompt.edited(Cut((9,), (5, 8, 9, 30))), prompt.edited(Cut((9,), (5, 8)))]  # row 9 sees the same
    assert Engine(llama, branch=branch).run([prompt, *again]).computed == length + length - 9


def test_a_kept_path_with_edits_is_used_and_never_mistaken(tiny):
    many = prompts(tiny, seed=16)
    edit = (Patch(1, (17,), vector(tiny, scale=2.0)), Cut((30,), (5, 29)))
    edited = [p.edited(*edit) for p in many]
    engine = Engine(tiny, branch=16)
    plain, first = engine.run(many).logprobs, engine.run(edited).logprobs
    assert np.abs(plain - first).max() > 1e-2
    again = engine.run(edited)
    assert again.computed <= optimum(edited) - 40  # the prefix was there, with its edits
    assert np.abs(again.logprobs - first).max() < NEAR
    assert np.abs(engine.run(many).logprobs - plain).max() < NEAR
    mixed = engine.run([x for pair in zip(edited, many) for x in pair]).logprobs
    assert np.abs(mixed[::2] - first).max() < NEAR and np.abs(mixed[1::2] - plain).max() < NEAR
    longer = engine.run([p.extend([5]) for p in edited])
    assert np.abs(longer.logprobs - expected(tiny, [p.extend([5]) for p in edited])).max() < NEAR
    held = engine.run([Rendered(p.ids, p.vectors).edited(*edit) for p in many], capture=Capture(hidden=(17, 30)))
    assert np.abs(held.logprobs - first).max() < NEAR  # what is read again on the path runs again, edited
    assert close(held.traces[3].hidden[1, 0], vector(tiny, scale=2.0)[0], 1e-6)


# ---------------------------------------------------------------------------------------------- refusals


def test_edits_that_cannot_be_are_refused(llama):
    prompt, length = prompts(llama)[2], len(prompts(llama)[2])
    row, small = vector(llama), vector(llama)[:, :8]
    engine = Engine(llama)
    for edit, words in (
        (Patch(1, (length,), row), f"{length} tokens"),
        (Cut((length,), (3,)), f"at position {length}"),
        (Cut((length,), (3,), onwards=True), f"at position {length}"),
        (Patch(4, (5,), row), "3 blocks"),
        (Patch(3, (5,), small, head=0), "3 blocks"),
        (Patch(1, (5,), small, head=6), "6 heads"),
        (Patch(1, (5,), small, head=-1), "6 heads"),
        (Patch(1, (5,), row, head=0), "width 48, not 8"),
        (Patch(1, (5,), small), "width 8, not 48"),
        (Cut((9,), (3,), layers=(3,)), "3 blocks"),
        (Cut((9,), (3,), heads=(6,)), "6 heads"),
        (Cut((9,), (3,), layers=()), "nowhere"),
        (Cut((9,), (3,), heads=()), "nowhere"),
        (Cut((9,), (length - 1, length + 5), onwards=True), "sees none"),
    ):
        with pytest.raises(DataError, match=words):
            engine.run([prompt, prompt.edited(edit)])
    assert np.abs(engine.run([prompt]).logprobs - expected(llama, [prompt])).max() < NEAR
    for wrong in (
        lambda: Cut((5,), (7,)),
        lambda: Cut((5,), (5,)),
        lambda: Cut((), (5,)),
        lambda: Cut((5,), ()),
        lambda: Cut((-1,), (0,)),
        lambda: Cut((5,), (-2,)),
        lambda: Patch(0, (1, 1), vector(llama, 2)),
        lambda: Patch(0, (1,), vector(llama, 2)),
        lambda: Patch(0, (), vector(llama, 0)),
        lambda: Patch(-1, (1,), row),
        lambda: Patch(0, (-1,), row),
        lambda: Patch(0, (1,), row * np.nan),
    ):
        with pytest.raises(ValueError):
            wrong()


@pytest.mark.parametrize(
    "capture,words",
    [
        (Capture(), "nothing"),
        (Capture(columns=(3,)), "nothing"),
        (Capture(rows=(45,)), "rows"),
        (Capture(hidden=(-42,)), "hidden"),
        (Capture(outputs=(45,)), "outputs"),
        (Capture(rows=(-1,), columns=(45,)), "columns"),
        (Capture(rows=(-1,), columns=(-1,)), "columns"),
        (Capture(rows=(-1,), layers=(3,)), "layers"),
        (Capture(hidden=(-1,), depths=(4,)), "depths"),
        (Capture(rows=(-1,), layers=()), "nothing"),
        (Capture(hidden=(-1,), depths=()), "nothing"),
    ],
)
def test_captures_that_cannot_be_are_refused(llama, capture, words):
    with pytest.raises(DataError, match=words):
        Engine(llama).run(prompts(llama, tails=(1, 4), deep=False), capture=capture)
    with pytest.raises(DataError, match="captures"):
        Engine(llama).run(prompts(llama), capture=[Capture(rows=(-1,))])
    with pytest.raises(DataError, match="same layers"):
        both = [Capture(rows=(-1,)), Capture(rows=(-1,), layers=(0,))]
        Engine(llama).run(prompts(llama, tails=(1, 4), deep=False), capture=both)


def nothing_hooked(model, visit):
    return nullcontext()


def forget_cuts(state, layer, query, key, value, out, lse, *rest):
    return out, lse


@pytest.mark.parametrize(
    "edit,owner,name,broken",
    [
        (Patch(1, (5,), np.ones((1, 48))), parts, "hooked", nothing_hooked),
        (Patch(1, (5,), np.ones((1, 8)), head=2), attention, "_change", lambda *a: None),
        (Cut((30,), (5,)), rows, "cut", forget_cuts),
        (Cut((30,), (5,)), edits.Edits, "prepare", lambda *a: 0),
    ],
)
def test_an_edit_that_does_not_fire_raises(llama, monkeypatch, edit, owner, name, broken):
    many = prompts(llama, seed=17)
    engine = Engine(llama, branch=16)
    plain = engine.run(many).logprobs
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(RuntimeError, match=r"fire|were to be edited"):
        engine.run([*many, many[3].edited(edit)])
    monkeypatch.undo()
    assert np.abs(engine.run(many).logprobs - plain).max() < NEAR
    assert np.abs(engine.run([many[3].edited(edit)]).logprobs - reference(llama, many[3].edited(edit))).max() < NEAR


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_the_model_is_as_before_after_edits_and_after_errors(llama, monkeypatch):
    many = prompts(llama, seed=18)
    before = (hooks(llama.model), llama.model.config._attn_implementation, torch.get_num_threads())
    engine = Engine(llama, branch=16)
    state = {k: v.clone() for k, v in llama.model.state_dict().items()}
    plain = engine.run(many).logprobs
    edited = [p.edited(Patch(1, (5,), vector(llama)), Patch(1, (6,), vector(llama)[:, :8], head=1)) for p in many]
    change, calls = attention._change, []

    def stumble(*a):
        calls.append(a)
        if len(calls) > 1:
            raise ValueError("broken")
        change(*a)

    for broken in (True, False):
        if broken:
            monkeypatch.setattr(attention, "_change", stumble)
            with pytest.raises(ValueError, match="broken"):
                engine.run(edited, capture=Capture(hidden=(3,)))
            monkeypatch.undo()
        else:
            engine.run(edited, capture=Capture(hidden=(3,)))
            gradient(llama, many[0], Outcome((1, 2), target=0), [3])
        assert (hooks(llama.model), llama.model.config._attn_implementation, torch.get_num_threads()) == before
        assert getattr(attention._current, "state", None) is None
        assert np.abs(engine.run(many).logprobs - plain).max() < NEAR
    assert all((v == llama.model.state_dict()[k]).all() for k, v in state.items())


@pytest.mark.parametrize("gap", [0.0, 5.0, 34.0, 36.0, 40.0, 900.0])
def test_log_odds_have_all_their_digits_however_sure_the_model_is(gap):
    """Of two options they are the difference of the log-probabilities; of three, against the other two together."""
    for sign in (1, -1):
        assert Outcome((3, 4), target=0).read(np.array([0.0, -sign * gap])) == pytest.approx(sign * gap, abs=1e-12)
    logp = np.array([[-gap, -1.0, -2.0], [0.0, -gap, -gap]])
    wanted = [-gap - np.logaddexp(-1, -2), gap - np.log(2)]
    assert np.allclose(Outcome((1, 2, 9), target=0).read_all(logp), wanted, atol=1e-12)


def test_an_edited_prompt_is_not_continued(llama):
    many = prompts(llama)
    with pytest.raises(DataError, match="edited prompt"):
        Engine(llama).generate([many[0], many[1].edited(Patch(1, (5,), vector(llama)))], 3)
    with pytest.raises(DataError, match="edits"):
        gradient(llama, many[1].edited(Cut((9,), (5,))), Outcome((1, 2), target=0), [3])


# ---------------------------------------------------------------------------------------------- sizes


def taken(traces: tuple[Trace, ...]) -> int:
    return sum(getattr(t, name).nbytes for t in traces for name in NAMES if getattr(t, name) is not None)


@pytest.mark.parametrize(
    "capture",
    [
        Capture(rows=(-1, 3)),
        Capture(rows=(-1,), columns=(2, 5, 30), layers=(1,), norms=True),
        Capture(hidden=(-1, 2, 7), depths=(0, 3)),
        Capture(outputs=(4, -1), rows=(0,), norms=True, hidden=(5,)),
    ],
)
def test_the_size_of_a_capture_is_known_before_it_runs(llama, capture):
    many = prompts(llama)
    real = taken(Engine(llama).run(many, capture=capture).traces)
    assert taken(Engine(llama, limit=real).run(many, capture=capture).traces) == real
    engine = Engine(llama, limit=real - 1)
    with pytest.raises(DataError, match=f"would keep {real / 1e9:.2f} GB") as said:
        engine.run(many, capture=capture)
    assert engine.computed == 0  # refused before anything ran
    fits = int(str(said.value).split("at most ")[1].split()[0])
    for start in range(0, len(many), fits):
        engine.run(many[start : start + fits], capture=capture)
    with pytest.raises(DataError, match="fewer rows"):
        Engine(llama, limit=10).run(many, capture=capture)


def test_a_large_capture_is_refused_with_numbers_one_can_read(llama):
    many = [Rendered(np.arange(400) % 90 + 3, np.zeros((0, 48)))] * 300
    with pytest.raises(DataError, match=r"would keep 10\.37 GB and the limit is 2\.00; ask for at most 57") as said:
        Engine(llama).run(many, capture=Capture(rows=tuple(range(400)), columns=tuple(range(400)) * 3))
    assert "fewer layers" in str(said.value)


# ---------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize(
    "outcome", [Outcome((40, 41, 42), np.array([1.0, 2.0, 5.0])), Outcome((40, 41, 60, 7), target=2)]
)
def test_a_gradient_is_a_finite_difference_of_patches(tiny, outcome):
    prompt = prompts(tiny, seed=19)[2]
    places = [5, 41, len(prompt) - 1]
    found = gradient(tiny, prompt, outcome, places)
    engine = Engine(tiny)
    ids = list(outcome.ids)
    plain = engine.run([prompt], ids, Capture(hidden=places, outputs=places))
    assert found.value == pytest.approx(outcome.read(plain.logprobs[0]), abs=1e-4)
    assert close(found.states, plain.traces[0].hidden) and close(found.head_states, plain.traces[0].outputs)
    steps, slopes = [], []
    for at, place in enumerate(places):
        for depth in range(4):
            steps.append((Patch, depth, place, None))
            slopes.append(found.stream[depth, at])
        for layer, head in ((0, 0), (1, 5), (2, 3)):
            steps.append((Patch, layer, place, head))
            slopes.append(found.outputs[layer, head, at])
    # along the gradient itself, where the difference is largest: its slope there is the gradient's length
    edited, small, length = [], 1e-2, [float(np.linalg.norm(s)) for s in slopes]
    for (_, layer, place, head), slope, size in zip(steps, slopes, length):
        for sign in (1, -1):
            step = sign * small * slope / max(size, 1e-30) / max(size, 1.0)
            edited.append(prompt.edited(Patch(layer, (place,), step[None], head=head, add=True)))
    read = outcome.read_all(engine.run(edited, ids).logprobs)
    measured = (read[::2] - read[1::2]) / (2 * small / np.maximum(length, 1.0))
    assert max(length) > 0.1
    assert np.abs(measured - length).max() < 0.02 * max(length)
    assert not found.stream[3, 0].any() and found.stream[3, 2].any()  # at the last place only the last token counts


def test_a_gradient_leaves_nothing_behind(llama):
    for weight in llama.model.parameters():
        weight.grad = None
    found = gradient(llama, prompts(llama)[1], Outcome((5, 6), target=0), [5, 17])
    assert any(weight.requires_grad for weight in llama.model.parameters())  # else there would be nothing to leave
    assert all(weight.grad is None for weight in llama.model.parameters())
    for wrong in ([41], [-1], []):
        with pytest.raises(DataError, match="from 0 to"):
            gradient(llama, prompts(llama)[0], Outcome((5, 6), target=0), wrong)
    assert found.stream.shape == found.states.shape == (4, 2, 48)
    assert found.outputs.shape == found.head_states.shape == (3, 6, 2, 8) and found.outputs.dtype == np.float32
