"""Exact log-probabilities of a closed set of labels.

All labels of a prompt form a trie of tokens. One call asks the engine for the token that follows each inner node; a
label's log-probability is the sum along its path. Nothing is sampled and no label is cut short: labels that share their
first tokens are told apart where they part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from icrl_lab.prompts import cuts
from icrl_lab.prompts.cuts import Cut
from icrl_lab.values import Rendered


@dataclass(frozen=True, eq=False)
class Tries:
    """Prompts that end where their labels part, and the tokens of each label from there.

    bases  one Rendered a prompt; cuts, where each was cut and the labels' tokens
    """

    bases: tuple[Rendered, ...]
    cuts: tuple[Cut, ...]

    @property
    def single(self) -> bool:
        """Whether every label is one token, behind all prompts the same."""
        return len({cut.labels for cut in self.cuts}) == 1 and all(len(path) == 1 for path in self.cuts[0].labels)

    @property
    def length(self) -> np.ndarray:
        """(n, labels) tokens of each label."""
        return np.array([[len(path) for path in cut.labels] for cut in self.cuts])

    def logprobs(
        self,
        engine: Any,
        bases: Sequence[Rendered] | None = None,
        of: Sequence[int] | None = None,
        *,
        among: bool = False,
    ) -> np.ndarray:
        """(n, labels) log-probability of each label behind each base.

        bases  others than the room's own, e.g. edited ones; `of` says which prompt each comes from
        among  given that it is one of them, which costs less; only where each is a `single` token
        """
        bases = self.bases if bases is None else bases
        found = self.cuts if of is None else [self.cuts[i] for i in of]
        asked: list[Rendered] = []
        where: list[dict[tuple[int, ...], int]] = []
        for base, cut in zip(bases, found):
            nodes = sorted({path[:i] for path in cut.labels for i in range(len(path))})
            where.append({node: len(asked) + i for i, node in enumerate(nodes)})
            asked.extend(base.extend(node) if node else base for node in nodes)
        ids = sorted({token for cut in found for path in cut.labels for token in path})
        column = {token: i for i, token in enumerate(ids)}
        assert self.single or not among, "the probability of a later token is none among the labels"
        given = {"among": True} if among else {}
        table = np.asarray(engine.next_token(asked, ids, **given), np.float64)
        rows = [
            [sum(table[at[path[:i]], column[path[i]]] for i in range(len(path))) for path in cut.labels]
            for cut, at in zip(found, where)
        ]
        return np.array(rows, np.float64).reshape(len(bases), -1)


def tries(prompts: Sequence[Rendered], tokenizer: Any, labels: Sequence[str], end: str = "") -> Tries:
    """The tries of a closed set of labels behind prompts that come straight from `render_all`.

    If one label begins another, or tokens of the two do, `end` (the text that follows a label) is scored with them all,
    so that the shorter does not take the longer's share.
    """
    labels = tuple(labels)
    if len(set(labels)) != len(labels) or not labels or "" in labels:
        raise ValueError("labels must be different texts, none empty")
    found = cuts(prompts, tokenizer, labels)
    if any(_prefixed(paths) for paths in {cut.labels for cut in found}):
        if not end:
            raise ValueError("one label begins another: give the text that ends a label")
        found = cuts(prompts, tokenizer, labels, end)
    return Tries(tuple(cut.apply(prompt) for prompt, cut in zip(prompts, found)), tuple(found))


def _prefixed(paths: Sequence[tuple[int, ...]]) -> bool:
    """Whether the tokens of one label begin those of another."""
    ordered = sorted(paths)
    return any(b[: len(a)] == a for a, b in pairwise(ordered))
