"""Deformable convolution (Dai et al., arXiv:1703.06211)."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv
from vitlab.layers.initial import zeros_init


class DeformConv(nnx.Module):
    """A convolution whose taps are moved by offsets, predicted by an ordinary convolution.

    The predicting convolution has the same kernel size and stride. There is one deformable group,
    no modulation mask and no padding. Samples are bilinear at absolute pixel coordinates, zero
    outside the map. Offset channels are (dy, dx) of each tap, row by row; their kernel starts at
    zero, so that this layer starts as a plain convolution.
    """

    def __init__(self, in_dim: int, out_dim: int, *, kernel_size: int, stride: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.kernel_size, self.stride, self.dtype = kernel_size, stride, dtype
        # Holds the parameters; it is not called.
        self.conv = Conv(in_dim, out_dim, kernel_size=kernel_size, stride=stride, padding=0, dtype=dtype, rngs=rngs)
        self.conv_offset = Conv(
            in_dim,
            2 * kernel_size**2,
            kernel_size=kernel_size,
            stride=stride,
            padding=0,
            kernel_init=zeros_init,
            dtype=jnp.float32,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        k, s = self.kernel_size, self.stride
        offset = self.conv_offset(x.astype(jnp.float32))  # positions in bfloat16 would be off by whole pixels
        b, h, w, _ = offset.shape
        tap_y, tap_x = np.divmod(np.arange(k * k), k)
        offset = offset.reshape(b, h, w, k * k, 2)
        y = offset[..., 0] + (s * np.arange(h)[:, None, None] + tap_y)[None]
        x_at = offset[..., 1] + (s * np.arange(w)[None, :, None] + tap_x)[None]
        samples = sample_bilinear(x, y.reshape(b, -1), x_at.reshape(b, -1)).reshape(b, h, w, -1)  # [b, h, w, taps * channels]
        kernel = self.conv.kernel[...].astype(self.dtype)
        out = samples.astype(self.dtype) @ kernel.reshape(-1, kernel.shape[-1])
        assert self.conv.bias is not None
        return out + self.conv.bias[...].astype(self.dtype)[None, None, None]


def sample_bilinear(x: Float[Array, "b h w c"], row: Float[Array, "b n"], col: Float[Array, "b n"]) -> Float[Array, "b n c"]:
    """Returns bilinear samples of a map, zero outside; differentiable in map and positions.

    Args:
      x: The map.
      row: Rows of the samples, in pixels.
      col: Columns of the samples, in pixels.
    """
    b, h, w, c = x.shape
    flat = x.reshape(b, h * w, c)
    top, left = jnp.floor(row), jnp.floor(col)
    out = jnp.zeros((b, row.shape[1], c), jnp.float32)
    for y, x_at in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        weight = (1 - jnp.abs(row - y)) * (1 - jnp.abs(col - x_at))
        inside = (y >= 0) & (y < h) & (x_at >= 0) & (x_at < w)
        index = jnp.clip(y, 0, h - 1) * w + jnp.clip(x_at, 0, w - 1)
        pixel = jnp.take_along_axis(flat, index.astype(jnp.int32)[..., None], axis=1)
        out += jnp.where(inside, weight, 0.0)[..., None] * pixel
    return out.astype(x.dtype)
