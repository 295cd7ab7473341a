"""metrics.jsonl: one line per step that was logged or evaluated, with nothing in it that depends on the clock."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any


class Records:
    """Appends lines {"step": ..., name: value, ...}; (step, name) stays unique when a run resumes."""

    def __init__(self, path: pathlib.Path, *, step: int):
        """Drops the lines after `step`, which the resumed run will write again, and a last line that was cut off."""
        self.lines = [line for line in _read(path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in self.lines)
        write_atomically(path, text)
        self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds a line, which survives the end of the process."""
        self.lines.append({"step": step, **values})
        self._file.write(json.dumps(self.lines[-1]) + "\n")
        self._file.flush()

    def at(self, step: int, name: str) -> dict[str, Any] | None:
        """The line of a step that has the name."""
        return next((line for line in self.lines if line["step"] == step and name in line), None)

    def sync(self) -> None:
        """Makes the lines survive the end of the machine."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
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
