"""Slot maps that look at no token: padding, random projectors, centring and whitening of the pool.

A fitter takes the pool's vectors, the model's tokens, a seed and its options, and returns steps and what it chose
(numbers for the recipe). The same seed draws the same projector in every map, so that two maps differ in what they
are named after and in nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from icrl_lab.errors import DataError, StudyError, nearest
from icrl_lab.maps.tokens import Tokens
from icrl_lab.values import Step, Vectors

Fitted = tuple[list[Step], dict[str, Any]]


def rows(pool: Vectors) -> np.ndarray:
    """(n * slots, d) float64: every vector of the pool is one row."""
    return pool.values.reshape(-1, pool.width).astype(np.float64)


# ----------------------------------------------------------------------------------------- projectors


def _orthogonal(rng: np.random.Generator, n_in: int, n_out: int) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((max(n_in, n_out), min(n_in, n_out))))
    q = q * np.sign(np.diag(r))  # without the signs the draw is not uniform over rotations
    return q if n_in >= n_out else q.T


INITS = {  # (rng, n_in, n_out, std) -> (n_in, n_out)
    "normal": lambda rng, i, o, std: std * rng.standard_normal((i, o)),
    "uniform": lambda rng, i, o, std: rng.uniform(-1, 1, (i, o)) / np.sqrt(i),
    "xavier": lambda rng, i, o, std: np.sqrt(2 / (i + o)) * rng.standard_normal((i, o)),
    "kaiming": lambda rng, i, o, std: np.sqrt(2 / i) * rng.standard_normal((i, o)),
    "orthogonal": lambda rng, i, o, std: _orthogonal(rng, i, o),
}
ACTIVATIONS = (None, "relu", "gelu", "tanh")
PROJECTORS = ("random-projection", "wide-random")


def projector(
    kind: str,
    n_in: int,
    n_out: int,
    seed: int,
    *,
    width: int | None = None,
    depth: int | None = None,
    activation: str | None = None,
    init: str = "normal",
    std: float | None = None,
) -> list[Step]:
    """Random linear layers without bias, n_in -> width -> ... -> n_out, the activation between two of them.

    kind  "random-projection": `depth` layers (3) through `width` (64) with N(0, 0.02^2) weights, as published;
          "wide-random": one layer with N(0, 1/n_out) weights, which keeps norms; it has no width, depth or activation
    std   of "normal" weights, where another is wanted
    """
    if kind not in PROJECTORS:
        raise StudyError(f"projector {kind!r} is unknown; {nearest(kind, PROJECTORS)}")
    if init not in INITS:
        raise StudyError(f"initialisation {init!r} is unknown; {nearest(init, INITS)}")
    if activation not in ACTIVATIONS:
        raise StudyError(f"activation {activation!r} is unknown; {nearest(str(activation), ACTIVATIONS)}")
    if kind == "wide-random":
        if not width is depth is activation is None:
            raise StudyError(
                "a wide random layer has no width, depth or activation; choose projector='random-projection'"
            )
        sizes, std = [n_in, n_out], n_out**-0.5 if std is None else std
    else:
        width, depth = 64 if width is None else width, 3 if depth is None else depth
        sizes, std = [n_in, *[width] * (depth - 1), n_out], 0.02 if std is None else std
    rng = np.random.default_rng([seed, 1])
    steps: list[Step] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        if i and activation:
            steps.append(Step(activation))
        steps.append(Step("linear", {"weight": INITS[init](rng, a, b, std)}))
    return steps


def random_projection(
    pool: Vectors, tokens: Tokens, seed: int, width=64, depth=3, activation=None, init="normal", std=0.02
) -> Fitted:
    """The published projector d_fm -> 64 -> 64 -> d; `width` sweeps its rank."""
    steps = projector(
        "random-projection",
        pool.width,
        tokens.width,
        seed,
        width=width,
        depth=depth,
        activation=activation,
        init=init,
        std=std,
    )
    return steps, {}


def wide_random(pool: Vectors, tokens: Tokens, seed: int, init="normal") -> Fitted:
    """One random layer d_fm -> d, which keeps norms and cosines up to O(1 / sqrt(d))."""
    return projector("wide-random", pool.width, tokens.width, seed, init=init), {}


def _bytes(item: Any) -> bytes:
    if isinstance(item, np.ndarray):
        return f"{item.dtype.str}{item.shape}".encode() + np.ascontiguousarray(item).tobytes()
    return item if isinstance(item, bytes) else str(item).encode()


def hash_vectors(items: Sequence[Any], ids: Sequence[str], width: int) -> Vectors:
    """Uniform(-1, 1)^width for each item, seeded by the SHA-256 of its string: an identity code without content."""
    draws = [
        np.random.default_rng(int.from_bytes(hashlib.sha256(_bytes(item)).digest(), "big")).uniform(-1, 1, width)
        for item in items
    ]
    return Vectors(np.array(draws).reshape(len(draws), width), tuple(ids), f"hash/{width}")


def random_noise(
    pool: Vectors, tokens: Tokens, seed: int, width=64, depth=3, activation=None, init="normal", std=0.02
) -> Fitted:
    """The published projector on an identity code; the pool must come from `hash_vectors`."""
    if not pool.space.startswith("hash/"):
        raise DataError(f"the map random-noise reads hash vectors (maps.hash_vectors), not vectors of {pool.space!r}")
    return random_projection(pool, tokens, seed, width, depth, activation, init, std)


# ----------------------------------------------------------------------------------------- geometry of the pool


def zero_pad(pool: Vectors, tokens: Tokens, seed: int) -> Fitted:
    """The vector with zeros behind it, cut into several slots where it is longer than d; an isometry."""
    return [Step("pad", {"width": np.array([tokens.width])})], {}


def identity(pool: Vectors, tokens: Tokens, seed: int) -> Fitted:
    """The vector as it is; it must already have the model's width."""
    if pool.width != tokens.width:
        raise DataError(
            f"the identity needs vectors as wide as {tokens.space!r}: {tokens.width}, not the {pool.width} of {pool.space!r}"
        )
    return [], {}


def centre(pool: Vectors, tokens: Tokens, seed: int, init="normal") -> Fitted:
    """The pool's mean taken off, then one wide random layer."""
    ones = np.ones(pool.width)
    step = Step("affine", {"centre": rows(pool).mean(0), "scale": ones, "shift": 0 * ones})
    return [step, *projector("wide-random", pool.width, tokens.width, seed, init=init)], {}


def standardiser(x: np.ndarray) -> Step:
    """(x - mean) / std per dimension of the rows x; a constant dimension becomes 0."""
    mean, std = x.mean(0), x.std(0)
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > constant_below(mean))
    return Step("affine", {"centre": mean, "scale": scale, "shift": 0 * mean})


def constant_below(mean: np.ndarray) -> np.ndarray:
    """The standard deviation under which a float32 dimension of this mean is constant: what is left is rounding."""
    return 1e-6 * np.abs(mean) + 1e-30


def shrinkage_of(x: np.ndarray, shrinkage: float | str) -> float:
    """A shrinkage in [0, 1]: as given, or "auto", Ledoit and Wolf's for the rows x (their mean must be 0)."""
    if shrinkage == "auto":
        from sklearn.covariance import ledoit_wolf_shrinkage

        return float(ledoit_wolf_shrinkage(x, assume_centered=True))
    if not isinstance(shrinkage, (int, float)) or not 0 <= shrinkage <= 1:
        raise StudyError(f'shrinkage must be "auto" or a number from 0 to 1, not {shrinkage!r}')
    return float(shrinkage)


def whitener(
    pool: Vectors, shrinkage: float | str, power: float, components: int | None
) -> tuple[list[Step], dict[str, float]]:
    """Two steps: standardise, then coordinates along the pool's first axes, each divided by l^(power/2).

    shrinkage   of the correlation matrix, whose eigenvalues l then are; "auto" is Ledoit and Wolf's
    power       1 whitens: at shrinkage 0 the pool's covariance becomes the identity on the directions it spans, and
                nothing is left of the others; 0 keeps the axes' own sizes; below 0 the first axes count for more
    components  axes kept; None keeps all
    """
    first = standardiser(rows(pool))
    z = (rows(pool) - first.arrays["centre"]) * first.arrays["scale"]
    amount = shrinkage_of(z, shrinkage)
    value, axes = np.linalg.eigh(z.T @ z / len(z))
    value, axes = np.maximum(value[::-1], 0), axes[:, ::-1]
    value = (1 - amount) * value + amount * value.mean()
    keep = (value > 1e-9 * max(value[0], 1e-30)) & (np.arange(len(value)) < (components or len(value)))
    gain = np.where(keep, np.where(keep, value, 1) ** (-power / 2), 0)
    return [first, Step("linear", {"weight": axes * gain})], {"shrinkage": amount}


def whiten(
    pool: Vectors, tokens: Tokens, seed: int, shrinkage="auto", power=1.0, components=None, init="normal"
) -> Fitted:
    """Whitening of the pool (power 1: full; 0: only standardised), then one wide random layer."""
    steps, chosen = whitener(pool, shrinkage, power, components)
    return [*steps, *projector("wide-random", pool.width, tokens.width, seed, init=init)], chosen
