"""Multihead attention pooling (Zhai et al., arXiv:2106.04560, section 3.3)."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides, check_maps, order_reason
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.mlp import Mlp
from vitlab.layers.norm import LayerNorm
from vitlab.layers.roles import declare


class AttentionPool(nnx.Module):
    """A learned query attends to the last map: y = attention(latent, x, x); y + mlp(norm(y)).

    The result is this pooled vector, or logits from it. Parameters have timm's names. The head does
    not normalise the map, which should come normalised.
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
        self.head_dim = head_dim_of(dim, self.num_heads)
        self.latent = declare(nnx.Param(normal_init(rngs.params(), (1, 1, dim))), "token")
        self.q = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * mlp_ratio), dtype=dtype, rngs=rngs)
        self.head = declare(Linear(dim, out_dim, rngs=rngs), "head") if out_dim else None

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b k"]:
        """Returns logits [b, out_dim], or the vector [b, c] of the last map's width, in float32."""
        del train, rngs
        b, h, w, c = features[-1].shape
        heads = (self.num_heads, self.head_dim)
        query = jnp.broadcast_to(self.q(self.latent[...]).reshape(1, 1, *heads), (b, 1, *heads))
        kv = self.kv(features[-1].reshape(b, h * w, c)).reshape(b, h * w, 2, *heads)
        y = self.proj(dot_product_attention(query, kv[:, :, 0], kv[:, :, 1]).reshape(b, c))
        pooled = (y + self.mlp(self.norm(y))).astype(jnp.float32)
        return pooled if self.head is None else self.head(pooled)


def _num_heads(dim: int) -> int:
    return next(heads for heads in range(max(1, dim // 64), 0, -1) if dim % heads == 0)
