import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import target
from vitlab.layers.linear import Linear


def gradients(layer, x):
    graphdef, state = nnx.split(layer)
    return jax.grad(lambda state, x: jnp.square(nnx.merge(graphdef, state)(x)).sum(), (0, 1))(state, x)


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 5, 4, 6), (0, 5, 6)])
def test_a_map_on_a_cpu_is_multiplied_as_elsewhere(shape):
    layer, x = Linear(6, 8, rngs=nnx.Rngs(0)), jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    here = layer(x), gradients(layer, x)
    with target.assume("any"):
        elsewhere = layer(x), gradients(layer, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), here, elsewhere)


def test_a_cpu_transposes_no_map_for_the_gradient_of_a_kernel():
    layer, x = Linear(6, 8, rngs=nnx.Rngs(0)), jnp.ones((2, 5, 4, 6))

    def transposes():
        return "transpose(%" in jax.jit(lambda x: gradients(layer, x)).lower(x).compile().as_text()

    assert not transposes()
    with target.assume("any"):
        assert transposes()
