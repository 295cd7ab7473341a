"""A polite end: the first SIGINT or SIGTERM asks the run to save and stop, the second ends the process at once."""

import signal
import sys
import threading

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
            self._previous = {s: signal.signal(s, self._handle) for s in _SIGNALS}
        return self

    def __exit__(self, *exc) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame) -> None:
        self._event.set()
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        print(f"{signal.Signals(number).name}: saving, then stopping; once more ends at once", file=sys.stderr, flush=True)
