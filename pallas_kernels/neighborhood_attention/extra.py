"""Tokens that every query sees besides its window, for kernels that know only the window."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def attend_extra(
    out: Float[Array, "b *spatial heads value_dim"],
    logsumexp: Float[Array, "b *spatial heads"],
    query: Float[Array, "b *spatial heads head_dim"],
    extra_key: Float[Array, "b extra kv_heads head_dim"],
    extra_value: Float[Array, "b extra kv_heads value_dim"],
    scale: float,
) -> tuple[Float[Array, "b *spatial heads value_dim"], Float[Array, "b *spatial heads"]]:
    """Merges attention to the window with attention to the extra tokens, by their logsumexps.

    Both results float32.
    """
    b, *spatial, heads, head_dim = query.shape
    q = query.reshape(b, -1, extra_key.shape[2], heads // extra_key.shape[2], head_dim)
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    logits = jnp.einsum("bngsd,bkgd->bngsk", q, extra_key, precision=precision, preferred_element_type=jnp.float32) * scale
    far = jax.nn.logsumexp(logits, -1, keepdims=True)
    weights = jnp.exp(logits - far).astype(extra_value.dtype)
    values = jnp.einsum("bngsk,bkgd->bngsd", weights, extra_value, precision=precision, preferred_element_type=jnp.float32)
    values, far = values.reshape(b, *spatial, heads, -1), far.reshape(b, *spatial, heads)
    both = jnp.logaddexp(logsumexp, far)
    near, far = jnp.exp(logsumexp - both)[..., None], jnp.exp(far - both)[..., None]
    return near * out.astype(jnp.float32) + far * values, both
