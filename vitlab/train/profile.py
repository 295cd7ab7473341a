"""A trace of a few steps, for XProf or TensorBoard."""

import logging
import re
from collections.abc import Callable

import jax

from vitlab.buckets import Mirror, RunPath, in_bucket
from vitlab.config import ConfigError
from vitlab.train.step import Metrics

logger = logging.getLogger(__name__)


class Profile:
    """Records steps into a folder, and tells at the end which; to be used in a `with`.

    `before` and `after` are called around each step.
    """

    def __init__(self, folder: RunPath, window: range, *, say: Callable[[str], None], shown: RunPath):
        """Records nothing if the window is empty.

        Args:
          folder: Folder to write into.
          window: Steps to record, counted from 1.
          say: Function that shows a line to the user.
          shown: The folder's path as the user knows it.
        """
        self._folder, self._window, self._say, self._shown = folder, window, say, shown
        self._mirror = Mirror(folder) if window and in_bucket(folder) else None
        self._running, self._done, self._failed = False, range(0), False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exc) -> None:
        self._stop()
        if self._mirror is not None:
            self._mirror.close()
        if self._window and not self._done and not self._failed:
            logger.warning("--profile: %s not traced, since the run did none of them", _named(self._window))

    def before(self, step: int) -> None:
        """Begins to record at the first step of the window that this process runs."""
        if step in self._window and not self._running and not self._failed:
            self._running = self._try(self._start)

    def after(self, step: int, metrics: Metrics) -> None:
        """Ends after the last step of the window, once the device has finished it."""
        if self._running:
            self._done = range(self._done.start or step, step + 1)
            if step == self._window[-1]:
                jax.block_until_ready(metrics)
                self._stop()

    def _start(self) -> None:
        folder = self._folder if self._mirror is None else self._mirror.folder
        folder.mkdir(parents=True, exist_ok=True)  # JAX would find out in the end, and never trace again
        jax.profiler.start_trace(folder)

    def _stop(self) -> None:
        if self._running:
            self._running = False
            if self._try(jax.profiler.stop_trace):
                self._say(
                    f"{_named(self._done)} traced in {self._shown}: tensorboard --logdir={self._shown} shows it (with xprof installed)"
                )

    def _try(self, call: Callable[[], None]) -> bool:
        """Whether the call worked; a trace that cannot be written does not end the run."""
        try:
            call()
        except (OSError, RuntimeError, ValueError) as error:
            self._failed = True
            logger.error("--profile: no trace can be written in %s: %s", self._shown, " ".join(str(error).split())[:300])
        return not self._failed


def _named(steps: range) -> str:
    return f"step {steps[0]} is" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]} are"


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
