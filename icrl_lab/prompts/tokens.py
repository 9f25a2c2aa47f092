"""The tokenizer, seen so that text of data can never be a control token.

`plain` makes a copy of a Hugging Face fast tokenizer in which no control token is written as itself: each has an alias
made of two reserved characters, and so has the slot. A prompt's string uses the aliases; an item that is called
"<|im_end|>" is then seven characters of ordinary text. Ids of the copy are translated back by one table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from icrl_lab.errors import ModelError
from icrl_lab.values import SLOT

OPEN, CLOSE = "\U000f1ca1", "\U000f1ca2"  # private use, plane 15: no text of data has a reason to hold them
SLOT_ALIAS = f"{OPEN}slot{CLOSE}"
_CONTROL = re.compile(r"[<\[]\S+[>\]]")
_COPIES: WeakKeyDictionary[Any, Plain] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Plain:
    """What rendering needs of a tokenizer.

    backend  the copy that writes control tokens as aliases
    table    (ids of the copy) -> id of the original, SLOT for the slot
    leaks    (ids of the copy) -> True where data must not go: a control token spelt as an ordinary piece
    controls ids of the control tokens, without the unknown one: text may hold what no piece spells
    alias    content of a control token -> its alias; `content` is the inverse
    prefix   ids that the tokenizer itself puts before a text (BOS), usually one or none
    """

    name: str
    backend: Any
    table: np.ndarray
    leaks: np.ndarray
    controls: frozenset[int]
    alias: dict[str, str]
    content: dict[str, str]
    prefix: tuple[int, ...]
    prefix_tokens: tuple[str, ...]
    frames: dict[Any, Any] = field(default_factory=dict)  # chat frames already asked for
    known: dict[Any, Any] = field(default_factory=dict)  # cuts already found

    def speak(self, text: str) -> str:
        """Text of a chat template with its control tokens as aliases."""
        if not self.alias:
            return text
        names = "|".join(re.escape(c) for c in sorted(self.alias, key=len, reverse=True))
        return re.sub(names, lambda m: self.alias[m.group()], text)

    def show(self, text: str) -> str:
        """The inverse of `speak`."""
        for alias, content in self.content.items():
            text = text.replace(alias, content)
        return text

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """One tokenisation of each text: objects with `.ids` (of the copy) and `.offsets`."""
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Original ids of each text, SLOT at slots."""
        return [self.table[np.asarray(e.ids, np.int64)].tolist() for e in self.encode(texts)]


def plain(tokenizer: Any) -> Plain:
    """The copy of a tokenizer, made once for each. A tokenizer without a fast backend is a ModelError."""
    if isinstance(tokenizer, Plain):
        return tokenizer
    try:
        return _COPIES[tokenizer]
    except KeyError:
        copy = _COPIES[tokenizer] = _copy(tokenizer)
        return copy


def _copy(tokenizer: Any) -> Plain:
    from tokenizers import AddedToken, Tokenizer

    original = getattr(tokenizer, "backend_tokenizer", None)
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    if original is None:
        raise ModelError(
            f"tokenizer {name!r} has no fast version; prompts need its offsets, so choose a model that has one"
        )
    state = json.loads(original.to_str())
    spoken = str(getattr(tokenizer, "chat_template", "") or "")
    added = state.get("added_tokens", [])
    # a token that is not marked special but that the chat template speaks (<think>) is control too
    control = [t for t in added if t["special"] or (_CONTROL.fullmatch(t["content"]) and t["content"] in spoken)]
    names = {t["content"] for t in control}
    state["added_tokens"] = [t for t in added if t["content"] not in names]
    state["post_processor"] = state["truncation"] = state["padding"] = (
        None  # it would trim offsets and add BOS by itself
    )
    backend = Tokenizer.from_str(json.dumps(state))
    alias = {t["content"]: f"{OPEN}{i}{CLOSE}" for i, t in enumerate(control)}
    flags = {t["content"]: {k: t[k] for k in ("lstrip", "rstrip", "single_word")} for t in control}
    backend.add_tokens(
        [AddedToken(alias[c], normalized=False, **flags[c]) for c in alias] + [AddedToken(SLOT_ALIAS, normalized=False)]
    )

    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    table = np.arange(size, dtype=np.int64)
    for token in state["added_tokens"]:
        table[backend.token_to_id(token["content"])] = token["id"]
    for token in control:
        table[backend.token_to_id(alias[token["content"]])] = token["id"]
    table[backend.token_to_id(SLOT_ALIAS)] = SLOT
    forbidden = np.zeros(size, dtype=bool)
    unknown = getattr(tokenizer, "unk_token", None)
    for token in control:  # a vocabulary may spell a control token as an ordinary piece: never let data reach it
        here = backend.token_to_id(token["content"])
        if here is not None and token["content"] != unknown:
            forbidden[here] = True
    prefix = _prefix(tokenizer)
    words = tuple(tokenizer.convert_ids_to_tokens(list(prefix)))
    return Plain(
        name,
        backend,
        table,
        forbidden,
        frozenset(t["id"] for t in control if t["content"] != unknown),
        alias,
        {a: c for c, a in alias.items()},
        prefix,
        words,
    )


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer puts before a plain text by default."""
    full = list(tokenizer("a", add_special_tokens=True)["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()
