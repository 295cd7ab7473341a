"""The shapes that tests, benchmarks and tuning use: those of published models, and nasty ones."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One set of arguments of `selective_scan`, without the values."""

    size: tuple[int, int, int, int]  # b groups n channels
    state: int
    reverse: bool = False

    merged: ClassVar[int] = 1  # last axes that come and go as one

    def arguments(self, dtype: DTypeLike = jnp.float32, seed: int = 0) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
        """Random x, dt, a, b and c, and the keyword arguments; steps are about 0.1."""
        keys = jax.random.split(jax.random.key(seed), 7)
        batch, groups, n, channels = self.size
        x, dt = (jax.random.normal(key, self.size, dtype) for key in keys[:2])
        b, c = (jax.random.normal(key, (batch, groups, n, self.state), dtype) for key in keys[2:4])
        a = -jnp.exp(jax.random.normal(keys[4], (groups, channels, self.state), jnp.float32))
        skip, bias = (jax.random.normal(key, (groups, channels), jnp.float32) for key in keys[5:])
        return (x, dt, a, b, c), {"skip": skip, "dt_bias": bias - 2, "reverse": self.reverse}

    def flops(self, *, backward: bool = False) -> int:
        """Operations of the recurrence and of what reads and writes it: nine for each state, and
        twice as many backward; the vector unit does them.
        """
        return (18 if backward else 9) * math.prod(self.size) * self.state

    def bytes(self, dtype: DTypeLike, *, backward: bool = False) -> int:
        """The least traffic: x, dt, b, c and the result; backward, its gradient in place of the
        result and four gradients more.
        """
        wide, narrow = math.prod(self.size), math.prod(self.size[:3]) * self.state
        numbers = 5 * wide + 4 * narrow if backward else 3 * wide + 2 * narrow
        return numbers * jnp.dtype(dtype).itemsize

    def definition_bytes(self) -> int:
        """Memory that the definition needs: its backward pass keeps some numbers for each state."""
        return 3 * 4 * math.prod(self.size) * self.state

    def batched(self, batch: int) -> "Shape":
        """The shape with another number of images."""
        return dataclasses.replace(self, size=(batch, *self.size[1:]))


# A call has the groups of one direction: VMamba reads by rows and by columns, Vim by rows.
MODELS: Mapping[str, Shape] = {
    "vim_tiny": Shape(size=(128, 1, 197, 384), state=16),
    "vim_tiny_reverse": Shape(size=(128, 1, 197, 384), state=16, reverse=True),
    "vmamba_tiny_stage1": Shape(size=(128, 2, 3136, 96), state=1),
    "vmamba_tiny_stage2": Shape(size=(128, 2, 784, 192), state=1),
    "vmamba_tiny_stage3": Shape(size=(128, 2, 196, 384), state=1),
    "vmamba_tiny_stage4": Shape(size=(128, 2, 49, 768), state=1),
    "hrvmamba_base_branch1": Shape(size=(128, 2, 3136, 160), state=1),
    "hrvmamba_base_branch3": Shape(size=(128, 2, 196, 640), state=1),
}
NASTY: Mapping[str, Shape] = {
    "one_token": Shape(size=(2, 1, 1, 8), state=1),
    "seven_tokens": Shape(size=(1, 2, 7, 3), state=2, reverse=True),
    "sixty_five_tokens": Shape(size=(2, 1, 65, 5), state=3),
    "sixty_five_reverse": Shape(size=(1, 2, 65, 5), state=1, reverse=True),
    "two_tiles": Shape(size=(1, 1, 20, 640), state=1),
}
PROBES: Mapping[str, tuple[Shape, str]] = {
    **{dtype: (MODELS["vmamba_tiny_stage3"], dtype) for dtype in ("float32", "bfloat16", "float16")},
    "16 states": (MODELS["vim_tiny"], "bfloat16"),
    "128 states": (Shape(size=(1, 1, 64, 128), state=128), "bfloat16"),
    "reverse": (MODELS["vim_tiny_reverse"], "bfloat16"),
    "520 channels": (Shape(size=(1, 1, 64, 520), state=1), "bfloat16"),
    "map 256 x 256, 96 channels": (Shape(size=(1, 2, 2**16, 96), state=1), "bfloat16"),
}
