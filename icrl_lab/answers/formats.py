"""How a number is written as a label, and read back in the task's units.

A format is fitted on the targets of the pool alone. "digit", "letter" and "two-digit" write the bin of a number (0-9, a-j,
00-99), which every tokenizer and every small model can handle; "as-written" writes three significant figures, as the paper
does. Bins are cut at the pool's quantiles, or evenly. Whatever the label, an answer is scored in the task's units.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from icrl_lab.answers.parse import parse_number
from icrl_lab.errors import DataError, StudyError, nearest

FORMATS = {"digit": 10, "letter": 10, "two-digit": 100, "as-written": 0}  # name -> number of labels, 0 for an open set
BINS = ("quantile", "even")


@dataclass(frozen=True, eq=False)
class LabelFormat:
    """A way to write numbers.

    labels  the closed set of labels in ascending order; empty for "as-written"
    edges   (len(labels) - 1,) ascending bin edges in task units: label b is written for edges[b-1] <= y < edges[b]
    values  (len(labels),) ascending value of each label in task units
    bins    how they are cut, one of BINS
    figures significant figures of "as-written"
    longest characters of the longest label in the pool, and `largest` ten times the largest magnitude there: how far an answer of an
            open set is looked for
    """

    name: str
    labels: tuple[str, ...] = ()
    edges: np.ndarray = field(default_factory=lambda: np.zeros(0))
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bins: str = "quantile"
    figures: int = 3
    longest: int = 0
    largest: float = np.inf

    def __post_init__(self) -> None:
        for what in ("edges", "values"):
            array = np.array(getattr(self, what), np.float64)
            array.flags.writeable = False
            object.__setattr__(self, what, array)
        assert len(self.values) == len(self.labels) and len(self.edges) == max(0, len(self.labels) - 1)
        assert (np.diff(self.edges) >= 0).all() and (np.diff(self.values) >= 0).all()

    @property
    def closed(self) -> bool:
        """Whether there are finitely many labels."""
        return bool(self.labels)

    @property
    def sought(self) -> str:
        """What a label is, in words, for a prompt: a "number" (a bin's own, or as written) or a "letter"."""
        return "letter" if self.closed and not self.labels[0].isdigit() else "number"

    def write(self, y: float) -> str:
        """The label of a number in task units. NaN and infinities are a DataError."""
        if not np.isfinite(y):
            raise DataError(f"{y} cannot be written as a label")
        if self.closed:
            return self.labels[int(np.searchsorted(self.edges, y, side="right"))]
        return _figures(float(y), self.figures)

    def read(self, text: str) -> float | None:
        """The number in task units that a label or a model's text stands for; None if it stands for none.

        Between two labels of a closed set it is interpolated; beyond its ends there is no answer.
        """
        if self.sought == "letter":
            return dict(zip(self.labels, self.values.tolist())).get(text.strip().strip("*.[]()"))
        number = parse_number(text)
        if number is None or not self.closed:
            return number
        if not 0 <= number <= len(self.labels) - 1:
            return None
        return float(np.interp(number, np.arange(len(self.labels)), self.values))

    def scale(self, units: str = "") -> str:
        """How labels are written, in words, for a prompt."""
        if self.closed:
            how = "as a rank" if self.bins == "quantile" else "on an even scale"
            return f"{how} from {self.labels[0]} (lowest) to {self.labels[-1]} (highest)"
        return f"in {units}" if units else ""


def fit_format(name: str, pool_targets: np.ndarray, bins: str = "quantile") -> LabelFormat:
    """The format `name` of FORMATS, fitted on the pool's targets (n,) in task units.

    bins  of a closed set: "quantile", as many of the pool in each, so that every label is seen about as often; or "even", as wide
          each, from the pool's 0.01 quantile to its 0.99 and what lies beyond in the outer two, so that the ends of a skewed
          target are told apart

    A label's value is the mean of the pool's targets in its bin, or the middle of the bin where it is empty.
    """
    for given, known, what in ((name, FORMATS, "label format"), (bins, BINS, "bins of labels")):
        if given not in known:
            raise StudyError(f"unknown {what} {given!r}: {nearest(given, known)}")
    y = np.sort(np.asarray(pool_targets, np.float64).ravel())
    if y.size == 0 or not np.isfinite(y).all():
        raise DataError("a label format is fitted on the pool's targets, which must be finite numbers, at least one")
    size = FORMATS[name]
    if not size:
        return LabelFormat(
            name, longest=max(len(_figures(v, 3)) for v in y.tolist()), largest=10 * float(np.abs(y).max())
        )
    if y[-1] / 2 - y[0] / 2 > np.finfo(np.float64).max / 2:
        raise DataError(f"the pool's targets, from {y[0]:.3g} to {y[-1]:.3g}, span more than can be computed with")
    inner = np.arange(1, size) / size
    edges = np.quantile(y, inner) if bins == "quantile" else np.interp(inner, [0, 1], np.quantile(y, [0.01, 0.99]))
    edges = np.maximum.accumulate(edges)  # interpolation may round below the edge before
    where = np.searchsorted(edges, y, side="right")
    low, high = np.concatenate([y[:1], edges]), np.concatenate([edges, y[-1:]])
    values = low + (high - low) / 2
    count = np.bincount(where, minlength=size)
    mean = np.bincount(where, weights=y - y[0], minlength=size) / np.maximum(count, 1) + y[0]
    values = np.where(count > 0, np.clip(mean, low, high), values)
    letters = "abcdefghij" if name == "letter" else ""
    labels = tuple(letters) or tuple(str(b).zfill(len(str(size - 1))) for b in range(size))
    return LabelFormat(name, labels, edges, np.maximum.accumulate(values), bins)


def _figures(y: float, figures: int) -> str:
    """Rounded to significant figures, without trailing zeros or a sign on zero; an exponent only where digits would not end."""
    if y == 0:
        return "0"
    if not 1e-7 <= abs(y) < 1e9:
        mantissa, exponent = f"{y:.{figures - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return np.format_float_positional(y, precision=figures, fractional=False, unique=False, trim="-")
