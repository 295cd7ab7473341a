"""Every config file loads, says what it costs and reaches, and runs two steps under smoke."""

import dataclasses
import json
import pathlib

import pytest

from tests.models.conftest import fewer_parts
from vitlab.cli import load_experiment
from vitlab.config import Experiment, from_config_dict, smoke, to_config_dict
from vitlab.models.registry import model_config
from vitlab.train.loop import train

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def shallow(experiment: Experiment) -> Experiment:
    """With a smaller network: the recipe is what is tried, the networks have their own tests."""
    model = experiment.model
    fewer = fewer_parts(model_config(model.name, **model.fields), in_the_middle=1)
    return dataclasses.replace(experiment, model=dataclasses.replace(model, fields={**model.fields, **fewer}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_loads_round_trips_and_runs_two_steps(path, tmp_path):
    experiment = load_experiment(str(path), {})
    assert from_config_dict(to_config_dict(experiment)) == experiment
    result = train(shallow(smoke(experiment)), tmp_path / "run")
    assert result["step"] == 2
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, lines) if "train_loss" in line] == [1, 2]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_tells_what_it_reaches_and_how_it_is_run(path):
    text = path.read_text()
    docstring = text.split('"""')[1]
    assert "Here: " in docstring and f"--config=configs/{path.stem}.py" in docstring
    if path.stem.endswith("imagenet"):
        assert "Published" in docstring or "reconstructed" in docstring
    assert len(text.splitlines()) <= 80
