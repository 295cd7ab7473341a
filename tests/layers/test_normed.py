"""Layers that a kernel takes over on TPUs give the values and gradients that they give
elsewhere.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pallas_kernels import normed as kernels
from pallas_kernels.target import assume
from vitlab.layers import Attention, DropPath, LayerNorm, Mlp, normed

DIM = 128
LAYERS = {
    "attention": lambda dtype: Attention(DIM, num_heads=2, implementation="xla", dtype=dtype, rngs=nnx.Rngs(0)),
    "mlp": lambda dtype: Mlp(DIM, mlp_dim=256, dtype=dtype, rngs=nnx.Rngs(0)),
}


@pytest.fixture
def called(monkeypatch):
    """The kernels interpreted, and the names of those that were called."""
    names = []
    for name in ("norm_linear", "norm_mlp"):

        def run(*args, name=name, **options):
            names.append(name)
            return getattr(kernels, name)(*args, interpret=True, **options)

        monkeypatch.setattr(normed, name, run)
    return names


@pytest.mark.parametrize("name", LAYERS)
def test_a_tpu_s_kernels_give_what_a_cpu_gives(called, name):
    block = nnx.List([LAYERS[name](jnp.bfloat16), LayerNorm(DIM, eps=1e-6, dtype=jnp.bfloat16, rngs=nnx.Rngs(1)), DropPath(0.0)])
    graph, params = nnx.split(block)
    x = jax.random.normal(jax.random.key(0), (2, 5, DIM), jnp.bfloat16)
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def run(platform):
        with assume(platform):

            def loss(params, x):
                branch, norm, drop_path = nnx.merge(graph, params)
                return (weights * drop_path.add(x, branch, norm=norm, train=True, rngs=None)).sum()

            return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)

    ours, theirs = run("tpu"), run("cpu")
    assert called == {"attention": ["norm_linear"] * 2, "mlp": ["norm_mlp"]}[name]
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # Ten maps are rounded to bfloat16 on either way, by half a unit each; the biases of keys
        # have no gradient but rounding.
        np.testing.assert_allclose(np.float32(a), np.float32(b), rtol=0, atol=10 * 2**-8 * max(np.abs(np.float32(b)).max(), 0.1))


@pytest.mark.parametrize(("name", "platform"), [("attention", "any"), ("mlp", "cpu")])
def test_elsewhere_and_in_float32_the_layers_are_what_they_were(called, name, platform):
    x = jnp.ones((2, 5, DIM))
    layer, norm = LAYERS[name](jnp.float32), LayerNorm(DIM, eps=1e-6, rngs=nnx.Rngs(1))
    with assume(platform):
        np.testing.assert_array_equal(layer(x, norm=norm, residual=True), x + layer(norm(x)))
    assert not called


def test_a_branch_that_is_dropped_adds_nothing_itself(called):
    rngs = nnx.Rngs(dropout=0)
    path, x = DropPath(0.5), jnp.ones((64, 3))
    out = path.add(x, functools.partial(lambda x, residual=False: x + 1 if residual else x), train=True, rngs=rngs)
    assert set(np.unique(out)) == {1.0, 3.0}
