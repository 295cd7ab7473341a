"""Times of a run: speed, waiting for data, time to the end."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from vitlab.train.goodput import Goodput

T = TypeVar("T")


class Clock:
    """Measures training speed without pauses, the share of waiting for data, and the time left."""

    def __init__(self, *, step: int, total_steps: int, batch_size: int, peak_speed: float | None = None, goodput: Goodput | None = None):
        """Starts at `step`.

        Args:
          step: Steps done.
          total_steps: Steps of the whole run.
          batch_size: Images of a step.
          peak_speed: Upper bound in images/s; None if not known.
          goodput: Is also told of the waiting for data; a new one if not given.
        """
        self.goodput = goodput or Goodput()
        self._first, self._total, self.batch_size, self._peak_speed = step, total_steps, batch_size, peak_speed
        self._begin = time.perf_counter()
        self._restart(step)

    def waiting(self, fetch: Callable[[], T]) -> T:
        """Calls `fetch` and counts its time as waiting for data."""
        begin = time.perf_counter()
        value = fetch()
        seconds = time.perf_counter() - begin
        self._waited += seconds
        self.goodput.add("wait", seconds)
        return value

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside it (an evaluation, a save) does not count as training."""
        begin = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begin

    def lap(self, step: int) -> dict[str, float]:
        """Ends an interval and returns its figures.

        Returns:
          {"images_per_second", "data_wait" (share of the interval), "eta" and "elapsed" (seconds)}
          and, if the peak is known, "mfu" (share of it).
        """
        now = time.perf_counter()
        seconds = max(now - self._lap_begin - self._paused, 1e-9)
        elapsed = now - self._begin
        values = {
            "images_per_second": (step - self._lap_step) * self.batch_size / seconds,
            "data_wait": self._waited / seconds,
            "eta": elapsed / max(step - self._first, 1) * (self._total - step),
            "elapsed": elapsed,
        }
        if self._peak_speed is not None:
            values["mfu"] = values["images_per_second"] / self._peak_speed
        self._restart(step)
        return values

    def _restart(self, step: int) -> None:
        self._lap_step, self._lap_begin, self._waited, self._paused = step, time.perf_counter(), 0.0, 0.0


def duration_text(seconds: float) -> str:
    """A duration as text: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
