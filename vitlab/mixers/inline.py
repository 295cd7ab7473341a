"""Injective linear attention (InLine, Han et al., arXiv:2412.06590, section 4)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import head_dim_of
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import torch_uniform
from vitlab.layers.linear import Linear


class InLineAttention(nnx.Module):
    """Linear attention whose weights sum to one by subtraction (eq. 5), plus a convolution (eq. 8).

    The weight of a key is scale/n * query . key, less the mean of these over keys, plus 1/n.
    Different queries never get equal weights, and no division normalises them. As in the authors'
    code, scale is head_dim ** -0.5, which the paper omits. The 3x3 depthwise kernels differ between
    images: two grouped linear maps make them from the mean token. The cost is linear in the number
    of tokens; any size.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        fused: bool = True,  # one projection for queries, keys and values; else queries have their own, as in the PVT variants
        lepe: bool = False,  # whether a convolution with kernels of its own is added too, as in the CSWin variants
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs) if fused else None
        self.q = None if fused else Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = None if fused else Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.residual1, self.residual2 = (
            Conv(dim, width, kernel_size=1, groups=num_heads, kernel_init=torch_uniform, dtype=dtype, rngs=rngs) for width in (dim, 9 * dim)
        )
        conv = {"kernel_size": 3, "groups": dim, "kernel_init": torch_uniform, "dtype": dtype}
        self.lepe = Conv(dim, dim, **conv, rngs=rngs) if lepe else None

    def __call__(self, x: Float[Array, "b h w c"], chooses: Float[Array, "b c"] | None = None) -> Float[Array, "b h w c"]:
        """Attention over the map; the kernels come from `chooses`, or else from the mean token."""
        b, h, w, c = x.shape
        return self.tokens(x.reshape(b, h * w, c), (h, w), chooses).reshape(b, h, w, c)

    def tokens(self, x: Float[Array, "b n d"], grid: tuple[int, int], chooses: Float[Array, "b d"] | None = None) -> Float[Array, "b n d"]:
        """The same for the tokens of a map in row-major order after any class tokens, which the
        convolution does not see.
        """
        b, n, d = x.shape
        first = n - grid[0] * grid[1]
        if self.q is not None and self.kv is not None:
            q, k, v = self.q(x), *jnp.split(self.kv(x), 2, -1)
        else:
            assert self.qkv is not None
            q, k, v = jnp.split(self.qkv(x), 3, -1)
        out = injective_linear(*(y.reshape(b, n, self.num_heads, self.head_dim) for y in (q, k, v))).reshape(b, n, d)
        chooses = x.mean(1) if chooses is None else chooses
        kernels = self.residual2(gelu(self.residual1(chooses[:, None, None]))).reshape(b, d, 3, 3)
        values = v[:, first:].reshape(b, *grid, d)
        local = convolve_each(values, kernels.transpose(0, 2, 3, 1))
        local = local if self.lepe is None else local + self.lepe(values)
        return self.proj(out.at[:, first:].add(local.reshape(b, -1, d)))


def injective_linear(
    query: Float[Array, "b n heads head_dim"], key: Float[Array, "b n heads head_dim"], value: Float[Array, "b n heads head_dim"]
) -> Float[Array, "b n heads head_dim"]:
    """Returns values weighted by eq. 5, computed in float32, in the dtype of the values."""
    n, scale = key.shape[1], key.shape[-1] ** -0.5
    q, k, v = (y.astype(jnp.float32) for y in (query, key, value))
    context = jnp.einsum("bnhk,bnhv->bhkv", k, v) * (scale / n)
    rest = 1 - scale * jnp.einsum("bnhk,bhk->bnh", q, k.mean(1))
    return (jnp.einsum("bnhk,bhkv->bnhv", q, context) + rest[..., None] * v.mean(1)[:, None]).astype(value.dtype)


def convolve_each(x: Float[Array, "b h w c"], kernels: Float[Array, "b rows cols c"]) -> Float[Array, "b h w c"]:
    """Depthwise convolution with odd kernels of each image's own, with zeros beyond the border."""
    _, h, w, _ = x.shape
    rows, cols = kernels.shape[1:3]
    x = jnp.pad(x, ((0, 0), (rows // 2, rows // 2), (cols // 2, cols // 2), (0, 0)))
    taps = [x[:, i : i + h, j : j + w] * kernels[:, i, j][:, None, None] for i in range(rows) for j in range(cols)]
    return sum(taps[1:], start=taps[0])
