"""Simple feature pyramid of a trunk without stages (ViTDet, arXiv:2203.16527, section 3)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides, check_maps, plain_reason
from vitlab.heads.pixel_shuffle import Upsample
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import lecun_normal
from vitlab.layers.norm import LayerNorm

_FACTORS = (4, 2, 1, 0.5)  # factors on the last map's size: the paper's, for strides of 4, 8, 16, 32
_EPS = 1e-6


def pyramid_strides(strides: Strides) -> tuple[float, ...]:
    """Returns the strides of the pyramid's maps: 4, 8, 16, 32 for 16; 3.5, 7, 14, 28 for 14."""
    return tuple(strides[-1] / factor for factor in _FACTORS)


class SimplePyramid(nnx.Module):
    """Four maps, at 4, 2, 1 and 1/2 times the last map's size.

    Each ends in norm(conv3x3(norm(conv1x1(x)))). Maps are enlarged by 2x2 transposed convolutions,
    with norm and GELU between two of them, and reduced by 2x2 max pooling. At the end of an odd
    side pooling has a narrower window, which the authors' code drops.
    """

    def __init__(self, dims: Sequence[int], strides: Strides, *, dim: int = 256, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_maps(dims, strides, plain_reason(strides))
        self.strides, self.dims = pyramid_strides(strides), (dim,) * len(_FACTORS)
        last = dims[-1]
        self.up4 = Upsample(last, max(1, last // 2), factor=2, dtype=dtype, rngs=rngs)
        self.up4_norm = LayerNorm(max(1, last // 2), eps=_EPS, dtype=dtype, rngs=rngs)
        self.up4_again = Upsample(max(1, last // 2), max(1, last // 4), factor=2, dtype=dtype, rngs=rngs)
        self.up2 = Upsample(last, max(1, last // 2), factor=2, dtype=dtype, rngs=rngs)
        in_dims = (max(1, last // 4), max(1, last // 2), last, last)
        self.levels = nnx.List([Level(d, dim, dtype=dtype, rngs=rngs) for d in in_dims])

    def __call__(self, features: Maps) -> Maps:
        """Returns maps [b, 4h, 4w, dim], [b, 2h, 2w, dim], [b, h, w, dim] and [b, h', w', dim].

        The last map given is [b, h, w, c]; h' and w' are h / 2 and w / 2, rounded up.
        """
        x = features[-1]
        four = self.up4_again(gelu(self.up4_norm(self.up4(x))))
        half = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        return tuple(level(x) for level, x in zip(self.levels, (four, self.up2(x), x, half), strict=True))


class Level(nnx.Module):
    """norm(conv3x3(norm(conv1x1(x)))); convolutions have no bias, norms are LayerNorms."""

    def __init__(self, in_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def conv(in_dim: int, kernel_size: int) -> Conv:
            return Conv(in_dim, dim, kernel_size=kernel_size, use_bias=False, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)

        self.conv1, self.conv2 = conv(in_dim, 1), conv(dim, 3)
        self.norm1 = LayerNorm(dim, eps=_EPS, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=_EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))
