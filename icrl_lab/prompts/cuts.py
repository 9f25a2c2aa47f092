"""Where a prompt ends and its label begins.

"-> 5" is two tokens for one tokenizer and three for another, and the space may belong to the label. What must hold: the
prompt's tokens followed by the label's tokens are the tokens of the whole string. A `Cut` makes it hold for any tokenizer:
it drops what the labels would tokenise anew at the prompt's end, puts on what all labels share, and gives the rest of
each label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from icrl_lab.prompts.tokens import SLOT_ALIAS, Plain, plain
from icrl_lab.values import SLOT, Rendered


@dataclass(frozen=True)
class Cut:
    """`drop` tokens at the prompt's end are replaced by `lead`; `labels` are the tokens of each label from there on."""

    drop: int
    lead: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]

    def apply(self, rendered: Rendered) -> Rendered:
        """The prompt up to where labels differ."""
        if not self.drop and not self.lead:
            return rendered
        keep = len(rendered) - self.drop
        ids = np.concatenate([rendered.ids[:keep], np.asarray(self.lead, np.int64)])
        spans = tuple(s if s.stop <= keep else replace(s, stop=keep) for s in rendered.spans if s.start < keep)
        return replace(rendered, ids=ids, spans=spans, tokens=())


def cuts(prompts: Sequence[Rendered], tokenizer: Any, labels: Sequence[str], end: str = "") -> list[Cut]:
    """The cut of each prompt for a set of different labels; `end` is written behind every label.

    For every prompt and label, the ids of `cut.apply(prompt)` followed by the label's are those of the whole string in one
    tokenisation. Prompts must come straight from `render_all`.
    """
    tok, labels = plain(tokenizer), tuple(labels)
    return [_cut(prompt, tok, labels, end) for prompt in prompts]


def _cut(prompt: Rendered, tok: Plain, labels: tuple[str, ...], end: str) -> Cut:
    """Found on the last words alone, if those tokenise there as they do in the prompt; else on all since the last slot."""
    if len(prompt.tokens) != len(prompt):
        raise ValueError("this prompt was extended; the cut is made on prompts as they come from render_all")
    edge, word = _starts(prompt, tok)
    for start, before, skip in ((word, SLOT_ALIAS, 0), (word, SLOT_ALIAS, 1), (edge, SLOT_ALIAS, 0), (edge, "", 0)):
        text = before + "".join(prompt.tokens[start:])[skip:]
        key = (text, labels, end)
        if key not in tok.known:
            if len(tok.known) > 4096:
                tok.known.clear()
            tok.known[key] = _find(tok, text, labels, end)
        base, cut = tok.known[key]
        if base[bool(before) :] == tuple(prompt.ids[start:].tolist()):
            return cut
    raise AssertionError("a rendered prompt does not tokenise to itself")


def _find(tok: Plain, text: str, labels: tuple[str, ...], end: str) -> tuple[tuple[int, ...], Cut]:
    base, *whole = tok.ids([text, *(text + label + end for label in labels)])
    keep = min(len(w) for w in whole) - 1  # a label keeps at least its last token
    for w in whole[1:]:
        keep = min(keep, _common(whole[0], w))
    stay = min(keep, _common(base, whole[0]))
    return tuple(base), Cut(len(base) - stay, tuple(whole[0][stay:keep]), tuple(tuple(w[keep:]) for w in whole))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


def _starts(prompt: Rendered, tok: Plain) -> tuple[int, int]:
    """Where the text behind the last slot or control token begins, and where its last word does, white space included."""
    word, solid = -1, False
    for i in range(len(prompt) - 1, -1, -1):
        if prompt.ids[i] == SLOT or int(prompt.ids[i]) in tok.controls:
            return i + 1, max(i + 1, word)
        piece = prompt.tokens[i]
        solid = solid or bool(piece.strip())
        if word < 0 and solid and piece[:1].isspace():
            word = i
    return 0, max(0, word)
