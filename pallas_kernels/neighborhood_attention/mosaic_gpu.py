"""Neighborhood attention on Hopper GPUs in Mosaic GPU, for wide heads and large windows, where the
products take the time.

Each kernel keeps its tiles: the forward one and that for the gradients of queries tiles of queries,
which meet keys; that for the gradients of keys tiles of keys, which meet the queries that see them.
No atomics: sums have one order. Products, softmax and barriers as in FlashAttention-3
(arXiv:2407.08608), without its ordering of the warpgroups among each other.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.dispatch import unsupported_array
from pallas_kernels.gpu import wrong_platform
from pallas_kernels.logits import LOG2E, NO_KEY
from pallas_kernels.neighborhood_attention.extra import attend_extra
from pallas_kernels.neighborhood_attention.layout import three_axes
from pallas_kernels.neighborhood_attention.mosaic_program import (
    COLUMNS,
    ROWS,
    TILE,
    Operands,
    Place,
    Plan,
    Problem,
    Program,
    Three,
    call,
    of_columns,
    of_rows,
)
from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.sharding import by_images, indivisible, result_like
from pallas_kernels.target import device_kind

DTYPES = ("float16", "bfloat16")
HEAD_DIMS = (64, 128)
HOPPER = ("H100", "H200", "H800", "H20", "GH200")


def unsupported_reason(query, key, value, *, axes, bias, interpret: bool = False, **_) -> str | None:
    """Why the kernels cannot run these arguments here, or None."""
    if reason := wrong_platform(interpret=interpret):
        return reason
    if not interpret and not any(name in device_kind() for name in HOPPER):
        return f"it needs a Hopper GPU (wgmma), not {device_kind()}"
    if reason := indivisible(query.shape[0]):
        return reason
    if bias is not None:
        return "it has no bias"
    if any(axis.dilation > 1 for axis in axes):
        return "it has no dilation"
    if reason := unsupported_array(query, DTYPES, HEAD_DIMS):
        return reason
    if value.shape[-1] != query.shape[-1]:
        return f"value_dim={value.shape[-1]} is not head_dim={query.shape[-1]}"
    return None


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
) -> tuple[Float[Array, "b *spatial heads value_dim"], Float[Array, "b *spatial heads"]]:
    """The operator on canonical arguments.

    `interpret` runs the kernels in an interpreter, for tests.
    """
    del bias, return_logsumexp  # there is none; the backward pass needs it anyway

    def attend(arrays, *_):
        query, key, value, extra_key, extra_value = arrays
        problem = Problem(three_axes(axes), query.shape[0], query.shape[-2], key.shape[-2], query.shape[-1], scale, interpret)
        results = _attend(*(_merged(x, problem) for x in (query, key, value)), problem)
        out, logsumexp = (_cropped(x, query.shape[1:-2], problem) for x in results)  # pyright: ignore[reportGeneralTypeIssues]
        out = out.reshape(*query.shape[:-1], -1)
        if extra_key is not None:
            return attend_extra(out, logsumexp, query, extra_key, extra_value, scale)
        return out, logsumexp

    return by_images(attend, (query, key, value, extra_key, extra_value), None, None)


def _merged(x: Array, problem: Problem) -> Float[Array, "b slices rows cols channels"]:
    """Three axes in whole pairs, heads and channels as one.

    A mere reshape where the map is whole pairs.
    """
    x = x.reshape(x.shape[0], *(axis.size for axis in problem.axes), -1)
    return jnp.pad(x, ((0, 0), *((0, n - axis.size) for n, axis in zip(problem.padded, problem.axes, strict=True)), (0, 0)))


def _cropped(x: Array, spatial: tuple[int, ...], problem: Problem) -> Float[Array, "b *spatial channels"]:
    slices, rows, cols = (axis.size for axis in problem.axes)
    return x[:, :slices, :rows, :cols].reshape(x.shape[0], *spatial, x.shape[-1])


def _by_tiles(x: Float[Array, "b slices rows cols heads"], problem: Problem) -> Float[Array, "b heads tiles 64"]:
    """Numbers of tokens, those of a tile together."""
    counts = problem.counts(problem.tile)
    x = x.reshape(x.shape[0], *(n for axis in zip(counts, problem.tile, strict=True) for n in axis), x.shape[-1])
    return x.transpose(0, 7, 1, 3, 5, 2, 4, 6).reshape(x.shape[0], x.shape[-1], -1, TILE)


def _from_tiles(x: Float[Array, "b heads tiles 64"], problem: Problem) -> Float[Array, "b slices rows cols heads"]:
    """The inverse of `_by_tiles`."""
    x = x.reshape(*x.shape[:2], *problem.counts(problem.tile), *problem.tile)
    return x.transpose(0, 2, 5, 3, 6, 4, 7, 1).reshape(x.shape[0], *problem.padded, x.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(query, key, value, problem: Problem):
    return _forward(query, key, value, problem)[0]


def _forward(query, key, value, problem: Problem):
    numbers = (problem.batch, problem.heads, math.prod(problem.counts(problem.tile)), TILE)
    results = (result_like(query, query.shape), result_like(query, numbers, jnp.float32))
    plan = Plan("forward", problem, _forward_block(problem))
    out, logsumexp = call(forward_kernel, Operands((query,), (key, value)), results, plan)
    return (out, _from_tiles(logsumexp, problem)), (query, key, value, out, logsumexp)


def _backward(problem: Problem, residuals, cotangents):
    query, key, value, out, logsumexp = residuals
    d_out, d_logsumexp = cotangents
    products = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).reshape(*d_logsumexp.shape, -1)
    means = _by_tiles(products.sum(-1) - d_logsumexp, problem)
    queries, keys, numbers = (query, d_out), (key, value), (logsumexp, means)
    of_queries = Operands(queries, keys, kept_numbers=numbers)
    d_query = call(query_kernel, of_queries, (result_like(query, query.shape),), Plan("backward_queries", problem, problem.tile))
    of_keys, results = Operands(keys, queries, met_numbers=numbers), tuple(result_like(x, x.shape) for x in keys)
    d_key_value = call(key_kernel, of_keys, results, Plan("backward_keys", problem, problem.tile, of_keys=True))
    return (*d_query, *d_key_value)


_attend.defvjp(_forward, _backward)


def _forward_block(problem: Problem) -> Three:
    """Tokens of a block of keys: a pair of tiles, or one tile, which fits a small window more
    closely; a heuristic, not measured.
    """

    def cost(block: Three) -> int:
        seen = [axis.kernel + pair - 1 for axis, pair in zip(problem.axes, problem.pair, strict=True)]
        blocks = math.prod(pl.cdiv(n - 1, size) + 1 if n > 1 else 1 for n, size in zip(seen, block, strict=True))
        return blocks * (math.prod(block) + 16)

    return min(problem.pair, problem.tile, key=cost)


def forward_kernel(out_ref, logsumexp_ref, *, program: Program):
    """Two tiles of queries: softmax from block to block of keys."""
    problem = program.plan.problem

    def compute(each_block):
        q = program.tiles[0].at[program.warpgroup]

        def block(place: Place, k, v, carry):
            out, top, total = carry
            logits = program.logits(q, k, place)
            higher = jnp.maximum(top, jnp.max(logits, 1))
            weights = jnp.exp2(logits - of_rows(higher, logits))
            shrink = jnp.exp2(top - higher)
            return program.add_product(out * of_rows(shrink, out), weights, v), higher, total * shrink + jnp.sum(weights, 1)

        # The first top is above NO_KEY, so that the weight of a key that is not seen is 0 even
        # before any is.
        carry = (program.full((TILE, problem.head_dim)), program.full((TILE,), NO_KEY / 1e5), program.full((TILE,)))
        out, top, total = each_block(block, carry)
        total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # rows outside of the map see nothing
        program.store_numbers(logsumexp_ref, top * (1 / LOG2E) + jnp.log(total), program.kept_numbers[0].at[program.warpgroup])
        program.store(out_ref, out / of_rows(total, out), q)

    program.run(compute)


def query_kernel(dq_ref, *, program: Program):
    """The gradients of two tiles of queries."""
    problem = program.plan.problem

    def compute(each_block):
        q, d_out = (smem.at[program.warpgroup] for smem in program.tiles)
        logsumexp, mean = (program.laid(smem[program.warpgroup], ROWS) for smem in program.kept_numbers)

        def block(place: Place, k, v, dq):
            logits = program.logits(q, k, place)
            weights = jnp.exp2(logits - of_rows(logsumexp * LOG2E, logits))
            products = program.product(d_out, v)
            return program.add_product(dq, weights * (products - of_rows(mean, products)), k)

        dq = each_block(block, program.full((TILE, problem.head_dim)))
        program.store(dq_ref, dq * problem.scale, q)

    program.run(compute)


def key_kernel(dk_ref, dv_ref, *, program: Program):
    """The gradients of two tiles of keys and values, from all queries that see one of them."""
    problem = program.plan.problem

    def compute(each_block):
        k, v = (smem.at[program.warpgroup] for smem in program.tiles)

        def block(place: Place, q, d_out, logsumexp, mean, carry):
            dk, dv = carry
            logsumexp, mean = (program.laid(smem[...], COLUMNS) for smem in (logsumexp, mean))
            logits = program.logits(k, q, place)
            weights = jnp.exp2(logits - of_columns(logsumexp * LOG2E, logits))
            dv = program.add_product(dv, weights, d_out)
            products = program.product(v, d_out)
            return program.add_product(dk, weights * (products - of_columns(mean, products)), q), dv

        dk, dv = each_block(block, (program.full((TILE, problem.head_dim)),) * 2)
        program.store(dk_ref, dk * problem.scale, k)
        program.store(dv_ref, dv, v)

    program.run(compute)
