"""Neighborhood attention on NVIDIA GPUs, by Pallas's Triton lowering.

The only module here that knows that backend.

A program takes a tile of queries of one head, [slices, rows, columns], and goes through the blocks
of keys that any of them sees, in the layout of the map: no copies, no permutation, no padding.
Which keys a query sees is read from small tables, one per axis, so that shifted borders, strides,
dilation and causality are one code path; dilation is a step between tokens. The backward pass has a
kernel for queries, one for keys, whose tiles go through the queries that see them (at the borders
more than a window), and one for the bias, whose programs each add up many tiles. No atomics: sums
have one order.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from pallas_kernels.gpu import unsupported_arrays
from pallas_kernels.logits import LOG2E, NO_KEY, dot
from pallas_kernels.neighborhood_attention.extra import attend_extra
from pallas_kernels.neighborhood_attention.gpu_tiles import BiasTiles, GpuTiles, bias_tiles, gpu_tiles, unravel
from pallas_kernels.neighborhood_attention.layout import bias_of_three_axes, three_axes
from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.sharding import by_images, result_like


def unsupported_reason(query, key, value, *, interpret: bool = False, **_) -> str | None:
    """Why the kernels cannot run these arguments here, or None."""
    return unsupported_arrays((query, key, value), interpret=interpret)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Facts that are constants of the compiled kernels."""

    axes: tuple[Axis, Axis, Axis]
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    itemsize: int  # bytes of a value
    scale: float
    interpret: bool

    @property
    def dilations(self) -> tuple[int, int, int]:
        slices, rows, cols = (axis.dilation for axis in self.axes)
        return slices, rows, cols

    @property
    def lanes(self) -> tuple[int, int]:
        """Channels of a tile of keys, and of values: powers of two."""
        return pl.next_power_of_2(self.head_dim), pl.next_power_of_2(self.value_dim)

    def counts(self, tile: tuple[int, ...]) -> tuple[int, ...]:
        """Tiles along each axis of a residue class."""
        return tuple(pl.cdiv(axis.positions, size) for axis, size in zip(self.axes, tile, strict=True))


class Windows(NamedTuple):
    """Ranges along an axis for each position of each residue class, [dilation * positions].

    Both ends grow with the position.
    """

    start: Array  # first key that a query sees, and first query that sees a key
    stop: Array  # one past the last


def _windows(axis: Axis, *, inverse: bool = False) -> Windows:
    """Ranges of the keys that each query sees.

    Under `inverse`, of the queries that see each key.
    """
    return Windows(*(jnp.asarray(x.reshape(-1), jnp.int32) for x in (axis.inverse_windows() if inverse else axis.windows())))


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
    del return_logsumexp  # the backward pass needs it anyway

    def attend(arrays, bias, _):
        query, key, value, extra_key, extra_value = arrays
        canonical = three_axes(axes)
        sizes = tuple(axis.size for axis in canonical)
        b, heads, kv_heads = query.shape[0], query.shape[-2], key.shape[-2]
        problem = Problem(canonical, b, heads, kv_heads, query.shape[-1], value.shape[-1], query.dtype.itemsize, scale, interpret)
        arrays = tuple(x.reshape(b, *sizes, *x.shape[-2:]) for x in (query, key, value))
        bias = None if bias is None else bias_of_three_axes(bias, axes).astype(jnp.float32)
        results: tuple[Array, Array] = _attend(*arrays, bias, problem)  # pyright: ignore[reportAssignmentType]
        out, logsumexp = results[0].reshape(*query.shape[:-1], -1), results[1].reshape(query.shape[:-1])
        if extra_key is not None:
            return attend_extra(out, logsumexp, query, extra_key, extra_value, scale)
        return out, logsumexp

    return by_images(attend, (query, key, value, extra_key, extra_value), bias, None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query, key, value, bias, problem: Problem):
    return _forward(query, key, value, bias, problem)[0]


def _forward(query, key, value, bias, problem: Problem):
    tiles = gpu_tiles(problem.axes, problem.itemsize, backward=False)
    windows = tuple(map(_windows, problem.axes))
    out = result_like(query, (*query.shape[:-1], problem.value_dim))
    results = _call(
        forward_kernel,
        "forward",
        (query, key, value, bias, windows),
        (out, result_like(query, query.shape[:-1], jnp.float32)),
        problem.heads,
        tiles,
        problem,
    )
    return results, (query, key, value, bias, *results)


def _backward(problem: Problem, residuals, cotangents):
    query, key, value, bias, out, logsumexp = residuals
    d_out, d_logsumexp = cotangents
    means = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), -1) - d_logsumexp
    windows = tuple(map(_windows, problem.axes))
    arrays = (query, key, value, bias, d_out, logsumexp, means, windows)
    tiles = gpu_tiles(problem.axes, problem.itemsize, backward=True)
    d_query = _call(query_kernel, "backward_queries", arrays, result_like(query, query.shape), problem.heads, tiles, problem)
    inverse = tuple(_windows(axis, inverse=True) for axis in problem.axes)
    results = tuple(result_like(x, x.shape) for x in (key, value))
    d_key, d_value = _call(key_kernel, "backward_keys", (*arrays, inverse), results, problem.kv_heads, tiles, problem)
    return d_query, d_key, d_value, None if bias is None else _bias_gradient(arrays, problem)


_attend.defvjp(_forward, _backward)


def _call(kernel, name: str, arrays, results, heads: int, tiles: GpuTiles, problem: Problem):
    """A program for each tile of each head, residue class and image."""
    programs = problem.batch * math.prod(problem.dilations) * math.prod(problem.counts(tiles.queries)) * heads
    return pl.pallas_call(
        functools.partial(kernel, tiles=tiles, problem=problem),
        grid=(programs,),
        out_shape=results,
        compiler_params=plgpu.CompilerParams(num_warps=tiles.num_warps, num_stages=tiles.num_stages),
        name=f"neighborhood_attention_{name}",
        interpret=problem.interpret,
    )(*arrays)


def _bias_gradient(arrays, problem: Problem) -> Float[Array, "heads slices rows cols"]:
    """Blocks of logits' gradients, summed over many tiles each, then over programs, then at equal
    offsets by products.
    """
    query, bias = arrays[0], arrays[3]
    tiles = bias_tiles(problem.axes, problem.batch, problem.heads)
    slots = (math.prod(tiles.queries), math.prod(tiles.keys))
    shape = (tiles.splits, problem.heads, math.prod(tiles.blocks), *slots)
    parts = pl.pallas_call(
        functools.partial(bias_kernel, tiles=tiles, problem=problem),
        grid=(math.prod(shape[:3]),),
        out_shape=result_like(query, shape, jnp.float32),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        name="neighborhood_attention_backward_bias",
        interpret=problem.interpret,
    )(*arrays)
    x = parts.sum(0).reshape(problem.heads, *tiles.blocks, *tiles.queries, *tiles.keys)
    for i, axis in enumerate(problem.axes):  # blocks, queries and keys of the first axis become offsets, the last
        rest = 3 - i
        place = tiles.first_key[i] + np.arange(tiles.blocks[i] * tiles.keys[i]).reshape(-1, 1, tiles.keys[i])
        place = place - np.arange(tiles.queries[i])[:, None] + axis.kernel - 1  # blocks queries keys
        at = (place[..., None] == np.arange(2 * axis.kernel - 1)).astype(np.float32)
        x = jnp.moveaxis(x, (1, 1 + rest, 1 + 2 * rest), (-3, -2, -1))
        x = jnp.einsum("...nqk,nqko->...o", x, at, precision="highest")
    return x.reshape(bias.shape)


class Place(NamedTuple):
    """Places of the tokens that a program works on: an image, its residue class, and positions
    along each axis, [slots].
    """

    image: Array
    residues: tuple[Array, Array, Array]
    positions: tuple[Array, Array, Array]

    def tokens(self, problem: Problem) -> tuple[tuple[Array, Array, Array], Array]:
        """Coordinates of the tokens along each axis, and whether each token is in the map."""
        steps = zip(self.positions, problem.dilations, self.residues, strict=True)
        slices, rows, cols = (position * dilation + residue for position, dilation, residue in steps)
        inside = self.image < problem.batch
        for token, axis in zip((slices, rows, cols), problem.axes, strict=True):
            inside &= (token >= 0) & (token < axis.size)
        return (slices, rows, cols), inside

    def load(self, ref, head, dim: int, problem: Problem) -> Array:
        """Channels of a head, [slots, lanes]; zero outside."""
        tokens, inside = self.tokens(problem)
        lane = lax.broadcasted_iota(jnp.int32, (pl.next_power_of_2(dim),), 0)
        at = ref.at[(self.image, *(x[:, None] for x in tokens), head, lane[None, :])]
        return plgpu.load(at, mask=inside[:, None] & (lane < dim)[None, :], other=0.0)

    def store(self, ref, head, x, problem: Problem) -> None:
        tokens, inside = self.tokens(problem)
        dim = ref.shape[-1]
        lane = lax.broadcasted_iota(jnp.int32, (x.shape[1],), 0)
        at = ref.at[(self.image, *(x[:, None] for x in tokens), head, lane[None, :])]
        plgpu.store(at, x.astype(ref.dtype), mask=inside[:, None] & (lane < dim)[None, :])

    def load_number(self, ref, head, problem: Problem) -> Array:
        """One number for each token, [slots]."""
        tokens, inside = self.tokens(problem)
        return plgpu.load(ref.at[(self.image, *tokens, head)], mask=inside, other=0.0)

    def store_number(self, ref, head, x, problem: Problem) -> None:
        tokens, inside = self.tokens(problem)
        plgpu.store(ref.at[(self.image, *tokens, head)], x, mask=inside)

    def windows(self, window_refs, problem: Problem) -> list[tuple[Array, ...]]:
        """First key and one past the last for each query and axis, [slots].

        Empty outside of the map.
        """
        _, inside = self.tokens(problem)
        axes = zip(window_refs, self.residues, self.positions, problem.axes, strict=True)
        places = [(refs, residue * axis.positions + position) for refs, residue, position, axis in axes]
        return [tuple(plgpu.load(ref.at[place], mask=inside, other=0) for ref in refs) for refs, place in places]


def _slots(sizes: tuple[int, ...]) -> list[Array]:
    """The place of each slot of a tile along each axis, [slots]."""
    slot = lax.broadcasted_iota(jnp.int32, (math.prod(sizes),), 0)
    return [slot // math.prod(sizes[i + 1 :]) % size for i, size in enumerate(sizes)]


def _tile(number, sizes: tuple[int, ...], problem: Problem) -> Place:
    """The tile of a number that counts images, residue classes and tiles."""
    image, *places = unravel(number, (*problem.dilations, *problem.counts(sizes)))
    positions = tuple(tile * size + slot for tile, size, slot in zip(places[3:], sizes, _slots(sizes), strict=True))
    return Place(image, tuple(places[:3]), positions)


def _bounds(number, sizes: tuple[int, ...], window_refs, problem: Problem) -> list[tuple[Array, Array]]:
    """Along each axis, the first of what a tile sees and one past the last."""
    _, *places = unravel(number, (*problem.dilations, *problem.counts(sizes)))
    bounds = []
    for refs, residue, tile, size, axis in zip(window_refs, places[:3], places[3:], sizes, problem.axes, strict=True):
        first, last = tile * size, jnp.minimum(tile * size + size, axis.positions) - 1
        start = plgpu.load(refs[0].at[residue * axis.positions + first])
        bounds.append((start, plgpu.load(refs[1].at[residue * axis.positions + last])))
    return bounds


def _each_block(body, carry, place: Place, bounds, sizes: tuple[int, ...], times: int = 1):
    """Goes through the blocks of positions between the bounds, as often as told.

    `body` gets the round and the block.
    """
    counts = tuple((stop - start + size - 1) // size for (start, stop), size in zip(bounds, sizes, strict=True))
    slots = _slots(sizes)

    def step(i, carry):
        number, *blocks = unravel(i, counts)
        axes = zip(bounds, blocks, sizes, slots, strict=True)
        positions = tuple(start + block * size + slot for (start, _), block, size, slot in axes)
        return body(number, Place(place.image, place.residues, positions), carry)

    return lax.fori_loop(0, counts[0] * counts[1] * counts[2] * times, step, carry)


def _logits(products, queries: Place, keys: Place, windows, bias_ref, head, problem: Problem, *, transposed: bool = False):
    """The products [queries, keys], or transposed, as logits in units of log 2.

    NO_KEY where a key is not seen.
    """
    of_query, of_key = (lambda x: x[None, :], lambda x: x[:, None]) if transposed else (lambda x: x[:, None], lambda x: x[None, :])
    seen, offsets = jnp.bool_(True), []
    for axis, query, key, (start, stop) in zip(problem.axes, queries.positions, keys.positions, windows, strict=True):
        one = (of_key(key) >= of_query(start)) & (of_key(key) < of_query(stop))
        seen = seen & one
        offsets.append(of_key(key) - of_query(query) + (axis.kernel - 1))
    logits = products * (problem.scale * LOG2E)
    if bias_ref is not None:
        logits += plgpu.load(bias_ref.at[(head, *offsets)], mask=seen, other=0.0) * LOG2E
    return jnp.where(seen, logits, NO_KEY)


def forward_kernel(q_ref, k_ref, v_ref, bias_ref, window_refs, out_ref, logsumexp_ref, *, tiles: GpuTiles, problem: Problem):
    """One tile of queries: softmax from block to block of keys."""
    number, head = pl.program_id(0) // problem.heads, pl.program_id(0) % problem.heads
    kv_head = head // (problem.heads // problem.kv_heads)
    queries = _tile(number, tiles.queries, problem)
    windows = queries.windows(window_refs, problem)
    q = queries.load(q_ref, head, problem.head_dim, problem)

    def block(_, keys: Place, carry):
        out, top, total = carry
        k = keys.load(k_ref, kv_head, problem.head_dim, problem)
        v = keys.load(v_ref, kv_head, problem.value_dim, problem)
        logits = _logits(dot(q, k, (1, 1)), queries, keys, windows, bias_ref, head, problem)
        higher = jnp.maximum(top, jnp.max(logits, 1))
        weights = jnp.exp2(logits - higher[:, None])
        shrink = jnp.exp2(top - higher)
        return out * shrink[:, None] + dot(weights.astype(v.dtype), v, (1, 0)), higher, total * shrink + jnp.sum(weights, 1)

    slots = math.prod(tiles.queries)
    # The first top is above NO_KEY, so that the weight of a key that is not seen is 0 even before
    # any is.
    carry = (jnp.zeros((slots, problem.lanes[1]), jnp.float32), jnp.full((slots,), NO_KEY / 1e5), jnp.zeros((slots,), jnp.float32))
    bounds = _bounds(number, tiles.queries, window_refs, problem)
    out, top, total = _each_block(block, carry, queries, bounds, tiles.keys)
    total = jnp.maximum(total, jnp.finfo(jnp.float32).tiny)  # slots outside of the map see nothing
    queries.store(out_ref, head, out / total[:, None], problem)
    queries.store_number(logsumexp_ref, head, (top + jnp.log2(total)) * (1 / LOG2E), problem)


def query_kernel(
    q_ref, k_ref, v_ref, bias_ref, d_out_ref, logsumexp_ref, mean_ref, window_refs, dq_ref, *, tiles: GpuTiles, problem: Problem
):
    """The gradient of one tile of queries."""
    number, head = pl.program_id(0) // problem.heads, pl.program_id(0) % problem.heads
    kv_head = head // (problem.heads // problem.kv_heads)
    queries = _tile(number, tiles.queries, problem)
    load = functools.partial(_load_queries, refs=(q_ref, d_out_ref, logsumexp_ref, mean_ref), window_refs=window_refs, problem=problem)
    q, d_out, logsumexp, mean, windows = load(queries, head)

    def block(_, keys: Place, dq):
        k = keys.load(k_ref, kv_head, problem.head_dim, problem)
        v = keys.load(v_ref, kv_head, problem.value_dim, problem)
        logits = _logits(dot(q, k, (1, 1)), queries, keys, windows, bias_ref, head, problem)
        d_logits = jnp.exp2(logits - logsumexp[:, None]) * (dot(d_out, v, (1, 1)) - mean[:, None])
        return dq + dot(d_logits.astype(k.dtype), k, (1, 0))

    bounds = _bounds(number, tiles.queries, window_refs, problem)
    dq = jnp.zeros((math.prod(tiles.queries), problem.lanes[0]), jnp.float32)
    dq = _each_block(block, dq, queries, bounds, tiles.keys)
    queries.store(dq_ref, head, dq * problem.scale, problem)


def key_kernel(
    q_ref,
    k_ref,
    v_ref,
    bias_ref,
    d_out_ref,
    logsumexp_ref,
    mean_ref,
    window_refs,
    inverse_refs,
    dk_ref,
    dv_ref,
    *,
    tiles: GpuTiles,
    problem: Problem,
):
    """The gradients of one tile of keys and values, from all queries that see one of them."""
    number, kv_head = pl.program_id(0) // problem.kv_heads, pl.program_id(0) % problem.kv_heads
    shared = problem.heads // problem.kv_heads
    keys = _tile(number, tiles.queries, problem)
    k = keys.load(k_ref, kv_head, problem.head_dim, problem)
    v = keys.load(v_ref, kv_head, problem.value_dim, problem)
    load = functools.partial(_load_queries, refs=(q_ref, d_out_ref, logsumexp_ref, mean_ref), window_refs=window_refs, problem=problem)

    def block(round_, queries: Place, carry):
        dk, dv = carry
        head = kv_head * shared + round_
        q, d_out, logsumexp, mean, windows = load(queries, head)
        logits = _logits(dot(k, q, (1, 1)), queries, keys, windows, bias_ref, head, problem, transposed=True)
        weights = jnp.exp2(logits - logsumexp[None, :])
        d_logits = weights * (dot(v, d_out, (1, 1)) - mean[None, :])
        return dk + dot(d_logits.astype(q.dtype), q, (1, 0)), dv + dot(weights.astype(d_out.dtype), d_out, (1, 0))

    bounds = _bounds(number, tiles.queries, inverse_refs, problem)
    dk, dv = (jnp.zeros((math.prod(tiles.queries), lanes), jnp.float32) for lanes in problem.lanes)
    dk, dv = _each_block(block, (dk, dv), keys, bounds, tiles.keys, shared)
    keys.store(dk_ref, kv_head, dk * problem.scale, problem)
    keys.store(dv_ref, kv_head, dv, problem)


def bias_kernel(
    q_ref, k_ref, v_ref, bias_ref, d_out_ref, logsumexp_ref, mean_ref, window_refs, sum_ref, *, tiles: BiasTiles, problem: Problem
):
    """The gradients of the logits of every splits-th tile and one block of keys around it,
    summed.
    """
    blocks = math.prod(tiles.blocks)
    head, rest = pl.program_id(0) % problem.heads, pl.program_id(0) // problem.heads
    block, split = rest % blocks, rest // blocks
    kv_head = head // (problem.heads // problem.kv_heads)
    _, *places = unravel(block, tiles.blocks)
    load = functools.partial(_load_queries, refs=(q_ref, d_out_ref, logsumexp_ref, mean_ref), window_refs=window_refs, problem=problem)
    shift = [first + place * size for first, place, size in zip(tiles.first_key, places, tiles.keys, strict=True)]
    within = _slots(tiles.keys)

    def tile(i, total):
        number = i * tiles.splits + split
        queries = _tile(number, tiles.queries, problem)
        _, *numbers = unravel(number, (*problem.dilations, *problem.counts(tiles.queries)))
        origins = [tile * size for tile, size in zip(numbers[3:], tiles.queries, strict=True)]
        positions = tuple(origin + first + slot for origin, first, slot in zip(origins, shift, within, strict=True))
        keys = Place(queries.image, queries.residues, positions)
        q, d_out, logsumexp, mean, windows = load(queries, head)
        k = keys.load(k_ref, kv_head, problem.head_dim, problem)
        v = keys.load(v_ref, kv_head, problem.value_dim, problem)
        logits = _logits(dot(q, k, (1, 1)), queries, keys, windows, bias_ref, head, problem)
        return total + jnp.exp2(logits - logsumexp[:, None]) * (dot(d_out, v, (1, 1)) - mean[:, None])

    slots = (math.prod(tiles.queries), math.prod(tiles.keys))
    total = lax.fori_loop(0, pl.cdiv(tiles.total, tiles.splits), tile, jnp.zeros(slots, jnp.float32))
    query, key = (lax.broadcasted_iota(jnp.int32, (n,), 0) for n in slots)
    plgpu.store(sum_ref.at[split, head, block, query[:, None], key[None, :]], total)


def _load_queries(queries: Place, head, *, refs, window_refs, problem: Problem):
    """Query, gradient of the result, logsumexp in units of log 2, its mean gradient, and
    windows.
    """
    q_ref, d_out_ref, logsumexp_ref, mean_ref = refs
    return (
        queries.load(q_ref, head, problem.head_dim, problem),
        queries.load(d_out_ref, head, problem.value_dim, problem),
        queries.load_number(logsumexp_ref, head, problem) * LOG2E,
        queries.load_number(mean_ref, head, problem),
        queries.windows(window_refs, problem),
    )
