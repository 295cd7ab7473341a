"""Leaf parts against five-line oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.layers import BatchNorm, DropPath, LayerNorm, PatchEmbed, PatchMerging, drop_path_rates
from vitlab.layers.dilated_reparam import BRANCHES, DilatedReparam
from vitlab.layers.global_response_norm import GlobalResponseNorm
from vitlab.layers.pos_embed import resample, sincos_2d


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_patch_embed_is_a_strided_convolution():
    embed = PatchEmbed(3, 5, patch_size=4, rngs=nnx.Rngs(0))
    x = jnp.asarray(rand(2, 8, 12, 3))
    np.testing.assert_allclose(embed(x), embed.proj(x), atol=1e-5)


def test_patch_embed_refuses_a_side_that_is_no_multiple_of_the_patch():
    embed = PatchEmbed(3, 5, patch_size=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="8x10 pixels: both sides must be multiples of patch_size=4"):
        embed(jnp.zeros((1, 8, 10, 3)))


def test_patch_merging_takes_the_four_pixels_column_slowest():
    merging = PatchMerging(3, rngs=nnx.Rngs(0))
    x = rand(1, 4, 4, 3)
    four = np.concatenate([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    np.testing.assert_allclose(merging(jnp.asarray(x)), merging.reduction(merging.norm(jnp.asarray(four))), atol=1e-6)


def test_patch_merging_pads_an_odd_side_with_zeros():
    merging = PatchMerging(3, rngs=nnx.Rngs(0))
    x = rand(1, 3, 5, 3)
    padded = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    np.testing.assert_array_equal(merging(jnp.asarray(x)), merging(jnp.asarray(padded)))


def test_layer_norm_computes_in_float32_and_returns_its_dtype():
    norm = LayerNorm(64, eps=1e-5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = rand(4, 64) * 10 + 300  # a large mean loses digits in bfloat16
    out = norm(jnp.asarray(x))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=2**-6)  # bfloat16: 8 bits of values up to 4


def test_batch_norm_without_affine_standardises_and_learns_nothing():
    norm, x = BatchNorm(4, affine=False, rngs=nnx.Rngs(0)), rand(3, 5, 4) * 2 + 1
    assert not jax.tree.leaves(nnx.state(norm, nnx.Param))
    np.testing.assert_allclose(norm(jnp.asarray(x), train=True), (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5), atol=1e-5)
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1)), atol=1e-6)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    x = jnp.ones((2000, 2, 3))
    y = np.asarray(DropPath(0.25)(x, train=True, rngs=nnx.Rngs(dropout=0)))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
    assert (y == y[:, :1, :1]).all()
    assert y.mean() == pytest.approx(1, abs=4 * (1 / 3 / 2000) ** 0.5)  # four standard deviations


def test_drop_path_is_the_identity_in_evaluation_and_refuses_training_without_keys():
    x = jnp.ones((4, 2))
    assert DropPath(0.5)(x, train=False, rngs=None) is x
    with pytest.raises(ValueError, match="rngs"):
        DropPath(0.5)(x, train=True, rngs=None)
    with pytest.raises(ValueError, match="rate=1.0"):
        DropPath(1.0)


def test_drop_path_rates_rise_from_zero():
    assert drop_path_rates(0.3, 4) == pytest.approx((0, 0.1, 0.2, 0.3))


def test_position_embedding_keeps_its_prefix_and_a_constant_when_resampled():
    table = jnp.concatenate([jnp.full((1, 1, 2), 7.0), jnp.ones((1, 16, 2))], 1)
    out = resample(table, (4, 4), (6, 3), num_prefix=1)
    assert out.shape == (1, 19, 2)
    np.testing.assert_allclose(out[:, 0], 7)
    np.testing.assert_allclose(out[:, 1:], 1, atol=1e-6)


def test_sincos_positions_are_distinct_and_need_a_multiple_of_four():
    table = sincos_2d(5, 7, 32)[0]
    assert len(np.unique(table.round(5), axis=0)) == 35
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(2, 2, 30)


def test_every_leaf_part_gives_each_parameter_a_gradient():
    for part, x in (
        (PatchEmbed(3, 8, patch_size=2, norm_eps=1e-5, rngs=nnx.Rngs(0)), rand(1, 4, 4, 3)),
        (PatchMerging(4, rngs=nnx.Rngs(0)), rand(1, 4, 4, 4)),
    ):
        graphdef, params = nnx.split(part)
        grads = jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(jnp.asarray(x)) ** 3))(params)  # noqa: B023
        assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_global_response_norm_compares_a_channels_length_with_the_mean():
    norm, x = GlobalResponseNorm(3), rand(2, 4, 5, 3)
    norm.gamma[...], norm.beta[...] = jnp.asarray([1.0, -2.0, 0.5]), jnp.asarray([0.1, 0.2, 0.3])
    length = np.sqrt((x * x).sum((1, 2), keepdims=True))
    expected = x * (1 + norm.gamma[...] * length / length.mean(-1, keepdims=True)) + norm.beta[...]
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-5)
    assert np.isfinite(jax.grad(lambda x: norm(x).sum())(jnp.zeros((1, 2, 2, 3)))).all()


def test_a_dilated_branch_falls_on_every_other_tap_of_the_large_kernel():
    conv = DilatedReparam(1, kernel_size=7, rngs=nnx.Rngs(0))
    for name, branch in conv.branches.items():
        branch.conv.kernel[...] = jnp.full_like(branch.conv.kernel[...], float(name == "k3_3"))
    conv.origin.conv.kernel[...] = jnp.zeros((7, 7, 1, 1))
    conv.fuse()
    kernel = np.asarray(conv.origin.conv.kernel[...])[..., 0, 0]
    assert (kernel[::3, ::3] > 0.99).all() and np.count_nonzero(kernel) == 9


@pytest.mark.parametrize("size", BRANCHES)
def test_a_fused_large_kernel_is_the_sum_of_its_branches(size):
    conv, x = DilatedReparam(2, kernel_size=size, rngs=nnx.Rngs(0)), rand(1, 20, 21, 2)
    before = conv(jnp.asarray(x))
    conv.fuse()
    assert not conv.branches
    np.testing.assert_allclose(conv(jnp.asarray(x)), before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_a_large_kernel_without_published_branches_is_refused():
    with pytest.raises(ValueError, match="kernel_size=8 must be one of"):
        DilatedReparam(4, kernel_size=8, rngs=nnx.Rngs(0))
