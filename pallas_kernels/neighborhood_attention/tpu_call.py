"""A call of the TPU kernels: the grid, the blocks of maps, the buffers, and the numbers that the
scalar core reads.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.neighborhood_attention.tiles import FULL_TILE, WORD, Strips, TpuPlan, padded
from pallas_kernels.neighborhood_attention.tpu_sights import Ranges
from pallas_kernels.sharding import result_like
from pallas_kernels.target import device_kind

CORES = {"TPU v5 lite": 1, "TPU v6 lite": 1}  # cores of a chip that share a grid at most; each adds up table gradients of its own
CORES_ELSEWHERE = 2  # at most: v5p
VMEM_MARGIN = 8 * 2**20  # for what the compiler keeps beside the arrays


class Scalars(NamedTuple):
    """Numbers that the scalar core reads: first keys of strips and tiles, and the kinds of tiles,
    axis by axis.
    """

    strips: Array
    slices: Array
    rows: Array
    cols: Array
    slice_kinds: Array  # kind of each residue class and tile, in steps of the product of kinds of the axes after it
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
    """One call of a kernel."""

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
        """Images of a program."""
        return self.plan.images * self.plan.maps(self.strips)

    @functools.cached_property
    def maps(self) -> int:
        """Maps that are worked on together, of `plan.images` images each."""
        return self.plan.maps_together(self.strips)

    def run(self, kernel, scale: float, query_maps, key_maps, table, query_results, key_results) -> Sequence[Array]:
        """Runs over all images, chunks of heads and strips.

        The last result backward is the gradient of a bias table, core by core.
        """
        plan, strips = self.plan, self.strips
        blocks = query_maps[0].shape[0] // self.images
        cores = CORES.get(device_kind(), CORES_ELSEWHERE)
        cores = cores if blocks % cores == 0 else 1
        grid = (cores, plan.chunks, blocks // cores, strips.count)
        sights = Ranges.of(plan) if table is None else [table]
        sums = [table] if plan.bias and plan.backward else []
        products = (plan.batches(strips).tiles, *plan.logits)
        (*places, cols, lanes), (*key_places, key_cols, _) = ((self.maps, *buffer) for buffer in plan.buffers(strips))
        scratch = [words_buffer((*places, cols, lanes), x.dtype) for x in query_maps]
        scratch += [pltpu.VMEM((*places, padded(cols, FULL_TILE), lanes), jnp.float32) for _ in query_results]
        scratch += [words_buffer((*key_places, key_cols, lanes), x.dtype) for x in key_maps]
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
    """All kinds of a table, of one chunk of heads if the chunks differ."""
    several = len(table) > 1
    return pl.BlockSpec((1, *table.shape[1:]), lambda core, chunk, *_: (chunk * several, 0, 0, 0))


def words_buffer(shape: tuple[int, ...], dtype):
    """A buffer in words of 32 bits for values of this dtype."""
    *outer, cols, lanes = shape
    return pltpu.VMEM(shape, dtype) if dtype.itemsize == 4 else pltpu.VMEM((*outer, cols // WORD, lanes), jnp.int32)
