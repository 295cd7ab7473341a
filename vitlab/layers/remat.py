"""What every block goes through: rematerialisation, and where its result lies when parameters are split over devices."""

from collections.abc import Callable

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array


def run_block(
    block: Callable[..., Array],
    x: Array | tuple[Array, ...],
    *,
    remat: bool,
    train: bool,
    rngs: nnx.Rngs | None,
    grid: tuple[int, int] | None = None,  # rows and columns of the map, for a block of tokens that asks for them
) -> Array:
    """block(x, train=train, rngs=rngs); with `remat` only its input is kept for the backward pass.

    Under a mesh with an axis `fsdp` the result stays split over the batch as the images are, so that the compiler gathers
    parameters and not activations.
    """
    options = {"train": train} if grid is None else {"train": train, "grid": grid}
    if not remat:
        return _split_over_batch(block(x, rngs=rngs, **options))
    return _split_over_batch(nnx.remat(lambda block, x, rngs: block(x, rngs=rngs, **options))(block, x, rngs))


def _split_over_batch(x: Array) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.axis_names or mesh.shape["fsdp"] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))
