"""An image as tokens: a class token, then patches, each with its position."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.initial import normal_init
from vitlab.layers.patch_embed import PatchEmbed
from vitlab.layers.pos_embed import position_table, resample
from vitlab.layers.roles import declare


class TokenEmbed(nnx.Module):
    """Patches after one class token, plus a learned position embedding (DeiT, arXiv:2012.12877).

    The position embedding is stored for maps of `grid` and resampled for others.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        patch_size: int,
        grid: tuple[int, int],  # rows and columns of patches for which positions are stored
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.grid = grid
        self.patch_embed = PatchEmbed(in_channels, dim, patch_size=patch_size, dtype=dtype, rngs=rngs)
        self.cls_token = declare(nnx.Param(normal_init(rngs.params(), (1, 1, dim))), "token")
        self.pos_embed = declare(position_table(rngs.params(), grid, dim, num_prefix=1), "position")

    def __call__(self, images: Float[Array, "b height width c"]) -> Float[Array, "b n d"]:
        x = self.patch_embed(images)
        b, h, w, d = x.shape
        position = resample(self.pos_embed[...], self.grid, (h, w), num_prefix=1)
        token = jnp.broadcast_to(self.cls_token[...], (b, 1, d)).astype(x.dtype)
        return jnp.concatenate([token, x.reshape(b, h * w, d)], axis=1) + position.astype(x.dtype)
