"""Text on its way to a terminal or a log: what others wrote is made visible, and output that fails ends nothing."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from vitlab.printable import printable


def say(text: str, *, error: bool = False) -> None:
    """Writes lines to stdout, or to stderr where `error`; a full disk or a closed terminal costs the text, and nothing else.

    Whatever a terminal would obey is made visible, but for the ends of lines.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is not None:
        text = "\n".join(map(printable, text.split("\n")))
        encoding = getattr(stream, "encoding", None) or "utf-8"
        lossy = Lossy(stream)
        lossy.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        lossy.flush()


class Lossy:
    """A text stream whose writes never fail: a full disk or a closed terminal costs the text."""

    def __init__(self, stream: Any):
        """Leaves everything but the writing to `stream`, a file of text or what stands for one."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what can be written."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed, or the encoding lacks a character
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class OutputError(OSError):
    """Stdout cannot be written."""


class _Checked(Lossy):
    """A text stream whose failures have a name of their own, apart from those of other files."""

    def write(self, text: str) -> int:
        """Writes, or raises OutputError."""
        with _naming_failures():
            return self._stream.write(text)

    def flush(self) -> None:
        """Flushes, or raises OutputError."""
        with _naming_failures():
            self._stream.flush()


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """In it, and when it ends, stdout that cannot be written raises OutputError, or BrokenPipeError where its reader has gone."""
    stdout = sys.stdout
    if stdout is None:  # closed by the shell, `>&-`
        yield
        return
    sys.stdout = checked = _Checked(stdout)
    try:
        yield
        checked.flush()
    finally:
        sys.stdout = stdout


@contextlib.contextmanager
def _naming_failures() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.errno, error.strerror or str(error)) from error


class LogHandler(logging.Handler):
    """Shows each record on one line of what is `sys.stderr` at the time, so that a progress bar is not torn."""

    def __init__(self):
        super().__init__()
        self.setFormatter(_OneLine("%(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Shows one record, and its traceback if it has one."""
        try:
            say(self.format(record), error=True)
        except Exception:  # a record whose arguments do not fit its text is no reason to end a run
            self.handleError(record)


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


def show_exception(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """A `sys.excepthook`: the usual traceback, with what others wrote made visible."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), error=True)


def settle() -> None:
    """Called at the end of a process: what still cannot be written is dropped, or the interpreter would exit with 120."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
