"""Copies rows of maps to the buffers of words that the tiles of the TPU kernels read, and back."""

import itertools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.neighborhood_attention.tiles import ROWS_TOGETHER, WORD
from pallas_kernels.neighborhood_attention.tpu_call import Call
from pallas_kernels.neighborhood_attention.tpu_program import Program


def _row(ref, n, first, row, call: Call):
    """A row of a map in words, [words, lanes], of images side by side in the lanes and along the
    columns.
    """
    plan = call.plan

    def fold(i):
        return jnp.concatenate([_words(ref, (n * plan.images + (i * plan.fold + j), first, row)) for j in range(plan.fold)], -1)

    return jnp.concatenate([fold(i) for i in range(plan.beside)], 0)


def _words(ref, at: tuple):
    """Narrow values two to a word, the last one beside zero if they are odd: v5e knows no 16-bit
    arithmetic, nor moves them by one.
    """
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


def gather_queries(map_refs, refs, i, program: Program) -> None:
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


def gather_keys(map_refs, refs, i, call: Call, clear=()) -> None:
    """Copies the keys around a strip, in words, with zeros beyond the map, and clears what their
    gradients are added to.
    """
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


def scatter(refs, map_refs, i, call: Call) -> None:
    """Copies results from the buffers of words back to the maps: the inverse of gathering."""
    plan, maps = call.plan, refs[0].shape[0]
    channels = plan.channels

    def copy(n, first, row):
        for ref, map_ref in zip(refs, map_refs, strict=True):
            cols, image, dtype = map_ref.shape[-2], (i * maps + n) * plan.images, map_ref.dtype
            in_words = (
                dtype.itemsize < 4 and cols % WORD == 0 and not call.interpret
            )  # the interpreter cannot write to another view of a map
            each = map_ref.bitcast(jnp.uint32) if in_words else map_ref
            for beside in range(plan.beside):
                begin = beside * cols
                if in_words:
                    x = [ref[n, first, row, pl.ds(begin + k, cols // WORD, WORD)] for k in range(WORD)]
                    x = pltpu.pack_elementwise(x, packed_dtype=dtype)
                else:
                    x = ref[n, first, row, pl.ds(begin, cols)].astype(dtype)
                for fold in range(plan.fold):
                    each[image + beside * plan.fold + fold, first, row] = x[:, fold * channels : (fold + 1) * channels]

    _each_row(copy, maps, *map_refs[0].shape[1:3])
