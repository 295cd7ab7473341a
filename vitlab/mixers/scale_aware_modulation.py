"""Scale-aware modulation (SMT, Lin et al., arXiv:2307.08579, section 3.1)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.linear import Linear


class ScaleAwareModulation(nnx.Module):
    """proj(modulator * v(x)); the modulator mixes depthwise convolutions of several kernel sizes.

    Head i has a kernel of side 3 + 2 i. Heads' channels are interleaved before the grouped
    convolution that mixes them, so that each group has one channel of every head.
    """

    def __init__(self, dim: int, *, num_heads: int = 4, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        if dim % num_heads:
            raise ValueError(f"{dim=} must be a multiple of {num_heads=}")
        self.num_heads = num_heads
        width = dim // num_heads
        self.v = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.s = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.local_convs = nnx.List(
            [Conv(width, width, kernel_size=3 + 2 * i, groups=width, dtype=dtype, rngs=rngs) for i in range(num_heads)]
        )
        self.proj0 = Conv(dim, 2 * dim, kernel_size=1, groups=width, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(2 * dim, dtype=dtype, rngs=rngs)
        self.proj1 = Linear(2 * dim, dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        heads = jnp.split(self.s(x), self.num_heads, -1)
        scales = jnp.stack([conv(head) for conv, head in zip(self.local_convs, heads, strict=True)], -1)  # b, h, w, group, head
        modulator = self.proj1(gelu(self.bn(self.proj0(scales.reshape(x.shape)), train=train)))
        return self.proj(modulator * self.v(x))
