"""Convolutions in the form that is fast where they run.

XLA's own are right on GPU. On TPUs depthwise ones in bfloat16 are `pallas_kernels.depthwise`, and others in groups are kept apart from
slices of channels before them, and their gradients from those of what follows: joined with such a slice, XLA's 7x7 depthwise one of 192
channels takes 15 times as long. On CPUs those in groups
run by scalars: one of 64 channels, 7x7, depthwise, takes 20 to 40 times as
long as the sum of 49 shifted products, and the gradient of one in twelve groups 50 times as long as twelve convolutions. One of a
single pixel, 1x1, is a matrix product, and its gradients take three to four times as long as those of the product.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.depthwise import depthwise, unsupported_reason
from pallas_kernels.target import platform
from vitlab.layers.product import dot_general

_UNROLLED = 7  # rows of a kernel that are written out; more of them are a loop, for the time that compiling takes
_MAX_SPLIT = 32  # groups that become convolutions of their own


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: str | Sequence[tuple[int, int]], *, feature_group_count: int, **options
) -> Array:
    """`jax.lax.conv_general_dilated` of maps [b, h, w, in] and kernels [k, l, in / groups, out]; see the module."""
    groups, whole = feature_group_count, functools.partial(jax.lax.conv_general_dilated, **options)
    if platform() == "tpu" and groups > 1:
        if not isinstance(padding, str) and _kernel_applies(lhs, rhs, window_strides, padding, groups, options):
            return depthwise(lhs, rhs[:, :, 0], pads=_pairs(padding), dilation=tuple(options["rhs_dilation"]))
        return _apart_backward(whole(_apart_forward(lhs), rhs, window_strides, padding, feature_group_count=groups))
    if platform() != "cpu" or lhs.ndim != 4 or any(d != 1 for d in options["lhs_dilation"]):
        return whole(lhs, rhs, window_strides, padding, feature_group_count=groups)
    dilation = tuple(options["rhs_dilation"])
    if isinstance(padding, str):
        sides = [(size - 1) * d + 1 for size, d in zip(rhs.shape[:2], dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(lhs.shape[1:3], sides, window_strides, padding)
    strides, pads = tuple(window_strides), tuple((int(low), int(high)) for low, high in padding)
    if groups == 1:
        if rhs.shape[:2] != (1, 1) or any(map(any, pads)):
            return whole(lhs, rhs, strides, pads, feature_group_count=1)
        precision = {key: options[key] for key in ("precision", "preferred_element_type") if key in options}
        return dot_general(lhs[:, :: strides[0], :: strides[1]], rhs[0, 0], (((3,), (0,)), ((), ())), **precision)
    if rhs.shape[2] == 1 and rhs.shape[3] == groups:
        return _depthwise(lhs, rhs[:, :, 0], strides, pads, dilation)
    if groups > _MAX_SPLIT:
        return whole(lhs, rhs, strides, pads, feature_group_count=groups)
    parts = zip(jnp.split(lhs, groups, -1), jnp.split(rhs, groups, -1), strict=True)
    return jnp.concatenate([whole(x, kernel, strides, pads, feature_group_count=1) for x, kernel in parts], -1)


def _kernel_applies(
    lhs: Array, rhs: Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], groups: int, options: Mapping[str, Any]
) -> bool:
    """Whether a TPU's kernel takes a convolution in groups."""
    if lhs.ndim != 4 or lhs.dtype != jnp.bfloat16 or rhs.shape[2:] != (1, groups):
        return False
    if any(d != 1 for d in (*strides, *options["lhs_dilation"])):
        return False
    rows, cols = rhs.shape[:2]
    return not unsupported_reason(lhs.shape, lhs.dtype, (rows, cols), pads=_pairs(padding), dilation=tuple(options["rhs_dilation"]))


def _pairs(padding: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, cols = ((int(low), int(high)) for low, high in padding)
    return rows, cols


@jax.custom_vjp
def _apart_forward(x: Array) -> Array:
    """x, made before what reads it and not together with it; the gradient is left alone."""
    return jax.lax.optimization_barrier(x)


_apart_forward.defvjp(lambda x: (_apart_forward(x), None), lambda _, grad: (grad,))


@jax.custom_vjp
def _apart_backward(x: Array) -> Array:
    """x, whose gradient is made before what reads it and not together with it."""
    return x


_apart_backward.defvjp(lambda x: (x, None), lambda _, grad: (jax.lax.optimization_barrier(grad),))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(x: Float[Array, "b h w c"], kernel: Float[Array, "k l c"], strides, pads, dilation) -> Float[Array, "b h2 w2 c"]:
    x32 = jnp.pad(x.astype(jnp.float32), ((0, 0), *pads, (0, 0)))
    return _correlate(x32, kernel.astype(jnp.float32), strides, dilation).astype(x.dtype)


def _depthwise_forward(x, kernel, strides, pads, dilation):
    return _depthwise(x, kernel, strides, pads, dilation), (x, kernel)


def _depthwise_backward(strides, pads, dilation, saved, grad):
    x, kernel = saved
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), *pads, (0, 0)))
    grad = grad.astype(jnp.float32)
    # Of the image: the gradient, spread by the strides, under the turned kernel; pixels that no window reached are added as zeros.
    reach = [(size - 1) * d for size, d in zip(kernel.shape[:2], dilation, strict=True)]
    spread = [(n - 1) * s + 1 for n, s in zip(grad.shape[1:3], strides, strict=True)]
    unseen = [n - m - r for n, m, r in zip(padded.shape[1:3], spread, reach, strict=True)]
    config = [(0, 0, 0), *((r, r + u, s - 1) for r, u, s in zip(reach, unseen, strides, strict=True)), (0, 0, 0)]
    wide = jax.lax.pad(grad, jnp.zeros((), grad.dtype), config)
    dx = _correlate(wide, kernel[::-1, ::-1].astype(jnp.float32), (1, 1), dilation)
    (top, _), (left, _) = pads
    dx = dx[:, top : top + x.shape[1], left : left + x.shape[2]]
    return dx.astype(x.dtype), _kernel_gradient(padded, grad, kernel.shape[:2], strides, dilation).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


@functools.partial(jax.jit, static_argnames=("strides", "dilation"))
def _correlate(x: Float[Array, "b h w c"], kernel: Float[Array, "k l c"], strides, dilation) -> Float[Array, "b h2 w2 c"]:
    """The sum of the kernel's products with the shifted map."""
    rows, cols, _ = kernel.shape
    height, width = ((n - (size - 1) * d - 1) // s + 1 for n, size, d, s in zip(x.shape[1:3], (rows, cols), dilation, strides, strict=True))
    span = (height - 1) * strides[0] + 1

    def row(i: int | Array, weights: Array) -> Array:
        lines = jax.lax.dynamic_slice_in_dim(x, i * dilation[0], span, 1)[:, :: strides[0]]
        shifted = _shifts(lines, cols, width, strides[1], dilation[1])
        return functools.reduce(operator.add, map(operator.mul, shifted, weights))

    if rows <= _UNROLLED:
        return functools.reduce(operator.add, (row(i, kernel[i]) for i in range(rows)))
    zero = jnp.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
    return jax.lax.fori_loop(0, rows, lambda i, total: total + row(i, kernel[i]), zero)


@functools.partial(jax.jit, static_argnames=("size", "strides", "dilation"))
def _kernel_gradient(x: Float[Array, "b h w c"], grad: Float[Array, "b h2 w2 c"], size, strides, dilation) -> Float[Array, "k l c"]:
    """The gradient of `_correlate` for the kernel, added up line by line, so that a line's sums stay in the cache."""
    (rows, cols), (b, height, width, c) = size, grad.shape
    reach = (rows - 1) * dilation[0] + 1

    def line(total, index):
        image, i = index // height, index % height
        lines = jax.lax.dynamic_slice(x, (image, i * strides[0], 0, 0), (1, reach, *x.shape[2:]))[0, :: dilation[0]]
        above = jax.lax.dynamic_slice(grad, (image, i, 0, 0), (1, 1, width, c))[0]
        shifted = _shifts(lines, cols, width, strides[1], dilation[1])
        return tuple(one + each * above for one, each in zip(total, shifted, strict=True)), None

    zeros = tuple(jnp.zeros((rows, width, c), x.dtype) for _ in range(cols))
    total, _ = jax.lax.scan(line, zeros, jnp.arange(b * height))
    return jnp.stack([one.sum(1) for one in total], 1)


def _shifts(lines: Float[Array, "*b w c"], cols: int, width: int, stride: int, dilation: int) -> list[Float[Array, "*b w2 c"]]:
    """For each column of a kernel, the pixels that it meets."""
    return [lines[..., start : start + (width - 1) * stride + 1 : stride, :] for start in range(0, cols * dilation, dilation)]
