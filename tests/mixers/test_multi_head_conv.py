"""Multi-head convolution: a value in numpy, and the folded form."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitlab.mixers.multi_head_conv import MultiHeadConv

TOLERANCE = 2e-5  # float32 sums of a few dozen terms of order one, in another order


def mixer_of():
    mixer = MultiHeadConv(8, num_heads=2, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    for param in (mixer.group_conv3x3.kernel, mixer.norm.scale, mixer.norm.bias, mixer.norm.mean, mixer.projection.kernel):
        param[...] = jnp.asarray(0.3 * rng.standard_normal(param.shape), jnp.float32)
    mixer.norm.var[...] = jnp.asarray(np.exp(0.2 * rng.standard_normal(8)), jnp.float32)
    return mixer


def noise(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_each_head_is_a_convolution_of_its_own_channels():
    mixer, x = mixer_of(), noise((5, 6, 8))
    kernel, norm = np.asarray(mixer.group_conv3x3.kernel[...]), mixer.norm
    padded, out = np.pad(x, ((1, 1), (1, 1), (0, 0))), np.zeros((5, 6, 8))
    for head, i, j in np.ndindex(2, 3, 3):
        own = slice(4 * head, 4 * head + 4)
        out[..., own] += padded[i : i + 5, j : j + 6, own] @ kernel[i, j, :, own]
    mean, var, scale, bias = (np.asarray(part[...]) for part in (norm.mean, norm.var, norm.scale, norm.bias))
    out = (out - mean) / np.sqrt(var + 1e-5) * scale + bias
    expected = np.maximum(out, 0) @ np.asarray(mixer.projection.kernel[...])
    np.testing.assert_allclose(mixer(jnp.asarray(x)[None])[0], expected, atol=TOLERANCE)


def test_folding_the_norm_changes_nothing():
    mixer, x = mixer_of(), jnp.asarray(noise((1, 5, 6, 8)))
    before = mixer(x)
    mixer.fuse()
    assert mixer.norm is None
    np.testing.assert_allclose(mixer(x), before, atol=TOLERANCE)
