"""The shapes that tests, benchmarks and tuning use: those of published models, and nasty ones."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One set of arguments of `window_attention`, without the values."""

    size: tuple[int, int, int, int, int]  # b h w heads head_dim
    window_size: int | tuple[int, int]
    shift: int | tuple[int, int] = 0
    grid: bool = False
    bias: Literal["table", "full"] | None = "table"
    mask: bool = False

    @property
    def windows(self) -> tuple[int, int]:
        return (self.window_size, self.window_size) if isinstance(self.window_size, int) else self.window_size

    @property
    def windowed(self) -> tuple[int, int, int]:
        """Slots, heads and head_dim of a window."""
        return (math.prod(self.windows), *self.size[3:])

    def arguments(self, dtype: DTypeLike = jnp.float32, seed: int = 0) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
        """Random query, key and value, and the keyword arguments.

        About one token in eight is masked.
        """
        keys = jax.random.split(jax.random.key(seed), 5)
        arrays = tuple(jax.random.normal(key, self.size, dtype) for key in keys[:3])
        b, h, w, heads, _ = self.size
        rows, cols = self.windows
        bias_shape = (heads, rows * cols, rows * cols) if self.bias == "full" else (heads, 2 * rows - 1, 2 * cols - 1)
        bias = None if self.bias is None else jax.random.normal(keys[3], bias_shape, jnp.float32)
        mask = jax.random.bernoulli(keys[4], 7 / 8, (b, h, w)) if self.mask else None
        return arrays, {"window_size": self.window_size, "shift": self.shift, "grid": self.grid, "bias": bias, "mask": mask}

    def flops(self, *, backward: bool = False) -> int:
        """Operations of the products over the pairs that a window holds: two products forward, five
        backward (arXiv:2205.14135).
        """
        return (5 if backward else 2) * 2 * math.prod(self.size) * math.prod(self.windows)

    def bytes(self, dtype: DTypeLike, *, backward: bool = False) -> int:
        """The least traffic: query, key, value, result; backward three gradients more.

        The bias is not counted.
        """
        return (7 if backward else 4) * math.prod(self.size) * jnp.dtype(dtype).itemsize

    def definition_bytes(self) -> int:
        """Memory that the definition needs: the scores of all pairs of tokens."""
        b, *spatial, heads, _ = self.size
        return 4 * b * heads * math.prod(spatial) ** 2

    def batched(self, batch: int) -> "Shape":
        """The shape with another number of images."""
        return dataclasses.replace(self, size=(batch, *self.size[1:]))

    def downsized(self) -> "Shape":
        """At most two images, three heads and three windows per axis, the last one as incomplete as
        it was.
        """
        b, h, w, heads, head_dim = self.size
        h, w = (
            side if side <= 3 * window else 2 * window + (side % window or window)
            for side, window in zip((h, w), self.windows, strict=True)
        )
        return dataclasses.replace(self, size=(min(b, 2), h, w, min(heads, 3), head_dim))


# Swin-T at 224 and 256, arXiv:2103.14030 Table 7; Swin-B at 384, Table 8. Swin-T detection: 800 x
# 1333, stride 4. MaxViT-T at 224, arXiv:2204.01697 Table 1 (head_dim 32). Odd blocks are shifted;
# the last stage of Swin has one window.
MODELS: Mapping[str, Shape] = {
    "swin_tiny_stage1": Shape(size=(128, 56, 56, 3, 32), window_size=7),
    "swin_tiny_stage1_shifted": Shape(size=(128, 56, 56, 3, 32), window_size=7, shift=3),
    "swin_tiny_stage2_shifted": Shape(size=(128, 28, 28, 6, 32), window_size=7, shift=3),
    "swin_tiny_stage3_shifted": Shape(size=(128, 14, 14, 12, 32), window_size=7, shift=3),
    "swin_tiny_stage4": Shape(size=(128, 7, 7, 24, 32), window_size=7),
    "swin_tiny_window8_shifted": Shape(size=(128, 64, 64, 3, 32), window_size=8, shift=4),
    "swin_tiny_detection": Shape(size=(2, 200, 334, 3, 32), window_size=7, shift=3),
    "swin_base_384_shifted": Shape(size=(32, 96, 96, 4, 32), window_size=12, shift=6),
    "maxvit_tiny_block": Shape(size=(128, 56, 56, 2, 32), window_size=7),
    "maxvit_tiny_grid": Shape(size=(128, 56, 56, 2, 32), window_size=7, grid=True),
    "maxvit_tiny_stage3_grid": Shape(size=(128, 14, 14, 8, 32), window_size=7, grid=True),
}

NASTY: Mapping[str, Shape] = {
    "one_token": Shape(size=(1, 1, 1, 1, 32), window_size=1),
    "windows_of_one_token": Shape(size=(1, 3, 2, 1, 32), window_size=1, bias="full"),
    "window_wider_than_the_map": Shape(size=(2, 3, 5, 1, 32), window_size=7),
    "overhang": Shape(size=(1, 9, 11, 2, 32), window_size=4),
    "overhang_shifted": Shape(size=(2, 9, 11, 2, 32), window_size=4, shift=(1, 3)),
    "overhang_of_the_grid": Shape(size=(1, 9, 11, 1, 32), window_size=4, grid=True, mask=True),
    "oblong_window": Shape(size=(1, 6, 15, 2, 64), window_size=(3, 5), shift=(0, 2), bias="full"),
    "masked_and_shifted": Shape(size=(3, 8, 8, 2, 32), window_size=4, shift=2, mask=True),
    "no_bias": Shape(size=(1, 8, 4, 2, 64), window_size=4, bias=None),
    "no_bias_shifted_and_masked": Shape(size=(1, 8, 12, 1, 128), window_size=4, shift=1, bias=None, mask=True),
    "head_dim_24": Shape(size=(1, 6, 6, 2, 24), window_size=3, shift=1),
    "five_heads": Shape(size=(1, 4, 8, 5, 32), window_size=4),
    "seventeen_images": Shape(size=(17, 4, 4, 1, 32), window_size=4),
}

_PLAIN = Shape(size=(1, 16, 16, 2, 32), window_size=8)
# Shapes and dtypes of the rows of the README's table of support.
PROBES: Mapping[str, tuple[Shape, str]] = {
    **{dtype: (_PLAIN, dtype) for dtype in ("float32", "bfloat16", "float16")},
    **{f"head_dim {d}": (dataclasses.replace(_PLAIN, size=(1, 16, 16, 2, d)), "bfloat16") for d in (16, 24, 32, 64, 128, 256)},
    **{f"{n} x {n} windows": (dataclasses.replace(_PLAIN, window_size=n), "bfloat16") for n in (7, 8, 12, 16)},
    "shift": (dataclasses.replace(_PLAIN, shift=4), "bfloat16"),
    "grid": (dataclasses.replace(_PLAIN, grid=True), "bfloat16"),
    "mask": (dataclasses.replace(_PLAIN, mask=True), "bfloat16"),
    "no bias": (dataclasses.replace(_PLAIN, bias=None), "bfloat16"),
    "bias for each pair of slots": (dataclasses.replace(_PLAIN, bias="full"), "bfloat16"),
    "map 200 x 334, 96 channels": (MODELS["swin_tiny_detection"], "bfloat16"),
}
