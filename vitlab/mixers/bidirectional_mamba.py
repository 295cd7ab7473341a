"""Bidirectional Mamba block (Vim, Zhu et al., arXiv:2401.09417, algorithm 1)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, Ratio, Side
from vitlab.layers.causal_conv import CausalConv
from vitlab.layers.linear import Linear
from vitlab.layers.selective_scan import SelectiveScan


class Direction(nnx.Module):
    """A causal convolution, SiLU and a selective scan, along or against the sequence."""

    def __init__(self, dim: int, *, state_dim: int, rank: int, kernel_size: int, reverse: bool, implementation: str | None, dtype, rngs):
        self.reverse = reverse
        self.conv1d = CausalConv(dim, kernel_size=kernel_size, dtype=dtype, rngs=rngs)
        self.scan = SelectiveScan(dim, state_dim=state_dim, rank=rank, implementation=implementation, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        x = jax.nn.silu(self.conv1d(x, reverse=self.reverse))
        return self.scan(x[:, None], self.scan.project(x).swapaxes(1, 2), reverse=self.reverse)[:, 0]


class BidirectionalMamba(nnx.Module):
    """Projection, the scans of both directions, a gate, projection; a map is read by rows.

    As in the authors' code (`bimamba_type="v2"`) each direction has a convolution and parameters of
    its own, and the gate is SiLU of a second part of the projection; `average` takes the mean of
    the directions (`if_divide_out`), which all published models do, in place of their sum.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        state_dim: Count = 16,  # numbers that a channel remembers
        ratio: Ratio = 2.0,  # channels that are scanned / dim
        rank: Count | None = None,  # numbers from which the steps of all channels are made; None: dim / 16, rounded up
        kernel_size: Side = 4,  # tokens that the causal convolutions see
        average: bool = True,
        implementation: str | None = None,  # a key of selective_scan.IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused; every mixer accepts num_heads
        hidden = int(ratio * dim)
        if hidden < 1:
            raise ValueError(f"{ratio=} of {dim=} channels must be at least one")
        self.average = average
        self.in_proj = Linear(dim, 2 * hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.forward, self.backward = (
            Direction(
                hidden,
                state_dim=state_dim,
                rank=rank or math.ceil(dim / 16),
                kernel_size=kernel_size,
                reverse=reverse,
                implementation=implementation,
                dtype=dtype,
                rngs=rngs,
            )
            for reverse in (False, True)
        )
        self.out_proj = Linear(hidden, dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
        y, z = jnp.split(self.in_proj(x.reshape(x.shape[0], -1, x.shape[-1])), 2, axis=-1)
        y = (self.forward(y) + self.backward(y)) * jax.nn.silu(z)
        return self.out_proj(y / 2 if self.average else y).reshape(x.shape)
