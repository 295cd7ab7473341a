"""Simple feature pyramid of a trunk without stages (Li et al., ViTDet, arXiv:2203.16527, section 3)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides, check_maps, plain_reason
from vitlab.heads.pixel_shuffle import Upsample
from vitlab.layers.conv import Conv
from vitlab.layers.initial import lecun_normal
from vitlab.layers.mlp import gelu
from vitlab.layers.norm import LayerNorm

_FACTORS = (4, 2, 1, 0.5)  # factors on the last map's size, as the paper has them for strides of 4, 8, 16, 32
_EPS = 1e-6


def pyramid_strides(strides: Strides) -> tuple[float, ...]:
    """Strides of the pyramid's maps: 16 gives 4, 8, 16, 32; 14 gives 3.5, 7, 14, 28."""
    return tuple(strides[-1] / factor for factor in _FACTORS)


class SimplePyramid(nnx.Module):
    """Four maps of 4, 2, 1 and 1/2 times the size of the last map, each then norm(conv3x3(norm(conv1x1(x)))).

    A map grows by transposed convolutions 2x2, with norm and GELU between two of them, and shrinks by max pooling 2x2, which
    leaves a narrower window at the end of an odd side; the authors' code drops that window.
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
        """Maps [b, 4h, 4w, dim], [b, 2h, 2w, dim], [b, h, w, dim] and [b, ceil(h / 2), ceil(w / 2), dim] of the last [b, h, w, c]."""
        x = features[-1]
        four = self.up4_again(gelu(self.up4_norm(self.up4(x))))
        half = nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME")
        return tuple(level(x) for level, x in zip(self.levels, (four, self.up2(x), x, half), strict=True))


class Level(nnx.Module):
    """norm(conv3x3(norm(conv1x1(x)))), convolutions without bias, LayerNorm over the channels."""

    def __init__(self, in_dim: int, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        def conv(in_dim: int, kernel_size: int) -> Conv:
            return Conv(in_dim, dim, kernel_size=kernel_size, use_bias=False, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)

        self.conv1, self.conv2 = conv(in_dim, 1), conv(dim, 3)
        self.norm1 = LayerNorm(dim, eps=_EPS, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=_EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))
