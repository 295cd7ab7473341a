"""Average pooling with torch's conventions, where they differ from a plain reshape."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitlab.layers.pad import pad_to_multiple


def average_pool_ceil(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h2 w2 c"]:
    """Returns means over size x size cells, as torch with ceil_mode and padding not counted.

    The last cell of a side that is no multiple of `size` has fewer pixels.
    """
    b, h, w, c = x.shape
    rows, cols = -(-h // size), -(-w // size)
    sums = pad_to_multiple(x, size).reshape(b, rows, size, cols, size, c).sum((2, 4))
    counts = [np.minimum(size, side - size * np.arange(n)) for side, n in ((h, rows), (w, cols))]
    return sums / (counts[0][:, None] * counts[1])[None, :, :, None].astype(x.dtype)


def adaptive_bins(size: int, bins: int) -> np.ndarray:
    """Returns the weights [bins, size] of torch's adaptive average pooling.

    Bin i spans floor(i size / bins) to ceil((i + 1) size / bins).
    """
    i, position = np.arange(bins)[:, None], np.arange(size)
    inside = (position >= i * size // bins) & (position < -(-(i + 1) * size // bins))
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


def adaptive_average_pool(x: Float[Array, "b h w c"], size: tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Returns means over `size` bins per axis; bins overlap where a side is no multiple."""
    rows, cols = adaptive_bins(x.shape[1], size[0]), adaptive_bins(x.shape[2], size[1])
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows.astype(x.dtype), cols.astype(x.dtype))
