"""Cascaded group attention (EfficientViT, Liu et al., arXiv:2305.07027, section 2.2)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, Side
from vitlab.layers.attention import head_dim_of
from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.initial import full
from vitlab.layers.narrow_attention import narrow_attention
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.roles import declare


class CascadedGroupAttention(nnx.Module):
    """Each head attends on its own share of the channels, plus the output of the head before it.

    Attention is inside windows of `window_size`; a map no larger is one window. Each head has a
    bias for every pair of distances |dy|, |dx|. As in the authors' code, a map that is not whole
    windows is padded with zeros, and padding takes part as keys.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        window_size: Side = 7,  # tokens per side
        key_dim: Count = 16,
        kernel_sizes: tuple[Side, ...] = (7, 5, 3, 3),  # sides of the depthwise kernels on the heads' queries; the last one repeats
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        head_dim = head_dim_of(dim, num_heads)
        self.window_size, self.key_dim = window_size, key_dim
        kernels = (*kernel_sizes, *(kernel_sizes[-1:] * num_heads))[:num_heads]
        self.qkvs = nnx.List([ConvNorm(head_dim, 2 * key_dim + head_dim, dtype=dtype, rngs=rngs) for _ in kernels])
        self.dws = nnx.List([ConvNorm(key_dim, key_dim, kernel_size=k, groups=key_dim, dtype=dtype, rngs=rngs) for k in kernels])
        self.proj = ConvNorm(dim, dim, zero_init=True, dtype=dtype, rngs=rngs)
        # The table is indexed [head, |dy|, |dx|].
        self.attention_biases = declare(nnx.Param(full((num_heads, window_size, window_size), 0.0)), "position")

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        s = self.window_size
        if h <= s and w <= s:
            return self._attend(x, train=train)
        x = pad_to_multiple(x, s)
        rows, cols = x.shape[1] // s, x.shape[2] // s
        x = x.reshape(b, rows, s, cols, s, c).swapaxes(2, 3).reshape(-1, s, s, c)
        x = self._attend(x, train=train)
        return x.reshape(b, rows, cols, s, s, c).swapaxes(2, 3).reshape(b, rows * s, cols * s, c)[:, :h, :w]

    def _attend(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        outs = []
        for i, part in enumerate(jnp.split(x, len(self.qkvs), -1)):
            part = part + outs[-1] if outs else part
            q, k, v = jnp.split(self.qkvs[i](part, train=train), (self.key_dim, 2 * self.key_dim), -1)
            q, k, v = (y.reshape(b, h * w, -1) for y in (self.dws[i](q, train=train), k, v))
            outs.append(narrow_attention(q, k, v, self._bias(i, h, w)).reshape(b, h, w, -1))
        return self.proj(jax.nn.relu(jnp.concatenate(outs, -1)), train=train)

    def _bias(self, head: int, h: int, w: int) -> Float[Array, "queries keys"]:
        rows, cols = (np.abs(np.arange(n)[:, None] - np.arange(n)) for n in (h, w))
        bias = self.attention_biases[...][head][rows[:, None, :, None], cols[None, :, None, :]]
        return bias.reshape(h * w, h * w)
