"""What a probe may be asked: its options, checked by their annotations before anything is computed, for all probes in one manner."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, ParamSpec, TypeVar

from icrl_lab.errors import StudyError

Given = ParamSpec("Given")
Made = TypeVar("Made")
FROM_ZERO = ("depths", "queries", "seed", "seeds", "shots")  # numbers, or lists of them, that begin at 0


def checked(*, empty: Sequence[str] = (), **least: int) -> Callable[[Callable[Given, Made]], Callable[Given, Made]]:
    """A probe whose options are refused in one sentence (StudyError) where they are none: a number that is not whole or is less
    than `least` of its name (1 where it has none), a list that is empty (unless it is one of `empty`), holds
    something twice, or is a single word."""

    def wrap(probe: Callable[Given, Made]) -> Callable[Given, Made]:
        signature = inspect.signature(probe)
        kinds = {name: str(p.annotation) for name, p in signature.parameters.items()}

        @functools.wraps(probe)
        def call(*given: Given.args, **options: Given.kwargs) -> Made:
            for name, value in signature.bind(*given, **options).arguments.items():
                if value is not None:
                    low = least.get(name, 0 if name in FROM_ZERO else 1)
                    _check(name, value, kinds[name], low, name in empty)
            return probe(*given, **options)

        return call

    return wrap


def _check(name: str, value: Any, kind: str, least: int, empty: bool) -> None:
    if kind.startswith("int") and ("Sequence" not in kind or isinstance(value, Integral)):
        _whole(name, value, 1 if name in ("queries", "shots") else least)
    elif "Sequence" in kind:
        if isinstance(value, str) or not hasattr(value, "__len__"):
            raise StudyError(f"{name} is {value!r}; give a list")
        if not len(value) and not empty:
            raise StudyError(f"{name} is empty; name at least one, or leave it out")
        twice = next((v for i, v in enumerate(value) if v in list(value)[:i]), None)
        if twice is not None:
            raise StudyError(f"{name} has {twice!r} twice; name each once")
        for one in value if "Sequence[int]" in kind else ():
            _whole(f"one of {name}", one, least)


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise StudyError(f"{name} is {value!r}; it must be a whole number, at least {least}")
