"""metrics.jsonl: one line per step that was logged or evaluated, with nothing in it that depends on the clock."""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Mapping
from typing import IO, Any

from vitlab.parallel import distributed

logger = logging.getLogger(__name__)


class Records:
    """Appends lines {"step": ..., name: value, ...}; (step, name) stays unique when a run resumes."""

    def __init__(self, path: pathlib.Path, *, step: int):
        """Drops the lines after `step`, which the resumed run will write again, and a last line that was cut off.

        Only the first process reads and writes the file; the others have its lines, and forget what they write.
        """
        self._path, self._whole = path, True  # whether the file has all the lines
        first = distributed.is_first()
        read = [line for line in _read(path) if line["step"] <= step] if first else []
        self.lines = distributed.from_first(read)
        self._file = self._rewrite() if first else None

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds a line, which survives the end of the process; what cannot be written now is written by `sync`."""
        self.lines.append({"step": step, **values})
        if self._file is not None and self._whole:
            try:
                self._file.write(json.dumps(self.lines[-1]) + "\n")
                self._file.flush()
            except OSError as error:
                logger.error("%s cannot be written (%s); the records are kept in memory until it can", self._path, error.strerror)
                self._whole = False

    def at(self, step: int, name: str) -> dict[str, Any] | None:
        """The line of a step that has the name."""
        return next((line for line in self.lines if line["step"] == step and name in line), None)

    def sync(self) -> None:
        """Makes the lines survive the end of the machine.

        Raises:
          OSError: The disk is full or not writable; to be tried again.
        """
        if self._file is None:
            return
        if not self._whole:
            self._close()
            self._file, self._whole = self._rewrite(), True
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        if not self._whole:
            with contextlib.suppress(OSError):
                self.sync()
        self._close()

    def _rewrite(self) -> IO[str]:
        write_atomically(self._path, "".join(json.dumps(line) + "\n" for line in self.lines))
        return self._path.open("a")

    def _close(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # what is left in its buffer cannot be written either
            self._file.close()


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file at once, so that no reader and no crash sees half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
