"""Attention inside the units that a masked image hides as a whole, or of all tokens, with pooled
queries (Hiera, arXiv:2306.00989).
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.linear import Linear
from vitlab.layers.tensor_split import project_qkv


class MaskUnitAttention(nnx.Module):
    """Tokens attend inside square units, whose sides the map's must be multiples of; queries may be
    the maximum of 2 x 2 tokens.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        num_heads: int,
        unit_size: int | None,  # tokens per side of a unit, before pooling; None: all tokens are one
        pooled: bool = False,  # whether there is a query for 2 x 2 tokens instead of one for each
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim = num_heads, head_dim_of(out_dim, num_heads)
        self.unit_size, self.pooled = unit_size, pooled
        self.qkv = Linear(dim, 3 * out_dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(out_dim, out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        b, h, w, _ = x.shape
        rows, columns = (h, w) if self.unit_size is None else (self.unit_size, self.unit_size)
        qkv = project_qkv(self.qkv, x, num_heads=self.num_heads)
        heads = (self.num_heads, self.head_dim)
        qkv = qkv.reshape(b, h // rows, rows, w // columns, columns, 3, *heads).swapaxes(2, 3)  # units, then tokens of a unit
        query, key, value = (qkv[..., i, :, :] for i in range(3))
        if self.pooled:
            rows, columns = rows // 2, columns // 2
            query = query.reshape(*query.shape[:3], rows, 2, columns, 2, *heads).max((4, 6))
        query, key, value = (part.reshape(-1, part.shape[3] * part.shape[4], *heads) for part in (query, key, value))
        out = dot_product_attention(query, key, value)
        step = 2 if self.pooled else 1
        out = out.reshape(b, h // step // rows, w // step // columns, rows, columns, -1).swapaxes(2, 3)
        return self.proj(out.reshape(b, h // step, w // step, -1))
