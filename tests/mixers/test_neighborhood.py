"""Neighborhood attention: its windows, the place of the bias, and small maps."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vitlab.mixers.neighborhood import NeighborhoodAttention

TOLERANCE = 2e-5  # float32 sums of a few dozen terms of order one, in another order


def mixer_of(**options):
    mixer = NeighborhoodAttention(8, num_heads=2, rngs=nnx.Rngs(0), **options)
    rng = np.random.default_rng(1)
    for param in (mixer.qkv.kernel, mixer.qkv.bias, mixer.rpb, mixer.proj.kernel, mixer.proj.bias):
        param[...] = jnp.asarray(0.3 * rng.standard_normal(param.shape), jnp.float32)
    return mixer


def noise(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def window(i, length, kernel, dilation):
    """Returns the `kernel` positions of i's residue class nearest to i, inside the border."""
    same = np.arange(i % dilation, length, dilation)
    start = min(max(int(np.flatnonzero(same == i)[0]) - kernel // 2, 0), len(same) - kernel)
    return same[start : start + kernel]


def oracle(mixer, x, kernel, dilation):
    h, w, c = x.shape
    q, k, v = ((x @ np.asarray(mixer.qkv.kernel[...]) + np.asarray(mixer.qkv.bias[...])).reshape(h, w, 3, 2, 4)[:, :, n] for n in range(3))
    bias, out = np.asarray(mixer.rpb[...]), np.zeros((h, w, c))
    for i, j, head in np.ndindex(h, w, 2):
        rows, cols = window(i, h, kernel, dilation), window(j, w, kernel, dilation)
        seen = np.ix_(rows, cols, [head])
        logits = (k[seen][:, :, 0] @ q[i, j, head]) * 4**-0.5
        logits = logits + bias[head][np.ix_((rows - i) // dilation + kernel - 1, (cols - j) // dilation + kernel - 1)]
        weights = np.exp(logits) / np.exp(logits).sum()
        out[i, j, 4 * head : 4 * head + 4] = np.einsum("rc,rcd->d", weights, v[seen][:, :, 0])
    return out @ np.asarray(mixer.proj.kernel[...]) + np.asarray(mixer.proj.bias[...])


@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), [(6, 5, 3, 1), (7, 9, 3, 2), (10, 9, 3, 3)])
def test_a_token_sees_the_nearest_of_its_residue_class_with_a_bias_by_offset(height, width, kernel, dilation):
    mixer, x = mixer_of(kernel_size=kernel, dilation=dilation), noise((height, width, 8))
    np.testing.assert_allclose(mixer(jnp.asarray(x)[None])[0], oracle(mixer, x, kernel, dilation), atol=TOLERANCE)


def test_a_map_smaller_than_the_window_is_padded_and_the_padding_is_seen():
    mixer, x = mixer_of(kernel_size=3, dilation=2), noise((4, 7, 8))
    padded = np.pad(x, ((0, 2), (0, 0), (0, 0)))
    np.testing.assert_allclose(mixer(jnp.asarray(x)[None])[0], oracle(mixer, padded, 3, 2)[:4], atol=TOLERANCE)
