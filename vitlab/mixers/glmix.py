"""GLMix (Zhu et al., arXiv:2411.11288, section 3.2): attention among slots, local convolutions."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, Side
from vitlab.layers.attention import Attention
from vitlab.layers.conv import Conv
from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.pool import adaptive_average_pool


class GLMix(nnx.Module):
    """Tokens are softly clustered into slots, which attend to each other and are given back.

    Logits are cosines times a learned scale. A softmax over tokens gathers the slots, a softmax
    over slots of the same logits gives them back to the tokens. Slots start as the means of a grid
    over `source` (the block's input before its norm; by default x), or are parameters. A depthwise
    convolution branch is added.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_slots: Count = 64,  # a square number, unless learned_slots
        learned_slots: bool = False,
        kernel_size: Side = 5,  # side of the local branch's depthwise kernel, in tokens
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.pool_size = math.isqrt(num_slots)
        if not learned_slots and self.pool_size**2 != num_slots:
            raise ValueError(f"{num_slots=} must be a square number")
        self.init_slots = nnx.Param(normal_init(rngs.params(), (1, num_slots, dim))) if learned_slots else None
        self.slot_scale = nnx.Param(jnp.asarray(dim**-0.5, jnp.float32))
        self.relation_mha = Attention(dim, num_heads=num_heads, dtype=dtype, rngs=rngs)
        self.local_in = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.local_conv = Conv(dim, dim, kernel_size=kernel_size, groups=dim, dtype=dtype, rngs=rngs)
        self.local_out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], source: Float[Array, "b h w c"] | None = None) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        if self.init_slots is None:
            slots = adaptive_average_pool(x if source is None else source, (self.pool_size, self.pool_size)).reshape(b, -1, c)
        else:
            slots = self.init_slots[...]
        tokens = x.reshape(b, h * w, c)
        logits = self.slot_scale[...] * jnp.einsum("bsc,bnc->bsn", jnp.broadcast_to(_unit(slots), (b, *slots.shape[1:])), _unit(tokens))
        slots = jnp.einsum("bsn,bnc->bsc", jax.nn.softmax(logits, axis=2).astype(x.dtype), tokens)
        slots = self.relation_mha(slots)
        out = jnp.einsum("bsn,bsc->bnc", jax.nn.softmax(logits, axis=1).astype(x.dtype), slots)
        return out.reshape(b, h, w, c) + self.local_out(self.local_conv(self.local_in(x)))


def _unit(x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
    """Scales vectors to unit length, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
