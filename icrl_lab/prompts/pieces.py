"""Pieces: a rendered prompt as one sees it, part by part, each with its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icrl_lab.values import Rendered


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt: a slot, or text of one role.

    role    a role of values.ROLES, or "slot"
    tokens  what each token adds to the string; "<slot>" where a vector stands
    shot    the shot it belongs to as it stands in the prompt, queries behind the shots; None for neither
    item    id of the item that the shot shows; "" where it is not known
    norms   Euclidean length of each vector of a slot
    """

    role: str
    tokens: tuple[str, ...]
    shot: int | None = None
    item: str = ""
    norms: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """The piece as text; a slot has none."""
        return "" if self.role == "slot" else "".join(self.tokens)


def pieces(rendered: Rendered, items: Sequence[str] = ()) -> tuple[Piece, ...]:
    """The pieces of a prompt in order; their tokens are all of its tokens.

    items  id of the item of each shot and, behind them, of each query; a slot knows its own
    ValueError for a prompt that was cut or extended, whose tokens are gone.
    """
    if len(rendered.tokens) != len(rendered):
        raise ValueError("this prompt was extended; pieces are made of prompts as they come from render_all")
    lengths = np.linalg.norm(rendered.vectors.astype(np.float64), axis=1) if len(rendered.vectors) else np.zeros(0)
    out, slots = [], 0
    for span in rendered.spans:
        norms: tuple[float, ...] = ()
        if span.role == "slot":
            width = span.stop - span.start
            norms = tuple(lengths[slots : slots + width].tolist())
            slots += width
        known = items[span.shot] if span.shot is not None and span.shot < len(items) else ""
        out.append(Piece(span.role, rendered.tokens[span.start : span.stop], span.shot, span.item or known, norms))
    return tuple(out)
