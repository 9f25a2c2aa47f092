"""Slot maps that move the pool's cloud of vectors onto the cloud of token embeddings.

From the coarsest to the finest: matching each dimension's mean and standard deviation (what the paper calls optimal
transport), the optimal map between two Gaussians, and entropic optimal transport between the two sets of points. Two
more reach the tokens without solving a transport problem: colouring the pool's axes with the vocabulary's covariance,
and mixing token embeddings by nearness to landmarks.
"""

from __future__ import annotations

import numpy as np

from icrl_lab.errors import DataError, MissingExtra, StudyError, nearest
from icrl_lab.maps.steps import run
from icrl_lab.maps.tokens import Tokens
from icrl_lab.maps.training_free import Fitted, constant_below, projector, rows, shrinkage_of, whitener
from icrl_lab.values import Step, Vectors

FORMS = ("corrected", "printed")
TARGETS = ("vocabulary", "text", "pca")  # of Sinkhorn


def match_moments(x: np.ndarray, mean: np.ndarray, std: np.ndarray, form: str = "corrected") -> Step:
    """The affine step that gives each dimension of the rows x (n, d) the standard deviation `std`.

    form  "corrected": and the mean `mean`; "printed": the paper's shift, mean - mean(x), which reaches it only where
          the scale is 1. A constant dimension gets scale 0 and becomes `mean` in both. Standard deviations are those
          of the population (divided by n).
    """
    if form not in FORMS:
        raise StudyError(f"form {form!r} of moment matching is unknown; {nearest(form, FORMS)}")
    x = x.astype(np.float64)
    m, s = x.mean(0), x.std(0)
    constant = s <= constant_below(m)
    scale = np.where(constant, 0, std / np.where(constant, 1, s))
    if form == "corrected":
        return Step("affine", {"centre": m, "scale": scale, "shift": mean})
    return Step("affine", {"scale": scale, "shift": np.where(constant, mean, mean - m)})


def _matched(pool: Vectors, seed: int, kind: str, mean, std, form: str = "corrected", **layers) -> list[Step]:
    steps = projector(kind, pool.width, len(mean), seed, **layers)
    return [*steps, match_moments(run(steps, rows(pool)), mean, std, form)]


def _weighted(target: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = weight @ target
    return mean, np.sqrt(weight @ (target - mean) ** 2)


def moments_text(
    pool: Vectors,
    tokens: Tokens,
    seed: int,
    form="corrected",
    rows="unique",
    projector="random-projection",
    width=None,
    depth=None,
    activation=None,
    init="normal",
) -> Fitted:
    """Moments of the tokens of the pool's texts; the paper's OT-Embed."""
    mean, std = _weighted(*tokens.rows("text", rows))
    layers = {"width": width, "depth": depth, "activation": activation, "init": init}
    return _matched(pool, seed, projector, mean, std, form, **layers), {}


def moments_pca(
    pool: Vectors,
    tokens: Tokens,
    seed: int,
    form="corrected",
    rows="unique",
    projector="random-projection",
    width=None,
    depth=None,
    activation=None,
    init="normal",
) -> Fitted:
    """Moments of the tokens of the pool's PCA strings; the paper's OT-PCA."""
    mean, std = _weighted(*tokens.rows("pca", rows))
    layers = {"width": width, "depth": depth, "activation": activation, "init": init}
    return _matched(pool, seed, projector, mean, std, form, **layers), {}


def moments_vocab(
    pool: Vectors,
    tokens: Tokens,
    seed: int,
    form="corrected",
    projector="wide-random",
    width=None,
    depth=None,
    activation=None,
    init="normal",
) -> Fitted:
    """Moments of the whole vocabulary, by default behind one wide random layer."""
    layers = {"width": width, "depth": depth, "activation": activation, "init": init}
    return _matched(pool, seed, projector, tokens.mean, tokens.std, form, **layers), {}


def _pot():
    try:
        import ot
    except ImportError:
        raise MissingExtra('Optimal transport needs the library POT: pip install "icrl-lab[transport]"') from None
    return ot


def _shrunk(covariance: np.ndarray, amount: float) -> np.ndarray:
    return (1 - amount) * covariance + amount * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def gaussian_ot(pool: Vectors, tokens: Tokens, seed: int, shrinkage="auto", init="normal") -> Fitted:
    """One wide random layer, then the optimal map between the Gaussians of the pool and of the vocabulary (Bures).

    The pool's covariance is shrunk ("auto": Ledoit and Wolf), for it has no full rank where n or d_fm is below d.
    """
    steps = projector("wide-random", pool.width, tokens.width, seed, init=init)
    x = run(steps, rows(pool)).astype(np.float64)
    centred = x - x.mean(0)
    if not np.trace(source := centred.T @ centred / len(x)):
        raise DataError(
            f"the {len(x)} pool vectors of {pool.space!r} are all equal; there is no covariance to transport"
        )
    amount = max(shrinkage_of(centred, shrinkage), 1e-6)
    matrix, shift = _pot().gaussian.bures_wasserstein_mapping(
        x.mean(0), tokens.mean, _shrunk(source, amount), _shrunk(tokens.covariance, 1e-6)
    )
    step = Step("linear", {"weight": matrix, "bias": np.ravel(shift)})
    return [*steps, step], {"shrinkage": amount}


def sinkhorn(
    pool: Vectors, tokens: Tokens, seed: int, of="vocabulary", targets=256, epsilon=3.0, init="normal"
) -> Fitted:
    """The entropic map onto token embeddings, behind one wide random layer matched to the targets' moments.

    of       "vocabulary": `targets` tokens drawn from it; "text" or "pca": up to `targets` of the pool's own
    epsilon  the regularisation, in standard deviations of the squared distances after taking off row and column means,
             which the dual potentials absorb (in high dimension the distances themselves are nearly equal)
    """
    ot = _pot()
    rng = np.random.default_rng([seed, 2])
    if of == "vocabulary":
        y = tokens.embeddings[rng.permutation(tokens.used)[:targets]].astype(np.float64)
    elif of in TARGETS:
        y = rng.permutation(tokens.rows(of, "unique")[0])[:targets]
    else:
        raise StudyError(f"targets of {of!r} are unknown; {nearest(str(of), TARGETS)}")
    steps = _matched(pool, seed, "wide-random", y.mean(0), y.std(0), init=init)
    x = run(steps, rows(pool)).astype(np.float64)
    cost = ot.dist(x, y)
    size = float(epsilon) * max(float((cost - cost.mean(0) - cost.mean(1, keepdims=True)).std()), 1e-30)
    marginals = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    with np.errstate(over="ignore"):  # early plans overflow at a small epsilon; the potentials do not
        _, log = ot.bregman.sinkhorn_log(*marginals, cost, size, numItermax=2000, stopThr=1e-6, warn=False, log=True)
        plan = np.exp(log["log_u"][:, None] + log["log_v"] - cost / size)
    error = max(np.abs(plan.sum(axis) - 1 / plan.shape[1 - axis]).sum() for axis in (0, 1))
    potential = size * (log["log_v"] - log["log_v"].mean())  # a constant drops out of the softmax; float32 keeps more
    step = Step("sinkhorn", {"targets": y, "potential": potential, "epsilon": np.array([size])})
    return [*steps, step], {"marginal_error": float(np.nan_to_num(error, posinf=1.0, nan=1.0))}


def vocab_covariance(pool: Vectors, tokens: Tokens, seed: int, shrinkage="auto", power=0.0, components=20) -> Fitted:
    """The pool's first axes, turned by a random rotation into d dimensions, coloured with the vocabulary's covariance.

    At power 1, shrinkage 0 and all components the slots get the vocabulary's mean and covariance where d_fm >= d. The
    default keeps the axes' own sizes: full whitening lifts the pool's noise to the level of its signal.
    """
    steps, chosen = whitener(pool, shrinkage, power, components)
    turn = projector("wide-random", pool.width, tokens.width, seed, init="orthogonal")
    value, axes = tokens.spectrum
    colour = (axes * np.sqrt(value)) @ axes.T
    return [*steps, *turn, Step("linear", {"weight": colour, "bias": tokens.mean})], chosen


def landmarks(
    pool: Vectors, tokens: Tokens, seed: int, landmarks=32, temperature=0.2, shrinkage="auto", power=0.0, components=20
) -> Fitted:
    """A mixture of token embeddings: each of some random pool items stands for a random token, and a vector is the
    mean of these tokens weighted by softmax(cosine to their items / temperature), the cosine along the pool's first axes.

    Items that are near share tokens, and every slot stays within the hull of what the model has read before.
    """
    steps, chosen = whitener(pool, shrinkage, power, components)
    steps = [*steps, Step("norm", {"norm": np.array([1.0])})]
    rng = np.random.default_rng([seed, 3])
    keys = rng.permutation(run(steps, rows(pool)))[:landmarks]
    values = tokens.embeddings[rng.choice(tokens.used, len(keys), replace=len(tokens.used) < len(keys))]
    arrays = {
        "targets": keys,
        "values": values,
        "potential": np.zeros(len(keys)),
        "epsilon": np.array([2 * temperature]),  # |x - y|^2 = 2 - 2 cosine
    }
    return [*steps, Step("sinkhorn", arrays)], chosen
