import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from pallas_kernels import target
from pallas_kernels.neighborhood_attention import neighborhood_attention
from vitlab.analysis.counts import count_macs, macs_of
from vitlab.layers.neighborhood_sum import neighborhood_sum
from vitlab.models.registry import abstract_model

MAP = jax.ShapeDtypeStruct((2, 14, 14, 3, 8), jnp.float32)
BIAS = jax.ShapeDtypeStruct((3, 9, 9), jnp.float32)
WEIGHTS = jax.ShapeDtypeStruct((2, 14, 14, 3, 25), jnp.float32)
ONE_PRODUCT = 2 * 14 * 14 * 3 * 25 * 8


def attend(query, key, value, bias):
    return neighborhood_attention(query, key, value, kernel_size=5, bias=bias).sum()


def add_up(weights, value):
    return neighborhood_sum(weights, jnp.sin(value), kernel_size=5).sum()


@pytest.mark.parametrize(
    ("fn", "args", "products"), [(attend, (MAP, MAP, MAP, BIAS), 2), (add_up, (WEIGHTS, MAP), 1)], ids=["attention", "sum"]
)
def test_neighborhoods_count_by_definition_and_their_gradients_what_they_compute(fn, args, products):
    forward = macs_of(fn, *args)
    assert forward == macs_of(jax.vmap(fn), *[jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in args]) == products * ONE_PRODUCT
    gradient = macs_of(jax.grad(fn, tuple(range(len(args)))), *args)
    assert gradient >= 3 * forward  # two products for each product of the forward pass, and the masked ones
    assert macs_of(jax.grad(jax.checkpoint(fn), tuple(range(len(args)))), *args) == gradient + forward


def test_a_kernel_counts_as_often_as_its_grid_runs_it():
    def multiply(x, y):
        return pl.pallas_call(
            lambda x, y, out: out.__setitem__(..., x[...] @ y[...]),
            out_shape=jax.ShapeDtypeStruct((64, 16), x.dtype),
            grid=(4, 2),
            in_specs=[pl.BlockSpec((16, 8), lambda i, j: (i, 0)), pl.BlockSpec((8, 8), lambda i, j: (0, j))],
            out_specs=pl.BlockSpec((16, 8), lambda i, j: (i, j)),
        )(x, y)

    shapes = jax.ShapeDtypeStruct((64, 8), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.float32)
    assert macs_of(multiply, *shapes) == 64 * 8 * 16


def test_attention_kernels_count_what_attention_counts():
    here = count_macs(abstract_model("swin_tiny"))
    with target.assume("tpu"):
        assert count_macs(abstract_model("swin_tiny")) == here
