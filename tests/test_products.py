"""Products with weights laid out once: the same numbers, and torch's own way wherever these would be wrong or impossible."""

import copy

import numpy as np
import pytest
import torch

from icrl_lab import models
from icrl_lab.bench.geometry import workload
from icrl_lab.engine import Engine, kernels, products
from icrl_lab.models import fastest
from icrl_lab.values import Rendered
from tests.conftest import tiny_config, tiny_llm
from tests.test_engine import prompts

oneDNN = pytest.mark.skipif(
    products.possible(torch.float32) == ("torch",), reason="this build of torch has no oneDNN products"
)


def logits(model, states):
    with torch.inference_mode():
        return model(inputs_embeds=states).logits


def embedded(llm, rows=3, tokens=11, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, tokens, llm.width, generator=draw, dtype=llm.model.dtype) * 0.5


@oneDNN
@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("shape", [(33,), (1, 33), (7, 33), (2, 5, 33)])
def test_both_ways_give_the_same_product(dtype, near, shape):
    if "oneDNN" not in products.possible(dtype):
        pytest.skip(f"this CPU has no oneDNN products in {dtype}")
    draw = torch.Generator().manual_seed(1)
    w, x = torch.randn(20, 33, generator=draw).to(dtype), torch.randn(shape, generator=draw).to(dtype)
    one, other = (products.product(w, way)(x) for way in products.WAYS)
    assert one.shape == other.shape == (*shape[:-1], 20) and other.dtype == dtype
    exact = x.double() @ w.double().T
    assert (other - exact).abs().max() <= near * exact.abs().max()


@oneDNN
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gemma2"])
def test_a_model_answers_as_before(family):
    llm = tiny_llm(family)
    model = copy.deepcopy(llm.model)
    before = logits(model, embedded(llm))
    assert products.way(model) == "torch"
    count = products.lay_out(model)
    layers = sum(type(m) is torch.nn.Linear for m in model.get_decoder().layers.modules())
    assert count == layers + 1 > 1 and products.way(model) == "oneDNN"
    after = logits(model, embedded(llm))
    assert (after - before).abs().max() < 1e-5
    assert products.way(llm.model) == "torch"  # the other model is not touched


@oneDNN
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_queries_of_a_pack_are_isolated_bitwise_with_weights_and_prefix_laid_out(family, monkeypatch):
    monkeypatch.setattr(kernels, "MANY", 1)
    llm = tiny_llm(family)
    products.lay_out(llm.model)
    llm.measured = {"attention": "products"}
    many = prompts(llm, seed=3, tails=(5, 5, 5, 5), deep=False)
    other = [*many[:2], Rendered(many[2].ids, np.concatenate([many[2].vectors[:2], -3 * many[2].vectors[2:]])), many[3]]
    a, b = (Engine(llm, branch=8).run(some).logprobs for some in (many, other))
    assert (a[[0, 1, 3]] == b[[0, 1, 3]]).all()
    assert np.abs(a[2] - b[2]).max() > 1e-3


@oneDNN
def test_the_engine_is_equal_to_plain_passes_with_weights_and_prefix_laid_out(smollm2, monkeypatch):
    monkeypatch.setattr(kernels, "MANY", 1)
    plain, laid = copy.deepcopy(smollm2.model), copy.deepcopy(smollm2.model)
    products.lay_out(laid)
    before, after = (
        models.wrap("one", model, smollm2.tokenizer, threads=smollm2.threads, measured={"attention": way})
        for model, way in ((plain, "flash"), (laid, "products"))
    )
    assert after.proof["engine against plain"] < 2e-5  # which is proved in the way that will be used
    work = workload(after, 60, 9, 12, seed=3)
    one, two = (Engine(llm).next_token(work.prompts, work.labels) for llm in (before, after))
    assert 0 < np.abs(one - two).max() < 1e-4  # another order of summation


@oneDNN
def test_a_layer_with_a_bias():
    import transformers

    config = tiny_config("llama")
    config.attention_bias = config.mlp_bias = True
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.25)
    states = torch.randn(3, 7, config.hidden_size)
    before = logits(model, states)
    assert products.lay_out(model) > 0
    assert (logits(model, states) - before).abs().max() < 1e-5 * before.abs().max()


@oneDNN
def test_gradients_flow_as_in_torch():
    llm = tiny_llm("llama")
    model = copy.deepcopy(llm.model)
    grads = []
    for laid in (False, True):
        if laid:
            products.lay_out(model)
        x = embedded(llm).requires_grad_(True)
        model(inputs_embeds=x).logits[:, -1].square().sum().backward()
        grads.append(x.grad)
    assert grads[0].abs().max() > 0
    assert torch.equal(*grads)


def halve(layer, model):
    with torch.no_grad():
        layer.weight.mul_(0.5)


def replace(layer, model):
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 0.5, requires_grad=False)


def rewrite(layer, model):
    state = {k: v * 0.5 if k.endswith("up_proj.weight") else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def cast(layer, model):
    model.to(torch.float64)


@oneDNN
@pytest.mark.parametrize("change", [halve, replace, rewrite, cast])
def test_a_weight_that_was_changed_is_never_answered_from_the_old_one(change):
    llm = tiny_llm("llama")
    plain, laid = copy.deepcopy(llm.model), copy.deepcopy(llm.model)
    products.lay_out(laid)
    for model in (plain, laid):
        change(model.get_decoder().layers[0].mlp.up_proj, model)
    states = embedded(llm).to(plain.dtype)
    before, one, two = (logits(m, s) for m, s in ((llm.model, embedded(llm)), (plain, states), (laid, states)))
    assert (one - two).abs().max() < 1e-5
    if change is not cast:
        assert (one - before).abs().max() > 1e-4


@oneDNN
def test_a_copy_stands_for_itself():
    llm = tiny_llm("qwen3")
    first = copy.deepcopy(llm.model)
    products.lay_out(first)
    second = copy.deepcopy(first)
    assert products.way(second) == "torch"
    with torch.no_grad():
        for weight in second.parameters():
            weight.mul_(0.9)
    assert (logits(first, embedded(llm)) - logits(llm.model, embedded(llm))).abs().max() < 1e-5
    assert (logits(second, embedded(llm)) - logits(first, embedded(llm))).abs().max() > 1e-4


def test_short_memory_leaves_a_model_as_it_is(monkeypatch, tmp_path):
    info = tmp_path / "meminfo"
    monkeypatch.setattr(products, "MEMINFO", info)
    assert products.free() == float("inf")
    info.write_text("MemTotal: 900 kB\nMemAvailable:      40 kB\n")
    assert products.free() == 40 * 1024
    model = copy.deepcopy(tiny_llm("llama").model)
    assert products.lay_out(model) == 0 and products.way(model) == "torch"
    measured = {"products": {"float32": "oneDNN", "bfloat16": "oneDNN"}}
    fastest.use(model, measured)
    assert measured["products"] == {"float32": "torch", "bfloat16": "oneDNN"} and products.way(model) == "torch"


@pytest.mark.parametrize("gain, way", [(1.05, "torch"), (1.3, "oneDNN")])
@pytest.mark.parametrize("attends, attention", [(0.8, "flash"), (1.05, "flash"), (1.3, "products")])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_another_way_is_taken_where_it_is_measured_to_be_worth_it(monkeypatch, gain, way, attends, attention, family):
    """Products and attention each by their own figures: on some CPUs one way gains and the other loses."""
    clock, llm, seen = [0.0], tiny_llm(family), set()

    def product(weight, how):
        def multiply(x):
            clock[0] += 1.0 if how == "torch" else 1 / gain

        return multiply

    def to_all(k, v, how):
        def attend(q, scale):
            clock[0] += 1.0 if how == "flash" else 1 / attends
            seen.add((q.shape[1] * q.shape[2] // 256, *k.shape[1:], q.shape[3], scale))

        return attend

    monkeypatch.setattr(products, "possible", lambda dtype: products.WAYS if dtype == torch.float32 else ("torch",))
    monkeypatch.setattr(products, "product", product)
    monkeypatch.setattr(kernels, "to_all", to_all)
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    _, measured = fastest.measure(llm.model, 1)
    assert measured["products"] == {"float32": way, "bfloat16": "torch"} and measured["attention"] == attention
    rates = measured["tokens/s"]
    assert rates["float32"] == pytest.approx((gain if way == "oneDNN" else 1.0) * rates["bfloat16"], rel=0.05)
    groups = llm.model.config.num_key_value_heads
    assert seen == {(llm.heads, groups, 2048, llm.head_width, llm.head_width, llm.head_width**-0.5)}


@oneDNN
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_attention_is_by_products_where_that_was_measured_to_be_worth_it(family, monkeypatch):
    """Whatever the way of the model's products; the answers are the same."""
    monkeypatch.setattr(kernels, "MANY", 1)
    llm, laid = tiny_llm(family), []
    work = workload(llm, 60, 9, 12, seed=3)
    make = kernels.Laid
    monkeypatch.setattr(kernels, "Laid", lambda k, v: laid.append(k.shape[2]) or make(k, v))
    found = {}
    for attention, weights in [("flash", False), ("products", False), ("flash", True), ("products", True)]:
        model = copy.deepcopy(llm.model)
        if weights:
            products.lay_out(model)
        one = models.wrap("one", model, llm.tokenizer, measured={"attention": attention}, prove=False)
        laid.clear()
        found[attention, weights] = Engine(one, branch=8).next_token(work.prompts, work.labels)
        assert bool(laid) == (attention == "products")
        assert np.abs(found[attention, weights] - found["flash", False]).max() < 5e-5
