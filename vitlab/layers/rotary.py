"""Rotary positions: queries and keys turned by angles that grow with their place (RoFormer, Su et
al., arXiv:2104.09864).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def rotary_angles(h: int, w: int, head_dim: int) -> Float[np.ndarray, "n half"]:
    """The angle of each pair of channels at each position: rows for the first half of the pairs,
    columns for the second.
    """
    frequency = 1 / 10000 ** np.linspace(0, 1, head_dim // 4, dtype=np.float32)
    rows, cols = (np.arange(side, dtype=np.float32)[:, None] * frequency for side in (h, w))
    angles = np.concatenate((np.repeat(rows[:, None], w, 1), np.repeat(cols[None], h, 0)), -1)
    return angles.reshape(h * w, -1)


def sequence_angles(length: int, head_dim: int, *, theta: float = 10_000.0) -> Float[np.ndarray, "n half"]:
    """The angle of each pair of channels at each place of a sequence (arXiv:2104.09864, eq. 15)."""
    frequency = 1 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32)[: head_dim // 2] / np.float32(head_dim))
    return np.arange(length, dtype=np.float32)[:, None] * frequency


def rotate(x: Float[Array, "b n heads head_dim"], angles: Float[np.ndarray, "n half"]) -> Float[Array, "b n heads head_dim"]:
    """Turns each pair of neighbouring channels by its angle (RoFormer, arXiv:2104.09864, eq.
    34).
    """
    sin, cos = (jnp.asarray(f(angles), x.dtype)[None, :, None] for f in (np.sin, np.cos))
    even, odd = x[..., ::2], x[..., 1::2]
    return jnp.stack((even * cos - odd * sin, odd * cos + even * sin), -1).reshape(x.shape)
