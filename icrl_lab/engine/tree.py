"""The prefix tree: which stretches of a list of sequences are shared, so that each is computed once.

Numpy only. A sequence is an array of symbols: a token id (>= 0), or a negative number that stands for the exact bytes
of an injected vector. Two sequences share a stretch exactly when their symbols are equal from the start, and then a
causal model computes the same thing for both. The tree's size, its number of distinct nodes, is therefore the least
number of tokens that have to be computed, and what the engine computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from icrl_lab.values import SLOT, Rendered


def symbols(prompt: Rendered) -> np.ndarray:
    """(T,) int64: the token ids, with each slot position replaced by a negative hash of its vector's bytes."""
    return all_symbols([prompt])[0]


def all_symbols(prompts: Sequence[Rendered]) -> list[np.ndarray]:
    """The symbols of each prompt. A vector that stands in the same place of the prompt before is compared, not hashed again."""
    out = []
    bits, hashes = np.zeros((0, 0), np.uint32), np.zeros(0, np.int64)
    for prompt in prompts:
        before, bits = bits, np.ascontiguousarray(prompt.vectors).view(np.uint32)
        known, hashes = hashes, np.empty(len(bits), np.int64)
        same = np.zeros(len(bits), bool)
        if bits.shape[1] == before.shape[1]:
            n = min(len(bits), len(before))
            same[:n] = (bits[:n] == before[:n]).all(1)
            hashes[:n] = known[:n]
        hashes[~same] = [symbol_of(row.tobytes()) for row in bits[~same]]
        of = prompt.ids.copy()
        of[of == SLOT] = hashes
        out.append(of)
    return out


def symbol_of(what: bytes) -> int:
    """The negative symbol that stands for a vector's bytes, or for a token under edits."""
    digest = hashlib.blake2b(what, digest_size=8).digest()
    return -1 - (int.from_bytes(digest, "big") >> 2)  # 62 bits: two vectors of one study never meet by chance


@dataclass
class Node:
    """A stretch of symbols [start, stop) that every sequence below shares.

    sequence  index of one sequence that runs through it (its symbols are read there); `members`, of all that do
    ends      sequences that end exactly at `stop`
    size      symbols in this node and below
    """

    start: int
    stop: int
    sequence: int
    members: list[int]
    children: list[Node] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    size: int = 0


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the common prefix of two symbol arrays."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def build(sequences: Sequence[np.ndarray]) -> Node:
    """The compressed prefix tree of `sequences` (each non-empty). The root's stretch is what all of them share.

    Children stand in the order in which their sequences first come, and not in that of their symbols: what one query's vector holds must
    not move the others about in a pack, where their place decides the last bit of some elementwise operations.
    """
    keys = [(s.astype(np.uint64) ^ np.uint64(1 << 63)).astype(">u8").tobytes() for s in sequences]
    order = sorted(range(len(sequences)), key=keys.__getitem__)
    shared = [0] + [shared_length(sequences[a], sequences[b]) for a, b in pairwise(order)]
    return _node(sequences, order, shared, 0, len(order), 0)


def _node(sequences: Sequence[np.ndarray], order: list[int], shared: list[int], lo: int, hi: int, start: int) -> Node:
    stop = min(shared[lo + 1 : hi], default=len(sequences[order[lo]]))
    node = Node(start, stop, order[lo], order[lo:hi], size=stop - start)
    while lo < hi and len(sequences[order[lo]]) == stop:  # a prefix sorts before what extends it
        node.ends.append(order[lo])
        lo += 1
    cuts = [lo, *(i for i in range(lo + 1, hi) if shared[i] == stop), hi] if lo < hi else []
    for a, b in pairwise(cuts):
        child = _node(sequences, order, shared, a, b, stop)
        node.size += child.size
        node.children.append(child)
    node.children.sort(key=lambda child: min(child.members))
    return node


@dataclass
class Branch:
    """A small subtree laid out in one row for a pack, in depth-first order.

    symbol_at (n, 2) where each token is read: (sequence, position)
    parent    (n,) index in the row of the token before, -1 at the branch's root
    ends       (sequence, index in the row of its last token)
    """

    symbol_at: np.ndarray
    parent: np.ndarray
    ends: list[tuple[int, int]]
    members: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def is_chain(self) -> bool:
        """Whether no token has two children, so that plain causal attention is right."""
        return bool((self.parent == np.arange(-1, len(self) - 1)).all())

    def chain(self, at: int) -> list[int]:
        """The row's indices from the branch's root to token `at`."""
        out = [at]
        while self.parent[out[-1]] >= 0:
            out.append(int(self.parent[out[-1]]))
        return out[::-1]

    def ancestors(self) -> np.ndarray:
        """(n, n) bool: token i attends to token j."""
        mask = np.zeros((len(self), len(self)), bool)
        for i, p in enumerate(self.parent):
            if p >= 0:
                mask[i] = mask[p]
            mask[i, i] = True
        return mask


def flatten(node: Node) -> Branch:
    """Lay a subtree out as one branch."""
    if not node.children:
        return chain(node.sequence, node.start, node.stop, node.ends)
    where: list[tuple[int, int]] = []
    parent: list[int] = []
    ends: list[tuple[int, int]] = []

    def visit(node: Node, before: int) -> None:
        for position in range(node.start, node.stop):
            where.append((node.sequence, position))
            parent.append(before)
            before = len(parent) - 1
        ends.extend((s, before) for s in node.ends)
        for child in node.children:
            visit(child, before)

    visit(node, -1)
    return Branch(np.array(where, np.int64).reshape(-1, 2), np.array(parent, np.int64), ends)


def chain(sequence: int, start: int, stop: int, ends: list[int] | None = None, members: Sequence[int] = ()) -> Branch:
    """Positions start..stop of one sequence as a branch; `ends` are the sequences that end at its last token."""
    where = np.stack([np.full(stop - start, sequence, np.int64), np.arange(start, stop)], 1)
    last = stop - start - 1
    return Branch(where, np.arange(-1, last), [(s, last) for s in ends or ()], [(s, last) for s in members])
