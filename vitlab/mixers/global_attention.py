"""Global self-attention over a map: the `Attention` layer on its flattened tokens."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import Attention


class GlobalAttention(Attention):
    """Every position attends to every position (arXiv:2010.11929); any size."""

    def __init__(self, dim: int, *, num_heads: int, qkv_bias: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(dim, num_heads=num_heads, qkv_bias=qkv_bias, dtype=dtype, rngs=rngs)

    # A mixer takes a map where the layer takes tokens.
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        b, h, w, c = x.shape
        return super().__call__(x.reshape(b, h * w, c)).reshape(b, h, w, c)
