"""The pure functions a slot map is made of.

Each takes x, float32 of shape (..., n_in), and the step's arrays, and returns float32 of shape (..., n_out): it works on
the last axis, so that one vector an item and several need no case of their own. Only `pad` adds an axis, when one
vector fills several slots. A step knows no name, no space and no seed; what it needs stands in its arrays, which is
why a saved map applies to the last bit as the fitted one did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def linear(x: np.ndarray, a: Arrays) -> np.ndarray:
    """x @ weight + bias; weight (n_in, n_out), bias (n_out,) or absent."""
    out = x @ a["weight"]
    return out + a["bias"] if "bias" in a else out


def affine(x: np.ndarray, a: Arrays) -> np.ndarray:
    """(x - centre) * scale + shift per dimension; `centre` may be absent. Subtracting first loses no digits to a large mean."""
    return (x - a["centre"] if "centre" in a else x) * a["scale"] + a["shift"]


def pca(x: np.ndarray, a: Arrays) -> np.ndarray:
    """(x - mean) @ components.T; components (m, n_in), rows orthonormal."""
    return (x - a["mean"]) @ a["components"].T


def relu(x: np.ndarray, a: Arrays) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, 0)


def gelu(x: np.ndarray, a: Arrays) -> np.ndarray:
    """x times the normal distribution function of x (the exact form, with erf)."""
    from scipy.special import erf

    return (0.5 * x * (1 + erf(x / np.sqrt(2)))).astype(np.float32)


def tanh(x: np.ndarray, a: Arrays) -> np.ndarray:
    """Hyperbolic tangent."""
    return np.tanh(x)


def pad(x: np.ndarray, a: Arrays) -> np.ndarray:
    """Zeros behind x up to `width`; a longer x is cut into ceil(n_in / width) slots: (..., slots, width)."""
    width = int(a["width"].item())
    slots = -(-x.shape[-1] // width)
    out = np.zeros((*x.shape[:-1], slots * width), np.float32)
    out[..., : x.shape[-1]] = x
    return out if slots == 1 else out.reshape(*x.shape[:-1], slots, width)


def row_normalise(x: np.ndarray, a: Arrays) -> np.ndarray:
    """(v - mean(v)) * sqrt(variance / var(v)) + mean, each row v by itself; a constant row becomes `mean`.

    Moments are taken in float64: a square of what half precision can hold overflows half precision.
    """
    v = x.astype(np.float64)
    v = v - v.mean(-1, keepdims=True)
    var = (v**2).mean(-1, keepdims=True)
    gain = np.sqrt(np.divide(a["variance"], var, out=np.zeros_like(var), where=var > 0))
    return (v * gain + a["mean"]).astype(np.float32)


def norm(x: np.ndarray, a: Arrays) -> np.ndarray:
    """Each row at L2 norm `norm`, or, where `together` is there, the rows of the last axis but one at it in the root mean square; a zero
    row stays zero."""
    together = "together" in a
    wanted = a["norm"] * (x.shape[-2] ** 0.5 if together else 1)
    length = np.linalg.norm(x.astype(np.float64), axis=(-2, -1) if together else -1, keepdims=True)
    return (x * np.divide(wanted, length, out=np.zeros_like(length), where=length > 0)).astype(np.float32)


def sinkhorn(x: np.ndarray, a: Arrays) -> np.ndarray:
    """The entropic map T(x) = sum_j w_j values_j with w = softmax_j((potential_j - |x - targets_j|^2) / epsilon).

    targets (m, n_in); values (m, n_out), by default the targets. Defined for any x, not only those it was fitted on
    (Pooladian and Niles-Weed, arXiv 2109.12004). |x|^2 is the same for every j and drops out of the softmax.
    """
    y = a["targets"].astype(np.float64)
    score = (a["potential"] - (y**2).sum(-1) + 2 * (x.astype(np.float64) @ y.T)) / a["epsilon"]
    weight = np.exp(score - score.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    return (weight @ a.get("values", y)).astype(np.float32)


def line(x: np.ndarray, a: Arrays) -> np.ndarray:
    """The point at place x on the line through points (m, n_out), which stand at 0, 1, ..., m - 1; x (..., 1), at an end beyond it."""
    points, last = a["points"], len(a["points"]) - 1
    at = np.clip(x[..., 0].astype(np.float64), 0, last)
    low = np.minimum(at.astype(np.int64), max(last - 1, 0))
    part = (at - low)[..., None]
    return ((1 - part) * points[low] + part * points[np.minimum(low + 1, last)]).astype(np.float32)


STEPS: dict[str, Callable[[np.ndarray, Arrays], np.ndarray]] = {
    "linear": linear,
    "affine": affine,
    "pca": pca,
    "relu": relu,
    "gelu": gelu,
    "tanh": tanh,
    "pad": pad,
    "row-normalise": row_normalise,
    "norm": norm,
    "sinkhorn": sinkhorn,
    "line": line,
}


def run(steps, x: np.ndarray) -> np.ndarray:
    """x through the steps, one after the other, in float32."""
    x = np.asarray(x, np.float32)
    for step in steps:
        x = STEPS[step.op](x, step.arrays)
    return x
