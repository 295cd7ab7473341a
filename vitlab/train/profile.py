"""A trace of a few steps, to be looked at with XProf or TensorBoard."""

import pathlib
import re

import jax

from vitlab.config import ConfigError
from vitlab.train.step import Metrics


class Profile:
    """Records steps into a folder; to be used in a `with`, told before and after each step."""

    def __init__(self, folder: pathlib.Path, window: range):
        """`window` are the steps to record; none if it is empty."""
        self._folder, self._window, self._running = folder, window, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exc) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Begins to record with the first step of the window that is done here."""
        if step in self._window and not self._running:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, metrics: Metrics) -> None:
        """Ends with the last step of the window, once the device has finished it."""
        if self._running and step == self._window[-1]:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def window_of(text: str | None) -> range:
    """Reads "100:5", the five steps from the 100th on; None gives no steps.

    Raises:
      ConfigError: The text has another form.
    """
    if text is None:
        return range(0)
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    if not match:
        raise ConfigError(f"--profile={text} must be FIRST:COUNT, such as 100:5, the five steps from the 100th on")
    first, count = int(match[1]), int(match[2])
    return range(first, first + count)
