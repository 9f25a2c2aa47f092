"""Rendering: one string, one tokenisation, and where each part stands.

A slot is its placeholder token, repeated; its positions become SLOT and take the rows of the item's vectors. Spans come
from the offsets of that one tokenisation, so nothing is ever concatenated as tokens. A chat is put through the model's
own template around a sentinel, so that the template can neither trim nor escape what stands in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from icrl_lab.errors import DataError, ModelError
from icrl_lab.prompts.tokens import CLOSE, OPEN, SLOT_ALIAS, Plain, plain
from icrl_lab.values import SLOT, Prompt, Rendered, Slot, Span, Text, Vectors

ROOM = 16  # tokens that an answer may need behind the prompt
_USER, _SYSTEM = "ICRLUSERCONTENT", "ICRLSYSTEMCONTENT"


def render(prompt: Prompt, tokenizer: Any, vectors: Vectors | None = None, context: int | None = None) -> Rendered:
    """One prompt as the engine takes it; see `render_all`."""
    return render_all([prompt], tokenizer, vectors, context)[0]


def render_all(
    prompts: Sequence[Prompt],
    tokenizer: Any,
    vectors: Vectors | None = None,
    context: int | None = None,
    room: int = ROOM,
    repeat: int = 1,
) -> list[Rendered]:
    """Prompts as the engine takes them.

    vectors  in the model's space, one row (or `slots` rows) for each item that has a slot
    context  tokens the model reads; a prompt that leaves less than `room` of them for the answer is a DataError
    repeat   how many times the shots stand in each prompt, for that error

    `tokens` of a Rendered, joined, give the rendered string back ("<slot>" at a slot's positions). A missing vector, a
    slot of another width, and text that would reach the model as a control token are DataErrors that name the item; a chat
    prompt for a model without a chat template is a ModelError.
    """
    tok = plain(tokenizer)
    pieces = [_pieces(prompt, tok, tokenizer) for prompt in prompts]
    whole = ["".join(texts) for texts, _ in pieces]
    where = {} if vectors is None else {item: row for row, item in enumerate(vectors.ids)}
    out: list[Rendered] = []
    known: dict[tuple, Span] = {}
    for prompt, (texts, parts), text, tokens in zip(prompts, pieces, whole, tok.encode(whole)):
        raw = np.asarray(tokens.ids, np.int64)
        edges = np.cumsum([0, *map(len, texts)])
        offsets = np.asarray(tokens.offsets, np.int64).reshape(-1, 2)
        owner = _owners(offsets, edges, parts)
        if tok.leaks[raw].any():
            _refuse_control(parts[owner[int(np.argmax(tok.leaks[raw]))]], prompt, tok)
        start = 0 if prompt.chat else len(tok.prefix)  # a chat template writes its own BOS
        length = start + len(raw)
        if context is not None and length + room > context:
            _refuse_length(length, context, room, prompt, repeat)
        ids = np.concatenate([np.asarray(tok.prefix[:start], np.int64), tok.table[raw]])
        words = tok.prefix_tokens[:start] + _words(text, offsets[:, 1], ids[start:], tok)
        out.append(Rendered(ids, _rows(prompt, vectors, where), _spans(parts, owner, start, known), words))
    return out


def too_long(texts: Sequence[str], tokenizer: Any, context: int) -> dict[int, int]:
    """Which texts leave a model of that context no room for an answer, whatever stands beside them: position -> tokens."""
    lengths = [len(ids) for ids in plain(tokenizer).ids(list(texts))]
    return {i: n for i, n in enumerate(lengths) if n + ROOM > context}


def refill(rendered: Sequence[Rendered], vectors: Vectors) -> list[Rendered]:
    """Rendered prompts with other vectors for the same items: what `render_all` gives for them, without tokenising again."""
    where = {item: row for row, item in enumerate(vectors.ids)}
    out = []
    for prompt in rendered:
        rows = [where[span.item] for span in prompt.spans if span.role == "slot"]
        out.append(replace(prompt, vectors=vectors.values[rows].reshape(-1, vectors.width)))
    return out


def _pieces(prompt: Prompt, tok: Plain, tokenizer: Any) -> tuple[list[str], list[Text | Slot]]:
    """The prompt's string in pieces, and the part that each belongs to; no piece is empty."""
    for part in (*prompt.parts, Text(prompt.system), Text(prompt.answer)):
        if isinstance(part, Text) and (OPEN in part.text or CLOSE in part.text):
            raise DataError(f"{_whose(part, prompt)} holds the reserved character U+F1CA1 or U+F1CA2; remove it")
    parts: list[Text | Slot] = list(prompt.parts)
    if prompt.chat:
        head, tail = _frame(prompt.system, tok, tokenizer)
        parts = [*map(Text, head), *parts, Text(tail), Text(prompt.answer, "question")]
    parts = [p for p in parts if (p.width if isinstance(p, Slot) else p.text)]
    return [SLOT_ALIAS * p.width if isinstance(p, Slot) else p.text for p in parts], parts


def _frame(system: str, tok: Plain, tokenizer: Any) -> tuple[tuple[str, ...], str]:
    """What the chat template puts before (with the system message) and after the user's turn."""
    key = bool(system)
    if key not in tok.frames:
        tok.frames[key] = _ask_template(key, tok, tokenizer)
    head, middle, tail = tok.frames[key]
    if system and middle is None:  # a template without a system role: the message opens the user's turn
        return (head, f"{system}\n\n"), tail
    return ((head, system, middle) if system else (head,)), tail


def _ask_template(with_system: bool, tok: Plain, tokenizer: Any) -> tuple[str, str | None, str]:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(f"{tok.name!r} has no chat template; choose a plain layout such as 'arrow' or 'question'")
    user = {"role": "user", "content": _USER}
    tries = [[{"role": "system", "content": _SYSTEM}, user]] if with_system else []
    for messages in (*tries, [user]):
        try:  # a template raises whatever its author liked
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, enable_thinking=False, date_string="26 Jul 2024"
            )
        except Exception as error:
            if messages[-1] is messages[0]:
                raise ModelError(f"the chat template of {tok.name!r} fails on one user message: {error}") from None
            continue
        text = tok.speak(text)
        if text.count(_USER) != 1:
            raise ModelError(
                f"the chat template of {tok.name!r} shows a user message {text.count(_USER)} times; choose a plain layout"
            )
        head, tail = text.split(_USER)
        if messages[0]["role"] == "user":
            return head, None, tail
        if head.count(_SYSTEM) == 1 and _SYSTEM not in tail:
            before, middle = head.split(_SYSTEM)
            return before, middle, tail
    raise AssertionError("unreachable: the last try returns or raises")


def _owners(offsets: np.ndarray, edges: np.ndarray, parts: Sequence[Text | Slot]) -> np.ndarray:
    """The part each token belongs to: that of its last character, so that " 5" is a label; a label, where it touches one."""
    first = np.searchsorted(edges, offsets[:, 0], side="right") - 1
    owner = np.searchsorted(edges, np.maximum(offsets[:, 0], offsets[:, 1] - 1), side="right") - 1
    for token in np.flatnonzero(first < owner):
        touched = range(first[token], owner[token] + 1)
        owner[token] = next((p for p in touched if getattr(parts[p], "role", "") == "label"), owner[token])
    return np.maximum.accumulate(owner)


def _words(text: str, ends: np.ndarray, ids: np.ndarray, tok: Plain) -> tuple[str, ...]:
    """What each token adds to the string, so that they join to it. Slots and control tokens stand under their own names."""
    words, last = [], 0
    cuts = np.maximum.accumulate(ends).tolist()
    if cuts:
        cuts[-1] = len(text)
    for id_, end in zip(ids.tolist(), cuts):
        word = text[last:end]
        words.append("<slot>" if id_ == SLOT else tok.show(word) if OPEN in word else word)
        last = end
    return tuple(words)


def _spans(parts: Sequence[Text | Slot], owner: np.ndarray, start: int, known: dict[tuple, Span]) -> tuple[Span, ...]:
    """`known` are spans of other prompts: those that share their shots share the spans, which else were most of their objects."""
    found: list[tuple] = [("template", 0, start)] if start else []
    change = np.flatnonzero(np.diff(owner)) + 1
    bounds = [0, *change.tolist(), len(owner)] if len(owner) else [0]
    for lo, hi in pairwise(bounds):
        part = parts[owner[lo]]
        if isinstance(part, Slot):
            assert hi - lo == part.width, "a slot is not its placeholders: this tokenizer changes added tokens"
            found.append(("slot", lo + start, hi + start, part.shot, part.key, part.item))
        else:
            found.append((part.role, lo + start, hi + start, part.shot))
    return tuple(known.get(key) or known.setdefault(key, Span(*key)) for key in found)


def _rows(prompt: Prompt, vectors: Vectors | None, where: dict[str, int]) -> np.ndarray:
    slots = prompt.slots
    if not slots:
        return np.zeros((0, 0 if vectors is None else vectors.width), np.float32)
    if vectors is None:
        raise DataError(f"the prompt has {len(slots)} slots and no vectors were given")
    rows = []
    for slot in slots:
        if slot.item not in where:
            raise DataError(f"item {slot.item!r} has a slot and no vector in {vectors.space!r}")
        if slot.width != vectors.slots:
            raise DataError(
                f"the slot of {slot.item!r} is {slot.width} wide and {vectors.space!r} has {vectors.slots} vectors an item"
            )
        rows.append(where[slot.item])
    return vectors.values[rows].reshape(-1, vectors.width)


def _whose(part: Text | Slot, prompt: Prompt) -> str:
    slot = next((s for s in prompt.slots if s.shot is not None and s.shot == part.shot), None)
    if slot is not None:
        return f"item {slot.item!r}"
    return f"the text {part.text[:60]!r}" if isinstance(part, Text) else f"item {part.item!r}"


def _refuse_control(part: Text | Slot, prompt: Prompt, tok: Plain) -> None:
    raise DataError(
        f"{_whose(part, prompt)}: its text holds a control token of {tok.name!r}; rename the item or leave its text out"
    )


def _refuse_length(length: int, context: int, room: int, prompt: Prompt, repeat: int) -> None:
    labels = sum(isinstance(p, Text) and p.role == "label" for p in prompt.parts)
    longest = max((p.text for p in prompt.parts if isinstance(p, Text) and p.role == "text"), key=len, default="")
    whose = f", the longest text of {len(longest)} characters ({longest[:40]!r})" if longest else ""
    times = f" {repeat} times (repeat = {repeat})" if repeat > 1 else ""
    remedies = ["fewer shots", *["a smaller repeat"] * bool(times), *["vectors instead of text"] * bool(whose)]
    raise DataError(
        f"the prompt has {length} tokens (and needs {room} for the answer) but the model reads {context}: it holds "
        f"{labels // repeat} shots{times}{whose}; take {', '.join(remedies)}, or a model with a longer context"
    )
