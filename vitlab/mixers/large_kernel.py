"""Large kernel attention (VAN, Guo et al., arXiv:2202.09741, section 3.1)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.linear import Linear


class LargeKernelGate(nnx.Module):
    """u * conv1(conv_spatial(conv0(u))): a decomposed 21x21 convolution as a gate, not activated.

    The three are depthwise 5x5, depthwise 7x7 with dilation 3, and pointwise.
    """

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv0 = Conv(dim, dim, kernel_size=5, groups=dim, dtype=dtype, rngs=rngs)
        self.conv_spatial = Conv(dim, dim, kernel_size=7, dilation=3, groups=dim, dtype=dtype, rngs=rngs)
        self.conv1 = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, u: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return u * self.conv1(self.conv_spatial(self.conv0(u)))


class LargeKernelAttention(nnx.Module):
    """y + proj_2(gate(gelu(proj_1(y)))): the inner identity is part of the mechanism; any size."""

    def __init__(self, dim: int, *, num_heads: int | None = None, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        del num_heads  # unused; every mixer accepts num_heads
        self.proj_1 = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.spatial_gating_unit = LargeKernelGate(dim, dtype=dtype, rngs=rngs)
        self.proj_2 = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x + self.proj_2(self.spatial_gating_unit(gelu(self.proj_1(x))))
