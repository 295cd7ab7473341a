"""How a map is cut for the kernels: a program has some images, and as many channels as a register
has lanes.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.tpu import DTYPES, LANES, SUBLANES, padded

_PIXELS = 3136  # pixels of a program: enough to hide its start
_REGISTERS = 16  # registers of sums that are worked on together
_UNROLLED = 7  # rows of a kernel that are written out; more of them are a loop
VMEM_MARGIN = 4 * 2**20  # bytes left for what the compiler keeps beside the arrays


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of a map, of its convolution, and of their parts in a program."""

    images: int
    height: int
    width: int
    channels: int
    size: tuple[int, int]  # rows and columns of the kernel
    pads: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    itemsize: int  # bytes of a value of the map

    @classmethod
    def of(
        cls,
        shape: Sequence[int],
        dtype: DTypeLike,
        size: tuple[int, int],
        pads: tuple[tuple[int, int], tuple[int, int]],
        dilation: tuple[int, int],
    ) -> "Layout | str":
        """The layout, or why there is none."""
        if jnp.dtype(dtype).name not in DTYPES:
            return f"dtype {jnp.dtype(dtype).name} is none of {', '.join(DTYPES)}"
        if len(shape) != 4:
            return f"a map {tuple(shape)} is not [b, h, w, c]"
        b, h, w, c = shape
        layout = cls(b, h, w, c, size, pads, dilation, jnp.dtype(dtype).itemsize)
        reach = layout.reach
        if any(min(pad) < 0 or max(pad) > r for pad, r in zip(layout.pads, reach, strict=True)):
            return f"{pads=} must be from 0 to the reach {reach} of the kernel"
        if min(layout.out_sides) < 1:
            return f"the kernel {size} reaches over the map {tuple(shape)}"
        return layout

    @property
    def reach(self) -> tuple[int, int]:
        """Pixels from the first to the last that a kernel sees, along each axis."""
        rows, cols = ((k - 1) * d for k, d in zip(self.size, self.dilation, strict=True))
        return rows, cols

    @property
    def out_sides(self) -> tuple[int, int]:
        """Height and width of the result."""
        height, width = (n + sum(p) - r for n, p, r in zip((self.height, self.width), self.pads, self.reach, strict=True))
        return height, width

    @property
    def turned(self) -> "Layout":
        """The layout for the map's gradient: that of the result under the turned kernel."""
        height, width = self.out_sides
        (top, bottom), (left, right) = ((r - low, r - high) for r, (low, high) in zip(self.reach, self.pads, strict=True))
        return dataclasses.replace(self, height=height, width=width, pads=((top, bottom), (left, right)))

    @property
    def per_program(self) -> int:
        """Images of a program."""
        most = max(1, _PIXELS // (self.height * padded(self.width, SUBLANES)))
        return max(k for k in range(1, most + 1) if self.images % k == 0)

    @property
    def lanes(self) -> int:
        """Channels of a program."""
        return min(self.channels, LANES)

    @property
    def columns(self) -> int:
        """Columns of the result that are computed, whole registers."""
        return padded(self.out_sides[1], SUBLANES)

    @property
    def lines(self) -> int:
        """Rows of the result that are worked on together."""
        height = self.out_sides[0]
        most = max(1, _REGISTERS * SUBLANES // self.columns)
        return max(k for k in range(1, min(most, height) + 1) if height % k == 0)

    @property
    def unrolls(self) -> bool:
        """Whether the rows of the kernel are written out."""
        return self.size[0] <= _UNROLLED

    @property
    def bordered(self) -> tuple[int, int, int]:
        """Shape of an image with its border of zeros, wide enough for all columns that are read."""
        width = max(self.columns + self.reach[1], self.pads[1][0] + padded(self.width, SUBLANES))
        return self.out_sides[0] + self.reach[0], padded(width, SUBLANES), self.lanes

    @property
    def vmem_bytes(self) -> int:
        """Arrays that the backward kernel needs."""
        blocks = 0
        for height, width in ((self.height, self.width), (self.height, self.width), self.out_sides):
            blocks += 2 * self.per_program * height * padded(width, 2 * SUBLANES) * LANES * self.itemsize
        borders = sum(4 * LANES * layout.bordered[0] * layout.bordered[1] for layout in (self, self.turned))
        taps = self.size[0] * self.size[1]
        return blocks + borders + 4 * LANES * taps * (SUBLANES + 4)

    def unsupported_reason(self, usable: int) -> str | None:
        """Why the kernels do not take this layout, or None."""
        if (needed := self.vmem_bytes) > usable - VMEM_MARGIN:
            return f"the backward pass needs {needed >> 20} MiB of VMEM, above {(usable - VMEM_MARGIN) >> 20}"
        return None
