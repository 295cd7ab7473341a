"""Light multi-head self-attention (FMViT, arXiv:2311.05707), of which no code was published."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.conv_norm import ConvNorm, fold_into_next
from vitlab.layers.pool import average_pool_ceil


class LightAttention(nnx.Module):
    """Global attention to keys and values averaged over cells of pool_rate x pool_rate tokens.

    Every projection has a batch norm, which `fuse` folds into it for deployment.
    """

    def __init__(self, dim: int, *, num_heads: int, pool_rate: Side = 1, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.num_heads, self.head_dim, self.pool_rate = num_heads, head_dim_of(dim, num_heads), pool_rate
        self.q, self.k, self.v, self.proj = (ConvNorm(dim, dim, dtype=dtype, rngs=rngs) for _ in range(4))

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        pooled = average_pool_ceil(x, self.pool_rate) if self.pool_rate > 1 else x
        q, k, v = (
            layer(y, train=train).reshape(b, -1, self.num_heads, self.head_dim)
            for layer, y in ((self.q, x), (self.k, pooled), (self.v, pooled))
        )
        return self.proj(dot_product_attention(q, k, v).reshape(b, h, w, c), train=train)

    def fuse(self, before: BatchNorm) -> None:
        """Folds batch norms into the projections, in place: the projections' own and the block's.

        Args:
          before: The batch norm in front of this module.
        """
        for layer in (self.q, self.k, self.v, self.proj):
            layer.fuse()
        for layer in (self.q, self.k, self.v):
            fold_into_next(before, layer.conv)
