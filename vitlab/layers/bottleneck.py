"""Residual bottlenecks of convolutions: of ResNet (He et al., arXiv:1512.03385) and RegNet
(Radosavovic et al., arXiv:2003.13678).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.squeeze_excite import SqueezeExcite

EXPANSION = 4  # width of a ResNet bottleneck's output / inside


class ResNetBottleneck(nnx.Module):
    """relu(shortcut + 1x1, 3x3 and 1x1 convolutions); the stride is the 3x3's, the shortcut a 1x1
    where the shape changes.
    """

    def __init__(self, dim: int, out_dim: int, *, stride: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        hidden, options = out_dim // EXPANSION, {"dtype": dtype, "rngs": rngs}
        self.conv1 = ConvNorm(dim, hidden, **options)
        self.conv2 = ConvNorm(hidden, hidden, kernel_size=3, stride=stride, **options)
        self.conv3 = ConvNorm(hidden, out_dim, **options)
        self.downsample = ConvNorm(dim, out_dim, stride=stride, **options) if stride > 1 or dim != out_dim else None

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        x = jax.nn.relu(self.conv1(x, train=train))
        x = jax.nn.relu(self.conv2(x, train=train))
        return jax.nn.relu(self.conv3(x, train=train) + shortcut)


class RegNetBottleneck(nnx.Module):
    """relu(shortcut + 1x1, grouped 3x3, gates and 1x1), as wide inside as outside; the gates' width
    is a quarter of the input's.
    """

    def __init__(self, dim: int, out_dim: int, *, stride: int, group_width: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        self.a = ConvNorm(dim, out_dim, **options)
        self.b = ConvNorm(out_dim, out_dim, kernel_size=3, stride=stride, groups=out_dim // group_width, **options)
        self.se = SqueezeExcite(out_dim, hidden=max(1, round(dim / 4)), **options)
        self.c = ConvNorm(out_dim, out_dim, **options)
        self.proj = ConvNorm(dim, out_dim, stride=stride, **options) if stride > 1 or dim != out_dim else None

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        shortcut = x if self.proj is None else self.proj(x, train=train)
        x = jax.nn.relu(self.a(x, train=train))
        x = self.se(jax.nn.relu(self.b(x, train=train)))
        return jax.nn.relu(self.c(x, train=train) + shortcut)
