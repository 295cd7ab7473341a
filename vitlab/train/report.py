"""Metrics of a run: checked, recorded, shown; one step late, so that the device never waits."""

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from vitlab.buckets import RunPath
from vitlab.parallel import distributed
from vitlab.runs.checkpoint import NonFiniteError
from vitlab.runs.claim import FolderLostError
from vitlab.runs.records import Records
from vitlab.tasks import Task
from vitlab.train.clock import Clock, duration_text
from vitlab.train.console import Console
from vitlab.train.goodput import goodput_text
from vitlab.train.periods import Periods
from vitlab.train.side_logs import SideLogs
from vitlab.train.step import Metrics
from vitlab.train.weights_and_biases import Tracker

logger = logging.getLogger(__name__)

_OF_STEP = ("lr", "grad_norm", "skipped")  # metrics of a step that belong to no task
_REMEDY = "a lower optimizer.peak_lr, a longer optimizer.warmup or a smaller optimizer.clip_norm may help"


class Report:
    """Takes each step's metrics and handles those of the step before; to be used in a `with`."""

    def __init__(
        self,
        workdir: RunPath,
        *,
        step: int,
        periods: Periods,
        clock: Clock,
        leaves: list[str],
        task: Task,
        max_skips: int,
        tracker: Tracker | None = None,
    ):
        """Called by all processes, of which the first writes and shows.

        Args:
          workdir: Folder to write into.
          step: Number of steps done; records of later steps are dropped.
          periods: Durations of the run.
          clock: Clock of the run.
          leaves: Names of the trained parameters, in the order of the gradients.
          task: Task of the run: the names of its metrics, and the metric that decides which
            evaluation is the best.
          max_skips: Number of dropped updates in a row that do not end the run.
          tracker: Receives the values of metrics.jsonl and timing.jsonl; its owner closes it.

        Raises:
          ConfigError: metrics.jsonl is damaged, or cannot be written.
        """
        self.records = Records(workdir / "metrics.jsonl", step=step)
        self.console = Console(total_steps=periods.total, quiet=not distributed.is_first())
        self._side_logs = SideLogs(workdir, step=step) if distributed.is_first() else None
        self._total, self._log_every, self._clock, self._leaves = periods.total, periods.log, clock, leaves
        self._max_skips, self._tracker, self._task = max_skips, tracker, task
        self._patience, self._examples_per_epoch = periods.patience, periods.examples_per_epoch
        self._pending: tuple[int, Metrics] | None = None
        self._step = step  # the newest that was handled

    def __enter__(self) -> "Report":
        self.console.__enter__()
        return self

    def __exit__(self, kind, *exc) -> None:
        self.console.__exit__(kind, *exc)
        self._summarize()
        if self._side_logs is not None:
            self._side_logs.close()
        if kind is None or not issubclass(kind, FolderLostError):
            with contextlib.suppress(OSError):  # the run has reported it before
                self.records.sync()
        self.records.close()

    def step(self, step: int, metrics: Metrics) -> None:
        """Keeps the metrics on the device and handles those of the step before.

        Raises:
          NonFiniteError: The loss or a gradient of the step before is not finite.
        """
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Handles the metrics that are kept; waits for the device.

        Raises:
          NonFiniteError: The loss or a gradient is not finite and the update is not dropped, or too
            many updates were dropped; the message names step, learning rate, gradient norm and
            first leaf.
        """
        if self._pending is None:
            return
        (step, device), self._pending = self._pending, None
        self._step = step
        metrics = jax.device_get(device)
        finite, in_a_row = metrics.pop("finite"), int(metrics.pop("skipped_in_a_row", 0))
        values = {f"train_{k}" if k not in _OF_STEP else k: float(v) for k, v in metrics.items()}
        if not finite.all():
            self._dropped(_not_finite(step, values, finite, self._leaves), in_a_row)
        elif in_a_row:
            self._dropped(f"step {step}: a spike: learning rate {values['lr']:.3g}, gradient norm {values['grad_norm']:.3g}", in_a_row)
        self.console.at(step)
        if step % self._log_every == 0 or step == self._total:
            self._log(step, values)

    def line(self, text: str) -> None:
        """Shows a line of text."""
        self.console.line(text)

    def evaluation_at(self, step: int) -> dict[str, Any]:
        """The record of the evaluation after a step; empty if there is none."""
        return self.records.at(step, "eval_images") or {}

    def evaluation(self, step: int, result: Mapping[str, float | int]) -> None:
        """Records and shows an evaluation.

        Its speed goes to the timing; results that are no numbers are for the evaluate command.
        """
        values = {f"eval_{k}": v for k, v in result.items() if k != "images_per_second" and isinstance(v, (int, float))}
        self._write(step, values)
        self.console.line(f"step {step} evaluation: {describe(result, self._task)}")

    @property
    def scores(self) -> dict[int, float]:
        """Step -> score of each evaluation so far, the task's best metric; higher is better."""
        (metric, direction), sign = self._task.best, {"max": 1, "min": -1}
        name = f"eval_{metric}"
        return {line["step"]: sign[direction] * line[name] for line in self.records.lines if name in line}

    def is_best(self, step: int) -> bool:
        """Whether this step was evaluated, and no earlier one was as good."""
        scores = self.scores
        return step in scores and all(scores[step] > score for other, score in scores.items() if other < step)

    def stalls(self, step: int) -> bool:
        """Whether the run ends here, since it has not got better for as long as its patience.

        This step must be evaluated. The answer depends on the records alone, so that a resumed run
        and all processes decide alike.
        """
        scores = {other: score for other, score in self.scores.items() if other <= step}
        if self._patience is None or step not in scores:
            return False
        return step - max(scores, key=lambda other: (scores[other], -other)) >= self._patience

    def sync(self) -> None:
        """Makes the records safe, before a checkpoint that relies on them.

        Raises:
          OSError: The disk is full or not writable.
        """
        self.records.sync()

    def _summarize(self) -> None:
        """Shows and records where the time of this start of the run went."""
        summary = self._clock.goodput.summary()
        self.console.line(f"time: {goodput_text(summary)}")
        if self._side_logs is not None:
            self._side_logs.timing(self._step, summary)

    def _dropped(self, what: str, in_a_row: int) -> None:
        if not in_a_row:
            raise NonFiniteError(f"{what}. Training stops and saves nothing more; {_REMEDY}")
        if in_a_row > self._max_skips:
            raise NonFiniteError(
                f"{what}. More than max_skips={self._max_skips} updates in a row were dropped, so training stops; {_REMEDY}"
            )
        logger.warning("%s. The update is dropped (%d in a row)", what, in_a_row)

    def _log(self, step: int, values: dict[str, float]) -> None:
        lap = self._clock.lap(step)
        self._write(step, values)
        if self._side_logs is not None:
            self._side_logs.timing(step, lap)
        if self._tracker is not None:
            self._tracker.log(step, {f"time_{name}": value for name, value in lap.items()})
        key = "train_{}".format
        counted = "".join(f"{count.metric} {values[key(count.metric)]:.1%}  " for count in self._task.counts.values())
        told = {key("loss"), *(key(count.metric) for count in self._task.counts.values())}
        terms = [
            f"{name.removeprefix(key(''))} {value:.4f}" for name, value in values.items() if name.startswith(key("")) and name not in told
        ]
        parts = f" ({', '.join(terms)})" if terms else ""
        used = f"MFU {lap['mfu']:.0%}  " if "mfu" in lap else ""
        self.console.line(
            f"step {step}/{self._total}  loss {values['train_loss']:.4f}{parts}  {counted}lr {values['lr']:.2e}  "
            f"{lap['images_per_second']:.0f} images/s  {used}"
            f"data wait {lap['data_wait']:.0%}  ETA {duration_text(lap['eta'])}"
        )

    def _write(self, step: int, values: Mapping[str, float | int]) -> None:
        values = {k: v for k, v in values.items() if math.isfinite(v)}  # JSON has no NaN
        seen = step * self._clock.batch_size
        epoch = {"epoch": seen / self._examples_per_epoch} if self._examples_per_epoch else {}
        self.records.write(step, {**epoch, "images_seen": seen, **values})
        if self._side_logs is not None:
            self._side_logs.scalars(step, values)
        if self._tracker is not None:
            self._tracker.log(step, values)


def _not_finite(step: int, values: Mapping[str, float], finite: Bool[np.ndarray, " flags"], leaves: Sequence[str]) -> str:
    what = ["the loss"] * (not finite[0])
    if not finite[1:].all():
        what.append(f"the gradient of {leaves[int(np.argmin(finite[1:]))]} (the first of {int((~finite[1:]).sum())})")
    return f"step {step}: not finite: {' and '.join(what)}; learning rate {values['lr']:.3g}, gradient norm {values['grad_norm']:.3g}"


def describe(result: Mapping[str, Any], task: Task) -> str:
    """An evaluation as text."""
    text = task.line(result) if task.line is not None else _line(result)
    return text + (f"  {result['images_per_second']:.0f} images/s" if "images_per_second" in result else "")


def _line(result: Mapping[str, Any]) -> str:
    numbers = {name: value for name, value in result.items() if isinstance(value, (int, float)) and not name.startswith("images")}
    return "  ".join([*(f"{name} {value:.4g}" for name, value in numbers.items()), f"on {result['images']:.0f} images"])
