"""Feature pyramid network (Lin et al., arXiv:1612.03144), as in mmsegmentation's neck `FPN`."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vitlab.heads.maps import Maps, Strides, check_maps, map_size, pyramid_reason
from vitlab.layers.conv import Conv
from vitlab.layers.initial import lecun_normal
from vitlab.layers.resize import resize_nearest


class FPN(nnx.Module):
    """Maps of one width: p_i = conv3x3(m_i) with m_i = conv1x1(x_i) + nearest(m_{i+1}).

    The coarsest m has no second term. Convolutions have biases; neither norms nor activations
    follow.
    """

    def __init__(self, dims: Sequence[int], strides: Strides, *, dim: int = 256, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_maps(dims, strides, pyramid_reason(strides))
        self.strides, self.dims = tuple(strides), (dim,) * len(dims)

        def conv(in_dim: int, kernel_size: int) -> Conv:
            return Conv(in_dim, dim, kernel_size=kernel_size, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)

        self.laterals = nnx.List([conv(d, 1) for d in dims])
        self.convs = nnx.List([conv(dim, 3) for _ in dims])

    def __call__(self, features: Maps) -> Maps:
        """Returns as many maps as are given, of the same sizes, each [b, h, w, dim]."""
        maps = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + resize_nearest(maps[i + 1], map_size(maps[i]))
        return tuple(conv(x) for conv, x in zip(self.convs, maps, strict=True))
