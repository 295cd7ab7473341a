"""Attention inside the windows of a map: Swin's shifted windows and MaxViT's grid, with a trainable
bias.
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Bool, Float

from pallas_kernels.dispatch import Implementation, UnsupportedError, dispatch
from pallas_kernels.sharding import varying_like
from pallas_kernels.window_attention import gpu, pallas_gpu, pallas_tpu, reference, triton_gpu, xla
from pallas_kernels.window_attention.windows import expand_bias

__all__ = ["IMPLEMENTATIONS", "QKV_IMPLEMENTATIONS", "UnsupportedError", "expand_bias", "window_attention", "window_attention_qkv"]

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "pallas_tpu": Implementation(pallas_tpu.window_attention, pallas_tpu.unsupported_reason),  # on chip, no copies; on no GPU
    "pallas_gpu": Implementation(pallas_gpu.window_attention, gpu.unsupported_reason),  # scores stay on chip, no copies
    "triton": Implementation(triton_gpu.window_attention, triton_gpu.unsupported_reason, automatic=False),  # not timed yet
    "xla": Implementation(xla.window_attention, xla.unsupported_reason),  # any device, linear memory
    "reference": Implementation(reference.window_attention, reference.unsupported_reason),  # quadratic in the map: the definition
}


def _of_parts(fn: Callable[..., Array]) -> Callable[..., Array]:
    return lambda qkv, **options: fn(*(qkv[:, :, :, i] for i in range(3)), **options)


# Implementations that take the fused projection to query, key and value.
QKV_IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "pallas_tpu": Implementation(pallas_tpu.window_attention_qkv, pallas_tpu.unsupported_reason),
    "pallas_gpu": Implementation(pallas_gpu.window_attention_qkv, gpu.unsupported_reason),
    "triton": Implementation(triton_gpu.window_attention_qkv, triton_gpu.unsupported_reason, automatic=False),
    "xla": Implementation(_of_parts(xla.window_attention), xla.unsupported_reason),
    "reference": Implementation(_of_parts(reference.window_attention), reference.unsupported_reason),
}


def window_attention(
    query: Float[Array, "b h w heads head_dim"],
    key: Float[Array, "b h w heads head_dim"],
    value: Float[Array, "b h w heads head_dim"],
    *,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    grid: bool = False,
    bias: Float[Array, "heads ..."] | None = None,
    mask: Bool[Array, "b h w"] | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "b h w heads head_dim"]:
    """Attends from each token to the tokens of its window.

    Swin's shifted windows (Liu et al., arXiv:2103.14030, section 3.2) and MaxViT's grid attention
    (Tu et al., arXiv:2204.01697, section 3.1). After a shift the last windows hold tokens from
    opposite ends of the map; their logits are lowered by 100, as in the authors' code, not by
    infinity, as the paper implies: parity needs it. A map that is not whole windows overhangs at
    the bottom and right; unlike in the authors' detection code, which pads with tokens that
    everybody attends to, nothing outside the map is ever seen.

    Args:
      query: What asks, at every position of the map.
      key: What is asked, in the dtype of query.
      value: What is attended to, in the dtype of query.
      window_size: Tokens per side of a window, or per axis; with `grid`, of the grid.
      shift: Tokens by which the windows start further to the bottom right, in [0, window_size);
        usually 0 or half.
      grid: Attend among tokens that are h / window_size rows and w / window_size columns apart,
        instead of neighbours.
      bias: Added to the logits before softmax: [heads, slots, slots] for each pair of
        window_size**2 slots, query first, or the table [heads, 2 * window_size - 1, 2 * window_size
        - 1] at [query - key + window_size - 1].
      mask: False where a token must not be seen as key; a query that sees none gets zeros.
      scale: Factor on query . key; head_dim ** -0.5 by default.
      implementation: A key of IMPLEMENTATIONS, or None for the fastest that applies.

    Returns:
      The attended values, in the dtype of value. Softmax is float32.

    Raises:
      ValueError: Shapes that do not fit, a shift outside the window, or a shifted grid.
      UnsupportedError: The named implementation cannot run these arguments.
    """
    if not query.shape == key.shape == value.shape or len(query.shape) != 5:
        raise ValueError(f"{query.shape=}, {key.shape=} and {value.shape=} must be one [b, h, w, heads, head_dim]")
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(f"{query.dtype=}, {key.dtype=} and {value.dtype=} must be one")
    options = canonical(query, window_size=window_size, shift=shift, grid=grid, bias=bias, mask=mask, scale=scale)
    return dispatch("window_attention", IMPLEMENTATIONS, implementation, query, key, value, **options)


def window_attention_qkv(
    qkv: Float[Array, "b h w 3 heads head_dim"],
    *,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    grid: bool = False,
    bias: Float[Array, "heads ..."] | None = None,
    mask: Bool[Array, "b h w"] | None = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "b h w heads head_dim"]:
    """`window_attention` on the output of the fused projection: query, key and value side by side,
    without transposes.
    """
    if len(qkv.shape) != 6 or qkv.shape[3] != 3:
        raise ValueError(f"{qkv.shape=} must be [b, h, w, 3, heads, head_dim]")
    options = canonical(qkv, window_size=window_size, shift=shift, grid=grid, bias=bias, mask=mask, scale=scale)
    return dispatch("window_attention_qkv", QKV_IMPLEMENTATIONS, implementation, qkv, **options)


def canonical(
    *arrays: Array, window_size: int | tuple[int, int], shift: int | tuple[int, int] = 0, grid=False, bias=None, mask=None, scale=None
) -> dict[str, Any]:
    """The options every implementation takes: pairs, a bias per pair of slots, a number for the
    scale.

    Args:
      *arrays: Query, [b, h, w, heads, head_dim], and key and value, or the fused projection, [b, h,
        w, 3, heads, head_dim].
      window_size: As all arguments below, that of `window_attention`.
      shift: Tokens.
      grid: Whether windows are strided.
      bias: Table or full bias, or None.
      mask: Tokens that may be seen as keys, or None.
      scale: Factor on query . key, or None.

    Returns:
      The keyword arguments of an implementation's `fn` and `unsupported_reason`.

    Raises:
      ValueError: Options that do not fit the array or each other.
    """
    b, h, w, *_, heads, head_dim = arrays[0].shape
    window_size, shift = _pair(window_size), _pair(shift)
    if min(window_size) < 1:
        raise ValueError(f"{window_size=} must be positive")
    if not all(0 <= s < side for s, side in zip(shift, window_size, strict=True)):
        raise ValueError(f"{shift=} must be in [0, {window_size=})")
    if grid and any(shift):
        raise ValueError(f"{shift=} must be 0 with {grid=}: a grid covers the whole map")
    if mask is not None and (mask.shape != (b, h, w) or mask.dtype != bool):
        raise ValueError(f"{mask.shape=} of {mask.dtype=} must be bool {(b, h, w)}")
    if bias is not None:
        bias = _full_bias(varying_like(bias, arrays[0]), heads, window_size)
    scale = head_dim**-0.5 if scale is None else scale
    return {"window_size": window_size, "shift": shift, "grid": grid, "bias": bias, "mask": mask, "scale": scale}


def _full_bias(bias: Array, heads: int, window_size: tuple[int, int]) -> Array:
    slots = window_size[0] * window_size[1]
    table = (heads, 2 * window_size[0] - 1, 2 * window_size[1] - 1)
    if bias.shape == (heads, slots, slots):
        return bias
    if bias.shape == table:
        return expand_bias(bias, window_size)
    raise ValueError(f"{bias.shape=} must be {(heads, slots, slots)} or the table {table}")


def _pair(x: int | tuple[int, int]) -> tuple[int, int]:
    return (x, x) if isinstance(x, int) else (x[0], x[1])
