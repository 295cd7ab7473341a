import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import attention as operator
from pallas_kernels import target
from pallas_kernels.attention import xla
from pallas_kernels.dispatch import Implementation
from vitlab.layers.attention import Attention, dot_product_attention


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("bias_shape", [None, (1, 3, 5, 7), (2, 3, 5, 7)])
@pytest.mark.parametrize("scale", [None, 0.2])
def test_a_cpu_attends_as_other_devices_do(dtype, bias_shape, scale):
    rng = np.random.default_rng(0)
    query, key, value, weights = (jnp.asarray(rng.standard_normal((2, n, 3, 8)), dtype) for n in (5, 7, 7, 5))
    bias = None if bias_shape is None else jnp.asarray(rng.standard_normal(bias_shape), dtype)

    def run(platform):
        with target.assume(platform):
            out, back = jax.vjp(functools.partial(dot_product_attention, scale=scale), query, key, value, bias)
            return out, back(weights)

    here, elsewhere = run("cpu"), run("any")
    assert jax.tree.map(lambda x: x.dtype, here) == jax.tree.map(lambda x: x.dtype, elsewhere)
    error = 1e-5 if dtype == jnp.float32 else 2**-6  # bfloat16: a few roundings of values and gradients below 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=error, atol=error), here, elsewhere)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_tpu_s_layer_adds_the_projection_s_bias_in_the_operator_with_the_same_values_and_gradients(monkeypatch, qkv_bias):
    layer = Attention(12, num_heads=3, qkv_bias=qkv_bias, rngs=nnx.Rngs(0))
    if layer.qkv.bias is not None:
        layer.qkv.bias[...] = jax.random.normal(jax.random.key(2), (36,))
    x = jax.random.normal(jax.random.key(1), (2, 5, 12))
    graph, params = nnx.split(layer)
    given = []

    def in_kernel(qkv, qkv_bias=None, **options):
        given.append(qkv_bias)
        qkv = qkv if qkv_bias is None else qkv + qkv_bias
        return xla.attention(*(qkv[:, :, i] for i in range(3)), **options)

    monkeypatch.setattr(operator, "QKV_IMPLEMENTATIONS", {"pallas_tpu": Implementation(in_kernel, lambda *_, **__: None)})

    def run(platform):
        with target.assume(platform):
            return jax.value_and_grad(lambda params: (nnx.merge(graph, params)(x) ** 2).sum())(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), run("tpu"), run("cpu"))
    assert [bias is not None for bias in given] == [qkv_bias, False]
