"""Answers: from the model's next-token probabilities, or its text, to numbers in the task's units and to options.

Owns how a label is written and read back, the exact or beamed distribution over labels, and the parsing of free text. It
asks an engine for `next_token` and `generate` and knows no more of it. What cannot be read is an answer whose `status`
says why: nothing is dropped here.

    formats.py        LabelFormat, `fit_format`: labels as written, from the pool's targets only
    distributions.py  Answer and Choice, `mix`
    tries.py          exact log-probabilities of a closed set of labels
    numbers.py        `score_numbers`, `decode_numbers`
    options.py        `score_options`, `decode_options`
    parse.py          text to number or option
"""

from __future__ import annotations

from icrl_lab.answers.distributions import Answer, Choice, mix
from icrl_lab.answers.formats import BINS, FORMATS, LabelFormat, fit_format
from icrl_lab.answers.numbers import decode_numbers, new_tokens, score_numbers
from icrl_lab.answers.options import decode_options, score_options
from icrl_lab.answers.parse import parse_answers, parse_number, parse_option
from icrl_lab.answers.tries import Tries, tries

__all__ = [
    "BINS",
    "FORMATS",
    "Answer",
    "Choice",
    "LabelFormat",
    "Tries",
    "decode_numbers",
    "decode_options",
    "fit_format",
    "mix",
    "new_tokens",
    "parse_answers",
    "parse_number",
    "parse_option",
    "score_numbers",
    "score_options",
    "tries",
]
