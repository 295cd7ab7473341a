"""Single-head attention on some channels (SHViT, Yun and Ro, arXiv:2401.16456, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count
from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.group_norm import GroupNorm
from vitlab.layers.narrow_attention import narrow_attention


class SingleHeadAttention(nnx.Module):
    """proj(relu([attention(norm(x1)), x2])), where x1 is the first `partial_dim` channels.

    Attention is global, over maps of any size. The norm is over channels and positions together
    (one group), with a scale and an offset per channel.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        partial_dim: Count | None = None,  # channels that attend; None: 2 / 9 of dim, about the published share
        key_dim: Count = 16,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused: there is one head; every mixer accepts num_heads
        self.partial_dim = max(1, 2 * dim // 9) if partial_dim is None else partial_dim
        if not 0 < self.partial_dim <= dim:
            raise ValueError(f"{partial_dim=} must be in (0, {dim=}]")
        self.key_dim = key_dim
        self.pre_norm = GroupNorm(self.partial_dim, dtype=dtype, rngs=rngs)
        self.qkv = ConvNorm(self.partial_dim, 2 * key_dim + self.partial_dim, dtype=dtype, rngs=rngs)
        self.proj = ConvNorm(dim, dim, zero_init=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        x1, x2 = jnp.split(x, (self.partial_dim,), -1)
        qkv = self.qkv(self.pre_norm(x1), train=train).reshape(b, h * w, -1)
        q, k, v = jnp.split(qkv, (self.key_dim, 2 * self.key_dim), -1)
        x1 = narrow_attention(q, k, v).reshape(b, h, w, -1)
        return self.proj(jax.nn.relu(jnp.concatenate((x1, x2), -1)), train=train)
