"""Facts about NVIDIA GPUs that all GPU kernels need."""

import math
from collections.abc import Sequence

from jaxtyping import Array

from pallas_kernels.sharding import indivisible
from pallas_kernels.target import platform

PROGRAMS = 8 * 132  # programs that a kernel should have at least: eight on each multiprocessor of an H100
DTYPES = ("float16", "bfloat16", "float32")
HEAD_DIMS = range(16, 129)  # widths of a head that fill a tile and fit the registers
MAX_ELEMENTS = 2**31 - 1  # elements of an array that 32-bit offsets reach


def wrong_platform(*, interpret: bool) -> str | None:
    """Why no GPU kernel can run here, or None; an interpreted kernel runs on any platform."""
    here = platform()
    return None if interpret or here == "gpu" else f"it needs an NVIDIA GPU, not {here}"


def unsupported_arrays(arrays: Sequence[Array], *, interpret: bool) -> str | None:
    """Why a kernel in Triton cannot take these arrays here, or None.

    Args:
      arrays: Query, key and value, [b, ..., heads, head_dim] each, or the projection that holds all
        three.
      interpret: The kernel runs on the host, in an interpreter.
    """
    if reason := wrong_platform(interpret=interpret) or indivisible(arrays[0].shape[0]):
        return reason
    if (dtype := arrays[0].dtype.name) not in DTYPES:
        return f"dtype {dtype} is not one of {', '.join(DTYPES)}"
    for name, dim in (("head_dim", arrays[0].shape[-1]), ("value_dim", arrays[-1].shape[-1])):
        if dim not in HEAD_DIMS:
            return f"{name}={dim} is not in {HEAD_DIMS.start} to {HEAD_DIMS.stop - 1}"
    if (size := max(math.prod(x.shape) for x in arrays)) > MAX_ELEMENTS:
        return f"an array of {size} elements is above {MAX_ELEMENTS}, what 32-bit offsets reach"
    return None
