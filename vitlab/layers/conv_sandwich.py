"""Convolutional parts that EfficientViT (arXiv:2305.07027) and SHViT (arXiv:2401.16456) share."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.squeeze_excite import SqueezeExcite


class ResidualDepthwise(nnx.Module):
    """x + conv(x), a depthwise 3x3 convolution with batch norm.

    Once fused, the identity is part of the kernel's middle tap.
    """

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.conv = ConvNorm(dim, dim, kernel_size=3, groups=dim, zero_init=True, dtype=dtype, rngs=rngs)
        self.fused = False

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        y = self.conv(x, train=train)
        return y if self.fused else x + y

    def fuse(self) -> None:
        """Folds the norm and the identity into the kernel, in place."""
        if not self.fused:
            self.conv.fuse()
            kernel = self.conv.conv.kernel
            kernel[...] = kernel[...].at[1, 1, 0].add(1.0)
            self.fused = True


class ConvFfn(nnx.Module):
    """x + pw2(relu(pw1(x))): two pointwise convolutions with batch norm."""

    def __init__(self, dim: int, *, ratio: int = 2, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.pw1 = ConvNorm(dim, ratio * dim, dtype=dtype, rngs=rngs)
        self.pw2 = ConvNorm(ratio * dim, dim, zero_init=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        return x + self.pw2(jax.nn.relu(self.pw1(x, train=train)), train=train)


class ConvPatchMerging(nnx.Module):
    """Halves a map: pointwise to 4x width, strided depthwise, squeeze-and-excitation, pointwise."""

    def __init__(self, dim: int, out_dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        wide = 4 * dim
        self.conv1 = ConvNorm(dim, wide, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(wide, wide, kernel_size=3, stride=2, groups=wide, dtype=dtype, rngs=rngs)
        self.se = SqueezeExcite(wide, hidden=max(8, (dim + 4) // 8 * 8), dtype=dtype, rngs=rngs)
        self.conv3 = ConvNorm(wide, out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        x = jax.nn.relu(self.conv1(x, train=train))
        x = jax.nn.relu(self.conv2(x, train=train))
        return self.conv3(self.se(x), train=train)


class SandwichDownsample(nnx.Module):
    """Patch merging with a depthwise convolution and a feed-forward network before and after."""

    def __init__(self, dim: int, out_dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.dw1 = ResidualDepthwise(dim, dtype=dtype, rngs=rngs)
        self.ffn1 = ConvFfn(dim, dtype=dtype, rngs=rngs)
        self.merge = ConvPatchMerging(dim, out_dim, dtype=dtype, rngs=rngs)
        self.dw2 = ResidualDepthwise(out_dim, dtype=dtype, rngs=rngs)
        self.ffn2 = ConvFfn(out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        for part in (self.dw1, self.ffn1, self.merge, self.dw2, self.ffn2):
            x = part(x, train=train)
        return x


class ConvStem16(nnx.Module):
    """Four strided 3x3 convolutions, with ReLU between, to a sixteenth of the image's sides."""

    def __init__(self, in_channels: int, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        dims = (in_channels, dim // 8, dim // 4, dim // 2, dim)
        self.convs = nnx.List([ConvNorm(a, b, kernel_size=3, stride=2, dtype=dtype, rngs=rngs) for a, b in itertools.pairwise(dims)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        for i, conv in enumerate(self.convs):
            x = conv(jax.nn.relu(x) if i else x, train=train)
        return x


def fuse_sandwiches(model: nnx.Module) -> None:
    """Folds every norm and every depthwise identity inside the model, in place."""
    for _, module in list(nnx.iter_modules(model)):
        if isinstance(module, (ConvNorm, ResidualDepthwise)):
            module.fuse()
