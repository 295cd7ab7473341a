"""The affine map over the last axis, initialised as vision transformers are."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array

from pallas_kernels.target import platform
from vitlab.layers.initial import normal_init, zeros_init


class Linear(nnx.Linear):
    """x @ kernel + bias; kernel normal(0.02), bias zero; parameters float32, computed in `dtype`."""

    def __init__(self, in_dim: int, out_dim: int, *, use_bias: bool = True, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(
            in_dim,
            out_dim,
            use_bias=use_bias,
            dtype=dtype,
            kernel_init=normal_init,
            bias_init=zeros_init,
            dot_general=_product,
            rngs=rngs,
        )


def _product(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """`jax.lax.dot_general` of x [..., in] and kernel [in, out].

    On CPUs x is a matrix meanwhile: for the gradient of the kernel XLA would transpose a map of several axes, one value at a time.
    """
    if platform() != "cpu":
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options).reshape(*x.shape[:-1], kernel.shape[-1])
