"""Shapes for tests, benchmarks and tuning: those of published models, and edge cases."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One set of arguments of `attention`, without values."""

    size: tuple[int, int, int, int]  # b, n, heads, head_dim
    num_keys: int | None = None  # None: as many as queries
    kv_heads: int | None = None  # None: as many as heads
    bias: Literal["heads", "shared", "images"] | None = None
    mask: Literal["keys", "pairs", "blind"] | None = None  # blind: some queries see no key
    is_causal: bool = False

    @property
    def keys(self) -> int:
        """Number of keys of an image."""
        return self.num_keys or self.size[1]

    @property
    def key_size(self) -> tuple[int, int, int, int]:
        """Shape of key and value."""
        b, _, heads, head_dim = self.size
        return b, self.keys, self.kv_heads or heads, head_dim

    def arguments(self, dtype: DTypeLike = jnp.float32, seed: int = 0) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
        """Random query, key and value, and the keyword arguments.

        A mask hides about one key in eight.
        """
        keys = jax.random.split(jax.random.key(seed), 5)
        arrays = tuple(
            jax.random.normal(key, size, dtype) for key, size in zip(keys, (self.size, self.key_size, self.key_size), strict=False)
        )
        b, n, heads, _ = self.size
        leading = {"heads": (heads,), "shared": (1,), "images": (b, heads)}
        bias = None if self.bias is None else jax.random.normal(keys[3], (*leading[self.bias], n, self.keys), jnp.float32)
        return arrays, {"bias": bias, "mask": self._mask(keys[4]), "is_causal": self.is_causal}

    def _mask(self, key: jax.Array) -> jax.Array | None:
        if self.mask is None:
            return None
        b, n, heads, _ = self.size
        shape = (b, 1, 1, self.keys) if self.mask == "keys" else (b, heads, n, self.keys)
        seen = jax.random.bernoulli(key, 7 / 8, shape)
        return seen & (jnp.arange(n)[:, None] % 3 != 0) if self.mask == "blind" else seen

    def flops(self, *, backward: bool = False) -> int:
        """Operations of the products: two forward, five backward (arXiv:2205.14135)."""
        return (5 if backward else 2) * 2 * math.prod(self.size) * self.keys

    def bytes(self, dtype: DTypeLike, *, backward: bool = False) -> int:
        """The least memory traffic: query, key, value and result; backward three gradients more."""
        queries, keys = math.prod(self.size), math.prod(self.key_size)
        return ((3 if backward else 2) * queries + (4 if backward else 2) * keys) * jnp.dtype(dtype).itemsize

    def definition_bytes(self) -> int:
        """Memory that the definition needs: the scores of all pairs of tokens."""
        b, *spatial, heads, _ = self.size
        return 4 * b * heads * math.prod(spatial) ** 2

    def batched(self, batch: int) -> "Shape":
        """The shape with another number of images."""
        return dataclasses.replace(self, size=(batch, *self.size[1:]))

    def downsized(self) -> "Shape":
        """The shape with at most two images and three heads, or one group of heads."""
        b, n, heads, head_dim = self.size
        return dataclasses.replace(self, size=(min(b, 2), n, min(heads, 3), head_dim))


# Tokens: 196 for ViT-S and ViT-B (arXiv:2010.11929, arXiv:2012.12877 Table 1), 197 with a class
# token, 198 with DeiT's second one; 257 for CLIP ViT-L/14 at 224 pixels (arXiv:2103.00020), 577 at
# 336; 1,024 for ViT-S/16 and ViT-L/16 at 512.
MODELS: Mapping[str, Shape] = {
    "vit_small_patch16_mean": Shape(size=(64, 196, 6, 64)),
    "vit_small_patch16": Shape(size=(64, 197, 6, 64)),
    "vit_base_patch16": Shape(size=(64, 197, 12, 64)),
    "deit_tiny_distilled": Shape(size=(64, 198, 3, 64)),
    "clip_large_patch14": Shape(size=(64, 257, 16, 64)),
    "clip_large_patch14_336": Shape(size=(32, 577, 16, 64)),
    "vit_small_patch16_512": Shape(size=(16, 1024, 6, 64)),
    "vit_large_patch16_512": Shape(size=(8, 1024, 16, 64)),
}

NASTY: Mapping[str, Shape] = {
    "one_token": Shape(size=(1, 1, 1, 64)),
    "one_query": Shape(size=(3, 1, 2, 32), num_keys=50),
    "one_key": Shape(size=(2, 9, 2, 16), num_keys=1),
    "more_queries_than_keys": Shape(size=(2, 130, 4, 32), num_keys=49),
    "more_keys_than_queries": Shape(size=(2, 9, 2, 128), num_keys=129),
    "grouped_heads": Shape(size=(2, 33, 6, 64), kv_heads=2),
    "one_key_head": Shape(size=(2, 12, 5, 32), kv_heads=1),
    "causal": Shape(size=(2, 65, 2, 64), is_causal=True),
    "causal_more_keys": Shape(size=(1, 9, 3, 64), num_keys=11, is_causal=True),
    "causal_more_queries": Shape(size=(1, 11, 2, 64), num_keys=8, is_causal=True),
    "masked_keys": Shape(size=(3, 20, 2, 64), mask="keys"),
    "masked_keys_causal": Shape(size=(2, 20, 2, 64), mask="keys", is_causal=True),
    "masked_pairs": Shape(size=(2, 9, 2, 32), mask="pairs"),
    "blind_queries": Shape(size=(2, 9, 2, 32), mask="blind"),
    "bias_of_heads": Shape(size=(2, 10, 3, 32), bias="heads"),
    "bias_shared": Shape(size=(2, 10, 3, 32), bias="shared", num_keys=4),
    "bias_of_images": Shape(size=(2, 10, 4, 32), bias="images", mask="keys", kv_heads=2),
    "head_dim_24": Shape(size=(1, 10, 2, 24)),
    "seventeen_images": Shape(size=(17, 16, 1, 32)),
    "tiles_of_queries": Shape(size=(1, 600, 2, 64), num_keys=40),
}

_PLAIN = Shape(size=(2, 196, 4, 64))
# Shapes and dtypes behind the rows of the README's table of support.
PROBES: Mapping[str, tuple[Shape, str]] = {
    **{dtype: (_PLAIN, dtype) for dtype in ("float32", "bfloat16", "float16")},
    **{f"head_dim {d}": (dataclasses.replace(_PLAIN, size=(2, 196, 4, d)), "bfloat16") for d in (16, 24, 32, 64, 80, 128, 256)},
    "197 tokens": (dataclasses.replace(_PLAIN, size=(2, 197, 4, 64)), "bfloat16"),
    "1,024 tokens, 16 heads": (dataclasses.replace(_PLAIN, size=(2, 1024, 16, 64)), "bfloat16"),
    "4,096 tokens, 16 heads": (dataclasses.replace(_PLAIN, size=(2, 4096, 16, 64)), "bfloat16"),
    "keys of another length": (dataclasses.replace(_PLAIN, num_keys=77), "bfloat16"),
    "grouped heads": (dataclasses.replace(_PLAIN, kv_heads=2), "bfloat16"),
    "causal": (dataclasses.replace(_PLAIN, is_causal=True), "bfloat16"),
    "mask of keys": (dataclasses.replace(_PLAIN, mask="keys"), "bfloat16"),
    "mask of pairs": (dataclasses.replace(_PLAIN, mask="pairs"), "bfloat16"),
    "bias": (dataclasses.replace(_PLAIN, bias="heads"), "bfloat16"),
}
