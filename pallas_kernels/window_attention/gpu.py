"""What the GPU implementations of window attention share: what they take, and the operators around a forward and a backward pass."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.sharding import by_images, indivisible
from pallas_kernels.target import platform
from pallas_kernels.window_attention.tiles import GpuTiles, gpu_tiles
from pallas_kernels.window_attention.windows import Windows

DTYPES = ("float16", "bfloat16", "float32")
MAX_SLOTS = 64  # a tile of more spills registers in the backward pass
HEAD_DIMS = range(16, 129)
MAX_ELEMENTS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Problem:
    """What both passes know when they are compiled."""

    windows: Windows
    shape: tuple[int, ...]  # b h w parts heads head_dim of the arrays that hold query, key and value
    parts: tuple[int, int, int]  # where along `parts` query, key and value are
    scale: float
    itemsize: int  # bytes of a value

    @property
    def num_windows(self) -> int:
        """Of all images."""
        return self.shape[0] * self.windows.num_windows

    @property
    def tile(self) -> tuple[int, int]:
        """Slots and head_dim of a tile, powers of two."""
        return max(16, pl.next_power_of_2(self.windows.num_slots)), max(16, pl.next_power_of_2(self.shape[-1]))

    def tiles(self, *, backward: bool) -> GpuTiles:
        return gpu_tiles(self.num_windows, self.shape[4], self.itemsize, backward=backward)

    def programs(self, *, backward: bool) -> int:
        """For each head."""
        return pl.cdiv(self.num_windows, self.tiles(backward=backward).windows_per_program)


def unsupported_reason(*arrays: Array, window_size, interpret: bool = False, **_) -> str | None:
    """For `window_attention` and `window_attention_qkv` alike; interpreted, a kernel runs on any platform."""
    head_dim, slots = arrays[0].shape[-1], math.prod(window_size)
    if not interpret and (here := platform()) != "gpu":
        return f"it needs an NVIDIA GPU, not {here}"
    if reason := indivisible(arrays[0].shape[0]):
        return reason
    if arrays[0].dtype.name not in DTYPES:
        return f"dtype {arrays[0].dtype.name} is not one of {', '.join(DTYPES)}"
    if slots > MAX_SLOTS:
        return f"a window of {slots} tokens is above {MAX_SLOTS}"
    if head_dim not in HEAD_DIMS:
        return f"{head_dim=} is not in {HEAD_DIMS.start} to {HEAD_DIMS.stop - 1}"
    if (size := math.prod(arrays[0].shape)) > MAX_ELEMENTS:
        return f"an array of {size} elements is above {MAX_ELEMENTS}, what 32-bit offsets reach"
    return None


def operators(forward: Callable[..., Array], backward: Callable[..., tuple]) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """`window_attention` and `window_attention_qkv` from two passes.

    Args:
      forward: (arrays, bias, mask, problem, interpret) to [b, h, w, 1, heads, head_dim]. The arrays are query, key and value,
        [b, h, w, 1, heads, head_dim], or all three in one, [b, h, w, 3, heads, head_dim].
      backward: (arrays, bias, mask, d_out, problem, interpret) to the gradients of the arrays and those of the bias by each
        program, float32 [programs, heads, slots, slots], or None without a bias.

    Returns:
      Two functions that take what the operators take, canonical, and `interpret`, which is for tests.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
    def attend(arrays, bias, mask, problem: Problem, interpret: bool):
        return forward(arrays, bias, mask, problem, interpret)[:, :, :, 0]

    def attend_forward(arrays, bias, mask, problem: Problem, interpret: bool):
        return attend(arrays, bias, mask, problem, interpret), (arrays, bias, mask)

    def attend_backward(problem: Problem, interpret: bool, residuals, d_out):
        arrays, bias, mask = residuals
        d_arrays, d_bias = backward(arrays, bias, mask, d_out[:, :, :, None], problem, interpret)
        return d_arrays, None if bias is None else d_bias.sum(0).astype(bias.dtype), None

    attend.defvjp(attend_forward, attend_backward)

    def run(arrays, parts, interpret, *, window_size, shift, grid, bias, mask, scale):
        def on_device(arrays, bias, mask):
            shape = arrays[0].shape
            problem = Problem(Windows.of(shape[1:3], window_size, shift, grid), shape, parts, scale, arrays[0].dtype.itemsize)
            return attend(arrays, bias, mask, problem, interpret)

        return by_images(on_device, arrays, bias, mask, heads=True)

    def window_attention(query, key, value, *, interpret: bool = False, **options) -> Float[Array, "b h w heads head_dim"]:
        return run(tuple(x[:, :, :, None] for x in (query, key, value)), (0, 0, 0), interpret, **options)

    def window_attention_qkv(qkv, *, interpret: bool = False, **options) -> Float[Array, "b h w heads head_dim"]:
        return run((qkv,), (0, 1, 2), interpret, **options)

    return window_attention, window_attention_qkv
