"""Position embeddings of a grid of tokens, and their resampling to another grid."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers.initial import normal_init


def position_table(key: Any, grid: tuple[int, int], dim: int, *, num_prefix: int = 0) -> nnx.Param:
    """Returns a learned position embedding [1, num_prefix + rows * columns, dim].

    Its metadata `grid` records the rows and columns of patches. The shape has only their product,
    which does not tell 14 x 14 from 7 x 28; weights of another grid are resampled when they are
    loaded.

    Args:
      key: The key of the parameter, from `InitRngs.params`.
      grid: Rows and columns of patches.
      dim: Width of a token.
      num_prefix: Number of tokens before the patches that have positions.
    """
    return nnx.Param(normal_init(key, (1, num_prefix + grid[0] * grid[1], dim)), grid=grid)


def sincos_2d(height: int, width: int, dim: int, *, temperature: float = 10_000.0, endpoint: bool = True) -> Float[np.ndarray, "1 n dim"]:
    """Fixed sine-cosine embedding of the two coordinates, half of the width each, columns first (MoCo v3, arXiv:2104.02057).

    With `endpoint` the lowest frequency is 1 / temperature; without it (MAE, arXiv:2111.06377) the next one would be.

    Raises:
      ValueError: dim is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"{dim=} must be a multiple of 4 for a sine-cosine position embedding")
    y, x = np.mgrid[:height, :width]
    omega = temperature ** -(np.arange(dim // 4) / (dim // 4 - endpoint))
    angles = [axis.reshape(-1, 1) * omega for axis in (x, y)]
    out = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)
    return out[None].astype(np.float32)


def resample(
    pos_embed: Float[Array, "1 n dim"], old: tuple[int, int], new: tuple[int, int], *, num_prefix: int = 0
) -> Float[Array, "1 m dim"]:
    """Resizes a position embedding's grid from `old` to `new`, (height, width).

    The first `num_prefix` tokens keep their positions. Interpolation is bicubic with antialiasing
    (a = -0.5), as in timm's `resample_abs_pos_embed`.
    """
    if old == new:
        return pos_embed
    prefix, grid = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    dim = grid.shape[-1]
    grid = jax.image.resize(grid.reshape(1, *old, dim), (1, *new, dim), "cubic")
    return jnp.concatenate([prefix, grid.reshape(1, -1, dim)], axis=1)
