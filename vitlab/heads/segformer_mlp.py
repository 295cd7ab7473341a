"""SegFormer's All-MLP head (Xie et al., arXiv:2105.15203, eq. 4)."""

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.classifier import PixelClassifier
from vitlab.heads.maps import Maps, Strides, check_maps, map_size, pyramid_reason
from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.linear import Linear
from vitlab.layers.resize import resize_bilinear


class SegFormerMlp(nnx.Module):
    """logits = linear(relu(batch_norm(linear(concat_i resize(linear_i(x_i)))))).

    All linear maps are over a pixel's channels. SegFormer-B0 and B1 have a `dim` of 256, larger
    variants 768. Maps are concatenated from fine to coarse; the authors' code concatenates from
    coarse to fine, which permutes the rows of one kernel.
    """

    reads_all: ClassVar[bool] = True
    unsupported_reason = staticmethod(pyramid_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dim: int = 256,
        dropout_rate: float = 0.1,  # share of channels dropped before the linear map, in [0, 1)
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        self.stride = strides[0]
        self.projections = nnx.List([Linear(d, dim, dtype=dtype, rngs=rngs) for d in dims])
        self.fusion = ConvNorm(len(dims) * dim, dim, dtype=dtype, rngs=rngs)
        self.classifier = PixelClassifier(dim, out_dim, dropout_rate=dropout_rate, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns logits [b, h, w, out_dim], float32, at the finest map's size."""
        size = map_size(features[0])
        maps = [resize_bilinear(proj(x), size) for proj, x in zip(self.projections, features, strict=True)]
        x = jax.nn.relu(self.fusion(jnp.concatenate(maps, -1), train=train))
        return self.classifier(x, train=train, rngs=rngs)
