"""Stems and transitions with batch norm.

BiFormer (arXiv:2303.08810) and GLNet (arXiv:2411.11288) share them.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.pad import pad_to_multiple


class DeepStem(nnx.Module):
    """Two strided 3x3 convolutions with batch norm, GELU between, to a quarter of the sides."""

    def __init__(self, in_channels: int, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.conv1 = Conv(in_channels, dim // 2, kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(dim // 2, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(dim // 2, dim, kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        return self.norm2(self.conv2(gelu(self.norm1(self.conv1(x), train=train))), train=train)


class Transition(nnx.Module):
    """A strided convolution followed by a batch norm; with `norm_first` the norm precedes it.

    If kernel and stride are equal (patches do not overlap), the map is padded to whole patches.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel_size: int = 3,
        stride: int = 2,
        norm_first: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.norm_first, self.kernel_size, self.stride = norm_first, kernel_size, stride
        overlap = kernel_size - stride
        self.conv = Conv(dim, out_dim, kernel_size=kernel_size, stride=stride, padding=(overlap + 1) // 2, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(dim if norm_first else out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        if self.norm_first:
            x = self.norm(x, train=train)
        x = self.conv(pad_to_multiple(x, self.stride) if self.kernel_size == self.stride else x)
        return x if self.norm_first else self.norm(x, train=train)
