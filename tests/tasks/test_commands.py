"""Every task goes through every command: trained, evaluated, predicted, previewed, planned, and
resumed to the bit.
"""

import dataclasses
import json
import pathlib
import random
import signal
import time

import numpy as np
import pytest
from PIL import Image

from tests.processes import SECONDS
from tests.train.conftest import checksums, config_file, no_run_outlives_its_test, start, wait_for_step  # noqa: F401
from vitlab import input_benchmark, predict, preview
from vitlab.cli import load_experiment
from vitlab.config import Experiment, MixConfig, smoke
from vitlab.evaluate import __main__ as evaluate
from vitlab.plan.estimate import make_plan
from vitlab.plan.program import Data
from vitlab.plan.topology import Topology
from vitlab.tasks import list_tasks, task_of
from vitlab.train.loop import train

STAGES = ["read", "decode", "augment", "batch", "device put", "loader"]
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
    assert evaluate.main([f"--workdir={tmp_path / 'run'}", "--report", "--name=report"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: result[name.removeprefix("eval_")] for name in trained if name.startswith("eval_")} == {
        name: value for name, value in trained.items() if name.startswith("eval_")
    }

    report = tmp_path / "run" / "evaluations" / "report"
    lines = (report / "images.csv").read_text().splitlines()
    assert len(lines) == 9 and np.isfinite([float(line.rpartition(",")[2]) for line in lines[1:]]).all()
    assert min(size_of(report / "worst.png")) > 100

    (tmp_path / "out").mkdir()
    assert predict.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out'}", *pictures(tmp_path)]) == 0
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written and all(name.startswith(("left_", "right_")) for name in written)
    for path in (tmp_path / "out").glob("*.png"):
        assert size_of(path) == (30, 20)  # the picture's own

    config = config_file(tmp_path, experiment)
    assert preview.main([f"--config={config}", f"--output={tmp_path / 'sheet.png'}", "--images=2"]) == 0
    assert min(size_of(tmp_path / "sheet.png")) > 32

    assert input_benchmark.main([f"--config={config}", "--seconds=0.01", "--batch_size=4"]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()[-6:]] == STAGES

    plan = make_plan(experiment, Topology.of("cpu"), Data.of(experiment))
    assert plan.bytes > 0 and plan.model_flops > 0


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_kill_9_of_a_segmentation_run_with_workers_and_the_same_again_gives_the_uninterrupted_run_bit_by_bit(tmp_path):
    often = {"duration": "60 steps", "checkpoint_every": "5 steps", "eval_every": "30 steps", "log_every": "1 steps"}
    experiment = tiny("segmentation", **often, mix=MixConfig(cutmix_alpha=1.0))
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, num_workers=1))
    run, whole, rng = tmp_path / "run", tmp_path / "whole", random.Random()
    process = start(config_file(tmp_path, experiment), run)
    wait_for_step(process, run, rng.randint(1, 40))
    time.sleep(rng.random() * 0.02)
    process.kill()
    process.communicate(timeout=SECONDS)  # a remaining worker would hold the pipes open
    assert process.returncode == -signal.SIGKILL
    train(experiment, whole)
    train(experiment, run)
    assert checksums(run, 60) == checksums(whole, 60)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
