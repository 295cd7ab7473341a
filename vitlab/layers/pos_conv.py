"""Conditional position encoding (Chu et al., arXiv:2102.10882), a residual depthwise conv."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv


class PosConv(nnx.Module):
    """x + proj(x); the zero padding of the depthwise convolution proj encodes the border."""

    def __init__(self, dim: int, *, kernel_size: int = 3, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.proj = Conv(dim, dim, kernel_size=kernel_size, groups=dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.proj(x)
