"""Window attention on NVIDIA GPUs, by Pallas's Triton lowering.

The only module that knows that backend.

A program takes one head and several windows. Where a window's tokens lie is arithmetic on its
number, so shift and partition cost no copy. A window fits one tile (49 slots in 64), so softmax is
one pass and the backward pass makes the gradients of query, key and value from one recomputation.
Bias gradients are summed within a program and then over programs, in a fixed order: no atomics.
"""

import dataclasses
import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array

from pallas_kernels.logits import LOG2E, NO_KEY, dot
from pallas_kernels.sharding import result_like
from pallas_kernels.window_attention.gpu import Problem, operators
from pallas_kernels.window_attention.tiles import GpuTiles
from pallas_kernels.window_attention.windows import SHIFT_PENALTY


def _forward(arrays, bias, mask, problem: Problem, interpret: bool):
    tiles, programs = problem.tiles(backward=False), problem.programs(backward=False)
    b, h, w, _, heads, head_dim = problem.shape
    return pl.pallas_call(
        functools.partial(forward_kernel, problem=problem, programs=programs, tiles=tiles),
        grid=(programs * heads,),
        out_shape=result_like(arrays[0], (b, h, w, 1, heads, head_dim)),
        compiler_params=_compiler_params(tiles),
        name="window_attention_forward",
        interpret=interpret,
    )(arrays, bias, mask)


def _backward(arrays, bias, mask, d_out, problem: Problem, interpret: bool):
    tiles, programs = problem.tiles(backward=True), problem.programs(backward=True)
    heads, slots = problem.shape[4], problem.windows.num_slots
    d_bias = None if bias is None else result_like(bias, (programs, heads, slots, slots), jnp.float32)
    return pl.pallas_call(
        functools.partial(backward_kernel, problem=problem, programs=programs, tiles=tiles),
        grid=(programs * heads,),
        out_shape=(tuple(result_like(x, x.shape) for x in arrays), d_bias),
        compiler_params=_compiler_params(tiles),
        name="window_attention_backward",
        interpret=interpret,
    )(arrays, bias, mask, d_out)


window_attention, window_attention_qkv = operators(_forward, _backward)


def forward_kernel(array_refs, bias_ref, mask_ref, out_ref, *, problem: Problem, programs: int, tiles: GpuTiles):
    """One head of every programs-th window."""
    program, head = _program(problem)
    bias = _load_bias(bias_ref, head, problem)

    def window(i, carry):
        place = _place(i * programs + program, problem)
        q, k, v = _load_all(array_refs, mask_ref, place, head, problem)
        weights, total = _weights(q, k, bias, mask_ref, place, problem)
        out = dot(weights.astype(v.dtype), v, (1, 0)) / total
        _store(out_ref, 0, out, place, head, problem)
        return carry

    lax.fori_loop(0, tiles.windows_per_program, window, 0)


def backward_kernel(
    array_refs, bias_ref, mask_ref, d_out_ref, d_array_refs, d_bias_ref, *, problem: Problem, programs: int, tiles: GpuTiles
):
    """One head of every programs-th window, and the sum of their bias gradients."""
    program, head = _program(problem)
    bias = _load_bias(bias_ref, head, problem)

    def window(i, d_bias):
        place = _place(i * programs + program, problem)
        q, k, v = _load_all(array_refs, mask_ref, place, head, problem)
        d_out = _load(d_out_ref, 0, place, place.is_token, head, problem)
        weights, total = _weights(q, k, bias, mask_ref, place, problem)
        weights /= total
        d_weights = dot(d_out, v, (1, 1))
        d_logits = weights * (d_weights - jnp.sum(weights * d_weights, 1, keepdims=True))
        narrow = d_logits.astype(q.dtype)
        grads = (
            dot(narrow, k, (1, 0)) * problem.scale,
            dot(narrow, q, (0, 0)) * problem.scale,
            dot(weights.astype(q.dtype), d_out, (0, 0)),
        )
        refs = d_array_refs * (3 // len(d_array_refs))
        for ref, part, grad in zip(refs, problem.parts, grads, strict=True):
            _store(ref, part, grad, place, head, problem)
        return d_bias if d_bias_ref is None else d_bias + d_logits

    start = 0 if d_bias_ref is None else jnp.zeros((problem.tile[0], problem.tile[0]), jnp.float32)
    d_bias = lax.fori_loop(0, tiles.windows_per_program, window, start)
    if d_bias_ref is not None:
        query, key = _slot(problem)[:, None], _slot(problem)[None, :]
        inside = (query < problem.windows.num_slots) & (key < problem.windows.num_slots)
        plgpu.store(d_bias_ref.at[program, head, query, key], d_bias, mask=inside)


@dataclasses.dataclass(frozen=True)
class Place:
    """Places of the slots of one window, [slots] each; out of range where a slot holds no token."""

    image: Array
    row: Array
    col: Array
    is_token: Array
    side: Array  # side of the seam that the shift made, which tokens do not look across


def _program(problem: Problem) -> tuple[Array, Array]:
    return pl.program_id(0) // problem.shape[4], pl.program_id(0) % problem.shape[4]  # heads innermost: neighbours in memory


def _slot(problem: Problem) -> Array:
    return lax.broadcasted_iota(jnp.int32, (problem.tile[0],), 0)


def _place(number, problem: Problem) -> Place:
    rows, cols = problem.windows.rows, problem.windows.cols
    slot = _slot(problem)
    image, window = number // problem.windows.num_windows, number % problem.windows.num_windows
    row = rows.position(window // cols.num_windows, slot // cols.window)
    col = cols.position(window % cols.num_windows, slot % cols.window)
    is_token = (slot < problem.windows.num_slots) & (row < rows.size) & (col < cols.size) & (image < problem.shape[0])
    side = rows.wrapped(row).astype(jnp.int32) * 2 + cols.wrapped(col).astype(jnp.int32)
    return Place(image, jnp.where(is_token, row, rows.size), jnp.where(is_token, col, cols.size), is_token, side)


def _at(ref, part, place: Place, head, problem: Problem):
    lane = lax.broadcasted_iota(jnp.int32, (problem.tile[1],), 0)
    return ref.at[place.image, place.row[:, None], place.col[:, None], part, head, lane[None, :]], lane[None, :] < problem.shape[-1]


def _load(ref, part, place: Place, wanted, head, problem: Problem):
    at, inside = _at(ref, part, place, head, problem)
    return plgpu.load(at, mask=wanted[:, None] & inside, other=0.0)


def _store(ref, part, x, place: Place, head, problem: Problem) -> None:
    at, inside = _at(ref, part, place, head, problem)
    plgpu.store(at, x.astype(ref.dtype), mask=place.is_token[:, None] & inside)


def _load_all(array_refs, mask_ref, place: Place, head, problem: Problem):
    """Query, key and value of a window, [slots, head_dim].

    Zero where there is no token or nobody may look.
    """
    refs, seen = array_refs * (3 // len(array_refs)), _seen(mask_ref, place)
    return [
        _load(ref, part, place, x, head, problem) for ref, part, x in zip(refs, problem.parts, (place.is_token, seen, seen), strict=True)
    ]


def _seen(mask_ref, place: Place):
    if mask_ref is None:
        return place.is_token
    return place.is_token & plgpu.load(mask_ref.at[place.image, place.row, place.col], mask=place.is_token, other=False)


def _load_bias(bias_ref, head, problem: Problem):
    """The bias of a head, [slots, slots], in units of log 2.

    NO_KEY where the key's slot is outside the window.
    """
    query, key = _slot(problem)[:, None], _slot(problem)[None, :]
    slots = problem.windows.num_slots
    if bias_ref is None:
        return jnp.where((key < slots) & (query >= 0), 0.0, NO_KEY)
    bias = plgpu.load(bias_ref.at[head, query, key], mask=(query < slots) & (key < slots), other=0.0)
    return jnp.where(key < slots, bias.astype(jnp.float32) * LOG2E, NO_KEY)


def _weights(q, k, bias, mask_ref, place: Place, problem: Problem):
    """Softmax before its division, [slots, slots], and what to divide by, [slots, 1]."""
    logits = dot(q, k, (1, 1)) * (problem.scale * LOG2E) + bias
    if any(problem.windows.shift):
        logits += jnp.where(place.side[:, None] == place.side[None, :], 0.0, SHIFT_PENALTY * LOG2E)
    if mask_ref is not None or problem.windows.overhang:
        logits = jnp.where(_seen(mask_ref, place)[None, :], logits, NO_KEY)
    weights = jnp.exp2(logits - jnp.max(logits, 1, keepdims=True))
    if mask_ref is not None:
        weights = jnp.where(logits > NO_KEY / 2, weights, 0.0)  # a query that sees no key gets zeros
    return weights, jnp.maximum(jnp.sum(weights, 1, keepdims=True), jnp.finfo(jnp.float32).tiny)


def _compiler_params(tiles: GpuTiles):
    return plgpu.CompilerParams(num_warps=tiles.num_warps, num_stages=tiles.num_stages)
