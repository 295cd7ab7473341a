"""How a map [b, *n, dim] is cut for the kernels: into lines of tokens, of which a program has
several.

A line is a part of the map in which tokens follow each other in memory: an image's tokens, or a row
of its pixels. Inside a program the lines stand below each other, each padded to whole registers, so
that products see one matrix of many rows; rows of padding are zeros.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.target import device_kind
from pallas_kernels.tpu import LANES, SUBLANES, padded

MAX_ROWS = 1024  # rows of a program: enough for the matrix unit, few enough for the memory
_TWO_CORES = ("TPU v4", "TPU v5", "TPU v5p")
_UNROLLED_CHUNKS = 3
_MAX_CHUNK = 768  # columns of a product that no chunk divides
_CHUNKS = (512, 384, 256, 128)  # columns of a product that are worked on together
VMEM_MARGIN = 8 * 2**20  # for what the compiler keeps beside the arrays


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of a map and of its part in a program."""

    lines: int  # rows of the map
    n: int  # tokens of a line
    dim: int
    widths: tuple[int, ...]  # what each product gives
    per_program: int  # lines of a program

    @classmethod
    def of(cls, shape: Sequence[int], dtype: DTypeLike, widths: Sequence[int]) -> "Layout | str":
        """The layout, or why there is none."""
        if jnp.dtype(dtype) != jnp.bfloat16:
            return f"dtype {jnp.dtype(dtype).name} is not bfloat16"
        if len(shape) < 3:
            return f"a map {tuple(shape)} has no lines of tokens"
        (*leading, n, dim), parts = shape, 1
        if n > MAX_ROWS:
            parts = next((k for k in range(2, n // SUBLANES + 1) if n % (k * SUBLANES) == 0 and n // k <= MAX_ROWS), 0)
            if not parts:
                return f"{n} tokens cannot be cut into equal parts of at most {MAX_ROWS} in multiples of {SUBLANES}"
        lines, n = math.prod(leading) * parts, n // parts
        most = max(1, MAX_ROWS // padded(n, SUBLANES))
        per_program = max(k for k in range(1, most + 1) if lines % k == 0)
        return cls(lines, n, dim, tuple(widths), per_program)

    @property
    def line(self) -> int:
        """Rows of a line, padding included."""
        return padded(self.n, SUBLANES)

    @property
    def rows(self) -> int:
        return self.per_program * self.line

    @property
    def programs(self) -> int:
        return self.lines // self.per_program

    @property
    def cores(self) -> int:
        """Cores of a chip that share the programs; each adds up gradients of its own."""
        return 2 if device_kind() in _TWO_CORES and self.programs % 2 == 0 else 1

    @property
    def chunk(self) -> int:
        """Columns of the first product that are worked on together; 0 if it is wide and its width
        no multiple of the lanes.
        """
        width = self.widths[0]
        return next((c for c in _CHUNKS if width % c == 0), width if width <= _MAX_CHUNK else 0)

    @property
    def loops(self) -> bool:
        """Whether the chunks are a loop: written out, many of them take minutes to compile."""
        return self.widths[0] // self.chunk > _UNROLLED_CHUNKS

    @property
    def vmem_bytes(self) -> int:
        """Arrays that the backward kernel needs."""
        dim, rows = padded(self.dim, LANES), self.rows
        weights = len(self.widths) * dim * self.widths[0]
        maps = 2 * 2 * rows * (2 * dim + padded(self.widths[-1], LANES))  # blocks, each twice
        kept = rows * (2 * (2 * dim + 2 * padded(self.widths[-1], LANES)) + 5 * 4 * dim)
        return (2 + 2 * 4) * weights + maps + kept + 5 * 4 * rows * self.chunk

    def unsupported_reason(self, usable: int) -> str | None:
        """Why the kernels do not take this layout, or None."""
        if not self.chunk:
            return f"a width of {self.widths[0]}, above {_MAX_CHUNK}, is no multiple of {LANES}"
        if (needed := self.vmem_bytes) > usable - VMEM_MARGIN:
            return f"the backward pass needs {needed >> 20} MiB of VMEM, above {(usable - VMEM_MARGIN) >> 20}"
        return None
