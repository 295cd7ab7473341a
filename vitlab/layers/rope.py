"""Rotary positions (Su et al., arXiv:2104.09864): queries and keys turned by angles that grow with
their place.

A table holds the cosine and the sine of every token's angle for every channel, [2, n, head_dim],
computed by numpy.
"""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# DINOv3 (arXiv:2508.10104, section 3.2), EVA-02 (arXiv:2303.11331, section 2) and Perception
# Encoder (arXiv:2504.13181): they differ in frequencies, in the coordinates of a token and in which
# channels form a pair.
Rope = Literal["dinov3", "eva02", "pe"]


def rotation(rope: Rope, grid: tuple[int, int], head_dim: int, *, num_prefix: int, reference: int) -> Float[np.ndarray, "2 n head_dim"]:
    """Cosines and sines of every token's angles, computed in float64 by numpy; those of prefix
    tokens turn nothing.

    Args:
      rope: The published form.
      grid: Rows and columns of patches.
      head_dim: Width of a head, a multiple of 4.
      num_prefix: Tokens before the patches.
      reference: Rows, and columns, of the grid of pre-training, onto which `eva02` and `pe` stretch
        every other grid. `dinov3` has coordinates from -1 to 1 on any grid. `pe` counts from 1
        where there are prefix tokens, as its authors' code does.

    Raises:
      ValueError: head_dim is no multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"{head_dim=} must be a multiple of 4 for rotary positions of two axes")
    bands = np.arange(head_dim // 4) / (head_dim // 4)
    first = 1 if rope == "pe" and num_prefix else 0
    if rope == "dinov3":
        places, frequencies = [2 * (np.arange(n) + 0.5) / n - 1 for n in grid], 2 * np.pi * 100.0**-bands
    else:
        places, frequencies = [(np.arange(n) + first) / n * reference for n in grid], 10_000.0**-bands
    y, x = (a.reshape(-1, 1) * frequencies for a in np.meshgrid(*places, indexing="ij"))
    both = np.concatenate((x, y) if rope == "pe" else (y, x), 1)
    angles = np.tile(both, 2) if rope == "dinov3" else np.repeat(both, 2, 1)
    angles = np.concatenate((np.zeros((num_prefix, head_dim)), angles))
    return np.stack((np.cos(angles), np.sin(angles))).astype(np.float32)


def sequence_rotation(length: int, head_dim: int, *, theta: float = 10_000.0) -> Float[np.ndarray, "2 n head_dim"]:
    """Table of a sequence, for pairs of neighbouring channels (arXiv:2104.09864, eq. 15)."""
    frequencies = 1 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32)[: head_dim // 2] / np.float32(head_dim))
    return _neighbours(np.arange(length, dtype=np.float32)[:, None] * frequencies)


def axial_rotation(grid: tuple[int, int], head_dim: int) -> Float[np.ndarray, "2 n head_dim"]:
    """Table of a grid, for pairs of neighbouring channels: rows turn the first half of the pairs,
    columns the second (RAVLT's authors; frequencies from 1 to 1e-4, both included).
    """
    frequencies = 1 / 10_000 ** np.linspace(0, 1, head_dim // 4, dtype=np.float32)
    h, w = grid
    rows, columns = (np.arange(side, dtype=np.float32)[:, None] * frequencies for side in grid)
    angles = np.concatenate((np.repeat(rows[:, None], w, 1), np.repeat(columns[None], h, 0)), -1)
    return _neighbours(angles.reshape(h * w, -1))


def _neighbours(angles: Float[np.ndarray, "n half"]) -> Float[np.ndarray, "2 n head_dim"]:
    return np.repeat(np.stack((np.cos(angles), np.sin(angles))), 2, -1)


def rotate(
    x: Float[Array, "b n *h head_dim"], table: Float[Array | np.ndarray, "2 n head_dim"], *, halves: bool = False
) -> Float[Array, "b n *h head_dim"]:
    """x cos + R(x) sin, in float32 (arXiv:2104.09864, eq. 34).

    R turns pairs of neighbouring channels (2i, 2i + 1), or, with `halves` as DINOv3's table is, the
    pairs (i, i + head_dim / 2).
    """
    cos, sin = (t.reshape(t.shape[0], *(1,) * (x.ndim - 3), t.shape[1])[None] for t in table)
    wide = x.astype(jnp.float32)
    if halves:
        first, second = jnp.split(wide, 2, -1)
        turned = jnp.concatenate((-second, first), -1)
    else:
        pairs = wide.reshape(*x.shape[:-1], -1, 2)
        turned = jnp.stack((-pairs[..., 1], pairs[..., 0]), -1).reshape(x.shape)
    return (wide * cos + turned * sin).astype(x.dtype)
