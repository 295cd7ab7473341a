"""Layer and root-mean-square normalisation, with the epsilon said at each use: the papers differ, even inside one model."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.initial import full, ones_init, zeros_init


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation over the last axis (Ba et al., arXiv:1607.06450), computed in float32, returned in `dtype`.

    The variance is the mean of squared deviations, as in torch, not Flax's faster difference of moments.
    """

    def __init__(self, dim: int, *, eps: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(
            dim, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, scale_init=ones_init, bias_init=zeros_init, rngs=rngs
        )
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b dim"], *, mask: Array | None = None) -> Float[Array, "*b dim"]:
        return super().__call__(x, mask=mask).astype(self.out_dtype)


class RMSNorm(nnx.Module):
    """scale * x / sqrt(mean of x^2 + eps) over the last axis (Zhang and Sennrich, arXiv:1910.07467, eq. 4).

    It is computed in float32 and returned in `dtype`.
    """

    def __init__(self, dim: int, *, eps: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        del rngs  # nothing here is random
        self.eps, self.dtype = eps, dtype
        self.scale = nnx.Param(full(dim, 1.0))

    def __call__(self, x: Float[Array, "*b dim"]) -> Float[Array, "*b dim"]:
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.eps)
        return (x * self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)
