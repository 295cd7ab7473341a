"""Fully convolutional head (Long et al., arXiv:1411.4038), as in mmsegmentation's `FCNHead`."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.heads.classifier import PixelClassifier
from vitlab.heads.maps import Maps, Strides, check_maps, order_reason
from vitlab.layers.conv_norm import ConvNorm


class FCN(nnx.Module):
    """Convolutions of the last map, each with batch norm and ReLU, then a linear map per pixel.

    With the defaults this is the auxiliary head of UPerNet's training, which gets all maps but the
    last and has a loss weight of 0.4.
    """

    reads_all: ClassVar[bool] = False
    unsupported_reason = staticmethod(order_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dim: int = 256,
        num_convs: int = 1,
        concat_input: bool = False,  # True: one more convolution of the input and the result, concatenated
        dropout_rate: float = 0.1,  # share of channels dropped before the linear map, in [0, 1)
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        self.stride = strides[-1]
        widths = [dims[-1], *[dim] * num_convs]
        pairs = itertools.pairwise(widths)
        self.convs = nnx.List([ConvNorm(a, b, kernel_size=3, dtype=dtype, rngs=rngs) for a, b in pairs])
        self.concat_conv = ConvNorm(dims[-1] + widths[-1], dim, kernel_size=3, dtype=dtype, rngs=rngs) if concat_input else None
        self.classifier = PixelClassifier(dim if concat_input else widths[-1], out_dim, dropout_rate=dropout_rate, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns logits [b, h, w, out_dim], float32, at the last map's size."""
        x = features[-1]
        for conv in self.convs:
            x = jax.nn.relu(conv(x, train=train))
        if self.concat_conv is not None:
            x = jax.nn.relu(self.concat_conv(jnp.concatenate([features[-1], x], -1), train=train))
        return self.classifier(x, train=train, rngs=rngs)
