"""Density head: a count is the sum of a map.

Lempitsky and Zisserman, NeurIPS 2010; Li et al., CSRNet, arXiv:1802.10062.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides, check_maps, order_reason
from vitlab.heads.one_map import OneMap
from vitlab.layers.conv import Conv
from vitlab.layers.initial import full, lecun_normal
from vitlab.layers.roles import declare

_BIAS = -4.0  # softplus(-4) = 0.018 objects per position: a 16 x 16 map starts with a count of 4.6


class Density(nnx.Module):
    """softplus(linear(fused map)): objects per position of the finest map, never negative.

    Departs from CSRNet, whose last layer is linear, so that its counts may be negative.
    """

    reads_all: ClassVar[bool] = True
    unsupported_reason = staticmethod(order_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int = 1,  # number of kinds of objects, counted separately
        *,
        dim: int = 128,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        self.stride = strides[0]
        self.one_map = OneMap(dims, strides, dim=dim, dtype=dtype, rngs=rngs)
        self.conv = Conv(dim, out_dim, kernel_size=1, kernel_init=lecun_normal, rngs=rngs)
        self.conv.bias = nnx.Param(full(out_dim, _BIAS))
        declare(self.conv, "head")

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns densities [b, h, w, out_dim], float32, at least 0; `count` sums them."""
        del train, rngs
        return jax.nn.softplus(self.conv(self.one_map(features)))


def count(density: Float[Array, "b h w k"]) -> Float[Array, "b k"]:
    """Returns the number of objects of each kind in each image: the sum over positions."""
    return density.sum((1, 2))
