"""Context-mixing dynamic convolution (OverLoCK, Lou and Yu, arXiv:2502.20087, section 3.3)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from vitlab.bounds import Count, Side
from vitlab.layers.attention import head_dim_of
from vitlab.layers.conv_norm import ConvNorm
from vitlab.layers.initial import full
from vitlab.layers.linear import Linear
from vitlab.layers.neighborhood_sum import neighborhood_sum
from vitlab.layers.pool import adaptive_average_pool
from vitlab.layers.resize import resize_bilinear
from vitlab.layers.roles import declare

REGIONS = 7  # rows and columns of the grid of regions that each token is compared with


class ContextMixing(nnx.Module):
    """Dynamic convolution: each token's kernels come from its affinities to 7x7 context regions.

    A linear map turns the affinities of a head into the taps of a small and of a large kernel; a
    bias for the relative position is added, then a softmax over the taps. The first half of the
    value's channels is convolved with the small kernels, the second half with the large ones. As in
    the authors' code, windows at the border are shifted inside the map; queries and keys have half
    the width but the scale (dim / num_heads) ** -0.5; a map smaller than the large kernel is
    enlarged (bilinear) and the result is averaged back to its size.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,  # heads of the small kernels, and as many of the large ones
        context_dim: Count | None = None,  # channels of the context map; None: as many as x has
        kernel_size: Side = 7,  # side of the large kernels, in tokens
        small_size: Side = 5,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if dim % 2 or not 0 < small_size <= kernel_size:
            raise ValueError(f"{dim=} must be even, for two halves, and {small_size=} at most {kernel_size=}")
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim // 2, num_heads)
        self.sizes = (small_size, kernel_size)
        self.query = ConvNorm(dim, dim // 2, dtype=dtype, rngs=rngs)
        self.key = ConvNorm(context_dim or dim, dim // 2, dtype=dtype, rngs=rngs)
        self.taps = Linear(REGIONS**2, small_size**2 + kernel_size**2, dtype=dtype, rngs=rngs)
        self.small_bias, self.large_bias = (
            declare(nnx.Param(full((num_heads, 2 * size - 1, 2 * size - 1), 0.0)), "position") for size in self.sizes
        )
        self.proj = ConvNorm(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b h w c"],
        context: Float[Array, "b h w c2"] | None = None,
        value: Float[Array, "b h w c"] | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Convolves `value` with kernels made of queries from `x` and keys from `context`.

        Both default to `x`.
        """
        size = (x.shape[1], x.shape[2])
        maps = (x, x if context is None else context, x if value is None else value)
        x, context, value = (resize_bilinear(y, _enlarged(*size, self.sizes[1])) for y in maps)
        b, h, w, _ = x.shape
        values = value.reshape(b, h, w, 2, self.num_heads, self.head_dim)
        kernels = self._kernels(x, context, train)
        halves = [neighborhood_sum(kernels[i], values[:, :, :, i], kernel_size=k) for i, k in enumerate(self.sizes)]
        out = jnp.concatenate([half.reshape(b, h, w, -1) for half in halves], -1)
        return self.proj(out if size == (h, w) else adaptive_average_pool(out, size), train=train)

    def _kernels(self, x, context, train: bool) -> list[Float[Array, "b h w heads taps"]]:
        """Returns the taps of the small and of the large kernels; the softmax is float32."""
        b, h, w, _ = x.shape
        q = self.query(x, train=train).reshape(b, h, w, self.num_heads, self.head_dim) * (2 * self.head_dim) ** -0.5
        k = self.key(adaptive_average_pool(context, (REGIONS, REGIONS)), train=train)
        affinity = jnp.einsum("bhwnd,brnd->bhwnr", q, k.reshape(b, REGIONS**2, self.num_heads, self.head_dim))
        logits = jnp.split(self.taps(affinity).astype(jnp.float32), [self.sizes[0] ** 2], -1)
        biases = [expand_bias(table[...], (h, w)) for table in (self.small_bias, self.large_bias)]
        return [jax.nn.softmax(y + bias[None]).astype(x.dtype) for y, bias in zip(logits, biases, strict=True)]


@functools.partial(jax.jit, static_argnames="grid")  # a lookup, written as a product: its gradient has no scatter
def expand_bias(table: Float[Array, "heads rows cols"], grid: tuple[int, int]) -> Float[Array, "h w heads taps"]:
    """Returns the bias of each tap of each token.

    The table is indexed [head, key - query + kernel_size - 1].
    """
    kernel = (table.shape[-1] + 1) // 2
    places = [Axis(side, kernel).windows()[0][0] - np.arange(side) + kernel - 1 for side in grid]
    rows, cols = (((at[:, None] + np.arange(kernel))[..., None] == np.arange(2 * kernel - 1)).astype(np.float32) for at in places)
    return jnp.einsum("nrc,hir,wjc->hwnij", table, rows, cols).reshape(*grid, table.shape[0], -1)


def _enlarged(h: int, w: int, kernel_size: int) -> tuple[int, int]:
    """Returns a size at which the large kernel fits; rounding is that of the authors' code."""
    if min(h, w) >= kernel_size:
        return h, w
    long = max(kernel_size, int(kernel_size / min(h, w) * max(h, w)))
    return (kernel_size, long) if h < w else (long, kernel_size)
