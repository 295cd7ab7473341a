"""The experiment: its types, its JSON form, and refusals of senseless values."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest

from vitlab import cli
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
from vitlab.config.reference import describe, markdown, walk
from vitlab.train.periods import Periods
from vitlab.train.schedule import make_schedule

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
    config.optimizer.clip_norm = 2.0  # a value that was None has a type too
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
        ({"batch_size": 0}, r"batch_size=0 must be in \[1, "),
        ({"mesh": {"tensor": 0}}, r"mesh.tensor=0 must be in \[1, "),
        ({"loss": {"label_smoothing": 1}}, r"must be in \[0, 1\)"),
        ({"loss": {"distillation": {"alpha": 1.5}}}, r"loss.distillation.alpha=1.5 must be in \[0, 1\]"),
        ({"loss": {"distillation": {"temperature": 0.0}}}, r"loss.distillation.temperature=0.0 must be in \(0, 1000\]"),
        ({"loss": {"distillation": {"tau": 1.0}}}, "unknown key loss.distillation.tau"),
        ({"warmup": "1 epochs"}, r"unknown key warmup: did you mean optimizer.warmup\?"),
        ({"optimizer": {"label_smoothing": 0.1}}, r"unknown key optimizer.label_smoothing: did you mean loss.label_smoothing\?"),
        ({"name": "vit"}, "did you mean model.name, task.name, data.name, optimizer.name"),
        ({1: 2}, "unknown key 1"),
        ({"optimizer": 3}, "optimizer=3 must be a group of keys: name, schedule"),
        ([], "the config=\\[\\] must be a group of keys"),
        ({"seed": 2**64}, r"seed=<an integer of 65 bits> must be int in \[0, 9223372036854775807\]"),
        ({"duration": "1.2.3 epochs"}, 'duration "1.2.3 epochs" must be a number and a unit'),
        ({"optimizer": {"warmup": "1e400 steps"}}, "optimizer.warmup: duration.* the number at most 1e.15"),
        ({"keep_every": "0 steps"}, 'keep_every="0 steps" must be longer than 0'),
        ({"augment": {"crop_ratio": [2, 1]}}, "must have the smaller number first"),
        ({"data": {"source": "imagefolder"}}, r"own, package.module:name or file.py:name: did you mean image_folder\?"),
        ({"data": {"more_sources": [{"weight": 0}]}}, r"data.more_sources.weight=0 must be in \[1, "),
        ({"augment": {"crop": "middle"}}, "one of 'random_resized', 'random', 'scale_jitter', 'pad'"),
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


HOSTILE = [
    *(-1, 0, 1, -(10**30), 2**31, 2**63, 10**400, -0.5, 0.0, 1e30, 1e308, float("nan"), float("inf"), -float("inf")),
    *(True, None, "", "x", "x" * 300, "x" * 100_000, "\0", "\udcff", "../..", "None", "(", "0 steps", "1e400 steps", "1e14 epochs"),
    *("1.2.3 epochs", "-1 steps", "\N{ARABIC-INDIC DIGIT ONE} steps", "1e-300 examples", "a.b:c", "no.py:such", b"x", {1, 2}, object()),
    *((), (0, 0), (float("nan"), 1.0), (1,) * 1000, [], ["x"], [[[1]]], {}, {"a": {"b": 1}}, {1: 2}, [{"weight": -1}], [{}]),
]
KEYS = [".".join((*path, name)) for path, _, keys in walk(Experiment) for name in keys]


def nested(dotted, value):
    for name in reversed(dotted.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize("dotted", KEYS)
def test_a_hostile_value_of_any_key_is_refused_in_one_way_or_can_be_used(dotted):
    for value in HOSTILE:
        try:
            experiment = from_config_dict(nested(dotted, value))
        except ConfigError as error:
            assert dotted.split(".")[-1] in str(error) and len(str(error)) < 500
            continue
        assert from_config_dict(json.loads(to_json(experiment))) == experiment
        assert from_config_dict(to_config_dict(experiment)) == experiment
        try:
            periods = Periods.of(experiment, examples_per_epoch=1000)
        except ConfigError:
            continue
        rates = jax.vmap(make_schedule(experiment.optimizer, periods))(jnp.asarray([0, periods.total // 2, periods.total]))
        assert jnp.isfinite(rates).all()


def test_every_key_has_a_meaning_that_is_a_sentence_and_a_default_that_is_allowed():
    for path, cls, keys in walk(Experiment):
        assert cls.path == path and cls.__doc__
        for name, key in keys.items():
            assert key.meaning and key.meaning[0].isupper() and key.meaning.endswith("."), (cls, name)
            assert cls.checked(name, key.default) == key.default


def test_no_number_is_without_bounds():
    for _, cls, keys in walk(Experiment):
        for name, key in keys.items():
            numbers = re.sub(r"(int|float) in [\[(]\S+, \S+[\])]", "", key.rule)
            assert not re.search(r"\b(int|float)\b", numbers), (cls, name, key.rule)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("4steps", "4 steps"),
        ("4.0 step", "4 steps"),
        (" 1 epoch", "1 epochs"),
        ("1e6 examples", "1000000 examples"),
        ("10%", "10 percent"),
        ("0.5 epochs", "0.5 epochs"),
        (".5epochs", "0.5 epochs"),
    ],
)
def test_a_duration_is_kept_in_one_way_so_that_a_run_finds_its_config_unchanged(text, plain):
    one, other = (dataclasses.replace(Experiment(), eval_every=t) for t in (text, plain))
    assert one.eval_every == plain and not difference(one, other)


def test_the_reference_tells_every_key_and_the_values_of_a_config():
    text = describe()
    for dotted in KEYS:
        assert f"\n{dotted} = " in text
    assert "Images per step, over all devices." in text and "[int in [1, 16777216]]" in text
    assert "batch_size = 8 (default 1024)" in describe(Experiment(batch_size=8))
    assert markdown().count("\n| `") == len(KEYS)


def test_a_config_of_before_still_loads():
    old = {"model": {"name": "vit_tiny_patch16", "image_size": 28, "depth": 3}, "duration": "1e6 examples", "mesh": {"fsdp": 2}}
    experiment = from_config_dict(old)
    assert experiment.model.fields == {"depth": 3} and experiment.metrics == ()


def test_a_pair_stands_for_height_and_width_and_an_int_for_a_square():
    sized = lambda size: from_config_dict({"model": {"image_size": size}})  # noqa: E731
    wide = sized([512, 1024])
    assert wide.model.image_size == (512, 1024)
    assert from_config_dict(to_config_dict(wide)) == from_config_dict(json.loads(to_json(wide))) == wide
    assert sized((64, 64)) == sized(64) and not difference(sized((64, 64)), sized(64))
    assert smoke(wide).model.image_size == 48 and smoke(sized((32, 64))).model.image_size == (32, 48)
    config = to_config_dict(sized(64))
    config.model.image_size = (32, 96)
    assert from_config_dict(config).model.image_size == (32, 96)
    assert cli.override(sized(64), {"model.image_size": "(512,1024)"}) == wide


@pytest.mark.parametrize("size", [0, -28, (0, 28), (28, -1), (28,), (28, 28, 28), (28.0, 28), "28x28", True])
def test_an_image_size_that_is_none_is_refused(size):
    with pytest.raises(ConfigError, match="model.image_size"):
        from_config_dict({"model": {"image_size": size}})


def test_near_misses_are_few_and_the_choices_are_named_when_none_is_near():
    assert near_misses("vit_tiny", ["swin_tiny", "vit_tiny_patch16", "vit_tiny_patch8"]).startswith(
        "did you mean vit_tiny_patch8, vit_tiny_patch16"
    )
    assert near_misses("vit_tin", ["vit_tiny", "swin_tiny", "maxvit"]) == "did you mean vit_tiny, swin_tiny?"
    assert near_misses("zzz", ["b", "a"]) == "choices: a, b"
