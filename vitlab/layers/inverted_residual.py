"""Inverted residuals of MobileNetV3 (Howard et al., arXiv:1905.02244, section 5): wide inside,
depthwise, gated by their mean.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.linear import Linear

EPS = 1e-3  # epsilon of the batch norms


def divisible(width: float | int, divisor: int = 8) -> int:
    """A width rounded to a multiple of the divisor, by at most a tenth downwards."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


class HardSqueezeExcite(nnx.Module):
    """x * hard_sigmoid(fc2(relu(fc1(mean of x))))."""

    def __init__(self, dim: int, *, hidden: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x * jax.nn.hard_sigmoid(self.fc2(jax.nn.relu(self.fc1(x.mean((1, 2), keepdims=True)))))


class InvertedResidual(nnx.Module):
    """Expansion (where it widens), depthwise convolution, gates, projection; plus the input where
    the shape stays.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        hidden: int,
        kernel_size: int,
        stride: int,
        gated: bool,
        hard_swish: bool,  # the activation; else relu
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.residual, self.activation = stride == 1 and dim == out_dim, jax.nn.hard_swish if hard_swish else jax.nn.relu
        options = {"eps": EPS, "dtype": dtype, "rngs": rngs}
        parts: list[nnx.Module] = [] if hidden == dim else [ConvNorm(dim, hidden, **options)]
        parts.append(ConvNorm(hidden, hidden, kernel_size=kernel_size, stride=stride, groups=hidden, **options))
        if gated:
            parts.append(HardSqueezeExcite(hidden, hidden=divisible(hidden // 4), dtype=dtype, rngs=rngs))
        self.block = nnx.List([*parts, ConvNorm(hidden, out_dim, **options)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        y = x
        for part in list(self.block)[:-1]:
            y = self.activation(part(y, train=train)) if isinstance(part, ConvNorm) else part(y)
        y = self.block[-1](y, train=train)
        return x + y if self.residual else y
