"""Patches with positions, which lead into each stage of PVT (arXiv:2102.12122, section 3.2)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.initial import normal_init
from vitlab.layers.patch_embed import PatchEmbed
from vitlab.layers.pos_embed import position_table
from vitlab.layers.resize import resize_bilinear
from vitlab.layers.roles import declare


class PlacedPatches(nnx.Module):
    """Patches of a map, normalised, plus a learned position embedding.

    As in the authors' code rows and columns that fill no patch are left out, and for another map
    than `grid` the embedding is resized (bilinear). With `prefix` the embedding has one more
    position, the first, for a token that is not of the map.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        patch_size: int,
        grid: tuple[int, int],  # rows and columns of patches
        prefix: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(in_dim, dim, patch_size=patch_size, norm_eps=1e-5, dtype=dtype, rngs=rngs)
        self.grid = grid
        if prefix:
            self.pos_tokens, self.pos_map = declare(position_table(rngs.params(), grid, dim, num_prefix=1), "position"), None
        else:
            self.pos_tokens, self.pos_map = None, declare(nnx.Param(normal_init(rngs.params(), (1, *grid, dim))), "position")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        p = self.patch_size
        rows, cols = x.shape[1] // p, x.shape[2] // p
        if not rows or not cols:
            raise ValueError(f"a map of {x.shape[1]}x{x.shape[2]} must have at least {p} rows and columns, a patch: use larger images")
        x = self.patch_embed(x[:, : rows * p, : cols * p])
        if self.pos_map is not None:
            table = self.pos_map[...]
        else:
            assert self.pos_tokens is not None
            table = self.pos_tokens[...][:, 1:].reshape(1, *self.grid, -1)
        return x + resize_bilinear(table, (rows, cols)).astype(x.dtype)

    def first_position(self) -> Float[Array, "1 1 d"]:
        """The embedding of the position before the map."""
        assert self.pos_tokens is not None
        return self.pos_tokens[...][:, :1]
