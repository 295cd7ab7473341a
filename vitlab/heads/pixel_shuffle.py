"""Pixel shuffle (Shi et al., arXiv:1609.05158, eq. 4): channels become pixels."""

import math
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides, check_maps, order_reason
from vitlab.heads.one_map import OneMap
from vitlab.layers.conv import Conv
from vitlab.layers.initial import full, lecun_normal
from vitlab.layers.roles import declare


def depth_to_space(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b h2 w2 c2"]:
    """Moves channels to pixels in the order of torch's PixelShuffle.

    out[b, factor y + i, factor x + j, c] = x[b, y, x, c factor^2 + i factor + j].

    Args:
      x: A map [b, h, w, c], c a multiple of factor^2.
      factor: Pixels per side that each position becomes.

    Returns:
      [b, factor h, factor w, c / factor^2].

    Raises:
      ValueError: c is no multiple of factor^2.
    """
    b, h, w, c = x.shape
    if c % factor**2:
        raise ValueError(f"{c} channels must be a multiple of {factor**2}, the square of {factor=}")
    x = x.reshape(b, h, w, c // factor**2, factor, factor).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(b, h * factor, w * factor, c // factor**2)


class Upsample(nnx.Module):
    """Transposed convolution with equal kernel size and stride, `factor`.

    Each position becomes factor x factor pixels. Windows do not overlap, so that the layer is a
    linear map followed by `depth_to_space`.
    """

    def __init__(self, in_dim: int, out_dim: int, *, factor: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.factor = factor
        self.conv = Conv(in_dim, out_dim * factor**2, kernel_size=1, use_bias=False, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)
        self.bias = nnx.Param(full(out_dim, 0.0))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        x = depth_to_space(self.conv(x), self.factor)
        return x + self.bias[...].astype(x.dtype).reshape(1, 1, 1, -1)


class PixelShuffle(nnx.Module):
    """depth_to_space(conv3x3(fused map)): an image at `factor` times the finest map's size."""

    reads_all: ClassVar[bool] = True
    unsupported_reason = staticmethod(order_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dim: int = 128,
        factor: int | None = None,  # pixels per side of a position of the finest map; None: its stride, for the image's own size
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        self.factor = math.ceil(strides[0]) if factor is None else factor
        self.stride = strides[0] / self.factor
        self.one_map = OneMap(dims, strides, dim=dim, dtype=dtype, rngs=rngs)
        self.conv = declare(Conv(dim, out_dim * self.factor**2, kernel_size=3, kernel_init=lecun_normal, rngs=rngs), "head")

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns [b, factor h, factor w, out_dim], float32; h and w are the finest map's."""
        del train, rngs
        return depth_to_space(self.conv(self.one_map(features)), self.factor)
