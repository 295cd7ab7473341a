"""Gaussian adaptive attention (GAAM, Ioannides et al., arXiv:2401.11143): features weighed by how
usual their values are.
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers.initial import full

EPS = 1e-8  # added to the variance, and the least sum of the weights


class GaussianHead(nnx.Module):
    """x times the normalised product of Gaussians of its standardised values along an axis (section
    3.1).

    As in the authors' code the Gaussians are multiplied, not added, their widths may have any sign,
    and the variance is the unbiased one.
    """

    def __init__(self, *, num_gaussians: int, rngs: nnx.Rngs):
        del rngs  # the authors draw the widths from exp(normal); here all begin at 1
        self.mean_offsets, self.c = nnx.Param(full(num_gaussians, 0.0)), nnx.Param(full(num_gaussians, 1.0))

    def __call__(self, x: Float[Array, "*shape"], *, axis: int) -> Float[Array, "*shape"]:
        """Computed in float32, returned in the dtype of x."""
        y = x.astype(jnp.float32)
        mean, var = y.mean(axis, keepdims=True), y.var(axis, keepdims=True, ddof=1) + EPS
        shape = (-1,) + (1,) * y.ndim
        offsets, widths = self.mean_offsets[...].reshape(shape), self.c[...].reshape(shape)
        z = (y[None] - (mean[None] + offsets)) / jnp.sqrt(var)[None]
        weights = jnp.prod(jnp.exp(-(z**2) / (2 * widths**2)) / jnp.sqrt(2 * np.pi * widths**2), axis=0)
        weights = weights / jnp.maximum(weights.sum(axis, keepdims=True), EPS)
        return (y * weights).astype(x.dtype)


class GaussianLayer(nnx.Module):
    """Equal parts of an axis, the last with what is left, each with a head of its own."""

    def __init__(self, *, axis: int, num_heads: int, num_gaussians: int, rngs: nnx.Rngs):
        self.axis = axis
        self.attention_heads = nnx.List([GaussianHead(num_gaussians=num_gaussians, rngs=rngs) for _ in range(num_heads)])

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        count, size = len(self.attention_heads), x.shape[self.axis]
        if size < 2 * count:
            raise ValueError(f"an axis of {size} must have two features for each of num_heads={count}")
        parts = jnp.split(x, [i * (size // count) for i in range(1, count)], self.axis)
        return jnp.concatenate([h(part, axis=self.axis) for h, part in zip(self.attention_heads, parts, strict=True)], self.axis)


class GaussianAdaptiveAttention(nnx.Module):
    """Layers x + layer(x), each with its axis, heads and Gaussians; -1 is the axis of the
    channels.
    """

    def __init__(
        self,
        *,
        axes: tuple[int, ...] = (-1,),
        num_heads: tuple[int, ...] = (4,),
        num_gaussians: tuple[int, ...] = (5,),
        rngs: nnx.Rngs,
    ):
        rows = zip(axes, num_heads, num_gaussians, strict=True)
        self.layers = nnx.List([GaussianLayer(axis=a, num_heads=h, num_gaussians=g, rngs=rngs) for a, h, g in rows])

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        for layer in self.layers:
            x = layer(x) + x
        return x
