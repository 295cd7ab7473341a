"""The text output of a run: a progress bar on a terminal, plain lines otherwise."""

import sys

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vitlab.terminal import Lossy, say


class Console:
    """Lines of text with a progress bar of the steps below them; to be used in a `with`.

    While the bar is shown, text written to `sys.stdout` and, if it is the terminal too, to
    `sys.stderr` appears above it. Text that cannot be written is lost, and nothing else.
    """

    def __init__(self, *, total_steps: int, quiet: bool = False):
        """The bar is shown on a terminal only; under `quiet` nothing is shown."""
        self._bar, self._quiet = None, quiet
        if not quiet and _is_terminal(sys.stdout):
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
            console = rich.console.Console(file=Lossy(sys.stdout))  # type: ignore[arg-type]
            self._bar = Progress(*columns, console=console, redirect_stderr=_is_terminal(sys.stderr))
            self._task = self._bar.add_task("train", total=total_steps)

    def __enter__(self) -> "Console":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """Prints a line at once, above the bar."""
        if not self._quiet:
            say(text)

    def at(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)


def _is_terminal(stream) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # the stream is closed
        return False
