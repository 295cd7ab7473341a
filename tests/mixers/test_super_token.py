"""Super token attention over many cells, against the equations written down densely."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitlab.mixers.super_token import SuperTokenAttention

TOLERANCE = 2e-5  # float32 sums of a few hundred terms of order one, in another order


def mixer_of(cell_size):
    mixer = SuperTokenAttention(8, num_heads=2, cell_size=cell_size, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for _, leaf in nnx.to_flat_state(nnx.state(mixer, nnx.Param)):
        leaf[...] = jnp.asarray(0.3 * rng.standard_normal(leaf.shape), jnp.float32)
    nnx.update(mixer, nnx.state(mixer, nnx.Param))
    return mixer


def noise(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def dense_assignment(x, s):
    """Returns weights [tokens, cells] and the cell's index of every token.

    The softmax also runs over the zeros outside the grid.
    """
    h, w, c = x.shape
    rows, cols = h // s, w // s
    means = x.reshape(rows, s, cols, s, c).mean((1, 3))
    share = np.zeros((h, w, rows, cols))
    for i, j in np.ndindex(h, w):
        near = [(i // s + dy, j // s + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        inside = [0 <= r < rows and 0 <= q < cols for r, q in near]
        logits = np.array([x[i, j] @ means[cell] * c**-0.5 if ok else 0.0 for cell, ok in zip(near, inside, strict=True)])
        weights = np.exp(logits) / np.exp(logits).sum()
        for cell, ok, weight in zip(near, inside, weights, strict=True):
            if ok:
                share[(i, j, *cell)] = weight
    return share.reshape(h * w, rows * cols)


def test_many_cells_follow_the_equations_with_a_dense_assignment():
    x = noise((8, 12, 8))
    mixer = mixer_of(4)
    share = dense_assignment(x, 4)
    tokens = (share.T @ x.reshape(96, 8)) / share.sum(0)[:, None]
    refined = np.asarray(mixer.stoken_refine(jnp.asarray(tokens, jnp.float32).reshape(1, 2, 3, 8))).reshape(6, 8)
    np.testing.assert_allclose(np.asarray(mixer(jnp.asarray(x)[None]))[0].reshape(96, 8), share @ refined, atol=TOLERANCE)


def test_a_map_that_is_not_whole_cells_is_padded_with_zeros_that_take_part():
    x = noise((1, 7, 10, 8))
    mixer = mixer_of(4)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 2), (0, 0)))
    np.testing.assert_allclose(mixer(jnp.asarray(x)), np.asarray(mixer(jnp.asarray(padded)))[:, :7, :10], atol=TOLERANCE)


def test_no_gradient_flows_through_the_assignment():
    """The map is linear for a constant assignment and without the refinement.

    So its derivative along x equals its value at x.
    """
    mixer = mixer_of(4)
    mixer.stoken_refine = lambda x: x
    x = jnp.asarray(noise((1, 8, 8, 8)))
    value, derivative = jax.jvp(mixer, (x,), (x,))
    np.testing.assert_allclose(derivative, value, atol=TOLERANCE)
