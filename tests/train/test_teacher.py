import json
import logging
import shutil

import jax
import numpy as np
import pytest

from tests.processes import SECONDS
from tests.train.conftest import checksums, config_file, start, tiny_experiment
from vitlab import signals
from vitlab.config import ConfigError, DistillationConfig, LossConfig, MeshConfig, ModelConfig, smoke
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.trained import from_run
from vitlab.train import loop
from vitlab.train.loop import train
from vitlab.train.setup import set_up

SHORT = {"duration": "12 steps", "eval_every": "12 steps"}
FIELDS = {"patch_size": 14, "dim": 16, "depth": 1, "num_heads": 2}  # fields of a ViT
DEVICES_TOLERANCE = 1e-4  # as in test_loop


def taught_by(workdir, *, alpha=0.5, kind="soft", **changes):
    distillation = DistillationConfig(teacher=str(workdir), kind=kind, alpha=alpha, temperature=2.0)
    return tiny_experiment(loss=LossConfig(distillation=distillation), **{**SHORT, **changes})


def records(workdir, name):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


@pytest.fixture
def edited(uninterrupted, tmp_path):
    """Returns a copy of the teacher's run with another config or other data."""

    def edit(model=None, **data):
        folder = tmp_path / "teacher"
        shutil.copytree(uninterrupted, folder)
        for name, change in (("config.json", {"model": model or {}}), ("data.json", data)):
            content = json.loads((folder / name).read_text())
            for key, value in change.items():
                content[key] = {**content[key], **value} if isinstance(value, dict) else value
            (folder / name).write_text(json.dumps(content))
        return folder

    return edit


def test_a_distilled_run_is_compiled_once_and_resumes_bit_by_bit_without_its_teacher_in_the_checkpoint(
    tmp_path, uninterrupted, monkeypatch, caplog, capsys
):
    experiment = taught_by(uninterrupted, model=ModelConfig(name="deit_tiny_distilled_patch16", image_size=28, fields=FIELDS))
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        train(experiment, tmp_path / "whole")
    compiled = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Finished XLA compilation")]
    assert sum("jit(train_step)" in message for message in compiled) == 1, compiled
    assert f"taught by {uninterrupted} (model vit_tiny_patch16, step 60)" in capsys.readouterr().out

    class StopAfterFiveSteps(signals.StopRequest):
        asked = 0

        @property
        def requested(self):
            self.asked += 1
            return self.asked > 6  # asked once before the compilation, then once per step

    with monkeypatch.context() as patch:
        patch.setattr(loop, "StopRequest", StopAfterFiveSteps)
        with pytest.raises(signals.Stopped, match="step 5"):
            train(experiment, tmp_path / "resumed")
    train(experiment, tmp_path / "resumed")
    assert checksums(tmp_path / "resumed", 12) == checksums(tmp_path / "whole", 12)
    assert (tmp_path / "resumed" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    groups = {name.split("/")[0] for name in checksums(tmp_path / "whole", 12)}
    assert groups == {"params", "opt_state", "step", "interval", "skips"}


def test_the_teachers_weights_are_an_argument_of_the_step_that_is_not_given_away(uninterrupted):
    setup = set_up(taught_by(uninterrupted, alpha=1.0))
    teacher, step = setup.restore_teacher().weights, setup.train_step.lower().compile()
    with setup.open_train_batches(0) as batches:
        batch = loop.shard_batch(next(batches), setup.mesh)
    losses = [step(setup.initial_state(), batch, w)[1]["loss"] for w in (teacher, jax.tree.map(lambda x: x * 0, teacher), teacher)]
    assert losses[0] == losses[2] != losses[1]
    donated = [{leaf.donated for leaf in jax.tree.leaves(argument)} for argument in setup.train_step.args_info[0]]
    assert donated == [{True}, {False}, {False}]


def test_the_averaged_weights_teach_where_the_run_averages(tmp_path):
    train(tiny_experiment(ema_decay=0.8, **SHORT), tmp_path / "teacher")
    teacher = set_up(taught_by(tmp_path / "teacher")).restore_teacher()
    raw, averaged = (from_run(tmp_path / "teacher", make_mesh(), raw=raw).weights["params"] for raw in (True, False))
    jax.tree.map(np.testing.assert_array_equal, teacher.weights["params"], averaged)
    assert not np.array_equal(raw["head"]["kernel"], teacher.weights["params"]["head"]["kernel"])


def test_a_step_pins_the_teacher(tmp_path, uninterrupted):
    steps = sorted(int(path.name) for path in (uninterrupted / "checkpoints").iterdir() if path.name.isdigit())
    loss = LossConfig(distillation=DistillationConfig(teacher=str(uninterrupted), step=steps[0]))
    teacher = set_up(tiny_experiment(loss=loss, **SHORT)).restore_teacher()
    assert teacher.origin["step"] == steps[0] < steps[-1]
    wrong = LossConfig(distillation=DistillationConfig(teacher=str(uninterrupted), step=steps[-1] + 1))
    with pytest.raises(ConfigError, match=r"loss\.distillation\.teacher: .*step"):
        set_up(tiny_experiment(loss=wrong, **SHORT)).restore_teacher()


def test_the_share_of_the_peak_counts_the_teachers_products_once(uninterrupted, monkeypatch):
    monkeypatch.setattr("vitlab.train.setup.peak_flops", lambda kind: 1e12)
    alone, taught = set_up(tiny_experiment(**SHORT)).peak_speed(), set_up(taught_by(uninterrupted)).peak_speed()
    assert taught == pytest.approx(alone * 3 / 4)  # the teacher has the student's size


def test_four_devices_that_split_the_teacher_follow_the_loss_of_one(tmp_path):
    wide = ModelConfig(name="vit_tiny_patch16", image_size=28, fields={"patch_size": 14, "dim": 128, "depth": 1, "num_heads": 2})
    short = {"model": wide, "duration": "5 steps", "eval_every": "5 steps", "eval_batch_size": 20, "log_every": "1 steps"}
    train(tiny_experiment(**short), tmp_path / "teacher")
    split = taught_by(tmp_path / "teacher", mesh=MeshConfig(fsdp=4), **short)
    process = start(config_file(tmp_path, split), tmp_path / "four", num_devices=4)
    train(taught_by(tmp_path / "teacher", **short), tmp_path / "one")
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    one, four = (list(records(tmp_path / n, "train_loss").values()) for n in ("one", "four"))
    assert len(one) == 5
    np.testing.assert_allclose(four, one, rtol=0, atol=DEVICES_TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"image_size": 42}}, r"has \(42, 42\) pixels \(height, width\), the student \(28, 28\)"),
        ({"model": {"in_channels": 3}}, "has 3 image channels, the student 1"),
        ({"channels": 3}, "has 3 image channels, the student 1"),
        ({"model": {"num_classes": 12}}, "has 12 classes, the student 10"),
        ({"class_names": [f"class {i}" for i in range(10)]}, "knows other classes: number 0 is 'class 0', of the data "),
        ({"class_names": ["a", "b"], "model": {"num_classes": 10}}, "knows other classes: 2 of them, the data has 10"),
    ],
)
def test_a_teacher_of_other_images_or_classes_is_refused_in_one_line(tmp_path, edited, changes, words):
    with pytest.raises(ConfigError, match=rf"^loss\.distillation\.teacher=\S+ {words}") as refused:
        train(taught_by(edited(**changes)), tmp_path / "run")
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


def test_a_teacher_that_is_not_there_is_refused_in_one_line(tmp_path, edited):
    with pytest.raises(ConfigError, match=r"^loss\.distillation\.teacher: .*none is no run folder: .* \(No such file or directory\)$"):
        train(taught_by(tmp_path / "none"), tmp_path / "run")
    shutil.rmtree((folder := edited()) / "checkpoints")
    with pytest.raises(ConfigError, match=r"^loss\.distillation\.teacher: .*teacher has no checkpoint yet$"):
        train(taught_by(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_smoke_leaves_the_teacher_out():
    assert smoke(taught_by("/none")).loss.distillation.teacher == ""
