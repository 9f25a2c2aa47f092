"""The engine's theorems, on four families: grouped queries, head norms, sliding windows, soft caps."""

import numpy as np
import pytest
import torch

from icrl_lab.engine import Engine, attention, parts, products
from icrl_lab.engine.gradients import gradient
from icrl_lab.engine.packs import PACK
from icrl_lab.engine.proof import plain
from icrl_lab.engine.tree import Branch, all_symbols, build, flatten, shared_length, symbols
from icrl_lab.errors import DataError, ModelError
from icrl_lab.models import wrap
from icrl_lab.values import SLOT, Capture, Outcome, Patch, Rendered
from tests.conftest import tiny_llm

NEAR = 2e-5


def prompts(llm, seed=0, prefix=40, tails=(1, 4, 9, 2, 6), slots=True, deep=True):
    """Prompts with a shared prefix that holds vectors, unequal tails with vectors of their own, and branches inside the tails."""
    rng = np.random.default_rng(seed)
    draw = lambda n: rng.integers(3, 97, n)  # noqa: E731
    vector = lambda n: rng.standard_normal((n, llm.width)).astype(np.float32)  # noqa: E731
    head, head_vectors = draw(prefix), vector(2)
    head[[5, 17]] = SLOT
    out = []
    for length in tails:
        tail, own = draw(length), vector(1)
        if length > 1:
            tail[0] = SLOT
        stacked = np.concatenate([head_vectors, own]) if length > 1 else head_vectors
        ids = np.concatenate([head, tail])
        if not slots:
            ids, stacked = np.where(ids == SLOT, 7, ids), stacked[:0]
        out.append(Rendered(ids, stacked))
    if deep:
        out += [out[2].extend(extra) for extra in ([11], [12, 13], [12, 14, 15])]
    return out


def reference(llm, many):
    return np.stack([plain(llm, p) for p in many])


def test_equals_the_plain_forward(tiny):
    many = prompts(tiny)
    assert np.abs(Engine(tiny, branch=32).run(many).logprobs - reference(tiny, many)).max() < NEAR


@pytest.mark.parametrize("pack,branch", [(1, 1), (7, 3), (16, 64), (512, 0), (33, 256)])
def test_results_do_not_depend_on_packs(tiny, pack, branch):
    many = prompts(tiny, seed=1)
    run = Engine(tiny, pack=pack, branch=branch).run(many)
    assert np.abs(run.logprobs - reference(tiny, many)).max() < NEAR
    assert run.computed == build([symbols(p) for p in many]).size  # the prefix tree's optimum, whatever the packs


def test_order_and_repeats_change_nothing(tiny):
    many = prompts(tiny, seed=2)
    engine = Engine(tiny, branch=32)
    forward = engine.run(many).logprobs
    turned = engine.run([*many[::-1], many[0]])
    assert np.abs(turned.logprobs[:-1][::-1] - forward).max() < NEAR
    assert (turned.logprobs[-1] == turned.logprobs[-2]).all()  # equal prompts are one node


def test_queries_of_a_pack_are_isolated_bitwise(tiny):
    many = prompts(tiny, seed=3, tails=(5, 5, 5, 5), deep=False)
    other = [*many[:2], Rendered(many[2].ids, np.concatenate([many[2].vectors[:2], -3 * many[2].vectors[2:]])), many[3]]
    a, b = (Engine(tiny, branch=8).run(x).logprobs for x in (many, other))
    assert (a[[0, 1, 3]] == b[[0, 1, 3]]).all()
    assert np.abs(a[2] - b[2]).max() > 1e-3


def test_own_embedding_is_the_token(tiny):
    text = prompts(tiny, seed=4, slots=False)
    injected = []
    for p in text:
        ids = p.ids.copy()
        at = [3, len(p) - 1]
        ids[at] = SLOT
        injected.append(Rendered(ids, tiny.embed(p.ids[at])))
    engine = Engine(tiny)
    assert np.abs(engine.run(injected).logprobs - engine.run(text).logprobs).max() < NEAR


def test_one_prompt_longer_than_a_pack(tiny):
    many = prompts(tiny, seed=5, prefix=150, tails=(3,), deep=False)
    assert np.abs(Engine(tiny, pack=32, branch=16).run(many).logprobs - reference(tiny, many)).max() < NEAR


def test_a_kept_path_is_used_and_right(tiny):
    many = prompts(tiny, seed=6)
    engine = Engine(tiny, branch=32)
    first = engine.run(many)
    again = engine.run([p.extend([5]) for p in many])
    assert again.computed <= build([symbols(p.extend([5])) for p in many]).size - 40  # the prefix was there
    assert np.abs(again.logprobs - reference(tiny, [p.extend([5]) for p in many])).max() < NEAR
    other = prompts(tiny, seed=7)
    assert np.abs(engine.run(other).logprobs - reference(tiny, other)).max() < NEAR
    assert np.abs(engine.run(many).logprobs - first.logprobs).max() < NEAR


def test_groups_share_a_pack_and_a_lone_prefix_is_kept(llama, monkeypatch):
    """Three small trees are one pass, whatever stretch each of them shares; one alone keeps its stretch for the next call."""
    passes = []
    forward = Engine._forward
    monkeypatch.setattr(Engine, "_forward", lambda self, *a, **k: passes.append(k) or forward(self, *a, **k))
    groups = [prompts(llama, seed=s, prefix=30, tails=(1, 4, 2), deep=False) for s in (8, 9, 10)]
    many = [p for group in groups for p in group]
    assert np.abs(Engine(llama, branch=48).run(many).logprobs - reference(llama, many)).max() < NEAR
    assert passes == [{}]
    engine = Engine(llama, branch=48)
    engine.run(groups[0])
    assert len(passes) == 3 and engine.run([p.extend([5]) for p in groups[0]]).computed <= 10


def test_prompt_that_is_a_prefix_of_another(tiny):
    long = prompts(tiny, seed=8, tails=(9,), deep=False)[0]
    cut = [Rendered(long.ids[:n], long.vectors[: (long.ids[:n] == SLOT).sum()]) for n in (12, 30, len(long))]
    for branch in (1, 16, 256):
        assert np.abs(Engine(tiny, branch=branch).run(cut).logprobs - reference(tiny, cut)).max() < NEAR


def test_read_at_ids_is_normalised_over_the_vocabulary(tiny):
    many = prompts(tiny)
    engine = Engine(tiny)
    full = engine.next_token(many)
    assert np.abs(np.exp(full).sum(1) - 1).max() < 1e-5
    assert np.abs(engine.next_token(many, ids=[44, 3]) - full[:, [44, 3]]).max() < NEAR


def eager(llm, prompt):
    """(layers, heads, T, T) attention by the model's own eager path."""
    before = llm.model.config._attn_implementation
    llm.model.set_attn_implementation("eager")
    try:
        with llm.model.device, torch.inference_mode():
            ids = torch.tensor(np.where(prompt.ids == SLOT, 0, prompt.ids))
            embeds = llm.model.get_input_embeddings()(ids)
            embeds[torch.tensor(np.flatnonzero(prompt.ids == SLOT))] = torch.tensor(prompt.vectors)
            out = llm.model(inputs_embeds=embeds[None], output_attentions=True, use_cache=False)
    finally:
        llm.model.set_attn_implementation(before)
    return torch.cat(out.attentions).cpu().numpy()


@pytest.mark.parametrize("branch", [4, 32, 256])
def test_captured_rows_equal_eager_attention(tiny, branch):
    many = prompts(tiny, seed=9)
    rows = (-1, -3, -30)  # in the tail, in tail or prefix, in the prefix
    run = Engine(tiny, branch=branch, pack=64).run(many, capture=Capture(rows))
    for prompt, trace in zip(many, run.traces):
        full = eager(tiny, prompt)[:, :, [len(prompt) + r for r in rows]]
        assert trace.attention.shape == full.shape
        assert np.abs(trace.attention - full).max() < 5e-6  # weights this sharp; 1e-6 on a trained model
    assert np.abs(run.logprobs - reference(tiny, many)).max() < NEAR


def test_captured_columns_and_layers_are_a_slice(tiny):
    many = prompts(tiny, seed=10)
    engine = Engine(tiny, branch=32)
    whole = engine.run(many, capture=Capture((-1, -2))).traces
    some = engine.run(many, capture=Capture((-1, -2), columns=(5, 17, 40), layers=(0, 2))).traces
    for a, b in zip(whole, some):
        assert b.attention.shape == (2, 6, 2, 3) and b.layers == (0, 2)
        assert np.abs(a.attention[[0, 2]][..., [5, 17, 40]] - b.attention).max() < 5e-6


def test_capture_outside_a_prompt_is_refused(llama):
    with pytest.raises(DataError, match="capture rows"):
        Engine(llama).run(prompts(llama), capture=Capture((-500,)))


def test_generation_is_the_plain_greedy_loop(tiny):
    many = prompts(tiny, seed=11, tails=(1, 4, 9, 2))
    got = Engine(tiny).generate(many, 6)
    for prompt, tokens in zip(many, got):
        for token in tokens:
            assert token == int(plain(tiny, prompt).argmax())
            prompt = prompt.extend([token])


def test_generation_stops_and_samples_by_seed(llama):
    many = prompts(llama, seed=12)
    engine = Engine(llama)
    greedy = engine.generate(many, 5)
    stopped = engine.generate(many, 5, stop_ids=[g[2] for g in greedy])
    for g, s in zip(greedy, stopped):
        assert s == g[: len(s)] and len(s) <= 2
    hot = [engine.generate(many, 5, temperature=1.5, seed=s) for s in (3, 3, 4)]
    assert hot[0] == hot[1] != hot[2]
    assert Engine(llama, pack=8).generate(many, 5, temperature=1.5, seed=3) == hot[0]


def test_the_model_is_the_same_afterwards_also_after_an_error(llama, monkeypatch):
    before = (llama.model.config._attn_implementation, torch.get_num_threads())
    many = prompts(llama)
    engine = Engine(llama, branch=16)
    mlp = parts.blocks(llama.model)[0][-1].mlp
    monkeypatch.setattr(mlp, "forward", mlp.forward)  # as a library does that wraps a module
    expected = engine.run(many).logprobs
    own = [dict(m.__dict__) for m in llama.model.modules()]
    monkeypatch.setattr(attention, "_merge", lambda *a: (_ for _ in ()).throw(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        engine.run(prompts(llama, seed=99))
    assert [m.__dict__ for m in llama.model.modules()] == own
    monkeypatch.undo()
    assert (llama.model.config._attn_implementation, torch.get_num_threads()) == before
    assert np.abs(engine.run(many).logprobs - expected).max() < NEAR


def test_the_last_block_computes_what_is_read_and_no_more(tiny):
    many = prompts(tiny)
    rows = []
    blocks = parts.blocks(tiny.model)[0]
    handles = [b.mlp.down_proj.register_forward_hook(lambda *a: rows.append(a[2].shape[-2])) for b in blocks]
    bare = Engine(tiny, branch=16).run(many)
    narrow, rows = np.reshape(rows, (-1, len(blocks))), []
    kept = Engine(tiny, branch=16).run(many, capture=Capture((-1, 7), outputs=(7, 40), hidden=(3,)))
    wide, rows = np.reshape(rows, (-1, len(blocks))), []
    Engine(tiny, branch=16).run([p.edited(Patch(0, (3,), np.ones((1, tiny.width)))) for p in many])
    whole = np.reshape(rows, (-1, len(blocks)))
    for handle in handles:
        handle.remove()
    assert narrow[:, 0].sum() == bare.computed and (narrow[:, :-1] == narrow[:, :1]).all()
    assert narrow[:, -1].tolist() == [1, 4, 4]  # a stretch of which nothing is read, the chains, the tree
    assert wide[:, -1].tolist() == [2, 7, 5]  # and places 3 and 7, and 40, the first behind the stretch
    assert (wide[:, :-1] == narrow[:, :-1]).all() and (whole == narrow[:, :1]).all()  # an edit may stand anywhere
    assert np.abs(bare.logprobs - kept.logprobs).max() < NEAR and np.ptp(bare.logprobs, axis=0).max() > 100 * NEAR


def test_out_of_memory_halves_the_pack_and_goes_on(llama, monkeypatch):
    many = prompts(llama, tails=(5,) * 12)
    engine = Engine(llama, branch=8, pack=60)
    real = engine._forward

    def short(job, prefix, pack, *more, **named):
        if sum(map(len, pack)) > 20:
            raise torch.OutOfMemoryError("out of memory")
        real(job, prefix, pack, *more, **named)

    monkeypatch.setattr(engine, "_forward", short)
    assert np.abs(engine.run(many).logprobs - reference(llama, many)).max() < NEAR
    assert engine.pack <= 20
    monkeypatch.setattr(engine, "_forward", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape"):
        engine.run(prompts(llama, seed=50))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_out_of_memory_in_the_midst_of_a_text_halves_the_pack_and_changes_no_text(family, temperature, monkeypatch):
    from tests.conftest import tiny_llm

    llm = tiny_llm(family)
    many = prompts(llm, tails=(5, 3, 4, 6, 2))
    whole = Engine(llm).generate(many, 7, temperature=temperature, seed=3)
    engine = Engine(llm)
    real, calls = engine._logits, [0]

    def short(job, state, where, rows, new=None):
        calls[0] += 1
        if len(rows) > 2 and new is not None and calls[0] % 3 == 0:
            raise torch.OutOfMemoryError("out of memory")
        return real(job, state, where, rows, new)

    monkeypatch.setattr(engine, "_logits", short)
    assert engine.generate(many, 7, temperature=temperature, seed=3) == whole
    assert len(set(map(tuple, whole))) > 2 and engine.pack < 40


def short_of_memory():
    """What torch says where a CPU's memory is not enough, in its own words."""
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        assert not isinstance(error, torch.OutOfMemoryError)
        return error
    raise AssertionError("an exabyte was had")


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("inner", ["_forward", "_continue"])
def test_a_cpu_out_of_memory_halves_the_pack_and_any_other_error_is_raised(family, inner, monkeypatch):
    """In a pass, and where texts are continued."""
    llm = tiny_llm(family)
    many = prompts(llm, tails=(5,) * 12, deep=False)

    def run(error=None):
        engine, failed = Engine(llm, branch=8, pack=60), []
        real = getattr(engine, inner)

        def short(job, prefix, *given, **more):
            pack = next(g for g in given if isinstance(g, list) and isinstance(g[0], Branch))
            if error and len(pack) > 1 and sum(map(len, pack)) > 20:
                failed.append(sum(map(len, pack)))
                raise error
            real(job, prefix, *given, **more)

        monkeypatch.setattr(engine, inner, short)
        try:
            found = engine.run(many).logprobs if inner == "_forward" else engine.generate(many, 4, 0.7, seed=3)
        except RuntimeError as raised:
            found = raised
        return found, failed, engine.pack

    found, failed, pack = run(short_of_memory())
    assert failed == [60, 30] and pack == 15
    whole = run()[0]
    if inner == "_forward":
        assert np.abs(found - reference(llm, many)).max() < NEAR and np.abs(found - whole).max() < NEAR
    else:
        assert found == whole and len(set(map(tuple, found))) > 2
    for other in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), RuntimeError("can't allocate a thread")):
        found, failed, pack = run(other)
        assert found is other and failed == [60] and pack == 60


def test_a_pack_is_what_free_memory_holds(llama, monkeypatch):
    monkeypatch.setattr(products, "free", lambda: 64e9)
    assert Engine(llama).pack == PACK["cpu"]
    sizes = []
    for free in (5e6, 1e7, 2e7):
        monkeypatch.setattr(products, "free", lambda free=free: free)
        sizes.append(Engine(llama).pack)
    assert 32 < sizes[0] and np.allclose(np.diff(np.log2(sizes)), 1, atol=0.05) and sizes[-1] < PACK["cpu"]


def test_prompts_that_cannot_be_run_are_refused(llama):
    with pytest.raises(DataError, match="reads 512"):
        Engine(llama).run([Rendered(np.full(513, 5), np.zeros((0, 48)))])
    with pytest.raises(DataError, match="width 47"):
        Engine(llama).run([Rendered([5, SLOT], np.zeros((1, 47)))])
    with pytest.raises(DataError, match="empty"):
        Engine(llama).run([Rendered([], np.zeros((0, 48)))])


def test_a_model_that_breaks_the_proof_is_refused(monkeypatch):
    from tests.conftest import tiny_llm

    assert tiny_llm("llama", prove=True).proof["engine against plain"] < NEAR
    monkeypatch.setattr(attention, "_merge", lambda a, la, b, lb: (a.float(), la))  # forgets the prefix
    with pytest.raises(ModelError, match="refused"):
        tiny_llm("llama", prove=True)


# ----------------------------------------------------------------------------------------------- the tree


def test_tree_counts_distinct_prefixes():
    rng = np.random.default_rng(0)
    many = [rng.integers(0, 3, rng.integers(1, 9)) for _ in range(200)]
    root = build(many)
    assert root.size == len({tuple(s[:n].tolist()) for s in many for n in range(1, len(s) + 1)})
    ends = []

    def visit(node):
        ends.extend(node.ends)
        for child in node.children:
            visit(child)

    visit(root)
    assert sorted(ends) == list(range(200))


def test_children_stand_in_the_order_of_the_prompts_whatever_their_symbols():
    rng = np.random.default_rng(3)
    many = [rng.integers(0, 3, rng.integers(1, 7)) for _ in range(60)]
    for _ in range(5):
        other = rng.integers(-(2**62), 2**62, 3)
        pairs = [(build(many), build([other[s] for s in many]))]
        for one, two in pairs:  # grows
            assert sorted(one.members) == sorted(two.members) and one.ends == two.ends
            assert len(one.children) == len(two.children)
            pairs += zip(one.children, two.children)
        assert len(pairs) > 20


def test_flattened_branch_reads_each_sequence_back():
    rng = np.random.default_rng(1)
    many = [rng.integers(0, 2, rng.integers(1, 7)) for _ in range(40)]
    branch = flatten(build(many))
    for sequence, at in branch.ends:
        path = branch.chain(at)
        assert [many[branch.symbol_at[i, 0]][branch.symbol_at[i, 1]] for i in path] == many[sequence].tolist()
        assert np.flatnonzero(branch.ancestors()[at]).tolist() == path


def test_symbols_tell_vectors_apart():
    vectors = np.random.default_rng(2).standard_normal((3, 5)).astype(np.float32)
    a, b = Rendered([1, SLOT, 2], vectors[:1]), Rendered([1, SLOT, 2], vectors[1:2])
    assert symbols(a)[1] < 0 and symbols(a)[1] != symbols(b)[1]
    assert shared_length(symbols(a), symbols(b)) == 1
    assert (symbols(a) == symbols(Rendered([1, SLOT, 2], vectors[:1].copy()))).all()


def test_vectors_that_differ_in_one_entry_are_different_nodes():
    """Also where most entries are equal, as those of padded vectors are, and in the same place of neighbouring prompts."""
    base = np.zeros((1, 48), np.float32)
    other, negative = base.copy(), -base
    other[0, 7] = 1e-3
    many = [Rendered([1, SLOT, 2], v) for v in (base, other, base, negative)]
    got = [s[1] for s in all_symbols(many)]
    assert got[0] == got[2] and len(set(got)) == 3  # -0.0 has other bytes, and may be another node
    assert got == [symbols(p)[1] for p in many]


# --------------------------------------------------------------------------------------------------- a GPU
# `tiny` is on a GPU too where there is one; here is what differs there: half precision by the flash kernel, memory that is short

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(params=[pytest.param(d, marks=gpu) for d in ("bfloat16", "float16")])
def half(request):
    """Models of each family in half precision on a GPU, each beside the same one in float32."""
    from tests.conftest import FAMILIES, tiny_llm

    return [
        (tiny_llm(f, device="cuda", dtype=request.param), tiny_llm(f, device="cuda", dtype="float32")) for f in FAMILIES
    ]


def test_half_precision_on_a_gpu_is_as_exact_as_a_plain_forward(half):
    for llm, single in half:
        many = prompts(llm, tails=(1, 4, 9, 2, 6, 4, 9, 33))
        wanted = reference(single, many)
        rounding = np.abs(reference(llm, many) - wanted).max()
        for pack, branch in ((8192, 256), (8192, 32), (33, 16)):
            found = Engine(llm, pack=pack, branch=branch).run(many, capture=Capture((-1, -3, -30)))
            assert np.abs(found.logprobs - wanted).max() < 2 * rounding
            assert max(np.abs(t.attention.sum(-1) - 1).max() for t in found.traces) < 1e-2


def test_half_precision_on_a_gpu_isolates_queries_bitwise(half):
    for llm, _ in half:
        for tails in ((5, 5, 5, 5), (3, 5, 9, 4)):
            many = prompts(llm, seed=3, tails=tails, deep=False)
            vectors = np.concatenate([many[2].vectors[:2], -3 * many[2].vectors[2:]])
            other = [*many[:2], Rendered(many[2].ids, vectors), many[3]]
            a, b = (Engine(llm, branch=16).run(x).logprobs for x in (many, other))
            assert (a[[0, 1, 3]] == b[[0, 1, 3]]).all() and (a[2] != b[2]).any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_out_of_memory_halves_the_pack_and_goes_on():
    from tests.conftest import tiny_llm

    llm = tiny_llm("llama", device="cuda")
    many = prompts(llm, prefix=300, tails=(180,) * 200, deep=False)
    engine = Engine(llm, pack=10**6)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2e8) / total)
    try:
        found = engine.run(many).logprobs
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 180 < engine.pack < 180 * 200
    assert np.abs(found[::40] - reference(llm, many[::40])).max() < NEAR
    assert np.abs(found - Engine(llm).run(many).logprobs).max() < NEAR


# ------------------------------------------------------------------------------------------------ other families


COMMON = dict(
    vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


def of_config(name, **more):
    """A tiny model of a family that is not among `tiny`."""
    import transformers as tf

    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(getattr(tf, name)(**{**COMMON, **more}))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.25)
    return wrap(name, model, None, prove=False)


def of_ids(llm, n, seed=1):
    ids = np.random.default_rng(seed).integers(3, 97, n)
    return Rendered(ids, np.zeros((0, llm.width), np.float32), (), ("x",) * n)


def plainly(llm, prompt):
    with torch.no_grad():
        return llm.model(torch.tensor(prompt.ids)[None]).logits[0, -1].log_softmax(-1).numpy()


@pytest.mark.parametrize(
    ("name", "more"),
    [("GraniteConfig", {"logits_scaling": 8.0}), ("CohereConfig", {"logit_scale": 0.0625}), ("LlamaConfig", {})],
)
def test_the_unembedding_has_the_models_own_scale(name, more):
    """Families call it by many names: the last place of the stream gives the model's own answer all the same."""
    llm = of_config(name, **more)
    engine, prompts = Engine(llm), [of_ids(llm, n, n) for n in (9, 14, 11)]
    run = engine.run(prompts, capture=Capture(hidden=(-1,), depths=(llm.blocks,)))
    last = np.stack([t.hidden[0, 0] for t in run.traces])
    assert np.abs(engine.unembed(last) - run.logprobs).max() < 1e-5
    assert max(np.abs(plainly(llm, p) - row).max() for p, row in zip(prompts, run.logprobs)) < 1e-5


@pytest.mark.parametrize("as_own", [True, False])
def test_logits_among_some_tokens_are_the_whole_vocabularys(tiny, as_own, monkeypatch):
    """The same distribution, whether the model's head can be narrowed to the tokens or has to be asked for all."""
    if not as_own:
        monkeypatch.setattr(parts, "_measured_scale", lambda model: float("nan"))
    monkeypatch.setattr(parts, "_scales", {})
    many, engine, seen = prompts(tiny, seed=7), Engine(tiny, branch=32), []
    head = tiny.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    for ids in ([40, 3, 96, 7], [5], np.random.default_rng(0).permutation(97).tolist()):
        whole = engine.next_token(many, ids).astype(np.float64)
        seen.clear()
        found = engine.next_token(many, ids, among=True)
        asked = set(seen[-len(seen) // 2 :] if as_own else seen)
        assert np.abs(found - (whole - np.log(np.exp(whole).sum(1, keepdims=True)))).max() < NEAR
        assert asked == {len(ids) if as_own else 97}
    handle.remove()
    assert "forward" not in head.__dict__ and np.abs(engine.next_token(many) - reference(tiny, many)).max() < NEAR


def test_a_head_that_is_laid_out_or_has_a_scale_and_a_bias_is_narrowed_too():
    llm = of_config("GraniteConfig", logits_scaling=8.0)
    head = llm.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.linspace(-1, 1, len(head.weight)))
    many, ids = [of_ids(llm, n, n) for n in (9, 14, 11)], [50, 4, 33]
    whole = Engine(llm).next_token(many, ids).astype(np.float64)
    want = whole - np.log(np.exp(whole).sum(1, keepdims=True))
    for laid in (False, True):
        if laid:
            assert products.lay_out(llm.model)
        own = head.__dict__.get("forward")
        assert np.abs(Engine(llm).next_token(many, ids, among=True) - want).max() < NEAR
        assert head.__dict__.get("forward") is own and (own is not None) == laid


@pytest.mark.parametrize("larger", [0, 12, 30])
def test_logits_near_their_cap_do_not_hide_the_scale(larger):
    """In bfloat16, where a capped logit says little of what it was, as a trained Gemma 2 has them."""
    llm = tiny_llm("gemma2", dtype="bfloat16")
    with torch.no_grad():
        parts.blocks(llm.model)[1].weight.add_(larger)
        highest = float(llm.model(input_ids=torch.arange(5)[None]).logits.abs().max())
        assert highest > 29.9 or not larger
        assert parts._scale(llm.model) == 1.0


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("PhimoeConfig", {"sliding_window": 40, "num_local_experts": 4}),
        ("Llama4TextConfig", {"attention_chunk_size": 40, "head_dim": 12, "num_local_experts": 2, "intermediate_size_mlp": 64}),
    ],
)  # fmt: skip
def test_a_window_that_stands_in_a_models_mask_alone_is_not_overlooked(name, more):
    """Shorter prompts are right; a longer one, for which the window matters, is refused with the reason."""
    llm = of_config(name, **more)
    short = [of_ids(llm, n, n) for n in (20, 40, 33)]
    for prompt, row in zip(short, Engine(llm).next_token(short)):
        assert np.abs(plainly(llm, prompt) - row).max() < 5e-5
    with pytest.raises(ModelError, match="40 tokens at most"):
        Engine(llm).next_token([of_ids(llm, 30), of_ids(llm, 41), of_ids(llm, 60)])


def test_the_longer_frequencies_of_longrope_are_out_of_reach():
    """They would be chosen for a whole pack by its longest prompt."""
    factors = {"short_factor": [1.0] * 6, "long_factor": [3.0] * 6}
    llm = of_config(
        "Phi3Config", rope_scaling={"rope_type": "longrope", **factors}, original_max_position_embeddings=64
    )
    assert llm.context == 64
    prompts = [of_ids(llm, n, n) for n in (64, 30, 50)]
    for prompt, row in zip(prompts, Engine(llm).next_token(prompts)):
        assert np.abs(plainly(llm, prompt) - row).max() < 5e-5
    with pytest.raises(DataError, match="reads 64"):
        Engine(llm).next_token([of_ids(llm, 65)])
    assert of_config("LlamaConfig").context == 512


@pytest.mark.parametrize("name", ["PhiConfig", "GPTNeoXConfig"])
def test_heads_are_told_apart_whatever_their_projection_is_called(name):
    llm = of_config(name)
    prompt = of_ids(llm, 12)
    found = gradient(llm, prompt, Outcome((5, 6), target=0), [3, 11])
    weight = parts.projection(parts.attention(parts.blocks(llm.model)[0][-1])).weight.detach().numpy()
    # what the last block's heads write is added to the stream as it is: their slopes are the stream's, through the projection
    slopes = found.outputs[-1].transpose(1, 0, 2).reshape(2, -1)
    assert np.abs(slopes - found.stream[-1] @ weight).max() < 1e-5 and np.abs(slopes[1]).max() > 1e-3
    run = Engine(llm).run([prompt], capture=Capture(rows=(-1,), norms=True))
    assert np.isfinite(run.traces[0].norms).all() and run.traces[0].norms.max() > 0


def test_heads_that_cannot_be_told_apart_are_a_sentence():
    import transformers as tf

    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=97, n_embd=48, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2
    )
    llm = wrap("gpt2", tf.AutoModelForCausalLM.from_config(config), None, prove=False)
    with pytest.raises(ModelError, match="cannot be told apart"):
        Engine(llm).run([of_ids(llm, 9)], capture=Capture(rows=(-1,), norms=True))
