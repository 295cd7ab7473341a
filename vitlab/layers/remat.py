"""Rematerialisation: a block's activations are recomputed in the backward pass instead of kept."""

from collections.abc import Callable

from flax import nnx
from jaxtyping import Array


def run_block(block: Callable[..., Array], x: Array, *, remat: bool, train: bool, rngs: nnx.Rngs | None) -> Array:
    """block(x, train=train, rngs=rngs); with `remat` only its input is kept for the backward pass."""
    if not remat:
        return block(x, train=train, rngs=rngs)
    return nnx.remat(lambda block, x, rngs: block(x, train=train, rngs=rngs))(block, x, rngs)
