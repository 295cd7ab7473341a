"""Depthwise convolution on TPUs, by sums of products of shifted rows on the vector unit.

An image lies in VMEM with its border of zeros, float32, columns along the sublanes and channels
along the lanes, so that a shifted row is a load from another address. The sums of a few rows stay
in registers while all values of the kernel pass. The backward kernel reads the map and the
gradient of the result once and makes both gradients.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.depthwise.layout import VMEM_MARGIN, Layout
from pallas_kernels.sharding import by_images, result_like
from pallas_kernels.tpu import SUBLANES


def run(x: Array, kernel: Array, *, pads, dilation, interpret: bool) -> Array:
    """The operator."""

    def on_device(x, kernel, _):
        layout = Layout.of(x.shape, x.dtype, kernel.shape[:2], pads, dilation)
        assert isinstance(layout, Layout), layout
        return _run(x, kernel, layout, interpret)

    return by_images(on_device, x, kernel, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _run(x, kernel, layout: Layout, interpret: bool):
    return _forward(x, kernel, layout, interpret)[0]


def _forward(x, kernel, layout: Layout, interpret: bool):
    out = pl.pallas_call(
        functools.partial(forward_kernel, layout=layout),
        grid=_grid(layout),
        in_specs=[_images(layout, (layout.height, layout.width)), _filters(layout)],
        out_specs=_images(layout, layout.out_sides),
        out_shape=result_like(x, (layout.images, *layout.out_sides, layout.channels)),
        scratch_shapes=[pltpu.VMEM(layout.bordered, jnp.float32)],
        compiler_params=_params(layout),
        name="depthwise_forward",
        interpret=interpret,
    )(x, _flat(kernel))
    return out, (x, kernel)


def _backward(layout: Layout, interpret: bool, residuals, d_out):
    x, kernel = residuals
    taps, sides = kernel.shape[0] * kernel.shape[1], (layout.height, layout.width)
    d_x, d_kernel = pl.pallas_call(
        functools.partial(backward_kernel, layout=layout),
        grid=_grid(layout),
        in_specs=[_images(layout, sides), _images(layout, layout.out_sides), _filters(layout)],
        out_specs=[_images(layout, sides), _filters(layout)],
        out_shape=[result_like(x, x.shape), result_like(x, (taps, layout.channels), jnp.float32)],
        scratch_shapes=[
            pltpu.VMEM(layout.bordered, jnp.float32),
            pltpu.VMEM(layout.turned.bordered, jnp.float32),
            pltpu.VMEM((taps, SUBLANES, layout.lanes), jnp.float32),
        ],
        compiler_params=_params(layout),
        name="depthwise_backward",
        interpret=interpret,
    )(x, d_out, _flat(kernel[::-1, ::-1]))
    return d_x, d_kernel.reshape(kernel.shape).astype(kernel.dtype)


_run.defvjp(_forward, _backward)


def _grid(layout: Layout) -> tuple[int, int]:
    """Programs: over channels, and over images, along which the kernel's gradient is added up."""
    return pl.cdiv(layout.channels, layout.lanes), layout.images // layout.per_program


def _images(layout: Layout, sides: tuple[int, int]) -> pl.BlockSpec:
    return pl.BlockSpec((layout.per_program, *sides, layout.lanes), lambda channel, image: (image, 0, 0, channel))


def _filters(layout: Layout) -> pl.BlockSpec:
    return pl.BlockSpec((layout.size[0] * layout.size[1], layout.lanes), lambda channel, _: (0, channel))


def _flat(kernel: Array) -> Array:
    return kernel.astype(jnp.float32).reshape(-1, kernel.shape[-1])


def _params(layout: Layout) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=layout.vmem_bytes + VMEM_MARGIN)


def forward_kernel(x_ref, kernel_ref, out_ref, border, *, layout: Layout):
    """The images and channels of a program."""
    _clear_at_first(border)

    def image(i, carry):
        _put(x_ref, i, border, layout)
        _correlate(border, kernel_ref, out_ref, i, layout)
        return carry

    lax.fori_loop(0, layout.per_program, image, None)


def backward_kernel(x_ref, d_out_ref, turned_ref, d_x_ref, d_kernel_ref, border, d_border, sums, *, layout: Layout):
    """The gradients of the images and channels of a program; those of the kernel are added up."""
    _clear_at_first(border, d_border, sums)

    def image(i, carry):
        _put(x_ref, i, border, layout)
        _put(d_out_ref, i, d_border, layout.turned)
        _correlate(d_border, turned_ref, d_x_ref, i, layout.turned)
        _add_products(border, d_border, sums, layout)
        return carry

    lax.fori_loop(0, layout.per_program, image, None)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _():
        d_kernel_ref[...] = jnp.sum(sums[...], 1)


def _clear_at_first(*refs) -> None:
    """Zeros, before the first images of some channels; borders stay zero afterwards."""

    @pl.when(pl.program_id(1) == 0)
    def _():
        for ref in refs:

            def row(i, carry, ref=ref):
                ref[i] = jnp.zeros(ref.shape[1:], ref.dtype)
                return carry

            lax.fori_loop(0, ref.shape[0], row, None)


def _put(ref, image, border, layout: Layout) -> None:
    """Copies an image inside its border."""
    (top, _), (left, _) = layout.pads

    def row(i, carry):
        border[top + i, left : left + layout.width, :] = ref[image, i].astype(jnp.float32)
        return carry

    lax.fori_loop(0, layout.height, row, None)


def _correlate(border, kernel_ref, out_ref, image, layout: Layout) -> None:
    """The convolution of an image, some rows at a time."""
    lines, width = layout.lines, layout.out_sides[1]

    def step(i, carry):
        def add(total: Array, shifted: Array, tap) -> Array:
            return total + shifted * kernel_ref[pl.ds(tap, 1), :][None]

        first = i * lines
        total = _over_taps(add, jnp.zeros((lines, layout.columns, layout.lanes), jnp.float32), border, first, layout)
        out_ref[image, pl.ds(first, lines)] = total[:, :width].astype(out_ref.dtype)
        return carry

    lax.fori_loop(0, layout.out_sides[0] // lines, step, None)


def _add_products(border, d_border, sums, layout: Layout) -> None:
    """Adds an image's gradient of the kernel, whose sums over the sublanes are left for the end."""
    lines = layout.lines
    (top, _), (left, _) = layout.turned.pads

    def step(i, carry):
        first = i * lines
        # Columns beyond the result are zero here, so that what the map has there does not matter.
        d_out = d_border[pl.ds(top + first, lines), left : left + layout.columns, :]

        def add(carry: None, shifted: Array, tap) -> None:
            products = (shifted * d_out).reshape(-1, SUBLANES, layout.lanes)
            sums[tap] += jnp.sum(products, 0)
            return carry

        _over_taps(add, None, border, first, layout)
        return carry

    lax.fori_loop(0, layout.out_sides[0] // lines, step, None)


def _over_taps(add: Callable, total, border, first, layout: Layout):
    """total = add(total, shifted rows, number of the tap) for each value of the kernel."""
    (rows, cols), (down, right), (lines, width) = layout.size, layout.dilation, (layout.lines, layout.columns)

    def row(p, total):
        for q in range(cols):
            shifted = border[pl.ds(first + p * down, lines), q * right : q * right + width, :]
            total = add(total, shifted, p * cols + q)
        return total

    if not layout.unrolls:
        return lax.fori_loop(0, rows, row, total)
    for p in range(rows):
        total = row(p, total)
    return total
