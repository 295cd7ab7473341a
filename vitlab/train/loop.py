"""The training loop. Every run goes through it step by step, even after an interruption."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from vitlab.buckets import RunPath, run_path
from vitlab.config import DataConfig, Experiment, to_dict
from vitlab.parallel import distributed
from vitlab.parallel.mesh import FSDP_FLOOR, shard_batch, share_of_device
from vitlab.runs import folder
from vitlab.runs.checkpoint import Checkpoints
from vitlab.runs.claim import Claim
from vitlab.runs.retention import Retention
from vitlab.runs.trained import Trained
from vitlab.signals import Stopped, StopRequest
from vitlab.tasks import task_of
from vitlab.train.clock import Clock
from vitlab.train.goodput import Goodput
from vitlab.train.groups import as_trained
from vitlab.train.profile import Profile
from vitlab.train.report import Report
from vitlab.train.setup import Setup, set_up
from vitlab.train.state import State
from vitlab.train.step import compile_step
from vitlab.train.watchdog import Watchdog
from vitlab.train.weights_and_biases import Tracker
from vitlab.tree import leaf_names


def train(
    experiment: Experiment,
    workdir: str | RunPath,
    *,
    allow_changes: bool = False,
    watchdog_seconds: float = 0.0,
    profile: range = range(0),
    wandb: str | None = None,
) -> dict[str, float | int]:
    """Trains a run in a folder, from its beginning or its newest checkpoint.

    The result of a resumed run is bit-equal to that of an uninterrupted one on the same machine,
    number of devices and versions. If there are several processes, all make this call with a run
    folder that all see.

    Args:
      experiment: What to train.
      workdir: The run folder, see `vitlab.runs.folder`; made if need be. It may be in a bucket,
        gs://bucket/run.
      allow_changes: Whether to go on with a run of another config.
      watchdog_seconds: Seconds without progress after which the process writes its stacks and exits
        with 43; 0 waits for ever.
      profile: Steps, counted from 1, that the first process traces into the run folder's profile/.
      wandb: Project at Weights & Biases to which the first process also sends the curves; None for
        none.

    Returns:
      The record of the last evaluation: {"step", "eval_images"} and the metrics of the task, such
      as "eval_top1".

    Raises:
      ConfigError: The experiment cannot be run here, or not in this folder.
      Stopped: A signal came; the state of the last step is saved.
      NonFiniteError: The loss or a gradient was not finite.
      CheckpointError: Every checkpoint is damaged.
      SaveError, FolderLostError: The last state could not be written; the run folder was moved,
        deleted or taken over.
    """
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopRequest())
        watchdog = stack.enter_context(Watchdog(watchdog_seconds))
        goodput = Goodput()
        with goodput.spent_on("setup"):
            setup, teacher, own = _claimed(experiment, run_path(workdir), allow_changes=allow_changes)
        stack.enter_context(own)
        periods, fixed = setup.periods, () if teacher is None else (teacher.weights,)
        vote = distributed.Vote(lambda: stop.requested or own.lost())

        def should_stop() -> bool:
            watchdog.alive()
            return vote()

        checkpoints = stack.enter_context(_checkpoints(setup, own))
        with goodput.spent_on("restore"):
            step, state = checkpoints.restore(setup.abstract_state) or (0, setup.initial_state())
        distributed.on_first(lambda: folder.write(own, experiment, folder.DataInfo.of(setup.train_source)))
        if should_stop():
            checkpoints.save_last(step, state)
            own.check_place()
            raise Stopped(step)
        train_step, compile_seconds = compile_step(setup.train_step)
        goodput.add("compile", compile_seconds)
        batches = stack.enter_context(setup.open_train_batches(step))
        speeds = {"batch_size": experiment.batch_size, "peak_speed": setup.peak_speed()}
        clock = Clock(step=step, total_steps=periods.total, goodput=goodput, **speeds)
        tracker = stack.enter_context(Tracker(own.path, wandb, experiment)) if wandb and distributed.is_first() else None
        report = stack.enter_context(_report(setup, own, state, step=step, clock=clock, tracker=tracker))
        report.line(_beginning(setup, teacher, state, step, compile_seconds))
        profiler = stack.enter_context(_profile(own, profile, report))

        # Invariants: a batch is a function of its step; the records of a step are written before
        # the step is saved, and its evaluation before the next step. A resumed run thus neither
        # repeats nor drops a record.
        with goodput.spent_on("evaluate"):
            _evaluate(setup, report, state, step, should_stop)
        while step < periods.total and not report.stalls(step) and not should_stop():
            profiler.before(step + 1)
            batch = shard_batch(clock.waiting(lambda: next(batches)), setup.mesh)
            state, metrics = train_step(state, batch, *fixed)
            step += 1
            profiler.after(step, metrics)
            report.step(step, metrics)
            if periods.evaluates_at(step) or periods.saves_at(step):
                report.flush()
                with clock.pause(), goodput.spent_on("evaluate"):
                    _evaluate(setup, report, state, step, should_stop)
                if periods.saves_at(step) or (experiment.keep_best and report.is_best(step)):
                    with clock.pause(), goodput.spent_on("save"):
                        checkpoints.save(step, state, scores=report.scores, before=report.sync)
        own.check()
        report.flush()
        with goodput.spent_on("save"):
            checkpoints.save_last(step, state, scores=report.scores, before=report.sync)
        own.check_place()
        return _result(setup, report, step)


def _claimed(experiment: Experiment, workdir: RunPath, *, allow_changes: bool) -> tuple[Setup, Trained | None, Claim]:
    """The parts of the run, its teacher and the claim on its folder.

    All processes have then agreed that nothing is refused.
    """
    folder.check_place(workdir)
    setup = distributed.everywhere(lambda: set_up(experiment, begins=not folder.has_checkpoints(workdir)))
    data = folder.DataInfo.of(setup.train_source)
    distributed.check_same("config or data", [to_dict(dataclasses.replace(experiment, data=DataConfig())), dataclasses.asdict(data)])
    teacher = setup.restore_teacher()
    own = folder.claim(workdir, experiment, data, allow_changes=allow_changes)
    return setup.listing_bad_images_in(own.root), teacher, own


def _checkpoints(setup: Setup, own: Claim) -> Checkpoints:
    newest, best = setup.experiment.keep_checkpoints, setup.experiment.keep_best
    return Checkpoints(own.path / "checkpoints", keep=Retention(newest=newest, best=best, every=setup.periods.keep), own=own)


def _report(setup: Setup, own: Claim, state: State, *, step: int, clock: Clock, tracker: Tracker | None) -> Report:
    trained, _ = as_trained(setup.model, setup.experiment.optimizer).split(state["params"])
    return Report(
        own.root,
        step=step,
        periods=setup.periods,
        clock=clock,
        leaves=leaf_names(trained),
        task=task_of(setup.experiment)[0],
        max_skips=setup.experiment.max_skips,
        tracker=tracker,
    )


def _profile(own: Claim, steps: range, report: Report) -> Profile:
    return Profile(own.root / "profile", steps if distributed.is_first() else range(0), say=report.line, shown=own.path / "profile")


def _result(setup: Setup, report: Report, step: int) -> dict[str, Any]:
    """The last evaluation of a run that is done; otherwise a signal stopped the run.

    A run is also done if its evaluations no longer get better.
    """
    total, result = setup.periods.total, report.evaluation_at(step)
    if not result or (step < total and not report.stalls(step)):
        raise Stopped(step)
    if step < total:
        report.line(f"stopped at step {step} of {total}: no better evaluation in stop_after={setup.experiment.stop_after!r}")
    return result


def _evaluate(setup: Setup, report: Report, state: State, step: int, should_stop: Callable[[], bool]) -> None:
    """Evaluates if an evaluation is due and not yet recorded.

    After a request to stop it is left to the resumed run.
    """
    if not setup.periods.evaluates_at(step) or report.evaluation_at(step) or should_stop():
        return
    result = setup.evaluate(state, should_stop)
    if result is not None:
        report.evaluation(step, result)


def _beginning(setup: Setup, teacher: Trained | None, state: State, step: int, compile_seconds: float) -> str:
    count = sum(x.size for x in jax.tree.leaves(state["params"]))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if jax.process_count() > 1:
        devices += f" in {jax.process_count()} processes"
    if sizes := [f"{axis} {size}" for axis, size in setup.mesh.shape.items() if size > 1 and axis != "data"]:
        devices += f", {' by '.join(sizes)}: each has {_share(setup.abstract_state)} of the state"
    taught = ""
    if teacher is not None:
        origin = ", ".join(f"{name} {value}" for name, value in teacher.origin.items())
        taught = f"; taught by {setup.experiment.loss.distillation.teacher} ({origin})"
    return (
        f"{setup.experiment.model.name}: {count:,} parameters, {len(setup.train_source):,} images, {setup.periods.total:,} steps of "
        f"{setup.experiment.batch_size} on {devices}{taught}; compiled in {compile_seconds:.1f} s"
        + (f"; resumed at step {step}" if step else "")
        + (", which is beyond the end: nothing is trained" if step > setup.periods.total else "")
    )


def _share(state: Any) -> str:
    share = share_of_device(state)
    why = f" (mesh.fsdp splits arrays of at least {FSDP_FLOOR:,} numbers, of which there is none that it divides)"
    return f"{share:.0%}" + (why if share == 1 else "")
