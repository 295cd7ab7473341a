"""Triton kernels called from JAX: on a GPU through jax-triton (extra `cuda13`, Python 3.12), in
tests by Triton's interpreter.

jax-triton has no rule for `vmap`, none for what varies over a mesh, and no interpreter;
`triton_call` adds them.
"""

import importlib.metadata
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from pallas_kernels.sharding import varying_like
from pallas_kernels.target import is_elsewhere

_interpreter = threading.Lock()  # Triton's is one for all threads, and each device has its own


def missing(*, interpret: bool) -> str | None:
    """Why no Triton kernel can be called here, or None.

    For a device that is elsewhere it matters not what is installed here.
    """
    if is_elsewhere():
        return None
    package = "triton" if interpret else "jax_triton"
    if importlib.util.find_spec(package) is None:
        return f"it needs {package}, which is not installed (extra `cuda13`, Python 3.12 or newer)"
    if not interpret and jax.__version_info__ >= (0, 12) and (version := importlib.metadata.version("jax-triton")) in ("0.4.0", "0.4.1"):
        return f"jax-triton {version} does not run with jax {jax.__version__}: install jax<0.12"
    return None


def triton_call(
    kernel: Any,
    arrays: Sequence[Array],
    results: Sequence[jax.ShapeDtypeStruct],
    *,
    programs: int,
    constants: Mapping[str, Any],
    num_warps: int,
    num_stages: int,
    interpret: bool,
) -> list[Array]:
    """Runs a kernel.

    Args:
      kernel: Decorated with `triton.jit`; to be interpreted, with TRITON_INTERPRET=1 in the
        environment. Its arguments are pointers to `arrays`, pointers to `results`, `constants`.
      arrays: What it reads.
      results: What it writes, all of it.
      programs: How many run.
      constants: What is compiled into it, by name.
      num_warps: Of a program.
      num_stages: Of its loads in loops.
      interpret: Run on the host, by Triton's interpreter.

    Returns:
      The results.
    """

    @jax.custom_batching.sequential_vmap
    def on_gpu(*arrays):
        import jax_triton

        return jax_triton.triton_call(
            *arrays,
            kernel=kernel,
            out_type=list(results),
            grid=programs,
            num_warps=num_warps,
            num_stages=num_stages,
            name=kernel.__name__,
            **constants,
        )

    def on_host(*arrays):
        read = [_HostArray(np.array(x)) for x in arrays]
        written = [_HostArray(np.full(x.shape, np.nan).astype(x.dtype)) for x in results]
        with _interpreter:
            kernel[(programs,)](*read, *written, **constants)
        return [x.values for x in written]

    if interpret:
        return jax.pure_callback(on_host, list(results), *arrays, vmap_method="sequential")
    return [varying_like(x, arrays[0]) for x in on_gpu(*arrays)]


class _HostArray:
    """An array of the host with the few methods of torch's tensor that Triton's interpreter calls.

    It is its own storage.
    """

    def __init__(self, values: np.ndarray):
        self.values, self.dtype = values, values.dtype

    def data_ptr(self) -> int:
        return self.values.ctypes.data

    def untyped_storage(self) -> "_HostArray":
        return self

    cpu = untyped_storage

    def new_empty(self, *_, **__) -> "_HostArray":
        return _HostArray(self.values)

    def set_(self, storage: "_HostArray", *_) -> None:
        self.values = storage.values

    def copy_(self, other: "_HostArray") -> None:
        self.values[...] = other.values

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.values.shape

    def stride(self) -> tuple[int, ...]:
        return self.values.strides
