"""Maps of one, two or three axes as maps of three, and their residue classes one after the
other.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.neighborhood_attention.neighborhoods import Axis

ONE = Axis(1, 1)
Axes = tuple[Axis, Axis, Axis]


def three_axes(axes: tuple[Axis, ...]) -> Axes:
    """Slices, rows, columns: the last axis is columns, the first of several slices."""
    slices, rows, cols = ((ONE, ONE, *axes), (axes[0], ONE, axes[-1]), axes)[len(axes) - 1]
    return slices, rows, cols


def bias_of_three_axes(bias: Array, axes: tuple[Axis, ...]) -> Float[Array, "heads slices rows cols"]:
    """The table of offsets with as many axes."""
    return bias.reshape(bias.shape[0], *(2 * axis.kernel - 1 for axis in three_axes(axes)))


def by_class(x: Array, axes: tuple[Axis, ...]) -> Float[Array, "classes_b slices rows cols channels"]:
    """[b, *spatial, heads, head_dim] with residue classes in front of the batch and heads merged.

    Shorter classes end in zeros.

    Without dilation a mere reshape.
    """
    axes = three_axes(axes)
    x = x.reshape(x.shape[0], *(axis.size for axis in axes), -1)
    x = jnp.pad(x, ((0, 0), *((0, axis.positions * axis.dilation - axis.size) for axis in axes), (0, 0)))
    x = x.reshape(x.shape[0], *(n for axis in axes for n in (axis.positions, axis.dilation)), x.shape[-1])
    return x.transpose(2, 4, 6, 0, 1, 3, 5, 7).reshape(-1, *(axis.positions for axis in axes), x.shape[-1])


def from_classes(x: Array, axes: tuple[Axis, ...], shape: tuple[int, ...]) -> Array:
    """The inverse of `by_class`; `shape` is [b, *spatial, ...]."""
    axes, channels = three_axes(axes), x.shape[-1]
    b = x.shape[0] // math.prod(axis.dilation for axis in axes)
    x = x.reshape(*(axis.dilation for axis in axes), b, *(axis.positions for axis in axes), channels)
    x = x.transpose(3, 4, 0, 5, 1, 6, 2, 7).reshape(b, *(axis.positions * axis.dilation for axis in axes), channels)
    return x[:, : axes[0].size, : axes[1].size, : axes[2].size].reshape(shape)
