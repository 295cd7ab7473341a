"""Layers that are computed in another form on GPUs and TPUs give the values and gradients that they
give on a CPU, to the rounding of bfloat16; and float32 is left alone.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels.target import assume
from vitlab.layers import BatchNorm, LayerNorm
from vitlab.layers.gelu import gelu
from vitlab.mixers.gated_conv import GatedConv

DIM = 12


def batch_norm(dtype):
    norm = BatchNorm(DIM, dtype=dtype, rngs=nnx.Rngs(0))
    norm.mean[...] += 0.5
    return norm, {"train": True}


LAYERS = {
    "gelu": lambda dtype: (gelu, {}),
    "layer_norm": lambda dtype: (LayerNorm(DIM, eps=1e-6, dtype=dtype, rngs=nnx.Rngs(0)), {}),
    "batch_norm": batch_norm,
}
PLATFORMS = {"gelu": ("gpu", "tpu"), "layer_norm": ("tpu",), "batch_norm": ("gpu", "tpu")}
# Result and gradient are rounded to bfloat16 on either side, by half a unit each, and XLA's GELU
# rounds each of its operations.
TOLERANCE = 4 * 2**-8


def run(name, dtype, platform):
    layer, options = LAYERS[name](dtype)
    x = (2 * jax.random.normal(jax.random.key(0), (3, 5, 7, DIM)) + 3).astype(dtype)
    weights = jax.random.normal(jax.random.key(1), x.shape)
    graph, params, stats = nnx.split(layer, nnx.Param, ...) if isinstance(layer, nnx.Module) else (None, {}, {})

    def loss(params, x):
        module = layer if graph is None else nnx.merge(graph, params, stats, copy=True)
        out = module(x, **options)
        return (weights * out).sum(), (out, None if graph is None else nnx.state(module, nnx.BatchStat))

    with assume(platform):
        traced = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)).trace(params, x)
        return traced.lower().compile()(params, x), traced.jaxpr


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_gradients_are_those_of_a_cpu(name):
    (expected, plain), (_, exact) = run(name, jnp.bfloat16, "cpu"), run(name, jnp.float32, "cpu")
    for platform in PLATFORMS[name]:
        found, text = run(name, jnp.bfloat16, platform)
        assert str(text) != str(plain)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=TOLERANCE, atol=TOLERANCE * np.abs(np.float32(b)).max())
        assert str(run(name, jnp.float32, platform)[1]) == str(exact)  # in float32 nothing changes


def test_a_gated_convolution_by_parts_gives_what_the_whole_one_gives():
    mixer = GatedConv(DIM, kernel_size=3, rngs=nnx.Rngs(0))
    assert mixer.fc1.bias is not None
    mixer.fc1.bias[...] += 0.1 * jnp.arange(2 * mixer.hidden)
    graph, params = nnx.split(mixer)
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, DIM))

    def run(platform):
        with assume(platform):
            return jax.jit(jax.value_and_grad(lambda params: (nnx.merge(graph, params)(x) ** 2).sum()))(params)

    # Sums of some hundred float32 products in another order.
    for a, b in zip(jax.tree.leaves(run("tpu")), jax.tree.leaves(run("cpu")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
