"""2-D selective scan of a deformable convolution (DSS2D of HRVMamba, Zhang et al.,
arXiv:2410.03174, section 3.3).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Ratio
from vitlab.layers.deform_conv_v4 import DeformConvV4
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.selective_scan import SelectiveScan, cross_scan
from vitlab.layers.squeeze_excite import SqueezeExcite

EPS = 1e-5  # epsilon of the LayerNorm


class DeformableScan(nnx.Module):
    """Projection, deformable convolution, SiLU, scans in four orders, LayerNorm, gates of the
    channels, projection.

    The gates are those of the authors' tiny and nano networks; their base and small ones have none.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        state_dim: Count = 1,  # numbers that a channel of an order remembers
        ratio: Ratio = 2.0,  # channels that are scanned / dim
        local_offsets: bool = False,  # whether offsets are predicted from a depthwise convolution
        reduction: CountOrZero = 8,  # channels / hidden width of their gates; 0: no gates
        implementation: str | None = None,  # a key of selective_scan.IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused; every mixer accepts num_heads
        hidden, rank, options = int(ratio * dim), math.ceil(dim / 16), {"dtype": dtype, "rngs": rngs}
        if hidden < 1 or hidden % rank:
            raise ValueError(f"{ratio=} of {dim=} channels must be a multiple of {rank=}, the groups of the convolution")
        self.in_proj = Linear(dim, hidden, use_bias=False, **options)
        self.conv2d = DeformConvV4(hidden, groups=rank, local_offsets=local_offsets, **options)
        self.scan = SelectiveScan(hidden, groups=4, state_dim=state_dim, rank=rank, implementation=implementation, **options)
        self.out_norm = LayerNorm(hidden, eps=EPS, **options)
        self.se = SqueezeExcite(hidden, hidden=max(1, hidden // reduction), use_bias=False, **options) if reduction else None
        self.out_proj = Linear(hidden, dim, use_bias=False, **options)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = self.out_norm(cross_scan(self.scan, jax.nn.silu(self.conv2d(self.in_proj(x)))))
        return self.out_proj(y if self.se is None else self.se(y))
