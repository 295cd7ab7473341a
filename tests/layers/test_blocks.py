"""Blocks in a loop compute what blocks one by one do, random numbers and statistics included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.layers import BatchNorm, DropPath, Linear, run_blocks, stage_drop_path_rates
from vitlab.layers.initial import InitRngs

DIM = 4


class Block(nnx.Module):
    def __init__(self, *, shift=0, dim=DIM, rate=0.0, rngs):
        self.shift = shift
        self.norm = BatchNorm(dim, rngs=rngs)
        self.linear = Linear(dim, dim, rngs=rngs)
        self.drop_path = DropPath(rate)

    def __call__(self, x, *, bias=0.0, train, rngs):
        y = jnp.roll(jnp.sin(self.linear(self.norm(x, train=train))), self.shift, axis=1) + bias
        return x + self.drop_path(y, train=train, rngs=rngs)


def chain(*, shifts=(0,) * 6, rate=0.0):
    (rates,) = stage_drop_path_rates(rate, (len(shifts),))
    rngs = InitRngs(0)
    return nnx.List([Block(shift=shift, rate=each, rngs=rngs) for shift, each in zip(shifts, rates, strict=True)])


def run(blocks, *, scan, remat="none", train=True, **options):
    """Returns output and gradients, the new moving averages, and the next random key."""
    graphdef, params, rest = nnx.split(blocks, nnx.Param, ...)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 5, DIM)), jnp.float32)

    def loss(params):
        blocks, rngs = nnx.merge(graphdef, params, rest, copy=True), nnx.Rngs(dropout=1)
        y = run_blocks(blocks, x, remat=remat, scan=scan, train=train, rngs=rngs, **options)
        return (y**2).sum(), (y, nnx.to_pure_dict(nnx.state(blocks, nnx.BatchStat)), jax.random.key_data(rngs.dropout()))

    return jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss, has_aux=True))(params))


def loops(blocks, **options):
    """Returns the number of trips of each loop."""
    graphdef, state = nnx.split(blocks)

    def forward(state):
        blocks, x = nnx.merge(graphdef, state, copy=True), jnp.zeros((8, 5, DIM))
        return run_blocks(blocks, x, remat="none", scan=True, train=True, rngs=nnx.Rngs(dropout=1), **options)

    return [eqn.params["length"] for eqn in jax.make_jaxpr(forward)(state).eqns if eqn.primitive.name == "scan"]


def assert_same(left, right):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), left, right)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
@pytest.mark.parametrize(("shifts", "trips"), [((0,) * 6, 5), ((0, 1, 2) * 3, 2)])
def test_a_loop_gives_the_same_numbers(shifts, trips, remat):
    blocks = chain(shifts=shifts, rate=0.5)  # the first block drops no path and runs before the loop
    assert loops(blocks) == [trips]
    assert_same(run(blocks, scan=True, remat=remat), run(blocks, scan=False, remat=remat))


def test_evaluation_and_options_pass_through_the_loop():
    blocks, bias = chain(), jnp.arange(DIM, dtype=jnp.float32)
    assert_same(run(blocks, scan=True, train=False, bias=bias), run(blocks, scan=False, train=False, bias=bias))


def test_blocks_of_another_shape_or_rule_are_not_in_the_loop():
    assert loops(chain()) == [6]
    assert loops(chain(shifts=(0, 1) * 4)) == [4]
    assert loops(chain(shifts=(3, 0, 0, 0, 1, 2, 1, 2))) == [3, 2]
    assert loops(chain(shifts=(0, 1, 2))) == []


def test_without_scan_nothing_loops():
    blocks = chain()
    out = jax.make_jaxpr(lambda x: run_blocks(blocks, x, remat="none", scan=False, train=False, rngs=None))(jnp.zeros((2, 5, DIM)))
    assert "scan" not in {eqn.primitive.name for eqn in out.eqns}
