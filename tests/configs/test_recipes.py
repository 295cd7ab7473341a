"""Every config file loads, documents itself, and runs two smoke steps or is set up for them."""

import dataclasses
import json
import pathlib

import jax
import pytest

from tests.models.conftest import fewer_parts
from vitlab.cli import load_experiment
from vitlab.config import Experiment, from_config_dict, smoke, to_config_dict
from vitlab.models.registry import model_config
from vitlab.train.loop import train
from vitlab.train.setup import set_up

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
# Networks that run: compiling one takes seconds, tracing one a single second. The parts that the
# settings of other networks name have tests of their own.
RUN = {"quickstart", "finetune_folder", "metaformer_bundled", "vit_cifar10", "vit_imagenet", "swin_imagenet", "nextvit_imagenet"}
QUICK = [path for path in CONFIGS if path.stem in RUN]
TASKS = [path for path in CONFIGS if path.stem.endswith(("_scenes", "_photographs"))]  # tests/tasks/test_commands.py trains their tasks
SLOW = [path for path in CONFIGS if path not in (*QUICK, *TASKS)]


def shallow(experiment: Experiment) -> Experiment:
    """Shrinks the experiment's network: here the recipe is under test."""
    model = experiment.model
    fewer = fewer_parts(model_config(model.name, **model.fields), in_the_middle=1)
    return dataclasses.replace(experiment, model=dataclasses.replace(model, fields={**model.fields, **fewer}))


def of(paths, *marks) -> list:
    return [pytest.param(path, id=path.stem, marks=marks) for path in paths]


@pytest.mark.parametrize("path", of(CONFIGS))
def test_loads_and_round_trips(path):
    experiment = load_experiment(str(path), {})
    assert from_config_dict(to_config_dict(experiment)) == experiment


@pytest.mark.parametrize("path", of(QUICK) + of(SLOW, pytest.mark.slow))
def test_runs_two_steps(path, tmp_path):
    result = train(shallow(smoke(load_experiment(str(path), {}))), tmp_path / "run")
    assert result["step"] == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, lines) if "train_loss" in line] == [1, 2]


@pytest.mark.parametrize("path", of(SLOW) + of(TASKS))
def test_is_set_up_traces_its_step_and_has_batches_for_it(path, tmp_path):
    """Checks all that running two steps would check, except compiling and running."""
    setup = set_up(shallow(smoke(load_experiment(str(path), {}))), tmp_path / "bad_images.jsonl")
    shapes = [x.shape for x in jax.tree.leaves(setup.train_step.in_avals)]
    with setup.open_train_batches(0) as batches:
        assert {x.shape for x in next(batches).values()} <= set(shapes)


@pytest.mark.parametrize("path", of(CONFIGS))
def test_tells_what_it_reaches_and_how_it_is_run(path):
    text = path.read_text()
    docstring = text.split('"""')[1]
    assert "Here: " in docstring and f"--config=configs/{path.stem}.py" in docstring
    if path.stem.endswith("imagenet"):
        assert "Published" in docstring or "reconstructed" in docstring
    assert len(text.splitlines()) <= 80
