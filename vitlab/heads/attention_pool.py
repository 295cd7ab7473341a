"""Multihead attention pooling (Zhai et al., arXiv:2106.04560, section 3.3)."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides, check_maps, order_reason
from vitlab.layers import attention_pool
from vitlab.layers.linear import Linear
from vitlab.layers.roles import declare


class AttentionPool(nnx.Module):
    """The vector that `vitlab.layers.attention_pool` makes of the last map, or logits of it.

    The map is taken as it is: it should have been normalised.
    """

    reads_all: ClassVar[bool] = False
    unsupported_reason = staticmethod(order_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,  # number of logits; 0: the pooled vector itself
        *,
        num_heads: int | None = None,  # None: the most heads that divide the width and are at least 64 wide
        mlp_ratio: float = 4.0,  # MLP hidden width / dim
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        dim = dims[-1]
        self.num_heads = _num_heads(dim) if num_heads is None else num_heads
        self.pool = attention_pool.AttentionPool(dim, num_heads=self.num_heads, mlp_dim=int(dim * mlp_ratio), dtype=dtype, rngs=rngs)
        self.head = declare(Linear(dim, out_dim, rngs=rngs), "head") if out_dim else None

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b k"]:
        """Returns logits [b, out_dim], or the vector [b, c] of the last map's width, in float32."""
        del train, rngs
        b, h, w, c = features[-1].shape
        pooled = self.pool(features[-1].reshape(b, h * w, c)).astype(jnp.float32)
        return pooled if self.head is None else self.head(pooled)


def _num_heads(dim: int) -> int:
    return next(heads for heads in range(max(1, dim // 64), 0, -1) if dim % heads == 0)
