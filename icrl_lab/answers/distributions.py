"""Predictive distributions, frozen: over numbers (Answer) and over options (Choice), and the mixture of several.

Discrete distributions with few points, so that mean, quantile and CRPS are exact sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from icrl_lab.errors import StudyError, nearest

POINTS = ("mean", "median", "mode")


def _readonly(values: object) -> np.ndarray:
    array = np.array(values, np.float64)
    array.flags.writeable = False
    return array


@dataclass(frozen=True, eq=False)
class Answer:
    """What a model says about one number.

    values  (m,) ascending, in task units; empty if there is no answer
    probs   (m,) that sum to one
    mass    probability that the model gave to these answers before they were made to sum to one; NaN where it was not
            measured (free text, or nobody asked)
    raw     the most probable label, or the text that was read
    status  "ok", or why there is no answer
    """

    values: np.ndarray
    probs: np.ndarray
    mass: float = float("nan")
    raw: str = ""
    status: str = "ok"

    def __post_init__(self) -> None:
        order = np.argsort(np.asarray(self.values, np.float64), kind="stable")
        values, probs = np.asarray(self.values, np.float64)[order], np.asarray(self.probs, np.float64)[order]
        object.__setattr__(self, "values", _readonly(values))
        object.__setattr__(self, "probs", _readonly(probs / probs.sum() if len(probs) else probs))
        assert len(values) == len(probs) and (self.status == "ok") == (len(values) > 0)
        assert np.isfinite(values).all() and np.isfinite(self.probs).all() and (self.probs >= 0).all()

    @classmethod
    def failed(cls, status: str, raw: str = "", mass: float = float("nan")) -> Answer:
        """No answer, and why."""
        return cls(np.zeros(0), np.zeros(0), mass, raw, status)

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.status == "ok"

    @property
    def mean(self) -> float:
        """Expected value; NaN without an answer, as are the other points."""
        if not self.ok:
            return float("nan")
        return float(np.clip(self.values @ self.probs, self.values[0], self.values[-1]))

    @property
    def median(self) -> float:
        """The 0.5 quantile."""
        return self.quantile(0.5)

    @property
    def mode(self) -> float:
        """The value with the largest probability (the lowest of equals)."""
        if not self.ok:
            return float("nan")
        values, where = np.unique(self.values, return_inverse=True)
        return float(values[np.argmax(np.bincount(where, self.probs))])

    @cached_property
    def _cdf(self) -> np.ndarray:
        return np.minimum(np.cumsum(self.probs), 1.0)

    def quantile(self, q: float) -> float:
        """The smallest value with at least `q` of the probability at or below it."""
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
        if not self.ok:
            return float("nan")
        at = int(np.searchsorted(self._cdf, q - 1e-12, side="left"))
        return float(self.values[min(at, len(self.values) - 1)])

    def point(self, kind: str = "mean") -> float:
        """The point prediction: "mean", "median" or "mode"."""
        if kind not in POINTS:
            raise StudyError(f"unknown point prediction {kind!r}: {nearest(kind, POINTS)}")
        return float(getattr(self, kind))

    def crps(self, target: float) -> float:
        """Continuous ranked probability score, E|X - y| - E|X - X'| / 2 (Gneiting & Raftery 2007, eq. 21), in task units."""
        if not self.ok:
            return float("nan")
        x, p = self.values - self.values[0], self.probs  # differences only: no cancellation for values far from zero
        below = self._cdf - p  # sum over pairs p_i p_j |x_i - x_j| = 2 sum_j p_j (x_j F_j- - S_j-)
        spread = 2 * float(p @ (x * below - (np.cumsum(p * x) - p * x)))
        return max(0.0, float(p @ np.abs(self.values - target)) - spread / 2)


@dataclass(frozen=True, eq=False)
class Choice:
    """What a model says about one choice: `probs` (m,) over `options`; `mass`, `raw` and `status` as for Answer."""

    options: tuple[str, ...]
    probs: np.ndarray
    mass: float = float("nan")
    raw: str = ""
    status: str = "ok"

    def __post_init__(self) -> None:
        probs = np.asarray(self.probs, np.float64)
        object.__setattr__(self, "options", tuple(self.options))
        object.__setattr__(
            self, "probs", _readonly(probs / probs.sum() if self.status == "ok" else np.zeros(len(self.options)))
        )
        assert len(probs) in (0, len(self.options)) and np.isfinite(self.probs).all() and (self.probs >= 0).all()

    @classmethod
    def failed(cls, options: Sequence[str], status: str, raw: str = "", mass: float = float("nan")) -> Choice:
        """No answer, and why."""
        return cls(tuple(options), np.zeros(0), mass, raw, status)

    @property
    def ok(self) -> bool:
        """Whether there is an answer."""
        return self.status == "ok"

    @property
    def label(self) -> str:
        """The most probable option (the first of equals); "" without an answer."""
        return self.options[int(np.argmax(self.probs))] if self.ok else ""


@overload
def mix(answers: Sequence[Answer]) -> Answer: ...
@overload
def mix(answers: Sequence[Choice]) -> Choice: ...
def mix(answers: Sequence[Any]) -> Any:
    """The mixture of several answers to one question, each with the same weight.

    Answers that failed are left out of the mixture and count zero in its mass; if all failed, so does it.
    """
    if not answers:
        raise ValueError("a mixture needs at least one answer")
    good = [a for a in answers if a.ok]
    if not good:
        return answers[0]
    mass = float(np.mean([a.mass if a.ok else 0.0 for a in answers]))
    if isinstance(good[0], Choice):
        if any(a.options != good[0].options for a in answers):
            raise ValueError("a mixture needs answers over the same options")
        probs = np.mean([a.probs for a in good], axis=0)
        return Choice(good[0].options, probs, mass, good[0].options[int(np.argmax(probs))])
    values, where = np.unique(np.concatenate([a.values for a in good]), return_inverse=True)
    mixed = Answer(values, np.bincount(where, np.concatenate([a.probs for a in good]), len(values)), mass)
    return replace(mixed, raw=min(good, key=lambda a: abs(a.mode - mixed.mode)).raw)
