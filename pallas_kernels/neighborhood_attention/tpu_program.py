"""The loop of a TPU kernel's program: its tiles in batches, and the batches phase by phase."""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from pallas_kernels.neighborhood_attention.tiles import HALF_TILE, Batches, TpuPlan
from pallas_kernels.neighborhood_attention.tpu_call import Call, Scalars

ORDER = {
    2: (0, 1),
    3: (2, 0, 1),
}  # in which the phases of different batches are written down: the compiler's schedule is shortest so (counted)


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
        """The tile's queries as the buffer holds them: two values of 16 bits to a word."""
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
    """The strip and residue class that a program works on.

    The interpreter knows its number only outside of loops.
    """

    call: Call
    scalars: Scalars
    strip: Array
    group: Array  # residue class of its images

    @classmethod
    def this(cls, call: Call, refs) -> "Program":
        block = pl.program_id(0) * pl.num_programs(2) + pl.program_id(2)
        return cls(call, Scalars(*refs), pl.program_id(3), block * call.images // call.plan.batch)

    def tile(self, i, col) -> Tile:
        """The one in a column of the tiles and the i-th of their rows, image by image and slice by
        slice.
        """
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
    """The phases of a batch of tiles; the results of one wait in VMEM for the next.

    While a batch is in its last phase the next one is in the phase before, and so on, so that the
    units of the core that one phase leaves idle serve another. Batches use the two halves of what
    waits by turns.
    """

    phases: tuple
    program: Program
    batches: Batches
    waiting: list[tuple]  # buffers between phases: for each phase but the last, two halves

    def work(self, step, number: int, phase: int) -> None:
        """Runs one phase of a batch.

        The batch's number says its part of the step and its half of the buffers.
        """
        places = self.batches.places(step, number % self.batches.parts, self.program.call.plan.tiles[2].count)
        tiles = [self.program.tile(*place) for place in places]
        ready = self.waiting[phase - 1][number % 2] if phase else ()
        results = self.phases[phase](tiles, *([ref[i] for i in range(len(tiles))] for ref in ready))
        for ref, values in zip(self.waiting[phase][number % 2] if results else (), results or (), strict=True):
            for i, x in enumerate(values):
                ref[i] = x

    def advance(self, first, number: int, among: range) -> None:
        """The batches by their number, counted from that of the first step, each in the phase after
        its predecessor's.
        """
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
        """Runs a number of steps that is not known beforehand, one batch and one phase after the
        other.
        """

        def each(step, carry):
            for part, phase in itertools.product(range(self.batches.parts), range(len(self.phases))):
                self.work(step, part, phase)
            return carry

        lax.fori_loop(0, steps, each, 0)


def each_batch(phases: tuple, program: Program, waiting: list[tuple]) -> None:
    """Takes all tiles of a program's strip through the phases; for `waiting` see `Pipeline`."""
    call, (slices, rows, cols) = program.call, program.call.plan.tiles
    tiles, batches = call.strips.tiles_per_strip, call.plan.batches(call.strips)
    pipeline = Pipeline(phases, program, batches, waiting)
    if slices.count % tiles == 0:
        pipeline.run(batches.steps(call.maps * tiles * rows.count, cols.count))
    else:  # the last strip is shorter
        tiles = jnp.minimum(tiles, slices.count - program.strip * tiles)
        pipeline.run_in_sequence(batches.steps(tiles * rows.count, cols.count))
