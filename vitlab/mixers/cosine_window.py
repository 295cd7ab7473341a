"""Scaled cosine window attention (Swin v2, Liu et al., arXiv:2111.09883, section 3)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.window_attention import window_attention
from vitlab.bounds import Side, SideOrZero
from vitlab.layers.attention import head_dim_of
from vitlab.layers.initial import full
from vitlab.layers.linear import Linear
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.roles import declare

_MAX_LOG_SCALE = float(np.log(100.0))
_MLP_DIM = 512


class CosineWindowAttention(nnx.Module):
    """Shifted-window attention with cosine logits, a learned scale and a position bias from an MLP.

    Windows, padding and shift are those of `WindowAttention`. The bias is 16 * sigmoid(mlp(sign(d)
    log2(1 + 8 |d|) / 3)), where d is an offset divided by the window's side less one (the
    pre-training window's side, if `pretrained_window_size` is given). Keys have no projection bias.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: Side = 8,  # tokens per side
        shift: SideOrZero = 0,  # tokens by which the window grid moves to the top left, in [0, window_size)
        pretrained_window_size: SideOrZero | None = None,  # divides the offsets of the bias; None or 0: window_size
        implementation: str | None = None,  # a key of window_attention.IMPLEMENTATIONS; None: the first that can run
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= shift < window_size:
            raise ValueError(f"{shift=} must be in [0, {window_size=})")
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.window_size, self.shift, self.implementation = window_size, shift, implementation
        self.measure = pretrained_window_size or window_size
        self.qkv = Linear(dim, 3 * dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.q_bias, self.v_bias = nnx.Param(full(dim, 0.0)), nnx.Param(full(dim, 0.0))
        self.logit_scale = nnx.Param(full(num_heads, np.log(10.0)))
        self.cpb_fc1 = declare(Linear(2, _MLP_DIM, rngs=rngs), "position")
        self.cpb_fc2 = declare(Linear(_MLP_DIM, num_heads, use_bias=False, rngs=rngs), "position")
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, w, c = x.shape
        x = pad_to_multiple(x, self.window_size)
        qkv = self.qkv(x)
        qkv = qkv + jnp.concatenate((self.q_bias[...], jnp.zeros(c), self.v_bias[...])).astype(qkv.dtype)[None, None, None]
        query, key, value = (part.reshape(*x.shape[:3], self.num_heads, self.head_dim) for part in jnp.split(qkv, 3, -1))
        scale = jnp.exp(jnp.minimum(self.logit_scale[...], _MAX_LOG_SCALE))
        out = window_attention(
            (_normalize(query) * scale[None, None, None, :, None]).astype(value.dtype),
            _normalize(key).astype(value.dtype),
            value,
            window_size=self.window_size,
            shift=(self.shift if h > self.window_size else 0, self.shift if w > self.window_size else 0),
            bias=self.bias_table(),
            scale=1.0,
            implementation=self.implementation,
        )
        return self.proj(out.reshape(x.shape)[:, :h, :w])

    def bias_table(self) -> Float[Array, "heads rows cols"]:
        """Returns the bias of each offset, indexed [head, query - key + window_size - 1]."""
        offset = np.arange(1 - self.window_size, self.window_size, dtype=np.float32) * 8 / max(1, self.measure - 1)
        offset = np.sign(offset) * np.log2(np.abs(offset) + 1) / np.log2(8)
        coordinates = jnp.asarray(np.stack(np.meshgrid(offset, offset, indexing="ij"), -1))
        table = self.cpb_fc2(jax.nn.relu(self.cpb_fc1(coordinates)))
        return 16 * jax.nn.sigmoid(table).transpose(2, 0, 1)


def _normalize(x: Float[Array, "b h w heads head_dim"]) -> Float[Array, "b h w heads head_dim"]:
    """Scales vectors to unit length, in float32; a zero vector stays zero."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
