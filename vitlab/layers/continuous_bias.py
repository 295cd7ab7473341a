"""A bias of attention for each offset, computed from it (log-spaced continuous position bias, Swin
v2, arXiv:2111.09883, section 3.3).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vitlab.layers.linear import Linear
from vitlab.layers.pool import adaptive_bins
from vitlab.layers.roles import declare


class ContinuousBias(nnx.Module):
    """Two linear layers from the offset of a query and a key of another grid to a bias a head
    (TransNeXt, arXiv:2311.17132, section 3.2).

    Keys stand in the middle of the queries that they are pooled from. Offsets are in units of an
    eighth of the `measure`d map and then logarithmic. The layers see each offset once; the result
    is spread over the pairs.
    """

    def __init__(self, num_heads: int, *, hidden: int = 512, measure: tuple[int, int], rngs: nnx.Rngs):
        self.measure = measure  # rows and columns of the queries of the images that the layers were trained on
        self.cpb_fc1 = declare(Linear(2, hidden, rngs=rngs), "position")
        self.cpb_fc2 = declare(Linear(hidden, num_heads, rngs=rngs), "position")

    def __call__(self, queries: tuple[int, int], keys: tuple[int, int]) -> Float[Array, "heads n m"]:
        (rows, row_of), (cols, col_of) = (_offsets(q, k, m) for q, k, m in zip(queries, keys, self.measure, strict=True))
        grid = np.stack(np.meshgrid(rows, cols, indexing="ij"), -1)
        table = self.cpb_fc2(jax.nn.relu(self.cpb_fc1(jnp.asarray(grid)))).transpose(2, 0, 1)
        bias = table[:, row_of[:, None, :, None], col_of[None, :, None, :]]  # [heads, query rows, query cols, key rows, key cols]
        return bias.reshape(len(table), queries[0] * queries[1], keys[0] * keys[1])


def _offsets(queries: int, keys: int, measure: int) -> tuple[Float[np.ndarray, " u"], Int[np.ndarray, "queries keys"]]:
    """The different offsets of an axis, log-spaced, and which one each pair has."""
    place = np.arange(queries, dtype=np.float32)
    offsets, index = np.unique(place[:, None] - adaptive_bins(queries, keys) @ place, return_inverse=True)
    offsets = offsets * 8 / max(1, measure - 1)
    return (np.sign(offsets) * np.log2(np.abs(offsets) + 1) / 3).astype(np.float32), index.reshape(queries, keys)
