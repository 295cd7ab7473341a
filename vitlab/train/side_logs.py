"""Logs that a run can do without: entries that a full disk prevents are lost, and reported once."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import IO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.summary import scalar

from vitlab.buckets import Lines, Mirror, RunPath, in_bucket
from vitlab.files import open_to_append

logger = logging.getLogger(__name__)


class SideLogs:
    """timing.jsonl and tensorboard/ of a run folder.

    TensorBoard's events are written at once: `tensorboardX.SummaryWriter` hands them to a thread,
    and blocks for ever once that thread has died of a full disk.
    """

    def __init__(self, workdir: RunPath, *, step: int):
        """Continues after `step`; TensorBoard hides an earlier process's entries of later steps."""
        self._workdir, self._told = workdir, False
        self._timing: IO[str] | Lines | None = None
        self._events: EventsWriter | None = None
        self._mirror: Mirror | None = None  # mirror of tensorboard/, if that is in a bucket
        self._try(self._open_timing)
        self._try(self._open_events)
        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to timing.jsonl, with the seconds since 1970 as "time"."""
        if self._timing is not None:
            line = json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n"
            self._try(lambda: self._timing.write(line))
            self._try(self._timing.flush)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds values to the curves in TensorBoard."""
        for name, value in values.items():
            self._add(Event(step=step, wall_time=time.time(), summary=scalar(name.replace("_", "/", 1), value)))
        if self._events is not None:
            self._try(self._events.flush)

    def close(self) -> None:
        for file in (self._events, self._timing):
            if file is not None:
                self._try(file.close)
        if self._mirror is not None:
            self._mirror.close()

    def _open_timing(self) -> None:
        self._timing = open_to_append(self._workdir / "timing.jsonl")

    def _open_events(self) -> None:
        folder = self._workdir / "tensorboard"
        if in_bucket(folder):
            self._mirror = Mirror(folder)
            folder = self._mirror.folder
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))

    def _add(self, event: Event) -> None:
        if self._events is not None:
            self._try(lambda: self._events.write_event(event))

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: a failed write has closed the file
            if not self._told:
                logger.error("timing.jsonl or tensorboard/ cannot be written: %s", error)
            self._told = True
