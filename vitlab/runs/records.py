"""metrics.jsonl: a line per step that was logged or evaluated; no value depends on the clock."""

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from typing import IO, Any

from vitlab.buckets import Lines, RunPath, in_bucket
from vitlab.config import ConfigError
from vitlab.files import parse_json, whole_lines, write_atomically
from vitlab.parallel import distributed

logger = logging.getLogger(__name__)


class Records:
    """Appends lines {"step": ..., name: value, ...}; a resumed run repeats no (step, name)."""

    def __init__(self, path: RunPath, *, step: int):
        """Drops the lines after `step`, which the resumed run writes again, and a cut last line.

        Only the first process reads and writes the file; the others get its lines, and keep their
        own lines in memory alone.

        Raises:
          ConfigError: The file cannot be read or written, or a line in it is damaged; on all
            processes.
        """
        self._path, self._whole = path, True  # whether the file has all the lines
        self._file: IO[str] | Lines | None = None
        read = distributed.on_first(lambda: [line for line in read_records(path) if line["step"] <= step])
        self.lines: list[dict[str, Any]] = distributed.from_first(read or [])
        distributed.on_first(self._open)

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds a line, which survives the end of the process; `sync` repeats a failed write."""
        self.lines.append({"step": step, **values})
        if self._file is not None and self._whole:
            try:
                self._file.write(json.dumps(self.lines[-1]) + "\n")
                self._file.flush()
            except OSError as error:
                logger.error("%s cannot be written (%s); the records are kept in memory until it can", self._path.name, error.strerror)
                self._whole = False

    def at(self, step: int, name: str) -> dict[str, Any] | None:
        """The line of a step that has the name."""
        return next((line for line in self.lines if line["step"] == step and name in line), None)

    def sync(self) -> None:
        """Makes the lines survive a crash of the machine.

        A file that somebody has removed or replaced meanwhile is written anew.

        Raises:
          OSError: The disk is full or not writable; the call may be repeated.
        """
        if self._file is None:
            return
        if not isinstance(self._file, Lines) and not (self._whole and self._is_in_place(self._file)):
            self.close()
            self._file, self._whole = self._rewrite(), True
        self._file.sync() if isinstance(self._file, Lines) else os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; lines that could not be written are lost unless `sync` was called."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the rest of the buffer cannot be written either
                self._file.close()

    def _is_in_place(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        try:
            self._file = self._rewrite()
        except OSError as error:
            raise ConfigError(f"{self._path.name} of the run cannot be written: {error.strerror}") from error

    def _rewrite(self) -> IO[str] | Lines:
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        if in_bucket(self._path):
            return Lines(self._path, text)
        write_atomically(self._path, text)
        return self._path.open("a")


def read_records(path: RunPath) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without a cut last line; none if there is no file.

    Raises:
      ConfigError: The file cannot be read, or a line before the last is damaged.
    """
    records = []
    try:
        for number, line in enumerate(whole_lines(path), 1):
            records.append(_record(line, f"{path.name} of the run is damaged in line {number}"))
    except OSError as error:
        raise ConfigError(f"{path.name} of the run cannot be read: {error.strerror}") from error
    return records


def _record(line: bytes, damage: str) -> dict[str, Any]:
    remedy = "remove that line, or move the file away to go on without the earlier curves"
    try:
        record = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{damage} ({str(error)[:200]}): {remedy}") from error
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        raise ConfigError(f'{damage} (it is no group of values with a "step" of at least 0): {remedy}')
    wrong = next((name for name, value in record.items() if not _is_number(value)), None)
    if wrong is not None:
        raise ConfigError(f"{damage} ({wrong[:100]} is no number): {remedy}")
    return record


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
