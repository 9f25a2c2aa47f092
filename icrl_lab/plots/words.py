"""Words that figures share: the same thing is called the same in all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from icrl_lab.stats.words import estimate, tested


def shown_group(name: str) -> str:
    """A group of positions as it is shown: readings count shots from 0, people from 1. "shot 3 slot" is "shot 4 slot"."""
    return re.sub(r"^shot (\d+) ", lambda found: f"shot {int(found[1]) + 1} ", name)


def sampled(about: Mapping[str, Any]) -> str:
    """What a reading's intervals are over, in the words of a caption: one seed says nothing of others."""
    return "queries alone, for one seed" if len(about.get("seeds", ())) == 1 else "seeds and queries"


def marks(
    values: Iterable[float],
    low: Iterable[float],
    high: Iterable[float],
    p: Iterable[float] | None = None,
    form: str = ".3g",
) -> list[str]:
    """What is said of each mark that is pointed at: the estimate with its interval, and whether it was tested, if any was to be."""
    said = [estimate(*one, form=form) for one in zip(values, low, high)]
    return said if p is None else [f"{words}<br>{tested(q)}" for words, q in zip(said, p)]


def of_classes(about: Mapping[str, Any]) -> bool:
    """Are a reading's outcomes the log-odds of a class, not numbers in units of the task?"""
    return str(about.get("units", "")).startswith("log-odds")


def many(count: int, noun: str) -> str:
    """A count and what is counted: "1 seed", "5 seeds"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
