"""Every task goes through every command: trained, evaluated, predicted, previewed, planned, and
resumed to the bit.
"""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.train.conftest import checksums, config_file
from vitlab import predict, preview
from vitlab.cli import load_experiment
from vitlab.config import Experiment, smoke
from vitlab.evaluate import __main__ as evaluate
from vitlab.plan.estimate import make_plan
from vitlab.plan.program import Data
from vitlab.plan.topology import Topology
from vitlab.tasks import list_tasks, task_of
from vitlab.train.loop import train

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RECIPES = {
    "segmentation": "segment_scenes",
    "detection": "detect_scenes",
    "regression": "count_scenes",
    "multilabel": "multilabel_scenes",
    "depth": "depth_scenes",
    "stereo": "stereo_scenes",
    "restoration": "denoise_photographs",
}


def tiny(task: str, **changes) -> Experiment:
    """The task of a recipe, with a network and a head that compile in a second."""
    experiment = smoke(load_experiment(str(CONFIGS / f"{RECIPES[task]}.py"), {}))
    fields = {"depth": 1, "dim": 24, "num_heads": 3, "patch_size": 8, "pool": "mean"}
    narrow = {"head": "pixel_shuffle", "head_options": {"dim": 8}, "dim": 8}
    options = {key: narrow.get(key, value) for key, value in experiment.task.fields.items()}
    model = dataclasses.replace(experiment.model, name="vit_tiny_patch16", image_size=32, fields=fields)
    return dataclasses.replace(experiment, model=model, task=dataclasses.replace(experiment.task, fields=options), **changes)


def pictures(folder: pathlib.Path) -> list[str]:
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{name}.png")
    return [str(folder / "left.png"), str(folder / "right.png")]


def test_every_task_but_classification_has_a_recipe_here():
    assert [*RECIPES, "classification"] == sorted([*RECIPES, "classification"], key=[*RECIPES, "classification"].index)
    assert set(list_tasks()) == {*RECIPES, "classification"}


@pytest.mark.parametrize("task", RECIPES)
def test_a_task_goes_through_every_command(task, tmp_path, capsys):
    experiment = tiny(task)
    trained = train(experiment, tmp_path / "run")
    assert trained["step"] == 2 and trained["eval_images"] == 8
    best = task_of(experiment)[0].best[0]
    assert np.isfinite(trained[f"eval_{best}"])

    capsys.readouterr()
    assert evaluate.main([f"--workdir={tmp_path / 'run'}"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: result[name.removeprefix("eval_")] for name in trained if name.startswith("eval_")} == {
        name: value for name, value in trained.items() if name.startswith("eval_")
    }

    (tmp_path / "out").mkdir()
    assert predict.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}", *pictures(tmp_path)]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written and all(name.startswith(("left_", "right_")) for name in written)
    for path in (tmp_path / "out").glob("*.png"):
        assert size_of(path) == (30, 20)  # the picture's own

    config = config_file(tmp_path, experiment)
    assert preview.main([f"--config={config}", f"--output={tmp_path / 'sheet.png'}", "--images=2"]) == 0
    assert min(size_of(tmp_path / "sheet.png")) > 32

    plan = make_plan(experiment, Topology.of("cpu"), Data.of(experiment))
    assert plan.bytes > 0 and plan.model_flops > 0


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_a_segmentation_run_resumes_to_the_bit_with_workers(tmp_path):
    experiment = tiny("segmentation", duration="4 steps", checkpoint_every="1 steps", keep_checkpoints=9, eval_every="4 steps")
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, num_workers=1))
    train(experiment, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "resumed" / "checkpoints" / str(step))
    train(experiment, tmp_path / "resumed")
    assert checksums(tmp_path / "resumed", 4) == checksums(tmp_path / "whole", 4)
    assert (tmp_path / "resumed" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
