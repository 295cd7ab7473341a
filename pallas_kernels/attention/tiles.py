"""Division of attention into the programs of a TPU."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Array

from pallas_kernels.tpu import LANES, SUBLANES, padded

BLOCK_BYTES = 2**19  # bytes of one array that the images of a program fill; at least one image
QUERIES = 512  # queries whose scores are held at once, a multiple of LANES
UNROLLED = 2**20  # scores of an image in all heads up to which the heads are unrolled; more are a loop


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of the arguments, and their division among programs and lanes."""

    b: int  # images
    n: int  # queries
    m: int  # keys
    heads: int
    head_dim: int
    itemsize: int  # bytes
    is_causal: bool = False

    @classmethod
    def of(cls, arrays: Sequence[Array], is_causal: bool) -> "Layout":
        """The layout of query, key and value, or of the fused projection.

        Grouped heads count as repeated.
        """
        b, n, *parts, heads, head_dim = arrays[0].shape
        return cls(b, n, n if parts else arrays[1].shape[1], heads, head_dim, arrays[0].dtype.itemsize, is_causal)

    @property
    def width(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_dim

    @property
    def pack(self) -> int:
        """Number of heads that share the lanes of a register."""
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
        """Ranges of queries that are processed at once."""
        return [slice(start, min(start + QUERIES, self.n)) for start in range(0, self.n, QUERIES)]

    @property
    def loops(self) -> bool:
        """Whether the kernel loops over the heads, to keep the program short."""
        return self.n * self.m * self.heads > UNROLLED and self.width % LANES == 0

    def vmem_bytes(self, query_arrays: int, key_arrays: int) -> int:
        """Largest number of bytes that a program needs in VMEM.

        Args:
          query_arrays: Number of arrays [b, n, width] that it reads or writes.
          key_arrays: Number of arrays [b, m, width].
        """
        rows = query_arrays * padded(self.n, SUBLANES * 2) + key_arrays * padded(self.m, SUBLANES * 2)
        blocks = 2 * self.images * rows * padded(self.width, LANES) * self.itemsize
        scores = padded(self.m, SUBLANES) * padded(min(self.n, QUERIES), LANES) * 4
        sums = (query_arrays + key_arrays) * padded(max(self.n, self.m), SUBLANES) * LANES * 4
        return blocks + SCORES * self.pack * scores + sums


SCORES = 6  # arrays of scores per head of a register that the backward pass holds at once
