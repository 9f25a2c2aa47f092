"""The proof at load: a model that breaks one of the facts the lab relies on is refused, with the fact that it breaks."""

import pytest
import torch

from icrl_lab import models
from icrl_lab.engine import rows
from icrl_lab.errors import ModelError
from icrl_lab.models import reading
from tests.conftest import tiny_llm

FACTS = {"own embedding", "slot moves logits", "attention row sum", "engine against plain"}


def doubled_ids(model, monkeypatch):
    """What is read from token ids is twice their embedding, as in models that scale outside their table."""
    forward, table = model.forward, model.get_input_embeddings()

    def scaled(input_ids=None, inputs_embeds=None, **given):
        return forward(inputs_embeds=2 * table(input_ids) if inputs_embeds is None else inputs_embeds, **given)

    model.forward = scaled


def placed_embeddings(model, monkeypatch):
    """The embedding of a token depends on where it stands, so that it cannot be injected elsewhere."""

    def place(table, given, found):
        return found + 0.2 * torch.arange(found.shape[-2])[:, None]

    model.get_input_embeddings().register_forward_hook(place)


def deaf(model, monkeypatch):
    """No token takes anything from another."""
    for block in model.model.layers:
        block.self_attn.o_proj.weight.zero_()


def own_places(model, monkeypatch):
    """The places of tokens are counted from zero in every pass, whatever places it is given."""
    rotary = model.model.rotary_emb
    forward = rotary.forward

    def counted(x, position_ids, *layer_type):
        return forward(x, torch.arange(position_ids.shape[-1])[None], *layer_type)

    rotary.forward = counted


def losing(model, monkeypatch):
    """Every row of attention that is kept has lost a tenth of its weight."""
    weights = rows.weights
    monkeypatch.setattr(rows, "weights", lambda *given: 0.9 * weights(*given))


@pytest.mark.parametrize(
    "plant, says",
    [
        (
            doubled_ids,
            r"injecting a token's own embedding changes the next token's distribution by 0\.\d+, more than 0\.0001",
        ),
        (placed_embeddings, "injecting a token's own embedding changes the next token's distribution"),
        (deaf, "the vector in a slot does not move the next token's distribution"),
        (losing, r"attention rows miss one by 0\.1, more than 0\.0001 in float32"),
        (own_places, "prefix and packs change the next token's distribution"),
    ],
    ids=["ids", "places", "deaf", "losing", "counted"],
)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_model_that_breaks_a_fact_is_refused_with_that_fact(monkeypatch, family, plant, says):
    def load(prove=True):
        return models.load_llm("planted", device="cpu", dtype="float32", threads=1, prove=prove)

    model = tiny_llm(family).model
    monkeypatch.setattr(reading, "read", lambda *given: (model, None))
    sound = load().proof
    assert set(sound) == FACTS and sound.pop("slot moves logits") > 0.01 and max(sound.values()) < 1e-5
    with torch.no_grad():
        plant(model, monkeypatch)
    with pytest.raises(ModelError, match=f"^planted is refused: {says}"):
        load()
    assert load(prove=False).proof == {}
