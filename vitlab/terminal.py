"""Output to terminals and logs: control characters become visible, failed writes do no harm."""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from vitlab.printable import printable


def say(text: str, *, error: bool = False) -> None:
    """Writes lines to stdout, or to stderr if `error`; if that fails, only the text is lost.

    Control characters are shown as escapes, except for the ends of lines.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is not None:
        text = "\n".join(map(printable, text.split("\n")))
        encoding = getattr(stream, "encoding", None) or "utf-8"
        lossy = Lossy(stream)
        lossy.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        lossy.flush()


class Lossy:
    """A text stream whose writes never fail; a full disk or a closed terminal loses text."""

    def __init__(self, stream: Any):
        """Passes everything but writing on to `stream`, a text file or an object like one."""
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes the text, if it can be written."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed, or its encoding lacks a character
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, if that is possible."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class OutputError(OSError):
    """Stdout cannot be written."""


class _Checked(Lossy):
    """A text stream whose failures raise OutputError, unlike those of other files."""

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
    """Makes failed writes to stdout raise OutputError, or BrokenPipeError without a reader."""
    stdout = sys.stdout
    if stdout is None:  # the shell closed it, `>&-`
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
    """Shows each record on one line of the current `sys.stderr`, above a progress bar."""

    def __init__(self):
        super().__init__()
        self.setFormatter(_OneLine("%(levelname)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record, with its traceback if it has one."""
        try:
            say(self.format(record), error=True)
        except Exception:  # a record whose arguments do not fit its text must not end a run
            self.handleError(record)


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


def show_exception(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """A `sys.excepthook`: the usual traceback, with control characters shown as escapes."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip("\n"), error=True)


def settle() -> None:
    """Flushes both streams at the end of a process, and drops output that cannot be written.

    Otherwise the interpreter would exit with 120.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
