"""Logs that a run can do without: what a full disk keeps from them is lost, and said once."""

import json
import logging
import pathlib
import time
from collections.abc import Callable, Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.summary import scalar

logger = logging.getLogger(__name__)


class SideLogs:
    """timing.jsonl and tensorboard/ of a run folder.

    TensorBoard's events are written here and now: `tensorboardX.SummaryWriter` hands them to a thread, and blocks for ever once
    that thread has died of a full disk.
    """

    def __init__(self, workdir: pathlib.Path, *, step: int):
        """Goes on after `step`; TensorBoard hides what an earlier process wrote of later ones."""
        (workdir / "tensorboard").mkdir(exist_ok=True)
        self._told = False
        self._timing = (workdir / "timing.jsonl").open("a")
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def timing(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to timing.jsonl."""
        self._try(lambda: self._timing.write(json.dumps({"step": step, **values}) + "\n"))
        self._try(self._timing.flush)

    def scalars(self, step: int, values: Mapping[str, float | int]) -> None:
        """Adds to the curves in TensorBoard."""
        for name, value in values.items():
            self._add(Event(step=step, wall_time=time.time(), summary=scalar(name.replace("_", "/", 1), value)))
        self._try(self._events.flush)

    def close(self) -> None:
        """Closes the files."""
        self._try(self._events.close)
        self._try(self._timing.close)

    def _add(self, event: Event) -> None:
        self._try(lambda: self._events.write_event(event))

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: a file that a failed write has closed
            if not self._told:
                logger.error("timing.jsonl or tensorboard/ cannot be written: %s", error)
            self._told = True
