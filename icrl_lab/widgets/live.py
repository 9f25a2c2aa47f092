"""Work in the background of a page: after a pause in the clicks, one at a time, stoppable, its errors handed back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Stopped(Exception):
    """Raised inside a job that was stopped, where it asks `step`."""


class Job:
    """What a job is given: it reports `step(share, words)` and is stopped there."""

    def __init__(self, report: Callable[[float, str], None]) -> None:
        self._stop = threading.Event()
        self._report = report

    def step(self, share: float, words: str = "") -> None:
        """Say how far the work is (0 to 1). Raises Stopped once somebody has stopped it."""
        if self._stop.is_set():
            raise Stopped
        self._report(share, words)

    def stop(self) -> None:
        self._stop.set()


class Runner:
    """Runs the latest of the jobs it is given.

    wait       seconds without another job before one starts (debounce)
    done       called with the result, failed with the error, progress with (share, words), all in the runner's thread

    A new job stops the one that runs. The model is never used by two jobs at once.
    """

    def __init__(
        self,
        done: Callable[[Any], None],
        failed: Callable[[BaseException], None],
        progress: Callable[[float, str], None] = lambda share, words: None,
        wait: float = 0.25,
    ) -> None:
        self.done, self.failed, self.progress, self.wait = done, failed, progress, wait
        self._timer: threading.Timer | None = None
        self._job: Job | None = None
        self._lock = threading.Lock()  # of the two above
        self._busy = threading.Lock()  # of the model

    def submit(self, work: Callable[[Job], Any]) -> None:
        """Run `work(job)` soon, unless another is submitted before; returns at once."""
        with self._lock:
            self._cancel()
            self._timer = threading.Timer(self.wait, self._run, (work,))
            self._timer.daemon = True
            self._timer.start()

    def stop(self) -> None:
        """Stop what runs and forget what waits."""
        with self._lock:
            self._cancel()

    def join(self, timeout: float = 60) -> None:
        """Wait until nothing runs and nothing waits (for tests and for leaving)."""
        timer = self._timer
        if timer is not None:
            timer.join(timeout)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._job is not None:
            self._job.stop()

    def _run(self, work: Callable[[Job], Any]) -> None:
        job = Job(self.progress)
        with self._busy:
            with self._lock:
                timer = self._timer
                if timer is not threading.current_thread() or timer.finished.is_set():
                    return  # another was submitted, or this one was stopped, while it waited for the model
                self._job = job
            try:
                result = work(job)
            except Stopped:
                return
            except BaseException as error:
                self.failed(error)
                return
            if not job._stop.is_set():
                self.done(result)
