"""Aggregated attention (TransNeXt, Shi, arXiv:2311.17132, section 3.2): the tokens around a query
and the pooled map, in one softmax.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.continuous_bias import ContinuousBias
from vitlab.layers.gelu import gelu
from vitlab.layers.head_gates import HeadGates
from vitlab.layers.initial import full, normal, normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.pool import adaptive_average_pool
from vitlab.layers.roles import declare

_TEMPERATURE = math.log(math.exp(1 / 0.24) - 1)  # softplus of it is 1 / 0.24
_AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))  # the tokens around one, row by row


class ScaledQueries(nnx.Module):
    """Queries of unit length, plus an embedding, times a temperature a head and the logarithm of
    the number of keys (eq. 9).
    """

    def __init__(self, num_heads: int, head_dim: int, *, rngs: nnx.Rngs):
        self.temperature = nnx.Param(full(num_heads, _TEMPERATURE))
        self.query_embedding = declare(nnx.Param(normal_init(rngs.params(), (num_heads, head_dim))), "token")

    def __call__(self, query: Float[Array, "b n heads head_dim"], num_keys: Float[np.ndarray, " n"]) -> Float[Array, "b n heads head_dim"]:
        """The scaled form of queries of unit length, float32."""
        factor = jnp.log(num_keys)[:, None] * jax.nn.softplus(self.temperature[...])[None]
        return (query + self.query_embedding[...][None, None]) * factor[None, :, :, None]


class CosineAttention(nnx.Module):
    """Global attention of scaled unit queries to unit keys with a continuous position bias; `gates`
    weigh the heads (MoH).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        gates: HeadGates | None = None,
        measure: tuple[Side, Side] = (7, 7),  # rows and columns of the map that the bias is measured by
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim, self.gates = num_heads, head_dim_of(dim, num_heads), gates
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.scale = ScaledQueries(num_heads, self.head_dim, rngs=rngs)
        self.bias = ContinuousBias(num_heads, measure=measure, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(b, h * w, 3, self.num_heads, self.head_dim), 2, 0)
        q = self.scale(unit(q), np.full(h * w, h * w, np.float32)).astype(v.dtype)
        out = dot_product_attention(q, unit(k).astype(v.dtype), v, bias=self.bias((h, w), (h, w))[None], scale=1.0)
        return self.proj(gated(out, self.gates, x.reshape(b, h * w, c)).reshape(x.shape))


class AggregatedAttention(nnx.Module):
    """Attention of each token to the 3 x 3 tokens around it and to a pooled map; `gates` weigh the
    heads (MoH, arXiv:2410.11842).

    Beside the attention a token sums its surroundings with weights that its query alone gives.
    Tokens outside of the map are no keys.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        pool_ratio: Side = 2,  # sides of the map / those of the pooled one
        gates: HeadGates | None = None,
        measure: tuple[Side, Side] = (56, 56),  # rows and columns of the map that the bias is measured by
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim, self.gates, self.pool_ratio = num_heads, head_dim_of(dim, num_heads), gates, pool_ratio
        self.q = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.scale = ScaledQueries(num_heads, self.head_dim, rngs=rngs)
        self.sr = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.bias = ContinuousBias(num_heads, measure=measure, rngs=rngs)
        self.relative_pos_bias_local = declare(nnx.Param(normal(4e-4)(rngs.params(), (num_heads, len(_AROUND)))), "position")
        self.learnable_tokens = declare(nnx.Param(normal_init(rngs.params(), (num_heads, self.head_dim, len(_AROUND)))), "filter")
        self.learnable_bias = declare(nnx.Param(full((num_heads, len(_AROUND)), 0.0)), "filter")
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        heads, grid = (self.num_heads, self.head_dim), (max(1, h // self.pool_ratio), max(1, w // self.pool_ratio))
        flat = x.reshape(b, h * w, c)
        inside = tokens_inside(h, w)
        q = unit(self.q(flat).reshape(b, h * w, *heads))
        scaled = self.scale(q, inside.sum(1) + grid[0] * grid[1])
        k, v = jnp.moveaxis(self.kv(flat).reshape(b, h * w, 2, *heads), 2, 0)
        pooled = self.norm(adaptive_average_pool(gelu(self.sr(x)), grid)).reshape(b, -1, c)
        pool_k, pool_v = jnp.moveaxis(self.kv(pooled).reshape(b, -1, 2, *heads), 2, 0)

        near = jnp.einsum("bnhd,bnjhd->bhnj", scaled, around(unit(k).reshape(b, h, w, c)).reshape(b, h * w, -1, *heads))
        near = jnp.where(inside[None, None] > 0, near + self.relative_pos_bias_local[...][None, :, None], -jnp.inf)
        far = jnp.einsum("bnhd,bmhd->bhnm", scaled, unit(pool_k)) + self.bias((h, w), grid)[None]
        weights = jax.nn.softmax(jnp.concatenate((near, far), -1))
        near, far = weights[..., : len(_AROUND)], weights[..., len(_AROUND) :].astype(x.dtype)
        near = near + jnp.einsum("bnhd,hdj->bhnj", q, self.learnable_tokens[...]) + self.learnable_bias[...][None, :, None]
        values = around(v.reshape(b, h, w, c)).reshape(b, h * w, -1, *heads)
        out = jnp.einsum("bhnj,bnjhd->bnhd", near.astype(x.dtype), values) + jnp.einsum("bhnm,bmhd->bnhd", far, pool_v)
        return self.proj(gated(out, self.gates, flat).reshape(x.shape))


def around(x: Float[Array, "b h w c"]) -> Float[Array, "b n 9 c"]:
    """The 3 x 3 positions around each, row by row, zeros outside."""
    b, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.stack([padded[:, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy, dx in _AROUND], 3).reshape(b, h * w, len(_AROUND), c)


def tokens_inside(h: int, w: int) -> Float[np.ndarray, "n 9"]:
    """1 where one of the 3 x 3 positions around a token is inside of the map, else 0."""
    row, col = (x.reshape(-1, 1) + np.array(shift) for x, shift in zip(np.mgrid[:h, :w], zip(*_AROUND, strict=True), strict=True))
    return ((row >= 0) & (row < h) & (col >= 0) & (col < w)).astype(np.float32)


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Vectors of unit length, float32; zero stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))


def gated(out: Float[Array, "b n heads head_dim"], gates: HeadGates | None, x: Float[Array, "b n d"]) -> Float[Array, "b n heads head_dim"]:
    """The heads' outputs times what the gates make of the input."""
    return out if gates is None else out * gates(x)[..., None].astype(out.dtype)
