"""Norm and products on TPUs, the result of the norm and of all but the last product in VMEM only.

A program has some hundred rows and all parameters. The products go over their columns in chunks, so
that the matrix unit multiplies one chunk while the vector unit works on the next. The backward pass
normalises and multiplies again, and adds up the parameters' gradients, float32 in VMEM, from
program to program.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.logits import dot
from pallas_kernels.normed.gelu import gelu, gelu_and_slope
from pallas_kernels.normed.rows import VMEM_MARGIN, Layout
from pallas_kernels.sharding import by_images, result_like
from pallas_kernels.tpu import LANES, SUBLANES

_UNROLLED = 8  # copies of lines that are written out


Residual = Literal["none", "add", "pass"]  # what becomes of the map: nothing, part of the result, a second result
Layers = tuple[tuple[Array, Array | None], ...]  # kernel and bias of one product, or of two with GELU between


def run(x: Array, norm: tuple[Array, Array] | None, layers: Layers, *, eps: float, residual: Residual, interpret: bool) -> Any:
    """The operators. With "pass" the map is a second result, whose gradient the backward kernel
    adds.
    """

    def on_device(x, parameters, _):
        norm, layers = parameters
        layout = Layout.of(x.shape, x.dtype, [kernel.shape[1] for kernel, _ in layers])
        assert isinstance(layout, Layout), layout
        layers = tuple((kernel, None if bias is None else bias[None]) for kernel, bias in layers)
        norm = None if norm is None else tuple(p[None] for p in norm)
        lines = x.reshape(layout.lines, layout.n, layout.dim)
        results: Any = _run(lines, norm, layers, layout, eps, residual, interpret)
        results = tuple(out.reshape(*x.shape[:-1], out.shape[-1]) for out in results)
        return results if residual == "pass" else results[0]

    return by_images(on_device, x, (norm, layers), None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _run(x, norm, layers, layout: Layout, eps: float, residual: Residual, interpret: bool):
    return _forward(x, norm, layers, layout, eps, residual, interpret)[0]


def _forward(x, norm, layers, layout: Layout, eps: float, residual: Residual, interpret: bool):
    # XLA joins a mere product with what reads it, but lays out a narrow map otherwise than kernels
    # and copies it.
    if norm is None and len(layers) == 1 and layout.dim % LANES == 0:
        kernel, bias = _rounded(layers, x.dtype)[0]
        out = x @ kernel
        out = out if bias is None else out + bias.astype(x.dtype)[None]
    else:
        like = result_like(x, (layout.lines, layout.n, layout.widths[-1]))
        kernel = functools.partial(forward_kernel, layout=layout, eps=eps, adds=residual == "add")
        (out,) = _call(kernel, _name("forward", layers), (x,), (norm, _rounded(layers, x.dtype)), (like,), (), layout, interpret)
    return (out, x) if residual == "pass" else (out,), (x, norm, layers)


def _backward(layout: Layout, eps: float, residual: Residual, interpret: bool, residuals, d_results):
    x, norm, layers = residuals
    turned = (norm, layers if len(layers) == 1 else (layers[0], (layers[1][0].T, layers[1][1])))
    sums = jax.tree.map(lambda p: result_like(x, (layout.cores, *p.shape), jnp.float32), turned)
    kernel = functools.partial(backward_kernel, layout=layout, eps=eps, adds=residual == "add")
    maps, like, parameters = (x, *d_results), (result_like(x, x.shape),), (norm, _rounded(layers, x.dtype))
    (d_x,), sums = _call(kernel, _name("backward", layers), maps, parameters, like, sums, layout, interpret)
    d_norm, d_layers = jax.tree.map(lambda s: s.sum(0), sums)
    if len(layers) == 2:
        d_layers = (d_layers[0], (d_layers[1][0].T, d_layers[1][1]))
    return d_x, d_norm, d_layers


_run.defvjp(_forward, _backward)


def _rounded(layers: Layers, dtype) -> Layers:
    """Kernels in the dtype that products are computed in."""
    return tuple((kernel.astype(dtype), bias) for kernel, bias in layers)


def _name(which: str, layers) -> str:
    return f"norm_{'linear' if len(layers) == 1 else 'mlp'}_{which}"


def _call(kernel, name: str, maps, parameters, like, sums, layout: Layout, interpret: bool) -> Any:
    """Runs a kernel over the lines.

    Maps and results of the shapes of `like` are cut, parameters are whole in every program, and
    `sums` are added up by the programs of a core.
    """
    steps = layout.programs // layout.cores

    def blocks(x) -> pl.BlockSpec:
        return pl.BlockSpec((layout.per_program, *x.shape[1:]), lambda core, step: (core * steps + step, 0, 0))

    def whole(x) -> pl.BlockSpec:
        return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim, pipeline_mode=pl.Buffered(1))

    def of_core(x) -> pl.BlockSpec:
        return pl.BlockSpec((1, *x.shape[1:]), lambda core, _: (core, *(0,) * (x.ndim - 1)))

    out_shape = (like, sums) if jax.tree.leaves(sums) else like
    out_specs = jax.tree.map(blocks, like)
    return pl.pallas_call(
        kernel,
        grid=(layout.cores, steps),
        in_specs=(jax.tree.map(blocks, maps), jax.tree.map(whole, parameters)),
        out_specs=(out_specs, jax.tree.map(of_core, sums)) if jax.tree.leaves(sums) else out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            *(pltpu.VMEM((layout.rows, width), maps[0].dtype) for width in (layout.dim, layout.widths[-1])),
            pltpu.VMEM((layout.rows if layout.loops else SUBLANES, layout.dim), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=layout.vmem_bytes + VMEM_MARGIN
        ),
        cost_estimate=_cost(layout, (*maps, *like), backward=bool(jax.tree.leaves(sums))),
        name=name,
        interpret=interpret,
    )(maps, parameters)


def _cost(layout: Layout, maps, *, backward: bool) -> pl.CostEstimate:
    """Compiler options of a kernel; its memory includes padding."""
    rows, products = layout.programs * layout.rows, 2 + (len(layout.widths) == 2) / 2 if backward else 1
    per_row = len(layout.widths) * 2 * layout.dim * layout.widths[0]
    moved = sum(math.prod(x.shape) * x.dtype.itemsize for x in maps)
    return pl.CostEstimate(flops=int(rows * per_row * products), bytes_accessed=moved, transcendentals=0)


def forward_kernel(maps, parameters, out_ref, x_rows, out_rows, total, *, layout: Layout, eps: float, adds: bool):
    """The rows of a program."""
    norm, layers = parameters
    _gather(maps[0], x_rows, layout)
    y, _, _ = _normalise(x_rows[...], norm, eps)
    kernel, bias = layers[0]

    def first(at) -> Array:
        product = dot(y, kernel[:, at], (1, 0))
        return product if bias is None else product + bias[:, at]

    if len(layers) == 1:

        def store(at) -> None:
            out_rows[:, at] = first(at).astype(out_rows.dtype)

        _each_chunk(store, layout)
    else:
        out = _sum_over_chunks(lambda at: dot(gelu(first(at)).astype(y.dtype), layers[1][0][at, :], (1, 0)), total, layout)
        out = out if layers[1][1] is None else out + layers[1][1][...]
        out = x_rows[...].astype(jnp.float32) + out if adds else out
        out_rows[...] = out.astype(out_rows.dtype)
    _scatter(out_rows, out_ref, layout)


def backward_kernel(maps, parameters, d_maps, sums, x_rows, d_out_rows, total, *, layout: Layout, eps: float, adds: bool):
    """The gradients of the rows of a program; those of parameters are added to their sums.

    Rows of padding are zero in the map and its gradients, and stay so.
    """
    norm, layers = parameters
    d_norm, d_layers = sums

    @pl.when(pl.program_id(1) == 0)
    def _():
        for ref in (*jax.tree.leaves((d_norm, d_layers)), x_rows, d_out_rows):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)

    _gather(maps[0], x_rows, layout)
    _gather(maps[1], d_out_rows, layout)
    y, normed, inverse = _normalise(x_rows[...], norm, eps)
    _add_columns(d_layers[-1][1], slice(None), d_out_rows[...])
    gradient = _linear_gradient if len(layers) == 1 else _mlp_gradient
    d_y = _sum_over_chunks(gradient(y, d_out_rows, layers, d_layers), total, layout)
    if norm is not None:
        assert normed is not None and inverse is not None
        _add_columns(d_norm[0], slice(None), d_y * normed)
        _add_columns(d_norm[1], slice(None), d_y)
        d_normed = d_y * norm[0][...]
        along = jnp.mean(d_normed * normed, 1, keepdims=True)
        d_y = inverse * (d_normed - jnp.mean(d_normed, 1, keepdims=True) - normed * along)
    if len(maps) == 3:
        _gather(maps[2], x_rows, layout)
        d_y += x_rows[...].astype(jnp.float32)
    if adds:
        d_y += d_out_rows[...].astype(jnp.float32)
    x_rows[...] = d_y.astype(x_rows.dtype)
    _scatter(x_rows, d_maps[0], layout)


def _linear_gradient(y: Array, d_out_rows, layers, d_layers) -> Callable[[Any], Array]:
    """The share of the product's columns in the gradient of its argument."""
    ((kernel, _),), ((d_kernel, _),) = layers, d_layers
    y_turned = y.T

    def part(at) -> Array:
        d_out = d_out_rows[:, at]
        d_kernel[0, :, at] += dot(y_turned, d_out, (1, 0))
        return dot(d_out, kernel[:, at], (1, 1))

    return part


def _mlp_gradient(y: Array, d_out_rows, layers, d_layers) -> Callable[[Any], Array]:
    """The share of some hidden units in the gradient of the first product's argument."""
    ((kernel1, bias1), (kernel2, _)), ((d_kernel1, d_bias1), (d_kernel2, _)) = layers, d_layers
    d_out = d_out_rows[...]
    y_turned, d_out_turned = y.T, d_out.T

    def part(at) -> Array:
        h, d_active = dot(y, kernel1[:, at], (1, 0)), dot(d_out, kernel2[at, :], (1, 1))
        active, slope = gelu_and_slope(h if bias1 is None else h + bias1[:, at])
        d_h = d_active * slope
        _add_columns(d_bias1, at, d_h)
        d_h = d_h.astype(y.dtype)
        d_kernel1[0, :, at] += dot(y_turned, d_h, (1, 0))
        d_kernel2[0, :, at] += dot(d_out_turned, active.astype(y.dtype), (1, 0))
        return dot(d_h, kernel1[:, at], (1, 1))

    return part


def _sum_over_chunks(part: Callable[[Any], Array], total, layout: Layout) -> Array:
    """The sum of part(columns) over the chunks of the first product; `total` holds it meanwhile
    where they are a loop.
    """
    if not layout.loops:
        return functools.reduce(operator.add, (part(pl.ds(start, layout.chunk)) for start in range(0, layout.widths[0], layout.chunk)))
    total[...] = jnp.zeros(total.shape, total.dtype)

    def add(at) -> None:
        total[...] += part(at)

    _each_chunk(add, layout)
    return total[...]


def _each_chunk(step: Callable[[Any], None], layout: Layout) -> None:
    """step(columns) for the chunks of the first product, written out or, where that takes long to
    compile, as a loop.
    """
    chunk, count = layout.chunk, layout.widths[0] // layout.chunk
    if not layout.loops:
        for i in range(count):
            step(pl.ds(i * chunk, chunk))
    else:

        def body(i, carry):
            step(pl.ds(pl.multiple_of(i * chunk, chunk), chunk))
            return carry

        lax.fori_loop(0, count, body, None)


def _add_columns(ref, at, x: Array) -> None:
    """Adds the sums of the columns to a reference, if there is one."""
    if ref is not None:
        ref[0, :, at] += jnp.sum(x.astype(jnp.float32), 0, keepdims=True)


def _normalise(x: Array, norm, eps: float) -> tuple[Array, Array | None, Array | None]:
    """The argument of the first product; float32, the map before scale and bias, and one over its
    deviation.
    """
    if norm is None:
        return x, None, None
    centred = x.astype(jnp.float32)
    centred -= jnp.mean(centred, 1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(centred * centred, 1, keepdims=True) + eps)
    normed = centred * inverse
    return (normed * norm[0][...] + norm[1][...]).astype(x.dtype), normed, inverse


def _gather(ref, rows, layout: Layout) -> None:
    """Copies the lines of a block below each other."""

    def copy(i, at) -> None:
        rows[at, :] = ref[i]

    _each_line(copy, layout)


def _scatter(rows, ref, layout: Layout) -> None:
    """Copies rows back to the lines that they belong to."""

    def copy(i, at) -> None:
        ref[i] = rows[at, :]

    _each_line(copy, layout)


def _each_line(copy: Callable[..., None], layout: Layout) -> None:
    """copy(line, rows) for each line; few are written out, so that they mix with what follows."""
    if layout.per_program <= _UNROLLED:
        for i in range(layout.per_program):
            copy(i, pl.ds(i * layout.line, layout.n))
    else:

        def step(i, carry):
            copy(i, pl.ds(pl.multiple_of(i * layout.line, SUBLANES), layout.n))
            return carry

        lax.fori_loop(0, layout.per_program, step, None)
