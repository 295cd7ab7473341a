"""Deformable convolution of the fourth version (DCNv4, Xiong et al., arXiv:2401.06197)."""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv
from vitlab.layers.deform_conv import sample_bilinear
from vitlab.layers.initial import full
from vitlab.layers.linear import Linear

_SIDE = 3  # taps per side
_TAPS = _SIDE**2
_MULTIPLE = 8  # the authors' kernel wants so many offsets and factors, or a multiple


class DeformConvV4(nnx.Module):
    """Each group of channels sums nine bilinear samples, moved and weighed by what its position
    predicts.

    The factors have no bound, and no softmax, and their layer starts at zero. As in the authors'
    kernel the taps go column by column, and an offset is (dx, dy) in pixels; a group has nine
    offsets and then nine factors. Samples are zero outside of the map.
    """

    def __init__(
        self,
        dim: int,
        *,
        groups: int,  # groups of channels with taps of their own
        local_offsets: bool = False,  # whether a depthwise 3 x 3 convolution precedes the prediction
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if dim % groups:
            raise ValueError(f"{dim=} must be a multiple of {groups=}")
        self.groups = groups
        self.value_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.offset_mask_dw = Conv(dim, dim, kernel_size=3, groups=dim, rngs=rngs) if local_offsets else None
        # Positions in bfloat16 would be off by whole pixels.
        self.offset_mask = Linear(dim, math.ceil(3 * _TAPS * groups / _MULTIPLE) * _MULTIPLE, rngs=rngs)
        self.offset_mask.kernel = nnx.Param(full(self.offset_mask.kernel.shape, 0.0))
        self.output_proj = Linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        guide = x.astype(jnp.float32)
        predicted = self.offset_mask(guide if self.offset_mask_dw is None else self.offset_mask_dw(guide))
        predicted = self._by_group(predicted[..., : 3 * _TAPS * self.groups])  # [b * groups, h, w, 27]
        offsets, factors = jnp.split(predicted, (2 * _TAPS,), axis=-1)
        offsets = offsets.reshape(-1, h, w, _TAPS, 2)
        tap_x, tap_y = np.divmod(np.arange(_TAPS), _SIDE)
        columns = offsets[..., 0] + (np.arange(w)[None, :, None] + tap_x - _SIDE // 2)[None]
        rows = offsets[..., 1] + (np.arange(h)[:, None, None] + tap_y - _SIDE // 2)[None]
        values = self._by_group(self.value_proj(x))
        samples = sample_bilinear(values, rows.reshape(len(rows), -1), columns.reshape(len(rows), -1))
        out = jnp.einsum("ghwkc,ghwk->ghwc", samples.reshape(-1, h, w, _TAPS, values.shape[-1]), factors.astype(x.dtype))
        return self.output_proj(out.reshape(b, self.groups, h, w, -1).transpose(0, 2, 3, 1, 4).reshape(x.shape))

    def _by_group(self, x: Float[Array, "b h w c"]) -> Float[Array, "b_groups h w d"]:
        b, h, w, _ = x.shape
        return x.reshape(b, h, w, self.groups, -1).transpose(0, 3, 1, 2, 4).reshape(b * self.groups, h, w, -1)
