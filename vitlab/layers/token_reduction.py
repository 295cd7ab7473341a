"""Fewer tokens by their scores, with static shapes: how many stay is known before the values
are.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def best_tokens(scores: Float[Array, "b n"], count: int) -> Int[Array, "b count"]:
    """Places of the tokens of the highest scores, the best first; of equal scores the first
    ones.
    """
    return jax.lax.top_k(scores, count)[1]


def taken(x: Float[Array, "b n d"], places: Int[Array, "b m"]) -> Float[Array, "b m d"]:
    """The tokens at these places."""
    return jnp.take_along_axis(x, places[..., None], axis=1)


def fused_rest(x: Float[Array, "b n d"], scores: Float[Array, "b n"], kept: Int[Array, "b m"]) -> Float[Array, "b 1 d"]:
    """Sum of the tokens that are not kept, each times its score (EViT, arXiv:2202.07800, eq. 3)."""
    rest = jnp.put_along_axis(scores, kept, jnp.zeros_like(kept, scores.dtype), axis=1, inplace=False)
    return jnp.einsum("bn,bnd->bd", rest.astype(x.dtype), x)[:, None]


def put_back(canvas: Float[Array, "b n d"], x: Float[Array, "b m d"], places: Int[Array, "b m"]) -> Float[Array, "b n d"]:
    """The canvas with the tokens at their places; a token whose place is n belongs nowhere and is
    left out.
    """
    rows = jnp.arange(len(canvas))[:, None]
    return canvas.at[rows, places].set(x, mode="drop")
