"""MLP with a depthwise convolution between its layers (PVT v2, arXiv:2106.13797, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.linear import Linear


class ConvMlp(nnx.Module):
    """fc2(gelu(dwconv(fc1(x)))) over a map.

    The convolution's zero padding lets the MLP tell positions apart.
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_dim: int,
        kernel_size: int = 3,
        residual: bool = False,  # h + dwconv(h) inside the activation
        relu: bool = False,  # ReLU before the convolution (PVT v2's linear form)
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.residual, self.relu = residual, relu
        self.fc1 = Linear(dim, mlp_dim, dtype=dtype, rngs=rngs)
        self.dwconv = Conv(mlp_dim, mlp_dim, kernel_size=kernel_size, groups=mlp_dim, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(mlp_dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = jax.nn.relu(self.fc1(x)) if self.relu else self.fc1(x)
        return self.fc2(gelu(x + self.dwconv(x) if self.residual else self.dwconv(x)))


class ConvGlu(nnx.Module):
    """fc2(gelu(dwconv(a)) * v) over a map, a and v the halves of fc1(x): a gated ConvMlp
    (TransNeXt, arXiv:2311.17132, section 3.4).
    """

    def __init__(self, dim: int, *, mlp_dim: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, 2 * mlp_dim, dtype=dtype, rngs=rngs)
        self.dwconv = Conv(mlp_dim, mlp_dim, kernel_size=3, groups=mlp_dim, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(mlp_dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x, values = jnp.split(self.fc1(x), 2, -1)
        return self.fc2(gelu(self.dwconv(x)) * values)
