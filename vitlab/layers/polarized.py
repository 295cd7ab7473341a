"""Polarized self-attention (Liu et al., arXiv:2107.00782): a gate for each channel and one for each
position.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.widths import check_widths


class PolarizedSelfAttention(nnx.Module):
    """Channels weighed by what one query finds in the map, positions by what the mean query finds
    in the channels.

    Follows the authors' code, not the paper's equations: no factor before the softmax, the
    channels' gate has a norm in the sequential layout only, and the softmax of the positions is
    over the finished products (parallel) or over the keys (sequential). In parallel both gates
    weigh the input and the results are added; else the second weighs what the first has made.
    """

    def __init__(self, dim: int, *, layout: Literal["parallel", "sequential"] = "parallel", dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_widths(dim=dim)
        if dim % 2 or (layout == "sequential" and dim < 8):
            raise ValueError(f"{dim=} must be even, and in the sequential layout at least 8")
        half, narrow = dim // 2, max(1, dim // 8)
        self.layout = layout
        self.conv_q_right = Linear(dim, 1, use_bias=False, dtype=dtype, rngs=rngs)
        self.conv_v_right = Linear(dim, half, use_bias=False, dtype=dtype, rngs=rngs)
        if layout == "parallel":
            self.conv_up = nnx.List([Linear(half, dim, use_bias=False, dtype=dtype, rngs=rngs)])
        else:
            norm = LayerNorm(narrow, eps=1e-5, dtype=dtype, rngs=rngs)
            self.conv_up = nnx.List([Linear(half, narrow, dtype=dtype, rngs=rngs), norm, Linear(narrow, dim, dtype=dtype, rngs=rngs)])
        self.conv_q_left = Linear(dim, half, use_bias=False, dtype=dtype, rngs=rngs)
        self.conv_v_left = Linear(dim, half, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        by_channel = x * self.channel_gate(x)
        if self.layout == "parallel":
            return by_channel + x * self.position_gate(x)
        return by_channel * self.position_gate(by_channel)

    def channel_gate(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        """The gate of each channel."""
        share = jax.nn.softmax(self.conv_q_right(x).astype(jnp.float32), axis=(1, 2))
        found = (self.conv_v_right(x) * share.astype(x.dtype)).sum((1, 2), keepdims=True)
        if self.layout == "parallel":
            return jax.nn.sigmoid(self.conv_up[0](found))
        down, norm, up = self.conv_up
        return jax.nn.sigmoid(up(jax.nn.relu(norm(down(found)))))

    def position_gate(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
        """The gate of each position."""
        query, keys = self.conv_q_left(x).mean((1, 2)), self.conv_v_left(x).astype(jnp.float32)
        if self.layout == "sequential":
            keys = jax.nn.softmax(keys, axis=(1, 2))
        found = jnp.einsum("bc,bhwc->bhw", query.astype(jnp.float32), keys)[..., None]
        if self.layout == "parallel":
            found = jax.nn.softmax(found, axis=(1, 2))
        return jax.nn.sigmoid(found).astype(x.dtype)
