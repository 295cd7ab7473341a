"""Normalisation of tokens; the epsilon has no default because papers and models differ in it."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.initial import ones_init, zeros_init


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation over the last axis (Ba et al., arXiv:1607.06450), in float32.

    The result has the type `dtype`. The variance is the mean of squared deviations, as in torch,
    instead of Flax's faster difference of moments.
    """

    def __init__(self, dim: int, *, eps: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(
            dim, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, scale_init=ones_init, bias_init=zeros_init, rngs=rngs
        )
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b dim"], *, mask: Array | None = None) -> Float[Array, "*b dim"]:
        return super().__call__(x, mask=mask).astype(self.out_dtype)


class RMSNorm(nnx.RMSNorm):
    """Root-mean-square normalisation over the last axis (arXiv:1910.07467), in float32.

    The result has the type `dtype`.
    """

    def __init__(self, dim: int, *, eps: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(dim, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, scale_init=ones_init, rngs=rngs)
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b dim"], mask: Array | None = None) -> Float[Array, "*b dim"]:
        return super().__call__(x, mask=mask).astype(self.out_dtype)
