"""Real processes on this machine, which connect over the loopback and sum over Gloo."""

import dataclasses
import json
import re
import signal
import socket

import numpy as np
import pytest

from tests.processes import SECONDS
from tests.train.conftest import checksums, config_file, start, tiny_experiment, wait_for_step
from vitlab.config import ConfigError, MeshConfig
from vitlab.parallel import distributed
from vitlab.signals import EXIT_STOPPED

# Two devices of one process and of two sum alike: over 24 steps the deviation is 0, also with four.
TOLERANCE = 1e-6


def start_all(config, workdir, *arguments: tuple[str, ...]):
    """Starts one process for each tuple of arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = (f"--coordinator=127.0.0.1:{free.getsockname()[1]}", f"--num_processes={len(arguments)}")
    return [start(config, workdir, *where, f"--process_id={i}", *own) for i, own in enumerate(arguments)]


def finish(processes, code):
    """Returns each process's stdout and stderr."""
    results = [process.communicate(timeout=SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), results
    return results


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_stop_together_at_one_step_and_give_the_run_of_one_process_with_as_many_devices(tmp_path):
    experiment = tiny_experiment(duration="24 steps", eval_every="12 steps", eval_batch_size=20)
    config, run = config_file(tmp_path, experiment), tmp_path / "two"
    processes = start_all(config, run, (), ())
    wait_for_step(processes[0], run, 4)
    processes[1].send_signal(signal.SIGTERM)
    results = finish(processes, EXIT_STOPPED)
    steps = {re.search(r"stopped at step (\d+)", errors)[1] for _, errors in results}
    assert len(steps) == 1 and 4 <= int(*steps) < 24 and checksums(run, int(*steps))
    assert "step 4/24" in results[0][0] and "step" not in results[1][0]  # only the first process prints

    (output, _), _ = finish(start_all(config, run, (), ()), 0)
    assert "on 2 x cpu in 2 processes" in output and f"resumed at step {int(*steps)}" in output
    finish([start(config, tmp_path / "one", num_devices=2)], 0)
    assert len(records(run)) == 8
    agree(run, tmp_path / "one")


def test_four_processes_split_parameters_and_two_of_them_read_the_same_images_and_give_the_run_of_one(tmp_path):
    fields = {**tiny_experiment().model.fields, "dim": 128}  # a kernel above the floor of fsdp
    experiment = tiny_experiment(duration="8 steps", eval_every="8 steps", eval_batch_size=20, mesh=MeshConfig(fsdp=2, tensor=2))
    config = config_file(tmp_path, dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, fields=fields)))
    (output, _), *_ = finish(start_all(config, tmp_path / "four", (), (), (), ()), 0)
    assert "on 4 x cpu in 4 processes" in output
    finish([start(config, tmp_path / "one", num_devices=4)], 0)
    agree(tmp_path / "four", tmp_path / "one")


def agree(several, one):
    """Checks for equal lines with equal values, and that all images were evaluated."""
    several, one = records(several), records(one)
    assert [line.keys() for line in several] == [line.keys() for line in one]
    assert several[-1]["eval_images"] == one[-1]["eval_images"] == 50  # 3 batches of 20, each image once
    for a, b in zip(several, one, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=TOLERANCE, atol=TOLERANCE)


def test_what_one_process_cannot_do_none_does_and_all_say_why(tmp_path):
    config = config_file(tmp_path, tiny_experiment())
    results = finish(start_all(config, tmp_path / "run", (), ("--config.seed=1",)), 2)
    assert all("error: process 1: has another config or data than process 0" in errors for _, errors in results)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "node[1-2]"}, (8, 3)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a batch script outside of srun
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, (4, 1)),
    ],
)
def test_the_number_of_the_process_is_the_launchers(environment, expected):
    assert distributed._launched(environment) == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("host:1", None, 0), "needs --num_processes and --process_id"),
        ((None, 2, 0), "--coordinator=HOST:PORT needs"),
        (("host:1", 2, 2), "must be in"),
    ],
)
def test_incomplete_flags_are_refused(flags, words, monkeypatch):
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=words):
        distributed.initialize(*flags)


def test_open_mpi_5_is_told_what_is_missing(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.delenv("OMPI_MCA_orte_hnp_uri", raising=False)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(ConfigError, match="add --coordinator=HOST:PORT"):
        distributed.initialize(None, None, None)
