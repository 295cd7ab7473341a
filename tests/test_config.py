"""The experiment: typed, round-tripping, and refused where it makes no sense."""

import dataclasses
import json

import pytest

from vitlab.config import (
    ConfigError,
    DataConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    difference,
    duration_in_steps,
    from_config_dict,
    near_misses,
    smoke,
    to_config_dict,
    to_json,
)

FULL = Experiment(
    model=ModelConfig(name="vit_tiny_patch16", image_size=32, fields={"depth": 3, "pool": "mean", "sizes": (1, 2)}),
    data=DataConfig(source="tfds", name="cifar10", data_dir="/data"),
    optimizer=OptimizerConfig(clip_norm=None),
    eval_batch_size=7,
)


@pytest.mark.parametrize("experiment", [Experiment(), FULL])
def test_the_experiment_survives_both_of_its_outer_forms(experiment):
    assert from_config_dict(to_config_dict(experiment)) == experiment
    assert from_config_dict(json.loads(to_json(experiment))) == experiment


def test_the_config_dict_is_locked_and_typed():
    config = to_config_dict(FULL)
    with pytest.raises(AttributeError):
        config.optimizer.peak_rl = 1.0
    with pytest.raises(TypeError):
        config.batch_size = "many"
    config.optimizer.clip_norm = 2.0  # was None: typed all the same
    assert from_config_dict(config).optimizer.clip_norm == 2.0


@pytest.mark.parametrize(
    ("text", "steps"), [("3 epochs", 75), ("40 steps", 40), ("1e3 examples", 10), ("10 percent", 50), ("10%", 50), ("0.5 epochs", 12)]
)
def test_durations_count_in_steps(text, steps):
    assert duration_in_steps(text, batch_size=100, examples_per_epoch=2500, total_steps=500) == steps


@pytest.mark.parametrize("text", ["soon", "3", "epochs", "-3 epochs", "3 weeks", ""])
def test_a_duration_without_number_or_unit_is_refused(text):
    with pytest.raises(ConfigError, match="must be a number and a unit"):
        dataclasses.replace(Experiment(), duration=text)


def test_percent_of_the_whole_run_cannot_define_the_whole_run():
    with pytest.raises(ConfigError, match="share of the whole run"):
        duration_in_steps("10 percent", batch_size=1, examples_per_epoch=1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_sise": 3}, "unknown key batch_sise: did you mean batch_size"),
        ({"optimizer": {"peak": 1.0}}, "unknown key optimizer.peak: did you mean peak_lr"),
        ({"batch_size": 1.5}, "batch_size=1.5 must be int"),
        ({"batch_size": True}, "batch_size=True must be int"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"mesh": {"tensor": 0}}, "mesh.tensor=0 must be at least 1"),
        ({"loss": {"label_smoothing": 1}}, r"must be in \[0, 1\)"),
        ({"loss": {"distillation": {"alpha": 1.5}}}, r"loss.distillation.alpha=1.5 must be in \[0, 1\]"),
        ({"loss": {"distillation": {"temperature": 0.0}}}, r"loss.distillation.temperature=0.0 above 0"),
        ({"loss": {"distillation": {"tau": 1.0}}}, "unknown key loss.distillation.tau"),
        ({"augment": {"crop": "middle"}}, "one of 'random_resized', 'pad', 'center'"),
        ({"augment": {"crop_scale": [0.1]}}, "crop_scale"),
        ({"optimizer": {"peak_lr": float("nan")}}, "must be float"),
    ],
)
def test_unknown_keys_and_wrong_values_name_the_key_and_the_rule(change, words):
    with pytest.raises(ConfigError, match=words):
        from_config_dict(change)


def test_the_difference_names_only_what_differs():
    other = dataclasses.replace(FULL, seed=1, model=dataclasses.replace(FULL.model, fields={"depth": 3}))
    assert difference(FULL, other) == {"seed": (0, 1), "model.pool": ("mean", None), "model.sizes": ([1, 2], None)}
    assert not difference(FULL, FULL)


def test_smoke_shrinks_everything_that_costs():
    small = smoke(dataclasses.replace(FULL, duration="300 epochs"))
    assert (small.duration, small.batch_size, small.data.source, small.model.image_size) == ("2 steps", 4, "bundled", 32)
    assert small.model.name == FULL.model.name and small.optimizer.peak_lr == FULL.optimizer.peak_lr


def test_near_misses_are_few_and_the_choices_are_named_when_none_is_near():
    assert near_misses("vit_tin", ["vit_tiny", "swin_tiny", "maxvit"]) == "did you mean vit_tiny, swin_tiny?"
    assert near_misses("zzz", ["b", "a"]) == "choices: a, b"
