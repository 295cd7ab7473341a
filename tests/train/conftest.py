"""A run that takes a second, and what to compare of it."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

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


def config_file(folder: pathlib.Path, experiment: Experiment) -> pathlib.Path:
    path = folder / "config_file.py"
    path.write_text(CONFIG.format(json=to_json(experiment)))
    return path


def start(config: pathlib.Path, workdir: pathlib.Path, *, num_devices: int = 1) -> subprocess.Popen:
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"}
    command = [sys.executable, "-m", "vitlab.train", f"--config={config}", f"--workdir={workdir}"]
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def checksums(workdir: pathlib.Path, step: int) -> dict[str, str]:
    """SHA-256 of every leaf of parameters, optimizer state and counters."""
    leaves = json.loads((workdir / "checkpoints" / str(step) / "manifest" / "metadata").read_text())["leaves"]
    return {name: leaf["sha256"] for name, leaf in leaves.items()}


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tiny_experiment(), workdir)
    return workdir
