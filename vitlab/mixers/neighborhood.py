"""Neighborhood attention (Hassani et al., arXiv:2204.07143), also dilated (arXiv:2209.15001)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.neighborhood_attention import neighborhood_attention
from vitlab.bounds import Side
from vitlab.layers.attention import head_dim_of
from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.roles import declare


class NeighborhoodAttention(nnx.Module):
    """Every token attends to the kernel_size**2 tokens nearest to it, biased by relative position.

    As in the authors' code, a map smaller than the window (kernel_size * dilation) is padded with
    zeros at the bottom and right before the projection, and padding takes part as keys.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        kernel_size: Side = 7,  # side of the window, in tokens
        dilation: Side = 1,
        rel_pos: bool = True,  # True: a trainable bias for each relative position
        implementation: str | None = None,  # a key of neighborhood_attention.IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.kernel_size, self.dilation, self.implementation = kernel_size, dilation, implementation
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        side = 2 * kernel_size - 1
        # The table is indexed [head, key - query].
        self.rpb = declare(nnx.Param(normal_init(rngs.params(), (num_heads, side, side))), "position") if rel_pos else None
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, w, _ = x.shape
        window = self.kernel_size * self.dilation
        x = jnp.pad(x, ((0, 0), (0, max(0, window - h)), (0, max(0, window - w)), (0, 0)))
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.num_heads, self.head_dim)
        out = neighborhood_attention(
            *(qkv[:, :, :, i] for i in range(3)),
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            bias=None if self.rpb is None else self.rpb[...],
            implementation=self.implementation,
        )
        assert isinstance(out, Array)  # a pair only with return_logsumexp
        return self.proj(out.reshape(x.shape)[:, :h, :w])
