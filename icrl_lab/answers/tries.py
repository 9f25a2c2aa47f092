"""Exact log-probabilities of a closed set of labels.

All labels of a prompt form a trie of tokens. One call asks the engine for the token that follows each inner node; a
label's log-probability is the sum along its path. Nothing is sampled and no label is cut short: labels that share their
first tokens are told apart where they part.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from icrl_lab.prompts import cuts
from icrl_lab.values import Rendered


def label_logprobs(
    engine: Any, prompts: Sequence[Rendered], tokenizer: Any, labels: Sequence[str], end: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability (n, labels) of each label behind each prompt, and its length in tokens (n, labels).

    Prompts come straight from `render_all`. If one label begins another, or tokens of the two do, `end` (the text that
    follows a label) is scored with them all, so that the shorter does not take the longer's share.
    """
    labels = tuple(labels)
    if len(set(labels)) != len(labels) or not labels or "" in labels:
        raise ValueError("labels must be different texts, none empty")
    found = cuts(prompts, tokenizer, labels)
    if any(_prefixed(paths) for paths in {cut.labels for cut in found}):
        if not end:
            raise ValueError("one label begins another: give the text that ends a label")
        found = cuts(prompts, tokenizer, labels, end)

    asked: list[Rendered] = []
    where: list[dict[tuple[int, ...], int]] = []
    for prompt, cut in zip(prompts, found):
        base = cut.apply(prompt)
        nodes = sorted({path[:i] for path in cut.labels for i in range(len(path))})
        where.append({node: len(asked) + i for i, node in enumerate(nodes)})
        asked.extend(base.extend(node) if node else base for node in nodes)
    ids = sorted({token for cut in found for path in cut.labels for token in path})
    column = {token: i for i, token in enumerate(ids)}
    table = np.asarray(engine.next_token(asked, ids), np.float64)
    logp = np.array(
        [
            [sum(table[at[path[:i]], column[path[i]]] for i in range(len(path))) for path in cut.labels]
            for cut, at in zip(found, where)
        ]
    )
    length = np.array([[len(path) for path in cut.labels] for cut in found])
    return logp.reshape(-1, len(labels)), length.reshape(-1, len(labels))


def _prefixed(paths: Sequence[tuple[int, ...]]) -> bool:
    """Whether the tokens of one label begin those of another."""
    ordered = sorted(paths)
    return any(b[: len(a)] == a for a, b in pairwise(ordered))
