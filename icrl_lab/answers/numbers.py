"""Numbers: the predictive distribution that a model holds over labels, in the task's units.

A closed set of labels (0-9, 00-99) is scored exactly by its trie. Numbers as they are written form an open set: a beam
walks the grammar of numbers over the tokens that can spell one, keeps the M most probable prefixes a level, and takes as
the probability that a number ends the probability that nothing follows which would go on with it. The kept mass stands
in the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from icrl_lab.answers.distributions import Answer
from icrl_lab.answers.formats import LabelFormat
from icrl_lab.answers.parse import parse_answers, parse_option
from icrl_lab.answers.tries import tries
from icrl_lab.errors import StudyError
from icrl_lab.prompts import cuts
from icrl_lab.prompts.cuts import Cut
from icrl_lab.prompts.tokens import plain
from icrl_lab.values import Rendered

PROBE = ("0", "7", "-3", "12", "0.5", "-0.25", "345", "-1234.5")  # every way in which a number can begin
_GOES_ON = re.compile(r"[ \n]?[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]*)?|\.[0-9]*(?:[eE][-+]?[0-9]*)?)?")
_WHOLE = re.compile(r"[ \n]?[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
FLOOR = 1e-6  # what is less probable than that is not followed
_SPELLS = re.compile(r"[ \n]?[-+0-9.eE]*")


def score_numbers(
    engine: Any,
    prompts: Sequence[Rendered],
    fmt: LabelFormat,
    tokenizer: Any,
    *,
    beam: int = 12,
    levels: int | None = None,
    mass: bool = True,
) -> list[Answer]:
    """The distribution over numbers in task units behind each prompt (as they come from `render_all`).

    "digit", "letter", "two-digit": exact over all labels. "as-written": `beam` prefixes a level, at most `levels` tokens (None: as many
    as the pool's longest label can have, and 9 at least); `mass` is the probability of all numbers that were followed to their
    end and are no larger than `fmt.largest`: an improbable exponent would rule the mean. Prompts whose probabilities cannot be used
    are failures.

    mass  False: nobody asks how probable all labels are together. Where each is one token it is then not computed, and NaN
    """
    if not prompts:
        return []
    if not fmt.closed:
        # a space of its own, a character a token, and the end
        most = max(9, fmt.longest + 2) if levels is None else levels
        return _Beam(engine, prompts, tokenizer, beam, most).run(fmt)
    found = tries(prompts, tokenizer, fmt.labels)
    among = found.single and not mass
    out = []
    for row in found.logprobs(engine, among=among):
        if np.isnan(row).any() or np.isposinf(row).any():
            out.append(Answer.failed("the model's probabilities are not finite"))
        elif np.isneginf(row).all():
            out.append(Answer.failed("no label has any probability", mass=0.0))
        else:
            raw = fmt.labels[int(np.argmax(row))]
            whole = float("nan") if among else float(np.exp(row).sum())
            out.append(Answer(fmt.values, np.exp(row - row.max()), whole, raw))
    return out


def decode_numbers(
    engine: Any,
    prompts: Sequence[Rendered],
    fmt: LabelFormat,
    tokenizer: Any,
    *,
    queries: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> list[list[Answer]]:
    """What the generated text says: for each prompt, an Answer for each of its queries (greedy at temperature 0).

    Each holds the one value that was read. What cannot be read is a failure with its text; no answer is dropped because
    its neighbour failed.
    """
    new = new_tokens(queries) if max_new_tokens is None else max_new_tokens
    labels = fmt.labels or PROBE
    out = []
    for text in generated(engine, prompts, tokenizer, labels if queries == 1 else (), temperature, seed, new):
        row = []
        for number in _said(text, fmt, queries):
            value = None if number is None else fmt.read(number)
            if value is None:
                why = (
                    f"no {'letter' if fmt.name == 'letter' else 'number'} in the text"
                    if number is None
                    else f"the number {number} is no label"
                )
                row.append(Answer.failed(why, text))
            else:
                row.append(Answer(np.array([value]), np.ones(1), raw=text))
        out.append(row)
    return out


def new_tokens(queries: int = 1) -> int:
    """Tokens that the text may have that answers so many queries."""
    return 24 if queries == 1 else 32 * queries


def _said(text: str, fmt: LabelFormat, queries: int) -> list[str | None]:
    """What a text answers to each query, as the format would write it: a letter, or a number's digits."""
    if fmt.name == "letter":
        if queries > 1:
            raise StudyError(
                "label_format 'letter' is read for one query a prompt; take 'digit', or queries_per_prompt = 1"
            )
        return [parse_option(text, fmt.labels)]
    return [None if number is None else f"{number:.17g}" for number in parse_answers(text, queries)]


def generated(
    engine: Any,
    prompts: Sequence[Rendered],
    tokenizer: Any,
    labels: Sequence[str],
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> list[str]:
    """The texts that follow the prompts. With `labels`, each prompt first ends where its labels part."""
    found = _cuts(prompts, tokenizer, labels) if labels else [None] * len(prompts)
    begun = [prompt if cut is None else cut.apply(prompt) for prompt, cut in zip(prompts, found)]
    lead = ["" if cut is None else tokenizer.decode(list(cut.lead)) for cut in found]
    ids = engine.generate(begun, max_new_tokens, temperature=temperature, seed=seed, stop_ids=_stops(engine, tokenizer))
    return [start + _first_turn(row, tokenizer) for start, row in zip(lead, ids)]


def _cuts(prompts: Sequence[Rendered], tokenizer: Any, labels: Sequence[str]) -> list[Cut]:
    """The cuts of prompts whose answer is open: nothing that would be dropped may say more than white space, since nothing puts it
    back. A StudyError of a layout in which a tokenizer joins a label with what stands before it (":-" is one token of many)."""
    found = cuts(prompts, tokenizer, labels)
    for prompt, cut in zip(prompts, found):
        gone = "".join(prompt.tokens[len(prompt) - cut.drop :]).strip()
        if gone and gone != tokenizer.decode(list(cut.lead)).strip():
            raise StudyError(
                f"the layout ends in {gone!r} right before an answer, and the model's tokenizer joins it with a minus sign or a label that "
                "follows; write a space between them, or take a closed label_format with decode = 'score'"
            )
    return found


def _stops(engine: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's, and those that the model's authors name for generation (the end of a turn)."""
    config = getattr(getattr(getattr(engine, "llm", None), "model", None), "generation_config", None)
    found: set[int] = set()
    for eos in (getattr(tokenizer, "eos_token_id", None), getattr(config, "eos_token_id", None)):
        found |= set(eos) if isinstance(eos, (list, tuple)) else set() if eos is None else {eos}
    return tuple(sorted(found))


def _first_turn(ids: Sequence[int], tokenizer: Any) -> str:
    """The text up to the first control token behind it: what a model writes after the end of its turn is no part of its answer."""
    special, part = set(getattr(tokenizer, "all_special_ids", ())), []
    for token in (*ids, None):
        if token is not None and token not in special:
            part.append(int(token))
            continue
        text = tokenizer.decode(part, skip_special_tokens=True) if part else ""
        if text.strip() or token is None:
            return text
        part = []
    raise AssertionError("unreachable: the end returns")


# ------------------------------------------------------------------------------- numbers as they are written


class _Beam:
    """The walk over the grammar of numbers, for all prompts at once; thrown away after `run`."""

    def __init__(self, engine: Any, prompts: Sequence[Rendered], tokenizer: Any, width: int, levels: int) -> None:
        self.engine, self.width, self.levels = engine, width, levels
        self.prompts = [cut.apply(p) for p, cut in zip(prompts, _cuts(prompts, tokenizer, PROBE))]
        self.ids, self.words = number_tokens(tokenizer)
        self.masks: dict[str, np.ndarray] = {}

    def run(self, fmt: LabelFormat) -> list[Answer]:
        live: list[list[tuple[float, str, tuple[int, ...]]]] = [[(1.0, "", ())] for _ in self.prompts]
        done: list[dict[str, float]] = [{} for _ in self.prompts]
        broken = [False] * len(self.prompts)
        for level in range(self.levels):
            asked = [(i, *item) for i, items in enumerate(live) for item in items]
            if not asked:
                break
            table = np.asarray(
                self.engine.next_token(
                    [self.prompts[i].extend(path) if path else self.prompts[i] for i, _, _, path in asked], self.ids
                ),
                np.float64,
            )
            grown: list[list[tuple[float, str, tuple[int, ...]]]] = [[] for _ in self.prompts]
            for (i, p, text, path), row in zip(asked, np.exp(table)):
                if not np.isfinite(row).all():
                    broken[i] = True
                    continue
                mask = self.mask(text)
                if _WHOLE.fullmatch(text):
                    name = text.strip()
                    done[i][name] = done[i].get(name, 0.0) + p * max(0.0, 1.0 - float(row[mask].sum()))
                if level < self.levels - 1:
                    best = np.flatnonzero(mask)
                    best = best[np.argsort(-row[best], kind="stable")[: self.width]]
                    grown[i] += [
                        (p * row[j], text + self.words[j], (*path, self.ids[j])) for j in best if p * row[j] > FLOOR
                    ]
            live = [
                [] if bad else sorted(g, key=lambda t: (-t[0], t[1]))[: self.width] for g, bad in zip(grown, broken)
            ]
        return [self.answer(d, bad, fmt) for d, bad in zip(done, broken)]

    def mask(self, text: str) -> np.ndarray:
        """Which tokens go on with what has been written; digits are alike, so there are few cases."""
        shape = re.sub("[0-9]+", "1", text)
        if shape not in self.masks:
            self.masks[shape] = np.array([_GOES_ON.fullmatch(shape + word) is not None for word in self.words])
        return self.masks[shape]

    def answer(self, done: dict[str, float], broken: bool, fmt: LabelFormat) -> Answer:
        if broken:
            return Answer.failed("the model's probabilities are not finite")
        read = [(fmt.read(text), p, text) for text, p in done.items() if p > FLOOR]
        kept = [(value, p, text) for value, p, text in read if value is not None and abs(value) <= fmt.largest]
        if not kept:
            return Answer.failed("no number has any probability", mass=0.0)
        values, where = np.unique([k[0] for k in kept], return_inverse=True)
        probs = np.bincount(where, [k[1] for k in kept], len(values))
        return Answer(values, probs, float(probs.sum()), max(kept, key=lambda k: k[1])[2])


def number_tokens(tokenizer: Any) -> tuple[list[int], list[str]]:
    """Ids of the tokens that can spell a part of a number, and what each writes (a word mark in front is a space)."""
    known = plain(tokenizer).known
    if "number tokens" not in known:
        spelt = (
            (i, (w or "").replace("Ġ", " ").replace("▁", " ").replace("Ċ", "\n"))
            for w, i in tokenizer.get_vocab().items()
        )
        known["number tokens"] = sorted((i, text) for i, text in spelt if text and _SPELLS.fullmatch(text))
    pairs = known["number tokens"]
    return [i for i, _ in pairs], [text for _, text in pairs]
