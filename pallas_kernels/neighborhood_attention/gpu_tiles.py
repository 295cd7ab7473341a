"""Sizes of the tiles of the GPU kernels, chosen by the shape of the arguments."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.gpu import PROGRAMS
from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.neighborhood_attention.tiles import TpuAxis


@dataclasses.dataclass(frozen=True)
class GpuTiles:
    """Sizes of tiles, powers of two along slices, rows and columns.

    A tile has at least 16 slots.
    """

    queries: tuple[int, int, int]  # tokens of the tile of one program: queries, or keys in the kernel for the gradients of keys
    keys: tuple[int, int, int]  # tokens of the blocks that the program loads one after the other
    num_warps: int
    num_stages: int = 2


@dataclasses.dataclass(frozen=True)
class BiasTiles:
    """Sizes in the kernel for the bias gradient: each program adds up one block of keys over every
    splits-th tile.
    """

    queries: tuple[int, int, int]
    keys: tuple[int, int, int]
    first_key: tuple[int, int, int]  # position of the first block, counted from the first query of a tile
    blocks: tuple[int, int, int]  # number of key blocks along each axis
    total: int  # tiles of all images together
    splits: int  # programs that share the tiles of one block


def gpu_tiles(axes: tuple[Axis, Axis, Axis], itemsize: int, *, backward: bool) -> GpuTiles:
    """A heuristic, not measured: 64 queries as square as can be, and 64 keys in rows that a
    window's halo fills.
    """
    del backward
    warps = 8 if itemsize == 4 else 4
    if axes[1].size > 1:
        return GpuTiles((4, 4, 4), (2, 4, 8), warps)
    if axes[0].size > 1:
        return GpuTiles((8, 1, 8), (4, 1, 16) if axes[2].positions > 8 else (8, 1, 8), warps)
    return GpuTiles((1, 1, 64), (1, 1, 64), warps)


def bias_tiles(axes: tuple[Axis, Axis, Axis], batch: int, heads: int) -> BiasTiles:
    """A heuristic, not measured: 16 queries, so that the sum over a block of 128 keys fits the
    registers of four warps.
    """
    if axes[1].size > 1:
        queries, keys = (2, 2, 4), (4, 4, 8)
    elif axes[0].size > 1:
        queries, keys = (4, 1, 4), (8, 1, 16)
    else:
        queries, keys = (1, 1, 16), (1, 1, 128)
    tiles = [TpuAxis(axis, size) for axis, size in zip(axes, queries, strict=True)]
    first, blocks = [], []
    for tile, size in zip(tiles, keys, strict=True):
        origin = np.arange(tile.count) * tile.tile
        start, stop = tile.windows[0].min((0, 2)) - origin, tile.windows[1].max((0, 2)) - origin
        first.append(int(start.min()))
        blocks.append(pl.cdiv(int(stop.max()) - first[-1], size))
    total = batch * math.prod(axis.dilation * tile.count for axis, tile in zip(axes, tiles, strict=True))
    splits = max(1, min(total, pl.cdiv(PROGRAMS, heads * math.prod(blocks))))
    return BiasTiles(queries, keys, (first[0], first[1], first[2]), (blocks[0], blocks[1], blocks[2]), total, splits)


def unravel(number, counts: tuple) -> list:
    """Splits the number of a program into digits of these counts, the last one fastest.

    The first value is the quotient left over.
    """
    places = []
    for count in reversed(counts):
        places.append(lax.rem(number, jnp.int32(count)))
        number = lax.div(number, jnp.int32(count))
    return [number, *reversed(places)]
