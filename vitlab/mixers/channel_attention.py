"""Attention between the channels of a group (DaViT, Ding et al., arXiv:2204.03645, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import head_dim_of
from vitlab.layers.linear import Linear


class ChannelAttention(nnx.Module):
    """Each channel of a group attends to the group's channels, over all positions; any size.

    As in the authors' code, the attention weights come from keys and values, softmax(scale * key^T
    value), and are applied to the queries. The scale is head_dim**-0.5, although the contracted
    axis is the tokens.
    """

    def __init__(self, dim: int, *, num_heads: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.num_heads = num_heads  # number of channel groups
        self.scale = head_dim_of(dim, num_heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(b, h * w, 3, self.num_heads, -1), 2, 0)
        # [b, groups, key channels, value channels]
        logits = jnp.einsum("bngk,bngv->bgkv", k * self.scale, v, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits).astype(q.dtype)
        return self.proj(jnp.einsum("bgkv,bngv->bngk", weights, q).reshape(b, h, w, c))
