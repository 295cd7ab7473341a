"""Bi-level routing attention (BiFormer, Zhu et al., arXiv:2303.08810, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.conv import Conv
from vitlab.layers.linear import Linear
from vitlab.layers.pad import pad_to_multiple


class BiLevelRoutingAttention(nnx.Module):
    """Tokens attend to the tokens of the `topk` regions that match their own region best.

    A region's mean query is compared with every region's mean key; this routing is float32 and not
    differentiated. The map is cut into a fixed number of regions per side and padded with zeros
    where its sides are no multiples; padding takes part as keys, as in the authors' code. The scale
    is dim**-0.5, not head_dim**-0.5. A depthwise convolution of the values is added.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_regions: Side = 7,  # regions per side of the map
        topk: Count = 4,  # number of regions that each region attends to
        kernel_size: Side = 5,  # side of the depthwise convolution's kernel, in tokens
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 < topk <= num_regions**2:
            raise ValueError(f"{topk=} must be in [1, {num_regions**2}], the number of regions")
        head_dim_of(dim, num_heads)
        self.num_heads, self.num_regions, self.topk = num_heads, num_regions, topk
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.lepe = Conv(dim, dim, kernel_size=kernel_size, groups=dim, dtype=dtype, rngs=rngs)
        self.wo = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, w, c = x.shape
        side = self.num_regions
        x = pad_to_multiple(x, side)
        b, height, width, _ = x.shape
        q, k, v = jnp.split(self.qkv(x), 3, -1)
        lepe = self.lepe(v)
        q, k, v = (_regions(y, side) for y in (q, k, v))
        chosen = _route(q, k, self.topk)
        keys, values = (_gather(y, chosen).reshape(b * side**2, -1, self.num_heads, c // self.num_heads) for y in (k, v))
        queries = q.reshape(b * side**2, -1, self.num_heads, c // self.num_heads)
        out = dot_product_attention(queries, keys, values, scale=c**-0.5)
        out = out.reshape(b, side, side, height // side, width // side, c).swapaxes(2, 3).reshape(b, height, width, c)
        return self.wo(out + lepe)[:, :h, :w]


def _regions(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b regions tokens c"]:
    b, h, w, c = x.shape
    return x.reshape(b, side, h // side, side, w // side, c).swapaxes(2, 3).reshape(b, side * side, -1, c)


def _route(q: Float[Array, "b regions tokens c"], k: Float[Array, "b regions tokens c"], topk: int) -> Array:
    """Returns the indices of the regions that each region attends to, [b, regions, topk]."""
    q, k = (jax.lax.stop_gradient(y.astype(jnp.float32).mean(2)) for y in (q, k))
    affinity = jnp.einsum("bqc,bkc->bqk", q * q.shape[-1] ** -0.5, k, precision=jax.lax.Precision.HIGHEST)
    return jax.lax.top_k(affinity, topk)[1]


def _gather(x: Float[Array, "b regions tokens c"], chosen: Array) -> Float[Array, "b regions topk tokens c"]:
    return jax.vmap(lambda x, chosen: x[chosen])(x, chosen)
