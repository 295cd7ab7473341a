"""What kernels owe `jax.shard_map`: which of their arrays differ from shard to shard."""

import jax
from jax.typing import DTypeLike
from jaxtyping import Array


def varying_like(x: Array, like: Array) -> Array:
    """Marks `x` as differing from shard to shard wherever `like` does, so that its gradient is summed over the shards.

    A rule written by hand (`jax.custom_vjp`) must return gradients that vary as its arguments do; without the mark the
    gradient of a bias that all shards share would not be summed.
    """
    axes = jax.typeof(like).manual_axis_type.varying - jax.typeof(x).manual_axis_type.varying
    return jax.lax.pcast(x, tuple(sorted(axes)), to="varying") if axes else x


def result_like(x: Array, shape: tuple[int, ...], dtype: DTypeLike | None = None) -> jax.ShapeDtypeStruct:
    """What a `pallas_call` returns: another shape, another dtype, differing from shard to shard as `x` does."""
    return jax.ShapeDtypeStruct(shape, dtype or x.dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
