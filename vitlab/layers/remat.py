"""What every block goes through: rematerialisation, and where its result lies when parameters are split over devices."""

from collections.abc import Callable
from typing import Literal

import jax
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array

# What the backward pass recomputes of a block: nothing; everything from its input; or everything but the products with weights,
# which are kept (attention's own products are recomputed).
Remat = Literal["none", "full", "dots"]
_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def run_block(
    block: Callable[..., Array],
    x: Array | tuple[Array, ...],
    *,
    remat: Remat,
    train: bool,
    rngs: nnx.Rngs | None,
    grid: tuple[int, int] | None = None,  # rows and columns of the map, for a block of tokens that asks for them
) -> Array:
    """block(x, train=train, rngs=rngs), recomputed in the backward pass as `remat` says.

    Under a mesh with an axis `fsdp` the result stays split over the batch as the images are, so that the compiler gathers
    parameters and not activations.
    """
    options = {"train": train} if grid is None else {"train": train, "grid": grid}
    if remat == "none":
        return _split_over_batch(block(x, rngs=rngs, **options))
    return _split_over_batch(nnx.remat(lambda block, x, rngs: block(x, rngs=rngs, **options), policy=_POLICIES[remat])(block, x, rngs))


def _split_over_batch(x: Array) -> Array:
    mesh = jax.sharding.get_abstract_mesh()
    if "fsdp" not in mesh.axis_names or mesh.shape["fsdp"] == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(("data", "fsdp")))
