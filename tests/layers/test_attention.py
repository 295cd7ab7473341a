import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import target
from vitlab.layers.attention import dot_product_attention


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
    error = 1e-5 if dtype == jnp.float32 else 2**-6  # bfloat16: a few roundings of values and gradients that are below 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=error, atol=error), here, elsewhere)
