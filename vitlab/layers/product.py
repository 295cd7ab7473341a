"""Matrix products of maps in the form that is fast on the current platform."""

import math
from typing import Any

import jax
from jaxtyping import Array, Float

from pallas_kernels.target import platform


def dot_general(x: Float[Array, "*b in"], kernel: Float[Array, "in out"], dimension_numbers: Any, **options: Any) -> Float[Array, "*b out"]:
    """`jax.lax.dot_general` of x [..., in] and kernel [in, out].

    On CPUs x is reshaped to a matrix, because XLA transposes a map of several axes value by value
    for the kernel's gradient.
    """
    if platform() != "cpu":
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **options).reshape(*x.shape[:-1], kernel.shape[-1])
