"""Cross-shaped window attention (CSWin, Dong et al., arXiv:2107.00652, section 3.2)."""

from typing import cast

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.window_attention import window_attention_qkv
from vitlab.bounds import Side
from vitlab.layers.attention import head_dim_of
from vitlab.layers.conv import Conv
from vitlab.layers.initial import torch_uniform
from vitlab.layers.linear import Linear


class CrossShapedAttention(nnx.Module):
    """Half of the heads attend inside vertical stripes, the others inside horizontal ones; a
    convolution of the values is added.

    The convolution does not see beyond its stripe. Stripes that overhang a map see what is there.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,  # even, unless the whole map is one window
        split_size: Side | None = 7,  # width of a stripe, in tokens; None: all heads see the whole map
        implementation: str | None = None,  # a key of pallas_kernels.window_attention.IMPLEMENTATIONS
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        branches = 1 if split_size is None else 2
        self.num_heads, self.head_dim, self.split_size = num_heads, head_dim_of(dim, num_heads), split_size
        self.implementation = implementation
        width = head_dim_of(num_heads, branches) * self.head_dim
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.lepe = nnx.List(
            [Conv(width, width, kernel_size=3, groups=width, kernel_init=torch_uniform, dtype=dtype, rngs=rngs) for _ in range(branches)]
        )
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h, w, 3, self.num_heads, self.head_dim)
        windows = [(h, w)] if self.split_size is None else [(h, self.split_size), (self.split_size, w)]
        outs = []
        for part, window, conv in zip(jnp.split(qkv, len(windows), 4), windows, self.lepe, strict=True):
            out = window_attention_qkv(part, window_size=window, implementation=self.implementation)
            local = convolve_windows(cast(Conv, conv), part[:, :, :, 2].reshape(b, h, w, -1), window)
            outs.append(out.reshape(b, h, w, -1) + local)
        return self.proj(jnp.concatenate(outs, -1))


def convolve_windows(conv: Conv, x: Float[Array, "b h w c"], window: tuple[int, int]) -> Float[Array, "b h w d"]:
    """A convolution of each window by itself, zeros around it."""
    b, h, w, c = x.shape
    rows, cols = -(-h // window[0]), -(-w // window[1])
    x = jnp.pad(x, ((0, 0), (0, rows * window[0] - h), (0, cols * window[1] - w), (0, 0)))
    x = x.reshape(b, rows, window[0], cols, window[1], c).swapaxes(2, 3)
    x = conv(x.reshape(-1, *window, c))
    x = x.reshape(b, rows, cols, *window, -1).swapaxes(2, 3)
    return x.reshape(b, rows * window[0], cols * window[1], -1)[:, :h, :w]
