"""Efficient multi-head self-attention (Next-ViT, Li et al., arXiv:2207.05501, section 3.3)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.conv_norm import fold_into_next
from vitlab.layers.linear import Linear


class EfficientAttention(nnx.Module):
    """Global attention whose keys and values are means of sr_ratio**2 tokens each.

    As in the authors' code, pooling is one-dimensional: each mean covers consecutive tokens in
    row-major order, and fewer than sr_ratio**2 remaining tokens at the end are dropped. A batch
    norm follows the pooling.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        sr_ratio: Side = 1,  # a key is a mean of sr_ratio**2 tokens; 1: every token is a key
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim, self.sr_ratio = num_heads, head_dim_of(dim, num_heads), sr_ratio
        self.q, self.k, self.v, self.proj = (Linear(dim, dim, dtype=dtype, rngs=rngs) for _ in range(4))
        self.norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs) if sr_ratio > 1 else None

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        tokens = keys = x.reshape(b, h * w, c)
        if self.sr_ratio > 1:
            size = self.sr_ratio**2
            if h * w < size:
                raise ValueError(f"a map of {h}x{w} tokens must have at least sr_ratio**2={size} of them")
            keys = tokens[:, : h * w // size * size].reshape(b, -1, size, c).mean(2)
            if self.norm is not None:
                keys = self.norm(keys, train=train)
        q, k, v = (
            linear(y).reshape(b, -1, self.num_heads, self.head_dim) for linear, y in ((self.q, tokens), (self.k, keys), (self.v, keys))
        )
        return self.proj(dot_product_attention(q, k, v).reshape(b, h, w, c))

    def fuse(self, before: BatchNorm) -> None:
        """Folds two batch norms into the projections, in place: the pooled keys' and the block's.

        Args:
          before: The batch norm in front of this module; it commutes with the pooling, since it is
            an affine map per channel.
        """
        if self.norm is not None:
            for linear in (self.k, self.v):
                fold_into_next(self.norm, linear)
            self.norm = None
        for linear in (self.q, self.k, self.v):
            fold_into_next(before, linear)
