"""Batch normalisation with torch's conventions, by which the published networks were trained."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.target import platform
from vitlab.layers.initial import full


class BatchNorm(nnx.Module):
    """Normalises each channel (Ioffe and Szegedy, arXiv:1502.03167), computed in float32.

    The result has the type `dtype`. With `train`, mean and variance are those of the batch, and the
    moving averages `mean` and `var` are updated: `momentum` is the weight of the new value, and the
    variance is the unbiased one, as in torch. Without `train` the moving averages normalise.
    """

    def __init__(
        self,
        dim: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,  # whether a learned scale and bias follow
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del rngs  # the layer draws no random numbers
        self.eps, self.momentum, self.dtype = eps, momentum, dtype
        self.scale = nnx.Param(full(dim, 1.0)) if affine else None
        self.bias = nnx.Param(full(dim, 0.0)) if affine else None
        self.mean = nnx.BatchStat(full(dim, 0.0))
        self.var = nnx.BatchStat(full(dim, 1.0))

    def __call__(self, x: Float[Array, "*b dim"], *, train: bool) -> Float[Array, "*b dim"]:
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = self._moments(x, axes)
            self._remember(mean, var, x.size // x.shape[-1])
        else:
            mean, var = self.mean[...], self.var[...]
        factor, offset = self.affine_map(mean, var)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (x * factor.reshape(shape) + offset.reshape(shape)).astype(self.dtype)

    def _moments(self, x: Float[Array, "*b dim"], axes: tuple[int, ...]) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """Mean and variance of each channel; of a bfloat16 map on GPUs and TPUs in one pass.

        There the gradients need one pass, too: the sums of squares are of deviations from the
        moving average, which rounding hurts less than squares of the values.
        """
        if self.dtype != jnp.bfloat16 or platform() not in ("gpu", "tpu"):
            return x.mean(axes), x.var(axes)
        around = jax.lax.stop_gradient(self.mean[...])
        deviations = x - around
        mean, square = deviations.mean(axes), (deviations * deviations).mean(axes)
        return around + mean, jnp.maximum(square - mean * mean, 0)

    def affine_map(self, mean: Float[Array, " dim"], var: Float[Array, " dim"]) -> tuple[Float[Array, " dim"], Float[Array, " dim"]]:
        """Factor and offset of each channel by these statistics and the learned scale and bias."""
        factor = jax.lax.rsqrt(var + self.eps)
        if self.scale is None or self.bias is None:
            return factor, -mean * factor
        factor = self.scale[...] * factor
        return factor, self.bias[...] - mean * factor

    def _remember(self, mean: Array, var: Array, count: int) -> None:
        unbiased = jax.lax.stop_gradient(var) * (count / max(1, count - 1))
        self.mean[...] += self.momentum * (jax.lax.stop_gradient(mean) - self.mean[...])
        self.var[...] += self.momentum * (unbiased - self.var[...])
