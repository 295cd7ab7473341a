"""A run as the start of another one: fitting weights are copied, positions are resampled.

Heads may differ.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.conftest import tiny_experiment, uninterrupted  # noqa: F401
from vitlab import create_model
from vitlab.config import ConfigError
from vitlab.functional import build, functional
from vitlab.layers.pos_embed import resample
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.start import run_of
from vitlab.runs.trained import from_run
from vitlab.train.loop import train
from vitlab.train.setup import load_start


def start(source, *, num_classes=10, **changes):
    """Returns the model with its start, and its initial weights without the start."""
    model = tiny_experiment().model
    config = dataclasses.replace(model, fields=model.fields | changes)
    fn, create = build(config, num_classes=num_classes, channels=1, seed=5)
    initial = create()
    return load_start(fn, initial, str(source)), initial


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b))


def test_everything_is_copied_where_everything_fits(uninterrupted, caplog):  # noqa: F811
    weights, initial = start(uninterrupted)
    trained = from_run(uninterrupted, make_mesh()).weights
    assert same(weights, trained) and not same(weights, initial)
    count = len(jax.tree.leaves(trained))
    assert f"(step 60): {count} of {count} tensors are copied" in caplog.text


def test_a_step_can_be_named(uninterrupted):  # noqa: F811
    weights, _ = start(f"{uninterrupted}@56")
    assert same(weights, from_run(uninterrupted, make_mesh(), step=56).weights)
    assert run_of(f"{uninterrupted}@56") == (uninterrupted, 56) and run_of("none@3") is None and run_of("none") is None


def test_a_folder_whose_name_has_an_at_sign_is_itself(tmp_path):
    (tmp_path / "a@3").mkdir()
    assert run_of(f"{tmp_path}/a@3") == (tmp_path / "a@3", None)


def test_a_head_for_other_classes_begins_anew(uninterrupted, caplog):  # noqa: F811
    weights, initial = start(uninterrupted, num_classes=7)
    trained = from_run(uninterrupted, make_mesh()).weights["params"]
    assert same(weights["params"]["head"], initial["params"]["head"])
    assert same(*({k: v for k, v in tree.items() if k != "head"} for tree in (weights["params"], trained)))
    assert "begins anew: head.bias, head.kernel" in caplog.text


def test_positions_are_resampled_to_the_grid_even_of_as_many_tokens(uninterrupted, caplog):  # noqa: F811
    own = from_run(uninterrupted, make_mesh()).weights["params"]["pos_embed"]
    for size, grid in ((56, (4, 4)), ((14, 56), (1, 4))):
        weights, _ = start_at(uninterrupted, size)
        expected = resample(jnp.asarray(own), (2, 2), grid, num_prefix=1)
        np.testing.assert_allclose(weights["params"]["pos_embed"], expected, atol=1e-6)
    assert "resampled: pos_embed" in caplog.text


def start_at(source, size):
    """Returns the start of a model of another image size, which may be a pair."""
    fields = dict(tiny_experiment().model.fields)
    fn, initial = functional(create_model("vit_tiny_patch16", num_classes=10, image_size=size, in_channels=1, **fields))
    return load_start(fn, initial, str(source)), initial


def test_averaged_weights_are_taken_where_a_run_keeps_them(tmp_path, caplog):
    train(tiny_experiment(ema_decay=0.8, duration="4 steps", eval_every="4 steps"), tmp_path / "run")
    weights, _ = start(tmp_path / "run")
    assert same(weights, from_run(tmp_path / "run", make_mesh()).weights)
    assert not same(weights, from_run(tmp_path / "run", make_mesh(), raw=True).weights) and "(step 4, averaged)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"), [({"dim": 32}, "does not fit"), ({"depth": 3}, "blocks.2."), ({"depth": 1}, "the model has none")]
)
def test_another_trunk_is_refused_with_the_first_tensors(uninterrupted, changes, words):  # noqa: F811
    with pytest.raises(ConfigError, match=words):
        start(uninterrupted, **changes)


def test_what_is_no_run_or_has_no_such_step_is_refused(uninterrupted, tmp_path):  # noqa: F811
    for source, words in ((tmp_path, "model.weights: .* no run folder"), (f"{uninterrupted}@3", "no checkpoint of step 3")):
        with pytest.raises(ConfigError, match=words):
            start(source)


def test_a_run_trains_on_from_another(uninterrupted, tmp_path, caplog):  # noqa: F811
    model = dataclasses.replace(tiny_experiment().model, weights=str(uninterrupted))
    caplog.set_level(logging.WARNING)
    train(tiny_experiment(model=model, duration="2 steps", eval_every="2 steps"), tmp_path / "run")
    assert f"training begins with {uninterrupted} (step 60)" in caplog.text
