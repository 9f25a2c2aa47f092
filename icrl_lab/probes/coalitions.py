"""Coalitions: a scene's prompts with some of their parts there and the others replaced by a baseline.

Owns who the players of a prompt are (each shot's vector and the query's, or every span), what a part is replaced by, and the
outcomes of coalitions, each asked of the engine once. It does not know what is made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from icrl_lab.probes import games
from icrl_lab.probes.scene import ROLES, Scene, arranged
from icrl_lab.stats.metrics import Array
from icrl_lab.values import SLOT, Rendered

BASELINES = ("mean", "zero")
BATCH = 4  # points of a path that go through the model together


def vectors(one: Scene, number: int) -> list[Array]:
    """Positions of each shot's slots (of all its copies), and last of the query's."""
    parts, k = one.parts[number], one.shots.shape[1]
    copies = range(one.study.plan.repeat)
    shots = [np.concatenate([parts.at("slot", s + c * k) for c in copies]) for s in range(k)]
    return [*shots, parts.at("slot", parts.shown)]


def spans(one: Scene, number: int) -> dict[tuple[int, int], Array]:
    """Positions of every span that there is, by (part, role of ROLES): parts are the k shots, the query, and the rest."""
    parts, k = one.parts[number], one.shots.shape[1]
    part = np.where(parts.shot < 0, k + 1, np.where(parts.shot == parts.shown, k, parts.shot % k))
    each = {(p, r): (part == p) & (parts.role == role) for p in range(k + 2) for r, role in enumerate(ROLES)}
    return {at: np.flatnonzero(mask) for at, mask in each.items() if mask.any()}


def baselines(one: Scene, baseline: str) -> list[Array]:
    """For each query (T, d), what each token is replaced by: at slots the mean of the cell's slots, those of all of the study's
    queries, elsewhere the mean token; or zero everywhere."""
    width = one.study.llm.width
    if baseline == "zero":
        return [np.zeros((len(prompt), width), np.float32) for prompt in one.prompts]
    items: dict[str, Array] = {}
    every, _ = one.study.material.rendered(one.cell, one.draw)  # whichever queries were asked for
    for prompt in every:
        row = np.cumsum(prompt.ids == SLOT) - 1
        items |= {s.item: prompt.vectors[row[s.start : s.stop]] for s in prompt.spans if s.role == "slot"}
    slot = np.mean(list(items.values()), 0)  # w, d
    tokens = one.study.material.tokens
    word = tokens.embeddings[tokens.used].mean(0)
    out = []
    for prompt in one.prompts:
        rows = np.tile(word, (len(prompt), 1))
        at = np.flatnonzero(prompt.ids == SLOT)
        rows[at] = np.tile(slot, (len(at) // len(slot), 1))
        out.append(rows)
    return out


def replaced(prompt: Rendered, positions: Array, rows: Array) -> Rendered:
    """The prompt with vectors `rows` at `positions`, be they slots or text."""
    table = np.zeros((len(prompt), rows.shape[-1]), np.float32)
    if len(prompt.vectors):
        table[prompt.ids == SLOT] = prompt.vectors
    table[positions] = rows
    ids = prompt.ids.copy()
    ids[positions] = SLOT
    return replace(prompt, ids=ids, vectors=table[ids == SLOT], tokens=())


class Game:
    """A scene's outcomes as a game: the players of each query's prompt are there, or replaced by a baseline.

    players  of each query, positions of its prompt, one array a player
    base     of each query, (T, d) what stands where a player is gone
    Equal prompts are asked once, so that their outcomes are equal to the last bit.
    """

    def __init__(self, one: Scene, players: Sequence[Sequence[Array]], base: Sequence[Array]) -> None:
        self.one, self.players, self.base = one, players, base
        self.known: dict[tuple[int, bytes], float] = {}

    def __call__(self, present: Array, which: Array) -> Array:
        """(m,) outcomes of queries `which` (m,) with the players `present` (m, players)."""
        asked = [self._prompt(row, int(i)) for row, i in zip(present, which)]
        keys = [(int(i), p.ids.tobytes() + p.vectors.tobytes()) for p, i in zip(asked, which)]
        new = {key: prompt for key, prompt in zip(keys, asked) if key not in self.known}
        if new:
            self.known |= zip(new, self.one.read(list(new.values()), [i for i, _ in new]).tolist())
        return np.array([self.known[key] for key in keys])

    def all_or_none(self) -> tuple[Array, Array]:
        """(n,) outcomes of every query with everybody there, and with nobody."""
        which, players = np.arange(len(self.players)), len(self.players[0])
        return self(np.ones((len(which), players), bool), which), self(np.zeros((len(which), players), bool), which)

    def _prompt(self, present: Array, number: int) -> Rendered:
        gone = [at for at, there in zip(self.players[number], present) if not there]
        at = np.concatenate(gone) if gone else np.zeros(0, np.int64)
        return replaced(self.one.prompts[number], at, self.base[number][at])


def left_out(one: Scene) -> Array:
    """(n, k) outcomes of a scene's queries without each of their shots: its tokens are gone, vector and label."""
    n, k = one.shots.shape
    rows = np.array([np.delete(np.arange(k), s) for s in range(k)])
    return arranged(one, np.tile(rows, (n, 1)), np.repeat(np.arange(n), k)).read().reshape(n, k)


def path(one: Scene, number: int, base: Array, positions: Array, steps: int) -> games.Path:
    """Integrated gradients of a query's outcome, from the baseline at `positions` and the prompt itself elsewhere."""
    import torch

    from icrl_lab.engine.gradients import embeddings

    llm = one.study.llm
    here = embeddings(llm, one.prompts[number]).float()
    there = here.clone()
    there[torch.from_numpy(positions).to(here.device)] = torch.from_numpy(base[positions]).to(here)
    return games.integrated(llm, here, there, one.outcome(number), steps, BATCH)


def by_span(one: Scene, base: Sequence[Array], steps: int, ways: Sequence[str]) -> Array:
    """(ways, n, k + 2, roles) attributions by "ig" or "ablation" of every span, all tokens' baselines at once for the former; NaN
    where there is no such span."""
    n, k = one.shots.shape
    found = [spans(one, i) for i in range(n)]
    game = Game(one, [list(f.values()) for f in found], base)
    out = np.full((len(ways), n, k + 2, len(ROLES)), np.nan)
    for i, these in enumerate(found):
        for w, way in enumerate(ways):
            if way == "ig":
                tokens = path(one, i, base[i], np.arange(len(base[i])), steps).tokens
                values = np.array([tokens[at].sum() for at in these.values()])
            else:
                alone = lambda present, which, i=i: game(present, np.full(len(which), i))  # noqa: E731
                values = games.ablation(alone, 1, len(these))[0]
            for (part, role), value in zip(these, values):
                out[w, i, part, role] = value
    return out
