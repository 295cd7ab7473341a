"""A run that takes a second, and functions that compare runs."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import pytest

from tests.processes import SECONDS
from vitlab.config import AugmentConfig, DataConfig, Experiment, ModelConfig, OptimizerConfig, to_json
from vitlab.train.loop import train

CONFIG = """
import json
from vitlab.config import from_config_dict, to_config_dict

def get_config():
    return to_config_dict(from_config_dict(json.loads('''{json}''')))
"""


def tiny_experiment(**changes) -> Experiment:
    experiment = Experiment(
        model=ModelConfig(
            name="vit_tiny_patch16",
            image_size=28,
            drop_path_rate=0.1,
            fields={"patch_size": 14, "dim": 16, "depth": 2, "num_heads": 2},
        ),
        data=DataConfig(train_split="train[:64]", eval_split="test[:50]", num_threads=1),
        augment=AugmentConfig(crop="pad", pad=2),
        optimizer=OptimizerConfig(peak_lr=3e-3, warmup="2 steps"),
        batch_size=16,
        duration="60 steps",
        log_every="4 steps",
        eval_every="20 steps",
        checkpoint_every="7 steps",
    )
    return dataclasses.replace(experiment, **changes)


_started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_run_outlives_its_test():
    yield
    for process in _started:
        if process.poll() is None:
            process.kill()
    _started.clear()


def config_file(folder: pathlib.Path, experiment: Experiment, fault: str = "") -> pathlib.Path:
    """Writes a config file; it is code, so it can also contain a fault."""
    path = folder / "config_file.py"
    path.write_text(CONFIG.format(json=to_json(experiment)) + fault)
    return path


def start(config: pathlib.Path, workdir: pathlib.Path, *arguments: str, num_devices: int = 1, **options) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    env = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, "-m", "vitlab.train", f"--config={config}", f"--workdir={workdir}", *filter(None, arguments)]
    _started.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options))
    return _started[-1]


def steps_recorded(workdir: pathlib.Path) -> int:
    path = workdir / "metrics.jsonl"
    steps = re.findall(r'"step": (\d+)', path.read_text()) if path.exists() else []
    return int(steps[-1]) if steps else 0


def wait_for_step(process: subprocess.Popen, workdir: pathlib.Path, step: int) -> None:
    wait_for(lambda: process.poll() is not None or steps_recorded(workdir) >= step)


def wait_for(condition, seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


def worker_processes(process: subprocess.Popen) -> list[int]:
    """Returns the ids of the data workers of a run."""
    return [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*") if _is_worker(path, process.pid)]


def all_gone(pids: list[int]) -> bool:
    """Whether the processes end within seconds.

    A dead process that was not yet waited for has no command line.
    """
    return wait_for(lambda: not any(_runs(pid) for pid in pids), seconds=60)


def _is_worker(path: pathlib.Path, run: int) -> bool:
    try:
        parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == run and b"spawn_main" in (path / "cmdline").read_bytes()
    except OSError:
        return False


def _runs(pid: int) -> bool:
    try:
        return bool(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def checksums(workdir: pathlib.Path, step: int) -> dict[str, str]:
    """Returns SHA-256 of every leaf of parameters, optimizer state and counters."""
    leaves = json.loads((workdir / "checkpoints" / str(step) / "manifest" / "metadata").read_text())["leaves"]
    return {name: leaf["sha256"] for name, leaf in leaves.items()}


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tiny_experiment(), workdir)
    return workdir
