"""Multi-axis attention (MaxViT, Tu et al., arXiv:2204.01697, section 3.1)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.window_attention import window_attention_qkv
from vitlab.bounds import Side
from vitlab.layers.attention import head_dim_of
from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.roles import declare


class PartitionAttention(nnx.Module):
    """Attention inside windows of neighbours, or (`grid`) among tokens spread evenly over the map.

    A map that is not whole windows is not padded: the last windows have fewer tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: Side = 7,  # tokens per side of a window, or of the grid
        grid: bool = False,
        implementation: str | None = None,  # a key of window_attention.QKV_IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.window_size, self.grid, self.implementation = window_size, grid, implementation
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        side = 2 * window_size - 1
        # The table is indexed [head, query - key].
        self.rel_pos_bias = declare(nnx.Param(normal_init(rngs.params(), (num_heads, side, side))), "position")
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        out = window_attention_qkv(
            self.qkv(x).reshape(*x.shape[:3], 3, self.num_heads, self.head_dim),
            window_size=self.window_size,
            grid=self.grid,
            bias=self.rel_pos_bias[...],
            implementation=self.implementation,
        )
        return self.proj(out.reshape(x.shape))


class MultiAxisAttention(nnx.Module):
    """Window attention, then grid attention, as one mixer: y = block(x), then y + grid(x + y)."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: Side = 7,
        implementation: str | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.block, self.grid = (
            PartitionAttention(
                dim, num_heads=num_heads, window_size=window_size, grid=grid, implementation=implementation, dtype=dtype, rngs=rngs
            )
            for grid in (False, True)
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = self.block(x)
        return y + self.grid(x + y)
