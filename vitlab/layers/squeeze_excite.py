"""Squeeze-and-excitation (Hu et al., arXiv:1709.01507): a gate per channel from the map's mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.linear import Linear


class SqueezeExcite(nnx.Module):
    """x * sigmoid(fc2(activation(fc1(mean of x))))."""

    def __init__(
        self,
        dim: int,
        *,
        hidden: int,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.fc1 = Linear(dim, hidden, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, dim, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x * jax.nn.sigmoid(self.fc2(self.activation(self.fc1(x.mean((1, 2), keepdims=True)))))
