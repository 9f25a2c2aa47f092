"""Prompts as parts, and as the engine takes them, with what is to be changed while the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from icrl_lab.values.base import frozen
from icrl_lab.values.forward import Edit


@dataclass(frozen=True)
class Text:
    """A stretch of a prompt's text. `role` is one of ROLES; `shot` numbers the shot (0..k-1) or query (k..) it belongs to."""

    text: str
    role: str = "template"
    shot: int | None = None


@dataclass(frozen=True)
class Slot:
    """A place for `width` vectors of `item`. `key` names the slot and is unique in its prompt."""

    key: str
    item: str
    width: int = 1
    shot: int | None = None


ROLES = ("template", "marker", "text", "label", "question")


@dataclass(frozen=True)
class Prompt:
    """Ordered parts, text or slots; together one string in which each slot is a placeholder.

    chat    render through the model's chat template: `system` is the system message, the parts are the user's turn,
            `answer` opens the assistant's
    """

    parts: tuple[Text | Slot, ...]
    system: str = ""
    answer: str = ""
    chat: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        keys = [p.key for p in self.parts if isinstance(p, Slot)]
        if len(set(keys)) != len(keys):
            twice = next(k for k in keys if keys.count(k) > 1)
            raise ValueError(f"slot {twice!r} stands twice in one prompt")
        for part in self.parts:
            if isinstance(part, Text) and part.role not in ROLES:
                raise ValueError(f"role {part.role!r} is not one of {ROLES}")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The prompt's slots in their order."""
        return tuple(p for p in self.parts if isinstance(p, Slot))


@dataclass(frozen=True)
class Span:
    """Tokens start..stop (stop excluded) of a rendered prompt that belong to one part of it."""

    role: str  # a role of ROLES, or "slot"
    start: int
    stop: int
    shot: int | None = None
    key: str = ""  # the slot's key
    item: str = ""  # the slot's item


@dataclass(frozen=True, eq=False)
class Rendered:
    """A prompt as the engine takes it.

    ids      (T,) int64 token ids; at a slot's positions, SLOT
    vectors  (slot positions, d) float32, one row for each position that holds SLOT, in order
    spans    where each part of the prompt stands
    tokens   T strings, for display
    edits    what is changed while the model runs it
    """

    ids: np.ndarray
    vectors: np.ndarray
    spans: tuple[Span, ...] = ()
    tokens: tuple[str, ...] = ()
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", frozen(self.ids, np.int64))
        vectors = np.asarray(self.vectors, np.float32)
        object.__setattr__(self, "vectors", frozen(vectors))
        places = int((self.ids == SLOT).sum())
        if vectors.ndim != 2 or len(vectors) != places:
            raise ValueError(f"{places} slot positions and vectors of shape {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("a vector to inject has a NaN or an infinity")
        object.__setattr__(self, "edits", tuple(self.edits))

    def __len__(self) -> int:
        return len(self.ids)

    def extend(self, ids: Sequence[int]) -> Rendered:
        """The same prompt with token ids behind it."""
        return replace(self, ids=np.concatenate([self.ids, np.asarray(ids, np.int64)]), tokens=())

    def edited(self, *edits: Edit) -> Rendered:
        """The same prompt with further edits."""
        return replace(self, edits=(*self.edits, *edits))


SLOT = -1
