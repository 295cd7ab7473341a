"""Disparity by correlation of two views along their rows (Mayer et al., DispNetC, arXiv:1512.02134;
Kendall et al., arXiv:1703.04309).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.maps import Maps, Strides
from vitlab.heads.pixel_map import PixelMap
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import lecun_normal
from vitlab.layers.roles import declare


class Correlation(nnx.Module):
    """Logits of each disparity d at each pixel of the left view: <left(y, x), right(y, x - d)> /
    sqrt(dim) + what a context adds.

    The context is conv3x3(gelu(conv3x3(concat[correlations, left]))), which knows edges and
    occlusions.
    """

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        *,
        in_channels: int,
        max_disparity: int,  # pixels; the largest one that can be found
        dim: int,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        count = max_disparity + 1
        self.max_disparity = max_disparity
        self.pixel_map = PixelMap(dims, strides, in_channels=in_channels, dim=dim, dtype=dtype, rngs=rngs)
        self.conv1 = Conv(dim + count, dim, kernel_size=3, kernel_init=lecun_normal, dtype=dtype, rngs=rngs)
        self.conv2 = declare(Conv(dim, count, kernel_size=3, kernel_init=lecun_normal, rngs=rngs), "head")

    def __call__(self, features: Maps, images: Float[Array, "b h w c"]) -> Float[Array, "pairs h w k"]:
        """Logits [pairs, h, w, max_disparity + 1], float32.

        Args:
          features: Maps of both views, [2 pairs, ...], the left and the right one of each pair
            after each other.
          images: The views, normalised, in the same order.
        """
        maps = self.pixel_map(features, images)
        left, right = maps[0::2], maps[1::2]
        scores = correlations(left, right, self.max_disparity)
        context = gelu(self.conv1(jnp.concatenate([scores, left], -1)))
        return scores.astype(jnp.float32) + self.conv2(context).astype(jnp.float32)


def correlations(left: Float[Array, "b h w c"], right: Float[Array, "b h w c"], most: int) -> Float[Array, "b h w k"]:
    """out[b, y, x, d] = <left[b, y, x], right[b, y, x - d]> / sqrt(c) for d from 0 to `most`; 0
    where the right view has ended.
    """
    width = left.shape[2]
    shifted = [jnp.pad(right, ((0, 0), (0, 0), (d, 0), (0, 0)))[:, :, :width] for d in range(most + 1)]
    return jnp.stack([(left * x).sum(-1) for x in shifted], -1) / left.shape[-1] ** 0.5


def expected_disparity(logits: Float[Array, "b h w k"]) -> Float[Array, "b h w"]:
    """The mean of the disparities 0, 1, ... under the softmax of their logits (arXiv:1703.04309,
    eq. 1).
    """
    disparities = jnp.broadcast_to(jnp.arange(logits.shape[-1], dtype=logits.dtype), logits.shape)
    return (jax.nn.softmax(logits) * disparities).sum(-1)
