"""Linear head over maps (Oquab et al., DINOv2, arXiv:2304.07193, section 7.4)."""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.classifier import PixelClassifier
from vitlab.heads.maps import Maps, Strides, check_maps, map_size, order_reason
from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.resize import resize_bilinear


class LinearHead(nnx.Module):
    """Resizes all maps to the finest, concatenates them, normalises, and classifies each pixel.

    The batch norm has no scale and no bias, because the linear layer after it has both. With a
    trunk's last map alone this is the paper's "linear" protocol, with four maps the paper's "+ms",
    without several image sizes.
    """

    reads_all: ClassVar[bool] = True
    unsupported_reason = staticmethod(order_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dropout_rate: float = 0.0,  # share of channels dropped before the linear map, in [0, 1)
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        self.stride = strides[0]
        self.norm = BatchNorm(sum(dims), affine=False, dtype=dtype, rngs=rngs)
        self.classifier = PixelClassifier(sum(dims), out_dim, dropout_rate=dropout_rate, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns logits [b, h, w, out_dim], float32, at the finest map's size."""
        size = map_size(features[0])
        x = jnp.concatenate([resize_bilinear(x, size) for x in features], -1)
        return self.classifier(self.norm(x, train=train), train=train, rngs=rngs)
