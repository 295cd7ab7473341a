"""Short and long distance attention (CrossFormer, Wang et al., arXiv:2108.00154, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.window_attention import window_attention_qkv
from vitlab.bounds import Side
from vitlab.layers.attention import head_dim_of
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.pad import pad_to_multiple


class DynamicPositionBias(nnx.Module):
    """MLP from the integer offset of two tokens to a bias for each head.

    Four linear maps, with a LayerNorm and a ReLU before each but the first.
    """

    def __init__(self, hidden: int, num_heads: int, *, rngs: nnx.Rngs):
        self.pos_proj = Linear(2, hidden, rngs=rngs)
        self.norms = nnx.List([LayerNorm(hidden, eps=1e-5, rngs=rngs) for _ in range(3)])
        self.layers = nnx.List([Linear(hidden, width, rngs=rngs) for width in (hidden, hidden, num_heads)])

    def __call__(self, group_size: int) -> Float[Array, "heads rows cols"]:
        """Returns the bias table, indexed [head, query - key + group_size - 1]."""
        offset = np.arange(1 - group_size, group_size, dtype=np.float32)
        x = self.pos_proj(jnp.asarray(np.stack(np.meshgrid(offset, offset, indexing="ij"), -1)))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = layer(jax.nn.relu(norm(x)))
        return x.transpose(2, 0, 1)


class LongShortAttention(nnx.Module):
    """Attention in groups of group_size**2 tokens: neighbours, or (`long`) tokens `interval` apart.

    A long distance group lies in a square of group_size * interval tokens per side. A map whose
    shorter side is at most group_size attends in windows of that side, also when `long`. A map that
    is not whole groups is padded at the bottom and right, and the padding is masked.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        group_size: Side = 7,  # tokens per side
        interval: Side = 2,  # distance in tokens between neighbouring members of a long distance group
        long: bool = False,
        implementation: str | None = None,  # a key of window_attention.QKV_IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.group_size, self.interval, self.long, self.implementation = group_size, interval, long, implementation
        self.pos = DynamicPositionBias(max(4, dim // 16), num_heads, rngs=rngs)
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, w, _ = x.shape
        small = min(h, w) <= self.group_size
        qkv = self.qkv(x)
        group = min(h, w) if small else self.group_size
        out = self._far(qkv) if self.long and not small else self._attend(qkv, group, grid=False, mask=None)
        return self.proj(out.reshape(x.shape))

    def _far(self, qkv: Float[Array, "b h w c3"]) -> Float[Array, "b h w heads head_dim"]:
        b, h, w, _ = qkv.shape
        side = self.group_size * self.interval  # side of the square that holds interval**2 interleaved groups, in tokens
        qkv = pad_to_multiple(qkv, side)
        rows, cols = qkv.shape[1] // side, qkv.shape[2] // side
        inside = (np.arange(rows * side) < h)[:, None] & (np.arange(cols * side) < w)
        mask = np.broadcast_to(_squares(inside[None, :, :, None], side)[None], (b, rows * cols, side, side, 1))
        out = self._attend(_squares(qkv, side), self.group_size, grid=True, mask=jnp.asarray(mask.reshape(-1, side, side)))
        out = out.reshape(b, rows, cols, side, side, self.num_heads, self.head_dim).swapaxes(2, 3)
        return out.reshape(b, rows * side, cols * side, self.num_heads, self.head_dim)[:, :h, :w]

    def _attend(self, qkv, group: int, *, grid: bool, mask) -> Float[Array, "b h w heads head_dim"]:
        return window_attention_qkv(
            qkv.reshape(*qkv.shape[:3], 3, self.num_heads, self.head_dim),
            window_size=group,
            grid=grid,
            bias=self.pos(group),
            mask=mask,
            implementation=self.implementation,
        )


def _squares(x, side: int):
    """Reshapes [b, rows * side, cols * side, c] to [b * rows * cols, side, side, c]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3).reshape(-1, side, side, c)
