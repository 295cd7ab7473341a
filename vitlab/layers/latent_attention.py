"""Attention between a map and a few latent tokens, and among these (Perceiver IO, Jaegle et al.,
arXiv:2107.14795, appendix E).
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.initial import full
from vitlab.layers.linear import Linear
from vitlab.layers.mlp import Mlp
from vitlab.layers.norm import LayerNorm
from vitlab.layers.roles import declare

NORM_EPS = 1e-5  # epsilon of every LayerNorm


class PerceiverAttention(nnx.Module):
    """Attention of tokens to others, with projections without bias; `num_keys` keys have a learned
    addition each.
    """

    def __init__(
        self, dim: int, kv_dim: int, *, qk_dim: int, num_heads: int = 1, num_keys: int = 0, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.num_heads = num_heads
        head_dim_of(qk_dim, num_heads)
        self.q_proj = Linear(dim, qk_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(kv_dim, qk_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(kv_dim, qk_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(qk_dim, dim, dtype=dtype, rngs=rngs)
        table = nnx.Param(full((1, num_keys, qk_dim), 0.0)) if num_keys else None
        self.relative_position_bias = table if table is None else declare(table, "position")

    def __call__(self, x: Float[Array, "b n d"], kv: Float[Array, "b m e"]) -> Float[Array, "b n d"]:
        q, k, v = self.q_proj(x), self.k_proj(kv), self.v_proj(kv)
        k = k if self.relative_position_bias is None else k + self.relative_position_bias[...].astype(k.dtype)
        out = dot_product_attention(*(y.reshape(*y.shape[:2], self.num_heads, -1) for y in (q, k, v)))
        return self.o_proj(out.reshape(q.shape))


class CrossBlock(nnx.Module):
    """x + attn(norm(x), norm(others)), then x + mlp(norm2(x))."""

    def __init__(self, dim: int, kv_dim: int, *, qk_dim: int, num_keys: int = 0, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.q_norm = LayerNorm(dim, eps=NORM_EPS, dtype=dtype, rngs=rngs)
        self.kv_norm = LayerNorm(kv_dim, eps=NORM_EPS, dtype=dtype, rngs=rngs)
        self.attn = PerceiverAttention(dim, kv_dim, qk_dim=qk_dim, num_keys=num_keys, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=NORM_EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], kv: Float[Array, "b m e"]) -> Float[Array, "b n d"]:
        x = x + self.attn(self.q_norm(x), self.kv_norm(kv))
        return x + self.mlp(self.norm2(x))


class LatentBlock(nnx.Module):
    """Pre-norm block of the latents: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(dim, eps=NORM_EPS, dtype=dtype, rngs=rngs)
        self.attn = PerceiverAttention(dim, dim, qk_dim=dim, num_heads=num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=NORM_EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        y = self.norm1(x)
        x = x + self.attn(y, y)
        return x + self.mlp(self.norm2(x))
