"""Neighborhood attention on TPUs.

A program holds a map, or a strip of its slices with the keys around it, in VMEM, [slices, rows, columns, channels]; maps of
fewer axes have one slice or row. Tiles of a few queries meet the block of keys that any of them sees. Along the first two
axes that is an index, which is free; along the columns, which lie in sublanes, keys are copied once to a buffer whose
beginning before the map is chosen so that key blocks fall on whole registers. The tiles have few distinct sights (at the
borders windows are shifted); a table for each, mask and bias together, is added to the logits.

Logits are [queries, keys], 128 keys wide or a multiple. Heads of fewer than 128 channels share the lanes, as do images of
fewer: queries are stacked head under head, each in its own lanes and zero in the others, so that a product of full depth
gives the logits of each head. The backward pass recomputes the weights, adds up the gradients of keys and values in VMEM,
and those of the table from tile to tile and image to image, in order.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.neighborhood_attention.extra import attend_extra
from pallas_kernels.neighborhood_attention.layout import bias_of_three_axes, by_class, from_classes, three_axes
from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.neighborhood_attention.reference import NO_KEY
from pallas_kernels.neighborhood_attention.tiles import (
    FULL_TILE,
    HALF_TILE,
    LANES,
    TPU_VMEM_BYTES,
    TPU_VMEM_BYTES_ELSEWHERE,
    UNROLLED,
    Strips,
    TpuPlan,
    padded,
)
from pallas_kernels.sharding import by_images, indivisible, result_like
from pallas_kernels.target import device_kind, platform
from pallas_kernels.window_attention import expand_bias
from pallas_kernels.window_attention import pallas_tpu as windows

LOG2E = math.log2(math.e)  # logits are kept in units of log 2
DTYPES = ("bfloat16", "float32")
HEAD_DIMS = (16, 32, 64, 128)
CORES = 2  # of a v5p chip, at most, that share a grid; each adds up table gradients of its own
ROWS_TOGETHER = 8
VMEM_MARGIN = 8 * 2**20  # for what the compiler keeps beside the arrays


def unsupported_reason(query, key, value, *, axes: tuple[Axis, ...], interpret: bool = False, **_) -> str | None:
    """Interpreted, a kernel runs on any platform."""
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    if not interpret and (here := platform()) != "tpu":
        return f"it needs a TPU, not {here}"
    if reason := indivisible(query.shape[0]):
        return reason
    if query.dtype.name not in DTYPES:
        return f"dtype {query.dtype.name} is not one of {', '.join(DTYPES)}"
    if head_dim not in HEAD_DIMS:
        return f"{head_dim=} is not one of {', '.join(map(str, HEAD_DIMS))}"
    if value_dim != head_dim:
        return f"{value_dim=} is not {head_dim=}"
    plan = _plan(query, axes)
    if (needed := plan.vmem_bytes(plan.strips(backward=True), backward=True)) > plan.vmem:
        return f"the backward pass needs {needed >> 20} MiB of VMEM for such windows or columns, above {plan.vmem >> 20}"
    return None


def _plan(query, axes: tuple[Axis, ...]) -> TpuPlan:
    b, *_, heads, head_dim = query.shape
    if heads * head_dim > LANES:
        heads = padded(heads, LANES // head_dim)
    vmem = TPU_VMEM_BYTES.get(device_kind(), TPU_VMEM_BYTES_ELSEWHERE)
    return TpuPlan(three_axes(axes), b, heads, head_dim, query.dtype.itemsize, vmem)


def neighborhood_attention(
    query,
    key,
    value,
    *,
    axes: tuple[Axis, ...],
    bias,
    scale: float,
    extra_key,
    extra_value,
    return_logsumexp: bool,
    interpret: bool = False,
) -> tuple[Float[Array, "b *spatial heads head_dim"], Float[Array, "b *spatial heads"] | None]:
    """See the operator for the arguments, canonical here; `interpret` is for tests."""
    if not return_logsumexp and extra_key is None and _is_grid(query, key, axes, interpret):
        if bias is not None:
            bias = expand_bias(bias[:, ::-1, ::-1].astype(jnp.float32), _kernel(axes))  # its offsets are query - key
        return windows.window_attention(query, key, value, interpret=interpret, bias=bias, mask=None, scale=scale, **_grid(axes)), None

    def attend(arrays, bias, _):
        query, key, value, extra_key, extra_value = arrays
        plan, shape = _plan(query, axes), query.shape
        shared, missing = query.shape[-2] // key.shape[-2], plan.heads - query.shape[-2]
        if bias is not None:
            bias = jnp.pad(bias_of_three_axes(bias, axes).astype(jnp.float32), ((0, missing), *((0, 0),) * 3))
        maps = (query, *(jnp.repeat(x, shared, -2) if shared > 1 else x for x in (key, value)))
        maps = tuple(by_class(jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, missing), (0, 0))), axes) for x in maps)
        call = Call(plan, logsumexp=return_logsumexp or extra_key is not None, sums=bias is not None, interpret=interpret)
        results: Sequence[Array] = _attend(maps, _tables(bias, plan), call, scale)  # pyright: ignore[reportAssignmentType]
        out, *logsumexp = (from_classes(x, axes, (*shape[:-2], plan.heads, shape[-1]))[..., : shape[-2], :] for x in results)
        if not logsumexp:
            return out, None
        if extra_key is not None:
            return attend_extra(out, logsumexp[0][..., 0], query, extra_key, extra_value, scale)
        return out, logsumexp[0][..., 0]

    return by_images(attend, (query, key, value, extra_key, extra_value), bias, None)


def _is_grid(query, key, axes: tuple[Axis, ...], interpret: bool) -> bool:
    """Whether each query sees all of its residue class, so that this is attention within a grid, which no map is put in order for."""
    whole = len(axes) == 2 and all(axis.size == axis.kernel * axis.dilation and not axis.causal for axis in axes)
    if not whole or query.shape != key.shape or all(axis.dilation == 1 for axis in axes):
        return False
    return windows.unsupported_reason(query, key, query, interpret=interpret, **_grid(axes)) is None


def _grid(axes: tuple[Axis, ...]) -> dict[str, Any]:
    return {"window_size": _kernel(axes), "shift": (0, 0), "grid": True}


def _kernel(axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis.kernel for axis in axes)


def _tables(bias, plan: TpuPlan) -> Float[Array, "chunks kinds rows keys"]:
    """What is added to the logits for each sight of a tile, in units of log 2; without a bias the same for all chunks of heads."""
    seen = np.ones((1, 1, 1), bool)
    for tile in plan.tiles:
        seen = np.einsum("aqk,bxy->abqxky", seen, tile.seen)
        seen = seen.reshape(seen.shape[0] * seen.shape[1], seen.shape[2] * seen.shape[3], -1)
    mask = np.where(seen, 0.0, NO_KEY).astype(np.float32)
    if bias is None:
        return jnp.tile(jnp.asarray(mask)[None], (1, 1, plan.pack, 1))
    for tile in plan.tiles:  # the first axis of offsets becomes kinds, queries and keys, the last ones
        at = (tile.offsets[..., None] == np.arange(bias.shape[1])).astype(np.float32)
        bias = jnp.einsum("ho...,aqko->h...aqk", bias, at, precision="highest")
    bias = bias.transpose(0, 1, 4, 7, 2, 5, 8, 3, 6, 9).reshape(plan.chunks, 1, -1, *mask.shape)
    bias = jnp.broadcast_to(bias, (plan.chunks, plan.fold, *bias.shape[2:])).reshape(plan.chunks, plan.pack, *mask.shape)
    return (bias * LOG2E + mask).swapaxes(1, 2).reshape(plan.chunks, len(mask), -1, plan.keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(maps, tables, call: "Call", scale: float):
    return _forward(maps, tables, call, scale)[0]


def _forward(maps, tables, call: "Call", scale: float):
    query = maps[0]
    results = (result_like(query, query.shape), *((result_like(query, query.shape, jnp.float32),) if call.logsumexp else ()))
    out = call.run(forward_kernel, scale, (query,), maps[1:], tables, results, ())
    return out, (maps, tables)


def _backward(call: "Call", scale: float, residuals, cotangents):
    (query, *keys), tables = residuals
    call = dataclasses.replace(call, backward=True)
    d_keys = tuple(result_like(x, x.shape) for x in keys)
    if call.strips.count > 1:
        n, _, *rest = query.shape
        d_keys = tuple(result_like(x, (n, call.strips.count, call.strips.keys, *rest), jnp.float32) for x in keys)
    results = (result_like(query, query.shape),)
    d_query, *d_keys = call.run(backward_kernel, scale, (query, *cotangents), keys, tables, results, d_keys)
    d_tables = d_keys.pop().sum(0) * (1 / LOG2E) if call.sums else jnp.zeros_like(tables)
    if call.strips.count > 1:
        d_keys = (_overlap(x, query.shape, call.strips).astype(query.dtype) for x in d_keys)
    return (d_query, *d_keys), d_tables


_attend.defvjp(_forward, _backward)


def _overlap(parts: Float[Array, "n strips keys rows cols channels"], shape: tuple[int, ...], strips: Strips) -> Array:
    """The sum of the strips' gradients, one after the other."""
    out = jnp.zeros(shape, parts.dtype)
    for i, start in enumerate(strips.starts.tolist()):
        whole = lax.slice_in_dim(out, start, start + strips.keys, axis=1) + parts[:, i]
        out = lax.dynamic_update_slice_in_dim(out, whole, start, 1)
    return out


class Scalars(NamedTuple):
    """What the scalar core reads: where strips and the key blocks of tiles begin, and the kinds of tiles, axis by axis."""

    strips: Array
    slices: Array
    rows: Array
    cols: Array
    slice_kinds: Array  # of each residue class and tile, in steps of the product of kinds of the axes after it
    row_kinds: Array
    col_kinds: Array


SCALARS = len(Scalars._fields)


def _scalars(plan: TpuPlan, strips: Strips) -> Scalars:
    _, rows, cols = plan.tiles
    steps = (len(rows.seen) * len(cols.seen), len(cols.seen), 1)
    kinds = (tile.kind.reshape(-1) * step for tile, step in zip(plan.tiles, steps, strict=True))
    return Scalars(*(jnp.asarray(x, jnp.int32) for x in (strips.starts, strips.tile_starts, rows.starts, cols.starts, *kinds)))


@dataclasses.dataclass(frozen=True)
class Call:
    """How a kernel is run."""

    plan: TpuPlan
    logsumexp: bool  # is a result too, spread over the channels of its head
    sums: bool  # of the gradients of the tables are wanted
    interpret: bool
    backward: bool = False

    @property
    def strips(self) -> Strips:
        return self.plan.strips(backward=self.backward)

    @property
    def images(self) -> int:
        """Of a program."""
        return self.plan.fold * (self.plan.folds(backward=self.backward) if self.strips.count == 1 else 1)

    def run(self, kernel, scale: float, query_maps, key_maps, tables, query_results, key_results) -> Sequence[Array]:
        """Runs over all images, chunks of heads and strips; if wanted the sum of table gradients of each core is the last result."""
        plan, strips = self.plan, self.strips
        blocks = query_maps[0].shape[0] // self.images
        cores = CORES if blocks % CORES == 0 else 1
        grid = (cores, plan.chunks, blocks // cores, strips.count)
        sums = self.backward and self.sums
        table_block = (1, *tables.shape[1:])
        several = tables.shape[0] > 1
        query_buffer, key_buffer = plan.buffers(strips)
        scratch = [pltpu.VMEM(query_buffer, jnp.float32) for _ in (*query_maps, *query_results)]
        scratch += [pltpu.VMEM((plan.copies, *key_buffer), x.dtype) for x in key_maps]
        scratch += [pltpu.VMEM(key_buffer, jnp.float32) for _ in key_results]
        return pl.pallas_call(
            functools.partial(kernel, call=self, scale=scale),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=SCALARS,
                grid=grid,
                in_specs=[
                    *(self._queries(x, grid[2]) for x in query_maps),
                    *(self._keys(x, grid[2]) for x in key_maps),
                    pl.BlockSpec(table_block, lambda core, chunk, *_: (chunk * several, 0, 0, 0)),
                ],
                out_specs=[
                    *(self._queries(x, grid[2]) for x in query_results),
                    *(self._parts(x, grid[2]) for x in key_results),
                    *([pl.BlockSpec((1, *table_block), lambda core, chunk, *_: (core, chunk, 0, 0, 0))] if sums else []),
                ],
                scratch_shapes=scratch,
            ),
            out_shape=[*query_results, *key_results, *([result_like(query_maps[0], (cores, *tables.shape), jnp.float32)] if sums else [])],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
                vmem_limit_bytes=plan.vmem_bytes(strips, backward=self.backward) + VMEM_MARGIN,
            ),
            name="neighborhood_attention_" + ("backward" if self.backward else "forward"),
            interpret=self.interpret,
        )(*_scalars(plan, strips), *query_maps, *key_maps, tables)

    def _queries(self, x, steps: int) -> pl.BlockSpec:
        shape = (self.images, self.strips.queries, *x.shape[2:-1], self.plan.channels)
        return pl.BlockSpec(shape, lambda core, chunk, step, strip, *_: (core * steps + step, strip, 0, 0, chunk))

    def _keys(self, x, steps: int) -> pl.BlockSpec:
        """Strips overlap, so that they are told by their first element."""
        if self.strips.count == 1:
            return self._queries(x, steps)
        images, channels = self.images, self.plan.channels
        shape = tuple(pl.Element(n) for n in (images, self.strips.keys, *x.shape[2:-1], channels))
        return pl.BlockSpec(
            shape, lambda core, chunk, step, strip, starts, *_: ((core * steps + step) * images, starts[strip], 0, 0, chunk * channels)
        )

    def _parts(self, x, steps: int) -> pl.BlockSpec:
        if self.strips.count == 1:
            return self._queries(x, steps)
        shape = (self.images, None, *x.shape[2:-1], self.plan.channels)
        return pl.BlockSpec(shape, lambda core, chunk, step, strip, *_: (core * steps + step, strip, 0, 0, 0, chunk))


def forward_kernel(*refs, call: Call, scale: float):
    """All tiles of the images and heads of a program."""
    program, (q_map, k_map, v_map, table_ref, *refs) = Program.this(call, refs[:SCALARS]), refs[SCALARS:]
    results = 2 if call.logsumexp else 1
    out_maps, (q_ref, *out_refs), (k_ref, v_ref) = refs[:results], refs[results:-2], refs[-2:]
    plan, dtype = call.plan, q_map.dtype

    def image(n, carry):
        _gather_queries([q_map], [q_ref], n, program)
        _gather_keys([k_map, v_map], [k_ref, v_ref], n, call)

        def batch(tiles: list[Tile]):
            q = [_stack(tile.queries(q_ref), dtype, plan) for tile in tiles]
            logits = [_dot(x, tile.keys(k_ref), (1, 1)) for x, tile in zip(q, tiles, strict=True)]
            logits = [x * (scale * LOG2E) + table_ref[0, tile.kind] for x, tile in zip(logits, tiles, strict=True)]
            tops = [jnp.max(x, 1, keepdims=True) for x in logits]
            weights = [jnp.exp2(x - top) for x, top in zip(logits, tops, strict=True)]
            totals = [jnp.sum(x, 1, keepdims=True) for x in weights]
            outs = [_dot(x.astype(dtype), tile.keys(v_ref), (1, 0)) for x, tile in zip(weights, tiles, strict=True)]
            for tile, out, top, total in zip(tiles, outs, tops, totals, strict=True):
                total = _own_lanes(jnp.broadcast_to(total, out.shape), plan)
                tile.store(out_refs[0], _own_lanes(out, plan) * _reciprocal(total, dtype))
                if call.logsumexp:
                    top = _own_lanes(jnp.broadcast_to(top, out.shape), plan)
                    tile.store(out_refs[1], (top + jnp.log2(total)) * (1 / LOG2E))

        _each_batch(batch, program)
        _scatter_queries(out_refs, out_maps, n, call)
        return carry

    lax.fori_loop(0, call.images // plan.fold, image, 0)


def backward_kernel(*refs, call: Call, scale: float):
    """The same, and the sum of the table gradients of all programs of a core."""
    program, refs = Program.this(call, refs[:SCALARS]), refs[SCALARS:]
    inputs = 3 if call.logsumexp else 2
    query_maps, (k_map, v_map, table_ref), refs = refs[:inputs], refs[inputs : inputs + 3], refs[inputs + 3 :]
    d_query_map, *d_key_maps = refs[:3]
    sum_refs, refs = (refs[3:4], refs[4:]) if call.sums else ((), refs[3:])
    query_refs, (dq_ref, k_ref, v_ref, *d_key_refs) = refs[:inputs], refs[inputs:]
    dk_ref, dv_ref = d_key_refs
    plan, dtype = call.plan, query_maps[0].dtype
    for sum_ref in sum_refs:

        @pl.when((pl.program_id(2) == 0) & (pl.program_id(3) == 0))
        def _(sum_ref=sum_ref):
            sum_ref[...] = jnp.zeros(sum_ref.shape, sum_ref.dtype)

    def image(n, carry):
        _gather_queries(query_maps, query_refs, n, program)
        _gather_keys([k_map, v_map], [k_ref, v_ref], n, call)
        _clear(d_key_refs)

        def batch(tiles: list[Tile]):
            q, d_out = ([_stack(tile.queries(ref), dtype, plan) for tile in tiles] for ref in query_refs[:2])
            logits = [_dot(x, tile.keys(k_ref), (1, 1)) for x, tile in zip(q, tiles, strict=True)]
            d_weights = [_dot(x, tile.keys(v_ref), (1, 1)) for x, tile in zip(d_out, tiles, strict=True)]
            logits = [x * (scale * LOG2E) + table_ref[0, tile.kind] for x, tile in zip(logits, tiles, strict=True)]
            weights = [jnp.exp2(x - jnp.max(x, 1, keepdims=True)) for x in logits]
            weights = [x * _reciprocal(jnp.sum(x, 1, keepdims=True), dtype) for x in weights]
            means = [jnp.sum(x * dx, 1, keepdims=True) for x, dx in zip(weights, d_weights, strict=True)]
            for ref in query_refs[2:]:  # the logsumexp's
                means = [x - _sum_of_own_lanes(tile.queries(ref), plan) for x, tile in zip(means, tiles, strict=True)]
            d_logits = [x * (dx - mean) for x, dx, mean in zip(weights, d_weights, means, strict=True)]
            for sum_ref in sum_refs:
                for x, tile in zip(d_logits, tiles, strict=True):
                    sum_ref[0, 0, tile.kind] += x
            d_logits = [x.astype(dtype) for x in d_logits]
            d_values = [_dot(x.astype(dtype), dx, (0, 0)) for x, dx in zip(weights, d_out, strict=True)]
            d_keys = [_dot(dx, x, (0, 0)) * scale for dx, x in zip(d_logits, q, strict=True)]
            d_queries = [_dot(dx, tile.keys(k_ref), (1, 0)) for dx, tile in zip(d_logits, tiles, strict=True)]
            for tile, dq, dk, dv in zip(tiles, d_queries, d_keys, d_values, strict=True):
                tile.store(dq_ref, _own_lanes(dq, plan) * scale)
                tile.add_to_keys(dk_ref, dk)
                tile.add_to_keys(dv_ref, dv)

        _each_batch(batch, program)
        _scatter_queries([dq_ref], [d_query_map], n, call)
        _scatter_keys(d_key_refs, d_key_maps, n, call)
        return carry

    lax.fori_loop(0, call.images // plan.fold, image, 0)


class Program(NamedTuple):
    """What a program works on; the interpreter knows its number only outside of loops."""

    call: Call
    scalars: Scalars
    strip: Array
    group: Array  # residue class of its images

    @classmethod
    def this(cls, call: Call, refs) -> "Program":
        block = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)
        return cls(call, Scalars(*refs), pl.program_id(3), block * call.images // call.plan.batch)


class Tile(NamedTuple):
    """A tile of queries and its block of keys, by where they begin in the buffers."""

    plan: TpuPlan
    query: tuple  # first slice, row, column
    key: tuple
    kind: Array

    def _at(self, starts: tuple, sizes: tuple[int, int, int]) -> tuple:
        return tuple(pl.ds(start, size) for start, size in zip(starts, sizes, strict=True))

    def queries(self, ref):
        return ref[self._at(self.query, self.plan.tile_sizes)].reshape(self.plan.queries, -1)

    def store(self, ref, x) -> None:
        ref[self._at(self.query, self.plan.tile_sizes)] = x.reshape(*self.plan.tile_sizes, -1)

    def keys(self, ref):
        """From the copy in which the block begins on a whole register."""
        *rows, col = self.key
        copy = col // HALF_TILE % 2 if self.plan.copies > 1 else 0
        col = col - HALF_TILE * copy
        col = col if isinstance(col, int) else pl.multiple_of(col, HALF_TILE * self.plan.copies)
        return ref[(copy, *self._at((*rows, col), self.plan.block_sizes))].reshape(self.plan.keys, -1)

    def add_to_keys(self, ref, x) -> None:
        *rows, col = self.key
        col = col if isinstance(col, int) else pl.multiple_of(col, HALF_TILE)
        ref[self._at((*rows, col), self.plan.block_sizes)] += x.reshape(*self.plan.block_sizes, -1)


def _each_batch(body, program: Program) -> None:
    """Goes through the tiles in batches, whose steps the kernels interleave to hide latencies."""
    call, scalars, strip, group = program
    plan, strips = call.plan, call.strips
    slices, rows, cols = plan.tiles
    row_class, col_class = group // plan.axes[2].dilation % plan.axes[1].dilation, group % plan.axes[2].dilation
    slice_class = group // (plan.axes[1].dilation * plan.axes[2].dilation)
    together = pl.cdiv(cols.count, pl.cdiv(cols.count, plan.tiles_together))
    unrolled = cols.count <= UNROLLED
    if not unrolled:
        together = max(n for n in range(1, plan.tiles_together + 1) if cols.count % n == 0)

    def row_of_tiles(i, carry):
        local, row = i // rows.count, i % rows.count
        number = strip * strips.tiles_per_strip + local
        kind = scalars.slice_kinds[slice_class * slices.count + number] + scalars.row_kinds[row_class * rows.count + row]

        def tile(col) -> Tile:
            start = int(cols.starts[col]) if unrolled else scalars.cols[col]
            query = local * slices.tile, row * rows.tile, col * cols.tile if unrolled else pl.multiple_of(col * cols.tile, HALF_TILE)
            key = scalars.slices[number], scalars.rows[row], start
            return Tile(plan, query, key, kind + scalars.col_kinds[col_class * cols.count + col])

        if unrolled:
            for first in range(0, cols.count, together):
                body([tile(col) for col in range(first, min(first + together, cols.count))])
        else:
            lax.fori_loop(0, cols.count // together, lambda j, _: body([tile(j * together + n) for n in range(together)]), None)
        return carry

    count = slices.count if strips.count == 1 else jnp.minimum(strips.tiles_per_strip, slices.count - strip * strips.tiles_per_strip)
    lax.fori_loop(0, count * rows.count, row_of_tiles, 0)


def _row(ref, n, first, row, call: Call):
    """A row of the map, of the images side by side, [columns, channels]."""
    fold = call.plan.fold
    return jnp.concatenate([ref[n * fold + i, first, row] for i in range(fold)], -1).astype(jnp.float32)


def _each_row(body, slices: int, rows: int) -> None:
    """Several rows in an iteration, to hide latencies; the last may be done twice."""
    together = min(ROWS_TOGETHER, slices * rows)

    def iteration(i, carry):
        for n in range(together):
            place = jnp.minimum(i * together + n, slices * rows - 1)
            body(place // rows, place % rows)
        return carry

    lax.fori_loop(0, pl.cdiv(slices * rows, together), iteration, 0)


def _gather_queries(map_refs, refs, n, program: Program) -> None:
    """Copies the queries of a strip to float32, with zeros beyond the map."""
    call = program.call
    plan, strips = call.plan, call.strips
    axis, rows = plan.tiles[0].axis, plan.axes[1].positions
    slices, buffer_rows, buffer_cols, _ = refs[0].shape
    whole = strips.count == 1 and slices == axis.positions and buffer_rows == rows

    def copy(first, row):
        inside = (program.strip * strips.queries + first < axis.positions) & (first < strips.queries) & (row < rows)
        for map_ref, ref in zip(map_refs, refs, strict=True):
            x = _row(map_ref, n, jnp.minimum(first, strips.queries - 1), jnp.minimum(row, rows - 1), call)
            x = x if whole else jnp.where(inside, x, 0.0)
            ref[first, row] = _pad(x, 0, buffer_cols - x.shape[0])

    _each_row(copy, slices, buffer_rows)


def _gather_keys(map_refs, refs, n, call: Call) -> None:
    """Copies the keys around a strip to the buffer, with zeros around the map; a second time half a register further on."""
    plan, strips = call.plan, call.strips
    rows, origin = plan.axes[1].positions, plan.tiles[2].origin
    _, slices, buffer_rows, buffer_cols, _ = refs[0].shape
    whole = slices == strips.keys and buffer_rows == rows

    def copy(first, row):
        for map_ref, ref in zip(map_refs, refs, strict=True):
            x = _row(map_ref, n, jnp.minimum(first, strips.keys - 1), jnp.minimum(row, rows - 1), call)
            x = x if whole else jnp.where((first < strips.keys) & (row < rows), x, 0.0)
            x = _pad(x, origin, buffer_cols + HALF_TILE * (plan.copies - 1) - origin - x.shape[0])
            for i in range(plan.copies):
                ref[i, first, row] = x[HALF_TILE * i : HALF_TILE * i + buffer_cols].astype(ref.dtype)

    _each_row(copy, slices, buffer_rows)


def _pad(x, before: int, after: int):
    zeros = lambda n: [jnp.zeros((n, x.shape[1]), x.dtype)] if n else []  # noqa: E731
    return jnp.concatenate([*zeros(before), x, *zeros(after)], 0) if before or after else x


def _scatter_queries(refs, map_refs, n, call: Call) -> None:
    _scatter(refs, map_refs, n, 0, call)


def _scatter_keys(refs, map_refs, n, call: Call) -> None:
    _scatter(refs, map_refs, n, call.plan.tiles[2].origin, call)


def _scatter(refs, map_refs, n, origin: int, call: Call) -> None:
    """The inverse of gathering."""
    fold, channels = call.plan.fold, call.plan.channels

    def copy(first, row):
        for ref, map_ref in zip(refs, map_refs, strict=True):
            x = ref[first, row][origin : origin + map_ref.shape[-2]].astype(map_ref.dtype)
            for i in range(fold):
                map_ref[n * fold + i, first, row] = x[:, i * channels : (i + 1) * channels]

    _each_row(copy, *map_refs[0].shape[1:3])


def _clear(refs) -> None:
    def clear(first, row):
        for ref in refs:
            ref[first, row] = jnp.zeros(ref.shape[2:], ref.dtype)

    _each_row(clear, *refs[0].shape[:2])


def _stack(x: Float[Array, "queries lanes"], dtype, plan: TpuPlan) -> Float[Array, "rows lanes"]:
    """The queries head under head, each in its own lanes and zero in the others."""
    if plan.pack == 1:
        return x.astype(dtype)
    narrow = dtype.itemsize < 4 and x.shape[0] % FULL_TILE == 0
    if narrow:  # two values to a word: masked as words, since v5e knows no 16-bit arithmetic
        x = pltpu.bitcast(x.astype(dtype), jnp.int32)
    parts = [jnp.where(_head(x.shape, plan) == head, x, jnp.zeros_like(x)) for head in range(plan.pack)]
    return pltpu.bitcast(jnp.concatenate(parts, 0), dtype) if narrow else jnp.concatenate(parts, 0).astype(dtype)


def _head(shape: tuple[int, ...], plan: TpuPlan):
    return lax.broadcasted_iota(jnp.int32, shape, 1) // plan.head_dim


def _own_lanes(x: Float[Array, "rows lanes"], plan: TpuPlan) -> Float[Array, "queries lanes"]:
    """The inverse of `_stack`: of each head's rows its own lanes."""
    parts = [x[head * plan.queries : (head + 1) * plan.queries] for head in range(plan.pack)]
    return functools.reduce(lambda out, head: jnp.where(_head(out.shape, plan) == head, parts[head], out), range(1, plan.pack), parts[0])


def _sum_of_own_lanes(x: Float[Array, "queries lanes"], plan: TpuPlan) -> Float[Array, "rows 1"]:
    parts = [jnp.where(_head(x.shape, plan) == head, x, 0.0) for head in range(plan.pack)]
    return jnp.sum(jnp.concatenate(parts, 0), 1, keepdims=True)


def _reciprocal(x, dtype):
    """To the last bit or so of float32; in narrow dtypes one step of Newton after the approximation, which is cheaper."""
    if dtype == jnp.float32:
        return 1 / x
    approximate = pl.reciprocal(x, approx=True)
    return approximate * (2.0 - x * approximate)


def _dot(x, y, contract: tuple[int, int]):
    """Product over the given axes, accumulated in float32; float32 is not rounded to bfloat16."""
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)
