"""Sizes of the tiles of the kernels, chosen by the shape of the arguments."""

import dataclasses
import itertools
import math
from typing import NamedTuple

from jax.experimental import pallas as pl

from pallas_kernels.gpu import PROGRAMS
from pallas_kernels.tpu import LANES, SUBLANES, padded
from pallas_kernels.window_attention.windows import Windows


@dataclasses.dataclass(frozen=True)
class GpuTiles:
    """Division of the work of a GPU kernel."""

    windows_per_program: int  # one after the other in one program, which holds the bias and sums its gradient
    num_warps: int
    num_stages: int = 2


def gpu_tiles(num_windows: int, heads: int, itemsize: int, *, backward: bool) -> GpuTiles:
    """A heuristic, not measured: as many windows as leave enough programs.

    At most 8, which pay for loading the bias tile, or 16 backward, where the partial bias gradients
    of the programs then stay under a tenth of the traffic. Counted by ptxas for an H100 (7 x 7
    windows, head_dim 32): eight warps rid the float32 kernels of 312 and 1456 bytes of spills;
    bfloat16 forward needs none, backward spills 80 bytes either way.
    """
    most = 16 if backward else 8
    return GpuTiles(max(1, min(most, num_windows * heads // PROGRAMS)), num_warps=8 if itemsize == 4 else 4)


TPU_BLOCK_BYTES = 2**20  # least bytes of the images of one program, so that a step of the grid is worth its overhead
# Registers of logits in flight: more than a core has, since spilling some is cheaper than waiting
# (counted: 56 is 15 % slower).
REGISTERS = 112
# Arrays as large as the map. Forward: query, key, value, result. Backward: query, key, value, their
# gradients, the result's gradient.
FORWARD_ARRAYS, BACKWARD_ARRAYS = 4, 7


class Chunk(NamedTuple):
    """Heads that share the lanes of a register."""

    channels: slice
    groups: tuple[tuple[int, tuple[int, ...]], ...]  # number of the group, its heads counted within the chunk


@dataclasses.dataclass(frozen=True)
class TpuLayout:
    """Layout of maps, windows and logits in the registers and the vector memory of a TPU."""

    windows: Windows
    shape: tuple[int, int, int, int, int]  # b h w heads head_dim
    itemsize: int  # bytes of a value

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.shape[3] * self.shape[4]

    @property
    def row_slots(self) -> int:
        """Slots of a window's row, padded to whole sublanes."""
        return padded(self.windows.cols.window, SUBLANES)

    @property
    def slots(self) -> int:
        """Slots of a window whose rows are padded."""
        return self.windows.rows.window * self.row_slots

    @property
    def chunk(self) -> int:
        """Heads that share the lanes of a register, at most."""
        return min(self.shape[3], LANES // self.shape[4])

    @property
    def query_lanes(self) -> int:
        """Lanes that the logits of one head take."""
        return pl.next_power_of_2(self.slots) if self.slots <= LANES else padded(self.slots, LANES)

    @property
    def pack(self) -> int:
        """Heads whose logits lie side by side."""
        return max(1, min(pl.next_power_of_2(self.chunk), LANES // self.query_lanes))

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """All heads, cut into chunks and those into groups, whose logits lie side by side."""
        num_heads, head_dim = self.shape[3:]
        chunks, number = [], itertools.count()
        for first in range(0, num_heads, self.chunk):
            heads = tuple(range(min(self.chunk, num_heads - first)))
            groups = tuple((next(number), heads[i : i + self.pack]) for i in range(0, len(heads), self.pack))
            chunks.append(Chunk(slice(first * head_dim, (first + len(heads)) * head_dim), groups))
        return tuple(chunks)

    @property
    def group_heads(self) -> tuple[tuple[int, ...], ...]:
        """The heads of each group."""
        firsts = range(0, self.shape[3], self.chunk)
        pairs = zip(firsts, self.chunks, strict=True)
        return tuple(tuple(first + head for head in heads) for first, chunk in pairs for _, heads in chunk.groups)

    @property
    def logits(self) -> tuple[int, int, int]:
        """Groups, slots and lanes of the logits of one window."""
        return len(self.group_heads), self.slots, self.pack * self.query_lanes

    @property
    def image_bytes(self) -> int:
        """Bytes of the images of one array in VMEM, where the last two axes fill whole
        registers.
        """
        return self.shape[1] * padded(self.shape[2], 4 * SUBLANES // self.itemsize) * padded(self.width, LANES) * self.itemsize

    def images(self, arrays: int) -> int:
        """Images per program, a divisor of the batch."""
        fit = max(1, TPU_BLOCK_BYTES // (arrays * self.image_bytes))
        return max(d for d in range(1, self.shape[0] + 1) if self.shape[0] % d == 0 and d <= fit)

    def rows_together(self, arrays: int) -> int:
        """Rows of windows that are worked on together: two forward, which gains nothing backward
        (counted).
        """
        return 2 if arrays == FORWARD_ARRAYS and self.images(arrays) * self.windows.rows.num_windows % 2 == 0 else 1

    def vmem_bytes(self, arrays: int, kinds: int) -> int:
        """Two buffers of every array; the windows of a row of windows.

        The tables of logits and the gradient of one.
        """
        maps = 2 * arrays * self.images(arrays) * self.image_bytes
        row_of_windows = self.rows_together(arrays) * arrays * self.windows.cols.num_windows * self.slots * padded(self.width, LANES) * 4
        return maps + row_of_windows + 2 * (kinds + 1) * 4 * math.prod(self.logits)
