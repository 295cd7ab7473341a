"""Convolutions in the form that is fast on the current platform.

XLA's own form is fast on GPUs. On TPUs depthwise convolutions in bfloat16 run in
`pallas_kernels.depthwise`; other grouped convolutions are separated from channel slices before
them, and their gradients from the operations after them. When XLA fuses it with such a slice, a
7x7 depthwise convolution of 192 channels takes 15 times as long.

On CPUs XLA computes grouped convolutions with scalars. A 7x7 depthwise convolution of 64 channels
takes 20 to 40 times as long as the sum of 49 shifted products, and the gradient of one in twelve
groups 50 times as long as twelve convolutions. A 1x1 convolution is computed as a matrix product,
whose gradients are three to four times as fast.
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

_UNROLLED = 7  # kernel rows that are unrolled; larger kernels use a loop, to limit compile time
_MAX_SPLIT = 32  # largest number of groups that are computed as separate convolutions


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Sequence[int], padding: str | Sequence[tuple[int, int]], *, feature_group_count: int, **options
) -> Array:
    """`jax.lax.conv_general_dilated` in the form that is fast here; see the module.

    Maps are [b, h, w, in], kernels [k, l, in / groups, out].
    """
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
    """x behind a barrier that keeps XLA from fusing it with its readers; not in the gradient."""
    return jax.lax.optimization_barrier(x)


_apart_forward.defvjp(lambda x: (_apart_forward(x), None), lambda _, grad: (grad,))


@jax.custom_vjp
def _apart_backward(x: Array) -> Array:
    """x, with a barrier that keeps XLA from fusing its gradient with the gradient's readers."""
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
    # The gradient of the image is the strided gradient correlated with the flipped kernel; rows and
    # columns that no window reached are zero.
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
    """The gradient of `_correlate` for the kernel, summed line by line to stay in the cache."""
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
    """The pixels under each column of the kernel."""
    return [lines[..., start : start + (width - 1) * stride + 1 : stride, :] for start in range(0, cols * dilation, dilation)]
