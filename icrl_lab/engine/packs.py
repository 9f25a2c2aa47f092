"""How branches are laid into packs, one pass each: of how many tokens, and how many of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from icrl_lab.engine import products
from icrl_lab.engine.tree import Branch

if TYPE_CHECKING:
    from icrl_lab.models import LLM

# tokens a pack. On a CPU 1024 took 8 to 14 % less time than 512, 1280 another 6 to 8 % where branches are long, and 2048 the same;
# a GPU wants the weights read rarely
PACK = {"cpu": 1280, "cuda": 8192}
# On a CPU passes run side by side, each on its share of the threads, where each has this many tokens. Against one after the other with all
# threads: 1.03 to 1.08 times as fast at T = 512 and 1.14 to 1.19 at 2048 on two cores with AVX2, prefix ready
LEAST = 96


def fitting(llm: LLM, device: torch.device) -> int:
    """Tokens a pack by a memory estimate: activations, and float32 logits for a row of each token, within a tenth of the memory
    that is free (at most 1 GB of a machine's own)."""
    config = llm.model.config.get_text_config()
    wide = 10 * config.hidden_size + 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    itemsize = llm.model.dtype.itemsize
    token = wide * itemsize + config.vocab_size * (4 + itemsize)
    cuda = device.type == "cuda"
    free = 0.1 * torch.cuda.mem_get_info(device)[0] if cuda else min(1e9, 0.1 * products.free())
    return int(max(32, min(PACK.get(device.type, 512), free // token)))


def shares(tokens: int, most: int, threads: int) -> tuple[int, int]:
    """How many passes over these tokens run side by side, and of how many tokens each, at most `most`: even ones, in as few rounds
    as there can be."""
    side_by_side = min(threads, tokens // LEAST)
    if side_by_side < 2:
        return 1, most
    return side_by_side, -(-tokens // (side_by_side * -(-tokens // most)))


def even(branches: Sequence[Branch], tokens: int) -> list[list[Branch]]:
    """Packs of about equal lengths, of so many tokens each give or take half a branch. Chains are packed apart from trees: one tree
    among them would give all of them its dense mask, at its length."""
    packs: dict[tuple[bool, int], list[Branch]] = {}
    before = 0
    for branch in _by_length(branches):
        packs.setdefault((branch.is_chain, int((before + len(branch) / 2) / tokens)), []).append(branch)
        before += len(branch)
    return list(packs.values())


def full(branches: Sequence[Branch], most: int) -> list[list[Branch]]:
    """The same, of at most so many tokens each (a longer branch stands alone)."""
    packs: list[list[Branch]] = []
    tokens = 0
    for branch in _by_length(branches):
        if not packs or tokens + len(branch) > most or branch.is_chain != packs[-1][-1].is_chain:
            packs.append([])
            tokens = 0
        packs[-1].append(branch)
        tokens += len(branch)
    return packs


def _by_length(branches: Sequence[Branch]) -> list[Branch]:
    """Chains, then trees, each from the shortest to the longest."""
    return sorted(branches, key=lambda b: (not b.is_chain, len(b)))
