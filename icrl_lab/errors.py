"""The errors a user can meet: one clear sentence each, and the exit status of the command line.

Every error that is the caller's doing derives from `IcrlError`; a broken invariant of our own is an
AssertionError. The command line prints the sentence and leaves with `exit_status`; nothing else in the
package decides on a status.
"""

from __future__ import annotations

from collections.abc import Mapping


class IcrlError(Exception):
    """Base of every error the lab raises on purpose. `exit_status` is what the command line returns."""

    exit_status = 1


class StudyError(IcrlError):
    """A study file or an argument asks for something that does not exist or cannot be."""

    exit_status = 2


class ProbeRefused(StudyError):
    """Some questions of a study file could not be asked; the study and the other questions are finished."""


class DataError(IcrlError):
    """A table, an item or a vector that is missing, empty or cannot be used."""

    exit_status = 3


class ItemError(DataError):
    """One item that an encoder or a model cannot take; `item` is its id. A study that leaves out what is bad goes on without it.

    reasons  id -> sentence of every item that is known to be refused, so that all can be left out at once; `item` is the first
    """

    def __init__(self, item: str, sentence: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.item, self.reasons = item, dict(reasons or {item: sentence})


class ModelError(IcrlError):
    """A language model or an encoder that cannot be had, or does not do what the lab relies on."""

    exit_status = 4


class MissingExtra(IcrlError):
    """An optional library is not installed; the message names the extra that brings it."""

    exit_status = 4


def nearest(name: str, valid) -> str:
    """The sentence fragment that helps with a misspelt name: the nearest valid one, or all of them."""
    import difflib

    valid = [str(v) for v in valid]
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else "valid: " + ", ".join(valid)
