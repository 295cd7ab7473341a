"""Depthwise convolution along a sequence that sees no later token."""

import functools
import math
import operator

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.initial import uniform, zeros_init
from vitlab.layers.roles import declare


class CausalConv(nnx.Module):
    """y_t = sum_i kernel_i x_(t - size + 1 + i) + bias, with zeros before the first token.

    In reverse the tokens are taken from the last to the first. The kernel, [size, 1, dim], starts
    uniform, as torch's, and the bias at zero.
    """

    def __init__(self, dim: int, *, kernel_size: int, use_bias: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.dtype = dtype
        self.kernel = declare(nnx.Param(uniform(1 / math.sqrt(kernel_size))(rngs.params(), (kernel_size, 1, dim))), "filter")
        self.bias = nnx.Param(zeros_init(rngs.params(), (dim,))) if use_bias else None

    def __call__(self, x: Float[Array, "b n dim"], *, reverse: bool = False) -> Float[Array, "b n dim"]:
        kernel, n = self.kernel[...].astype(self.dtype), x.shape[1]
        size = len(kernel)
        if reverse:
            kernel = kernel[::-1]
        ends = (0, size - 1) if reverse else (size - 1, 0)
        padded = jnp.pad(x.astype(self.dtype), ((0, 0), ends, (0, 0)))
        out = functools.reduce(operator.add, (padded[:, i : i + n] * kernel[i, 0] for i in range(size)))
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)
