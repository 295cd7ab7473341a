"""The definition: dense attention under a mask, softmax in float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.logits import NO_KEY
from pallas_kernels.neighborhood_attention.neighborhoods import Axis

MAX_TOKENS = 2**14  # 1 GiB of scores for each image and head


def unsupported_reason(query, key, value, *, axes: tuple[Axis, ...], **_) -> str | None:
    """Runs everywhere, on maps whose pairs of tokens fit in memory."""
    tokens = math.prod(axis.size for axis in axes)
    return None if tokens <= MAX_TOKENS else f"it holds the scores of all pairs, and a map of {tokens} tokens is above {MAX_TOKENS}"


def neighborhood_attention(query, key, value, *, axes: tuple[Axis, ...], bias, scale, extra_key, extra_value, return_logsumexp=True):
    """The operator on canonical arguments.

    Returns the attended values and the logsumexp, float32.
    """
    b, *spatial, heads, _ = query.shape
    n, shared = int(np.prod(spatial)), heads // key.shape[-2]
    flat = lambda x: x.reshape(b, n, *x.shape[-2:]).astype(jnp.float32)  # noqa: E731
    query, key, value = flat(query), *(jnp.repeat(flat(x), shared, 2) for x in (key, value))
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest") * scale
    mask = np.ones((1, 1), bool)
    for axis in axes:
        mask = np.kron(mask, axis.mask())
    if bias is not None:
        places = np.meshgrid(*(np.arange(s) for s in spatial), indexing="ij")
        at = tuple(axis.offsets()[p.reshape(-1, 1), p.reshape(1, -1)] for axis, p in zip(axes, places, strict=True))
        logits += bias.astype(jnp.float32)[(slice(None), *at)][None]
    logits = jnp.where(mask[None, None], logits, NO_KEY)
    if extra_key is not None:
        extra_key, extra_value = (jnp.repeat(x.astype(jnp.float32), shared, 2) for x in (extra_key, extra_value))
        logits = jnp.concatenate((logits, jnp.einsum("bqhd,bkhd->bhqk", query, extra_key, precision="highest") * scale), -1)
        value = jnp.concatenate((value, extra_value), 1)
    logsumexp = jax.nn.logsumexp(logits, -1)
    out = jnp.einsum("bhqk,bkhd->bqhd", jnp.exp(logits - logsumexp[..., None]), value, precision="highest")
    return out.reshape(b, *spatial, heads, -1), logsumexp.swapaxes(1, 2).reshape(b, *spatial, heads)
