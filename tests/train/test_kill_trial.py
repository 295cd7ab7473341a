"""Runs killed by kill -9, at system calls of every kind that writes and at any moment.

Each run is resumed to its end. The figures are in docs/reliability.md: python -m pytest -m slow -s
tests/train/test_kill_trial.py
"""

import collections
import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.processes import SECONDS
from tests.train.conftest import checksums, config_file, start, tiny_experiment, wait_for

KILLS = 30  # number of kills in each test
STEPS = 200
CALLS = ("write", "pwrite64", "openat", "rename", "mkdir", "unlink", "rmdir", "fsync", "close", "ftruncate", "futex")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    experiment = tiny_experiment(duration=f"{STEPS} steps", keep_every="50 steps")
    config = config_file(folder, experiment)
    process = start(config, folder / "run")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return config, folder / "run"


def trial(reference, tmp_path, kill, rng):
    """Starts the run again and again, to be killed, until there were KILLS kills.

    Returns:
      Counts of the outcomes.
    """
    config, whole = reference
    run, outcomes = tmp_path / "run", collections.Counter()
    while outcomes["killed"] < KILLS:
        process = start(config, run, "--config.data.num_workers=1" if rng.random() < 0.2 else "")
        kill(process, run)
        _, errors = process.communicate(timeout=SECONDS)  # a remaining worker would hold the pipes open
        worker = "Worker process was terminated unexpectedly with exit code -9" in errors
        assert process.returncode in (0, -signal.SIGKILL) or (worker and process.returncode == 1), errors
        outcomes["worker killed" if worker else "killed" if process.returncode else "done"] += 1
        if process.returncode == 0:
            assert checksums(run, STEPS) == checksums(whole, STEPS)
            assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
            shutil.rmtree(run)
    process = start(config, run)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    assert checksums(run, STEPS) == checksums(whole, STEPS)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    names = {path.name for path in run.iterdir()} | {path.name for path in (run / "checkpoints").iterdir()}
    assert not any("tmp" in name or "probe" in name for name in names), names
    return outcomes


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_kill_9_at_random_system_calls_and_the_same_command_again_gives_the_uninterrupted_run_bit_by_bit(reference, tmp_path):
    rng, calls = random.Random(), collections.Counter()

    def kill(process, run):
        call = rng.choice(CALLS)
        begun = (run / "metrics.jsonl") if rng.random() < 0.8 else (run / ".lock")
        before = begun.stat().st_mtime_ns if begun.exists() else 0
        wait_for(lambda: process.poll() is not None or (begun.exists() and begun.stat().st_mtime_ns != before))
        when = rng.randint(1, 200 if call in ("write", "futex", "openat", "close") else 20)  # number of the call, counted per thread
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={when}+"]
        subprocess.run([*command, "-p", str(process.pid)], stderr=subprocess.DEVNULL, timeout=SECONDS)
        if process.wait(timeout=SECONDS) == -signal.SIGKILL:
            calls[call] += 1

    print(f"system calls: {dict(trial(reference, tmp_path, kill, rng))} {dict(calls)}")


@pytest.mark.slow
def test_kill_9_at_random_moments_and_the_same_command_again_gives_the_uninterrupted_run_bit_by_bit(reference, tmp_path):
    rng = random.Random()

    def kill(process, run):
        begun = run / ".lock"
        before = begun.stat().st_mtime_ns if begun.exists() else 0
        wait_for(lambda: process.poll() is not None or (begun.exists() and begun.stat().st_mtime_ns != before))
        time.sleep(rng.random() * 5)
        process.kill()

    print(f"moments: {dict(trial(reference, tmp_path, kill, rng))}")
