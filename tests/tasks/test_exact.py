"""An evaluation is the same to the last bit, however its images are batched and over however many
devices they lie.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.processes import SECONDS
from tests.tasks.test_commands import tiny
from vitlab.data import open_source
from vitlab.evaluate.split import evaluate, make_eval_step, open_batches
from vitlab.functional import functional
from vitlab.heads.center_point import CenterMaps
from vitlab.models.registry import Preprocessing
from vitlab.parallel.mesh import make_mesh
from vitlab.tasks import class_names_of, names_of, setting_of, task_of


def stored(task, images):
    """Outputs that follow from the pixels by whole numbers alone, in place of a model's, whose own
    rounding depends on the batch.
    """
    x = images.astype(jnp.float32).sum(-1)
    if task == "segmentation":
        return {"logits": jnp.stack([(x * (k + 3)) % 17 for k in range(11)], -1)}
    if task == "detection":
        heat = jnp.stack([(x * (k + 7)) % 19 - 9 for k in range(10)], -1)[:, ::4, ::4]
        return CenterMaps(heat, heat[..., :2] / 16, heat[..., 2:4] / 16)
    if task == "stereo":
        return jnp.stack([(x * (k + 5)) % 13 for k in range(9)], -1)
    return {
        "depth": x % 5 - 1,
        "regression": x.sum((1, 2)) % 7,
        "multilabel": (x[:, 0, :10] % 9) - 4,
        "restoration": images + x[..., None] % 3,
    }[task]


def results(task, batch_size, devices=1):
    experiment = tiny(task)
    own, options = task_of(experiment)
    source = open_source(experiment.data, train=False, fields=names_of(own, options))
    model, weights = functional(_Model())
    setting = setting_of(experiment, options, model.preprocessing, num_classes=len(class_names_of(source)))
    evaluation, mesh = own.evaluation(setting), make_mesh(devices=jax.devices()[:devices])

    model = dataclasses.replace(model, forward=lambda trunk, head, batch, **_: stored(task, batch["image"]))
    step = make_eval_step(model, mesh, evaluation, lambda batch: own.prepare(batch, None, setting))
    batches = open_batches(model, source, experiment, channels=3, batch_size=batch_size, mesh=mesh)
    found = evaluate(step, weights, batches, evaluation, mesh=mesh)
    assert found.pop("images") == 8
    found.pop("images_per_second")
    return found


class _Model(nnx.Module):
    """Nothing but the size of its images."""

    def __init__(self):
        self.preprocessing = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, image_size=(32, 32))


TASKS = ("segmentation", "detection", "stereo", "depth", "regression", "multilabel", "restoration")


@pytest.mark.parametrize("task", TASKS)
def test_neither_the_batch_nor_its_padding_changes_a_digit(task):
    whole = results(task, 8)
    assert len(whole) >= 2
    for batch_size in (1, 3, 16):
        assert results(task, batch_size) == whole


def test_devices_change_no_digit():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    lines = (
        "import json",
        "from tests.tasks.test_exact import TASKS, results",
        "print(json.dumps([[results(task, 8, devices) for devices in (1, 2, 4)] for task in TASKS]))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for one, two, four in json.loads(done.stdout.splitlines()[-1]):
        assert one == two == four


def test_processes_change_no_digit():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    lines = (
        "import json, sys",
        "from vitlab.parallel.distributed import initialize",
        "initialize(sys.argv[1], 2, int(sys.argv[2]))",
        "from tests.tasks.test_exact import results",
        "print(json.dumps([results(task, 6, 2) for task in ('segmentation', 'detection')]))",
    )
    command = [sys.executable, "-c", "\n".join(lines), address]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(index)], **pipes) for index in (0, 1)]
    try:
        for output, errors in [process.communicate(timeout=SECONDS) for process in processes]:
            assert output, errors
            assert json.loads(output.splitlines()[-1]) == [results(task, 8) for task in ("segmentation", "detection")]
    finally:
        for process in processes:
            process.kill()
