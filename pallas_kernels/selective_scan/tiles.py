"""Cuts of the selective scan's arrays for TPUs, and the step of tokens that are not there."""

from typing import NamedTuple

from jax.experimental import pallas as pl

from pallas_kernels.tpu import LANES, SUBLANES, padded

NO_STEP = -1e4  # a `dt` whose softplus is 0 in float32: the token leaves the state as it is
PACKED = 16  # tokens of a register of bfloat16
VMEM_MARGIN = 8 * 2**20  # for what the compiler keeps beside the arrays
_ROWS = 64  # tokens times states of a step of a kernel's loop, which overlap
_MAX_TILE = 512  # channels of a program
_MAX_STATES = 2**21  # numbers of the states that the backward pass keeps, 8 MiB
_MAX_NUMBERS = 2**19  # numbers of a chunk of x, 2 MiB
_MAX_STATE = 64  # states of a channel; the kernels' loop over them is written out


class Layout(NamedTuple):
    """Sizes of a call; a program has `chunk` tokens of `tile` channels."""

    groups: int
    n: int
    channels: int
    state: int
    tile: int
    rows: int  # tokens that a step of a kernel's loop takes
    chunk: int

    @classmethod
    def of(cls, shape: tuple[int, ...], state: int) -> "Layout":
        """The cuts of x [b, groups, n, channels]."""
        _, groups, n, channels = shape
        tile = channels if channels <= _MAX_TILE else next((t for t in range(_MAX_TILE, 0, -LANES) if channels % t == 0), channels)
        rows = max(_ROWS // state // PACKED, 1) * PACKED
        most = min(_MAX_STATES // state, _MAX_NUMBERS) // padded(tile, LANES)
        most = max(most // LANES, 1) * LANES
        whole = padded(n, rows)
        return cls(groups, n, channels, state, tile, rows, whole if whole <= most else padded(pl.cdiv(n, pl.cdiv(n, most)), LANES))

    @property
    def chunks(self) -> int:
        return pl.cdiv(self.n, self.chunk)

    @property
    def tiles(self) -> int:
        return self.channels // self.tile

    @property
    def lanes(self) -> int:
        """Tokens of a chunk, padded to whole registers where they lie along the lanes."""
        return padded(self.chunk, LANES)

    @property
    def states(self) -> int:
        """States, padded to whole registers where they lie along the sublanes."""
        return padded(self.state, SUBLANES)

    @property
    def vmem_bytes(self) -> int:
        """Bytes of the backward pass: five wide and four narrow arrays twice; columns; states."""
        channels = padded(self.tile, LANES)
        wide, narrow = self.chunk * channels * 4, self.lanes * self.states * 4
        columns, states = 4 * self.lanes * LANES * 4, self.state * (self.chunk + 2 * SUBLANES) * channels * 4
        return 2 * (5 * wide + 4 * narrow) + columns + states + 8 * padded(self.state + 2, SUBLANES) * channels * 4

    def unsupported_reason(self, vmem: int) -> str | None:
        """Why the kernels cannot run these sizes, or None."""
        if self.tile > _MAX_TILE:
            return f"{self.channels} channels, more than {_MAX_TILE}, are no multiple of {LANES}"
        if self.state > _MAX_STATE:
            return f"{self.state} states a channel are above {_MAX_STATE}"
        if (needed := self.vmem_bytes + VMEM_MARGIN) > vmem:
            return f"it needs {needed >> 20} MiB of VMEM, above {vmem >> 20}"
        return None

    def _chunk(self, step, reverse: bool):
        return self.chunks - 1 - step if reverse else step

    def wide(self, reverse: bool) -> pl.BlockSpec:
        """A chunk's tokens of x."""
        return pl.BlockSpec((1, 1, self.chunk, self.tile), lambda i, tile, step: (*self._place(i), self._chunk(step, reverse), tile))

    def narrow(self, reverse: bool) -> pl.BlockSpec:
        """A chunk's tokens of b, [b, groups, states, chunks * lanes]."""
        return pl.BlockSpec((1, 1, self.states, self.lanes), lambda i, _, step: (*self._place(i), 0, self._chunk(step, reverse)))

    def partial(self, reverse: bool) -> pl.BlockSpec:
        """A chunk's gradients of b, one for each tile of channels."""
        return pl.BlockSpec(
            (1, 1, 1, self.states, self.lanes), lambda i, tile, step: (tile, *self._place(i), 0, self._chunk(step, reverse))
        )

    def starts(self, reverse: bool) -> pl.BlockSpec:
        """The states before a chunk, [b, groups, chunks, state, channels]."""
        return pl.BlockSpec((1, 1, 1, self.state, self.tile), lambda i, tile, step: (*self._place(i), self._chunk(step, reverse), 0, tile))

    def sums(self) -> pl.BlockSpec:
        """Gradients of a group's parameters, an image each, [b, groups, state + 2, channels]."""
        return pl.BlockSpec((1, 1, self.state + 2, self.tile), lambda i, tile, _: (*self._place(i), 0, tile))

    def per_group(self) -> pl.BlockSpec:
        """A group's rates, skip and bias, [groups, state + 2, channels]."""
        return pl.BlockSpec((1, self.state + 2, self.tile), lambda i, tile, _: (i % self.groups, 0, tile))

    def _place(self, i):
        return i // self.groups, i % self.groups
