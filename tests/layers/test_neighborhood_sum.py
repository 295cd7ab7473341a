"""Sums over neighborhoods against a literal loop, in values and gradients.

Sizes are no multiples of the tiles.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.layers.neighborhood_sum import neighborhood_sum


def literal(weights, value, pull, kernel_size):
    """Returns the sums and the gradients of both arguments, one token at a time."""
    h, w = value.shape[1:3]
    sums, d_weights, d_value = np.zeros(value.shape), np.zeros(weights.shape), np.zeros(value.shape)
    for i in range(h):
        for j in range(w):
            top, left = (int(np.clip(at - kernel_size // 2, 0, side - kernel_size)) for at, side in ((i, h), (j, w)))
            window = np.s_[:, top : top + kernel_size, left : left + kernel_size]
            taps = weights[:, i, j].swapaxes(1, 2).reshape(value[window].shape[:-1])
            sums[:, i, j] = (taps[..., None] * value[window]).sum((1, 2))
            d_weights[:, i, j] = (
                (value[window] * pull[:, i, j][:, None, None]).sum(-1).reshape(len(value), -1, value.shape[3]).swapaxes(1, 2)
            )
            d_value[window] += taps[..., None] * pull[:, i, j][:, None, None]
    return sums, d_weights, d_value


@pytest.mark.parametrize(("h", "w", "kernel_size"), [(5, 6, 5), (19, 4, 3), (4, 23, 4)])
def test_sums_and_their_gradients_are_those_of_a_loop(h, w, kernel_size):
    rng = np.random.default_rng(0)
    weights, value, pull = (rng.standard_normal((2, h, w, 3, last)).astype(np.float32) for last in (kernel_size**2, 2, 2))
    out, pull_back = jax.vjp(lambda a, v: neighborhood_sum(a, v, kernel_size=kernel_size), jnp.asarray(weights), jnp.asarray(value))
    for ours, theirs in zip((out, *pull_back(jnp.asarray(pull))), literal(weights, value, pull, kernel_size), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)  # float32 sums of a few dozen terms of order one


def test_a_window_larger_than_the_map_is_refused():
    with pytest.raises(ValueError, match="kernel_size=5 must be at most the sides of the map, 4x6"):
        neighborhood_sum(jnp.zeros((1, 4, 6, 1, 25)), jnp.zeros((1, 4, 6, 1, 2)), kernel_size=5)
