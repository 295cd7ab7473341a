"""Pooling as a token mixer (PoolFormer, Yu et al., arXiv:2111.11418, eq. 4)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side


class Pooling(nnx.Module):
    """The mean over the neighbours of each position that lie inside the map, less the position
    itself; no parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        pool_size: Side = 3,  # positions per side, odd
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del dim, num_heads, dtype, rngs  # nothing here has a width, heads or parameters
        if pool_size % 2 == 0:
            raise ValueError(f"{pool_size=} must be odd, so that a window has a middle")
        self.pool_size = pool_size

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        mean = nnx.avg_pool(x, (self.pool_size, self.pool_size), padding="SAME", count_include_pad=False)
        return mean.astype(x.dtype) - x
