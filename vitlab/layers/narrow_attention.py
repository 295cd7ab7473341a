"""Attention of one head whose values are wider than its keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def narrow_attention(
    query: Float[Array, "b queries k"],
    key: Float[Array, "b keys k"],
    value: Float[Array, "b keys d"],
    bias: Float[Array, "queries keys"] | None = None,
) -> Float[Array, "b queries d"]:
    """Computes softmax(query . key / sqrt(k) + bias) . value, with the softmax in float32."""
    logits = jnp.einsum("bqd,bkd->bqk", query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits if bias is None else logits + bias[None])
    return jnp.einsum("bqk,bkd->bqd", weights.astype(value.dtype), value)
