"""DCNv4 against its definition, one sample after the other."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitlab.layers.deform_conv_v4 import DeformConvV4


def sampled(values, row, column):
    """A bilinear sample of one channel, zero outside."""
    h, w = values.shape
    top, left = int(np.floor(row)), int(np.floor(column))
    corners = [(y, x) for y in (top, top + 1) for x in (left, left + 1) if 0 <= y < h and 0 <= x < w]
    return sum(values[y, x] * (1 - abs(row - y)) * (1 - abs(column - x)) for y, x in corners)


def test_taps_go_column_by_column_and_each_group_has_its_own():
    rng = np.random.default_rng(0)
    module = DeformConvV4(4, groups=2, local_offsets=True, rngs=nnx.Rngs(0))
    module.offset_mask.kernel[...] = jnp.asarray(rng.standard_normal(module.offset_mask.kernel.shape), jnp.float32)
    x = jnp.asarray(rng.standard_normal((1, 3, 4, 4)), jnp.float32)
    values, predicted = np.asarray(module.value_proj(x))[0], np.asarray(module.offset_mask(module.offset_mask_dw(x)))[0]
    assert predicted.shape[-1] == 56  # twice 27, up to a multiple of 8
    out = np.zeros((3, 4, 4), np.float32)
    for y, x_at, group, tap in np.ndindex(3, 4, 2, 9):
        of_group = predicted[y, x_at, 27 * group : 27 * group + 27]
        column, row = x_at + tap // 3 - 1 + of_group[2 * tap], y + tap % 3 - 1 + of_group[2 * tap + 1]
        for channel in (2 * group, 2 * group + 1):
            out[y, x_at, channel] += of_group[18 + tap] * sampled(values[..., channel], row, column)
    # Sums of 36 products of order one, in float32.
    np.testing.assert_allclose(module(x), module.output_proj(jnp.asarray(out)[None]), rtol=1e-5, atol=1e-6)
