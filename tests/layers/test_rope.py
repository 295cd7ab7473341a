"""Rotary positions: what a rotation may and may not change."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.layers.rope import rotate, rotation

FORMS = ("dinov3", "eva02", "pe")


def table(rope, grid=(3, 4), head_dim=8, num_prefix=2, reference=16):
    return jnp.asarray(rotation(rope, grid, head_dim, num_prefix=num_prefix, reference=reference))


@pytest.mark.parametrize("rope", FORMS)
def test_a_rotation_keeps_lengths_and_leaves_prefix_tokens_alone(rope):
    x = np.random.default_rng(0).standard_normal((2, 14, 3, 8)).astype(np.float32)
    out = np.asarray(rotate(jnp.asarray(x), table(rope), halves=rope == "dinov3"))
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)  # float32 rounding
    np.testing.assert_array_equal(out[:, :2], x[:, :2])
    assert np.abs(out[:, 3:] - x[:, 3:]).max(-1).min() > 0.01  # the first patch of EVA-02 is at angle zero


@pytest.mark.parametrize("rope", FORMS)
def test_products_depend_on_the_distance_alone(rope):
    """The same query and key at every place: their product is a function of the difference of the
    places.
    """
    query, key = (np.broadcast_to(np.random.default_rng(i).standard_normal(8), (1, 16, 1, 8)) for i in (0, 1))
    places = table(rope, grid=(4, 4), num_prefix=0)
    q, k = (
        np.asarray(rotate(jnp.asarray(x, jnp.float32), places, halves=rope == "dinov3"))[0, :, 0].reshape(4, 4, 8) for x in (query, key)
    )
    products = np.einsum("yxd,vud->yxvu", q, k)
    np.testing.assert_allclose(products[:3, :3, 1, 1], products[1:, 1:, 2, 2], rtol=0, atol=1e-5)  # float32, values of size 5
    assert np.ptp(products[:, :, 0, 0]) > 0.1


def test_the_first_angles_are_the_papers():
    half, pairs = table("dinov3", num_prefix=0), table("eva02", num_prefix=0)
    y, x = 2 * (1 + 0.5) / 3 - 1, 2 * (2 + 0.5) / 4 - 1  # row 1, column 2
    angles = 2 * np.pi * np.array([y, y / 10, x, x / 10])
    np.testing.assert_allclose(half[0, 6], np.cos(np.tile(angles, 2)), atol=1e-6)
    angles = np.repeat([1 / 3 * 16, 1 / 3 * 16 / 100, 2 / 4 * 16, 2 / 4 * 16 / 100], 2)
    np.testing.assert_allclose(pairs[1, 6], np.sin(angles), atol=1e-6)
    counted = table("pe", num_prefix=1, reference=24)  # columns first, and from 1
    angles = np.repeat([3 / 4 * 24, 3 / 4 * 24 / 100, 2 / 3 * 24, 2 / 3 * 24 / 100], 2)
    np.testing.assert_allclose(counted[1, 7], np.sin(angles), atol=1e-6)


def test_a_width_that_two_axes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="head_dim=6 must be a multiple of 4"):
        rotation("dinov3", (2, 2), 6, num_prefix=0, reference=16)
