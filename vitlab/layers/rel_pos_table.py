"""A bias of attention for each relative position of two patches and for the class token (BEiT, Bao
et al., arXiv:2106.08254).
"""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vitlab.layers.pos_embed import position_table, resample
from vitlab.layers.roles import declare

CLASS_ENTRIES = 3  # class token to patch, patch to class token, class token to itself


class RelPosTable(nnx.Module):
    """A table [1, 3 + (2 rows - 1)(2 columns - 1), heads]: the class token's entries, then those of
    query - key, row-major.

    On another grid than its own the entries of relative positions are resampled, bicubic with
    antialiasing, as for absolute ones.
    """

    def __init__(self, grid: tuple[int, int], *, num_heads: int, rngs: nnx.Rngs):
        self.grid = grid
        table = position_table(rngs.params(), _offsets(grid), num_heads, num_prefix=CLASS_ENTRIES)
        self.table = declare(table, "position")

    def __call__(self, grid: tuple[int, int]) -> Float[Array, "heads n n"]:
        """The bias of a class token and the patches of a grid, at [head, query, key]."""
        table = resample(self.table[...], _offsets(self.grid), _offsets(grid), num_prefix=CLASS_ENTRIES)[0]
        return jnp.moveaxis(jnp.take(table, _entries(grid), 0), -1, 0)


def _offsets(grid: tuple[int, int]) -> tuple[int, int]:
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _entries(grid: tuple[int, int]) -> Int[np.ndarray, "n n"]:
    """The row of the table for each query and key."""
    y, x = (a.reshape(-1) for a in np.mgrid[: grid[0], : grid[1]])
    rows, columns = (a[:, None] - a[None] + n - 1 for a, n in zip((y, x), grid, strict=True))
    out = np.empty((1 + y.size, 1 + y.size), int)
    out[0], out[:, 0], out[0, 0] = 0, 1, 2
    out[1:, 1:] = CLASS_ENTRIES + rows * (2 * grid[1] - 1) + columns
    return out
