"""A polite end: the first SIGINT or SIGTERM asks the run to save and stop, the second ends the process at once.

Python runs a signal's handler between two instructions of the main thread, which may be minutes away while XLA compiles. Here a
thread hears the signal when it comes, whatever the main thread is doing.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from typing import NoReturn

EXIT_STOPPED = 42  # stopped by a signal, saved at the exact step: run the same command again
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The run saved and stopped before its end, as a signal asked."""

    def __init__(self, step: int):
        """`step` is the last one done, and saved."""
        super().__init__(f"stopped at step {step}, which is saved; the same command again goes on from there")
        self.step = step


class StopRequest:
    """In a `with`: `requested` becomes True at the first signal. Does nothing outside the main thread, as in a notebook's."""

    def __init__(self):
        self._event = threading.Event()
        self._previous = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come; to be asked between steps and between batches of an evaluation."""
        return self._event.is_set()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            ear, self._mouth = os.pipe()
            os.set_blocking(self._mouth, False)
            self._previous = {s: signal.signal(s, _leave_to_the_listener) for s in _SIGNALS}
            self._previous_mouth = signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(ear,), name="vitlab-signals", daemon=True).start()
        return self

    def __exit__(self, *exc) -> None:
        if self._previous:
            signal.set_wakeup_fd(self._previous_mouth)
            for number, handler in self._previous.items():
                signal.signal(number, handler)
            os.close(self._mouth)  # ends the listener

    def _listen(self, ear: int) -> None:
        while heard := os.read(ear, 1):  # the signal's number in a byte
            if heard[0] not in _SIGNALS:
                continue
            if self.requested:
                end_at_once(128 + heard[0])
            self._event.set()
            print(f"{signal.Signals(heard[0]).name}: saving, then stopping; once more ends at once", file=sys.stderr, flush=True)
        os.close(ear)


def end_at_once(code: int) -> NoReturn:
    """Ends this process and its worker processes, from any thread, without cleaning up."""
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            child.kill()
    os._exit(code)


def _leave_to_the_listener(number: int, frame) -> None:
    """A handler there must be, or the system's own would end the process."""
