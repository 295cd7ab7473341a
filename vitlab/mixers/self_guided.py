"""Self-guided attention (SG-Former, Ren et al., arXiv:2308.12216, section 3): one attention finds
what the next is guided by.

`HybridScaleAttention` returns a map of significance, by which `SelfGuidedAttention` merges tokens
into keys: many insignificant ones into one, few significant ones. Both add a convolution of the
tokens to the result (LePE).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.resize import resize_nearest

# Reduction of the hybrid attention -> for each group of tokens, the least significant first, its
# share of the tokens (in quarters) and the number of tokens that are merged into a key. Numbers are
# those of maps of 56, 28 and 14 tokens a side.
GROUPS = {8: ((1, 196), (2, 56), (1, 28)), 4: ((1, 49), (2, 14), (1, 7)), 2: ((2, 2), (2, 1))}


class LocalEncoding(nnx.Module):
    """A linear layer and a depthwise 3x3 convolution, which tell attention's result where it is."""

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.linear = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.conv = Conv(dim, dim, kernel_size=3, groups=dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.conv(self.linear(x))


class HybridScaleAttention(nnx.Module):
    """Half of the heads attend to cells of the map, the others inside windows; a map of at least
    `sr_ratio` tokens a side.

    The significance of a token is the mean attention that it gets in its window, plus the mean that
    its cell gets; no gradient goes through it. A map that is not whole windows is padded, and what
    is padded is not seen.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,  # even
        sr_ratio: Side,  # tokens per side of a cell
        window_size: Side = 7,  # tokens per side
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.head_dim, self.num_heads = head_dim_of(dim, num_heads), head_dim_of(num_heads, 2)  # heads of each half
        self.sr_ratio, self.window_size = sr_ratio, window_size
        self.sr = Conv(dim, dim, kernel_size=sr_ratio, stride=sr_ratio, padding=0, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        self.q1, self.q2 = (Linear(dim, dim // 2, dtype=dtype, rngs=rngs) for _ in range(2))
        self.kv1, self.kv2 = (Linear(dim, dim, dtype=dtype, rngs=rngs) for _ in range(2))
        self.lepe = LocalEncoding(dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
        """The result and the significance of each token."""
        coarse, seen_coarse = self._coarse(x)
        local, seen_local = self._local(x)
        out = self.proj(jnp.concatenate((coarse, local), -1) + self.lepe(x))
        return out, jax.lax.stop_gradient(seen_coarse + seen_local)

    def _coarse(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w d"], Float[Array, "b h w"]]:
        b, h, w, _ = x.shape
        cells = gelu(self.norm(self.sr(x)))
        q = self.q1(x).reshape(b, h * w, self.num_heads, self.head_dim)
        k, v = (y.reshape(b, -1, self.num_heads, self.head_dim) for y in jnp.split(self.kv1(cells), 2, -1))
        out, weights = _attend(q, k, v, jnp.ones(k.shape[1], bool))
        seen = weights.mean((1, 2)).reshape(b, *cells.shape[1:3], 1)  # over heads and queries
        return out.reshape(b, h, w, -1), resize_nearest(seen, (h, w))[..., 0]

    def _local(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w d"], Float[Array, "b h w"]]:
        b, h, w, _ = x.shape
        side = self.window_size
        real = _windows(pad_to_multiple(jnp.ones((1, h, w, 1)), side), side)[..., 0] > 0  # [windows, tokens]
        q, k, v = (_windows(pad_to_multiple(y, side), side) for y in (self.q2(x), *jnp.split(self.kv2(x), 2, -1)))
        q, k, v = (y.reshape(*y.shape[:2], self.num_heads, self.head_dim) for y in (q, k, v))
        real = jnp.tile(real, (b, 1))
        out, weights = _attend(q, k, v, real)
        queries = real[:, None, :, None]
        seen = jnp.where(queries, weights, 0).sum((1, 2)) / (self.num_heads * queries.sum((1, 2)))
        maps = (_map(y, (b, h, w), side) for y in (out.reshape(*out.shape[:2], -1), seen[..., None]))
        return next(maps), next(maps)[..., 0]


class SelfGuidedAttention(nnx.Module):
    """Every token attends to keys merged from tokens in the order of their significance.

    Half of the heads see the tokens sorted from the map's rows, the others from its columns;
    merging is a learned sum for each group. Of a number of tokens that the groups do not divide,
    the least significant are padded with zeros.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,  # even
        sr_ratio: Side,  # a key of GROUPS
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim, self.groups = num_heads, head_dim_of(dim, num_heads), GROUPS[sr_ratio]
        self.q = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv1, self.kv2 = (Linear(dim, dim, dtype=dtype, rngs=rngs) for _ in range(2))
        self.merges = nnx.List([Linear(count, 1, dtype=dtype, rngs=rngs) for _, count in self.groups])
        self.lepe = LocalEncoding(dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], significance: Float[Array, "b h w"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        by_rows = self.kv1(self._merged(x, significance))
        by_cols = self.kv2(self._merged(x.swapaxes(1, 2), significance.swapaxes(1, 2)))
        kv = jnp.stack([y.reshape(b, -1, 2, self.num_heads // 2, self.head_dim) for y in (by_rows, by_cols)], 3)
        kv = kv.reshape(b, -1, 2, self.num_heads, self.head_dim)
        q = self.q(x).reshape(b, h * w, self.num_heads, self.head_dim)
        out = dot_product_attention(q, kv[:, :, 0], kv[:, :, 1]).reshape(b, h, w, c)
        return self.proj(out + self.lepe(x))

    def _merged(self, x: Float[Array, "b h w c"], significance: Float[Array, "b h w"]) -> Float[Array, "b keys c"]:
        b, _, _, c = x.shape
        tokens = jnp.take_along_axis(x.reshape(b, -1, c), jnp.argsort(significance.reshape(b, -1), 1)[..., None], 1)
        share, count = self.groups[0]  # the largest number merged; the others divide what it divides
        tokens = jnp.pad(tokens, ((0, 0), (-tokens.shape[1] % (4 * count // share), 0), (0, 0)))
        quarter, start, keys = tokens.shape[1] // 4, 0, []
        for (share, count), merge in zip(self.groups, self.merges, strict=True):
            group = tokens[:, start : start + share * quarter].reshape(b, -1, count, c)
            keys.append(merge(group.swapaxes(2, 3))[..., 0])
            start += share * quarter
        return jnp.concatenate(keys, 1)


def _attend(q, k, v, seen) -> tuple[Float[Array, "b n heads d"], Float[Array, "b heads n m"]]:
    """Attention to the keys that are seen, [m] or [b, m], and its weights; softmax in float32."""
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(seen.reshape(-1, 1, 1, seen.shape[-1]), logits, -jnp.inf))
    return jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v), weights


def _windows(x: Array, side: int) -> Array:
    """[b, h, w, c] to [b * windows, side * side, c]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3).reshape(-1, side * side, c)


def _map(x: Array, shape: tuple[int, int, int], side: int) -> Array:
    """The map [b, h, w, c] of windows, without what was padded."""
    b, h, w = shape
    x = x.reshape(b, -(-h // side), -(-w // side), side, side, x.shape[-1]).swapaxes(2, 3)
    return x.reshape(b, x.shape[1] * side, -1, x.shape[-1])[:, :h, :w]
