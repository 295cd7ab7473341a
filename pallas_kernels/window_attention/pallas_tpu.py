"""Window attention on TPUs.

A program holds whole images in VMEM, [h, w, heads * head_dim], and goes through their windows row
by row. Which rows of the map a row of windows has is arithmetic on its number; which columns, a
product with a matrix of zeros and ones, which the matrix unit does exactly and which shifts, wraps,
strides (grid) and pads each row of a window to whole sublanes in one go. So partition and shift
cost neither copies in memory nor shuffles in registers.

Logits are kept [keys, queries], so that softmax reduces over sublanes, by plain additions of
registers. Heads of fewer than 128 channels share the lanes: queries are stacked head under head,
each in its own lanes and zero in the others, so one product of full depth gives the logits of
several heads side by side. The backward pass adds up the bias gradient in VMEM from image to image,
in order.
"""

import functools
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from pallas_kernels.dispatch import unsupported_array
from pallas_kernels.logits import LOG2E, NO_KEY, dot
from pallas_kernels.sharding import by_images, indivisible, result_like
from pallas_kernels.tpu import DTYPES, HEAD_DIMS, LANES, SUBLANES, clear_at_first, usable_vmem, wrong_platform
from pallas_kernels.window_attention.tiles import (
    BACKWARD_ARRAYS,
    FORWARD_ARRAYS,
    REGISTERS,
    TpuLayout,
)
from pallas_kernels.window_attention.windows import Axis, Windows
from pallas_kernels.window_attention.xla import partition

VMEM_MARGIN = 8 * 2**20  # for what the compiler keeps beside the arrays
CORES = 2  # cores of a v5p chip that share a grid at most; each adds up bias gradients of its own


def window_attention(query, key, value, *, interpret: bool = False, **options) -> Float[Array, "b h w heads head_dim"]:
    """The operator on canonical arguments.

    `interpret` runs the kernels in an interpreter, for tests.
    """
    return _run((query, key, value), interpret, **options)


def window_attention_qkv(qkv, *, interpret: bool = False, **options) -> Float[Array, "b h w heads head_dim"]:
    """The operator on the fused projection, which is read in place."""
    return _run((qkv,), interpret, **options)


def unsupported_reason(*arrays: Array, window_size, shift, grid, interpret: bool = False, **_) -> str | None:
    """Why the kernels of `window_attention` and of `window_attention_qkv` cannot run these
    arguments here, or None.
    """
    if reason := wrong_platform(interpret=interpret) or indivisible(arrays[0].shape[0]):
        return reason
    if reason := unsupported_array(arrays[0], DTYPES, HEAD_DIMS):
        return reason
    layout = _layout(arrays, window_size, shift, grid)
    usable = usable_vmem()
    if (needed := layout.vmem_bytes(BACKWARD_ARRAYS, len(layout.windows.offsets()[0]))) > usable:
        return f"the backward pass of so large a map needs {needed >> 20} MiB of VMEM, above {usable >> 20}"
    return None


def _layout(arrays: Sequence[Array], window_size, shift, grid) -> TpuLayout:
    b, h, w, *_, heads, head_dim = arrays[0].shape
    return TpuLayout(Windows.of((h, w), window_size, shift, grid), (b, h, w, heads, head_dim), arrays[0].dtype.itemsize)


def _run(arrays, interpret, *, window_size, shift, grid, bias, mask, scale):
    if mask is not None:  # a hidden token may hold anything, NaN too
        arrays = _hide(arrays, mask)

    def attend(arrays, bias, mask):
        layout = _layout(arrays, window_size, shift, grid)
        b, h, w, _, _ = layout.shape
        arrays = tuple(x.reshape(b, h, w, -1) for x in arrays)
        out: Array = _attend(arrays, bias, mask, layout, scale, interpret)  # pyright: ignore[reportAssignmentType]
        return out.reshape(layout.shape)

    return by_images(attend, arrays, bias, mask, heads=True)


def _hide(arrays: tuple[Array, ...], mask: Bool[Array, "b h w"]) -> tuple[Array, ...]:
    if len(arrays) == 1:
        is_query = np.arange(3)[:, None, None] == 0
        return (jnp.where(mask[..., None, None, None] | is_query, arrays[0], 0),)
    return arrays[0], *(jnp.where(mask[..., None, None], x, 0) for x in arrays[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attend(arrays, bias, mask, layout: TpuLayout, scale: float, interpret: bool):
    return _forward(arrays, bias, mask, layout, scale, interpret)[0]


def _forward(arrays, bias, mask, layout: TpuLayout, scale: float, interpret: bool):
    kernel = functools.partial(forward_kernel, layout=layout, scale=scale)
    ((out,), _) = _call(kernel, "window_attention_forward", arrays, bias, mask, (layout.width,), False, layout, interpret)
    return out, (arrays, bias, mask)


def _backward(layout: TpuLayout, scale: float, interpret: bool, residuals, d_out):
    arrays, bias, mask = residuals
    kernel = functools.partial(backward_kernel, layout=layout, scale=scale)
    channels, sums = tuple(x.shape[-1] for x in arrays), bias is not None
    grads, d_tables = _call(kernel, "window_attention_backward", (*arrays, d_out), bias, mask, channels, sums, layout, interpret)
    return grads, _unpack(d_tables[0].sum(0), layout).astype(bias.dtype) if sums else None, None


_attend.defvjp(_forward, _backward)


def _call(kernel, name: str, maps, bias, mask, channels: tuple[int, ...], sums_bias: bool, layout: TpuLayout, interpret: bool):
    """Runs a kernel over the images.

    Returns maps of so many channels and each core's sum of bias gradients, if any.
    """
    b, h, w, _, _ = layout.shape
    num_maps = (sum(x.shape[-1] for x in maps) + sum(channels)) // layout.width
    images = layout.images(num_maps)
    cores = CORES if (b // images) % CORES == 0 else 1
    steps = b // images // cores

    def blocks(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((images, *shape), lambda core, step, *_: (core * steps + step, *(0 for _ in shape)))

    def whole(x) -> pl.BlockSpec:
        return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)

    offsets, kind = layout.windows.offsets()
    select = _select(layout.windows.cols, layout.row_slots).astype(maps[0].dtype)
    constants = (select, select.T, _spread(layout).astype(maps[0].dtype), _tables(bias, offsets, layout))
    seen = () if mask is None else (_seen(mask, layout),)
    sums = (cores, *layout.logits)
    like = maps[0]
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(cores, steps),
            in_specs=(
                tuple(blocks(*x.shape[1:]) for x in maps),
                tuple(whole(x) for x in constants),
                tuple(blocks(*x.shape[1:]) for x in seen),
            ),
            out_specs=(
                tuple(blocks(h, w, n) for n in channels),
                (pl.BlockSpec((1, *sums[1:]), lambda core, *_: (core, 0, 0, 0)),) if sums_bias else (),
            ),
            scratch_shapes=[pltpu.VMEM((layout.windows.cols.num_windows, layout.slots, layout.width), jnp.float32)]
            * (num_maps * layout.rows_together(num_maps)),
        ),
        out_shape=(
            tuple(result_like(like, (b, h, w, n)) for n in channels),
            (result_like(like, sums, jnp.float32),) if sums_bias else (),
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=layout.vmem_bytes(num_maps, len(offsets)) + VMEM_MARGIN
        ),
        name=name,
        interpret=interpret,
    )(jnp.asarray(kind, jnp.int32), maps, constants, seen)


def _select(axis: Axis, row_slots: int) -> Array:
    """Ones where a slot of the windows, one row each, holds a column of the map, [windows *
    row_slots, columns].
    """
    window, slot = np.divmod(np.arange(axis.num_windows * row_slots), row_slots)
    position = np.where(slot < axis.window, axis.position(window, slot), -1)
    return jnp.asarray(position[:, None] == np.arange(axis.size))


def _spread(layout: TpuLayout) -> Array:
    """Ones where a lane of the logits is a query's slot, [slots, lanes]."""
    return jnp.asarray(np.arange(layout.slots)[:, None] == np.arange(layout.logits[2]) % layout.query_lanes)


def _tables(bias: Array | None, offsets: np.ndarray, layout: TpuLayout) -> Float[Array, "kinds groups slots lanes"]:
    """Summands of the logits of each kind of window, in units of log 2; padded keys are hidden."""
    tables = jnp.asarray(offsets)[:, None] if bias is None else jnp.asarray(offsets)[:, None] + bias.astype(jnp.float32)
    tables = tables.mT * LOG2E  # kinds, heads, key slots, query slots
    rows, cols = layout.windows.rows.window, layout.windows.cols.window
    kinds, heads = len(offsets), layout.shape[3]
    tables = jnp.broadcast_to(tables, (kinds, heads, *tables.shape[2:])).reshape(kinds, heads, rows, cols, rows, cols)
    extra = (0, layout.row_slots - cols)
    tables = jnp.pad(tables, ((0, 0),) * 5 + (extra,))
    tables = jnp.pad(tables, ((0, 0),) * 3 + (extra, (0, 0), (0, 0)), constant_values=NO_KEY)
    tables = tables.reshape(kinds, heads, layout.slots, layout.slots)
    tables = jnp.pad(tables, ((0, 0),) * 3 + ((0, layout.query_lanes - layout.slots),))
    return jnp.stack([_beside([tables[:, head] for head in heads], layout) for heads in layout.group_heads], 1)


def _beside(parts: Sequence[Array], layout: TpuLayout) -> Array:
    """The heads of a group side by side; what is left of the lanes is zero."""
    return jnp.concatenate([*parts, *(jnp.zeros_like(parts[0]) for _ in range(layout.pack - len(parts)))], -1)


def _unpack(d_table: Float[Array, "groups padded lanes"], layout: TpuLayout) -> Float[Array, "heads slots slots"]:
    """The inverse of `_tables` for one kind, without the padding."""
    rows, cols = layout.windows.rows.window, layout.windows.cols.window
    heads = [
        d_table[g, :, i * layout.query_lanes :][:, : layout.slots] for g, group in enumerate(layout.group_heads) for i in range(len(group))
    ]
    x = jnp.stack(heads).reshape(-1, rows, layout.row_slots, rows, layout.row_slots)[:, :, :cols, :, :cols]
    return x.reshape(-1, rows * cols, rows * cols).mT


def _seen(mask: Bool[Array, "b h w"], layout: TpuLayout) -> Float[Array, "b windows slots"]:
    """Zero for slots whose token may be seen."""
    rows, cols = layout.windows.rows.window, layout.windows.cols.window
    seen = partition(mask[..., None, None], layout.windows)[:, :, 0, :, 0]
    seen = jnp.where(seen, 0.0, NO_KEY).reshape(*seen.shape[:2], rows, cols)
    return jnp.pad(seen, ((0, 0),) * 3 + ((0, layout.row_slots - cols),)).reshape(*seen.shape[:2], layout.slots)


def forward_kernel(kind_ref, map_refs, constant_refs, seen_refs, out_refs, _, *window_refs, layout: TpuLayout, scale: float):
    """All windows and heads of the images of a program."""
    select_ref, merge_ref, spread_ref, table_ref = constant_refs
    dtype, images = map_refs[0].dtype, map_refs[0].shape[0]

    def gather(image, row, refs):
        _gather(map_refs, refs[:3], image, row, select_ref, layout)

    def attend(image, row, refs):
        *in_refs, out_ref = refs

        def batch(items, pairs, numbers):
            q, k, v = ([ref[item.window, :, item.channels] for item in items] for ref in in_refs)
            k, v = [x.astype(dtype) for x in k], [x.T.astype(dtype) for x in v]
            seen = [_seen_keys(seen_refs, image, number, layout) for number in numbers]
            logits = [dot(k[n], _stack(q[n], heads, dtype, layout), (1, 1)) for n, _, heads in pairs]
            tables = [table_ref[kind_ref[numbers[n]], g] for n, g, _ in pairs]
            weights = [_softmax(x, table, seen[n], scale) for x, table, (n, _, _) in zip(logits, tables, pairs, strict=True)]
            outs = [_of_heads(v[n], x.astype(dtype), heads, layout) for x, (n, _, heads) in zip(weights, pairs, strict=True)]
            for item, x in zip(items, _to_queries(outs, pairs, spread_ref), strict=True):
                out_ref[item.window, :, item.channels] = x

        _each_batch(batch, row, layout)

    def scatter(image, row, refs):
        _scatter(refs[3:], out_refs, image, row, merge_ref, layout)

    _each_row_of_windows((gather, attend, scatter), images, window_refs, FORWARD_ARRAYS, layout)


def backward_kernel(kind_ref, map_refs, constant_refs, seen_refs, grad_refs, sum_refs, *window_refs, layout: TpuLayout, scale: float):
    """Gradients of all windows and heads of a program's images, and the sum of the bias gradients
    of all programs of a core.
    """
    select_ref, merge_ref, spread_ref, table_ref = constant_refs
    dtype, images = map_refs[0].dtype, map_refs[0].shape[0]
    clear_at_first(sum_refs, (1,))

    def gather(image, row, refs):
        _gather(map_refs, refs[:4], image, row, select_ref, layout)

    def attend(image, row, refs):
        in_refs, out_refs = refs[:4], refs[4:]

        def batch(items, pairs, numbers):
            q, k, v, d_out = ([ref[item.window, :, item.channels] for item in items] for ref in in_refs)
            k_by_channel, k, v = [x.T.astype(dtype) for x in k], [x.astype(dtype) for x in k], [x.astype(dtype) for x in v]
            seen = [_seen_keys(seen_refs, image, number, layout) for number in numbers]
            q, d_out = ([_stack(x[n], heads, dtype, layout) for n, _, heads in pairs] for x in (q, d_out))
            logits = [dot(k[n], x, (1, 1)) for x, (n, _, _) in zip(q, pairs, strict=True)]
            d_weights = [dot(v[n], x, (1, 1)) for x, (n, _, _) in zip(d_out, pairs, strict=True)]
            tables = [table_ref[kind_ref[numbers[n]], g] for n, g, _ in pairs]
            weights = [_softmax(x, table, seen[n], scale) for x, table, (n, _, _) in zip(logits, tables, pairs, strict=True)]
            d_logits = [x * (dx - jnp.sum(x * dx, 0, keepdims=True)) for x, dx in zip(weights, d_weights, strict=True)]
            for sum_ref in sum_refs:
                for x, (_, g, _) in zip(d_logits, pairs, strict=True):
                    sum_ref[0, g] += x
            d_logits = [x.astype(dtype) for x in d_logits]
            d_values = [dot(x.astype(dtype), dx, (1, 0)) for x, dx in zip(weights, d_out, strict=True)]
            d_keys = [dot(dx, x, (1, 0)) * scale for dx, x in zip(d_logits, q, strict=True)]
            d_queries = [_of_heads(k_by_channel[n], x, heads, layout) * scale for x, (n, _, heads) in zip(d_logits, pairs, strict=True)]
            grads = _to_queries(d_queries, pairs, spread_ref), _sum_groups(d_keys, pairs), _sum_groups(d_values, pairs)
            for ref, xs in zip(out_refs, grads, strict=True):
                for item, x in zip(items, xs, strict=True):
                    ref[item.window, :, item.channels] = x

        _each_batch(batch, row, layout)

    def scatter(image, row, refs):
        _scatter(refs[4:], grad_refs, image, row, merge_ref, layout)

    _each_row_of_windows((gather, attend, scatter), images, window_refs, BACKWARD_ARRAYS, layout)


def _each_row_of_windows(phases, images: int, window_refs, each: int, layout: TpuLayout) -> None:
    """Runs the phases over all rows of windows, several together where there are buffers for them,
    `each` for one row.
    """
    rows, together = layout.windows.rows.num_windows, len(window_refs) // each

    def iteration(i, carry):
        for phase in phases:
            for n in range(together):
                at = i * together + n
                phase(at // rows, at % rows, window_refs[n * each : (n + 1) * each])
        return carry

    lax.fori_loop(0, images * rows // together, iteration, None)


class Item(NamedTuple):
    """Some heads of one window."""

    window: Array
    channels: slice


def _each_batch(body, row, layout: TpuLayout) -> None:
    """Goes through the windows of a row in batches, whose steps the kernels interleave to hide
    latencies.

    `body` gets the items, the number of the item, the number of the group and the heads for each
    group of them, and the number of each item's window.
    """
    cols, chunks = layout.windows.cols.num_windows, layout.chunks
    groups, slots, lanes = layout.logits
    fit = max(1, REGISTERS * len(chunks) * SUBLANES * LANES // (groups * slots * lanes))
    together = max(n for n in range(1, cols + 1) if cols % n == 0 and n <= max(1, fit // len(chunks)))

    def iteration(i, carry):
        work = [(i * together + n, chunk) for n in range(together) for chunk in chunks]
        for start in range(0, len(work), fit):
            part = work[start : start + fit]
            pairs = [(n, g, heads) for n, (_, chunk) in enumerate(part) for g, heads in chunk.groups]
            body([Item(window, chunk.channels) for window, chunk in part], pairs, [row * cols + window for window, _ in part])
        return carry

    lax.fori_loop(0, cols // together, iteration, None)


def _gather(map_refs, window_refs, image, row_of_windows, select_ref, layout: TpuLayout) -> None:
    """Copies the rows of the map that a row of windows has to [windows, slots, channels] each, zero
    where there is no token.
    """
    axis, refs = layout.windows.rows, iter(window_refs)
    rows = [axis.position(row_of_windows, slot) for slot in range(axis.window)]
    for map_ref in map_refs:
        xs = [map_ref[image, jnp.minimum(row, axis.size - 1)] for row in rows]  # columns, channels
        if axis.padded != axis.size:
            xs = [jnp.where(row < axis.size, x, jnp.zeros_like(x)) for x, row in zip(xs, rows, strict=True)]
        xs = [dot(select_ref[...], x, (1, 0)).reshape(-1, layout.row_slots, x.shape[-1]) for x in xs]
        for start in range(0, map_ref.shape[-1], layout.width):
            ref = next(refs)
            for slot, x in enumerate(xs):
                ref[:, pl.ds(slot * layout.row_slots, layout.row_slots)] = x[:, :, start : start + layout.width]


def _scatter(window_refs, map_refs, image, row_of_windows, merge_ref, layout: TpuLayout) -> None:
    """The inverse of `_gather`."""
    axis, each = layout.windows.rows, len(window_refs) // len(map_refs)
    rows = [axis.position(row_of_windows, slot) for slot in range(axis.window)]
    for i, map_ref in enumerate(map_refs):
        refs = window_refs[i * each : (i + 1) * each]
        slots = [pl.ds(slot * layout.row_slots, layout.row_slots) for slot in range(axis.window)]
        xs = [jnp.concatenate([ref[:, at] for ref in refs], -1).astype(map_ref.dtype) for at in slots]
        xs = [dot(merge_ref[...], x.reshape(-1, x.shape[-1]), (1, 0)).astype(map_ref.dtype) for x in xs]
        for row, x in zip(rows, xs, strict=True):
            if axis.padded == axis.size:
                map_ref[image, row] = x
            else:

                @pl.when(row < axis.size)
                def _(map_ref=map_ref, row=row, x=x):
                    map_ref[image, row] = x


def _seen_keys(seen_refs, image, number, layout: TpuLayout):
    """Summands of a window's logits that hide masked keys, [slots, 1], or None."""
    if not seen_refs:
        return None
    row, col = (lax.broadcasted_iota(jnp.int32, (layout.slots, layout.slots), i) for i in (0, 1))
    return jnp.sum(jnp.where(row == col, seen_refs[0][image, pl.ds(number, 1)], 0.0), 1, keepdims=True)


def _softmax(logits, table, seen, scale: float):
    """Over the keys for each query and head of a group, [slots, lanes]."""
    logits = logits * (scale * LOG2E) + table
    if seen is not None:
        logits += seen
    weights = jnp.exp2(logits - jnp.max(logits, 0, keepdims=True))
    if seen is not None:
        weights = jnp.where(logits > NO_KEY / 2, weights, 0.0)  # a query that sees no key gets zeros
    return weights * (1 / jnp.maximum(jnp.sum(weights, 0, keepdims=True), jnp.finfo(jnp.float32).tiny))


def _stack(x, heads: tuple[int, ...], dtype, layout: TpuLayout):
    """The heads of a group one under the other, each in its own lanes, [lanes of the logits,
    channels].
    """
    padding = jnp.zeros((layout.query_lanes - layout.slots, x.shape[1]), x.dtype)
    parts = []
    for i in range(layout.pack):
        parts += [_own_lanes(x, heads[i], layout) if i < len(heads) else jnp.zeros_like(x), *([padding] if padding.size else [])]
    return jnp.concatenate(parts, 0).astype(dtype)


def _own_lanes(x, head: int, layout: TpuLayout):
    """Zero in the lanes of other heads."""
    if x.shape[1] == layout.shape[4]:
        return x
    return jnp.where(lax.broadcasted_iota(jnp.int32, x.shape, 1) // layout.shape[4] == head, x, 0.0)


def _of_heads(x, weights, heads: tuple[int, ...], layout: TpuLayout):
    """The keys' values, [channels of a chunk, slots], times the weights of a group, [channels of
    the group, lanes]; zero off the heads.
    """
    head_dim = layout.shape[4]
    out = dot(x[heads[0] * head_dim : (heads[-1] + 1) * head_dim], weights, (1, 0))
    if layout.pack == 1:
        return out
    row, lane = (lax.broadcasted_iota(jnp.int32, out.shape, i) for i in (0, 1))
    return jnp.where(row // head_dim == lane // layout.query_lanes, out, 0.0)


def _to_queries(outs, pairs, spread_ref) -> list:
    """The results of each item's groups, transposed and off the lanes of their heads, [slots,
    channels].
    """
    outs = [jnp.concatenate(parts, 0).astype(spread_ref.dtype) for parts in _by_item(outs, pairs)]
    return [dot(spread_ref[...], x, (1, 1)) for x in outs]


def _sum_groups(xs, pairs) -> list:
    return [functools.reduce(operator.add, parts) for parts in _by_item(xs, pairs)]


def _by_item(xs, pairs) -> list[list]:
    return [[x for x, pair in zip(xs, pairs, strict=True) if pair[0] == n] for n in range(pairs[-1][0] + 1)]
