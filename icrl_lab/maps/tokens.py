"""What the fitters may know of a language model: its input embeddings, and which tokens the pool's texts are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.values import Vectors

ROWS = ("unique", "frequency", "item-mean")
_CHUNK = 16384  # rows at a time: float64 work on a table of 262,144 tokens stays under 100 MB


@dataclass(frozen=True, eq=False)
class Tokens:
    """Everything of a model that slot maps and controls use; plain arrays, no model and no tokenizer.

    embeddings  (V, d) float32, the input embeddings as the model sees them (after any scaling of its own)
    space       the name of the model's input space, e.g. "llm:smollm2-135m"
    text_ids    token ids of each pool item's text, in the pool's order; None where there is no text
    pca_ids     the same for the pool items' PCA strings
    label_ids   label as it is written in the prompt -> its token ids; a closed set of numbers in ascending order
    """

    embeddings: np.ndarray
    space: str
    text_ids: tuple[np.ndarray, ...] | None = None
    pca_ids: tuple[np.ndarray, ...] | None = None
    label_ids: Mapping[str, Sequence[int]] | None = None

    def __post_init__(self) -> None:
        table = np.asarray(self.embeddings, np.float32)
        if table.ndim != 2 or not table.size:
            raise DataError(f"token embeddings of {self.space!r} must be a table (tokens, width), not {table.shape}")
        object.__setattr__(self, "embeddings", table)  # not copied: it is the largest array of the lab

    @property
    def width(self) -> int:
        """d, the length of one embedding."""
        return self.embeddings.shape[1]

    @cached_property
    def used(self) -> np.ndarray:
        """Ids of the tokens whose embedding is not zero (tables are often padded with zero rows)."""
        parts = [np.any(self.embeddings[i : i + _CHUNK] != 0, axis=1) for i in range(0, len(self.embeddings), _CHUNK)]
        used = np.flatnonzero(np.concatenate(parts))
        if not len(used):
            raise DataError(f"every token embedding of {self.space!r} is zero")
        return used

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.used), _CHUNK):
            yield self.embeddings[self.used[start : start + _CHUNK]].astype(np.float64)

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray, float, float, float]:
        """Per-dimension mean and variance, mean L2 norm, mean row mean, mean row variance, over the non-zero rows."""
        n, total, square, rows = len(self.used), np.zeros(self.width), np.zeros(self.width), np.zeros(3)
        for b in self._blocks():
            total += b.sum(0)
            rows += np.linalg.norm(b, axis=1).sum(), b.mean(1).sum(), b.var(1).sum()
        for b in self._blocks():
            square += ((b - total / n) ** 2).sum(0)
        length, mean, variance = rows / n
        return total / n, square / n, float(length), float(mean), float(variance)

    @property
    def mean(self) -> np.ndarray:
        """(d,) mean embedding of the vocabulary."""
        return self._sums[0]

    @property
    def std(self) -> np.ndarray:
        """(d,) standard deviation of each dimension over the vocabulary."""
        return np.sqrt(self._sums[1])

    @property
    def mean_norm(self) -> float:
        """Mean L2 norm of an embedding: what slot scale 1 means."""
        return self._sums[2]

    @property
    def row_moments(self) -> tuple[float, float]:
        """Mean over tokens of an embedding's own mean and of its own variance (the row normalisation's targets)."""
        return self._sums[3], self._sums[4]

    @cached_property
    def covariance(self) -> np.ndarray:
        """(d, d) covariance of the vocabulary's embeddings, float64."""
        out = np.zeros((self.width, self.width))
        for b in self._blocks():
            out += (b - self.mean).T @ (b - self.mean)
        return out / len(self.used)

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues (d,) of the covariance, largest first, and eigenvectors as columns (d, d)."""
        value, vector = np.linalg.eigh(self.covariance)
        return np.maximum(value[::-1], 0), vector[:, ::-1]

    def rows(self, of: str, rows: str) -> tuple[np.ndarray, np.ndarray]:
        """Alignment targets: token rows (m, d) float64 and their weights (m,), which sum to 1.

        of    "text" or "pca": the pool items' texts or their PCA strings
        rows  "unique" (each token once), "frequency" (each occurrence), "item-mean" (each item's mean embedding)
        """
        if rows not in ROWS:
            raise StudyError(f"target set {rows!r} is unknown; {nearest(rows, ROWS)}")
        given = self.text_ids if of == "text" else self.pca_ids
        lists = [np.asarray(t, np.int64) for t in given or ()]
        if not sum(map(len, lists)):
            raise DataError(
                f"matching to {of} tokens needs the token ids of the pool's {of} strings; this task has no such text"
            )
        if rows == "item-mean":
            out = np.stack([self.embeddings[t].astype(np.float64).mean(0) for t in lists if len(t)])
            return out, np.full(len(out), 1 / len(out))
        ids, count = np.unique(np.concatenate(lists), return_counts=True)
        weight = count / count.sum() if rows == "frequency" else np.full(len(ids), 1 / len(ids))
        return self.embeddings[ids].astype(np.float64), weight


def label_rows(labels: Mapping[str, str], tokens: Tokens) -> Vectors:
    """The embedding of each item's label: item id -> label as written, to (n, d) rows in the model's space.

    Of several tokens it is their mean, each weighing half as much as the one before it: "12" and "21" are two labels.
    """
    table = {k: np.asarray(v, np.int64) for k, v in (tokens.label_ids or {}).items()}
    for item, label in labels.items():
        if not len(table.get(label, ())):
            raise DataError(f"item {item!r}: label {label!r} has no tokens in {tokens.space!r}")
    each = (tokens.embeddings[table[label]] for label in labels.values())
    rows = [np.average(e, 0, 0.5 ** np.arange(len(e))) for e in each]
    return Vectors(np.array(rows).reshape(len(rows), tokens.width), tuple(labels), tokens.space)
