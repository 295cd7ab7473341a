"""Group normalisation with torch's conventions."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.initial import full


class GroupNorm(nnx.Module):
    """Normalises neighbouring channels over all positions (Wu and He, arXiv:1803.08494), in
    float32, returned in `dtype`.
    """

    def __init__(self, dim: int, *, num_groups: int = 1, eps: float = 1e-5, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        del rngs  # nothing here is random
        if dim % num_groups:
            raise ValueError(f"{dim=} must be a multiple of {num_groups=}")
        self.num_groups, self.eps, self.dtype = num_groups, eps, dtype
        self.scale, self.bias = nnx.Param(full(dim, 1.0)), nnx.Param(full(dim, 0.0))

    def __call__(self, x: Float[Array, "b *n c"]) -> Float[Array, "b *n c"]:
        groups = x.astype(jnp.float32).reshape(len(x), -1, self.num_groups, x.shape[-1] // self.num_groups)
        groups = groups - groups.mean((1, 3), keepdims=True)
        groups = groups * jax.lax.rsqrt((groups * groups).mean((1, 3), keepdims=True) + self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (groups.reshape(x.shape) * self.scale[...].reshape(shape) + self.bias[...].reshape(shape)).astype(self.dtype)
