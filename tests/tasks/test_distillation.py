"""A run of a dense task is the teacher of another one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tasks.test_commands import tiny
from tests.tasks.test_losses import CASES, setting
from vitlab.config import ConfigError, DistillationConfig, LossConfig
from vitlab.tasks import task_of
from vitlab.tasks.registry import named_task
from vitlab.train.loop import train
from vitlab.train.setup import set_up

RNG = np.random.default_rng(1)


def losses(task, teacher, **options):
    """The summed loss of each image against annotations and teacher."""
    own, outputs, batch = named_task(task), CASES[task][1], CASES[task][2]
    told = setting(task)
    loss = LossConfig(distillation=DistillationConfig(teacher="runs/a", **options))
    told = dataclasses.replace(told, experiment=dataclasses.replace(told.experiment, loss=loss))
    found = jax.jit(lambda outputs, teacher: own.loss(outputs, {**jax.tree.map(jnp.asarray, batch), "teacher": teacher}, told))(
        outputs, teacher
    )
    (values,) = found.values()
    return np.asarray(values)


@pytest.mark.parametrize("task", ["segmentation", "depth", "regression"])
def test_alpha_lies_between_the_annotations_and_the_teacher(task):
    teacher = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), CASES[task][1])
    alone, taught, both = (losses(task, teacher, alpha=alpha) for alpha in (0.0, 1.0, 0.25))
    np.testing.assert_allclose(both, 0.75 * alone + 0.25 * taught, rtol=1e-5)  # float32
    assert (np.abs(taught - alone) > 1e-3).any()
    np.testing.assert_allclose(losses(task, CASES[task][1], alpha=1.0), 0, atol=1e-4)  # it says what the student says


def test_soft_targets_of_a_map_are_a_divergence_over_known_pixels():
    logits, teacher = np.asarray(CASES["segmentation"][1]["logits"], np.float64), RNG.normal(size=(4, 8, 12, 3))
    p, q = (np.exp(x / 2) / np.exp(x / 2).sum(-1, keepdims=True) for x in (teacher, logits))
    known = CASES["segmentation"][2]["segmentation"] != 255
    expected = 4 * np.where(known, (p * np.log(p / q)).sum(-1), 0).sum((1, 2))
    found = losses("segmentation", {"logits": jnp.asarray(teacher, jnp.float32)}, alpha=1.0, temperature=2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # float32


def taught_by(experiment, run, **options):
    return dataclasses.replace(experiment, loss=LossConfig(distillation=DistillationConfig(teacher=str(run), **options)))


def test_a_run_of_segmentation_teaches_another_head(tmp_path):
    student = tiny(
        "segmentation", duration="2 steps", eval_every="2 steps", mix=dataclasses.replace(tiny("segmentation").mix, cutmix_alpha=1.0)
    )
    other = dataclasses.replace(student, task=dataclasses.replace(student.task, fields={"head": "linear"}))
    train(student, tmp_path / "teacher")
    assert np.isfinite(train(taught_by(other, tmp_path / "teacher"), tmp_path / "student")["eval_loss"])
    with pytest.raises(ConfigError, match=r"was trained for task=segmentation \(image, segmentation\), the student for task=depth"):
        set_up(taught_by(tiny("depth"), tmp_path / "teacher"))


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("detection", {}, "loss means nothing"),
        ("restoration", {}, "loss means nothing"),
        ("depth", {"kind": "hard"}, "loss.distillation.kind means nothing"),
        ("regression", {"temperature": 2.0}, "loss.distillation.temperature means nothing"),
    ],
)
def test_what_no_teacher_can_give_is_refused(task, options, words):
    with pytest.raises(ConfigError, match=words):
        task_of(taught_by(tiny(task), "runs/a", **options))
