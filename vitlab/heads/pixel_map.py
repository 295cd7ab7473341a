"""A map of the image's own size, in which a trunk says what is where and the pixels say it
sharply.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides
from vitlab.heads.one_map import OneMap
from vitlab.heads.pixel_shuffle import Upsample
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import lecun_normal
from vitlab.layers.norm import LayerNorm


class PixelMap(nnx.Module):
    """gelu(norm(conv3x3(gelu(upsample(one map of all) + conv3x3(pixels))))), which loses no detail
    of the image to the patches.

    The sum with a convolution of the image is the long skip of restoration networks (Zhang et al.,
    arXiv:1608.03981, learn what is to be added to the image).
    """

    def __init__(
        self, dims: Sequence[int], strides: Strides, *, in_channels: int, dim: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        def conv(in_dim: int) -> Conv:
            return Conv(in_dim, dim, kernel_size=3, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)

        self.one_map = OneMap(dims, strides, dim=dim, dtype=dtype, rngs=rngs)
        self.upsample = Upsample(dim, dim, factor=int(-(-strides[0] // 1)), dtype=dtype, rngs=rngs)
        self.pixels, self.conv = conv(in_channels), conv(dim)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)

    def __call__(self, features: Maps, images: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        """Features of each pixel of the images, which are normalised."""
        height, width = images.shape[1:3]
        coarse = self.upsample(self.one_map(features))[:, :height, :width]  # the last patch may reach beyond the image
        return gelu(self.norm(self.conv(gelu(coarse + self.pixels(images.astype(coarse.dtype))))))
