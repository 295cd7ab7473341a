"""Group normalisation with one group (Wu and He, arXiv:1803.08494): a map is normalised as a whole."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.initial import full


class GroupNorm(nnx.Module):
    """Normalises each image over all positions and channels, then scale and bias per channel; float32, returned in `dtype`."""

    def __init__(self, dim: int, *, eps: float = 1e-5, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        del rngs  # nothing here is random
        self.eps, self.dtype = eps, dtype
        self.scale, self.bias = nnx.Param(full(dim, 1.0)), nnx.Param(full(dim, 0.0))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        x = x.astype(jnp.float32)
        x = x - x.mean((1, 2, 3), keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean((1, 2, 3), keepdims=True) + self.eps)
        scale, bias = (p[...].reshape(1, 1, 1, -1) for p in (self.scale, self.bias))
        return (scale * x + bias).astype(self.dtype)
