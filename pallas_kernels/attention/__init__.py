"""Attention from every query to every key, with bias, mask, causal order and grouped heads."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, overload

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.attention import gpu, pallas_tpu, reference, xla
from pallas_kernels.dispatch import Implementation, UnsupportedError, dispatch
from pallas_kernels.sharding import varying_like

__all__ = ["IMPLEMENTATIONS", "QKV_IMPLEMENTATIONS", "UnsupportedError", "attention", "attention_qkv", "canonical"]

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "pallas_tpu": Implementation(pallas_tpu.attention, pallas_tpu.unsupported_reason),  # scores stay on chip, no copies; TPUs only
    "cudnn": Implementation(gpu.attention, gpu.unsupported_reason),  # scores stay on chip; 16 bits, NVIDIA GPUs only
    "xla": Implementation(xla.attention, xla.unsupported_reason),  # any device; scores go to memory and back
    "reference": Implementation(reference.attention, reference.unsupported_reason),  # the definition, float32 in full precision
}


def _of_parts(fn: Callable[..., Any]) -> Callable[..., Any]:
    def of_projection(qkv, qkv_bias=None, **options):
        if qkv_bias is not None:
            qkv = qkv + qkv_bias.astype(qkv.dtype)[None, None]
        return fn(*(qkv[:, :, i] for i in range(3)), **options)

    return of_projection


# Implementations that take the fused projection to query, key and value.
QKV_IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "pallas_tpu": Implementation(pallas_tpu.attention_qkv, pallas_tpu.unsupported_reason),
    "cudnn": Implementation(_of_parts(gpu.attention), gpu.unsupported_reason),
    "xla": Implementation(_of_parts(xla.attention), xla.unsupported_reason),
    "reference": Implementation(_of_parts(reference.attention), reference.unsupported_reason),
}


@overload
def attention(
    query, key, value, *, bias=..., mask=..., is_causal=..., scale=..., return_logsumexp: Literal[False] = ..., implementation=...
) -> Array: ...
@overload
def attention(
    query, key, value, *, bias=..., mask=..., is_causal=..., scale=..., return_logsumexp: Literal[True], implementation=...
) -> tuple[Array, Array]: ...
def attention(
    query: Float[Array, "b n heads head_dim"],
    key: Float[Array, "b m kv_heads head_dim"],
    value: Float[Array, "b m kv_heads head_dim"],
    *,
    bias: Float[Array, "... n m"] | None = None,
    mask: Bool[Array, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    return_logsumexp: bool = False,
    implementation: str | None = None,
):
    """Attends from each query to all keys of its image.

    Scaled dot-product attention (Vaswani et al., arXiv:1706.03762, eq. 1). Heads may share keys and
    values in groups (Ainslie et al., arXiv:2305.13245).

    Args:
      query: n tokens.
      key: m tokens, in the dtype of query; query head i attends to key head i // (heads /
        kv_heads).
      value: m tokens, in the dtype of query.
      bias: Added to the logits before softmax, [n, m] with up to two leading axes that broadcast to
        [b, heads].
      mask: False where a query must not see a key, in a shape that broadcasts to [b, heads, n, m].
        A query that sees no key gets zeros; a key that no query sees may hold any values, NaN
        included.
      is_causal: Query i sees the keys 0 to i only.
      scale: Factor on query . key; head_dim ** -0.5 by default.
      return_logsumexp: Whether to return the natural logarithm of the sum of exp(logits) over the
        keys too.
      implementation: A key of IMPLEMENTATIONS, or None for the fastest that applies.

    Returns:
      The attended values, [b, n, heads, head_dim], in the dtype of value; softmax is float32. With
      `return_logsumexp` also the logarithms, float32 [b, n, heads], -inf where no key is seen.

    Raises:
      ValueError: Shapes or dtypes do not fit.
      UnsupportedError: The named implementation cannot run these arguments.
    """
    _check_arrays(query, key, value)
    options = canonical(query, key, value, bias=bias, mask=mask, is_causal=is_causal, scale=scale, return_logsumexp=return_logsumexp)
    if (seen := _seen_by_any(options["mask"])) is not None:
        key, value = (jnp.where(seen[..., None, None], x, 0) for x in (key, value))
    return dispatch("attention", IMPLEMENTATIONS, implementation, query, key, value, **options)


def attention_qkv(
    qkv: Float[Array, "b n 3 heads head_dim"],
    *,
    qkv_bias: Float[Array, "3 heads head_dim"] | None = None,
    bias: Float[Array, "... n n"] | None = None,
    mask: Bool[Array, "..."] | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "b n heads head_dim"]:
    """`attention` on the fused projection, read in place where the implementation can.

    Args:
      qkv: Output of the projection: query, key and value side by side.
      qkv_bias: Bias of the projection, in its dtype. Given here, its gradient is summed where the
        gradient of the projection is computed, which saves a pass over it; the results are the
        same.
      bias: Bias of the logits, as in `attention`.
      mask: False where a query must not see a key, or None, as in `attention`.
      is_causal: Whether query i sees the keys 0 to i only.
      scale: Factor on query . key, or None for head_dim ** -0.5.
      implementation: A key of QKV_IMPLEMENTATIONS, or None for the fastest that applies.

    Returns:
      The attended values, in the dtype of qkv.

    Raises:
      ValueError: Shapes do not fit, or `qkv_bias` is given with a mask, under which hidden keys may
        hold any values.
      UnsupportedError: The named implementation cannot run these arguments.
    """
    if qkv_bias is not None and (qkv_bias.shape != qkv.shape[2:] or mask is not None):
        raise ValueError(f"{qkv_bias.shape=} must be {qkv.shape[2:]}, and none with a mask: add it to the projection")
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"{qkv.shape=} must be [b, n, 3, heads, head_dim]")
    options = canonical(qkv, bias=bias, mask=mask, is_causal=is_causal, scale=scale)
    if (seen := _seen_by_any(options["mask"])) is not None:
        is_query = jnp.arange(3)[:, None, None] == 0
        qkv = jnp.where(seen[..., None, None, None] | is_query, qkv, 0)
    return dispatch("attention_qkv", QKV_IMPLEMENTATIONS, implementation, qkv, *(() if qkv_bias is None else (qkv_bias,)), **options)


def canonical(*arrays: Array, bias=None, mask=None, is_causal=False, scale=None, return_logsumexp=False) -> dict[str, Any]:
    """The options in the form that every implementation takes.

    Bias and mask have four axes, and the scale is a number.

    Args:
      *arrays: Query, key and value, or the fused projection, [b, n, 3, heads, head_dim].
      bias: Bias of the logits, as in `attention`.
      mask: False where a query must not see a key, or None, as in `attention`.
      is_causal: Whether query i sees the keys 0 to i only.
      scale: Factor on query . key, or None for head_dim ** -0.5.
      return_logsumexp: Whether the logarithms are wanted.

    Returns:
      The keyword arguments of an implementation's `fn` and `unsupported_reason`.

    Raises:
      ValueError: The options do not fit the arrays.
    """
    b, n, *_, heads, head_dim = arrays[0].shape
    m = n if len(arrays) == 1 else arrays[1].shape[1]
    if bias is not None:
        bias = _four_axes("bias", bias, (b, heads, n, m))
        bias = varying_like(jnp.broadcast_to(bias, (*bias.shape[:2], n, m)), arrays[0])
    if mask is not None:
        if mask.dtype != bool:
            raise ValueError(f"{mask.dtype=} must be bool; a summand of the logits is a bias")
        mask = _four_axes("mask", mask, (b, heads, n, m))
        mask = jnp.broadcast_to(mask, (*mask.shape[:3], m))
    scale = head_dim**-0.5 if scale is None else scale
    return {"bias": bias, "mask": mask, "is_causal": is_causal, "scale": scale, "return_logsumexp": return_logsumexp}


def _check_arrays(query: Array, key: Array, value: Array) -> None:
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(f"{query.shape=} must be [b, n, heads, head_dim]; {key.shape=} and {value.shape=}, [b, m, kv_heads, head_dim]")
    if (query.shape[0], query.shape[3]) != (key.shape[0], key.shape[3]):
        raise ValueError(f"{query.shape=} and {key.shape=} must agree in images and head_dim")
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"heads={query.shape[2]} must be a multiple of kv_heads={key.shape[2]}")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"{query.dtype=}, {key.dtype=} and {value.dtype=} must be one")


def _four_axes(name: str, x: Array, shape: tuple[int, int, int, int]) -> Array:
    """`x` with leading axes of size 1, if it broadcasts to the shape."""
    sizes = (1,) * (4 - x.ndim) + x.shape
    if x.ndim < 2 or len(sizes) != 4 or any(have not in (1, want) for have, want in zip(sizes, shape, strict=True)):
        raise ValueError(f"{name}.shape={x.shape} must have 2 to 4 axes and broadcast to [b, heads, n, m] = {shape}")
    return x if x.ndim == 4 else x.reshape(sizes)


def _seen_by_any(mask: Bool[Array, "#b #heads #n m"] | None) -> Bool[Array, "#b m"] | None:
    """Whether any query sees a key; a key that none sees may hold NaN.

    The product of NaN with a zero weight would be NaN.
    """
    return None if mask is None else mask.any((1, 2))
