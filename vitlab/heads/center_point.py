"""Objects as points: an anchor-free detector (Zhou et al., CenterNet, arXiv:1904.07850)."""

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vitlab.heads.maps import Maps, Strides, check_maps, order_reason
from vitlab.heads.one_map import OneMap
from vitlab.heads.pixel_shuffle import Upsample
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import full, lecun_normal
from vitlab.layers.norm import LayerNorm
from vitlab.layers.roles import declare

_RARE = -math.log(99)  # bias that gives each class an initial score of 0.01 everywhere (arXiv:1708.02002, section 3.3)
_MAX_LOG_SIZE = 10.0  # upper bound of log sizes: e^10 positions are wider than any image, and finite


class CenterMaps(NamedTuple):
    """Outputs of the head at each position, in float32; lengths are in units of the stride."""

    heatmap: Float[Array, "b h w k"]  # per class, logits of an object's centre being here
    size: Float[Array, "b h w 2"]  # logarithms of width and height
    offset: Float[Array, "b h w 2"]  # x and y from the position's own centre to the object's centre


class Detections(NamedTuple):
    """The best boxes of each image, in falling order of scores."""

    boxes: Float[Array, "b n 4"]  # x0, y0, x1, y1 in pixels, not clipped to the image
    scores: Float[Array, "b n"]  # in [0, 1]
    classes: Int[Array, "b n"]


class CenterPoint(nnx.Module):
    """A map fused from all maps, at a stride of at most `stride` pixels, and three branches.

    The branches predict centres, sizes and offsets; each is linear(gelu(conv3x3(x))). Departs from
    CenterNet: sizes are logarithms, so that errors are relative to the object's size; offsets start
    at a position's centre, so that zero is the best first guess; a pixel shuffle replaces the
    transposed convolutions.
    """

    reads_all: ClassVar[bool] = True
    unsupported_reason = staticmethod(order_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dim: int = 128,
        stride: int = 4,  # greatest distance between positions, in pixels; a finer map of the trunk stays as fine
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        factor = max(1, math.ceil(strides[0] / stride))
        self.stride = strides[0] / factor
        self.one_map = OneMap(dims, strides, dim=dim, dtype=dtype, rngs=rngs)
        self.upsample = Upsample(dim, dim, factor=factor, dtype=dtype, rngs=rngs) if factor > 1 else None
        self.norm = LayerNorm(dim, eps=1e-6, dtype=dtype, rngs=rngs) if factor > 1 else None
        self.heatmap = Branch(dim, out_dim, bias=_RARE, dtype=dtype, rngs=rngs)
        self.size = Branch(dim, 2, bias=0.0, dtype=dtype, rngs=rngs)
        self.offset = Branch(dim, 2, bias=0.0, dtype=dtype, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> CenterMaps:
        """Returns maps [b, h, w, out_dim], [b, h, w, 2] and [b, h, w, 2].

        Positions are `self.stride` pixels apart.
        """
        del train, rngs
        x = self.one_map(features)
        if self.upsample is not None and self.norm is not None:
            x = gelu(self.norm(self.upsample(x)))
        return CenterMaps(self.heatmap(x), self.size(x), self.offset(x))


class Branch(nnx.Module):
    """linear(gelu(conv3x3(x))), in float32."""

    def __init__(self, dim: int, out_dim: int, *, bias: float, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv1 = Conv(dim, dim, kernel_size=3, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(dim, out_dim, kernel_size=1, kernel_init=lecun_normal, rngs=rngs)
        self.conv2.bias = nnx.Param(full(out_dim, bias))
        declare(self.conv2, "head")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
        return self.conv2(gelu(self.conv1(x)))


def boxes_of(maps: CenterMaps, *, stride: int | float, num_boxes: int = 100) -> Detections:
    """Returns the boxes at the highest peaks of the heatmap.

    A peak is no lower than its eight neighbours; this replaces non-maximum suppression.

    Args:
      maps: Outputs of a head.
      stride: Pixels between positions, the head's `stride`.
      num_boxes: Boxes per image, at most h w k. If an image has fewer peaks, its last boxes have a
        score of 0.

    Returns:
      `num_boxes` boxes of each image; the shapes do not depend on the values.

    Raises:
      ValueError: `num_boxes` is not in [1, h w k].
    """
    b, h, w, k = maps.heatmap.shape
    if not 1 <= num_boxes <= h * w * k:
        raise ValueError(f"{num_boxes=} must be from 1 to {h * w * k}, the numbers of a heatmap of {h}x{w} positions and {k} classes")
    logits = maps.heatmap.astype(jnp.float32)  # compared as logits: after the sigmoid, different large ones are equal
    peaks = jnp.where(logits == nnx.max_pool(logits, (3, 3), strides=(1, 1), padding="SAME"), logits, -jnp.inf)
    best, index = jax.lax.top_k(peaks.reshape(b, -1), num_boxes)
    position = index // k
    size, offset = (
        jnp.take_along_axis(x.astype(jnp.float32).reshape(b, h * w, 2), position[..., None], 1) for x in (maps.size, maps.offset)
    )
    cells = jnp.stack([position % w, position // w], -1)
    centre, half = cells + 0.5 + offset, jnp.exp(jnp.minimum(size, _MAX_LOG_SIZE)) / 2
    return Detections(jnp.concatenate([centre - half, centre + half], -1) * stride, jax.nn.sigmoid(best), index % k)
