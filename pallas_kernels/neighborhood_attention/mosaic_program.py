"""Parts of the Mosaic GPU kernels of neighborhood attention: the blocks that tiles visit, and the
program.

The map is cut into tiles of 64 tokens, the rows of a product of a warpgroup (wgmma). A program has
two tiles, side by side, each with a warpgroup that computes; a third warpgroup copies the blocks of
tokens that the two visit to shared memory, a few ahead. A block that a tile sees as a whole is not
masked.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from pallas_kernels.logits import LOG2E, NO_KEY
from pallas_kernels.neighborhood_attention.gpu_tiles import unravel
from pallas_kernels.neighborhood_attention.layout import Axes
from pallas_kernels.neighborhood_attention.tiles import padded
from pallas_kernels.sharding import varying_like

TILE = 64  # tokens, the rows of a product of a warpgroup
COMPUTING = 2  # warpgroups of a program, each with a tile
STAGES = 2  # blocks in shared memory
COMPUTING_REGISTERS, COPYING_REGISTERS = 232, 40  # registers of each thread of a warpgroup
ROWS, MATRIX, COLUMNS = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(0)
Three = tuple[int, int, int]  # along slices, rows and columns


@dataclasses.dataclass(frozen=True)
class Problem:
    """Facts that are constants of the compiled kernels."""

    axes: Axes
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    interpret: bool

    @property
    def tile(self) -> Three:
        """Tokens of a tile, 64 together.

        Of columns whole multiples of 8, what the layout of shared memory asks.
        """
        if self.axes[1].size > 1:
            return 2, 4, 8
        return (8, 1, 8) if self.axes[0].size > 1 else (1, 1, 64)

    @property
    def pair(self) -> Three:
        """Tokens of the two tiles of a program."""
        slices, rows, cols = self.tile
        return (slices, rows * COMPUTING, cols) if rows > 1 else (slices, rows, cols * COMPUTING)

    @property
    def padded(self) -> Three:
        """Size of the map in whole pairs."""
        slices, rows, cols = (padded(axis.size, n) for axis, n in zip(self.axes, self.pair, strict=True))
        return slices, rows, cols

    def counts(self, sizes: Three) -> Three:
        """Tiles, pairs or blocks along each axis."""
        slices, rows, cols = (n // size for n, size in zip(self.padded, sizes, strict=True))
        return slices, rows, cols


@dataclasses.dataclass(frozen=True)
class Plan:
    """A kernel's name, and the sizes of its tiles and of the blocks that they visit."""

    name: str  # name of the kernel in the compiled program
    problem: Problem
    block: Three  # tokens met at a time
    of_keys: bool = False  # the tiles, which then meet queries

    @property
    def live(self) -> list[int]:
        """Axes that have more than a token, and the columns."""
        return [i for i, axis in enumerate(self.problem.axes) if axis.size > 1 or i == 2]


class Operands(NamedTuple):
    """Inputs of a kernel: arrays outside it, references inside.

    Of tokens, [b, slices, rows, cols, heads * head_dim] in whole pairs, or of a number for each,
    [b, heads, tiles, 64].
    """

    kept: tuple  # arrays whose tiles a program keeps in shared memory
    met: tuple  # arrays whose blocks a program visits one after the other
    kept_numbers: tuple = ()
    met_numbers: tuple = ()  # numbers of the visited blocks, where blocks have a tile's size


class Sights(NamedTuple):
    """Visibility of tiles along one axis, in tokens: int32 arrays outside a kernel, references
    inside.
    """

    windows: Any  # first token and one past the last for each row, [tiles, 2, 64]; none beyond the end of the axis
    whole: Any  # first token that all rows of a tile see, and one past the last, [tiles, 2]
    blocks: Any  # first block that a row of each pair sees, and the number of blocks, [pairs, 2]


def _sights(plan: Plan) -> list[Sights]:
    """Per live axis: key ranges of each query tile.

    Query ranges of each key tile when `plan.of_keys`.
    """
    problem = plan.problem
    slots = np.arange(TILE)
    sights = []
    for i in plan.live:
        axis, size, pair, step = problem.axes[i], problem.tile[i], problem.pair[i], plan.block[i]
        start, stop = (x[0] for x in (axis.inverse_windows() if plan.of_keys else axis.windows()))
        count = problem.padded[i] // size
        place = slots // math.prod(problem.tile[i + 1 :]) % size + np.arange(count)[:, None] * size  # tiles 64
        inside, at = place < axis.size, np.minimum(place, axis.size - 1)
        windows = np.stack([np.where(inside, x[at], 0) for x in (start, stop)], 1)
        whole = np.stack([windows[:, 0].max(1), np.where(inside, stop[at], axis.size).min(1)], 1)
        in_pairs = (-1, pair // size * TILE)
        first = np.where(inside, start[at], axis.size).reshape(in_pairs).min(1) // step
        blocks = np.stack([first, np.maximum(-(-windows[:, 1].reshape(in_pairs).max(1) // step) - first, 0)], 1)
        sights.append(Sights(*(jnp.asarray(x, jnp.int32) for x in (windows, whole, blocks))))
    return sights


def call(kernel: Callable[..., None], operands: Operands, results: tuple[jax.ShapeDtypeStruct, ...], plan: Plan) -> list[Array]:
    """Runs a kernel, which gets a reference to each result and the `Program`: one for each pair of
    tiles of each head and image.
    """
    problem, like = plan.problem, operands.kept[0]
    arrays, tree = jax.tree.flatten((operands, _sights(plan)))

    def body(*refs, **scratch):
        operands, sights = jax.tree.unflatten(tree, refs[: len(arrays)])
        kernel(*refs[len(arrays) :], program=Program(plan, operands, sights, **scratch))

    run = plgpu.kernel(
        body,
        out_type=results,
        scratch_types=_scratch(plan, operands, like.dtype),
        grid=(problem.batch, problem.kv_heads if plan.of_keys else problem.heads, math.prod(problem.counts(problem.pair))),
        grid_names=("image", "head", "pair"),
        num_threads=COMPUTING + 1,
        thread_name="warpgroup",
        kernel_name=f"neighborhood_attention_{plan.name}",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=_interpreter() if problem.interpret else None,
    )
    return [varying_like(x, like) for x in run(*arrays)]  # plgpu.kernel drops the mark of what differs from shard to shard


def _scratch(plan: Plan, operands: Operands, dtype) -> dict[str, Any]:
    """Shared memory and barriers of a program, by the names that `Program` has for them."""
    problem, layout = plan.problem, (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    kept, met, kept_numbers, met_numbers = map(len, operands)
    copies_kept = kept * math.prod(problem.tile[:2]) + kept_numbers + len(plan.live)  # one a row of the map, and of windows
    copies_met = met * math.prod(plan.block[:2]) + met_numbers
    return {
        "tiles": [plgpu.SMEM((COMPUTING, TILE, problem.head_dim), dtype, transforms=layout)] * kept,
        "blocks": [plgpu.SMEM((STAGES, math.prod(plan.block), problem.head_dim), dtype, transforms=layout)] * met,
        "kept_numbers": [plgpu.SMEM((COMPUTING, TILE), jnp.float32)] * max(kept_numbers, 1),  # one for a result
        "met_numbers": [plgpu.SMEM((STAGES, TILE), jnp.float32)] * met_numbers,
        "windows": plgpu.SMEM((COMPUTING, len(plan.live), 2, TILE), jnp.int32),
        "loaded": plgpu.Barrier(num_arrivals=copies_kept, num_barriers=COMPUTING),
        "ready": plgpu.Barrier(num_arrivals=copies_met, num_barriers=STAGES),
        "free": plgpu.Barrier(num_arrivals=COMPUTING, num_barriers=STAGES),
    }


def _interpreter():
    """Parameters of Mosaic GPU's interpreter on a CPU.

    Jax has a public name for them since 0.11.
    """
    if jax.__version_info__ >= (0, 11):
        return plgpu.InterpretGPUParams()  # pyright: ignore[reportAttributeAccessIssue]
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


class Place(NamedTuple):
    """Image, head and first token of a tile or block."""

    image: Array
    head: Array
    tokens: tuple[Array, Array, Array]  # along slices, rows and columns


@dataclasses.dataclass(frozen=True)
class Program:
    """References that the warpgroups of a program share, and the tile of each."""

    plan: Plan
    operands: Operands
    sights: list[Sights]  # one for each live axis
    tiles: list[Any]  # this and all fields below lie in shared memory
    blocks: list[Any]
    kept_numbers: list[Any]
    met_numbers: list[Any]
    windows: Any
    loaded: Any
    ready: Any
    free: Any

    @property
    def warpgroup(self) -> Array:
        return lax.axis_index("warpgroup")

    @property
    def pair(self) -> list[Array]:
        return unravel(lax.axis_index("pair"), self.plan.problem.counts(self.plan.problem.pair)[1:])

    @property
    def tile(self) -> list[Array]:
        """The number along each axis of the tile of a warpgroup that computes."""
        axes = zip(self.pair, self.plan.problem.pair, self.plan.problem.tile, strict=True)
        return [number if pair == tile else number * COMPUTING + self.warpgroup for number, pair, tile in axes]

    @property
    def place(self) -> Place:
        """First token of this warpgroup's tile on each axis."""
        slice_, row, col = (x * size for x, size in zip(self.tile, self.plan.problem.tile, strict=True))
        return Place(lax.axis_index("image"), lax.axis_index("head"), (slice_, row, col))

    def meeting(self) -> tuple[Array, Callable[[Array], Place]]:
        """The number of blocks that the pair visits, and a function from a step to the place of its
        block.

        Where tiles hold keys, the blocks of all query heads that share these keys are visited.
        """
        plan, problem = self.plan, self.plan.problem
        first, counts = [jnp.int32(0)] * 3, [jnp.int32(1)] * 3
        for i, sights in zip(plan.live, self.sights, strict=True):
            first[i], counts[i] = (sights.blocks[self.pair[i], n] for n in range(2))
        shared = problem.heads // problem.kv_heads

        def block(step: Array) -> Place:
            round_, *numbers = unravel(step, tuple(counts))
            slice_, row, col = ((a + b) * size for a, b, size in zip(first, numbers, plan.block, strict=True))
            head = lax.axis_index("head")
            head = head * shared + round_ if plan.of_keys else lax.div(head, jnp.int32(shared))
            return Place(lax.axis_index("image"), head, (slice_, row, col))

        return counts[0] * counts[1] * counts[2] * (shared if plan.of_keys else 1), block

    def run(self, compute: Callable[..., None]) -> None:
        """Has tiles loaded, to `tiles` and `kept_numbers`, computed upon and stored, while blocks
        are copied.

        Args:
          compute: Gets a function that goes through the blocks: of a body, which gets the place of
            a block, references to what was met of it and the carry, and of the first carry; it
            returns the last.
        """
        steps, block = self.meeting()

        @pl.when(self.warpgroup < COMPUTING)
        def _():
            plgpu.set_max_registers(COMPUTING_REGISTERS, action="increase")
            self._load()
            compute(functools.partial(self._each_block, steps, block))
            plgpu.wait_smem_to_gmem(0)

        @pl.when(self.warpgroup == COMPUTING)
        def _():
            plgpu.set_max_registers(COPYING_REGISTERS, action="decrease")

            def copy(step, _) -> None:
                slot = lax.rem(step, jnp.int32(STAGES))
                pl.when(step >= STAGES)(lambda: plgpu.barrier_wait(self.free.at[slot]))
                self._meet(block(step), slot)

            lax.fori_loop(0, steps, copy, None)
            for slot in range(STAGES):  # so that no barrier is left with an arrival that nobody has seen
                pl.when(slot < steps)(functools.partial(plgpu.barrier_wait, self.free.at[slot]))

    def _load(self) -> None:
        """Copies the warpgroup's tile, its numbers and its windows to shared memory, and waits for
        them.
        """
        own, loaded = self.warpgroup, self.loaded.at[self.warpgroup]
        for ref, smem in zip(self.operands.kept, self.tiles, strict=True):
            for there, here in self._rows(ref, smem.at[own], self.place, self.plan.problem.tile):
                plgpu.copy_gmem_to_smem(there, here, loaded)
        for ref, smem in zip(self.operands.kept_numbers, self.kept_numbers, strict=False):
            plgpu.copy_gmem_to_smem(self._numbers_at(ref, self.place), smem.at[own], loaded)
        for i, (axis, sights) in enumerate(zip(self.plan.live, self.sights, strict=True)):
            plgpu.copy_gmem_to_smem(sights.windows.at[self.tile[axis]], self.windows.at[own, i], loaded)
        plgpu.barrier_wait(loaded)

    def _meet(self, place: Place, slot: Array) -> None:
        """Begins to copy a block, and its numbers, to a slot of shared memory."""
        ready = self.ready.at[slot]
        for ref, smem in zip(self.operands.met, self.blocks, strict=True):
            for there, here in self._rows(ref, smem.at[slot], place, self.plan.block):
                plgpu.copy_gmem_to_smem(there, here, ready)
        for ref, smem in zip(self.operands.met_numbers, self.met_numbers, strict=True):
            plgpu.copy_gmem_to_smem(self._numbers_at(ref, place), smem.at[slot], ready)

    def _each_block(self, steps, block, body, carry):
        def step(i, carry):
            slot = lax.rem(i, jnp.int32(STAGES))
            plgpu.barrier_wait(self.ready.at[slot])
            carry = body(block(i), *(smem.at[slot] for smem in (*self.blocks, *self.met_numbers)), carry)
            plgpu.barrier_arrive(self.free.at[slot])
            return carry

        return lax.fori_loop(0, steps, step, carry)

    def _rows(self, ref, smem, place: Place, size: Three) -> Iterator[tuple[Any, Any]]:
        """The rows of a tile or block in the map and in shared memory, [columns, head_dim] each."""
        dim = self.plan.problem.head_dim
        for i in range(size[0] * size[1]):
            slice_, row, col = place.tokens[0] + i // size[1], place.tokens[1] + i % size[1], place.tokens[2]
            there = ref.at[place.image, slice_, row, pl.ds(col, size[2]), pl.ds(place.head * dim, dim)]
            yield there, smem.at[pl.ds(i * size[2], size[2])]

    def _numbers_at(self, ref, place: Place):
        """The row of numbers of the tile at a place."""
        _, rows, cols = self.plan.problem.counts(self.plan.problem.tile)
        tile = [lax.div(x, jnp.int32(size)) for x, size in zip(place.tokens, self.plan.problem.tile, strict=True)]
        return ref.at[place.image, place.head, (tile[0] * rows + tile[1]) * cols + tile[2]]

    def logits(self, x, y, place: Place) -> Array:
        """Logits of the tile and a block in shared memory, in units of log 2.

        NO_KEY where a row does not see a token of the block.
        """
        plan, logits = self.plan, self.product(x, y) * (self.plan.problem.scale * LOG2E)
        whole = jnp.bool_(True)
        for i, sights in zip(plan.live, self.sights, strict=True):
            begin, tile = place.tokens[i], self.tile[i]
            whole &= (sights.whole[tile, 0] <= begin) & (begin + plan.block[i] <= sights.whole[tile, 1])

        def mask(logits):
            slot = self.iota(logits.shape)
            for n, i in enumerate(plan.live):
                after = math.prod(plan.block[i + 1 :])  # powers of two
                at = ((slot >> (after.bit_length() - 1)) & (plan.block[i] - 1)) + place.tokens[i]
                first, stop = (of_rows(self.laid(self.windows[self.warpgroup, n, bound], ROWS), logits) for bound in range(2))
                logits = jnp.where((at >= first) & (at < stop), logits, NO_KEY)
            return logits

        return lax.cond(whole, lambda x: x, mask, logits)

    def laid(self, x: Array, layout) -> Array:
        """An array with a layout of registers, which the interpreter does not know."""
        return x if self.plan.problem.interpret else plgpu.layout_cast(x, layout)

    def iota(self, shape: tuple[int, ...]) -> Array:
        """The number of each column of a matrix of this shape."""
        if self.plan.problem.interpret:
            return lax.broadcasted_iota(jnp.int32, shape, 1)
        return plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=MATRIX)

    def full(self, shape: tuple[int, ...], value: float = 0.0) -> Array:
        return self.laid(jnp.full(shape, value, jnp.float32), MATRIX if len(shape) == 2 else ROWS)

    def product(self, x, y) -> Array:
        """x y^T of matrices in shared memory."""
        if self.plan.problem.interpret:
            return _interpreted_product(x[...], y[...].T)

        def multiply(acc):
            plgpu.wgmma(acc, x, y.transpose((1, 0)))
            return acc[...]

        return pl.run_scoped(multiply, plgpu.ACC((x.shape[0], y.shape[0]), jnp.float32))

    def add_product(self, onto: Array, x: Array, y) -> Array:
        """onto + x y, `x` in registers and in the dtype of `y`, which is in shared memory."""
        x = x.astype(y.dtype)
        if self.plan.problem.interpret:
            return onto + _interpreted_product(x, y[...])
        return pl.run_state(lambda acc: plgpu.wgmma(acc, x, y))(plgpu.ACC.init(onto))  # pyright: ignore[reportReturnType]

    def store(self, ref, x: Array, smem) -> None:
        """Writes a tile, by way of shared memory that is not needed any more."""
        smem[...] = x.astype(ref.dtype)
        plgpu.commit_smem()
        for there, here in self._rows(ref, smem, self.place, self.plan.problem.tile):
            plgpu.copy_smem_to_gmem(here, there)

    def store_numbers(self, ref, x: Array, smem) -> None:
        smem[...] = x
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(smem, self._numbers_at(ref, self.place))


def _interpreted_product(x: Array, y: Array) -> Array:
    """The product that wgmma computes; jax's interpreter knows only a part of wgmma."""
    return lax.dot(x, y, preferred_element_type=jnp.float32)


def of_rows(x: Array, like: Array) -> Array:
    """A vector with one number for each row, broadcast to a matrix."""
    return lax.broadcast_in_dim(x, like.shape, [0])


def of_columns(x: Array, like: Array) -> Array:
    """A vector with one number for each column, broadcast to a matrix."""
    return lax.broadcast_in_dim(x, like.shape, [1])
