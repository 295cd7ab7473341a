"""Resizing and pooling by torch's conventions, against literal loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from vitlab.layers.pool import adaptive_average_pool, average_pool_ceil
from vitlab.layers.resize import resize_bicubic, resize_bilinear, resize_nearest

X = jnp.asarray(np.random.default_rng(0).standard_normal((2, 7, 10, 3)), jnp.float32)


def test_bilinear_reads_two_neighbours_at_half_pixel_centres():
    out = np.asarray(resize_bilinear(X, (7, 5)))
    np.testing.assert_allclose(out, (X[:, :, ::2] + X[:, :, 1::2]) / 2, atol=1e-6)


def test_bilinear_with_aligned_corners_keeps_the_corners_and_is_even_between_them():
    out = np.asarray(resize_bilinear(X, (13, 10), align_corners=True))
    np.testing.assert_allclose(out[:, ::2], X, atol=1e-6)
    np.testing.assert_allclose(out[:, 1::2], (X[:, 1:] + X[:, :-1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(resize_bilinear(X, (1, 1), align_corners=True), X[:, :1, :1])


def test_nearest_takes_the_pixel_at_or_before():
    np.testing.assert_array_equal(resize_nearest(X, (14, 5)), np.repeat(X, 2, 1)[:, :, ::2])
    np.testing.assert_array_equal(resize_nearest(X, (3, 10)), X[:, [0, 2, 4]])


def test_bicubic_has_torchs_weights_at_a_half():
    # At t = 1/2 and a = -0.75 the taps are -0.09375, 0.59375, 0.59375, -0.09375; the border
    # repeats.
    out = np.asarray(resize_bicubic(X, (7, 5)))
    padded = np.pad(X, ((0, 0), (0, 0), (1, 1), (0, 0)), "edge")
    expected = sum(w * padded[:, :, i : i + 10 : 2] for i, w in enumerate((-0.09375, 0.59375, 0.59375, -0.09375)))
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("resize", [resize_bilinear, resize_bicubic])
def test_the_same_size_is_the_identity_and_a_constant_stays(resize):
    np.testing.assert_allclose(resize(X, (7, 10)), X, atol=1e-6)
    np.testing.assert_allclose(resize(jnp.ones_like(X), (13, 4)), 1, atol=1e-6)


def test_ceil_pooling_averages_what_is_left_at_the_end():
    out = np.asarray(average_pool_ceil(X, 2))
    assert out.shape == (2, 4, 5, 3)
    np.testing.assert_allclose(out[:, 0, 0], X[:, :2, :2].mean((1, 2)), atol=1e-6)
    np.testing.assert_allclose(out[:, 3, 1], X[:, 6:, 2:4].mean((1, 2)), atol=1e-6)


def test_adaptive_pooling_has_overlapping_bins():
    out = np.asarray(adaptive_average_pool(X, (3, 4)))
    rows = [(i * 7 // 3, -(-(i + 1) * 7 // 3)) for i in range(3)]
    cols = [(i * 10 // 4, -(-(i + 1) * 10 // 4)) for i in range(4)]
    for i, (top, bottom) in enumerate(rows):
        for j, (left, right) in enumerate(cols):
            np.testing.assert_allclose(out[:, i, j], X[:, top:bottom, left:right].mean((1, 2)), atol=1e-6)
