"""Segmentation head of CCNet (Huang et al., arXiv:1811.11721, section 3.1): recurrent criss-cross
attention between convolutions.
"""

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
from vitlab.layers.criss_cross import RecurrentCrissCross

_SLOPE = 0.01  # slope of the leaky ReLU in the authors' activated batch norm


class RecurrentCrissCrossHead(nnx.Module):
    """A 3x3 convolution of the last map, criss-cross attention in a loop, a 3x3 convolution; then
    one of this and the map, concatenated, and a linear map per pixel.

    Each convolution has a batch norm and a leaky ReLU. The authors read the last map of a dilated
    ResNet, with stride 8, and narrow it to a quarter.
    """

    reads_all: ClassVar[bool] = False
    unsupported_reason = staticmethod(order_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dim: int = 512,  # width of the last convolution
        attn_dim: int | None = None,  # width of the attention; None: a quarter of the map's
        num_loops: int = 2,
        dropout_rate: float = 0.1,  # share of channels dropped before the linear map, in [0, 1)
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        self.stride = strides[-1]
        narrow = max(1, dims[-1] // 4) if attn_dim is None else attn_dim
        options = {"kernel_size": 3, "dtype": dtype, "rngs": rngs}
        self.conv1 = ConvNorm(dims[-1], narrow, **options)
        self.rcca = RecurrentCrissCross(narrow, num_loops=num_loops, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(narrow, narrow, **options)
        self.fusion = ConvNorm(dims[-1] + narrow, dim, **options)
        self.classifier = PixelClassifier(dim, out_dim, dropout_rate=dropout_rate, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns logits [b, h, w, out_dim], float32, at the last map's size."""
        x = jax.nn.leaky_relu(self.conv1(features[-1], train=train), _SLOPE)
        x = jax.nn.leaky_relu(self.conv2(self.rcca(x), train=train), _SLOPE)
        x = self.fusion(jnp.concatenate((features[-1], x), -1), train=train)
        return self.classifier(jax.nn.leaky_relu(x, _SLOPE), train=train, rngs=rngs)
