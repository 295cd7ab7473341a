"""Relative attention over the whole map (CoAtNet, Dai et al., arXiv:2106.04803, eq. 3)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.window_attention.windows import expand_bias
from vitlab.bounds import Count, Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.roles import declare


class RelativeAttention(nnx.Module):
    """Every position attends to every position; a logit is the product of query and key plus a
    number for their offset.

    The projection is laid out [heads, 3, head_dim], as in timm. The table is kept for maps of
    `grid`; for others it is resampled (bicubic).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        out_dim: Count | None = None,  # width of the output and of the heads together; None: dim
        grid: tuple[Side, Side] = (14, 14),  # rows and columns of the map that the table is kept for
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        out_dim = dim if out_dim is None else out_dim
        self.num_heads, self.head_dim = num_heads, head_dim_of(out_dim, num_heads)
        self.qkv = Linear(dim, 3 * out_dim, dtype=dtype, rngs=rngs)
        shape = (num_heads, 2 * grid[0] - 1, 2 * grid[1] - 1)
        self.rel_pos_bias = declare(nnx.Param(normal_init(rngs.params(), shape)), "position")  # at [head, query - key]
        self.proj = Linear(out_dim, out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, self.num_heads, 3, self.head_dim)
        table = self.rel_pos_bias[...]
        if table.shape[1:] != (2 * h - 1, 2 * w - 1):
            table = jax.image.resize(table, (self.num_heads, 2 * h - 1, 2 * w - 1), "cubic")
        out = dot_product_attention(qkv[..., 0, :], qkv[..., 1, :], qkv[..., 2, :], expand_bias(table, (h, w))[None])
        return self.proj(out.reshape(b, h, w, -1))
