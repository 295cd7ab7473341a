"""Shifted-window attention with position bias (Swin, Liu et al., arXiv:2103.14030, section 3.2)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.window_attention import window_attention_qkv
from vitlab.bounds import Side, SideOrZero
from vitlab.layers.attention import head_dim_of
from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.normed import fused_linear, is_fused
from vitlab.layers.roles import declare
from vitlab.layers.tensor_split import project_qkv


class WindowAttention(nnx.Module):
    """Attention inside square windows, whose grid is moved by `shift`; any size.

    As in the authors' detection code, a map that is not whole windows is padded with zeros at the
    bottom and right before the projection, so that the keys of padding are the projection's bias.
    After the shift, tokens that were not neighbours do not attend to each other (their logits are
    lowered by 100). An axis of at most one window is not shifted, as in the authors' classification
    code.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: Side = 7,  # tokens per side
        shift: SideOrZero = 0,  # tokens by which the grid moves to the top left; 0 or window_size // 2 in published models
        qkv_bias: bool = True,
        rel_pos: bool = True,  # True: a trainable bias for each relative position
        implementation: str | None = None,  # a key of window_attention.QKV_IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= shift < window_size:
            raise ValueError(f"{shift=} must be in [0, {window_size=})")
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads)
        self.window_size = window_size
        self.shift = shift
        self.implementation = implementation
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias, dtype=dtype, rngs=rngs)
        side = 2 * window_size - 1
        # The table is indexed [head, query - key].
        self.rel_pos_bias = declare(nnx.Param(normal_init(rngs.params(), (num_heads, side, side))), "position") if rel_pos else None
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, norm: LayerNorm | None = None, residual: bool = False) -> Float[Array, "b h w c"]:
        """Attention of x, or of norm(x); with `residual` x is added."""
        _, h, w, c = x.shape
        pads = ((0, 0), (0, -h % self.window_size), (0, -w % self.window_size), (0, 0))
        if not any(map(any, pads)) and is_fused(x, norm, self.qkv):
            qkv, x = fused_linear(x, norm, self.qkv, passes=residual)
            qkv = qkv.reshape(*x.shape[:-1], 3, self.num_heads, self.head_dim)
        else:
            qkv = project_qkv(self.qkv, jnp.pad(x if norm is None else norm(x), pads), num_heads=self.num_heads)
        out = window_attention_qkv(
            qkv,
            window_size=self.window_size,
            shift=(self.shift if h > self.window_size else 0, self.shift if w > self.window_size else 0),
            bias=None if self.rel_pos_bias is None else self.rel_pos_bias[...],
            implementation=self.implementation,
        )
        out = out.reshape(*out.shape[:3], c)[:, :h, :w]
        out = fused_linear(out, None, self.proj)[0] if is_fused(out, None, self.proj) else self.proj(out)
        return x + out if residual else out
