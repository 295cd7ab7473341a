"""Initial values: equal distributions by numpy and by jax.random, and zeros for shapes."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from vitlab.layers import initial
from vitlab.layers.initial import InitRngs
from vitlab.models.registry import abstract_model, create_model

SHAPE = (3, 3, 16, 64)
# standard deviation of each initializer over SHAPE, from its definition
SPREADS = {
    initial.normal_init: 0.02,
    initial.he_normal: math.sqrt(2 / (9 * 64)),
    initial.lecun_normal: math.sqrt(1 / (9 * 16)),
    initial.torch_uniform: math.sqrt(1 / (3 * 9 * 16)),
}


@pytest.mark.parametrize("rngs", [InitRngs(3), nnx.Rngs(3)], ids=["numpy", "jax"])
@pytest.mark.parametrize(("init", "std"), SPREADS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_draws_have_the_spread_and_no_mean(init, std, rngs):
    values = np.asarray(init(rngs.params(), SHAPE))
    assert values.shape == SHAPE and values.dtype == np.float32
    assert values.std() == pytest.approx(std, rel=0.03)  # one standard deviation of the estimate from 9216 draws is 0.7 %
    assert abs(values.mean()) < 0.05 * std
    if init is initial.torch_uniform:
        assert np.abs(values).max() <= std * math.sqrt(3)


def test_each_draw_is_new_and_a_seed_gives_the_same_again():
    one, again, other = InitRngs(1), InitRngs(1), InitRngs(2)
    draws = [initial.normal_init(rngs.params(), (8,)) for rngs in (one, one, again, again, other)]
    np.testing.assert_array_equal(draws[0], draws[2])
    np.testing.assert_array_equal(draws[1], draws[3])
    assert not np.array_equal(draws[0], draws[1]) and not np.array_equal(draws[0], draws[4])


def test_without_a_seed_shapes_alone():
    out = jax.eval_shape(lambda: initial.he_normal(InitRngs(None).params(), SHAPE))
    assert out.shape == SHAPE
    np.testing.assert_array_equal(initial.torch_uniform(InitRngs(None).params(), SHAPE), np.zeros(SHAPE))


def test_nothing_is_compiled_to_create_a_model(caplog):
    with jax.log_compiles():
        create_model("swin_tiny", image_size=64, dim=40, num_heads=(1, 2, 4, 8))  # shapes that no other test compiles
    compiled = [record.message for record in caplog.records if "Finished XLA compilation" in record.message]
    assert not compiled


def test_a_model_s_values_are_those_of_its_seed_and_without_one_none_are_drawn(monkeypatch):
    kernels = [create_model("vit_tiny_patch16", depth=1, rngs=rngs).head.kernel[...] for rngs in (None, InitRngs(0), InitRngs(1))]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    monkeypatch.setattr(np.random, "default_rng", None)
    abstract_model("vit_tiny_patch16")
