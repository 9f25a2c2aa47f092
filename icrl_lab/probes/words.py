"""States in words: the tokens that a state would say, and the token that it lies next to.

For a few places of a scene that a reader can look at one by one: slot and answer of some queries, low to high, the shots' slots,
and the same under noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from icrl_lab.controls import nearest_tokens
from icrl_lab.probes.scene import Scene
from icrl_lab.stats.metrics import Array
from icrl_lab.values import Capture

SHOWN = 4  # queries


@dataclass(frozen=True, eq=False)
class Place:
    """A place that is shown in words: whose item, where, and its states (D, d)."""

    kind: str
    item: str
    text: str
    label: str
    states: Array


def places(one: Scene, slot: Array, answer: Array, control: str) -> list[Place]:
    """Slot and answer of a few queries, low to high, and the shots' slots of the first; under noise, of one query."""
    task, material = one.study.task, one.study.material
    rank = np.argsort(one.target, kind="stable")
    some = rank[np.unique(np.linspace(0, len(rank) - 1, SHOWN).round().astype(int))]
    text = lambda q: task.text[q] if task.text is not None else ""  # noqa: E731
    mark = "" if control == "real" else f"{control} "
    found = []
    for i in some if control == "real" else some[:1]:
        q = int(one.queries[i])
        for kind, rows in (("query slot", slot[i, :, -1]), ("answer", answer[i])):
            found.append(Place(mark + kind, one.ids[i], text(q), material.written(q), rows))
    if control != "real":
        return found
    prompt, parts = one.prompts[some[0]], one.parts[some[0]]
    at = [(parts.at("slot", s).tolist() or parts.at("text", s).tolist())[-1] for s in range(one.shots.shape[1])]
    hidden = one.engine.run([prompt], [0], Capture(hidden=tuple(at))).traces[0].hidden
    assert hidden is not None
    for s, q in enumerate(one.shots[some[0]].tolist()):
        label = one.study.llm.tokenizer.decode(prompt.ids[parts.at("label", s)]).strip()
        found.append(Place("shot slot", task.ids[q], text(q), label, hidden[:, s]))
    return found


def words(one: Scene, shown: list[Place], top: int) -> dict[str, tuple[tuple[str, ...], Array, str, str]]:
    """The most probable tokens of each place at each depth, and the token whose embedding is nearest by cosine."""
    llm, tokens = one.study.llm, one.study.material.tokens
    token, probability, near, cosine = [], [], [], []
    for place in shown:
        logp = one.engine.unembed(place.states)
        best = np.argsort(-logp, axis=-1, kind="stable")[:, :top]
        closest = nearest_tokens(place.states, tokens)
        rows = tokens.embeddings[closest]
        length = np.linalg.norm(rows, axis=-1) * np.linalg.norm(place.states, axis=-1)
        token.append(show(llm.tokenizer, best))
        probability.append(np.exp(np.take_along_axis(logp, best, -1)))
        near.append(show(llm.tokenizer, closest))
        cosine.append((rows * place.states).sum(-1) / np.maximum(length, 1e-30))
    dims = ("place", "depth", "rank")
    return {
        "token": (dims, np.array(token), "lens: most probable tokens", "text, ␣ a space, ⏎ a line's end"),
        "probability": (dims, np.array(probability), "lens: their probability", "share of all tokens"),
        "nearest": (dims[:2], np.array(near), "token with the nearest embedding", "text"),
        "cosine": (dims[:2], np.array(cosine), "its cosine to the state", "cosine"),
    }


def show(tokenizer: Any, ids: Array) -> Array:
    """Tokens as they can be seen."""
    names = {}
    for i in np.unique(ids).tolist():
        text = tokenizer.decode([i]) or str(tokenizer.convert_ids_to_tokens(i))
        names[i] = "".join({" ": "␣", "\n": "⏎", "\t": "⇥"}.get(c, c if c.isprintable() else "�") for c in text)
    return np.array([names[i] for i in ids.ravel().tolist()]).reshape(ids.shape)
