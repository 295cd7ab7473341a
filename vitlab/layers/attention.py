"""Multi-head self-attention over all tokens (Vaswani et al., arXiv:1706.03762, eq. 1)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.target import platform
from vitlab.layers.linear import Linear
from vitlab.layers.tensor_split import project_qkv


def head_dim_of(dim: int, num_heads: int) -> int:
    """Width of a head, dim / num_heads.

    Raises:
      ValueError: There are no heads, or they do not divide the width.
    """
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"{dim=} must be a multiple of {num_heads=}")
    return dim // num_heads


def dot_product_attention(
    query: Float[Array, "b n heads head_dim"],
    key: Float[Array, "b m heads head_dim"],
    value: Float[Array, "b m heads head_dim"],
    bias: Float[Array, "#b heads n m"] | None = None,
    *,
    scale: float | None = None,  # None: head_dim ** -0.5
    implementation: Literal["xla", "cudnn"] | None = None,
) -> Float[Array, "b n heads head_dim"]:
    """`jax.nn.dot_product_attention`; softmax in float32.

    On CPUs the heads lead the tokens meanwhile and the queries are scaled instead of the logits, which takes two thirds of the time.
    """
    if implementation is not None or platform() != "cpu":
        return jax.nn.dot_product_attention(query, key, value, bias, scale=scale, implementation=implementation)
    q, k, v = (x.swapaxes(1, 2) for x in (query, key, value))
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * factor, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    weights = jax.nn.softmax(logits if bias is None else logits + bias)
    return jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v).swapaxes(1, 2)


class Attention(nnx.Module):
    """Every token attends to every token; softmax in float32.

    The projection is laid out [3, heads, head_dim], as in timm, so that checkpoints map one to one.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        qkv_bias: bool = True,
        implementation: Literal["xla", "cudnn"] | None = None,  # of jax.nn.dot_product_attention
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads)
        self.implementation: Literal["xla", "cudnn"] | None = implementation
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        b, n, d = x.shape
        qkv = project_qkv(self.qkv, x, num_heads=self.num_heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        out = dot_product_attention(query, key, value, implementation=self.implementation)
        return self.proj(out.reshape(b, n, d))
