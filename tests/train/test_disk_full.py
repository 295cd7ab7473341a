"""Runs on a full disk: RLIMIT_FSIZE makes the system refuse every write, as a full disk does."""

import errno

import orbax.checkpoint as ocp

from tests.processes import SECONDS
from tests.train.conftest import checksums, config_file, start, tiny_experiment
from vitlab.train.__main__ import main

FULL_FROM_STEP_10_TO_25 = """
import resource
from vitlab.train.report import Report

step_and_no_more = Report.step

def step(self, number, metrics):
    if number in (10, 25):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if number == 10 else resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    step_and_no_more(self, number, metrics)

Report.step = step
"""


def test_a_disk_that_is_full_for_a_while_costs_only_the_checkpoints_of_that_while(tmp_path, uninterrupted):
    process = start(config_file(tmp_path, tiny_experiment(), FULL_FROM_STEP_10_TO_25), tmp_path / "run")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert "metrics.jsonl cannot be written (File too large)" in errors
    assert all(f"step {step} could not be saved" in errors for step in (14, 20, 21)) and "step 28" not in errors
    assert checksums(tmp_path / "run", 60) == checksums(uninterrupted, 60)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()


def test_when_nothing_could_be_saved_the_command_fails_at_the_end_and_says_why(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    config = config_file(tmp_path, tiny_experiment(duration="8 steps"))
    assert main([f"--config={config}", f"--workdir={tmp_path / 'run'}"]) == 1
    output, errors = capsys.readouterr()
    assert "step 8 evaluation" in output and "done" not in output
    assert "error: step 8 could not be saved" in errors and "No space left on device; nothing is saved" in errors
