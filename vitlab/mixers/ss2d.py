"""2-D selective scan (SS2D; VMamba, Liu et al., arXiv:2401.10166, section 4.2)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, Ratio, SideOrZero
from vitlab.layers.conv import Conv
from vitlab.layers.initial import torch_uniform
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.selective_scan import SelectiveScan, cross_scan

EPS = 1e-5  # epsilon of the LayerNorm


class SS2D(nnx.Module):
    """Projection, depthwise convolution, SiLU, scans in four orders, LayerNorm, projection.

    The results of the orders are summed. Without a gate it is what VMamba's second version calls
    `v05_noz`; with one (`v05`) the normalised sum is multiplied by SiLU of a second projection.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        state_dim: Count = 1,  # numbers that a channel of an order remembers
        ratio: Ratio = 1.0,  # channels that are scanned / dim
        rank: Count | None = None,  # numbers from which the steps of all channels are made; None: dim / 16, rounded up
        kernel_size: SideOrZero = 3,  # tokens per side of the convolution; 0: none
        conv_bias: bool = False,
        gate: bool = False,
        implementation: str | None = None,  # a key of selective_scan.IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused; every mixer accepts num_heads
        hidden = int(ratio * dim)
        if hidden < 1:
            raise ValueError(f"{ratio=} of {dim=} channels must be at least one")
        self.gate = gate
        self.in_proj = Linear(dim, hidden * (1 + gate), use_bias=False, dtype=dtype, rngs=rngs)
        options = {"use_bias": conv_bias, "kernel_init": torch_uniform, "dtype": dtype}
        self.conv2d = Conv(hidden, hidden, kernel_size=kernel_size, groups=hidden, **options, rngs=rngs) if kernel_size > 1 else None
        rank = rank or math.ceil(dim / 16)
        self.scan = SelectiveScan(hidden, groups=4, state_dim=state_dim, rank=rank, implementation=implementation, dtype=dtype, rngs=rngs)
        self.out_norm = LayerNorm(hidden, eps=EPS, dtype=dtype, rngs=rngs)
        self.out_proj = Linear(hidden, dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x, *z = jnp.split(self.in_proj(x), 1 + self.gate, axis=-1)
        y = self.out_norm(cross_scan(self.scan, jax.nn.silu(x if self.conv2d is None else self.conv2d(x))))
        return self.out_proj(y * jax.nn.silu(z[0]) if self.gate else y)
