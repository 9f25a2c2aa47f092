"""Attribution by captum: which parts of a prompt an outcome rests on.

Three of captum's methods behind plain functions. Two see the model as a game: players (the shots' vectors, spans of text) are
there or replaced by a baseline, and only outcomes come back, numpy in and out; the engine behind it shares what coalitions have in
common. Integrated gradients go through the model's own forward pass. What must hold is checked where it is used: attributions
add up to the change of the outcome, exactly for Shapley's values and as well as the path is sampled for gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from icrl_lab.errors import MissingExtra
from icrl_lab.stats.metrics import Array

if TYPE_CHECKING:
    import torch

    from icrl_lab.models import LLM
    from icrl_lab.values import Outcome

# (m, players) truths who is there, and (m,) which example each row plays -> (m,) outcomes
Value = Callable[[Array, Array], Array]
TOLERANCE = 0.02  # of what is attributed in all: where a path's sum misses more, it gets more steps
MOST = 4  # times as many steps as asked for


def shapley(value: Value, examples: int, players: int, permutations: int, seed: int = 0) -> Array:
    """(examples, players) Shapley values by sampling orders in which the players come (Castro et al. 2009, captum's).

    Each order's contributions add up to value(all) - value(none), and so does their mean.
    """
    import torch

    method = _captum().ShapleyValueSampling(_forward(value))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _attribute(method, examples, players, n_samples=permutations)


def ablation(value: Value, examples: int, players: int) -> Array:
    """(examples, players) value(all) - value(all but one) for each player (captum's FeatureAblation)."""
    return _attribute(_captum().FeatureAblation(_forward(value)), examples, players)


def _attribute(method: Any, examples: int, players: int, **given: Any) -> Array:
    import torch

    found = method.attribute(
        torch.ones(examples, players, dtype=torch.float64),
        baselines=0.0,
        additional_forward_args=(torch.arange(examples),),
        feature_mask=torch.arange(players)[None],
        perturbations_per_eval=players,
        **given,
    )
    return found.double().numpy()


def _forward(value: Value) -> Callable[..., torch.Tensor]:
    def forward(present: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.asarray(value(present.numpy() > 0.5, which.numpy()), np.float64))

    return forward


@dataclass(frozen=True, eq=False)
class Path:
    """Integrated gradients of one prompt.

    tokens   (T,) attribution of each token, in the outcome's units
    change   outcome of the prompt less that of the baseline
    missed   sum of the attributions less `change`
    steps    points of the path at which a gradient was taken
    """

    tokens: Array
    change: float
    missed: float
    steps: int


def integrated(
    llm: LLM, embeds: torch.Tensor, base: torch.Tensor, outcome: Outcome, steps: int = 16, batch: int = 4
) -> Path:
    """Integrated gradients (Sundararajan et al. 2017, captum's) from embeddings `base` to `embeds`, both (T, d) float32.

    The path is sampled at `steps` Gauss-Legendre nodes, `batch` of them at a time; twice as many, to MOST times, where the sum misses
    the change of the outcome by more than TOLERANCE of all that is attributed.
    """
    import torch

    from icrl_lab.engine.gradients import outcomes

    def forward(x: torch.Tensor) -> torch.Tensor:
        return outcomes(llm, x.to(llm.model.dtype), outcome)

    method = _captum().IntegratedGradients(forward)
    with torch.no_grad():
        here, there = (float(forward(x[None])[0]) for x in (embeds, base))
    inputs, taken = embeds[None].detach().requires_grad_(True), steps
    while True:
        found = method.attribute(inputs, baselines=base[None], n_steps=taken, internal_batch_size=batch)
        tokens = found[0].detach().double().sum(-1).cpu().numpy()
        missed = float(tokens.sum()) - (here - there)
        if abs(missed) <= TOLERANCE * np.abs(tokens).sum() or 2 * taken > MOST * steps:
            return Path(tokens, here - there, missed, taken)
        taken *= 2


def _captum() -> Any:
    try:
        import captum.attr
    except ImportError:
        raise MissingExtra('attribution needs captum: pip install "icrl-lab[probes]"') from None
    return captum.attr
