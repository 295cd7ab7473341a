"""Where the time of a run goes."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

# What can be claimed, with its name for people. Steps are the rest.
_CAUSES = {
    "start": "start",
    "restore": "restore",
    "compile": "compilation",
    "wait": "waiting for images",
    "evaluation": "evaluation",
    "save": "saves",
}


class Goodput:
    """Counts the seconds since its creation by what they were spent on.

    A step that is done again after a crash counts as a step: the records of a run do not tell.
    """

    def __init__(self):
        self._begin = time.perf_counter()
        self._seconds = dict.fromkeys(_CAUSES, 0.0)

    @contextlib.contextmanager
    def of(self, cause: str) -> Iterator[None]:
        """Claims the time inside for a cause, a key of the table above; calls do not nest."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[cause] += time.perf_counter() - begin

    def values(self) -> dict[str, float]:
        """Returns {"goodput": share of time in steps, "seconds_<cause>": ...} since the creation."""
        total = max(time.perf_counter() - self._begin, 1e-9)
        return {
            "goodput": 1 - sum(self._seconds.values()) / total,
            **{f"seconds_{cause}": round(seconds, 3) for cause, seconds in self._seconds.items()},
        }

    def __str__(self) -> str:
        total = max(time.perf_counter() - self._begin, 1e-9)
        rest = ", ".join(f"{name} {self._seconds[cause] / total:.0%}" for cause, name in _CAUSES.items())
        return f"goodput: {self.values()['goodput']:.0%} of {duration_text(total)} in steps; {rest}"


class Clock:
    """Measures training without its pauses, the share of it spent waiting for data, and the time to the end."""

    def __init__(self, *, step: int, total_steps: int, batch_size: int, goodput: Goodput, peak_speed: float | None = None):
        """Starts at `step`; `peak_speed` in images/s is what the devices could reach, None where unknown."""
        self._goodput = goodput
        self._first, self._total, self.batch_size, self._peak_speed = step, total_steps, batch_size, peak_speed
        self._begin = time.perf_counter()
        self._restart(step)

    def waiting(self, fetch: Callable[[], T]) -> T:
        """Calls `fetch` and counts its time as waiting for data."""
        begin = time.perf_counter()
        value = fetch()
        self._waited += time.perf_counter() - begin
        return value

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What happens inside (an evaluation, a save) is not training."""
        begin = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begin

    def lap(self, step: int) -> dict[str, float]:
        """Ends an interval: {"images_per_second", "data_wait" (share), "eta", "elapsed" (seconds), if known "mfu" (share of the peak)}, and those of `Goodput`."""
        now = time.perf_counter()
        seconds = max(now - self._lap_begin - self._paused, 1e-9)
        elapsed = now - self._begin
        values = {
            "images_per_second": (step - self._lap_step) * self.batch_size / seconds,
            "data_wait": self._waited / seconds,
            "eta": elapsed / max(step - self._first, 1) * (self._total - step),
            "elapsed": elapsed,
            **self._goodput.values(),
        }
        if self._peak_speed is not None:
            values["mfu"] = values["images_per_second"] / self._peak_speed
        self._restart(step)
        return values

    def _restart(self, step: int) -> None:
        self._lap_step, self._lap_begin, self._waited, self._paused = step, time.perf_counter(), 0.0, 0.0


def duration_text(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
