"""The definition of attention: all pairs of a query and a key."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pallas_kernels.logits import NO_KEY

MAX_PAIRS = 2**28  # 1 GiB of scores for each head


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
    """The operator on canonical arguments, in float32, or in float64 if the arguments are."""
    groups = query.shape[2] // key.shape[2]
    q, k, v = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (query, key, value))
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, precision="highest") * scale
    if bias is not None:
        logits += bias.astype(logits.dtype)
    seen = jnp.ones((1, 1, *logits.shape[2:]), bool) if mask is None else mask
    if is_causal:
        seen &= jnp.tri(*logits.shape[2:], dtype=bool)
    logits = jnp.where(seen, logits, NO_KEY)
    largest = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - largest) * seen
    total = weights.sum(-1, keepdims=True)
    sees = total > 0
    total = jnp.where(sees, total, 1)  # a query that sees no key gets zeros
    out = jnp.einsum("bhnm,bmhd->bnhd", weights / total, v, precision="highest").astype(value.dtype)
    logsumexp = jnp.where(sees, largest + jnp.log(total), -jnp.inf)[..., 0].swapaxes(1, 2)
    return (out, logsumexp) if return_logsumexp else out


def unsupported_reason(*arrays: Array, **_) -> str | None:
    """The reason why the scores of all pairs do not fit in memory, or None."""
    b, n, *parts, _, _ = arrays[0].shape
    pairs = b * n * (n if parts else arrays[1].shape[1])
    return None if pairs <= MAX_PAIRS else f"it holds the scores of all pairs, and {pairs} pairs a head are above {MAX_PAIRS}"
