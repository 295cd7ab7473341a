"""Stochastic depth (Huang et al., arXiv:1603.09382)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float


def drop_path_rates(rate: float, depth: int) -> tuple[float, ...]:
    """One rate per block, rising linearly from 0 to `rate` at the last block."""
    return tuple(float(r) for r in np.linspace(0, rate, depth))


def stage_drop_path_rates(rate: float, depths: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """`drop_path_rates` over all blocks, split into stages."""
    rates, ends = drop_path_rates(rate, sum(depths)), np.cumsum(depths)
    return tuple(rates[end - depth : end] for end, depth in zip(ends, depths, strict=True))


class DropPath(nnx.Module):
    """Drops a residual branch for random images, and scales the others by 1 / (1 - rate).

    It holds no random state: the key stream comes with each training call.
    """

    def __init__(self, rate: float):
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path {rate=} must be in [0, 1)")
        self.rate: float | Array = float(rate)  # an array if blocks of several rates run as a loop

    def add(
        self, x: Float[Array, "b *rest"], branch: Callable[..., Array], *, train: bool, rngs: nnx.Rngs | None, **options: Any
    ) -> Float[Array, "b *rest"]:
        """Computes x + self(branch(x, **options)).

        If nothing is dropped, the branch itself adds x, which some kernels do without a further
        pass.
        """
        if not self._drops(train):
            return branch(x, residual=True, **options)
        return x + self(branch(x, **options), train=train, rngs=rngs)

    def _drops(self, train: bool) -> bool:
        return train and not (isinstance(self.rate, float) and self.rate == 0)

    def __call__(self, x: Float[Array, "b *rest"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b *rest"]:
        if not self._drops(train):
            return x
        if rngs is None:
            raise ValueError("training with drop path needs random numbers: pass rngs=nnx.Rngs(dropout=key)")
        keep = jax.random.bernoulli(rngs.dropout(), 1 - self.rate, (x.shape[0],) + (1,) * (x.ndim - 1))
        survival = 1 - self.rate
        divisor = survival.astype(x.dtype) if isinstance(survival, jax.Array) else survival  # a float32 array would promote bfloat16
        return jnp.where(keep, x / divisor, jnp.zeros_like(x))
