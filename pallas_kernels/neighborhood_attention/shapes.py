"""The shapes that tests, benchmarks and tuning use: those of published models, and nasty ones."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

PerAxis = int | tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One set of arguments of `neighborhood_attention`, without the values."""

    size: tuple[int, ...]  # b *spatial heads head_dim
    kernel_size: PerAxis
    dilation: PerAxis = 1
    stride: PerAxis = 1
    is_causal: bool | tuple[bool, ...] = False
    bias: bool = False
    kv_heads: int | None = None  # as many as heads
    extra: int = 0  # tokens that every query sees

    def per_axis(self, x) -> tuple:
        return x if isinstance(x, tuple) else (x,) * (len(self.size) - 3)

    def arguments(self, dtype: DTypeLike = jnp.float32, seed: int = 0) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
        """Random query, key and value, and the keyword arguments."""
        keys = jax.random.split(jax.random.key(seed), 6)
        b, *spatial, heads, head_dim = self.size
        kv_heads = self.kv_heads or heads
        sizes = (self.size, *((b, *spatial, kv_heads, head_dim),) * 2)
        arrays = tuple(jax.random.normal(key, size, dtype) for key, size in zip(keys, sizes, strict=False))
        options = {name: getattr(self, name) for name in ("kernel_size", "dilation", "stride", "is_causal")}
        if self.bias:
            table = (heads, *(2 * k - 1 for k in self.per_axis(self.kernel_size)))
            options["bias"] = jax.random.normal(keys[3], table, jnp.float32)
        if self.extra:
            extra = (b, self.extra, kv_heads, head_dim)
            options |= {
                name: jax.random.normal(key, extra, dtype) for name, key in zip(("extra_key", "extra_value"), keys[4:], strict=True)
            }
        return arrays, options

    def flops(self, *, backward: bool = False) -> int:
        """Operations of the products over the pairs that the windows hold: two products forward,
        five backward (arXiv:2205.14135).
        """
        return (5 if backward else 2) * 2 * math.prod(self.size) * math.prod(self.per_axis(self.kernel_size))

    def bytes(self, dtype: DTypeLike, *, backward: bool = False) -> int:
        """The least traffic: query, key, value, result; backward three gradients more.

        The bias is not counted.
        """
        b, *spatial, heads, head_dim = self.size
        keys = b * math.prod(spatial) * (self.kv_heads or heads) * head_dim
        queries = math.prod(self.size)
        return ((3 * queries + 4 * keys) if backward else (2 * queries + 2 * keys)) * jnp.dtype(dtype).itemsize

    def definition_bytes(self) -> int:
        """Memory that the definition needs: the scores of all pairs of tokens."""
        b, *spatial, heads, _ = self.size
        return 4 * b * heads * math.prod(spatial) ** 2

    def batched(self, batch: int) -> "Shape":
        """The shape with another number of images."""
        return dataclasses.replace(self, size=(batch, *self.size[1:]))

    def downsized(self) -> "Shape":
        """At most two images, three heads (in equal shares) and about three windows per axis, that
        end as they did.
        """
        b, *spatial, heads, head_dim = self.size
        heads = heads if heads <= 3 else 2
        sides = []
        for side, kernel, dilation in zip(spatial, self.per_axis(self.kernel_size), self.per_axis(self.dilation), strict=True):
            window = kernel * dilation
            sides.append(side if side <= 2 * window + 8 else 2 * window + side % 8)
        kv_heads = None if self.kv_heads is None else 1
        return dataclasses.replace(self, size=(min(b, 2), *sides, heads, head_dim), kv_heads=kv_heads)


# NAT-T at 224, arXiv:2204.07143 Table 1 (widths 64 to 512 at head_dim 32, kernel 7). DiNAT-T,
# arXiv:2209.15001 Table 2 (dilations 8, 4, 2, 1 by stage). The rest: the problems of research on
# the roofline; FLUX at 4096 x 4096 and HunyuanVideo, arXiv:2504.16922 Table 2; a window over a
# sequence.
MODELS: Mapping[str, Shape] = {
    "nat_tiny_stage1": Shape(size=(128, 56, 56, 2, 32), kernel_size=7, bias=True),
    "nat_tiny_stage2": Shape(size=(128, 28, 28, 4, 32), kernel_size=7, bias=True),
    "nat_tiny_stage3": Shape(size=(128, 14, 14, 8, 32), kernel_size=7, bias=True),
    "nat_tiny_stage4": Shape(size=(128, 7, 7, 16, 32), kernel_size=7, bias=True),
    "dinat_tiny_stage1": Shape(size=(128, 56, 56, 2, 32), kernel_size=7, dilation=8, bias=True),
    "dinat_tiny_stage2": Shape(size=(128, 28, 28, 4, 32), kernel_size=7, dilation=4, bias=True),
    "map64_head64": Shape(size=(1, 64, 64, 16, 64), kernel_size=7),
    "map128_kernel13": Shape(size=(1, 128, 128, 16, 64), kernel_size=13),
    "sequence4096": Shape(size=(2, 4096, 8, 64), kernel_size=128),
    "volume16": Shape(size=(1, 16, 32, 32, 8, 64), kernel_size=7),
    "flux_4k": Shape(size=(1, 256, 256, 24, 128), kernel_size=80),
    "hunyuan_video": Shape(size=(1, 30, 48, 80, 24, 128), kernel_size=(18, 24, 24)),
}

NASTY: Mapping[str, Shape] = {
    "one_token": Shape(size=(1, 1, 1, 1, 32), kernel_size=1),
    "does_not_divide_the_tile": Shape(size=(1, 19, 23, 2, 32), kernel_size=5, bias=True),
    "window_as_large_as_the_map": Shape(size=(2, 5, 6, 2, 32), kernel_size=(5, 6), bias=True),
    "even_kernel": Shape(size=(1, 13, 18, 1, 64), kernel_size=(4, 6), bias=True),
    "unequal_classes": Shape(size=(1, 11, 17, 2, 32), kernel_size=3, dilation=(3, 5), bias=True),
    "window_as_large_as_the_classes": Shape(size=(2, 6, 15, 2, 32), kernel_size=(3, 5), dilation=(2, 3), bias=True),
    "strided": Shape(size=(1, 13, 14, 2, 32), kernel_size=(5, 4), stride=(3, 4)),
    "causal": Shape(size=(1, 12, 19, 2, 32), kernel_size=5, dilation=(1, 2), is_causal=(False, True), stride=(1, 2)),
    "grouped_heads": Shape(size=(1, 4, 5, 9, 4, 32), kernel_size=3, kv_heads=2),
    "extra_tokens": Shape(size=(2, 8, 9, 2, 32), kernel_size=3, extra=5, bias=True),
    "five_heads": Shape(size=(1, 8, 9, 5, 32), kernel_size=3, bias=True),
    "maps_side_by_side": Shape(size=(4, 6, 20, 2, 32), kernel_size=5, bias=True),
    "three_images": Shape(size=(3, 8, 8, 1, 32), kernel_size=3, bias=True),
    "head_dim_16": Shape(size=(2, 7, 10, 4, 16), kernel_size=3, bias=True),
    "head_dim_24": Shape(size=(1, 6, 7, 2, 24), kernel_size=3),
    "head_dim_128": Shape(size=(1, 9, 10, 2, 128), kernel_size=5, bias=True),
    "one_axis": Shape(size=(2, 45, 2, 64), kernel_size=7, dilation=2, bias=True),
    "one_long_axis": Shape(size=(1, 150, 1, 128), kernel_size=3, stride=2),
    "three_axes": Shape(size=(1, 5, 6, 11, 2, 32), kernel_size=(3, 4, 3), dilation=(1, 1, 2), bias=True),
}

_PLAIN = Shape(size=(1, 16, 16, 4, 64), kernel_size=7)


def _plain(**changes) -> Shape:
    return dataclasses.replace(_PLAIN, **changes)


# Shapes and dtypes of the rows of the README's table of support.
PROBES: Mapping[str, tuple[Shape, str]] = {
    **{dtype: (_PLAIN, dtype) for dtype in ("float32", "bfloat16", "float16")},
    **{f"head_dim {d}": (_plain(size=(1, 16, 16, 4, d)), "bfloat16") for d in (16, 24, 32, 64, 128, 256)},
    "one axis": (_plain(size=(1, 256, 4, 64)), "bfloat16"),
    "three axes": (_plain(size=(1, 8, 8, 8, 4, 64), kernel_size=3), "bfloat16"),
    "even window": (_plain(kernel_size=(4, 6)), "bfloat16"),
    "dilation, unequal classes": (_plain(kernel_size=3, dilation=(3, 5)), "bfloat16"),
    "stride": (_plain(stride=3), "bfloat16"),
    "causal": (_plain(is_causal=(True, False)), "bfloat16"),
    "bias": (_plain(bias=True), "bfloat16"),
    "fewer heads of keys": (_plain(kv_heads=2), "bfloat16"),
    "extra tokens": (_plain(extra=4), "bfloat16"),
    **{f"128 x 128 map, {k} x {k} window": (_plain(size=(1, 128, 128, 16, 64), kernel_size=k), "bfloat16") for k in (7, 13, 31)},
    "256 x 256 map, 80 x 80 window, head_dim 128": (MODELS["flux_4k"], "bfloat16"),
    "sequence of 4096, window of 128": (MODELS["sequence4096"], "bfloat16"),
}
