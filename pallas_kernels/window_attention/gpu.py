"""Parts that the GPU implementations of window attention share: the problem, its limits, and
operators made of two passes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.gpu import unsupported_arrays
from pallas_kernels.sharding import by_images
from pallas_kernels.window_attention.tiles import GpuTiles, gpu_tiles
from pallas_kernels.window_attention.windows import Windows

MAX_SLOTS = 64  # a tile of more spills registers in the backward pass


@dataclasses.dataclass(frozen=True)
class Problem:
    """Facts that are constants of both compiled passes."""

    windows: Windows
    shape: tuple[int, ...]  # b h w parts heads head_dim of the arrays that hold query, key and value
    parts: tuple[int, int, int]  # index of query, key and value along `parts`
    scale: float
    itemsize: int  # bytes of a value

    @property
    def num_windows(self) -> int:
        """Windows of all images."""
        return self.shape[0] * self.windows.num_windows

    @property
    def tile(self) -> tuple[int, int]:
        """Slots and head_dim of a tile, powers of two."""
        return max(16, pl.next_power_of_2(self.windows.num_slots)), max(16, pl.next_power_of_2(self.shape[-1]))

    def tiles(self, *, backward: bool) -> GpuTiles:
        return gpu_tiles(self.num_windows, self.shape[4], self.itemsize, backward=backward)

    def programs(self, *, backward: bool) -> int:
        """Programs of one head."""
        return pl.cdiv(self.num_windows, self.tiles(backward=backward).windows_per_program)


def unsupported_reason(*arrays: Array, window_size, interpret: bool = False, **_) -> str | None:
    """Why the kernels of `window_attention` and of `window_attention_qkv` cannot run these
    arguments here, or None.
    """
    if reason := unsupported_arrays(arrays, interpret=interpret):
        return reason
    slots = math.prod(window_size)
    return f"a window of {slots} tokens is above {MAX_SLOTS}" if slots > MAX_SLOTS else None


def operators(forward: Callable[..., Array], backward: Callable[..., tuple]) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """`window_attention` and `window_attention_qkv` from two passes.

    Args:
      forward: (arrays, bias, mask, problem, interpret) to [b, h, w, 1, heads, head_dim]. The arrays
        are query, key and value, [b, h, w, 1, heads, head_dim], or all three in one, [b, h, w, 3,
        heads, head_dim].
      backward: (arrays, bias, mask, d_out, problem, interpret) to the gradients of the arrays and
        those of the bias by each program, float32 [programs, heads, slots, slots], or None without
        a bias.

    Returns:
      Two functions that take what the operators take, canonical, and `interpret`, which is for
      tests.
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
