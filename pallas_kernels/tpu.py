"""Facts about TPU cores that all TPU kernels need."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.target import device_kind, platform

LANES, SUBLANES = 128, 8  # shape of a vector register, in words of 32 bits
DTYPES = ("bfloat16", "float32")
HEAD_DIMS = (16, 32, 64, 128)  # widths of a head that divide the lanes and fill at least one part in eight
_VMEM_BYTES = {"TPU v5 lite": 96 * 2**20, "TPU v6 lite": 96 * 2**20}  # usable, of 128 MiB
_VMEM_BYTES_ELSEWHERE = 56 * 2**20  # usable, of the 64 MiB that the compiler gives for v5p


def usable_vmem() -> int:
    """Bytes of vector memory that a kernel may use on the device that is compiled for."""
    return _VMEM_BYTES.get(device_kind(), _VMEM_BYTES_ELSEWHERE)


def padded(n: int, multiple: int) -> int:
    """The least multiple that is not below `n`."""
    return pl.cdiv(n, multiple) * multiple


def wrong_platform(*, interpret: bool) -> str | None:
    """Why no TPU kernel can run here, or None; an interpreted kernel runs on any platform."""
    here = platform()
    return None if interpret or here == "tpu" else f"it needs a TPU, not {here}"


def clear_at_first(refs: Sequence[Any], axes: tuple[int, ...]) -> None:
    """Writes zeros to references, in the first program of the grid along all of these axes, so that
    later ones can add.
    """
    first = pl.program_id(axes[0]) == 0
    for axis in axes[1:]:
        first &= pl.program_id(axis) == 0
    for ref in refs:

        @pl.when(first)
        def _(ref=ref):
            ref[...] = jnp.zeros(ref.shape, ref.dtype)
