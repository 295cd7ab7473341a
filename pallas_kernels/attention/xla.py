"""Attention by XLA alone: two products and a softmax.

On CPUs heads are moved before tokens for the products, and queries are scaled instead of logits,
which takes two thirds of the time. Elsewhere `jax.nn.dot_product_attention` is called.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.logits import NO_KEY
from pallas_kernels.target import platform


def attention(
    query: Float[Array, "b n heads head_dim"],
    key: Float[Array, "b m kv_heads head_dim"],
    value: Float[Array, "b m kv_heads head_dim"],
    *,
    bias: Float[Array, "#b #heads n m"] | None,
    mask: Bool[Array, "#b #heads #n m"] | None,
    is_causal: bool,
    scale: float,
    return_logsumexp: bool,
) -> Array | tuple[Array, Array]:
    """The operator on canonical arguments."""
    if return_logsumexp or platform() == "cpu":
        return _heads_first(query, key, value, bias, _seen(query, key, mask, is_causal), scale, return_logsumexp)
    out = jax.nn.dot_product_attention(query, key, value, bias, mask, is_causal=is_causal, scale=scale)
    if mask is None:
        return out
    sees = _seen(query, key, mask, is_causal).any(-1)  # [b|1, heads|1, n]
    return jnp.where(sees.swapaxes(1, 2)[..., None], out, 0)  # a query that sees no key gets zeros


def unsupported_reason(*_, **__) -> str | None:
    """Always None: XLA runs everywhere."""
    return None


def _seen(query: Array, key: Array, mask: Array | None, is_causal: bool):
    if not is_causal:
        return mask
    causal = jnp.tri(query.shape[1], key.shape[1], dtype=bool)[None, None]
    return causal if mask is None else mask & causal


def _heads_first(query, key, value, bias, seen, scale: float, return_logsumexp: bool):
    groups = query.shape[2] // key.shape[2]
    if groups > 1:
        key, value = (jnp.repeat(x, groups, axis=2) for x in (key, value))
    q, k, v = (x.swapaxes(1, 2) for x in (query, key, value))
    logits = jnp.einsum("bhnd,bhmd->bhnm", q * scale, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    logits = logits if bias is None else logits + bias
    if seen is not None:
        logits = jnp.where(seen, logits, NO_KEY)
    weights = jax.nn.softmax(logits)
    if seen is not None:
        weights = jnp.where(seen, weights, 0)
    out = jnp.einsum("bhnm,bhmd->bhnd", weights.astype(v.dtype), v).swapaxes(1, 2)
    if not return_logsumexp:
        return out
    total = jax.nn.logsumexp(logits, axis=-1)
    return out, (total if seen is None else jnp.where(seen.any(-1), total, -jnp.inf)).swapaxes(1, 2)
