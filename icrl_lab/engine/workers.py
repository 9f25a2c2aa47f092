"""Passes that run at the same time on a CPU, each on a share of its threads.

A pass that all threads compute together has them wait for each other after every operation, and its small operations run on one of
them. Passes side by side do not. The chunks of a stretch, which read one another's keys and values, follow each other from
block to block: a pass waits in each for the pass before it, its `Turn` says how far that is. Knows nothing of models or packs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from functools import cache
from threading import Condition

import torch


class GivenUp(RuntimeError):
    """A pass was given up because another one failed, or was interrupted."""


class Turn:
    """How far a pass is, block by block, for the pass that follows it."""

    def __init__(self, before: Turn | None) -> None:
        self.before = before
        self.block, self.over = -1, False
        self._change = Condition()

    def enter(self, block: int) -> None:
        """Wait until the pass before is through with what it writes in this block. GivenUp where it ended without."""
        before = self.before
        if self.over:
            raise GivenUp
        if before is not None:
            before.wait(block)

    def leave(self, block: int) -> None:
        """What this pass writes in this block stands."""
        with self._change:
            self.block = block
            self._change.notify_all()

    def end(self) -> None:
        """Nothing more is written."""
        with self._change:
            self.over = True
            self._change.notify_all()
        self.before = None  # a chain of all passes would never be freed

    def wait(self, block: int) -> None:
        with self._change:
            self._change.wait_for(lambda: self.over or self.block >= block)
            if self.block < block:
                raise GivenUp


class Workers:
    """Runs passes in the order in which they are given, as many at a time as there are threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._running: list[tuple[Future[None], Turn]] = []
        self._last: Turn | None = None  # of the pass that writes last

    def start(self, run: Callable[[Turn], None], *, at_a_time: int, writes: bool = False) -> None:
        """Have `run` called with its turn, which follows the last of the passes given before that writes. `at_a_time` of them
        share the threads."""
        turn = Turn(self._last)
        if writes:
            self._last = turn
        self._running.append((_pool(self.threads).submit(_run, run, turn, max(1, self.threads // at_a_time)), turn))

    def finish(self) -> None:
        """Wait for all of them. After an error the others are given up, and it is raised when none of them runs any more."""
        running = [future for future, _ in self._running]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            self.stop()
        errors = [e for future in running if not future.cancelled() and (e := future.exception()) is not None]
        if errors:
            raise next((e for e in errors if not isinstance(e, GivenUp)), errors[0])

    def stop(self) -> None:
        """Give up what still runs, and wait until it has ended."""
        running, self._running, self._last = self._running, [], None
        for future, turn in running:
            if not future.done():
                future.cancel()
                turn.end()
        wait([future for future, _ in running])


def _run(run: Callable[[Turn], None], turn: Turn, threads: int) -> None:
    try:
        if torch.get_num_threads() != threads:  # of this thread alone
            torch.set_num_threads(threads)
        with torch.inference_mode():
            run(turn)
    finally:
        turn.end()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One for all engines, whose threads sleep between passes. First come, first served: what a pass waits for has begun."""
    return ThreadPoolExecutor(threads, "icrl-engine")
