"""Stuck runs, and stuck or dead data workers; /dev/shm and the workers are checked afterwards."""

import contextlib
import os
import pathlib
import signal

import pytest

from tests.data.test_workers import named_memory
from tests.processes import SECONDS
from tests.train.conftest import all_gone, config_file, start, tiny_experiment, wait_for_step, worker_processes
from vitlab.train.watchdog import EXIT_STUCK

# From step 4 on the watchdog waits only eight seconds, which a busy machine may need for a step.
# Before, it waits for the compilation.
IMPATIENT = """
from vitlab.train import watchdog
from vitlab.train.report import Report

begin, step_and_no_more, dogs = watchdog.Watchdog.__enter__, Report.step, []

def enter(self):
    dogs.append(self)
    return begin(self)

def step(self, number, metrics):
    if number == 4:
        dogs[0].seconds = 8
    step_and_no_more(self, number, metrics)

watchdog.Watchdog.__enter__, Report.step, watchdog._HARD_SECONDS = enter, step, 1
"""

# The call holds the interpreter's lock, so that no other Python thread can run, not even the
# watchdog's.
STUCK_INTERPRETER = """
import ctypes

def stuck_step(self, number, metrics):
    step(self, number, metrics)
    if number == 6:
        dogs[0].seconds = 2
        dogs[0].alive()
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.PyDLL(None).pthread_mutex_lock(mutex)

Report.step = stuck_step
"""


def test_a_step_that_is_stuck_with_the_whole_interpreter_shows_its_stack_and_ends(tmp_path):
    process = start(config_file(tmp_path, tiny_experiment(), IMPATIENT + STUCK_INTERPRETER), tmp_path / "run")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, errors
    assert "Timeout (0:00:03)!" in errors and "in stuck_step" in errors and "loop.py" in errors


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (signal.SIGSTOP, EXIT_STUCK, "error: no progress for 8 s (--watchdog_seconds); the stacks of all threads:"),
        (signal.SIGKILL, 1, "RuntimeError: Worker process was terminated unexpectedly with exit code -9"),
    ],
)
def test_a_worker_that_is_stuck_or_dead_ends_the_run_and_nothing_is_left_behind(tmp_path, harm, code, words):
    config = config_file(tmp_path, tiny_experiment(duration="1e6 steps", eval_every="1e6 steps"), IMPATIENT)
    process = start(config, tmp_path / "run", "--config.data.num_workers=2")
    wait_for_step(process, tmp_path / "run", 8)
    workers = worker_processes(process)
    names = named_memory([process.pid, *workers])
    os.kill(workers[0], harm)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == code and words in errors, errors
    assert len(workers) == 2 and all_gone(workers)
    assert not names  # the memory has no name, so that none can be left
    if code == EXIT_STUCK:
        assert "loop.py" in errors and f"and of worker process {workers[1]}" in errors and "workers.py" in errors


def test_a_run_that_is_killed_with_its_whole_process_group_leaves_no_worker_and_no_shared_memory(tmp_path):
    before = set(os.listdir("/dev/shm"))
    experiment = tiny_experiment(duration="1e6 steps", eval_every="1e6 steps")
    process = start(config_file(tmp_path, experiment), tmp_path / "run", "--config.data.num_workers=2", start_new_session=True)
    wait_for_step(process, tmp_path / "run", 8)
    workers = worker_processes(process)
    names = named_memory([process.pid, *workers])
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGKILL and len(workers) == 2 and all_gone(workers)
    left = set(os.listdir("/dev/shm")) - before  # other programs of this machine may come and go
    assert not names and not [name for name in left if name.startswith(("psm_", "sem.mp-")) and not is_in_use(name)]


def is_in_use(name: str) -> bool:
    """Whether some running process has the shared memory mapped."""
    for maps in pathlib.Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if f"/dev/shm/{name}" in maps.read_text():
                return True
    return False
