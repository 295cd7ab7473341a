"""Global response normalisation (ConvNeXt V2, Woo et al., arXiv:2301.00808, section 3.2)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers.initial import full


class GlobalResponseNorm(nnx.Module):
    """(gamma * n + 1) * x + beta, in float32.

    n is a channel's L2 norm over the map, divided by the mean of these norms over channels.
    """

    def __init__(self, dim: int):
        self.gamma, self.beta = nnx.Param(full(dim, 0.0)), nnx.Param(full(dim, 0.0))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        y = x.astype(jnp.float32)
        # The lower bound keeps the gradient of an all-zero channel finite, as in torch's norm.
        length = jnp.sqrt(jnp.maximum((y * y).sum((1, 2), keepdims=True), 1e-30))
        n = length / (length.mean(-1, keepdims=True) + 1e-6)
        gamma, beta = (p[...].reshape(1, 1, 1, -1) for p in (self.gamma, self.beta))
        return ((gamma * n + 1) * y + beta).astype(x.dtype)
