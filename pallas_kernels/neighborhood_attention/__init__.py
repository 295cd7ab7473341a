"""Neighborhood attention over one, two or three axes, with a trainable relative position bias."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Implementation, UnsupportedError, dispatch
from pallas_kernels.neighborhood_attention import mosaic_gpu, pallas_gpu, pallas_tpu, reference, xla
from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.sharding import varying_like

__all__ = ["IMPLEMENTATIONS", "UnsupportedError", "neighborhood_attention"]

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "pallas_tpu": Implementation(pallas_tpu.neighborhood_attention, pallas_tpu.unsupported_reason),  # logits stay on chip
    "mosaic_gpu": Implementation(mosaic_gpu.neighborhood_attention, mosaic_gpu.unsupported_reason, automatic=False),  # not timed yet
    "pallas_gpu": Implementation(pallas_gpu.neighborhood_attention, pallas_gpu.unsupported_reason),  # no copies, on chip too
    "xla": Implementation(xla.neighborhood_attention, xla.unsupported_reason),  # any device, linear memory
    "reference": Implementation(reference.neighborhood_attention, reference.unsupported_reason),  # quadratic: the definition
}
PerAxis = int | tuple[int, ...]


def neighborhood_attention(
    query: Float[Array, "b *spatial heads head_dim"],
    key: Float[Array, "b *spatial kv_heads head_dim"],
    value: Float[Array, "b *spatial kv_heads value_dim"],
    *,
    kernel_size: PerAxis,
    dilation: PerAxis = 1,
    stride: PerAxis = 1,
    is_causal: bool | tuple[bool, ...] = False,
    bias: Float[Array, "heads ..."] | None = None,
    scale: float | None = None,
    extra_key: Float[Array, "b extra kv_heads head_dim"] | None = None,
    extra_value: Float[Array, "b extra kv_heads value_dim"] | None = None,
    return_logsumexp: bool = False,
    implementation: str | None = None,
) -> Float[Array, "b *spatial heads value_dim"] | tuple[Array, Array]:
    """Attends from each token to the window of tokens nearest to it.

    Neighborhood attention (Hassani et al., arXiv:2204.07143, eq. 2), dilated (arXiv:2209.15001) and
    strided (arXiv:2504.16922). At the border the window is shifted inside the map, not padded, so
    every token sees kernel_size keys per axis. Under dilation tokens meet only tokens of their
    residue class. Semantics are NATTEN's, exactly, and those of the bias those of NATTEN before
    0.20.

    Args:
      query: Queries at every position of a map of one, two or three axes.
      key: Keys of the map; their heads may be fewer by a whole factor.
      value: Values of the map, with the heads of the keys.
      kernel_size: Keys per axis, one number or one an axis; kernel_size * dilation is at most the
        axis.
      dilation: Distance of neighbouring keys, per axis.
      stride: Queries that share the window of the one in their middle (causal: of the last), per
        axis; at most kernel_size.
      is_causal: No key after the query, per axis.
      bias: Added to the logits before softmax, [heads, 2 kernel_size - 1, ...] at [key - query +
        kernel_size - 1], counted in steps of the dilation; without stride.
      scale: Factor on query . key; head_dim ** -0.5 by default.
      extra_key: Tokens (class, register, text) that every query sees too, without bias.
      extra_value: Their values.
      return_logsumexp: Also return the logarithm of the softmax's denominator, float32 [b,
        *spatial, heads].
      implementation: A key of IMPLEMENTATIONS, or None for the fastest that applies.

    Returns:
      The attended values, in the dtype of value. Logits and softmax are float32.

    Raises:
      ValueError: Shapes that do not fit, a window that does not fit the map, or a bias under
        stride.
      UnsupportedError: The named implementation cannot run these arguments.
    """
    options = canonical(
        query,
        key,
        value,
        kernel_size=kernel_size,
        dilation=dilation,
        stride=stride,
        is_causal=is_causal,
        bias=bias,
        scale=scale,
        extra_key=extra_key,
        extra_value=extra_value,
        return_logsumexp=return_logsumexp,
    )
    static = tuple((name, options.pop(name)) for name in ("axes", "scale", "return_logsumexp"))
    return _compiled(static, implementation)(query, key, value, options)


def canonical(
    query: Array,
    key: Array,
    value: Array,
    *,
    kernel_size: PerAxis,
    dilation: PerAxis = 1,
    stride: PerAxis = 1,
    is_causal: bool | tuple[bool, ...] = False,
    bias: Array | None = None,
    scale: float | None = None,
    extra_key: Array | None = None,
    extra_value: Array | None = None,
    return_logsumexp: bool = False,
) -> dict[str, Any]:
    """The options every implementation takes: one `Axis` for each axis, a number for the scale.

    Args:
      query: As all arguments below, that of `neighborhood_attention`.
      key: [b, *spatial, kv_heads, head_dim].
      value: [b, *spatial, kv_heads, value_dim].
      kernel_size: Keys per axis.
      dilation: Distance of neighbouring keys, per axis.
      stride: Queries that share a window, per axis.
      is_causal: Whether keys after the query are hidden, per axis.
      bias: Table of offsets, or None.
      scale: Factor on query . key, or None.
      extra_key: Tokens that every query sees, or None.
      extra_value: Values of the extra tokens, or None.
      return_logsumexp: Whether the logsumexp is wanted.

    Returns:
      The keyword arguments of an implementation's `fn` and `unsupported_reason`.

    Raises:
      ValueError: Options that do not fit the arrays or each other.
    """
    axes = _axes(query, key, value, kernel_size, dilation, stride, is_causal)
    _check_extra(query, key, value, extra_key, extra_value)
    if bias is not None:
        table = (query.shape[-2], *(2 * axis.kernel - 1 for axis in axes))
        if bias.shape != table:
            raise ValueError(f"{bias.shape=} must be {table}, [heads, 2 * kernel_size - 1, ...]")
        if any(axis.stride > 1 for axis in axes):
            raise ValueError(f"a bias must go without {stride=}: under stride the offsets leave its table")
        bias = varying_like(bias, query)
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    options = {"bias": bias, "extra_key": extra_key, "extra_value": extra_value}
    return {"axes": axes, "scale": scale, "return_logsumexp": return_logsumexp, **options}


@functools.lru_cache(maxsize=1024)  # one program for one set of options, so that calls outside of jit do not trace again
def _compiled(static: tuple[tuple[str, Any], ...], implementation: str | None):
    options = dict(static)

    def run(query, key, value, arrays):
        results = dispatch("neighborhood_attention", IMPLEMENTATIONS, implementation, query, key, value, **options, **arrays)
        out = results[0].astype(value.dtype)
        return (out, results[1]) if options["return_logsumexp"] else out

    run.__name__ = "neighborhood_attention_" + "x".join(str(axis.kernel) for axis in options["axes"])  # profiles and counts read it
    return jax.jit(run)


def macs(query_shape: tuple[int, ...], kernel_size: tuple[int, ...], value_dim: int) -> int:
    """Multiply-accumulates that the definition needs: each query meets prod(kernel_size) keys."""
    return math.prod(query_shape[:-1]) * math.prod(kernel_size) * (query_shape[-1] + value_dim)


def _axes(query, key, value, kernel_size, dilation, stride, is_causal) -> tuple[Axis, ...]:
    _, *spatial, heads, head_dim = query.shape
    if not 1 <= len(spatial) <= 3:
        raise ValueError(f"{query.shape=} must be [b, *spatial, heads, head_dim] with one, two or three spatial axes")
    if key.shape[:-2] != query.shape[:-2] or value.shape[:-1] != key.shape[:-1] or key.shape[-1] != head_dim:
        raise ValueError(f"{key.shape=} and {value.shape=} must have the map of {query.shape=}, its head_dim (key), and equal heads")
    if heads % key.shape[-2]:
        raise ValueError(f"{heads=} of query must be a multiple of the {key.shape[-2]} of key")
    if not query.dtype == key.dtype == value.dtype or not jnp.issubdtype(query.dtype, jnp.floating):
        raise ValueError(f"{query.dtype=}, {key.dtype=} and {value.dtype=} must be one floating type")
    options = {"kernel_size": kernel_size, "dilation": dilation, "stride": stride, "is_causal": is_causal}
    per_axis = {name: _per_axis(name, x, len(spatial)) for name, x in options.items()}
    axes = tuple(Axis(*axis) for axis in zip(spatial, *per_axis.values(), strict=True))
    for i, axis in enumerate(axes):
        if axis.kernel < 1 or axis.dilation < 1:
            raise ValueError(f"kernel_size={axis.kernel} and dilation={axis.dilation} of axis {i} must be positive")
        if axis.kernel * axis.dilation > axis.size:
            raise ValueError(f"kernel_size={axis.kernel} times dilation={axis.dilation} of axis {i} must be at most its size {axis.size}")
        if not 1 <= axis.stride <= axis.kernel:
            raise ValueError(f"stride={axis.stride} of axis {i} must be in [1, kernel_size={axis.kernel}]")
    return axes


def _per_axis(name: str, x, num_axes: int) -> tuple:
    values = tuple(x) if isinstance(x, (tuple, list)) else (x,) * num_axes
    if len(values) != num_axes:
        raise ValueError(f"{name}={x} must be one value, or one for each of {num_axes} axes")
    return values


def _check_extra(query, key, value, extra_key, extra_value) -> None:
    if (extra_key is None) != (extra_value is None):
        raise ValueError("extra_key and extra_value must be given together")
    if extra_key is None:
        return
    expected = [(query.shape[0], extra_key.shape[1], *x.shape[-2:]) for x in (key, value)]
    if [extra_key.shape, extra_value.shape] != expected:
        raise ValueError(f"{extra_key.shape=} and {extra_value.shape=} must be {expected[0]} and {expected[1]}")
