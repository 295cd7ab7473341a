"""Neighborhood attention on TPUs.

A program holds a map, or a strip of its slices with the keys around it, in VMEM, [slices, rows, columns, channels]; maps of
fewer axes have one slice or row. Tiles of a few queries meet the block of keys that any of them sees. Along the first two
axes that is an index, which is free; along the columns, which lie in sublanes, a block begins on a whole word of 32 bits,
for which narrow values are copied to buffers of words. The tiles have few distinct sights (at the borders windows are
shifted): a table for each, mask and bias together, is added to the logits. Where without a bias the tables would be large,
places of keys are compared with the ranges that the queries see.

Heads of fewer than 128 channels share the lanes, as do images of fewer: queries are stacked head under head, each in its own
lanes and zero in the others, so that a product of full depth gives the logits of each head. Forward, logits are
[queries, keys], 128 keys wide or a multiple. The backward pass recomputes the weights, has them as [keys, queries], so that
sums over keys are cheap, adds up the gradients of keys and values in VMEM, and those of the table from tile to tile and image
to image, in order.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Shaped

from pallas_kernels.neighborhood_attention.extra import attend_extra
from pallas_kernels.neighborhood_attention.layout import bias_of_three_axes, by_class, from_classes, three_axes
from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.neighborhood_attention.reference import NO_KEY
from pallas_kernels.neighborhood_attention.tiles import (
    FULL_TILE,
    HALF_TILE,
    LANES,
    ROWS_TOGETHER,
    SUBLANES,
    TPU_VMEM_BYTES,
    TPU_VMEM_BYTES_ELSEWHERE,
    WORD,
    Batches,
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
CORES = {"TPU v5 lite": 1, "TPU v6 lite": 1}  # that share a grid; each adds up table gradients of its own
CORES_ELSEWHERE = 2  # at most: v5p
VMEM_MARGIN = 8 * 2**20  # for what the compiler keeps beside the arrays
ORDER = {
    2: (0, 1),
    3: (2, 0, 1),
}  # in which the phases of different batches are written down: the compiler's schedule is shortest so (counted)


def unsupported_reason(query, key, value, *, axes: tuple[Axis, ...], bias, interpret: bool = False, **_) -> str | None:
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
    plan = _plan(query, axes, bias, backward=True)
    if (needed := plan.vmem_bytes(plan.strips)) > plan.vmem:
        return f"the backward pass needs {needed >> 20} MiB of VMEM for such windows or columns, above {plan.vmem >> 20}"
    return None


def _plan(query, axes: tuple[Axis, ...], bias, *, backward: bool = False) -> TpuPlan:
    b, *_, heads, head_dim = query.shape
    if heads * head_dim > LANES:
        heads = padded(heads, LANES // head_dim)
    vmem = TPU_VMEM_BYTES.get(device_kind(), TPU_VMEM_BYTES_ELSEWHERE)
    return TpuPlan(three_axes(axes), b, heads, head_dim, query.dtype.itemsize, vmem, bias is not None, backward)


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
        plan, shape = _plan(query, axes, bias), query.shape
        shared, missing = query.shape[-2] // key.shape[-2], plan.heads - query.shape[-2]
        if bias is not None:
            bias = jnp.pad(bias_of_three_axes(bias, axes).astype(jnp.float32), ((0, missing), *((0, 0),) * 3))
        maps = (query, *(jnp.repeat(x, shared, -2) if shared > 1 else x for x in (key, value)))
        maps = tuple(by_class(jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, missing), (0, 0))), axes) for x in maps)
        plans = plan, dataclasses.replace(plan, backward=True)
        wanted = return_logsumexp or extra_key is not None
        calls = tuple(Call(x, logsumexp=wanted, interpret=interpret) for x in plans)
        tables = tuple(_table(bias, x) if x.tabled else None for x in plans)
        results: Sequence[Array] = _attend(maps, tables, calls, scale)  # pyright: ignore[reportAssignmentType]
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


def _table(bias, plan: TpuPlan) -> Float[Array, "chunks kinds *logits"]:
    """What is added to the logits for each sight of a tile, in units of log 2; without a bias the same for all chunks of heads."""
    seen = np.ones((1, 1, 1), bool)
    for tile in plan.tiles:
        seen = np.einsum("aqk,bxy->abqxky", seen, tile.seen)
        seen = seen.reshape(seen.shape[0] * seen.shape[1], seen.shape[2] * seen.shape[3], -1)
    mask = np.where(seen, 0.0, NO_KEY).astype(np.float32)
    if bias is None:
        table = jnp.tile(jnp.asarray(mask)[None], (1, 1, plan.pack, 1))
        return table.swapaxes(2, 3) if plan.backward else table
    for tile in plan.tiles:  # the first axis of offsets becomes kinds, queries and keys, the last ones
        at = (tile.offsets[..., None] == np.arange(bias.shape[1])).astype(np.float32)
        bias = jnp.einsum("ho...,aqko->h...aqk", bias, at, precision="highest")
    bias = bias.transpose(0, 1, 4, 7, 2, 5, 8, 3, 6, 9).reshape(plan.chunks, 1, -1, *mask.shape)
    bias = jnp.broadcast_to(bias, (plan.chunks, plan.fold, *bias.shape[2:])).reshape(plan.chunks, plan.pack, *mask.shape)
    table = (bias * LOG2E + mask).swapaxes(1, 2).reshape(plan.chunks, len(mask), -1, plan.keys)
    return table.swapaxes(2, 3) if plan.backward else table


class Ranges(NamedTuple):
    """What the tiles of each kind see: along each axis the keys from a query's first to its last.

    The places along the axes are fields of one number, with a guard bit above each, so that one subtraction compares all.
    """

    first: Array  # [kinds, rows, 1], or [kinds, 1, rows] in the backward pass
    last: Array  # the same, plus the guard twice
    place: Array  # of the keys, plus the guard, [1, keys] or [keys, rows]

    @classmethod
    def of(cls, plan: TpuPlan) -> "Ranges":
        """The array of each."""
        first, last, place = np.zeros((1, 1), np.int32), np.full((1, 1), 2 * _guard(plan)), np.full(1, _guard(plan))
        for tile, shift in zip(plan.tiles, _shifts(plan), strict=True):
            first, last = (
                (x[:, None, :, None] + (y << shift)[None, :, None]).reshape(len(x) * len(y), -1)
                for x, y in zip((first, last), tile.ranges, strict=True)
            )
            place = (place[:, None] + (np.arange(tile.width) << shift)).reshape(-1)
        first, last = (np.tile(x, plan.pack)[..., None] for x in (first, last))
        if plan.backward:
            first, last, place = first.swapaxes(1, 2), last.swapaxes(1, 2), np.broadcast_to(place[:, None], plan.logits)
        return cls(*(jnp.asarray(x, jnp.int32) for x in (first, last, np.atleast_2d(place))))


def _shifts(plan: TpuPlan) -> list[int]:
    """Where the fields of the axes begin."""
    bits = [tile.width.bit_length() + 1 for tile in plan.tiles]
    return [0, *itertools.accumulate(bits)][:-1]


def _guard(plan: TpuPlan) -> int:
    """A bit above each field."""
    return sum(1 << shift + tile.width.bit_length() for tile, shift in zip(plan.tiles, _shifts(plan), strict=True))


def _masked(logits, tile: "Tile", sights: Sequence[Any]):
    """With the bias, and NO_KEY where a key is not seen."""
    plan = tile.plan
    if plan.tabled:
        return logits + sights[0][0, tile.kind]
    ranges, guard = Ranges(*sights), _guard(plan)
    place = ranges.place[...]
    inside = (place - ranges.first[tile.kind]) & (ranges.last[tile.kind] - place) & guard
    return jnp.where(inside == guard, logits, NO_KEY)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(maps, tables, calls: "tuple[Call, Call]", scale: float):
    """Tables and calls are of the forward and the backward pass; the gradient is that of the latter's table."""
    return _forward(maps, tables, calls, scale)[0]


def _forward(maps, tables, calls: "tuple[Call, Call]", scale: float):
    query, (call, _) = maps[0], calls
    results = (result_like(query, query.shape), *((result_like(query, query.shape, jnp.float32),) if call.logsumexp else ()))
    out = call.run(forward_kernel, scale, (query,), maps[1:], tables[0], results, ())
    return out, (maps, tables)


def _backward(calls: "tuple[Call, Call]", scale: float, residuals, cotangents):
    (query, *keys), tables = residuals
    call, strips = calls[1], calls[1].plan.strips
    d_keys = tuple(result_like(x, x.shape) for x in keys)
    if strips.count > 1:
        n, _, *rest = query.shape
        d_keys = tuple(result_like(x, (n, strips.count, strips.keys, *rest), jnp.float32) for x in keys)
    results = (result_like(query, query.shape),)
    d_query, *d_keys = call.run(backward_kernel, scale, (query, *cotangents), keys, tables[1], results, d_keys)
    d_tables = jax.tree.map(jnp.zeros_like, tables)
    if call.plan.bias:
        d_tables = (d_tables[0], d_keys.pop().sum(0) * (1 / LOG2E))
    if strips.count > 1:
        d_keys = (_overlap(x, query.shape, strips).astype(query.dtype) for x in d_keys)
    return (d_query, *d_keys), d_tables


_attend.defvjp(_forward, _backward)


def _overlap(parts: Float[Array, "n strips keys rows cols channels"], shape: tuple[int, ...], strips: Strips) -> Array:
    """The sum of the strips' gradients, in their order."""
    zero, none = jnp.zeros((), parts.dtype), [(0, 0, 0)]
    pads = ([*none, (start, shape[1] - start - strips.keys, 0), *none * (len(shape) - 2)] for start in strips.starts.tolist())
    return functools.reduce(operator.add, (lax.pad(parts[:, i], zero, pad) for i, pad in enumerate(pads)))


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
    interpret: bool

    @property
    def strips(self) -> Strips:
        return self.plan.strips

    @property
    def num_sights(self) -> int:
        """Arrays that tell what the tiles see."""
        return 1 if self.plan.tabled else len(Ranges._fields)

    @functools.cached_property
    def images(self) -> int:
        """Of a program."""
        return self.plan.images * self.plan.maps(self.strips)

    @functools.cached_property
    def maps(self) -> int:
        """That are worked on together, of `plan.images` each."""
        return self.plan.maps_together(self.strips)

    def run(self, kernel, scale: float, query_maps, key_maps, table, query_results, key_results) -> Sequence[Array]:
        """Runs over all images, chunks of heads and strips; the last result backward is the gradient of a bias table, core by core."""
        plan, strips = self.plan, self.strips
        blocks = query_maps[0].shape[0] // self.images
        cores = CORES.get(device_kind(), CORES_ELSEWHERE)
        cores = cores if blocks % cores == 0 else 1
        grid = (cores, plan.chunks, blocks // cores, strips.count)
        sights = Ranges.of(plan) if table is None else [table]
        sums = [table] if plan.bias and plan.backward else []
        products = (plan.batches(strips).tiles, *plan.logits)
        (*places, cols, lanes), (*key_places, key_cols, _) = ((self.maps, *buffer) for buffer in plan.buffers(strips))
        scratch = [_words_buffer((*places, cols, lanes), x.dtype) for x in query_maps]
        scratch += [pltpu.VMEM((*places, padded(cols, FULL_TILE), lanes), jnp.float32) for _ in query_results]
        scratch += [_words_buffer((*key_places, key_cols, lanes), x.dtype) for x in key_maps]
        scratch += [pltpu.VMEM((*key_places, key_cols, lanes), jnp.float32) for _ in key_results]
        scratch += [pltpu.VMEM(products, jnp.float32) for _ in range(4 if plan.backward else 2)]
        scratch += [pltpu.VMEM(products, query_maps[0].dtype) for _ in range(4 if plan.backward else 0)]
        return pl.pallas_call(
            functools.partial(kernel, call=self, scale=scale),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=SCALARS,
                grid=grid,
                in_specs=[
                    *(self._queries(x, grid[2]) for x in query_maps),
                    *(self._keys(x, grid[2]) for x in key_maps),
                    *map(_whole if table is None else _of_chunk, sights),
                ],
                out_specs=[
                    *(self._queries(x, grid[2]) for x in query_results),
                    *(self._parts(x, grid[2]) for x in key_results),
                    *(pl.BlockSpec((1, 1, *x.shape[1:]), lambda core, chunk, *_: (core, chunk, 0, 0, 0)) for x in sums),
                ],
                scratch_shapes=scratch,
            ),
            out_shape=[*query_results, *key_results, *(result_like(query_maps[0], (cores, *x.shape), jnp.float32) for x in sums)],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary"),
                vmem_limit_bytes=plan.vmem_bytes(strips) + VMEM_MARGIN,
            ),
            name="neighborhood_attention_" + ("backward" if plan.backward else "forward"),
            interpret=self.interpret,
        )(*_scalars(plan, strips), *query_maps, *key_maps, *sights)

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


def _whole(x) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def _of_chunk(table) -> pl.BlockSpec:
    """All kinds, of a chunk of heads if they differ."""
    several = len(table) > 1
    return pl.BlockSpec((1, *table.shape[1:]), lambda core, chunk, *_: (chunk * several, 0, 0, 0))


def forward_kernel(*refs, call: Call, scale: float):
    """All tiles of the images and heads of a program."""
    program, (q_map, k_map, v_map, *refs) = Program.this(call, refs[:SCALARS]), refs[SCALARS:]
    sights, refs = _split(refs, call.num_sights)
    results = 2 if call.logsumexp else 1
    out_maps, (q_ref, *out_refs), (k_ref, v_ref, *waiting) = refs[:results], refs[results : 1 + 2 * results], refs[1 + 2 * results :]
    plan, dtype = call.plan, q_map.dtype

    def products(tiles: list[Tile]):
        q = [_stack(tile.queries(q_ref), dtype, plan) for tile in tiles]
        logits = [_dot(x, tile.keys(k_ref), (1, 1)) for x, tile in zip(q, tiles, strict=True)]
        return ([_masked(x * (scale * LOG2E), tile, sights) for x, tile in zip(logits, tiles, strict=True)],)

    def attend(tiles: list[Tile], logits):
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

    def images(n, carry):
        _gather_queries([q_map], [q_ref], n, program)
        _gather_keys([k_map, v_map], [k_ref, v_ref], n, call)
        _each_batch((products, attend), program, _by_phase(waiting, (1,)))
        _scatter(out_refs, out_maps, n, call)
        return carry

    lax.fori_loop(0, call.images // (plan.images * call.maps), images, 0)


def backward_kernel(*refs, call: Call, scale: float):
    """The same, and the sum of the table gradients of all programs of a core."""
    program, refs = Program.this(call, refs[:SCALARS]), refs[SCALARS:]
    inputs = 3 if call.logsumexp else 2
    query_maps, (k_map, v_map, *refs) = _split(refs, inputs)
    sights, (d_query_map, *refs) = _split(refs, call.num_sights)
    d_key_maps, refs = _split(refs, 2)
    sum_refs, refs = _split(refs, 1 if call.plan.bias else 0)
    query_refs, (dq_ref, k_ref, v_ref, dk_ref, dv_ref, *waiting) = refs[:inputs], refs[inputs:]
    plan, dtype = call.plan, query_maps[0].dtype
    _clear_at_first(sum_refs)

    def products(tiles: list[Tile]):
        """Of keys and queries, so that what is said of each query is a row, which costs no sum across lanes."""
        q, d_out = ([_stack(tile.queries(ref), dtype, plan) for tile in tiles] for ref in query_refs[:2])
        logits = [_dot(tile.keys(k_ref), x, (1, 1)) for x, tile in zip(q, tiles, strict=True)]
        d_weights = [_dot(tile.keys(v_ref), x, (1, 1)) for x, tile in zip(d_out, tiles, strict=True)]
        return [_masked(x * (scale * LOG2E), tile, sights) for x, tile in zip(logits, tiles, strict=True)], d_weights

    def weigh(tiles: list[Tile], logits, d_weights):
        weights = [jnp.exp2(x - jnp.max(x, 0, keepdims=True)) for x in logits]
        weights = [x * (1 / jnp.sum(x, 0, keepdims=True)) for x in weights]
        means = [jnp.sum(x * dx, 0, keepdims=True) for x, dx in zip(weights, d_weights, strict=True)]
        for ref in query_refs[2:]:  # the logsumexp's
            means = [x - _sum_of_own_lanes(tile.queries(ref), plan) for x, tile in zip(means, tiles, strict=True)]
        d_logits = [x * (dx - mean) for x, dx, mean in zip(weights, d_weights, means, strict=True)]
        for sum_ref in sum_refs:
            for x, tile in zip(d_logits, tiles, strict=True):
                sum_ref[0, 0, tile.kind] += x
        return [x.astype(dtype) for x in weights], [x.astype(dtype) for x in d_logits]

    def add_up(tiles: list[Tile], weights, d_logits):
        q, d_out = ([_stack(tile.queries(ref), dtype, plan) for tile in tiles] for ref in query_refs[:2])
        d_values = [_dot(x, dx, (1, 0)) for x, dx in zip(weights, d_out, strict=True)]
        d_keys = [_dot(dx, x, (1, 0)) * scale for dx, x in zip(d_logits, q, strict=True)]
        d_queries = [_dot(dx, tile.keys(k_ref), (0, 0)) for dx, tile in zip(d_logits, tiles, strict=True)]
        for tile, dq, dk, dv in zip(tiles, d_queries, d_keys, d_values, strict=True):
            tile.store(dq_ref, _own_lanes(dq, plan) * scale)
            tile.add_to_keys(dk_ref, dk)
            tile.add_to_keys(dv_ref, dv)

    def images(n, carry):
        _gather_queries(query_maps, query_refs, n, program)
        _gather_keys([k_map, v_map], [k_ref, v_ref], n, call, clear=[dk_ref, dv_ref])
        _each_batch((products, weigh, add_up), program, _by_phase(waiting, (2, 2)))
        _scatter([dq_ref], [d_query_map], n, call)
        _scatter([dk_ref, dv_ref], d_key_maps, n, call)
        return carry

    lax.fori_loop(0, call.images // (plan.images * call.maps), images, 0)


def _split(refs: Sequence, count: int) -> tuple[Sequence, Sequence]:
    return refs[:count], refs[count:]


def _by_phase(refs, counts: tuple[int, ...]) -> list[tuple]:
    """For each phase the two halves of refs."""
    refs = iter(refs)
    return [tuple(tuple(itertools.islice(refs, count)) for _ in range(2)) for count in counts]


class Tile(NamedTuple):
    """A tile of queries and its block of keys, by where they begin in the buffers."""

    plan: TpuPlan
    map: Array | int
    query: tuple  # first slice, row, column
    key: tuple
    kind: Array

    def _at(self, starts: tuple, sizes: tuple[int, ...]) -> tuple:
        return (self.map, *(pl.ds(start, size) for start, size in zip(starts, sizes, strict=True)))

    def queries(self, ref):
        """As the buffer has them: two to a word in 16 bits."""
        *first, col = self.query
        *sizes, width = self.plan.tile_sizes
        per_word = self.plan.tiles[2].queries // ref.shape[-2]
        cols = pl.ds(col // per_word if isinstance(col, int) else pl.multiple_of(col // per_word, HALF_TILE // per_word), width // per_word)
        places = itertools.product(*(range(size) for size in sizes))
        return jnp.concatenate([ref[self.map, first[0] + i, first[1] + j, cols] for i, j in places], 0)

    def store(self, ref, x) -> None:
        ref[self._at(self.query, self.plan.tile_sizes)] = x.reshape(*self.plan.tile_sizes, -1)

    def keys(self, ref):
        (*rows, col), (*sizes, width) = self.key, self.plan.block_sizes
        per_word = 4 // self.plan.itemsize
        words = ref[self._at((*rows, col // per_word), (*sizes, width // per_word))].reshape(self.plan.keys // per_word, -1)
        return words if per_word == 1 else pltpu.bitcast(words, jnp.bfloat16)

    def add_to_keys(self, ref, x) -> None:
        ref[self._at(self.key, self.plan.block_sizes)] += x.reshape(*self.plan.block_sizes, -1)


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

    def tile(self, i, col) -> Tile:
        """The one in a column of the tiles and the i-th of their rows, image by image and slice by slice."""
        call, scalars, strip, group = self
        plan, strips = call.plan, call.strips
        slices, rows, cols = plan.tiles
        row_class, col_class = group // plan.axes[2].dilation % plan.axes[1].dilation, group % plan.axes[2].dilation
        slice_class = group // (plan.axes[1].dilation * plan.axes[2].dilation)
        count = strips.tiles_per_strip * rows.count
        which, i = (i // count, i % count) if call.maps > 1 else (0, i)
        local, row = i // rows.count, i % rows.count
        number = strip * strips.tiles_per_strip + local
        known = isinstance(col, int)
        kind = scalars.slice_kinds[slice_class * slices.count + number] + scalars.row_kinds[row_class * rows.count + row]
        kind += scalars.col_kinds[col_class * cols.count + col]
        query = local * slices.tile, row * rows.tile, col * cols.tile if known else pl.multiple_of(col * cols.tile, HALF_TILE)
        key = scalars.slices[number], scalars.rows[row], int(cols.starts[col]) if known else scalars.cols[col]
        return Tile(plan, which, query, key, kind)


class Pipeline(NamedTuple):
    """The phases of a batch of tiles; what one gives waits in VMEM for the next.

    While a batch is in its last phase the next one is in the phase before, and so on, so that the units of the core that
    one phase leaves idle serve another. Batches use the two halves of what waits by turns.
    """

    phases: tuple
    program: Program
    batches: Batches
    waiting: list[tuple]  # for each phase but the last the two halves

    def work(self, step, number: int, phase: int) -> None:
        """On a batch, by its step and its number, of which its part of the step and its half of what waits follow."""
        places = self.batches.places(step, number % self.batches.parts, self.program.call.plan.tiles[2].count)
        tiles = [self.program.tile(*place) for place in places]
        ready = self.waiting[phase - 1][number % 2] if phase else ()
        results = self.phases[phase](tiles, *([ref[i] for i in range(len(tiles))] for ref in ready))
        for ref, values in zip(self.waiting[phase][number % 2] if results else (), results or (), strict=True):
            for i, x in enumerate(values):
                ref[i] = x

    def advance(self, first, number: int, among: range) -> None:
        """The batches by their number, counted from that of the first step, each in the phase after its predecessor's."""
        for phase in ORDER[len(self.phases)]:
            if number - phase in among:
                self.work(first + (number - phase) // self.batches.parts, number - phase, phase)

    def run(self, steps: int) -> None:
        parts = self.batches.parts
        everything, fill, turn = range(steps * parts), len(self.phases) - 1, 2 * parts
        turns = max(0, len(everything) - fill) // turn

        def each_turn(i, carry):
            for number in range(turn):
                self.advance(2 * i, fill + number, range(fill + turn))
            return carry

        for number in range(fill):
            self.advance(0, number, everything)
        lax.fori_loop(0, turns, each_turn, 0)
        for number in range(fill + turns * turn, len(everything) + fill):
            self.advance(0, number, everything)

    def run_in_sequence(self, steps) -> None:
        """Where their number is not known beforehand."""

        def each(step, carry):
            for part, phase in itertools.product(range(self.batches.parts), range(len(self.phases))):
                self.work(step, part, phase)
            return carry

        lax.fori_loop(0, steps, each, 0)


def _each_batch(phases: tuple, program: Program, waiting: list[tuple]) -> None:
    call, (slices, rows, cols) = program.call, program.call.plan.tiles
    tiles, batches = call.strips.tiles_per_strip, call.plan.batches(call.strips)
    pipeline = Pipeline(phases, program, batches, waiting)
    if slices.count % tiles == 0:
        pipeline.run(batches.steps(call.maps * tiles * rows.count, cols.count))
    else:  # the last strip is shorter
        tiles = jnp.minimum(tiles, slices.count - program.strip * tiles)
        pipeline.run_in_sequence(batches.steps(tiles * rows.count, cols.count))


def _row(ref, n, first, row, call: Call):
    """A row of a map in words, [words, lanes], of images side by side in the lanes and along the columns."""
    plan = call.plan

    def fold(i):
        return jnp.concatenate([_words(ref, (n * plan.images + (i * plan.fold + j), first, row)) for j in range(plan.fold)], -1)

    return jnp.concatenate([fold(i) for i in range(plan.beside)], 0)


def _words_buffer(shape: tuple[int, ...], dtype):
    """For values of this type in words."""
    *outer, cols, lanes = shape
    return pltpu.VMEM(shape, dtype) if dtype.itemsize == 4 else pltpu.VMEM((*outer, cols // WORD, lanes), jnp.int32)


def _words(ref, at: tuple):
    """Narrow values two to a word, the last one beside zero if they are odd: v5e knows no 16-bit arithmetic, nor moves them by one."""
    if ref.dtype.itemsize == 4:
        return ref[at]
    if ref.shape[-2] % WORD == 0:
        return ref.bitcast(jnp.int32)[at]
    return pltpu.bitcast(_pad(ref[at].astype(jnp.float32), 1).astype(ref.dtype), jnp.int32)


def _each_row(body, maps: int, slices: int, rows: int) -> None:
    """Several rows in an iteration, to hide latencies; the last may be done twice."""
    count = maps * slices * rows
    if count <= ROWS_TOGETHER:
        for n, first, row in itertools.product(range(maps), range(slices), range(rows)):
            body(n, first, row)
        return
    together = max(n for n in range(1, ROWS_TOGETHER + 1) if count % n == 0)
    if together < ROWS_TOGETHER // 4:
        together = ROWS_TOGETHER // 4

    def iteration(i, carry):
        for j in range(together):
            place = i * together + j
            place = place if count % together == 0 else jnp.minimum(place, count - 1)
            n, place = (place // (slices * rows), place % (slices * rows)) if maps > 1 else (0, place)
            body(n, place // rows, place % rows)
        return carry

    lax.fori_loop(0, pl.cdiv(count, together), iteration, 0)


def _gather_queries(map_refs, refs, i, program: Program) -> None:
    """Copies the queries of a strip, in words, with zeros beyond the map."""
    call = program.call
    plan, strips = call.plan, call.strips
    axis, rows = plan.tiles[0].axis, plan.axes[1].positions
    maps, slices, buffer_rows, *_ = refs[0].shape
    whole = strips.count == 1 and slices == axis.positions and buffer_rows == rows

    def copy(n, first, row):
        inside = (program.strip * strips.queries + first < axis.positions) & (first < strips.queries) & (row < rows)
        for map_ref, ref in zip(map_refs, refs, strict=True):
            x = _row(map_ref, i * maps + n, jnp.minimum(first, strips.queries - 1), jnp.minimum(row, rows - 1), call)
            x = x if whole else jnp.where(inside, x, jnp.zeros_like(x))
            ref[n, first, row] = _pad(x, ref.shape[-2] - x.shape[0])

    _each_row(copy, maps, slices, buffer_rows)


def _gather_keys(map_refs, refs, i, call: Call, clear=()) -> None:
    """Copies the keys around a strip, in words, with zeros beyond the map, and clears what their gradients are added to."""
    strips, rows = call.strips, call.plan.axes[1].positions
    maps, slices, buffer_rows, words, _ = refs[0].shape
    whole = slices == strips.keys and buffer_rows == rows

    def copy(n, first, row):
        for map_ref, ref in zip(map_refs, refs, strict=True):
            x = _row(map_ref, i * maps + n, jnp.minimum(first, strips.keys - 1), jnp.minimum(row, rows - 1), call)
            x = x if whole else jnp.where((first < strips.keys) & (row < rows), x, jnp.zeros_like(x))
            ref[n, first, row] = _pad(x, words - x.shape[0])
        for ref in clear:
            ref[n, first, row] = jnp.zeros(ref.shape[3:], ref.dtype)

    _each_row(copy, maps, slices, buffer_rows)


def _pad(x, after: int):
    return jnp.concatenate([x, jnp.zeros((after, x.shape[1]), x.dtype)], 0) if after else x


def _scatter(refs, map_refs, i, call: Call) -> None:
    """The inverse of gathering."""
    plan, maps = call.plan, refs[0].shape[0]
    channels = plan.channels

    def copy(n, first, row):
        for ref, map_ref in zip(refs, map_refs, strict=True):
            cols, image, each = map_ref.shape[-2], (i * maps + n) * plan.images, map_ref
            for beside in range(plan.beside):
                x = ref[n, first, row, pl.ds(beside * cols, cols)].astype(map_ref.dtype)
                if x.dtype.itemsize < 4 and cols % WORD == 0 and not call.interpret:  # which can write to no other view of a map
                    x, each = pltpu.bitcast(x, jnp.int32), map_ref.bitcast(jnp.int32)
                for fold in range(plan.fold):
                    each[image + beside * plan.fold + fold, first, row] = x[:, fold * channels : (fold + 1) * channels]

    _each_row(copy, maps, *map_refs[0].shape[1:3])


def _clear_at_first(refs) -> None:
    """Before the first program that adds to them."""
    for ref in refs:

        @pl.when((pl.program_id(2) == 0) & (pl.program_id(3) == 0))
        def _(ref=ref):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)


def _stack(x: Shaped[Array, "words lanes"], dtype, plan: TpuPlan) -> Float[Array, "rows lanes"]:
    """The queries head under head, each in its own lanes and zero in the others."""
    parts = [jnp.where(_head(x.shape, plan) == head, x, jnp.zeros_like(x)) for head in range(plan.pack)] if plan.pack > 1 else [x]
    x = jnp.concatenate(parts, 0)
    return x if x.dtype == dtype else pltpu.bitcast(x, dtype)


def _head(shape: tuple[int, ...], plan: TpuPlan):
    return lax.broadcasted_iota(jnp.int32, shape, 1) // plan.head_dim


def _own_lanes(x: Float[Array, "rows lanes"], plan: TpuPlan) -> Float[Array, "queries lanes"]:
    """The inverse of `_stack`: of each head's rows its own lanes."""
    parts = [x[head * plan.queries : (head + 1) * plan.queries] for head in range(plan.pack)]
    return functools.reduce(lambda out, head: jnp.where(_head(out.shape, plan) == head, parts[head], out), range(1, plan.pack), parts[0])


def _sum_of_own_lanes(x: Float[Array, "queries lanes"], plan: TpuPlan) -> Float[Array, "1 rows"]:
    return _dot(jnp.ones((SUBLANES, x.shape[1])), _stack(x, x.dtype, plan), (1, 1))[:1]


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
