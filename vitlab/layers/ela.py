"""Efficient local attention (ELA, Xu and Wan, arXiv:2403.01123): gates for rows and columns from
convolved strip means.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.group_norm import GroupNorm
from vitlab.layers.initial import he_normal
from vitlab.layers.widths import check_widths

# Side of the kernel, channels a group of the convolution (0: all are its groups' own, depthwise),
# groups of the norm (table 1).
SIZES = {"tiny": (5, 1, 32), "base": (7, 1, 16), "small": (5, 8, 16), "large": (7, 8, 16)}


class Ela(nnx.Module):
    """x times a gate for its row and one for its column, sigmoids of the normalised convolution of
    the strip means (eq. 4 to 7).

    As in the authors' code rows and columns share the convolution, which has no bias, and the norm.
    The paper's sizes are T, B, S and L of `SIZES`; where the norm's groups do not divide the width,
    the largest common divisor takes their place.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 7,  # positions of a row or column
        group_dim: int = 1,  # channels that the convolution mixes
        num_groups: int = 16,  # groups of the norm
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_widths(dim=dim)
        if dim % group_dim or kernel_size % 2 == 0:
            raise ValueError(f"{dim=} must be a multiple of {group_dim=}, and {kernel_size=} odd")
        groups, pad = dim // group_dim, kernel_size // 2
        self.conv = nnx.Conv(
            dim,
            dim,
            (kernel_size,),
            padding=[(pad, pad)],
            feature_group_count=groups,
            use_bias=False,
            kernel_init=he_normal,
            dtype=dtype,
            rngs=rngs,
        )
        self.gn = GroupNorm(dim, num_groups=math.gcd(num_groups, dim), eps=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return x * self.gate(x.mean(2))[:, :, None] * self.gate(x.mean(1))[:, None]

    def gate(self, strip: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """The gate of each position of a row or column, from its mean."""
        return jax.nn.sigmoid(self.gn(self.conv(strip)))
