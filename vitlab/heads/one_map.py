"""Fusion of all maps of a trunk into one, for heads that read one map."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides, check_maps, map_size, order_reason
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import lecun_normal
from vitlab.layers.norm import LayerNorm
from vitlab.layers.resize import resize_bilinear


class OneMap(nnx.Module):
    """gelu(norm(conv3x3(sum_i resize(linear_i(x_i))))), at the finest map's size.

    The sum is SegFormer's fusion (arXiv:2105.15203) with its two consecutive linear maps merged.
    The norm is a LayerNorm, so that an image's result does not depend on the other images of a
    batch.
    """

    def __init__(self, dims: Sequence[int], strides: Strides, *, dim: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_maps(dims, strides, order_reason(strides))

        def conv(in_dim: int, kernel_size: int) -> Conv:
            return Conv(in_dim, dim, kernel_size=kernel_size, use_bias=False, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)

        self.projections = nnx.List([conv(d, 1) for d in dims])
        self.conv = conv(dim, 3)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)

    def __call__(self, features: Maps) -> Float[Array, "b h w c"]:
        size = map_size(features[0])
        maps = [resize_bilinear(proj(x), size) for proj, x in zip(self.projections, features, strict=True)]
        return gelu(self.norm(self.conv(sum(maps[1:], start=maps[0]))))
