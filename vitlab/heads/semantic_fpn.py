"""Semantic FPN (Kirillov et al., arXiv:1901.02446, figure 3), as in mmsegmentation's `FPNHead`."""

import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.classifier import PixelClassifier
from vitlab.heads.fpn import FPN
from vitlab.heads.maps import Maps, Strides, check_maps, map_size, pyramid_reason
from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.resize import resize_bilinear


class SemanticFPN(nnx.Module):
    """Enlarges each map of an FPN to the finest size, sums the maps and classifies each pixel.

    Level i has max(1, log2(stride_i / stride_0)) 3x3 convolutions with batch norm and ReLU, each
    followed by a bilinear doubling, except at level 0. Departs from the paper, as mmsegmentation
    does: batch norm in place of group norm.
    """

    reads_all: ClassVar[bool] = True
    unsupported_reason = staticmethod(pyramid_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dim: int = 128,
        neck_dim: int | None = 256,  # width of the FPN before the head; None: the maps already come from an FPN
        dropout_rate: float = 0.1,  # share of channels dropped before the linear map, in [0, 1)
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        self.stride = strides[0]
        self.neck = None if neck_dim is None else FPN(dims, strides, dim=neck_dim, dtype=dtype, rngs=rngs)
        in_dims = dims if self.neck is None else self.neck.dims
        self.doubles = tuple(stride > strides[0] for stride in strides)
        counts = [max(1, int(math.log2(stride / strides[0]))) for stride in strides]
        self.levels = nnx.List(
            [
                nnx.List([ConvNorm(dim if j else in_dim, dim, kernel_size=3, dtype=dtype, rngs=rngs) for j in range(count)])
                for in_dim, count in zip(in_dims, counts, strict=True)
            ]
        )
        self.classifier = PixelClassifier(dim, out_dim, dropout_rate=dropout_rate, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns logits [b, h, w, out_dim], float32, at the finest map's size."""
        maps = features if self.neck is None else self.neck(features)
        levels = [self._level(i, x, train=train) for i, x in enumerate(maps)]
        total = levels[0]
        for x in levels[1:]:
            total = total + resize_bilinear(x, map_size(total))  # doubling overshoots sides that are no multiples of the strides
        return self.classifier(total, train=train, rngs=rngs)

    def _level(self, i: int, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        for conv in self.levels[i]:
            x = jax.nn.relu(conv(x, train=train))
            if self.doubles[i]:
                x = resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]))
        return x
