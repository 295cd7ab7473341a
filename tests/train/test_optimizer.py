import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vitlab.config import OptimizerConfig
from vitlab.layers.roles import Place
from vitlab.train.groups import groups_of
from vitlab.train.optimizer import averaged_params, make_optimizer
from vitlab.tree import joined, leaf_names, parted

NAMES = list(typing.get_args(typing.get_type_hints(OptimizerConfig)["name"]))
PARAMS = {"blocks": {"0": {"fc": {"kernel": jnp.ones((4, 6)) + jnp.eye(4, 6), "bias": jnp.ones(6)}}}, "head": {"kernel": jnp.ones((6, 2))}}
PLACES = {"blocks": {"0": {"fc": {"kernel": Place(), "bias": Place()}}}, "head": {"kernel": Place(roles=frozenset({"head"}))}}


def constant(step):
    return jnp.float32(0.1)


def step(config, params=PARAMS, grads=None, steps=1, places=PLACES):
    groups = groups_of(params, places, config)
    params, frozen = parted(params, groups.trained)
    optimizer = make_optimizer(config, constant, groups)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params) if grads is None else grads, state, params)
        params = optax.apply_updates(params, updates)
    return joined(params, frozen), state


def test_a_parameter_without_gradient_shrinks_by_learning_rate_times_decay():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    for name in ("adamw", "lion", "sgd", "adafactor", "muon"):
        new, _ = step(OptimizerConfig(name=name, weight_decay=0.1, beta1=0.0 if name == "sgd" else 0.9), grads=zeros)
        np.testing.assert_allclose(new["head"]["kernel"], 1 - 0.1 * 0.1, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(new["blocks"]["0"]["fc"]["bias"], 1, err_msg=name)


def test_clipping_bounds_the_global_norm():
    params = {"kernel": jnp.ones((2, 2))}
    config = OptimizerConfig(clip_norm=1.0)
    clipped = make_optimizer(config, constant, groups_of(params, {"kernel": Place()}, config))
    _, state = clipped.update({"kernel": jnp.full((2, 2), 100.0)}, clipped.init(params), params)
    mu = optax.tree_utils.tree_get(state, "mu")["kernel"]
    np.testing.assert_allclose(mu, (1 - 0.9) * 0.5, rtol=1e-5)  # a gradient of norm 1 over four equal entries


def test_adamw_is_optax_s():
    grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), PARAMS)
    ours, _ = step(OptimizerConfig(clip_norm=None, weight_decay=0.02), grads=grads, steps=3)
    theirs, optimizer = PARAMS, optax.adamw(0.1, weight_decay=0.02, mask=jax.tree.map(lambda x: x.ndim > 1, PARAMS))
    state = optimizer.init(theirs)
    for _ in range(3):
        updates, state = optimizer.update(grads, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_lion_moves_by_the_sign_and_sgd_by_nesterov_s_momentum():
    grads = jax.tree.map(lambda x: 3 * jnp.ones_like(x), PARAMS)
    lion, _ = step(OptimizerConfig(name="lion", weight_decay=0.0), grads=grads)
    np.testing.assert_allclose(lion["head"]["kernel"], 1 - 0.1, rtol=1e-6)
    sgd, _ = step(OptimizerConfig(name="sgd", weight_decay=0.0, clip_norm=None), grads=grads, steps=2)
    first, second = 3 * 1.9, 3 * (1 + 0.9 * 1.9)  # g + m v, v = m v + g
    np.testing.assert_allclose(sgd["head"]["kernel"], 1 - 0.1 * (first + second), rtol=1e-6)


def test_lamb_moves_each_array_by_the_rate_times_its_own_norm():
    new, _ = step(OptimizerConfig(name="lamb", weight_decay=0.0))
    moved = np.linalg.norm(new["head"]["kernel"] - PARAMS["head"]["kernel"]) / np.linalg.norm(PARAMS["head"]["kernel"])
    np.testing.assert_allclose(moved, 0.1, rtol=1e-5)


def test_muon_orthogonalises_matrices_and_leaves_the_head_to_adam():
    grads = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(0).standard_normal(x.shape), jnp.float32), PARAMS)
    new, _ = step(OptimizerConfig(name="muon", weight_decay=0.0), grads=grads)
    singular = np.linalg.svd((PARAMS["blocks"]["0"]["fc"]["kernel"] - new["blocks"]["0"]["fc"]["kernel"]) / 0.1, compute_uv=False)
    expected = 0.2 * np.sqrt(6)  # root mean square 0.2 of a 4 x 6 matrix of equal singular values
    assert (np.abs(singular / expected - 1) < 0.35).all()  # the quintic iteration ends near 1, in 0.7 to 1.2
    nesterov = 0.9 * (1 - 0.9) / (1 - 0.9**2) + (1 - 0.9) / (1 - 0.9)  # Adam's first step, in units of the rate
    np.testing.assert_allclose(np.abs(1 - new["head"]["kernel"]), 0.1 * nesterov, rtol=1e-4)


def test_schedule_free_training_evaluates_the_mean_of_its_steps():
    config = OptimizerConfig(name="schedule_free_adamw", weight_decay=0.0)
    params, state = step(config, steps=5)
    averaged = averaged_params(config, state, params)
    assert 1 > averaged["head"]["kernel"].mean() > params["head"]["kernel"].mean()  # the mean is behind the newest parameters


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_trains_frozen_parts_stay_and_moments_take_bfloat16(name):
    config = OptimizerConfig(name=name, moment_dtype="bfloat16", groups=("^blocks/ frozen", "^head/ lr=2"))
    new, state = step(config, steps=3)
    jax.tree.map(np.testing.assert_array_equal, new["blocks"], PARAMS["blocks"])
    assert (new["head"]["kernel"] < 0.95).all()
    assert not any("blocks" in name for name in leaf_names(state))  # frozen parameters have no moments
    if name not in ("schedule_free_adamw",):
        assert any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state))


def test_the_names_tested_are_all():
    assert len(NAMES) == 7


def test_layer_decay_lowers_the_rate_of_what_is_far_from_the_head():
    depths = {"block0": 1, "block1": 2, "head": 3, "norm": 3, "patch_embed": 0, "pos_embed": 0}
    params, places = {name: jnp.ones(3) for name in depths}, {name: Place(depth=depth) for name, depth in depths.items()}
    new, _ = step(OptimizerConfig(layer_decay=0.5, weight_decay=0.0, clip_norm=None), params=params, places=places)
    rates = {name: float((1 - x).max()) / 0.1 for name, x in new.items()}
    expected = {"block0": 1 / 4, "block1": 1 / 2, "head": 1, "norm": 1, "patch_embed": 1 / 8, "pos_embed": 1 / 8}
    assert rates == pytest.approx(expected, rel=1e-5)
