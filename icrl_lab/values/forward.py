"""What is asked of a forward pass before it runs, and what it kept: captures, edits, outcomes, traces.

Layers are counted in two ways, as everywhere in the field. There are L blocks, 0 to L-1; attention and heads belong to a block.
The residual stream is seen at L+1 places: `layer` l is what block l reads (0: the input embeddings), L what the last
block leaves, before the final norm. Positions count tokens of one prompt, from 0; where it says so, a negative one counts
from the prompt's end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icrl_lab.values.base import frozen


@dataclass(frozen=True)
class Capture:
    """What to keep of a forward pass, decided before it runs.

    rows     query positions whose attention is kept; a negative one is counted from the end of the prompt (-1: the last token)
    columns  key positions kept of each row; None keeps all
    layers   blocks whose attention and head outputs are kept; None keeps all
    hidden   positions whose residual stream is kept; negative as for rows
    depths   which of the L+1 places of the residual stream are kept; None keeps all
    outputs  positions whose heads' outputs (before the output projection) are kept; negative as for rows
    norms    with rows: also the length of what each column's value writes into the residual stream (Kobayashi et al. 2020)
    """

    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    hidden: tuple[int, ...] = ()
    depths: tuple[int, ...] | None = None
    outputs: tuple[int, ...] = ()
    norms: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "layers", "hidden", "depths", "outputs"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(int(v) for v in value))


@dataclass(frozen=True, eq=False)
class Trace:
    """What a capture kept for one prompt, float32; what was not asked for is None.

    attention  (layers, heads, rows, columns); a row over all columns sums to one
    norms      (layers, heads, columns)
    hidden     (depths, hidden positions, d)
    outputs    (layers, heads, output positions, head width)
    `columns` gives the position of each column; `rows`, `positions` and `at` are as they were asked for (rows, hidden, outputs).
    """

    attention: np.ndarray | None
    layers: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    norms: np.ndarray | None = None
    hidden: np.ndarray | None = None
    depths: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    outputs: np.ndarray | None = None
    at: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Patch:
    """Sets, or adds to, what stands at some positions of a prompt while the model runs it.

    layer      place of the residual stream, 0 to L; with `head`, the block whose head's output (before the output projection)
    positions  from the prompt's start, all different
    values     (positions, d), or (positions, head width) with `head`; float32
    add        add to what stands there, instead of setting it
    """

    layer: int
    positions: tuple[int, ...]
    values: np.ndarray
    head: int | None = None
    add: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", tuple(int(p) for p in self.positions))
        object.__setattr__(self, "values", frozen(self.values, np.float32))
        if self.values.ndim != 2 or len(self.values) != len(self.positions) or not self.positions:
            raise ValueError(f"a patch of {len(self.positions)} positions has values of shape {self.values.shape}")
        if len(set(self.positions)) != len(self.positions) or min(self.positions) < 0 or self.layer < 0:
            raise ValueError("a patch needs different positions from the prompt's start, and a layer from 0")
        if not np.isfinite(self.values).all():
            raise ValueError("a patch has a NaN or an infinity")

    def touches(self, position: int) -> bool:
        """Whether the forward pass at this position is changed directly."""
        return position in self.positions

    def digest(self, position: int) -> bytes:
        """What is changed at this position, as bytes that are equal for equal changes."""
        row = self.values[self.positions.index(position)]
        return f"patch {self.layer} {self.head} {self.add} ".encode() + row.tobytes()


@dataclass(frozen=True)
class Cut:
    """Takes attention edges away: tokens at `rows` do not see those at `columns`, and share their attention among the rest.

    rows     positions from the prompt's start; with `onwards`, every position from the first of them to the end
    columns  positions from the prompt's start; a token always sees itself, so its own is left out
    layers, heads  where; None is everywhere
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    onwards: bool = False

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "layers", "heads"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(int(v) for v in value))
        if not self.rows or not self.columns or min(*self.rows, *self.columns, 0) < 0:
            raise ValueError("a cut needs rows and columns, counted from the prompt's start")
        if min(self.columns) >= max(self.rows) and not self.onwards:
            raise ValueError("a cut of columns that none of its rows can see changes nothing")

    def touches(self, position: int) -> bool:
        """Whether the forward pass at this position is changed directly."""
        return (position in self.rows or (self.onwards and position >= self.rows[0])) and bool(self.seen(position))

    def seen(self, position: int) -> tuple[int, ...]:
        """The columns that the token at `position` would see, were they not cut."""
        return tuple(c for c in self.columns if c < position)

    def digest(self, position: int) -> bytes:
        """What is changed at this position, as bytes that are equal for equal changes."""
        return f"cut {self.seen(position)} {self.layers} {self.heads}".encode()


Edit = Patch | Cut


@dataclass(frozen=True, eq=False)
class Outcome:
    """One number read off the next-token distribution, renormalised over a few tokens.

    ids      (m,) token ids
    values   (m,) float64: the number is their expectation; None where `target` is given
    target   index into `ids`: the number is the log-odds of that token against the others
    """

    ids: tuple[int, ...]
    values: np.ndarray | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(int(i) for i in self.ids))
        if (self.values is None) == (self.target is None):
            raise ValueError("an outcome is an expectation of values or the log-odds of a target, and not both")
        if self.values is not None:
            object.__setattr__(self, "values", frozen(self.values, np.float64))
            if self.values.shape != (len(self.ids),):
                raise ValueError(f"{len(self.ids)} tokens and values of shape {self.values.shape}")

    def read(self, logprobs: np.ndarray) -> float:
        """The number, from (m,) log-probabilities of `ids`."""
        return float(self.read_all(np.asarray(logprobs)[None])[0])

    def read_all(self, logprobs: np.ndarray) -> np.ndarray:
        """(n,) numbers from (n, m) log-probabilities of `ids`."""
        logp = np.asarray(logprobs, np.float64)
        if self.values is not None:
            p = np.exp(logp - logp.max(1, keepdims=True))
            return p / p.sum(1, keepdims=True) @ self.values
        assert self.target is not None
        # never by way of 1 - p, which has no digits left where the target is all but certain
        return logp[:, self.target] - np.logaddexp.reduce(np.delete(logp, self.target, 1), 1)


def key_of(edits: Sequence[Edit], position: int) -> bytes:
    """A digest of everything that edits change at one position; empty where they change nothing."""
    parts = [edit.digest(position) for edit in edits if edit.touches(position)]
    return hashlib.blake2b(b"|".join(parts), digest_size=8).digest() if parts else b""
