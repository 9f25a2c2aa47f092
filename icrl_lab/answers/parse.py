"""From a model's text to a number or an option, or to None.

A number is taken only where the answer stands: on the first line from the answer's start, so that a shot the model goes
on to echo is never read. Where a line holds several numbers and does not say which is the answer, there is none: a
failure that is counted is better than a number that was guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_HYPHENS = dict.fromkeys(map(ord, "\u2010\u2011"), "-")
_PLAIN = _HYPHENS | str.maketrans(
    {**dict.fromkeys("−–—‒﹣－", "-"), "＋": "+", **dict.fromkeys("\u00a0\u202f\u2009", " ")}
)
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_DECOR = "*_`$~[](){}<>\"'“”‘’|# \t"
# digits with thousands commas, plain digits, or a bare fraction; then an exponent
_BODY = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_POWER = r"(?:[eE][-+]?[0-9]+|[ ]?(?:[xX×·⋅*]|\\times|\\cdot)[ ]?10[ ]?(?:\^|\*\*)[ ]?[{(]?(?P<power>[-+]?[0-9]+)[)}]?)"
# nothing beside it that would make it part of a word, a formula, a fraction, a range or another number
_NUMBER = re.compile(rf"(?<![\w.,^/+-])(?P<sign>[-+] ?)?(?P<body>{_BODY})(?P<exp>{_POWER})?(?![\w^]|[.,/-][0-9])")
_SAYS = re.compile(
    r"(?:=|:|≈|~|\bis|\bbe|\babout|\baround|\bat|\bapproximately|\bapprox\.|\bestimated?|\bpredict(?:ed)?)[\s*_`$~\[\](){}<>\"'|]*$",
    re.IGNORECASE,
)
_END = r"[*_`\" \t]*[:=][*_`\" \t]*"  # a colon, perhaps in bold
_NUMBERED = re.compile(rf"(?<!\w)answer[ \t]*#?[ \t]*([0-9]{{1,4}}){_END}", re.IGNORECASE)
_NAMED = re.compile(rf"(?<!\w)answer(?:[ \t]*#?[ \t]*[0-9]{{1,4}})?{_END}", re.IGNORECASE)
_FINAL = re.compile(rf"(?<!\w)(?:final[ \t]+answer|answer[ \t]*#?[ \t]*1){_END}", re.IGNORECASE)
_LIST = re.compile(r"^[ \t]*([0-9]{1,4})[.):][ \t]+(?=\S)", re.MULTILINE)
_ARROW = re.compile("->|→|=>")
_LISTED = re.compile(r"[ \t]*,[ \t]*[-+.0-9]")  # a number that is one of several
# or the beginning of a range (a unit may stand between), of a sum, of a number in groups, of a power of ten
_GOES_ON = re.compile(
    r"[ \t]*%?[ \t]*(?:(?:to|or|and|through|plus|minus|times|over|out of)\b|[-+*x×=;|:/…]|\.\.+)[ \t]*[-+.]?[0-9]"
    r"|[ \t]*[^\W\d_][\w/^·%]*[ \t]+(?:to|or|and|through)[ \t]+[-+.]?[0-9]"
    r"|[ \t][0-9]{3}(?![0-9])|['’][0-9]|[ ]+(?:[eE][-+]?[0-9]|10[ ]?(?:\^|\*\*))",
    re.IGNORECASE,
)


def parse_number(text: str) -> float | None:
    """The number that the text answers with, or None.

    Reads "+0.5", ".5", "1e-3", a Unicode minus, bold and bracketed numbers, thousands commas, a number with a unit and
    "5 x 10^-3". Only the first line counts, behind "Answer:" if that stands on it; where it has no number, what follows
    "Final answer:" or "Answer 1:", which no shot says.
    """
    text = _ascii(text)
    value = _first_line(_begun(text))
    final = _FINAL.search(text) if value is None else None
    return _first_line(text[final.end() :]) if final else value


def parse_answers(text: str, n: int) -> list[float | None]:
    """The numbers of n questions from "Answer 1: ..." to "Answer n: ..."; None for each that is missing or unreadable.

    Text that numbers nothing answers a single question; a list "1. ..." of exactly n lines answers n.
    """
    text = _ascii(text)
    marks = list(_NUMBERED.finditer(text))
    if not marks:
        lines = list(_LIST.finditer(text))
        if n > 1 and [int(m.group(1)) for m in lines] == list(range(1, n + 1)):
            marks = lines
        else:
            return [parse_number(text)] if n == 1 else [None] * n
    out: list[float | None] = [None] * n
    if n and int(marks[0].group(1)) != 1:
        out[0] = _first_line(text[: marks[0].start()])  # the prompt itself opened answer 1
    for mark, after in zip(marks, [*marks[1:], None]):
        which = int(mark.group(1)) - 1
        if (
            0 <= which < n and out[which] is None
        ):  # a format that is echoed first holds no number; the first number counts
            out[which] = _first_line(text[mark.end() : after.start() if after else None])
    return out


def _ascii(text: str) -> str:
    """Minus signs and spaces as ASCII writes them, and 10⁻³ as 10^-3."""
    text = re.sub("(?<=10)[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m.group().translate(_SUPER), text)
    return text.translate(_PLAIN)


def _begun(text: str) -> str:
    """The text from where its first line says "Answer:", if it does."""
    stripped = text.lstrip()
    mark = _NAMED.search(stripped.partition("\n")[0])
    return stripped[mark.end() :] if mark else text


def _first_line(text: str) -> float | None:
    head, _, rest = text.lstrip(" \t*_`").partition("\n")
    if head.strip(_DECOR):
        return _of_line(head)
    rest = (
        rest.lstrip().partition("\n")[0].strip(_DECOR + ".")
    )  # an empty line first: only a line that is a number and no more
    found = _NUMBER.fullmatch(rest)
    return _value(found) if found else None


def _of_line(line: str) -> float | None:
    line = line.split("\r")[0]
    found = list(_NUMBER.finditer(line))
    if not found:
        return None
    if not line[: found[0].start()].strip(_DECOR):  # the line begins with it
        rest = line[found[0].end() :]
        if _LISTED.match(rest) or _GOES_ON.match(rest) or _ARROW.search(rest):  # a vector as text, or an echoed shot
            return None
        return _value(found[0])
    said = [m for m in found if _SAYS.search(line[: m.start()])]  # "on the 20 examples" says nothing
    values = {None if _GOES_ON.match(line[m.end() :]) else _value(m) for m in said}
    return values.pop() if len(values) == 1 else None


def _value(match: re.Match[str]) -> float | None:
    sign = -1.0 if (match["sign"] or "").startswith("-") else 1.0
    body, exponent = match["body"].replace(",", ""), match["exp"] or ""
    power = match["power"] if match["power"] is not None else exponent.lstrip("eE")
    try:
        value = sign * float(f"{body}e{power}" if power else body)
    except (ValueError, OverflowError):
        return None
    return value if abs(value) < float("inf") else None


def parse_option(text: str, options: Sequence[str]) -> str | None:
    """The one option that the text answers with, or None.

    An option is matched as a whole word, never inside one ("Based on" is not B), nor in a number ("0.95" is not 0), nor where it is
    denied ("not toxic" is not toxic). A single letter counts only where it stands as an answer: alone, in brackets, before a
    mark of punctuation, or after "answer is".
    """
    text, known = text.translate(_HYPHENS), {o.translate(_HYPHENS): o for o in options}
    found = _option(_begun(text), tuple(known))
    final = _FINAL.search(text) if found is None else None
    found = _option(text[final.end() :], tuple(known)) if final else found
    return None if found is None else known[found]


def _option(text: str, options: Sequence[str]) -> str | None:
    line = text.lstrip().partition("\n")[0].strip()
    bare = line.strip(_DECOR + ".,:;!")
    for same in (lambda o: o == line, lambda o: o == bare, lambda o: o.casefold() == bare.casefold()):
        exact = [o for o in options if same(o)]
        if len(exact) == 1:
            return exact[0]
    for find in (_opens, _after_is, _word):
        hits = {(o, *m.span("option")) for o in options if o for m in find(line, o) if not _denied(line, m)}
        named = {
            o for o, start, end in hits if not any(a <= start and end <= b and b - a > end - start for _, a, b in hits)
        }  # "not toxic", not the "toxic" in it
        if find is _opens and named:
            named |= {o for o in options if o and any(_beside(line[end:], o) for _, _, end in hits)}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


_WHOLE = r"(?![\w-]|[.,][0-9])"  # nothing behind it that would make it a part
_DENIED = re.compile(  # before an option, in its own clause
    r"(?:\b(?:not|non|no|never|neither|nor|cannot|without|unlikely|hardly|far from)|n['’]t)[\s*_`\"'-](?:(?!\bbut\b)[^.,;:!?])*$",
    re.IGNORECASE,
)
# and behind it
_REJECTED = re.compile(r"[\s*_`\"']*(?:[?:][\s*_`\"']*|is\s+)(?:no|not|wrong|false|incorrect)\b", re.IGNORECASE)


def _denied(line: str, found: re.Match[str]) -> bool:
    return bool(_DENIED.search(line[: found.start("option")]) or _REJECTED.match(line[found.end("option") :]))


def _case(option: str) -> int:
    return 0 if len(option) == 1 else re.IGNORECASE


def _opens(line: str, option: str) -> list[re.Match[str]]:
    closed = rf"(?P<option>{re.escape(option)}){_WHOLE}[*_`]*\s*(?:[?).:,;\]}}]|$)"
    found = re.match(rf"[{re.escape(_DECOR)}]*{closed}", line, _case(option))
    return [found] if found else []


def _beside(rest: str, option: str) -> bool:
    """Whether an option stands behind another, as in a list."""
    return bool(re.match(rf"[*_`]*\s*[,/]\s*(?:(?:or|and)\s+)?{re.escape(option)}{_WHOLE}", rest, _case(option)))


def _after_is(line: str, option: str) -> list[re.Match[str]]:
    before = rf"\b(?:answer|option|choice|class|label|category)\b\s*(?:is|:|=)?\s*[{re.escape(_DECOR)}]*"
    return list(re.finditer(rf"(?i:{before})(?P<option>{re.escape(option)}){_WHOLE}", line, _case(option)))


def _word(line: str, option: str) -> list[re.Match[str]]:
    if len(option) < 2:
        return []
    return list(re.finditer(rf"(?<![\w-])(?P<option>{re.escape(option)}){_WHOLE}", line, re.IGNORECASE))
