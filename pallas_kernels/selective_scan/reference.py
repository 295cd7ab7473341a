"""The definition of the selective scan: one token after the other."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.sharding import varying_like


def selective_scan(
    x: Float[Array, "b groups n channels"],
    dt: Float[Array, "b groups n channels"],
    a: Float[Array, "groups channels state"],
    b: Float[Array, "b groups n state"],
    c: Float[Array, "b groups n state"],
    *,
    skip: Float[Array, "groups channels"],
    dt_bias: Float[Array, "groups channels"],
    reverse: bool,
) -> Float[Array, "b groups n channels"]:
    """Sequential; see the operator for the arguments."""
    tokens = [jnp.moveaxis(array.astype(jnp.promote_types(array.dtype, jnp.float32)), 2, 0) for array in (x, dt, b, c)]

    def step(h, token):
        x, dt, b, c = token  # [b, groups, channels] twice, [b, groups, state] twice
        dt = jax.nn.softplus(dt + dt_bias)
        h = jnp.exp(dt[..., None] * a) * h + (dt * x)[..., None] * b[:, :, None]
        return h, (h * c[:, :, None]).sum(-1) + skip * x

    h = varying_like(jnp.zeros((x.shape[0], *a.shape), tokens[0].dtype), x)
    return jnp.moveaxis(jax.lax.scan(step, h, tokens, reverse=reverse)[1], 0, 2).astype(x.dtype)


def unsupported_reason(*_, **__) -> str | None:
    """Runs everywhere."""
    return None
