"""Criss-cross attention (CCNet, Huang et al., arXiv:1811.11721): each position attends to its row
and its column.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side
from vitlab.layers.initial import full
from vitlab.layers.linear import Linear
from vitlab.layers.widths import check_widths


class CrissCrossAttention(nnx.Module):
    """x + gamma times what one softmax over the row and the column of a position finds, its own
    position once (eq. 1 and 2).

    Twice in a row, with the same weights, a position reaches all others (RCCA). gamma is 0 at
    first; there is no factor before the softmax.
    """

    def __init__(self, dim: int, *, reduction: int = 8, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_widths(dim=dim)
        narrow = max(1, dim // reduction)
        self.gamma = nnx.Param(full(1, 0.0))
        self.query_conv = Linear(dim, narrow, dtype=dtype, rngs=rngs)
        self.key_conv = Linear(dim, narrow, dtype=dtype, rngs=rngs)
        self.value_conv = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = x.shape[1]
        query, key, value = self.query_conv(x), self.key_conv(x), self.value_conv(x)
        column = jnp.einsum("bhwc,bgwc->bhwg", query, key, preferred_element_type=jnp.float32)
        row = jnp.einsum("bhwc,bhvc->bhwv", query, key, preferred_element_type=jnp.float32)
        column = jnp.where(np.eye(h, dtype=bool)[None, :, None], -jnp.inf, column)
        weights = jax.nn.softmax(jnp.concatenate((column, row), -1)).astype(value.dtype)
        found = jnp.einsum("bhwg,bgwc->bhwc", weights[..., :h], value) + jnp.einsum("bhwv,bhvc->bhwc", weights[..., h:], value)
        return x + self.gamma[...].astype(x.dtype).reshape(1, 1, 1, 1) * found


class RecurrentCrissCross(nnx.Module):
    """Criss-cross attention several times in a row with the same weights (RCCA, section 3.3): after
    two loops a position has seen the whole map.
    """

    def __init__(self, dim: int, *, num_loops: Side = 2, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.num_loops = num_loops
        self.cca = CrissCrossAttention(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        for _ in range(self.num_loops):
            x = self.cca(x)
        return x
