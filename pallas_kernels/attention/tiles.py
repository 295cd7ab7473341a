"""Division of attention into the programs of a TPU."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array

from pallas_kernels.tpu import LANES, SUBLANES, padded

BLOCK_BYTES = 2**19  # images of a program: as many as fill this much of one array; one at least
QUERIES = 512  # queries whose scores are held at once, a multiple of LANES
UNROLLED = 2**20  # scores of an image in all heads up to which all heads are one block of instructions


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of the arguments, and the parts that kernels work on."""

    b: int  # images
    n: int  # queries
    m: int  # keys
    heads: int
    head_dim: int
    itemsize: int  # bytes
    is_causal: bool = False

    @classmethod
    def of(cls, arrays: Sequence[Array], is_causal: bool) -> "Layout":
        """The layout of query, key and value or of the fused projection; grouped heads count as
        repeated.
        """
        b, n, *parts, heads, head_dim = arrays[0].shape
        return cls(b, n, n if parts else arrays[1].shape[1], heads, head_dim, arrays[0].dtype.itemsize, is_causal)

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    @property
    def pack(self) -> int:
        """Heads that share the lanes of a register."""
        return LANES // self.head_dim

    @property
    def images(self) -> int:
        """Images of a program."""
        most = max(1, BLOCK_BYTES // (padded(max(self.n, self.m), SUBLANES) * padded(self.width, LANES) * self.itemsize))
        return max(i for i in range(1, min(most, self.b) + 1) if self.b % i == 0)

    @property
    def programs(self) -> int:
        """Programs of a kernel, each with its own images."""
        return self.b // self.images

    @property
    def tiles(self) -> list[slice]:
        """Queries that are worked on at once."""
        return [slice(start, min(start + QUERIES, self.n)) for start in range(0, self.n, QUERIES)]

    @property
    def loops(self) -> bool:
        """Whether the kernel loops over the heads, lest the program become too long."""
        return self.n * self.m * self.heads > UNROLLED and self.width % LANES == 0

    def vmem_bytes(self, query_arrays: int, key_arrays: int) -> int:
        """Bytes that a program needs at most.

        Args:
          query_arrays: Arrays [b, n, width] that it reads or writes.
          key_arrays: Arrays [b, m, width].
        """
        rows = query_arrays * padded(self.n, SUBLANES * 2) + key_arrays * padded(self.m, SUBLANES * 2)
        blocks = 2 * self.images * rows * padded(self.width, LANES) * self.itemsize
        scores = padded(self.m, SUBLANES) * padded(min(self.n, QUERIES), LANES) * 4
        sums = (query_arrays + key_arrays) * padded(max(self.n, self.m), SUBLANES) * LANES * 4
        return blocks + SCORES * self.pack * scores + sums


SCORES = 6  # arrays of scores of each head of a register that the backward pass holds at once
