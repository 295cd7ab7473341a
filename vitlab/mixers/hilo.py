"""HiLo attention (LITv2, Pan et al., arXiv:2205.13213, section 4.1)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Share, Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.linear import Linear
from vitlab.layers.pad import pad_to_multiple


class HiLo(nnx.Module):
    """Some heads attend inside small windows (Hi-Fi), others to the means of all windows (Lo-Fi).

    The output concatenates Hi-Fi's channels and Lo-Fi's, each with a projection of its own. With
    windows of one token, Lo-Fi has all heads and is global attention. As in the authors' detection
    code, a map that is not whole windows is padded with zeros, and padding takes part as keys.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: Side = 2,  # tokens per side
        alpha: Share = 0.9,  # share of the heads in Lo-Fi, rounded down; 0: all are Hi-Fi, 1: all are Lo-Fi
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= alpha <= 1:
            raise ValueError(f"{alpha=} must be in [0, 1]")
        self.head_dim = head_dim_of(dim, num_heads)
        self.window_size = window_size
        self.lo_heads = num_heads if window_size == 1 else int(num_heads * alpha)
        self.hi_heads = num_heads - self.lo_heads
        lo_dim, hi_dim = self.lo_heads * self.head_dim, self.hi_heads * self.head_dim
        if self.lo_heads:
            self.l_q = Linear(dim, lo_dim, dtype=dtype, rngs=rngs)
            self.l_kv = Linear(dim, 2 * lo_dim, dtype=dtype, rngs=rngs)
            self.l_proj = Linear(lo_dim, lo_dim, dtype=dtype, rngs=rngs)
        if self.hi_heads:
            self.h_qkv = Linear(dim, 3 * hi_dim, dtype=dtype, rngs=rngs)
            self.h_proj = Linear(hi_dim, hi_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, w, _ = x.shape
        x = pad_to_multiple(x, self.window_size)
        parts = ([self._hi(x)] if self.hi_heads else []) + ([self._lo(x)] if self.lo_heads else [])
        return jnp.concatenate(parts, -1)[:, :h, :w]

    def _hi(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w hi"]:
        b, h, w, c = x.shape
        s = self.window_size
        windows = x.reshape(b, h // s, s, w // s, s, c).swapaxes(2, 3).reshape(-1, s * s, c)
        qkv = self.h_qkv(windows).reshape(-1, s * s, 3, self.hi_heads, self.head_dim)
        out = dot_product_attention(*(qkv[:, :, i] for i in range(3)))
        out = out.reshape(b, h // s, w // s, s, s, -1).swapaxes(2, 3).reshape(b, h, w, -1)
        return self.h_proj(out)

    def _lo(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w lo"]:
        b, h, w, c = x.shape
        s = self.window_size
        pooled = x.reshape(b, h // s, s, w // s, s, c).mean((2, 4)) if s > 1 else x
        q = self.l_q(x).reshape(b, h * w, self.lo_heads, self.head_dim)
        kv = self.l_kv(pooled).reshape(b, -1, 2, self.lo_heads, self.head_dim)
        out = dot_product_attention(q, kv[:, :, 0], kv[:, :, 1])
        return self.l_proj(out.reshape(b, h, w, -1))
