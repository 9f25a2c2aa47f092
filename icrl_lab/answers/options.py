"""Classes as options: the exact probability of each label's text, if wished per token or against a content-free prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from icrl_lab.answers.distributions import Choice
from icrl_lab.answers.numbers import generated, new_tokens
from icrl_lab.answers.parse import parse_option
from icrl_lab.answers.tries import tries
from icrl_lab.values import Rendered


def score_options(
    engine: Any,
    prompts: Sequence[Rendered],
    options: Sequence[str],
    tokenizer: Any,
    *,
    end: str = "\n",
    per_token: bool = False,
    content_free: Sequence[Rendered] = (),
    mass: bool = True,
) -> list[Choice]:
    """The distribution over the options (the labels as the shots write them) behind each prompt.

    end           the text behind a label, scored only where one option begins another
    per_token     divide a label's log-probability by its tokens
    content_free  prompts whose query says nothing; the mean log-probability behind them is subtracted (contextual
                  calibration, Zhao et al. 2021)

    `mass` of a Choice is the probability of all options together, before any of that; with `mass` False it is NaN where each
    is one token, and the others are not computed.
    """
    options = tuple(options)
    if not prompts:
        return []
    found = tries([*prompts, *content_free], tokenizer, options, end)
    among = found.single and not mass
    logp = found.logprobs(engine, among=among)
    score = logp / found.length if per_token else logp
    n = len(prompts)
    prior = score[n:].mean(axis=0) if content_free else np.zeros(len(options))
    whole = np.full(n, np.nan) if among else np.exp(logp[:n]).sum(1)
    return [_choice(options, score[i] - prior, float(whole[i])) for i in range(n)]


def _choice(options: tuple[str, ...], score: np.ndarray, mass: float) -> Choice:
    if np.isnan(score).any() or np.isposinf(score).any():
        return Choice.failed(options, "the model's probabilities are not finite")
    if np.isneginf(score).all():
        return Choice.failed(options, "no option has any probability", mass=mass)
    probs = np.exp(score - score.max())
    return Choice(options, probs, mass, options[int(np.argmax(probs))])


def decode_options(
    engine: Any,
    prompts: Sequence[Rendered],
    options: Sequence[str],
    tokenizer: Any,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> list[Choice]:
    """The option that the generated text names; text that names none, or several, is a failure."""
    options = tuple(options)
    out = []
    new = new_tokens() if max_new_tokens is None else max_new_tokens
    for text in generated(engine, prompts, tokenizer, options, temperature, seed, new):
        named = parse_option(text, options)
        hot = np.array([o == named for o in options], np.float64)
        out.append(
            Choice.failed(options, "no option in the text", text) if named is None else Choice(options, hot, raw=text)
        )
    return out
