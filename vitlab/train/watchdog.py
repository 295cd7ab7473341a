"""Ends a run that is stuck, and shows where."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import threading
import time

from vitlab.signals import end_at_once
from vitlab.terminal import say

EXIT_STUCK = 43  # no progress: the same command goes on from the last checkpoint
_STDERR = 2  # the file descriptor; a notebook's sys.stderr has none
_HARD_SECONDS = 30  # grace before faulthandler ends a process whose interpreter is stuck too; exit code 1
_WORKER_SECONDS = 0.5  # time that a worker process has to write its stacks


class Watchdog:
    """In a `with`: ends the process with 43 when `alive` is not called for `seconds`.

    It first writes the stacks of all threads and worker processes to stderr.
    """

    def __init__(self, seconds: float):
        """`seconds` of 0 switches the watchdog off."""
        self.seconds = seconds
        self._last = time.monotonic()
        self._closed = threading.Event()

    def __enter__(self) -> "Watchdog":
        if self.seconds > 0:
            self.alive()
            threading.Thread(target=self._watch, name="vitlab-watchdog", daemon=True).start()
        return self

    def __exit__(self, *exc) -> None:
        self._closed.set()
        if self.seconds > 0:
            faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """Reports progress: called after each step and each batch of an evaluation."""
        self._last = time.monotonic()
        if self.seconds > 0:
            _end_hard_after(self.seconds)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                self._end()

    def _end(self) -> None:
        say(f"error: no progress for {self.seconds:g} s (--watchdog_seconds); the stacks of all threads:", error=True)
        faulthandler.dump_traceback(file=_STDERR)
        workers = multiprocessing.active_children()
        _end_hard_after(len(workers) * _WORKER_SECONDS)
        for worker in workers:
            say(f"and of worker process {worker.pid}, if it can still say so:", error=True)
            with contextlib.suppress(OSError):
                os.kill(worker.pid or 0, signal.SIGQUIT)  # makes the worker write its stacks, see vitlab.data.workers
            time.sleep(_WORKER_SECONDS)
        end_at_once(EXIT_STUCK)


def _end_hard_after(seconds: float) -> None:
    faulthandler.dump_traceback_later(seconds + _HARD_SECONDS, exit=True, file=_STDERR)
