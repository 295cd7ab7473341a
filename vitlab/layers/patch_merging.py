"""Swin's down-sampling: four neighbouring tokens become one token of twice the width."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm


class PatchMerging(nnx.Module):
    """Concatenates each 2x2 neighbourhood, normalises, projects 4c -> 2c without bias.

    Swin, Liu et al., arXiv:2103.14030, section 3.1. The four pixels are in the authors' order (row,
    column) = (0,0), (1,0), (0,1), (1,1). An odd side is padded with zeros at the end, as in the
    authors' detection code. With `norm_last` the norm follows the projection (Swin v2).
    """

    def __init__(self, dim: int, *, eps: float = 1e-5, norm_last: bool = False, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.norm_last = norm_last
        self.norm = LayerNorm(2 * dim if norm_last else 4 * dim, eps=eps, dtype=dtype, rngs=rngs)
        self.reduction = Linear(4 * dim, 2 * dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        b, h, w, c = x.shape
        x = jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)))
        x = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)  # b, h2, w2, column, row, c
        x = x.reshape(*x.shape[:3], 4 * c)
        return self.norm(self.reduction(x)) if self.norm_last else self.reduction(self.norm(x))
