"""Gated convolution, Mamba's block without the SSM (MambaOut, arXiv:2405.07992, eq. 4)."""

import itertools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.target import platform
from vitlab.bounds import Ratio, Side
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear


class GatedConv(nnx.Module):
    """fc2(gelu(gate) * [identity, conv(c)]), where gate, identity and c are the parts of fc1(x).

    The convolved part c has as many channels as x.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        expansion_ratio: Ratio = 8 / 3,  # width of gate, and of identity and c together, / dim; at least 1
        kernel_size: Side = 7,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused; every mixer accepts num_heads
        self.hidden = int(expansion_ratio * dim)
        if self.hidden < dim:
            raise ValueError(f"{expansion_ratio=} must be at least 1")
        self.fc1 = Linear(dim, 2 * self.hidden, dtype=dtype, rngs=rngs)
        self.conv = Conv(dim, dim, kernel_size=kernel_size, groups=dim, kernel_init=normal_init, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(self.hidden, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        if platform() == "tpu":
            return self._by_parts(x)
        dim = x.shape[-1]
        gate, identity, conv = jnp.split(self.fc1(x), (self.hidden, 2 * self.hidden - dim), axis=-1)
        return self.fc2(gelu(gate) * jnp.concatenate((identity, self.conv(conv)), -1))

    def _by_parts(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The mixer by a product for each part of the channels: a TPU copies maps to cut them."""
        dim, wide, dtype = x.shape[-1], self.hidden, self.fc1.dtype
        (kernel1, bias1), (kernel2, bias2) = ((p.astype(dtype) for p in _parameters(fc)) for fc in (self.fc1, self.fc2))
        ends = (0, wide - dim, wide, 2 * wide - dim, 2 * wide)  # borders of the two gates, the identity and the convolved part
        parts = [x.astype(dtype) @ kernel1[:, a:b] + bias1[a:b] for a, b in itertools.pairwise(ends)]
        left, right = gelu(parts[0]) * parts[2], gelu(parts[1]) * self.conv(parts[3])
        return left @ kernel2[: wide - dim] + right @ kernel2[wide - dim :] + bias2


def _parameters(layer: Linear) -> tuple[Array, Array]:
    assert layer.bias is not None
    return layer.kernel[...], layer.bias[...]
