"""Multi-head self-attention over all tokens (Vaswani et al., arXiv:1706.03762, eq. 1)."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.attention import attention, attention_qkv
from pallas_kernels.target import platform
from vitlab.layers.initial import full
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.normed import fused_linear, is_fused
from vitlab.layers.rope import Rope, rotate
from vitlab.layers.tensor_split import project_qkv


def head_dim_of(dim: int, num_heads: int) -> int:
    """Width of a head, dim / num_heads.

    Raises:
      ValueError: `num_heads` is below 1 or does not divide `dim`.
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
    implementation: str | None = None,  # a key of pallas_kernels.attention.IMPLEMENTATIONS; None: the fastest that applies
) -> Float[Array, "b n heads head_dim"]:
    """`pallas_kernels.attention.attention` from every query to every key; softmax in float32."""
    return attention(query, key, value, bias=bias, scale=scale, implementation=implementation)


class Attention(nnx.Module):
    """Self-attention of all tokens; softmax in float32.

    The projection is laid out [3, heads, head_dim], as in timm, so that checkpoints map one to one.
    On a TPU its bias is added inside a kernel, the projection's or the attention's: outside a
    kernel, the bias's gradient would cost a pass over that of the projection.

    With rotary positions queries and keys are rotated before their product. Without `key_bias` only
    queries and values have a bias (BEiT, arXiv:2106.08254). With `norm_eps` a LayerNorm over all
    heads precedes the output projection (EVA-02, arXiv:2303.11331, section 2).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        qkv_bias: bool = True,
        key_bias: bool = True,
        proj_bias: bool = True,
        norm_eps: float | None = None,
        implementation: str | None = None,  # a key of pallas_kernels.attention.IMPLEMENTATIONS; None: the fastest that applies
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.head_dim = head_dim_of(dim, num_heads)
        self.implementation = implementation
        self.qkv = Linear(dim, 3 * dim, use_bias=qkv_bias and key_bias, dtype=dtype, rngs=rngs)
        apart = qkv_bias and not key_bias
        self.q_bias = nnx.Param(full(dim, 0.0)) if apart else None
        self.v_bias = nnx.Param(full(dim, 0.0)) if apart else None
        self.norm = None if norm_eps is None else LayerNorm(dim, eps=norm_eps, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, use_bias=proj_bias, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        norm: LayerNorm | None = None,  # applied to x before attention
        residual: bool = False,  # whether x is added to the result
        rope: Rope | None = None,
        table: Float[Array, "2 n head_dim"] | None = None,  # rotations of `vitlab.layers.rope.rotation`, needed with `rope`
        bias: Float[Array, "heads n n"] | None = None,  # added to the logits
        is_causal: bool = False,  # whether a token attends to itself and those before it only; not with `rope`
    ) -> Float[Array, "b n d"]:
        """Returns attention of x, or of norm(x)."""
        b, n, d = x.shape
        heads, qkv_bias = (3, self.num_heads, self.head_dim), None
        if is_fused(x, norm, self.qkv):
            qkv, x = fused_linear(x, norm, self.qkv, passes=residual)
            qkv = qkv.reshape(b, n, *heads)
        else:
            if self.qkv.bias is not None and platform() == "tpu" and rope is None:
                qkv_bias = self.qkv.bias[...].reshape(heads)
            qkv = project_qkv(self.qkv, x if norm is None else norm(x), num_heads=self.num_heads, add_bias=qkv_bias is None)
        if self.q_bias is not None and self.v_bias is not None:
            parts = (self.q_bias[...], jnp.zeros(d, self.q_bias[...].dtype), self.v_bias[...])
            qkv += jnp.stack(parts).reshape(1, 1, *heads).astype(qkv.dtype)
        if rope is not None and table is not None:
            query_and_key = rotate(qkv[:, :, :2], table, halves=rope == "dinov3")
            out = dot_product_attention(
                query_and_key[:, :, 0], query_and_key[:, :, 1], qkv[:, :, 2], bias, implementation=self.implementation
            )
        else:
            out = attention_qkv(qkv, qkv_bias=qkv_bias, bias=bias, is_causal=is_causal, implementation=self.implementation)
        out = out.reshape(b, n, d)
        out = out if self.norm is None else self.norm(out)
        out = fused_linear(out, None, self.proj)[0] if is_fused(out, None, self.proj) else self.proj(out)
        return x + out if residual else out
