"""Plug-in modules by name: published modules that go after the blocks of any trunk whose blocks
make maps.

A plug-in maps (b, h, w, c) to (b, h, w, c). It is the attribute `plugin` of its block, and
`run_blocks` calls it on what the block has made.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vitlab.bounds import Side
from vitlab.config.references import part_of
from vitlab.layers.criss_cross import CrissCrossAttention, RecurrentCrissCross
from vitlab.layers.ela import SIZES, Ela
from vitlab.layers.gaussian_adaptive import GaussianAdaptiveAttention
from vitlab.layers.polarized import PolarizedSelfAttention
from vitlab.layers.ulsam import Ulsam

__all__ = ["PLUG_INS", "plug_in_of"]

Constructor = Callable[..., nnx.Module]


def _ela(size: str) -> Constructor:
    kernel_size, group_dim, num_groups = SIZES[size]
    options = {"kernel_size": kernel_size, "group_dim": group_dim, "num_groups": num_groups}

    def constructor(dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> Ela:
        return Ela(dim, **options, dtype=dtype, rngs=rngs)

    return constructor


def _polarized_sequential(dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> PolarizedSelfAttention:
    return PolarizedSelfAttention(dim, layout="sequential", dtype=dtype, rngs=rngs)


def _gaussian(
    dim: int, *, num_heads: Side = 4, num_gaussians: Side = 5, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
) -> GaussianAdaptiveAttention:
    """One layer over the channels; it computes in float32 whatever the dtype."""
    del dtype
    if dim < 2 * num_heads:
        raise ValueError(f"{dim=} must be at least twice {num_heads=}")
    return GaussianAdaptiveAttention(num_heads=(num_heads,), num_gaussians=(num_gaussians,), rngs=rngs)


# Plug-ins that a config may name. Each is called as (dim, dtype=..., rngs=...); all other arguments
# have defaults.
PLUG_INS: Mapping[str, Constructor] = {
    "criss_cross": CrissCrossAttention,
    "ela": Ela,
    "ela_tiny": _ela("tiny"),
    "ela_small": _ela("small"),
    "ela_large": _ela("large"),
    "gaussian_adaptive": _gaussian,
    "polarized_parallel": PolarizedSelfAttention,
    "polarized_sequential": _polarized_sequential,
    "recurrent_criss_cross": RecurrentCrissCross,
    "ulsam": Ulsam,
}


def plug_in_of(name: str) -> Constructor:
    """Returns the plug-in of a name: one of `PLUG_INS`, or the user's own
    (`vitlab.config.references`).

    Raises:
      ConfigError: No plug-in has this name; the message lists similar names.
    """
    return part_of("plugin", name, PLUG_INS)
