"""Signals: the first asks the run to save and stop; a second SIGINT or SIGTERM ends the process.

Python runs a signal's handler between two instructions of the main thread, which may be minutes
away while XLA compiles. Here a thread of its own receives each signal at once, whatever the main
thread is doing.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from typing import NoReturn

from vitlab.terminal import say

EXIT_STOPPED = 42  # stopped by a signal, saved at the exact step: the same command goes on from there
_URGENT = (signal.SIGINT, signal.SIGTERM)  # the second of these ends the process at once
# A dropped connection, the warnings that schedulers send before they end a job (SLURM's --signal,
# submitit's SIGUSR2), and the system's warning of used-up processor time. All of them may come
# repeatedly, the last every second, so they only ask.
WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Stopped(Exception):
    """A signal stopped the run before its end; the run is saved."""

    def __init__(self, step: int):
        """`step` is the number of steps done, which are saved."""
        super().__init__(f"stopped at step {step}, which is saved; the same command again goes on from there")
        self.step = step


class StopRequest:
    """In a `with`: `requested` becomes True at the first signal.

    Outside the main thread, as in some notebooks, it does nothing. A warning signal that the
    process was started to ignore, as `nohup` does with SIGHUP, stays ignored.
    """

    def __init__(self):
        self._event = threading.Event()
        self._previous = {}
        self._urgent = False  # whether SIGINT or SIGTERM has come

    @property
    def requested(self) -> bool:
        """Whether a signal has come; asked between steps and between batches of an evaluation."""
        return self._event.is_set()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            ear, self._mouth = os.pipe()
            os.set_blocking(self._mouth, False)
            heeded = (*_URGENT, *(s for s in WARNINGS if signal.getsignal(s) is not signal.SIG_IGN))
            self._previous = {s: signal.signal(s, _leave_to_the_listener) for s in heeded}
            self._previous_mouth = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(ear,), name="vitlab-signals", daemon=True).start()
        return self

    def __exit__(self, *exc) -> None:
        if self._previous:
            signal.set_wakeup_fd(self._previous_mouth)
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            os.close(self._mouth)  # ends the listening thread

    def _listen(self, ear: int) -> None:
        while heard := os.read(ear, 1):  # one byte, the signal's number
            if heard[0] in self._previous:
                self._hear(signal.Signals(heard[0]))
        os.close(ear)

    def _hear(self, number: signal.Signals) -> None:
        if number in _URGENT and self._urgent:
            end_at_once(128 + number)
        news = not self.requested or number in _URGENT
        self._urgent |= number in _URGENT
        self._event.set()
        if news:
            then = "once more ends at once" if self._urgent else "SIGINT or SIGTERM twice ends at once"
            text = f"{number.name}: saving, then stopping; {then}"
            # A thread prints: a terminal that blocks must not delay the next signal.
            threading.Thread(target=say, args=(text,), kwargs={"error": True}, daemon=True).start()


def end_at_once(code: int) -> NoReturn:
    """Ends this process and its worker processes, from any thread, without cleaning up."""
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            child.kill()
    os._exit(code)


def _leave_to_the_listener(number: int, frame) -> None:
    """Takes the place of the system's handler, which would end the process."""
