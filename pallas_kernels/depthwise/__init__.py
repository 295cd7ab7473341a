"""Depthwise convolution: every channel of a map under a kernel of its own.

There are kernels for TPUs only: `unsupported_reason` says where they do not apply, and callers then
compute as before.
"""

from collections.abc import Sequence

from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.depthwise import pallas_tpu
from pallas_kernels.depthwise.layout import Layout
from pallas_kernels.sharding import indivisible
from pallas_kernels.tpu import usable_vmem, wrong_platform

__all__ = ["depthwise", "unsupported_reason"]

Pads = tuple[tuple[int, int], tuple[int, int]]  # zeros at the beginning and end of each axis


def depthwise(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l c"],
    *,
    pads: Pads,
    dilation: tuple[int, int] = (1, 1),
    interpret: bool = False,
) -> Float[Array, "b h2 w2 c"]:
    """out[i, j] = sum over p, q of kernel[p, q] * x[i + dilation * p, j + dilation * q], x padded.

    Sums are float32, those of the kernel's gradient, too.

    Args:
      x: A map in the dtype of the result, bfloat16 or float32.
      kernel: One filter a channel, k rows and l columns, in any dtype.
      pads: Zeros around the map.
      dilation: Steps between the pixels that meet neighbouring values of the kernel.
      interpret: Run the kernels in an interpreter, for tests.
    """
    return pallas_tpu.run(x, kernel, pads=pads, dilation=dilation, interpret=interpret)


def unsupported_reason(
    shape: Sequence[int],
    dtype: DTypeLike,
    size: tuple[int, int],
    *,
    pads: Pads,
    dilation: tuple[int, int] = (1, 1),
    interpret: bool = False,
) -> str | None:
    """Why the kernels cannot run here, or None; `shape` is the map's and `size` the kernel's, other
    arguments are those of `depthwise`.
    """
    if reason := wrong_platform(interpret=interpret) or indivisible(shape[0]):
        return reason
    layout = Layout.of(shape, dtype, size, pads, dilation)
    return layout if isinstance(layout, str) else layout.unsupported_reason(usable_vmem())
