"""Sizes of the tiles, strips and batches of the TPU kernels, chosen by the shape of the
arguments.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np
from jax.experimental import pallas as pl

from pallas_kernels.neighborhood_attention.neighborhoods import Axis
from pallas_kernels.tpu import LANES, SUBLANES, padded

WORD, HALF_TILE, FULL_TILE = 2, 8, 16  # columns of bfloat16 that share a word of 32 bits, fill half a register, fill a register
TPU_TABLE_BYTES = 2**23  # most bytes of the tables of a plan without a bias
TPU_BLOCK_BYTES = 2**22  # least bytes of the images of one program, so that a step of the grid is worth its overhead
WEIGHTS_COST, LOGITS_COST = 10.0, 4.5  # cycles that 128 keys cost in themselves, and for each register of their logits (counted)
REGISTERS = 64  # vector registers of logits in flight
ROWS_TOGETHER = 28  # rows of the map that one iteration copies
BESIDE = (1, 2)  # maps side by side along the columns that are tried
UNROLLED = 16  # tiles of columns that are unrolled; more are a loop


@dataclasses.dataclass(frozen=True)
class TpuAxis:
    """An axis cut into tiles of queries, each with a block of keys of one width."""

    axis: Axis
    tile: int  # queries
    columns: bool = False  # True for the axis that lies in the sublanes, where key blocks begin on a whole word
    extra: int = 0  # keys by which the width is enlarged
    beside: int = 1  # maps, side by side along the axis

    @property
    def positions(self) -> int:
        """Positions of all maps that lie side by side."""
        return self.beside * self.axis.positions

    @property
    def count(self) -> int:
        return pl.cdiv(self.positions, self.tile)

    @functools.cached_property
    def windows(self) -> tuple[np.ndarray, np.ndarray]:
        """First key, and one past the last, of the queries of each tile, [dilation, count, tile]
        each; queries beyond the end repeat the last.
        """
        padding = ((0, 0), (0, self.count * self.tile - self.positions))
        begin = np.repeat(np.arange(self.beside) * self.axis.positions, self.axis.positions)  # first position of the map of each position
        windows = (np.tile(x, self.beside) + begin for x in self.axis.windows())
        start, stop = (np.pad(x, padding, "edge").reshape(-1, self.count, self.tile) for x in windows)
        return start, stop

    @functools.cached_property
    def _blocks(self) -> tuple[np.ndarray, int]:
        """First key of each tile's block, [count], within the map if possible, and the width of all
        blocks.
        """
        first, last = self.windows[0].min((0, 2)), self.windows[1].max((0, 2))
        step, multiple = (WORD, FULL_TILE) if self.columns else (1, 1)
        start = first // step * step
        width = padded(int((last - start).max()), multiple) + self.extra
        return np.minimum(start, max(0, padded(self.positions, step) - width)), width

    @property
    def starts(self) -> np.ndarray:
        return self._blocks[0]

    @property
    def width(self) -> int:
        return self._blocks[1]

    @property
    def queries(self) -> int:
        """Queries of all tiles."""
        return self.count * self.tile

    @property
    def buffer(self) -> int:
        """Positions that the key blocks reach."""
        return max(self.positions, int(self.starts.max()) + self.width)

    @property
    def seen(self) -> np.ndarray:
        """Whether the queries of each kind of tile see the keys of its block, bool [kinds, tile,
        width].
        """
        return self._kinds[0] >= 0

    @property
    def offsets(self) -> np.ndarray:
        """Index of each pair's bias, key - query + kernel - 1 in positions, int [kinds, tile,
        width]; -1 where masked.
        """
        return self._kinds[0]

    @property
    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """First and last key that the queries of each kind see, counted from the block's, int32
        [kinds, tile] each.

        The values of queries beyond the end are not used.
        """
        first, last = self.seen.argmax(2), self.width - 1 - self.seen[:, :, ::-1].argmax(2)
        return first.astype(np.int32), last.astype(np.int32)

    @property
    def kind(self) -> np.ndarray:
        """Kind of the tile, for each residue class and tile, [dilation, count]."""
        return self._kinds[1]

    @functools.cached_property
    def _kinds(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct visibility patterns among tiles, as offsets, and the pattern of each tile."""
        start, stop = (x[..., None] for x in self.windows)
        key = self.starts[:, None, None] + np.arange(self.width)  # count 1 width
        seen = (key >= start) & (key < stop)
        offset = key - np.arange(self.queries).reshape(self.count, self.tile, 1) + self.axis.kernel - 1
        offset = np.where(seen, offset, -1)  # a pair that is masked has no offset
        kinds, kind = np.unique(offset.reshape(-1, self.tile, self.width), axis=0, return_inverse=True)
        return kinds, kind.reshape(-1, self.count)


@dataclasses.dataclass(frozen=True)
class TpuPlan:
    """Plan of a TPU kernel for maps of slices, rows and columns."""

    axes: tuple[Axis, Axis, Axis]
    batch: int
    heads: int
    head_dim: int
    itemsize: int  # bytes of a value
    vmem: int  # bytes of vector memory that a program may use
    bias: bool  # whether a bias is added to the logits
    backward: bool = False

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    @property
    def fold(self) -> int:
        """Images whose channels lie side by side in the lanes, where those of one leave room."""
        return max(f for f in range(1, max(1, LANES // self.width) + 1) if self.batch % f == 0)

    @property
    def chunks(self) -> int:
        """Groups of heads that share the lanes of a register; each is a program."""
        return pl.cdiv(self.width, LANES)

    @property
    def channels(self) -> int:
        """Channels of one image in a program."""
        return min(self.width, LANES)

    @property
    def pack(self) -> int:
        """Heads, of all folded images, whose queries lie one under the other."""
        return self.fold * self.channels // self.head_dim

    @functools.cached_property
    def tiles(self) -> tuple[TpuAxis, TpuAxis, TpuAxis]:
        """The cheapest cut: small tiles see fewer keys in vain, large ones load keys into the
        matrix unit less often.

        Maps whose columns are not whole tiles may lie side by side, so that few tiles reach beyond
        them.
        """
        sides = ([1], [1, 2, 4, 8], [8, 16, 32, 64, 128])
        if self.axes[1].size > 1:
            sides = ([1, 2, 4], [1, 2, 4], [8, 16, 32])
        elif self.axes[0].size > 1:
            sides = ([1, 2, 4, 8, 16], [1], [8, 16, 32])
        best = None
        for beside, sizes in itertools.product(filter(self._may_be_beside, BESIDE), itertools.product(*sides)):
            rows = self.pack * math.prod(sizes)
            if rows % FULL_TILE or rows > 2 * LANES:
                continue
            tiles = self._cut(sizes, beside)
            keys = math.prod(tile.width for tile in tiles)
            if self.backward:  # registers that the matrix unit gives
                cost = 4 * keys / SUBLANES * pl.cdiv(rows, LANES) + rows / SUBLANES * pl.cdiv(keys, LANES)
            else:
                cost = keys / LANES * (WEIGHTS_COST + LOGITS_COST * rows / SUBLANES)
            cost *= math.prod(tile.count for tile in tiles) / beside
            if best is None or cost < best[0]:
                best = cost, tiles
        assert best is not None
        return best[1]

    def _may_be_beside(self, count: int) -> bool:
        """Whether so many folds may lie side by side: they end on whole words, divide the batch,
        and take little VMEM.
        """
        whole = self.axes[2].positions % WORD == 0 and self.batch % (count * self.fold) == 0
        return count == 1 or (whole and count * self._fold_bytes <= 2 * TPU_BLOCK_BYTES)

    @property
    def _fold_bytes(self) -> int:
        """Bytes of all arrays of a fold."""
        return (7 if self.backward else 4) * self.fold * self._map_bytes(self.axes[0].positions, self.itemsize)

    def _cut(self, sizes: tuple[int, ...], beside: int) -> tuple[TpuAxis, TpuAxis, TpuAxis]:
        """Tiles of these sizes.

        Forward, where keys lie in the lanes, slices of keys are added until these are full.
        """
        first, rows = (TpuAxis(axis, size) for axis, size in zip(self.axes[:2], sizes[:2], strict=True))
        cols = TpuAxis(self.axes[2], sizes[2], columns=True, beside=beside)
        step = 1 if self.backward else LANES // math.gcd(LANES, rows.width * cols.width)
        return dataclasses.replace(first, extra=padded(first.width, step) - first.width), rows, cols

    @property
    def beside(self) -> int:
        """Folds whose columns lie side by side."""
        return self.tiles[2].beside

    @property
    def images(self) -> int:
        """Images that are worked on as one map."""
        return self.fold * self.beside

    @property
    def queries(self) -> int:
        """Queries of one head in a tile."""
        return math.prod(tile.tile for tile in self.tiles)

    @property
    def keys(self) -> int:
        """Keys in the block of a tile."""
        return math.prod(tile.width for tile in self.tiles)

    @property
    def num_kinds(self) -> int:
        return math.prod(len(tile.offsets) for tile in self.tiles)

    @property
    def logits(self) -> tuple[int, int]:
        """Shape of a tile's logits: queries, head under head, by keys.

        Transposed in the backward pass.
        """
        rows = self.pack * self.queries
        return (self.keys, rows) if self.backward else (rows, self.keys)

    @property
    def table_bytes(self) -> int:
        """Bytes of the tables of all kinds of tiles."""
        return self.num_kinds * math.prod(self.logits) * 4

    @functools.cached_property
    def tabled(self) -> bool:
        """Whether tables tell what the tiles see, which is quicker than to compare.

        Without a bias only where they are small.
        """
        return self.bias or self.table_bytes <= TPU_TABLE_BYTES

    @property
    def groups(self) -> int:
        """Number of residue classes of all axes."""
        return math.prod(axis.dilation for axis in self.axes)

    @property
    def tile_sizes(self) -> tuple[int, int, int]:
        slices, rows, cols = (tile.tile for tile in self.tiles)
        return slices, rows, cols

    @property
    def block_sizes(self) -> tuple[int, int, int]:
        """Sizes of a tile's block of keys along slices, rows and columns."""
        slices, rows, cols = (tile.width for tile in self.tiles)
        return slices, rows, cols

    @property
    def tiles_together(self) -> int:
        """Tiles whose logits are in flight."""
        return max(1, REGISTERS * SUBLANES * LANES // (self.pack * self.queries * self.keys))

    def maps_together(self, strips: "Strips") -> int:
        """Maps of a program that are worked on at a time.

        Small maps as many as keep all rows unrolled.
        """
        maps = self.maps(strips)
        (slices, rows, *_), (key_slices, key_rows, *_) = self.buffers(strips)
        fit = max(1, ROWS_TOGETHER // max(slices * rows, key_slices * key_rows))
        return max(n for n in range(1, maps + 1) if maps % n == 0 and n <= fit)

    def batches(self, strips: "Strips") -> "Batches":
        """The fullest batches; among equally full ones those of the fewest rows."""
        count, cols = self.maps_together(strips) * strips.tiles_per_strip * self.tiles[1].count, self.tiles[2].count
        if cols > UNROLLED:
            return Batches(0, max(n for n in range(1, self.tiles_together + 1) if cols % n == 0), 1)
        static = self.tiles[0].count % strips.tiles_per_strip == 0
        choices = [n for n in range(1, max(1, UNROLLED // cols) + 1) if static and count % n == 0] or [1]
        batches = []
        for rows in choices:
            parts = pl.cdiv(rows * cols, self.tiles_together)
            batches.append(Batches(rows, pl.cdiv(rows * cols, parts), parts))
        return max(batches, key=lambda x: (x.tiles, -x.rows))

    def buffers(self, strips: "Strips") -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of what holds the queries and the keys of a strip, [slices, rows, columns,
        channels].
        """
        _, rows, cols = self.tiles
        lanes = self.fold * self.channels
        query_slices = min(strips.tiles_per_strip, self.tiles[0].count) * self.tiles[0].tile
        return (
            (query_slices, rows.queries, cols.queries, lanes),
            (strips.buffer, rows.buffer, padded(cols.buffer, FULL_TILE), lanes),
        )

    def maps(self, strips: "Strips") -> int:
        """Maps of a program, each of `images` images; one where maps are cut into strips."""
        if strips.count > 1:
            return 1
        fit = max(1, TPU_BLOCK_BYTES // (self.beside * self._fold_bytes))
        maps = self.batch // self.images
        return max(d for d in range(1, maps + 1) if maps % d == 0 and d <= fit)

    @functools.cached_property
    def strips(self) -> "Strips":
        """The cut into as few strips as fit the vector memory."""
        count = self.tiles[0].count
        cuts = dict.fromkeys(Strips(self.tiles[0], pl.cdiv(count, n)) for n in range(1, count + 1))
        return next((strips for strips in cuts if self.vmem_bytes(strips) <= self.vmem), list(cuts)[-1])

    def _map_bytes(self, slices: int, itemsize: int) -> int:
        """Bytes of the channels of one program in VMEM, where the last two axes fill whole
        registers.
        """
        return slices * self.axes[1].positions * padded(self.axes[2].positions, 4 * SUBLANES // itemsize) * LANES * itemsize

    def vmem_bytes(self, strips: "Strips") -> int:
        """Bytes of VMEM: two buffers of every array, the maps that are worked on together,
        visibility, and results between phases.
        """
        blocks = (3 if self.backward else 2) * self._map_bytes(strips.queries, self.itemsize)
        blocks += 2 * self._map_bytes(strips.keys, self.itemsize)
        if self.backward:
            blocks += 2 * self._map_bytes(strips.keys, self.itemsize if strips.count == 1 else 4)
        query_rows, key_rows = (math.prod(shape[:-1]) * LANES for shape in self.buffers(strips))
        scratch = (3 if self.backward else 2) * query_rows * 4 + 2 * key_rows * self.itemsize + self.backward * 2 * key_rows * 4
        products = (8 if self.backward else 2) * self.batches(strips).tiles * math.prod(self.logits) * 4
        return self.maps(strips) * 2 * self.images * blocks + self.maps_together(strips) * scratch + self._sights_bytes + products

    @property
    def _sights_bytes(self) -> int:
        """Two buffers of tables and their gradients, or of the ranges of queries and the places of
        keys.
        """
        if self.tabled:
            return (4 if self.bias and self.backward else 2) * self.table_bytes
        row = SUBLANES * padded(self.logits[1], LANES) if self.backward else self.logits[0] * LANES
        return 2 * (2 * self.num_kinds * row + math.prod(self.logits)) * 4


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of tiles that are worked on together.

    A step is `rows` rows of tiles, cut into `parts` equal parts; where `rows` is 0, a step is a
    part of one row.
    """

    rows: int
    tiles: int  # most tiles of a batch
    parts: int

    def steps(self, rows, columns: int):
        """Steps for all rows of tiles."""
        return rows // self.rows if self.rows else rows * (columns // self.tiles)

    def places(self, step, part: int, columns: int) -> list[tuple]:
        """Rows and columns of the tiles of a batch."""
        if not self.rows:
            each = columns // self.tiles
            return [(step // each, step % each * self.tiles + i) for i in range(self.tiles)]
        places = [(step * self.rows + i, col) for i in range(self.rows) for col in range(columns)]
        return places[part * self.tiles : (part + 1) * self.tiles]


@dataclasses.dataclass(frozen=True)
class Strips:
    """The slices of a map cut into strips, one a program, each with the slices of keys around
    it.
    """

    tiles: TpuAxis
    tiles_per_strip: int

    @property
    def count(self) -> int:
        return pl.cdiv(self.tiles.count, self.tiles_per_strip)

    @property
    def queries(self) -> int:
        return min(self.tiles_per_strip * self.tiles.tile, self.tiles.queries)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """First slice of keys of each strip, [count]."""
        first = [self.tiles.starts[i : i + self.tiles_per_strip].min() for i in range(0, self.tiles.count, self.tiles_per_strip)]
        return np.minimum(first, self.tiles.axis.positions - self.keys)

    @functools.cached_property
    def keys(self) -> int:
        """Slices of keys of a strip, within the map."""
        if self.count == 1:
            return self.tiles.axis.positions
        start, stop = self.tiles.starts, np.minimum(self.tiles.starts + self.tiles.width, self.tiles.axis.positions)
        cuts = range(0, self.tiles.count, self.tiles_per_strip)
        return int(max(stop[i : i + self.tiles_per_strip].max() - start[i : i + self.tiles_per_strip].min() for i in cuts))

    @property
    def tile_starts(self) -> np.ndarray:
        """First key of each tile's block, counted from its strip's first, [count of tiles]."""
        return self.tiles.starts - self.starts[np.arange(self.tiles.count) // self.tiles_per_strip]

    @property
    def buffer(self) -> int:
        """Slices that the key blocks of a strip reach."""
        return max(self.keys, int(self.tile_starts.max()) + self.tiles.width)
