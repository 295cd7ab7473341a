"""Halo attention against a literal loop over blocks and queries in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.layers import Attention
from vitlab.mixers.halo import HaloAttention

TOLERANCE = 1e-5  # float32 sums of a hundred terms of order one, in another order


def build(dim=8, **options):
    mixer = HaloAttention(dim, num_heads=2, rngs=nnx.Rngs(0), **options)
    mixer.q.kernel[...], mixer.kv.kernel[...] = (
        noise(k[...].shape, seed) * 0.5 for seed, k in enumerate((mixer.q.kernel, mixer.kv.kernel))
    )
    return mixer


def noise(shape, seed=7):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def halo_by_hand(mixer, x):
    """For each query and head: keys of the block and its halo, zeros outside, one softmax."""
    s, halo, stride, d, win = mixer.block_size, mixer.halo_size, mixer.stride, mixer.head_dim, mixer.window_size
    h, w, _ = x.shape
    whole = np.pad(np.asarray(x), ((halo, halo - h % -s), (halo, halo - w % -s), (0, 0)))
    down, across = np.asarray(mixer.height_rel[...]), np.asarray(mixer.width_rel[...])
    out = np.zeros((-(-h // stride), -(-w // stride), mixer.value_dim), np.float32)
    for row in range(0, h, stride):
        for col in range(0, w, stride):
            top, left = row // s * s, col // s * s  # corner of the block's window in the padded map
            keys = whole[top : top + win, left : left + win] @ np.asarray(mixer.kv.kernel[...])
            query = np.asarray(x)[row, col] @ np.asarray(mixer.q.kernel[...])
            y, z = (row - top) // stride, (col - left) // stride
            for n, (q, kv) in enumerate(zip(query.reshape(2, d), np.moveaxis(keys.reshape(win, win, 2, -1), 2, 0), strict=True)):
                position = (down[win - 1 - y : 2 * win - 1 - y] @ q)[:, None] + across[win - 1 - z : 2 * win - 1 - z] @ q
                weights = np.exp(kv[..., :d] @ q * d**-0.5 + position)
                size = mixer.value_dim // 2
                out[row // stride, col // stride, n * size :][:size] = np.tensordot(weights / weights.sum(), kv[..., d:], 2)
    return out


@pytest.mark.parametrize("size", [(8, 8), (8, 12), (5, 11)])
@pytest.mark.parametrize(
    "options",
    [{"halo_size": 1}, {"halo_size": 3}, {"halo_size": 1, "stride": 2}, {"halo_size": 2, "value_dim": 20}, {"halo_size": 5, "stride": 2}],
    ids=str,
)
def test_equals_the_loop_over_queries(size, options):
    mixer = build(block_size=4, **options)
    x = noise((*size, 8))
    np.testing.assert_allclose(mixer(x[None])[0], halo_by_hand(mixer, x), rtol=0, atol=TOLERANCE)


def test_a_block_as_large_as_the_map_without_halo_or_positions_is_global_attention():
    mixer, everywhere = build(block_size=6, halo_size=0), Attention(8, num_heads=2, qkv_bias=False, rngs=nnx.Rngs(1))
    mixer.height_rel[...] = mixer.width_rel[...] = jnp.zeros((11, 4))
    kv = mixer.kv.kernel[...].reshape(8, 2, 2, 4)  # [..., heads, key and value, ...]
    everywhere.qkv.kernel[...] = jnp.concatenate((mixer.q.kernel[...], kv[:, :, 0].reshape(8, 8), kv[:, :, 1].reshape(8, 8)), 1)
    everywhere.proj.kernel[...] = jnp.eye(8)
    x = noise((2, 6, 6, 8))
    np.testing.assert_allclose(mixer(x), everywhere(x.reshape(2, 36, 8)).reshape(x.shape), rtol=0, atol=TOLERANCE)


def test_blocks_see_as_far_as_their_halo():
    mixer, x = build(block_size=4, halo_size=1), noise((1, 8, 8, 8))
    change = np.abs(np.asarray(mixer(x.at[0, 4, 6].add(1.0)) - mixer(x)))[0].max(-1) > 0
    assert change[0:4, 4:8].all() and change[4:8, 4:8].all()  # row 4 is in the halo of the blocks above
    assert not change[:, 0:4].any()  # column 6 is not in the halo of the blocks to the left


def test_every_parameter_gets_a_gradient_without_scatter_and_bfloat16_follows():
    mixer, x = build(block_size=4, halo_size=1, stride=2), noise((1, 8, 8, 8))
    graphdef, params = nnx.split(mixer)
    loss = lambda params: jnp.sum(jnp.sin(nnx.merge(graphdef, params, copy=True)(x)) ** 2)  # noqa: E731
    for path, grad in nnx.to_flat_state(jax.grad(loss)(params)):
        assert np.isfinite(grad[...]).all() and np.abs(grad[...]).max() > 0, path
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(loss))(params))  # sums of a scatter differ from run to run on a GPU
    half = nnx.merge(nnx.split(build(block_size=4, halo_size=1, stride=2, dtype=jnp.bfloat16))[0], params)(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), mixer(x), rtol=0, atol=0.05)  # bfloat16 rounds by 2^-8 relative per operation


def test_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match=r"block_size=7 must be a multiple of stride=2"):
        build(block_size=7, stride=2)
    with pytest.raises(ValueError, match=r"must be a multiple of num_heads=2"):
        build(value_dim=9)
