"""Runs whose folder is moved or deleted while they train, or replaced by another."""

import json
import shutil
import signal

from tests.processes import SECONDS
from tests.train.conftest import config_file, start, steps_recorded, tiny_experiment, wait_for, wait_for_step
from vitlab.signals import EXIT_STOPPED

LONG = tiny_experiment(duration="100000 steps", eval_every="100000 steps", checkpoint_every="5 steps")


def steps_saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_a_run_whose_folder_was_moved_stops_and_leaves_the_run_that_took_its_place_alone(tmp_path):
    config, run, moved = config_file(tmp_path, LONG), tmp_path / "run", tmp_path / "moved"
    first = start(config, run)
    wait_for_step(first, run, 8)
    run.rename(moved)
    second = start(config, run, "--config.checkpoint_every=3 steps", "--config.keep_checkpoints=100")
    _, errors = first.communicate(timeout=SECONDS)
    told = f"error: the run folder {run} is no longer this run's: it was moved to {moved}; the same command with that --workdir"
    assert first.returncode == 1 and errors == f"{told} goes on with it\n"
    assert steps_saved(moved)[-1] >= steps_recorded(moved) >= 8  # nothing is lost
    wait_for_step(second, run, 12)
    second.send_signal(signal.SIGTERM)
    _, errors = second.communicate(timeout=SECONDS)
    assert second.returncode == EXIT_STOPPED, errors
    last = steps_saved(run)[-1]
    assert steps_saved(run)[:-1] == [step for step in range(3, last) if step % 3 == 0]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["step"] == 4


def test_a_run_whose_folder_was_deleted_says_so_and_makes_none_anew(tmp_path):
    config, run = config_file(tmp_path, LONG), tmp_path / "run"
    process = start(config, run)
    wait_for_step(process, run, 8)
    assert wait_for(lambda: shutil.rmtree(run, ignore_errors=True) or not run.exists())
    _, errors = process.communicate(timeout=SECONDS)
    *before, last = errors.splitlines()
    assert process.returncode == 1 and last == f"error: the run folder {run} is no longer this run's: it was deleted; nothing more is saved"
    assert all(" could not be saved " in line or " cannot be written " in line for line in before)  # while the folder was being deleted
    assert not run.exists()
