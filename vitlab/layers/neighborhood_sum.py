"""Weighted sum of the values around each token: the second half of neighborhood attention.

Hassani et al., arXiv:2204.07143, eq. 3.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels.neighborhood_attention.neighborhoods import Axis

_SHORT = 16  # an axis of at most this many tokens is one tile, whatever the window: fewer and larger products


@functools.partial(jax.jit, static_argnames="kernel_size")  # `vitlab.analysis.counts` finds the call by this name
def neighborhood_sum(
    weights: Float[Array, "b h w heads window"], value: Float[Array, "b h w heads dim"], *, kernel_size: int
) -> Float[Array, "b h w heads dim"]:
    """Sums the kernel_size**2 values nearest to each token; border windows shift inside the map.

    This is plain XLA with linear memory. A tile of about kernel_size tokens per side shares a block
    of values about twice as large; one-hot products spread the weights over the block, so that the
    sum is a dense product. One row of tiles is computed at a time, and computed again in the
    backward pass.

    Args:
      weights: Weights of each token for the values of its window, row by row.
      value: Values to sum.
      kernel_size: Side of the window in tokens, at most min(h, w).

    Returns:
      The sums, in the dtype of value, accumulated in float32.

    Raises:
      ValueError: The window does not fit the map.
    """
    b, h, w, heads, dim = value.shape
    if kernel_size > min(h, w):
        raise ValueError(f"{kernel_size=} must be at most the sides of the map, {h}x{w}")
    rows, cols = Blocks.of(h, kernel_size), Blocks.of(w, kernel_size)
    tiled = jnp.pad(weights, ((0, 0), (0, rows.padding), (0, cols.padding), (0, 0), (0, 0)))
    tiled = tiled.reshape(b, *rows.tiles, *cols.tiles, heads, kernel_size, kernel_size)
    spread_cols = jnp.asarray(cols.place, weights.dtype)

    @jax.checkpoint
    def strip(args):
        weights, value, spread_rows = args
        dense = jnp.einsum("bqtpnij,tpjx->bqtpnix", weights, spread_cols)
        dense = jnp.einsum("bqtpnix,qiy->btnqpyx", dense, spread_rows)
        return jnp.einsum("btnqpyx,bytxnd->bqtpnd", dense, value, preferred_element_type=jnp.float32)

    strips = (jnp.moveaxis(tiled, 1, 0), rows.cut(cols.cut(value, 2), 1, front=True), jnp.asarray(rows.place, weights.dtype))
    out = strip(jax.tree.map(lambda x: x[0], strips))[None] if rows.tiles[0] == 1 else jax.lax.map(strip, strips)
    out = jnp.moveaxis(out, 0, 1).reshape(b, h + rows.padding, w + cols.padding, heads, dim)
    return out[:, :h, :w].astype(value.dtype)


class Blocks:
    """An axis cut into tiles of tokens, each with the block of values that its windows cover."""

    def __init__(self, axis: Axis):
        count = 1 if axis.size <= max(2 * axis.kernel, _SHORT) else round(axis.size / axis.kernel)
        size = -(-axis.size // count)
        count = -(-axis.size // size)
        self.tiles = (count, size)
        self.padding = count * size - axis.size
        start = np.pad(axis.windows()[0][0], (0, self.padding), "edge").reshape(self.tiles)
        self.width = int((start.max(1) - start.min(1)).max()) + axis.kernel
        self.first = np.minimum(start.min(1), axis.size - self.width)
        at = start[..., None] + np.arange(axis.kernel) - self.first[:, None, None]
        self.place = (at[..., None] == np.arange(self.width)).astype(np.float32)  # [tile, token, place in the window, place in the block]

    @classmethod
    @functools.lru_cache(maxsize=256)
    def of(cls, size: int, kernel: int) -> "Blocks":
        return cls(Axis(size, kernel))

    def cut(self, x: Array, axis: int, *, front: bool = False) -> Array:
        """Returns the blocks of x: the axis becomes two, [tile, value], or the tiles come first."""
        blocks = [jax.lax.slice_in_dim(x, first, first + self.width, axis=axis) for first in self.first.tolist()]
        return jnp.stack(blocks, 0 if front else axis)
