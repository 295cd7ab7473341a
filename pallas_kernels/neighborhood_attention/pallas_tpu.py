"""Neighborhood attention on TPUs.

A program holds a map, or a strip of its slices with the keys around it, in VMEM, [slices, rows,
columns, channels]; maps of fewer axes have one slice or row. A tile of a few queries attends to the
block of keys that any of them sees. Along the first two axes that is an index, which is free; along
the columns, which lie in sublanes, a block begins on a whole word of 32 bits, for which narrow
values are copied to buffers of words. The tiles have few distinct sights (at the borders windows
are shifted): a table for each of these patterns, mask and bias together, is added to the logits.
Where without a bias the tables would be large, places of keys are compared with the ranges that the
queries see.

Heads of fewer than 128 channels share the lanes, as do images of fewer: queries are stacked head
under head, each in its own lanes and zero in the others, so that a product of full depth gives the
logits of each head. Forward, logits are [queries, keys], 128 keys wide or a multiple. The backward
pass recomputes the weights, has them as [keys, queries], so that sums over keys are cheap, adds up
the gradients of keys and values in VMEM, and those of the table from tile to tile and image to
image, in order.
"""

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Shaped

from pallas_kernels.dispatch import unsupported_array
from pallas_kernels.logits import LOG2E, dot
from pallas_kernels.neighborhood_attention.extra import attend_extra
from pallas_kernels.neighborhood_attention.layout import bias_of_three_axes, by_class, from_classes, three_axes
from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.neighborhood_attention.tiles import Strips, TpuPlan
from pallas_kernels.neighborhood_attention.tpu_call import SCALARS, Call
from pallas_kernels.neighborhood_attention.tpu_program import Program, Tile, each_batch
from pallas_kernels.neighborhood_attention.tpu_rows import gather_keys, gather_queries, scatter
from pallas_kernels.neighborhood_attention.tpu_sights import masked, table_of
from pallas_kernels.sharding import by_images, indivisible, result_like
from pallas_kernels.tpu import DTYPES, HEAD_DIMS, LANES, SUBLANES, clear_at_first, padded, usable_vmem, wrong_platform
from pallas_kernels.window_attention import expand_bias
from pallas_kernels.window_attention import pallas_tpu as windows


def unsupported_reason(query, key, value, *, axes: tuple[Axis, ...], bias, interpret: bool = False, **_) -> str | None:
    """Why the kernels cannot run these arguments here, or None."""
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    if reason := wrong_platform(interpret=interpret) or indivisible(query.shape[0]):
        return reason
    if reason := unsupported_array(query, DTYPES, HEAD_DIMS):
        return reason
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
    return TpuPlan(three_axes(axes), b, heads, head_dim, query.dtype.itemsize, usable_vmem(), bias is not None, backward)


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
    """The operator on canonical arguments.

    `interpret` runs the kernels in an interpreter, for tests.
    """
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
        tables = tuple(table_of(bias, x) if x.tabled else None for x in plans)
        results: Sequence[Array] = _attend(maps, tables, calls, scale)  # pyright: ignore[reportAssignmentType]
        out, *logsumexp = (from_classes(x, axes, (*shape[:-2], plan.heads, shape[-1]))[..., : shape[-2], :] for x in results)
        if not logsumexp:
            return out, None
        if extra_key is not None:
            return attend_extra(out, logsumexp[0][..., 0], query, extra_key, extra_value, scale)
        return out, logsumexp[0][..., 0]

    return by_images(attend, (query, key, value, extra_key, extra_value), bias, None)


def _is_grid(query, key, axes: tuple[Axis, ...], interpret: bool) -> bool:
    """Whether each query sees all of its residue class, so that this is attention within a grid,
    which no map is put in order for.
    """
    whole = len(axes) == 2 and all(axis.size == axis.kernel * axis.dilation and not axis.causal for axis in axes)
    if not whole or query.shape != key.shape or all(axis.dilation == 1 for axis in axes):
        return False
    return windows.unsupported_reason(query, key, query, interpret=interpret, **_grid(axes)) is None


def _grid(axes: tuple[Axis, ...]) -> dict[str, Any]:
    return {"window_size": _kernel(axes), "shift": (0, 0), "grid": True}


def _kernel(axes: tuple[Axis, ...]) -> tuple[int, ...]:
    return tuple(axis.kernel for axis in axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _attend(maps, tables, calls: tuple[Call, Call], scale: float):
    """Tables and calls are of the forward and the backward pass.

    The gradient is that of the latter's table.
    """
    return _forward(maps, tables, calls, scale)[0]


def _forward(maps, tables, calls: tuple[Call, Call], scale: float):
    query, (call, _) = maps[0], calls
    results = (result_like(query, query.shape), *((result_like(query, query.shape, jnp.float32),) if call.logsumexp else ()))
    out = call.run(forward_kernel, scale, (query,), maps[1:], tables[0], results, ())
    return out, (maps, tables)


def _backward(calls: tuple[Call, Call], scale: float, residuals, cotangents):
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


def forward_kernel(*refs, call: Call, scale: float):
    """All tiles of the images and heads of a program."""
    program, (q_map, k_map, v_map, *refs) = Program.this(call, refs[:SCALARS]), refs[SCALARS:]
    sights, refs = _split(refs, call.num_sights)
    results = 2 if call.logsumexp else 1
    out_maps, (q_ref, *out_refs), (k_ref, v_ref, *waiting) = refs[:results], refs[results : 1 + 2 * results], refs[1 + 2 * results :]
    plan, dtype = call.plan, q_map.dtype

    def products(tiles: list[Tile]):
        q = [_stack(tile.queries(q_ref), dtype, plan) for tile in tiles]
        logits = [dot(x, tile.keys(k_ref), (1, 1)) for x, tile in zip(q, tiles, strict=True)]
        return ([masked(x * (scale * LOG2E), plan, tile.kind, sights) for x, tile in zip(logits, tiles, strict=True)],)

    def attend(tiles: list[Tile], logits):
        tops = [jnp.max(x, 1, keepdims=True) for x in logits]
        weights = [jnp.exp2(x - top) for x, top in zip(logits, tops, strict=True)]
        totals = [jnp.sum(x, 1, keepdims=True) for x in weights]
        outs = [dot(x.astype(dtype), tile.keys(v_ref), (1, 0)) for x, tile in zip(weights, tiles, strict=True)]
        for tile, out, top, total in zip(tiles, outs, tops, totals, strict=True):
            total = _own_lanes(jnp.broadcast_to(total, out.shape), plan)
            tile.store(out_refs[0], _own_lanes(out, plan) * _reciprocal(total, dtype))
            if call.logsumexp:
                top = _own_lanes(jnp.broadcast_to(top, out.shape), plan)
                tile.store(out_refs[1], (top + jnp.log2(total)) * (1 / LOG2E))

    def images(n, carry):
        gather_queries([q_map], [q_ref], n, program)
        gather_keys([k_map, v_map], [k_ref, v_ref], n, call)
        each_batch((products, attend), program, _by_phase(waiting, (1,)))
        scatter(out_refs, out_maps, n, call)
        return carry

    lax.fori_loop(0, call.images // (plan.images * call.maps), images, 0)


def backward_kernel(*refs, call: Call, scale: float):
    """Gradients of all tiles of a program's images and heads, and the sum of the table gradients of
    all programs of a core.
    """
    program, refs = Program.this(call, refs[:SCALARS]), refs[SCALARS:]
    inputs = 3 if call.logsumexp else 2
    query_maps, (k_map, v_map, *refs) = _split(refs, inputs)
    sights, (d_query_map, *refs) = _split(refs, call.num_sights)
    d_key_maps, refs = _split(refs, 2)
    sum_refs, refs = _split(refs, 1 if call.plan.bias else 0)
    query_refs, (dq_ref, k_ref, v_ref, dk_ref, dv_ref, *waiting) = refs[:inputs], refs[inputs:]
    plan, dtype = call.plan, query_maps[0].dtype
    clear_at_first(sum_refs, (2, 3))

    def products(tiles: list[Tile]):
        """Logits as [keys, queries], so that sums over keys are sums of rows, which cost no sum
        across lanes.
        """
        q, d_out = ([_stack(tile.queries(ref), dtype, plan) for tile in tiles] for ref in query_refs[:2])
        logits = [dot(tile.keys(k_ref), x, (1, 1)) for x, tile in zip(q, tiles, strict=True)]
        d_weights = [dot(tile.keys(v_ref), x, (1, 1)) for x, tile in zip(d_out, tiles, strict=True)]
        return [masked(x * (scale * LOG2E), plan, tile.kind, sights) for x, tile in zip(logits, tiles, strict=True)], d_weights

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
        d_values = [dot(x, dx, (1, 0)) for x, dx in zip(weights, d_out, strict=True)]
        d_keys = [dot(dx, x, (1, 0)) * scale for dx, x in zip(d_logits, q, strict=True)]
        d_queries = [dot(dx, tile.keys(k_ref), (0, 0)) for dx, tile in zip(d_logits, tiles, strict=True)]
        for tile, dq, dk, dv in zip(tiles, d_queries, d_keys, d_values, strict=True):
            tile.store(dq_ref, _own_lanes(dq, plan) * scale)
            tile.add_to_keys(dk_ref, dk)
            tile.add_to_keys(dv_ref, dv)

    def images(n, carry):
        gather_queries(query_maps, query_refs, n, program)
        gather_keys([k_map, v_map], [k_ref, v_ref], n, call, clear=[dk_ref, dv_ref])
        each_batch((products, weigh, add_up), program, _by_phase(waiting, (2, 2)))
        scatter([dq_ref], [d_query_map], n, call)
        scatter([dk_ref, dv_ref], d_key_maps, n, call)
        return carry

    lax.fori_loop(0, call.images // (plan.images * call.maps), images, 0)


def _split(refs: Sequence, count: int) -> tuple[Sequence, Sequence]:
    return refs[:count], refs[count:]


def _by_phase(refs, counts: tuple[int, ...]) -> list[tuple]:
    """The two halves of the references of each phase."""
    refs = iter(refs)
    return [tuple(tuple(itertools.islice(refs, count)) for _ in range(2)) for count in counts]


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
    return dot(jnp.ones((SUBLANES, x.shape[1])), _stack(x, x.dtype, plan), (1, 1))[:1]


def _reciprocal(x, dtype):
    """To the last bit or so of float32.

    In narrow dtypes one step of Newton after the approximation, which is cheaper.
    """
    if dtype == jnp.float32:
        return 1 / x
    reciprocal = getattr(pltpu, "reciprocal", None) or pl.reciprocal  # jax 0.10 has it in pl
    approximate = reciprocal(x, approx=True)
    return approximate * (2.0 - x * approximate)
