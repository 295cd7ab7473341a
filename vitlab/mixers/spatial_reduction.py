"""Spatial-reduction attention (PVT, Wang et al., arXiv:2102.12122, section 3.3) and its linear form
(PVT v2, arXiv:2106.13797).
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.pool import adaptive_average_pool


class SpatialReductionAttention(nnx.Module):
    """Every position attends to cells of the map: a strided convolution and a norm make one token
    of each.

    With `pool_size` the cells are means over as many bins an axis, a pointwise convolution, norm
    and GELU, so that the number of keys does not grow with the map. A map must have `sr_ratio` rows
    and columns; those that fill no cell are not seen.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        sr_ratio: Side = 2,  # tokens per side of a cell; 1: no reduction
        pool_size: Side | None = None,  # cells per side instead, for any map
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim, self.pool_size = num_heads, head_dim_of(dim, num_heads), pool_size
        self.q = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        size = sr_ratio if pool_size is None else 1
        whole = size == 1 and pool_size is None
        self.sr = None if whole else Conv(dim, dim, kernel_size=size, stride=size, padding=0, dtype=dtype, rngs=rngs)
        self.norm = None if whole else LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.tokens(x.reshape(x.shape[0], -1, x.shape[-1]), (x.shape[1], x.shape[2])).reshape(x.shape)

    def tokens(self, x: Float[Array, "b n d"], grid: tuple[int, int]) -> Float[Array, "b n d"]:
        """The same for the tokens of a map in row-major order; without reduction, for any
        tokens.
        """
        b, n, d = x.shape
        seen = x if self.sr is None else self._cells(x.reshape(b, *grid, d))
        k, v = (y.reshape(b, -1, self.num_heads, self.head_dim) for y in jnp.split(self.kv(seen), 2, -1))
        return self.proj(dot_product_attention(self.q(x).reshape(b, n, self.num_heads, self.head_dim), k, v).reshape(b, n, d))

    def _cells(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        assert self.sr is not None and self.norm is not None
        if self.pool_size is None:
            return self.norm(self.sr(x))
        return gelu(self.norm(self.sr(adaptive_average_pool(x, (self.pool_size, self.pool_size)))))
