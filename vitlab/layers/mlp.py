"""The two-layer perceptron of a transformer block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.gelu import gelu
from vitlab.layers.global_response_norm import GlobalResponseNorm
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.normed import fused_mlp, is_fused
from vitlab.layers.pos_conv import PosConv


class Mlp(nnx.Module):
    """fc2(activation(fc1(x))) over the last axis."""

    def __init__(
        self,
        dim: int,
        *,
        mlp_dim: int,
        activation: Callable[[jax.Array], jax.Array] = gelu,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.fc1 = Linear(dim, mlp_dim, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(mlp_dim, dim, use_bias=use_bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b dim"], *, norm: LayerNorm | None = None, residual: bool = False) -> Float[Array, "*b dim"]:
        """Returns the MLP of x, or of norm(x), plus x with `residual`."""
        if self.activation is gelu and is_fused(x, norm, self.fc1, self.fc2):
            return fused_mlp(x, norm, self.fc1, self.fc2, adds=residual)
        out = self.fc2(self.activation(self.fc1(x if norm is None else norm(x))))
        return x + out if residual else out


class ResidualConvMlp(nnx.Module):
    """fc2(h + conv(h)) with h = gelu(fc1(x)) and a depthwise conv.

    With `grn` global response normalisation precedes fc2.
    """

    def __init__(self, dim: int, *, mlp_dim: int, grn: bool = False, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, mlp_dim, dtype=dtype, rngs=rngs)
        self.conv = PosConv(mlp_dim, dtype=dtype, rngs=rngs)
        self.grn = GlobalResponseNorm(mlp_dim) if grn else None
        self.fc2 = Linear(mlp_dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = self.conv(gelu(self.fc1(x)))
        return self.fc2(x if self.grn is None else self.grn(x))
