"""Tokens to one vector by attention (multihead attention pooling, Zhai et al., arXiv:2106.04560,
section 3.3).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.mlp import Mlp
from vitlab.layers.norm import LayerNorm
from vitlab.layers.roles import declare


class AttentionPool(nnx.Module):
    """y = attention(latent, x, x) of a learned query; pooled = y + mlp(norm(y)). The parameters
    have timm's names.

    The tokens are taken as they are: they should have been normalised.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        mlp_dim: int,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads)
        self.latent = declare(nnx.Param(normal_init(rngs.params(), (1, 1, dim))), "token")
        self.q = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=mlp_dim, activation=activation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n dim"]) -> Float[Array, "b dim"]:
        b, n, dim = x.shape
        heads = (self.num_heads, self.head_dim)
        query = jnp.broadcast_to(self.q(self.latent[...]).reshape(1, 1, *heads), (b, 1, *heads))
        kv = self.kv(x).reshape(b, n, 2, *heads)
        y = self.proj(dot_product_attention(query, kv[:, :, 0], kv[:, :, 1]).reshape(b, dim))
        return y + self.mlp(self.norm(y))
