"""Blocked local attention with halos (HaloNet, Vaswani et al., arXiv:2103.12731, section 2.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, Side, SideOrZero
from vitlab.layers.attention import head_dim_of
from vitlab.layers.initial import normal
from vitlab.layers.linear import Linear
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.roles import declare


class HaloAttention(nnx.Module):
    """A block of queries attends to itself and to a halo of tokens around it.

    Each relative position has a learned key. As in timm's port, keys of a halo outside the map are
    zeros that take part in the softmax, and no projection follows. A map that is not whole blocks
    (which timm refuses) is padded with zeros at the bottom and right. With `stride` 2 every second
    token is a query; relative positions then count in queries on the query's side and in keys on
    the key's side, as in timm.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        block_size: Side = 8,  # tokens per side of a block
        halo_size: SideOrZero = 3,  # width of the halo around a block, in tokens
        stride: Side = 1,
        value_dim: Count | None = None,  # width of the output, over all heads; None: dim
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if block_size % stride:
            raise ValueError(f"{block_size=} must be a multiple of {stride=}")
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.value_dim = dim if value_dim is None else value_dim
        head_dim_of(self.value_dim, num_heads)
        self.block_size, self.halo_size, self.stride = block_size, halo_size, stride
        self.q = Linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.kv = Linear(dim, dim + self.value_dim, use_bias=False, dtype=dtype, rngs=rngs)  # per head: key, then value
        init, shape = normal(self.head_dim**-0.5), (2 * self.window_size - 1, self.head_dim)
        # Row i is position key - query = i - (window_size - 1).
        self.height_rel = declare(nnx.Param(init(rngs.params(), shape)), "position")
        self.width_rel = declare(nnx.Param(init(rngs.params(), shape)), "position")

    @property
    def window_size(self) -> int:
        """Side of the square of keys that a block attends to, in tokens."""
        return self.block_size + 2 * self.halo_size

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        b, h, w, _ = x.shape
        x = pad_to_multiple(x, self.block_size)
        rows, cols, side = x.shape[1] // self.block_size, x.shape[2] // self.block_size, self.block_size // self.stride
        query = self.q(x[:, :: self.stride, :: self.stride])
        query = query.reshape(b, rows, side, cols, side, self.num_heads, self.head_dim).swapaxes(2, 3)
        kv = _with_halos(self.kv(x), axis=1, block=self.block_size, halo=self.halo_size)
        kv = _with_halos(kv, axis=3, block=self.block_size, halo=self.halo_size).swapaxes(2, 3)
        kv = kv.reshape(b, rows, cols, self.window_size**2, self.num_heads, -1)
        key, value = kv[..., : self.head_dim], kv[..., self.head_dim :]
        bias = self._relative_logits(query)
        query = query.reshape(b, rows, cols, side**2, self.num_heads, self.head_dim)
        logits = jnp.einsum("brcqnd,brcknd->brcnqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * self.head_dim**-0.5 + bias).astype(value.dtype)
        out = jnp.einsum("brcnqk,brcknd->brcqnd", weights, value).reshape(b, rows, cols, side, side, self.value_dim)
        out = out.swapaxes(2, 3).reshape(b, rows * side, cols * side, self.value_dim)
        return out[:, : -(-h // self.stride), : -(-w // self.stride)]

    def _relative_logits(self, query: Float[Array, "b rows cols y x n d"]) -> Float[Array, "b rows cols n queries keys"]:
        """Returns products of unscaled queries with the keys of their relative positions."""
        b, rows, cols, side, _, n, _ = query.shape
        tables = (self._by_query(table[...], side).astype(query.dtype) for table in (self.height_rel, self.width_rel))
        specs = ("brcyxnd,ykd->brcnyxk", "brcyxnd,xkd->brcnyxk")
        down, across = (jnp.einsum(s, query, t, preferred_element_type=jnp.float32) for s, t in zip(specs, tables, strict=True))
        return (down[..., :, None] + across[..., None, :]).reshape(b, rows, cols, n, side**2, self.window_size**2)

    def _by_query(self, table: Float[Array, "positions d"], side: int) -> Float[Array, "side keys d"]:
        last = self.window_size - 1
        return jnp.stack([table[last - i : 2 * last + 1 - i] for i in range(side)])


def _with_halos(x: Float[Array, "*shape"], *, axis: int, block: int, halo: int) -> Float[Array, "*other"]:
    """Splits an axis into overlapping pieces, [blocks, block + 2 halo], from slices alone.

    Slices need neither gather nor, in the gradient, scatter.
    """
    count, more = x.shape[axis] // block, -(-2 * halo // block)  # a piece spans at most 1 + more blocks of the padded axis
    widths = [(0, 0)] * x.ndim
    widths[axis] = (halo, more * block - halo)
    x = jnp.pad(x, widths)
    x = x.reshape(*x.shape[:axis], count + more, block, *x.shape[axis + 1 :])
    pieces = jnp.concatenate([lax.slice_in_dim(x, i, i + count, axis=axis) for i in range(1 + more)], axis + 1)
    return lax.slice_in_dim(pieces, 0, block + 2 * halo, axis=axis + 1)
