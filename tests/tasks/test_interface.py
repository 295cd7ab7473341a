"""A task is found by its name, its options are checked, and one from outside needs nothing of this
tree.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.tasks.test_commands import pictures, tiny
from vitlab import predict
from vitlab.config import ConfigError, DataConfig, Experiment, MixConfig, TaskConfig, from_config_dict, to_config_dict, to_json
from vitlab.evaluate import __main__ as evaluate
from vitlab.runs.start import start_from_run
from vitlab.tasks import build, task_of
from vitlab.train.loop import train
from vitlab.train.setup import set_up

OWN = '''
"""The mean brightness of a picture, as a task."""

import jax.numpy as jnp
from flax import nnx

from vitlab.data.fields import Value
from vitlab.tasks import Evaluation, Task


class Head(nnx.Module):
    def __init__(self, setting, feature_info, rngs):
        self.linear = nnx.Linear(feature_info[-1].dim, 1, rngs=rngs)

    def __call__(self, features, *, train, rngs=None):
        return self.linear(features[-1].mean((1, 2)))[:, 0]


def truth(batch):
    return batch["image"].astype(jnp.float32).mean((1, 2, 3)) / 255


TASK = Task(
    fields=lambda options: (),
    head=Head,
    loss=lambda outputs, batch, setting: {"loss": jnp.square(outputs - truth(batch))},
    evaluation=lambda setting: Evaluation(
        measure=lambda outputs, batch: {"error": jnp.abs(outputs - truth(batch))},
        finish=lambda totals, images: {"mae": float(totals["error"].mean())} if images else {},
        rows=("error",),
    ),
    best=("mae", "min"),
    results={"brightness": Value()},
    predictions=lambda outputs, setting: {"brightness": outputs},
)
'''


def options(**fields):
    return Experiment(task=TaskConfig(name="segmentation", fields=fields))


@pytest.mark.parametrize(
    ("experiment", "words"),
    [
        (lambda: Experiment(task=TaskConfig(name="segmentatoin")), 'unknown task "segmentatoin".*segmentation'),
        (lambda: options(haed="dpt"), 'task "segmentation" has no option "haed".*head'),
        (lambda: options(head=3), "task.head=3 must be"),
        (lambda: options(head="attention_pool"), "must be one of linear, fcn"),
        (lambda: options(aux_weight=-1.0), r"aux_weight=-1.0 must be in \[0, 100\]"),
        (lambda: dataclasses.replace(options(), mix=MixConfig(mixup_alpha=1.0)), 'mix.mixup_alpha means nothing to task "segmentation"'),
        (lambda: dataclasses.replace(tiny("stereo"), mix=MixConfig(cutmix_alpha=1.0)), 'mix means nothing to task "stereo"'),
        (lambda: Experiment(task=TaskConfig(name="depth", fields={"mosaic_prob": 0.5})), 'task "depth" has no option "mosaic_prob"'),
        (lambda: Experiment(task=TaskConfig(fields={"head": "dpt"})), 'task "classification" has no option "head": it has none'),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(experiment, words):
    with pytest.raises(ConfigError, match=words):
        task_of(experiment())


def test_options_stand_beside_the_name_and_survive_the_outer_forms():
    experiment = options(head_options={"dim": 8}, aux_weight=0.4)
    assert json.loads(to_json(experiment))["task"] == {"name": "segmentation", "head_options": {"dim": 8}, "aux_weight": 0.4}
    assert from_config_dict(to_config_dict(experiment)) == experiment
    old = json.loads(to_json(Experiment()))
    del old["task"]  # as runs before tasks have it
    assert from_config_dict(old) == Experiment()


def test_data_without_a_field_of_the_task_is_refused():
    with pytest.raises(ConfigError, match='has no field "segmentation", which the task needs'):
        set_up(dataclasses.replace(tiny("segmentation"), data=DataConfig(source="bundled")))


def test_a_head_hangs_beside_the_trunk_whose_parameters_keep_their_names():
    model, create = build(tiny("segmentation"), num_classes=11, channels=3)
    params = create()["params"]
    assert set(params) == {"patch_embed", "pos_embed", "blocks", "norm", "task_head"}
    assert jax.tree.map(lambda x: x.shape, params) == jax.tree.map(lambda x: x.shape, model.shapes["params"])


def test_a_run_of_classes_is_the_trunk_of_another_task(tmp_path):
    dense = tiny("segmentation")
    classes = dataclasses.replace(
        dense,
        task=TaskConfig(),
        data=dataclasses.replace(dense.data, source="bundled"),
        model=dataclasses.replace(dense.model, in_channels=3),
    )
    train(classes, tmp_path / "classes")
    model, create = build(dense, num_classes=11, channels=3)
    fresh = create()
    begun = start_from_run(model, fresh, tmp_path / "classes", None)["params"]
    assert not np.array_equal(begun["norm"]["scale"], fresh["params"]["norm"]["scale"])
    for ours, theirs in zip(jax.tree.leaves(begun["task_head"]), jax.tree.leaves(fresh["params"]["task_head"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_task_of_a_file_outside_trains_evaluates_and_predicts(tmp_path, capsys):
    (tmp_path / "own.py").write_text(OWN)
    experiment = dataclasses.replace(tiny("regression"), task=TaskConfig(name=f"{tmp_path}/own.py:TASK"))
    trained = train(experiment, tmp_path / "run")
    capsys.readouterr()
    assert evaluate.main([f"--workdir={tmp_path / 'run'}"]) == 0
    assert json.loads(capsys.readouterr().out)["mae"] == trained["eval_mae"]
    assert predict.main([f"--workdir={tmp_path / 'run'}", *pictures(tmp_path)]) == 0
    assert capsys.readouterr().out.count("brightness: ") == 2
