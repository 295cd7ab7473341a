"""UPerNet (Xiao et al., arXiv:1807.10221), as mmsegmentation's `UPerHead` has it."""

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
from vitlab.layers.pool import adaptive_average_pool
from vitlab.layers.resize import resize_bilinear


class UPerNet(nnx.Module):
    """Pyramid pooling (arXiv:1612.01105) of the last map, then a feature pyramid over all maps.

    With c(x) = relu(batch_norm(conv(x))), each with its own weights, and maps resized bilinearly:
      m_last = c3x3(concat[x_last, c1x1(pool_s(x_last)) for s in pool_sizes]),
      m_i = c1x1(x_i) + m_{i+1},
      logits = linear(c3x3(concat[c3x3(m_0), c3x3(m_1), ..., m_last])).
    """

    reads_all: ClassVar[bool] = True
    unsupported_reason = staticmethod(pyramid_reason)

    def __init__(
        self,
        dims: Sequence[int],
        strides: Strides,
        out_dim: int,
        *,
        dim: int = 512,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),  # bins per side of each pooled map
        dropout_rate: float = 0.1,  # share of channels dropped before the linear map, in [0, 1)
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_maps(dims, strides, self.unsupported_reason(strides))
        self.stride, self.pool_sizes = strides[0], tuple(pool_sizes)

        def conv(in_dim: int, kernel_size: int) -> ConvNorm:
            return ConvNorm(in_dim, dim, kernel_size=kernel_size, dtype=dtype, rngs=rngs)

        self.pooled = nnx.List([conv(dims[-1], 1) for _ in pool_sizes])
        self.bottleneck = conv(dims[-1] + len(pool_sizes) * dim, 3)
        self.laterals = nnx.List([conv(d, 1) for d in dims[:-1]])
        self.convs = nnx.List([conv(dim, 3) for _ in dims[:-1]])
        self.fusion = conv(len(dims) * dim, 3)
        self.classifier = PixelClassifier(dim, out_dim, dropout_rate=dropout_rate, rngs=rngs)

    def __call__(self, features: Maps, *, train: bool, rngs: nnx.Rngs | None = None) -> Float[Array, "b h w k"]:
        """Returns logits [b, h, w, out_dim], float32, at the finest map's size."""
        maps = [jax.nn.relu(lateral(x, train=train)) for lateral, x in zip(self.laterals, features[:-1], strict=True)]
        maps.append(self._pool(features[-1], train=train))
        for i in range(len(maps) - 2, -1, -1):
            maps[i] = maps[i] + resize_bilinear(maps[i + 1], map_size(maps[i]))
        outs = [jax.nn.relu(conv(x, train=train)) for conv, x in zip(self.convs, maps[:-1], strict=True)]
        size = map_size(outs[0])
        x = jnp.concatenate([resize_bilinear(x, size) for x in (*outs, maps[-1])], -1)
        return self.classifier(jax.nn.relu(self.fusion(x, train=train)), train=train, rngs=rngs)

    def _pool(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c2"]:
        """Returns the pyramid pooling of a map.

        Bins overlap if their number does not divide a side, as in torch.
        """
        maps = [x]
        for bins, conv in zip(self.pool_sizes, self.pooled, strict=True):
            pooled = jax.nn.relu(conv(adaptive_average_pool(x, (bins, bins)), train=train))
            maps.append(resize_bilinear(pooled, map_size(x)))
        return jax.nn.relu(self.bottleneck(jnp.concatenate(maps, -1), train=train))
