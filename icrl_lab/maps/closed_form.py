"""Maps and strings that are solved in closed form: ridge and soft labels, which see labels, and the PCA string, which does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np

from icrl_lab.errors import DataError, StudyError
from icrl_lab.maps.steps import pca
from icrl_lab.maps.tokens import Tokens, label_rows
from icrl_lab.maps.training_free import Fitted, rows, standardiser
from icrl_lab.values import Step, Vectors

Labels = Vectors | Mapping[str, str]


def ridge(
    pool: Vectors,
    tokens: Tokens,
    seed: int,
    labels: Labels | None = None,
    alpha: float | None = None,
    standardise: bool = False,
) -> Fitted:
    """The linear map from vectors onto the embeddings of their labels, with the smallest squared error and |W|^2.

    labels       item id -> label as written, or rows (m, d) in the model's space of m items of the pool; m is the label budget
    alpha        the penalty; None takes the one with the smallest exact leave-one-out error, over all dimensions,
                 from 25 values around the mean eigenvalue of the Gram matrix; all slots of an item are left out together
    standardise  bring each dimension to the pool's mean and deviation first (no label is needed for that), for
                 descriptors whose units differ
    """
    found = label_rows(labels, tokens) if isinstance(labels, Mapping) else labels
    if found is None or len(found) < 2:
        raise DataError("the ridge map needs at least two labelled items of the pool; pass labels={item id: label}")
    if found.space != tokens.space or found.values.ndim != 2 or found.width != tokens.width:
        raise DataError(
            f"ridge labels must be one row of {tokens.width} numbers an item in {tokens.space!r}, not {found!r}"
        )
    return _regression(pool, found.ids, found.values, alpha, standardise)


def soft_label(
    pool: Vectors,
    tokens: Tokens,
    seed: int,
    labels: Labels | None = None,
    alpha: float | None = None,
    standardise: bool = False,
    turned: bool = False,
) -> Fitted:
    """Where ridge regression expects an item among the labels, as a point between two labels' embeddings.

    Labels of a closed set of numbers have an order: the b-th stands at place b. The regression is onto the places of the labels that
    it may see; the slot lies on the line through the embeddings of all, in their order, between the two nearest, and at an end beyond it.

    labels, alpha, standardise  as those of `ridge`; labels as written alone, since a row has no place
    turned  turn the line to directions drawn from the seed: its lengths and angles stay, but no slot lies at a label any more,
            so that what a slot means can only be read from the shots
    """
    if not isinstance(labels, Mapping) or len(labels) < 2:
        raise DataError("soft labels need at least two labelled items of the pool; pass labels={item id: label}")
    known = tokens.label_ids or {}
    label_rows(labels, tokens)  # a label without tokens is told of by its item
    place = {label: float(i) for i, label in enumerate(known)}
    steps, chosen = _regression(
        pool, tuple(labels), np.array([[place[b]] for b in labels.values()]), alpha, standardise
    )
    points = label_rows({label: label for label in known}, tokens).values.astype(np.float64)
    if turned:
        points = _signed(points.T)[1].T @ _signed(np.random.default_rng([seed, 4]).standard_normal(points.T.shape))[0].T
    return [*steps, Step("line", {"points": points})], chosen


def _signed(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x = q r with orthonormal columns q and a positive diagonal of r: the only such pair, whatever the library's signs, and q of
    a Gaussian x is uniform."""
    q, r = np.linalg.qr(x)
    sign = np.where(np.diag(r) < 0, -1.0, 1.0)
    return q * sign, r * sign[:, None]


def _regression(
    pool: Vectors, ids: Sequence[str], y: np.ndarray, alpha: float | None, standardise: bool
) -> tuple[list[Step], dict]:
    """Ridge regression from the vectors of some items (each of their slots) onto y (items, m), as steps, and its penalty."""
    from sklearn.linear_model import RidgeCV

    steps = [standardiser(rows(pool))] if standardise else []
    x = rows(pool.take(ids))
    y = np.repeat(y.astype(np.float64), pool.slots, axis=0)
    if steps:
        x = (x - steps[0].arrays["centre"]) * steps[0].arrays["scale"]
    centred = x - x.mean(0)
    size = max(float((centred**2).sum()) / len(x), 1e-12)
    grid = size * np.logspace(-5, 3, 25) if alpha is None else np.array([float(alpha)])
    if pool.slots > 1 and alpha is None:
        grid = grid[[int(np.argmin(_left_out_errors(centred, y, grid, pool.slots)))]]
    fit = RidgeCV(alphas=grid).fit(centred, y)
    arrays = {"centre": x.mean(0), "scale": np.ones(x.shape[1]), "shift": np.zeros(x.shape[1])}
    steps += [
        Step("affine", arrays),
        Step("linear", {"weight": np.atleast_2d(fit.coef_).T, "bias": np.atleast_1d(fit.intercept_)}),
    ]
    return steps, {"alpha": float(fit.alpha_)}


def _left_out_errors(x: np.ndarray, y: np.ndarray, alphas: np.ndarray, slots: int) -> list[float]:
    """The squared error of ridge regression with an intercept on items that it was not fitted on, for each penalty.

    Item i's rows are the i-th `slots` of centred x (n, d) and of y (n, m). Their residuals without them are (I - H_ii)^-1 times
    those with them, where H is the hat matrix: leave-one-out for rows in blocks.
    """
    left, size, _ = np.linalg.svd(x, full_matrices=False)
    y = y - y.mean(0)
    blocks = np.arange(len(x)).reshape(-1, slots)
    errors = []
    for alpha in alphas:
        hat = (left * (size**2 / (size**2 + alpha))) @ left.T + 1 / len(x)
        own = np.eye(slots) - hat[blocks[:, :, None], blocks[:, None, :]]
        errors.append(float((np.linalg.solve(own, (y - hat @ y)[blocks]) ** 2).sum()))
    return errors


def fit_pca(pool: Vectors, dims: int) -> Step:
    """The pool's mean and its first `dims` principal axes; fewer where the pool spans fewer. Signs are fixed: the
    largest entry of an axis is positive."""
    if not isinstance(dims, Integral) or dims < 1:
        raise StudyError(f"dims must be a whole number of at least 1, not {dims!r}")
    x = rows(pool)
    mean = x.mean(0)
    _, size, axes = np.linalg.svd(x - mean, full_matrices=False)
    axes = axes[size > 1e-6 * (size[0] + np.abs(mean).max() * len(x) ** 0.5)][:dims]
    if not len(axes):
        raise DataError(f"the {len(x)} pool vectors of {pool.space!r} are all equal; they have no principal axis")
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(1)]
    return Step("pca", {"mean": mean, "components": axes * np.sign(largest)[:, None]})


def _written(number: float) -> str:
    text = np.format_float_positional(float(f"{number:.3g}"), trim="-")
    return "0" if text in ("-0", "0") else text


def pca_text(pool: Vectors, vectors: Vectors, dims: int = 20) -> list[str]:
    """Each item as its principal components in brackets, "[1.23, -0.456, ...]", at 3 significant figures, no exponents.

    The axes come from the pool. A component below 1e-6 of the pool's largest deviation is rounding and written as 0.
    """
    step = fit_pca(pool, dims)
    if vectors.space != pool.space:
        raise DataError(f"the PCA was fitted in {pool.space!r}; vectors of {vectors.space!r} have no coordinates there")
    floor = 1e-6 * pca(rows(pool), step.arrays).std(0).max()
    coordinates = pca(vectors.values.astype(np.float64), step.arrays).reshape(len(vectors), -1)
    coordinates = np.where(np.abs(coordinates) < floor, 0, coordinates)
    return ["[" + ", ".join(map(_written, row)) + "]" for row in coordinates]
