"""Linear probes: what can be read from states by somebody who knows labels, held out, and against shuffled labels.

Owns the cross-validation, the penalties, the score and its null. It knows arrays: no study, no model, no prompt. There are
many fewer items than dimensions, so that any labels can be fitted; only what is predicted of items that were held out counts,
and only beside the same thing done with shuffled labels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from icrl_lab.errors import DataError
from icrl_lab.stats import Effects
from icrl_lab.stats.intervals import components, confidence, p_value, pseudo_values
from icrl_lab.stats.metrics import Array, pearson

FOLDS = 5
ALPHAS = np.logspace(-4, 3, 15)  # ridge's penalty a feature; standardised features have a Gram matrix of that size
STRENGTHS = np.logspace(-2, 1, 4)  # logistic regression's inverse penalty times the number of features


@dataclass(frozen=True, eq=False)
class Labels:
    """What a probe is to find, and how it is cross-validated.

    truth    (C, n) one row of targets, or for each class whether an item belongs to it
    columns  the classes' places among the task's options; None for numbers
    kept     (m,) the items that probes see: all, but those of classes too rare to be split
    fold     (m,) the fold in which each is held out
    turns    (permutations, m) whose label each item gets
    """

    truth: Array
    columns: tuple[int, ...] | None
    kept: Array
    fold: Array
    turns: Array

    @property
    def folds(self) -> int:
        return int(self.fold.max()) + 1

    @property
    def how(self) -> str:
        return "ridge regression" if self.columns is None else "logistic regression"

    @cached_property
    def splits(self) -> list[tuple[Array, Array]]:
        """(training, held out) items of each fold."""
        return [(np.flatnonzero(self.fold != f), np.flatnonzero(self.fold == f)) for f in range(self.folds)]

    @cached_property
    def sought(self) -> Array:
        """(1 + permutations, C, m) what the predictions are compared with: the true labels, then the shuffled ones."""
        own = self.truth[:, self.kept]
        shuffled = [
            own[:, turn] if self.columns is None else own for turn in self.turns
        ]  # classes: the states are shuffled
        return np.stack([own, *shuffled])


def labels_for(y: Array, permutations: int | None = None, seed: int = 0) -> Labels:
    """The same from (n,) numbers, or integers that name classes. DataError for too few items to cross-validate."""
    from sklearn.model_selection import KFold, StratifiedKFold

    if len(y) < 2 * FOLDS:
        raise DataError(f"a probe needs at least {2 * FOLDS} queries, not {len(y)}; ask for more queries")
    rng = np.random.default_rng([seed, 31])
    kept, columns, truth = np.arange(len(y)), None, np.asarray(y, float)[None]
    splitter: Any = KFold(FOLDS, shuffle=True, random_state=int(rng.integers(2**31)))
    if np.issubdtype(y.dtype, np.integer):
        names, counts = np.unique(y, return_counts=True)
        common = names[counts >= FOLDS]
        if len(common) < 2:
            raise DataError(f"a probe needs two classes with at least {FOLDS} queries each; ask for more queries")
        columns, truth = tuple(common.tolist()), (y == common[:, None]).astype(float)
        kept = np.flatnonzero(np.isin(y, common))
        splitter = StratifiedKFold(FOLDS, shuffle=True, random_state=splitter.random_state)
    fold = np.empty(len(kept), int)
    for f, (_, held) in enumerate(splitter.split(kept, y[kept])):
        fold[held] = f
    most = permutations or (100 if columns is None else 20)
    return Labels(truth, columns, kept, fold, np.array([rng.permutation(len(kept)) for _ in range(most)]))


def held_out(states: Array, labels: Labels) -> Array:
    """(1 + permutations, C, m) out-of-fold predictions of a linear probe on states (n, f): of the true labels, then of shuffled ones.

    Features are standardised and the penalty is chosen inside each training fold: ridge by leave-one-out (all labels
    at once), logistic regression by three inner folds; shuffled classes take the strength that the true ones chose.
    """
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeCV
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = states[labels.kept].astype(np.float64)
    width = x.shape[1]
    if labels.columns is None:
        ridge = make_pipeline(StandardScaler(), RidgeCV(width * ALPHAS, alpha_per_target=True))
        return cross_val_predict(ridge, x, labels.sought[:, 0].T, cv=labels.splits).T[:, None]
    y = labels.sought[0].argmax(0)
    given: dict[str, Any] = {"tol": 1e-3, "max_iter": 1000}
    strengths = STRENGTHS / width
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that change between scikit-learn's releases
        grid = make_pipeline(
            StandardScaler(), LogisticRegressionCV(Cs=strengths, cv=3, scoring="neg_log_loss", **given)
        )
        found = [cross_val_predict(grid, x, y, cv=labels.splits, method="predict_proba")]
        strength = float(np.median(grid.fit(x, y)[-1].C_))
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=strength, **given))
    found += [cross_val_predict(plain, x[turn], y, cv=labels.splits, method="predict_proba") for turn in labels.turns]
    return np.stack(found).transpose(0, 2, 1)


def within(values: Array, fold: Array) -> Array:
    """Values (..., m) less their fold's mean, and 0 where a fold's are equal but for rounding.

    A probe that finds nothing predicts its training folds' mean, which is low where the held-out fold's is high: compared
    over all folds together it would seem to be worse than nothing.
    """
    out = np.array(values, float)
    scale = np.abs(out).max(-1, keepdims=True)
    for f in np.unique(fold):
        out[..., fold == f] -= out[..., fold == f].mean(-1, keepdims=True)
    out[np.abs(out) <= 1e-9 * scale] = 0.0
    return out


def score(held: Array, labels: Labels) -> Array:
    """(1 + permutations,) Pearson's r within folds of what `held_out` gives, averaged over classes."""
    return pearson(within(held, labels.fold), within(labels.sought, labels.fold)).mean(-1)


def p_values(scores: Array) -> tuple[Array, Array]:
    """One-sided p (...) of scores (..., 1 + permutations), and corrected for the search over all cells (Westfall and Young 1993)."""
    true, shuffled = scores[..., 0], scores[..., 1:]
    largest = shuffled.reshape(-1, shuffled.shape[-1]).max(0)
    p, q = ((1 + (null >= true[..., None]).sum(-1)) / (1 + null.shape[-1]) for null in (shuffled, largest))
    return p, q


def agreement(pred: Array, truth: Array) -> tuple[Array, Array]:
    """Pearson's r over items, averaged over columns and seeds (...), and its pseudo-values (..., S, N); from (..., C, S, N)."""
    value, table = pseudo_values(pred, truth, "pearson")
    return value.mean(-1), table.mean(-3)


def skill(predicted: Array, labels: Labels) -> Effects:
    """1 - squared error / that of the training folds' mean, of predictions (..., C, S, m): R2, or the Brier skill of classes."""
    truth = labels.sought[0]
    base = np.empty_like(truth)
    for train, held in labels.splits:
        base[:, held] = truth[:, train].mean(1, keepdims=True)
    error = ((predicted - truth[:, None]) ** 2).sum(-3)
    null = np.broadcast_to(((base - truth) ** 2).sum(0), error.shape)
    n, whole, less = error.shape[-1], error.sum(-1, keepdims=True), null.sum(-1, keepdims=True)
    value = 1 - whole / less
    table = n * value - (n - 1) * (1 - (whole - error) / (less - null))
    return bounded(value[..., 0].mean(-1), table, "log1m")


def bounded(mean: Array, table: Array, scale: str = "fisher") -> Effects:
    """A mean over seeds with the interval and the p-value ("it is zero") of its pseudo-values (..., S, N)."""
    parts = components(table)
    low, high = confidence(mean, parts, scale)
    return Effects(mean, low, high, p_value(mean, parts))
