"""The shifted-window mixer against a literal roll-and-partition in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.mixers.global_attention import GlobalAttention
from vitlab.mixers.window_attention import WindowAttention


def swin_by_hand(mixer, x):
    """Pad, project, roll, cut windows, mask regions with -100, attend, undo: in this order."""
    ws, shift, heads = mixer.window_size, mixer.shift, mixer.num_heads
    b, h, w, c = x.shape
    x = np.pad(x, ((0, 0), (0, -h % ws), (0, -w % ws), (0, 0)))
    qkv = x @ np.asarray(mixer.qkv.kernel[...]) + np.asarray(mixer.qkv.bias[...])
    qkv = np.roll(qkv, (-shift, -shift), (1, 2))
    _, hp, wp, _ = x.shape
    region = [np.digitize(np.arange(n), [n - ws, n - shift]) if shift else np.zeros(n) for n in (hp, wp)]
    region = region[0][:, None] * 3 + region[1]
    table = np.asarray(mixer.rel_pos_bias[...])
    out = np.zeros((b, hp, wp, c), np.float32)
    for top in range(0, hp, ws):
        for left in range(0, wp, ws):
            rows, cols = slice(top, top + ws), slice(left, left + ws)
            q, k, v = np.moveaxis(qkv[:, rows, cols].reshape(b, ws * ws, 3, heads, -1), 2, 0)
            at = np.stack(np.mgrid[:ws, :ws], -1).reshape(-1, 2)
            delta = at[:, None] - at[None] + ws - 1
            here = region[rows, cols].reshape(-1)
            logits = np.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5 + table[:, delta[..., 0], delta[..., 1]]
            logits = logits + np.where(here[:, None] != here[None], -100.0, 0.0)
            weights = np.asarray(jax.nn.softmax(jnp.asarray(logits), -1))
            out[:, rows, cols] = np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(b, ws, ws, c)
    out = np.roll(out, (shift, shift), (1, 2))[:, :h, :w]
    return out @ np.asarray(mixer.proj.kernel[...]) + np.asarray(mixer.proj.bias[...])


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (9, 14)])
@pytest.mark.parametrize("shift", [0, 2])
def test_equals_the_roll_and_partition(size, shift):
    mixer = WindowAttention(8, num_heads=2, window_size=4, shift=shift, rngs=nnx.Rngs(0))
    mixer.rel_pos_bias.set_value(jax.random.normal(jax.random.key(1), mixer.rel_pos_bias.shape))
    mixer.qkv.bias.set_value(jax.random.normal(jax.random.key(2), mixer.qkv.bias.shape))
    x = np.random.default_rng(0).standard_normal((2, *size, 8)).astype(np.float32)
    np.testing.assert_allclose(mixer(jnp.asarray(x)), swin_by_hand(mixer, x), atol=1e-6)


def test_a_window_as_large_as_the_map_is_global_attention():
    window = WindowAttention(8, num_heads=2, window_size=6, shift=3, rngs=nnx.Rngs(0))
    window.rel_pos_bias.set_value(jnp.zeros_like(window.rel_pos_bias[...]))
    everywhere = GlobalAttention(8, num_heads=2, rngs=nnx.Rngs(1))
    for name in ("qkv", "proj"):
        nnx.update(getattr(everywhere, name), nnx.state(getattr(window, name)))
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
    np.testing.assert_allclose(window(x), everywhere(x), atol=1e-6)


def test_refuses_a_shift_outside_the_window_and_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="shift=7 must be"):
        WindowAttention(8, num_heads=2, window_size=7, shift=7, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="must be a multiple of num_heads=3"):
        WindowAttention(8, num_heads=3, rngs=nnx.Rngs(0))
