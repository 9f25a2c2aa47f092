"""What is measured when a model is loaded."""

import os
import time

import pytest
import torch

from icrl_lab import models
from icrl_lab.engine import products as room


@pytest.mark.parametrize("cost, best", [({1: 4.0, 2: 3.0}, 2), ({1: 3.0, 2: 4.0}, 1)])
@pytest.mark.parametrize("burst", [None, range(0, 13), range(14, 29), range(25, 61)])
def test_a_burst_of_a_neighbour_chooses_no_number_of_threads(llama, monkeypatch, cost, best, burst):
    """A clock that a product moves on by what it costs with so many threads, and by ten times as much in a burst."""
    clock, products, threads = [0.0], [0], [1]

    def linear(x, w):
        products[0] += 1
        clock[0] += cost[threads[0]] * (10 if burst and products[0] in burst else 1)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    monkeypatch.setattr(room, "possible", lambda dtype: ("torch",))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: threads.__setitem__(0, n))
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    chosen, measured = models.measure(llama.model, None)
    assert chosen == best and measured["seconds by threads"] == pytest.approx(cost)
    assert models.measure(llama.model, 2)[0] == 2  # who says how many gets as many


@pytest.mark.parametrize("gain, dtype", [(2.0, "float32"), (2.5, "bfloat16"), (4.2, "bfloat16")])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_bfloat16_is_taken_where_it_gains_more_than_half_its_width(monkeypatch, family, gain, dtype):
    """Half the width of a number makes a vector unit twice as fast at most; the least that was measured with AMX is 2.5."""
    import transformers as tf

    from tests.conftest import tiny_config

    rates = {"float32": 800.0, "bfloat16": 800.0 * gain}
    found = {"tokens/s": rates, "products": dict.fromkeys(rates, "torch"), "seconds by threads": {1: 1.0}}
    monkeypatch.setattr(models, "_read", lambda *given: (tf.AutoModelForCausalLM.from_config(tiny_config(family)), None))
    monkeypatch.setattr(models, "measure", lambda model, threads: (1, found))
    assert models.load_llm("planted", device="cpu", prove=False).dtype == dtype
    assert models.load_llm("planted", device="cpu", dtype="float32", prove=False).dtype == "float32"


def test_a_model_with_soft_caps_is_compared_with_attention_that_has_them():
    import transformers as tf

    from tests.conftest import tiny_config

    model = tf.AutoModelForCausalLM.from_config(tiny_config("gemma2"))
    model.config._attn_implementation = "sdpa"  # the default of older transformers, which newer ones refuse
    assert models.wrap("gemma2", model, None, prove=False).model.config._attn_implementation == "eager"
