"""Rank-augmented linear attention (RAVLT, Fan et al., arXiv:2411.07635, section 3)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.conv import Conv
from vitlab.layers.linear import Linear
from vitlab.layers.rope import axial_rotation, rotate


class RankAugmentedLinearAttention(nnx.Module):
    """Linear attention with weighted keys, whose output is multiplied by a linear map of the input.

    Queries and keys are elu(.) + 1, each key weighted by its importance (a softmax over keys) and
    turned by 2-D rotary positions; the normaliser uses unrotated ones. A depthwise 5x5 convolution
    of the values is added. With `softmax` the same parameters make ordinary attention, for the late
    stages. As in the authors' code, the multiplying branch has no activation.
    """

    def __init__(self, dim: int, *, num_heads: int, softmax: bool = False, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.num_heads, self.head_dim, self.softmax = num_heads, head_dim_of(dim, num_heads), softmax
        if self.head_dim % 4:
            raise ValueError(f"head_dim={self.head_dim} must be a multiple of 4, for rotary positions of two axes")
        self.qkvo = Linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.lepe = Conv(dim, dim, kernel_size=5, groups=dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        q, k, v, o = jnp.split(self.qkvo(x), 4, -1)
        lepe = self.lepe(v)
        q, k, v = (y.reshape(b, h * w, self.num_heads, self.head_dim) for y in (q, k, v))
        table = axial_rotation((h, w), self.head_dim)
        y = _softmax(q, k, v, table) if self.softmax else _linear(q, k, v, table)
        return self.proj((y.reshape(b, h, w, c) + lepe) * o)


def _softmax(q, k, v, table) -> Float[Array, "b n heads head_dim"]:
    return dot_product_attention(rotate(q, table), rotate(k, table), v)


def _linear(q, k, v, table) -> Float[Array, "b n heads head_dim"]:
    dtype, n, scale = v.dtype, q.shape[1], q.shape[-1] ** -0.5
    q, k = (jax.nn.elu(y.astype(jnp.float32)) + 1 for y in (q, k))
    importance = jax.nn.softmax(jnp.einsum("bhd,bnhd->bnh", q.mean(1), k) * scale, axis=1)
    k = k * importance[..., None] * n
    context = jnp.einsum("bnhk,bnhv->bhkv", rotate(k, table) * n**-0.5, v.astype(jnp.float32) * n**-0.5)
    normaliser = 1 / (jnp.einsum("bnhd,bhd->bnh", q, k.mean(1)) + 1e-6)
    return (jnp.einsum("bnhk,bhkv->bnhv", rotate(q, table), context) * normaliser[..., None]).astype(dtype)
