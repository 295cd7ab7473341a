"""Peculiarities of Terminator: square maps, batches whose images touch each other, and kernels
that are made.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.layers.slow_net import SlowNet
from vitlab.models.registry import create_model, model_config

ROUNDING = 1e-5  # float32 sines and sums in another order


def test_a_slow_net_is_products_of_sines_and_linear_maps():
    net = SlowNet((3, 4), 2, hidden=5, depth=1, rngs=nnx.Rngs(0))
    net.bias_p[...] = jnp.full((3, 4), 0.5)
    place = np.stack(np.meshgrid(np.linspace(-1, 1, 3), np.linspace(-1, 1, 4), indexing="ij"), -1).astype(np.float32)
    first, second = (np.asarray(jnp.sin(f(jnp.asarray(place)))) for f in net.filters)
    expected = (second * np.asarray(net.linears[0](first)) + 0.5) @ np.asarray(net.output_linear.kernel[...])
    np.testing.assert_allclose(net(), expected, atol=ROUNDING)


def test_images_of_a_batch_touch_each_other_and_other_sizes_are_resized():
    model = create_model("terminator_cifar10", num_classes=3, image_size=8, depths=(1,) * 5, slow_depth=1, kernel_sizes=(3,) * 4, hidden=4)
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda x: nnx.merge(graphdef, state, copy=True)(x))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((3, 8, 8, 3)), jnp.float32)
    assert np.abs(forward(images[:2])[0] - forward(images[::2])[0]).max() > ROUNDING
    maps = jax.eval_shape(model.features, jnp.zeros((2, 16, 24, 3)))
    assert {m.shape[1:3] for m in maps} == {(8, 8)}


def test_what_cannot_be_multiplied_is_refused():
    with pytest.raises(ValueError, match="must be square"):
        model_config("terminator_cifar10", image_size=(32, 64))
    with pytest.raises(ValueError, match="must be odd"):
        model_config("terminator_cifar10", kernel_sizes=(3, 4, 5, 7))
