"""Padding of maps with zeros at the bottom and right."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def pad_to_multiple(x: Float[Array, "b h w c"], multiple: int | tuple[int, int]) -> Float[Array, "b h2 w2 c"]:
    """Pads h and w of a map to the next multiples of `multiple`, a number or a pair."""
    rows, cols = (multiple, multiple) if isinstance(multiple, int) else multiple
    _, h, w, _ = x.shape
    return jnp.pad(x, ((0, 0), (0, -h % rows), (0, -w % cols), (0, 0)))
