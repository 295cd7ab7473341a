import os
import random
import re
import signal
import time

import pytest

from tests.processes import SECONDS
from tests.train.conftest import (
    all_gone,
    checksums,
    config_file,
    start,
    tiny_experiment,
    wait_for_step,
    worker_processes,
)
from vitlab import signals
from vitlab.signals import EXIT_STOPPED
from vitlab.train import loop
from vitlab.train.__main__ import main
from vitlab.train.loop import train


def assert_same_run(workdir, other):
    assert checksums(workdir, 60) == checksums(other, 60)
    assert (workdir / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted_on_four(tmp_path_factory):
    folder = tmp_path_factory.mktemp("four")
    process = start(config_file(folder, tiny_experiment()), folder / "run", num_devices=4)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return folder / "run"


@pytest.mark.parametrize(("num_devices", "reference", "kills"), [(1, "uninterrupted", (4, 20, 36)), (4, "uninterrupted_on_four", (10, 30))])
def test_kill_9_at_random_steps_and_the_same_command_again_gives_the_uninterrupted_run_bit_by_bit(
    tmp_path, request, num_devices, reference, kills
):
    workdir, config, rng = tmp_path / "run", config_file(tmp_path, tiny_experiment()), random.Random()
    for step in kills:
        with_workers = step == kills[1]
        process = start(config, workdir, "--config.data.num_workers=1" if with_workers else "", num_devices=num_devices)
        wait_for_step(process, workdir, step + rng.randint(0, 8))
        time.sleep(rng.random() * 0.02)
        workers = worker_processes(process)
        process.kill()
        process.communicate(timeout=SECONDS)  # a remaining worker would hold the pipes open
        assert process.returncode == -signal.SIGKILL
        assert len(workers) == with_workers and all_gone(workers)
    _, errors = (process := start(config, workdir, num_devices=num_devices)).communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert_same_run(workdir, request.getfixturevalue(reference))


def test_sigterm_saves_the_exact_step_and_exits_with_42_and_the_run_goes_on_bit_by_bit(tmp_path, uninterrupted):
    workdir = tmp_path / "run"
    process = start(config_file(tmp_path, tiny_experiment()), workdir, "--config.data.num_workers=1")
    wait_for_step(process, workdir, 4)
    workers = worker_processes(process)
    os.kill(workers[0], signal.SIGTERM)  # a launcher does so, and Ctrl-C in a terminal; the run still needs the worker's batches
    wait_for_step(process, workdir, 16)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == EXIT_STOPPED, errors
    assert len(workers) == 1 and all_gone(workers)
    step = int(re.search(r"stopped at step (\d+)", errors)[1])
    assert 16 <= step < 60 and checksums(workdir, step)
    train(tiny_experiment(), workdir)
    assert_same_run(workdir, uninterrupted)


def test_a_stop_during_evaluation_leaves_the_evaluation_to_the_resumed_run(tmp_path, uninterrupted, monkeypatch):
    class StopInFirstEvaluation(signals.StopRequest):
        asked = 0

        @property
        def requested(self):
            # The loop asks before it compiles, then once per step; at step 20 it asks before the
            # evaluation, which asks at each batch.
            self.asked += 1
            return self.asked > 24

    monkeypatch.setattr(loop, "StopRequest", StopInFirstEvaluation)
    workdir = tmp_path / "run"
    try:
        train(tiny_experiment(), workdir)
    except signals.Stopped as stopped:
        assert stopped.step == 20
    assert "eval_top1" not in (workdir / "metrics.jsonl").read_text()
    monkeypatch.undo()
    train(tiny_experiment(), workdir)
    assert_same_run(workdir, uninterrupted)


def test_the_same_seed_twice_is_bit_equal_and_another_seed_is_not(tmp_path, uninterrupted):
    train(tiny_experiment(), tmp_path / "same")
    assert_same_run(tmp_path / "same", uninterrupted)
    train(tiny_experiment(seed=1), tmp_path / "other")
    assert checksums(tmp_path / "other", 60) != checksums(uninterrupted, 60)


def test_a_checkpoint_beyond_a_shortened_duration_is_evaluated_as_it_is_and_the_run_is_done(tmp_path, capsys, monkeypatch):
    """Otherwise a launcher that requeues on exit code 42 would never end."""

    class StopAfterSixteenQuestions(signals.StopRequest):
        asked = 0

        @property
        def requested(self):
            self.asked += 1
            return self.asked > 16

    long, short = (tiny_experiment(duration=f"{steps} steps", eval_every="100 steps") for steps in (30, 12))
    with monkeypatch.context() as patch, pytest.raises(signals.Stopped) as stopped:
        patch.setattr(loop, "StopRequest", StopAfterSixteenQuestions)
        train(long, tmp_path / "run")
    assert stopped.value.step == 15
    for again in (False, True):
        assert main([f"--config={config_file(tmp_path, short)}", f"--workdir={tmp_path / 'run'}", "--allow_changes"]) == 0
        output, _ = capsys.readouterr()
        assert "resumed at step 15, which is beyond the end: nothing is trained" in output and "after 15 steps" in output
        assert ("step 15 evaluation" in output) != again
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("eval_top1") == 1


def test_training_a_finished_run_again_changes_nothing(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    result = train(tiny_experiment(), uninterrupted)
    assert result["step"] == 60 and result["eval_images"] == 50
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before
