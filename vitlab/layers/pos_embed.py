"""Position embeddings of a grid of tokens, and their resampling to another grid."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers.initial import normal_init
from vitlab.layers.resize import resize_bicubic, resize_bilinear

# Rules that give a table another grid: bicubic with antialiasing and a = -0.5 (timm); bicubic
# without antialiasing and a = -0.75 (torch, Hugging Face); the latter with the scale
# (new + 0.1) / old in place of new / old (DINOv2's authors); bilinear (PVT).
PosResize = Literal["antialias", "bicubic", "bicubic_offset", "bilinear"]
RESIZE_WORDS: dict[PosResize, str] = {
    "antialias": "bicubic with antialiasing",
    "bicubic": "bicubic without antialiasing",
    "bicubic_offset": "bicubic without antialiasing, scale (new + 0.1) / old",
    "bilinear": "bilinear",
}


def position_table(key: Any, grid: tuple[int, int], dim: int, *, num_prefix: int = 0, resize: PosResize = "antialias") -> nnx.Param:
    """A learned position embedding [1, num_prefix + rows * columns, dim].

    Its metadata `grid` says the rows and columns of patches: their product, which is the shape,
    does not tell 14 x 14 from 7 x 28, and loading weights of another grid resamples them by the
    rule that its metadata `resize` names.

    Args:
      key: The key of the parameter, from `InitRngs.params`.
      grid: Rows and columns of patches.
      dim: Width of a token.
      num_prefix: Tokens before the patches that have positions.
      resize: How it gets another grid.
    """
    return nnx.Param(normal_init(key, (1, num_prefix + grid[0] * grid[1], dim)), grid=grid, resize=resize)


def sincos_2d(height: int, width: int, dim: int, *, temperature: float = 10_000.0, endpoint: bool = True) -> Float[np.ndarray, "1 n dim"]:
    """Fixed sine-cosine embedding of the two coordinates, half of the width each, columns first
    (MoCo v3, arXiv:2104.02057).

    With `endpoint` the lowest frequency is 1 / temperature; without it (MAE, arXiv:2111.06377) the
    next one would be.

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
    pos_embed: Float[Array, "1 n dim"],
    old: tuple[int, int],
    new: tuple[int, int],
    *,
    num_prefix: int = 0,
    resize: PosResize = "antialias",
) -> Float[Array, "1 m dim"]:
    """Resizes the grid part of a position embedding from `old` to `new` (height, width); the prefix
    tokens keep theirs.
    """
    if old == new:
        return pos_embed
    prefix, grid = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    dim = grid.shape[-1]
    grid = grid.reshape(1, *old, dim)
    if resize == "antialias":
        grid = jax.image.resize(grid, (1, *new, dim), "cubic")
    elif resize == "bilinear":
        grid = resize_bilinear(grid, new)
    else:
        offset = resize == "bicubic_offset"
        grid = resize_bicubic(grid, new, scales=((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1]) if offset else (None, None))
    return jnp.concatenate([prefix, grid.reshape(1, -1, dim)], axis=1)
