"""Text: the branches of a pack, extended token by token until each meets a stop id or has what was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from icrl_lab.engine import attention
from icrl_lab.engine.tree import Branch, chain, shared_length


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: `most` a prompt, up to and without one of `stop`; the most probable ones at temperature 0."""

    most: int
    temperature: float
    seed: int
    stop: frozenset[int]

    def draws(self, sequence: int) -> np.random.Generator | None:
        """The stream of a prompt, its own whatever it is packed with; None where nothing is drawn."""
        return np.random.default_rng([self.seed, sequence]) if self.temperature > 0 else None

    def choose(self, logits: np.ndarray, draws: np.random.Generator | None) -> int:
        """The most probable token, or one sampled at `temperature` (Gumbel maximum)."""
        if draws is None:
            return int(logits.argmax())
        return int((logits / self.temperature + draws.gumbel(size=logits.shape)).argmax())


class Continuation:
    """The texts of one pack. While some are `going`, the model runs `state` and `take` reads its logits.

    where  (tokens, 2) of the prompts' own tokens, which the first pass reads; `new`, token ids, is what later ones read
    rows   of the pass, whose logits are needed, one a text that is going
    """

    def __init__(self, pack: list[Branch], state: attention.Pass, out: list[list[int]], how: Sampling) -> None:
        self.out, self.how, self.state = out, how, state
        self.texts = [b.ends[0][0] for b in pack]
        for text in self.texts:  # a pack that was given up may have begun them
            out[text].clear()
        self.lengths = [int(b.symbol_at[-1, 1]) + 1 for b in pack]
        self.draws = {text: how.draws(text) for text in self.texts}
        self.where = np.concatenate([b.symbol_at for b in pack])
        self.new: np.ndarray | None = None
        self.rows = (np.cumsum([len(b) for b in pack]) - 1).tolist()
        state.own = attention.OwnCache(state.layout, [len(b) for b in pack])

    @property
    def going(self) -> bool:
        return bool(self.texts)

    @property
    def tokens(self) -> int:
        """Tokens that the next pass computes."""
        return self.state.layout.tokens

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token of each text; those that stop, or have enough, leave the pack."""
        each = zip(self.texts, logits.float().cpu().numpy())
        chosen = [self.how.choose(row, self.draws[text]) for text, row in each]
        going = [i for i, token in enumerate(chosen) if token not in self.how.stop]
        for i in going:
            self.out[self.texts[i]].append(chosen[i])
        self.texts, self.lengths = [self.texts[i] for i in going], [self.lengths[i] for i in going]
        if not self.texts or len(self.out[self.texts[0]]) == self.how.most:
            self.texts = []
            return
        own, before = self.state.own, self.state
        assert own is not None
        own.select(going)
        positions = np.array(self.lengths)
        branches = [chain(text, at, at + 1) for text, at in zip(self.texts, self.lengths)]
        layout = attention.Layout(branches, positions, before.layout.pad.device)
        own.step(layout)
        self.state = attention.Pass(before.path, layout, before.prefix, before.laid_out, before.turn, own=own)
        self.new, self.rows = np.array([chosen[i] for i in going]), list(range(len(going)))
        self.lengths = [n + 1 for n in self.lengths]


def group(symbols: list[np.ndarray], order: list[int]) -> tuple[list[int], int]:
    """The first prompts of a sorted list that share at least half of themselves, and how much they share."""
    first = symbols[order[0]]
    found, share = [order[0]], len(first) - 1
    for other in order[1:]:
        common = min(shared_length(first, symbols[other]), len(first) - 1, len(symbols[other]) - 1)
        if 2 * common < len(symbols[other]):
            break
        found.append(other)
        share = min(share, common)
    return found, share
