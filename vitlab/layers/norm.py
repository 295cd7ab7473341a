"""Normalisation of tokens; the epsilon has no default because papers and models differ in it."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pallas_kernels.target import platform
from vitlab.layers.initial import ones_init, zeros_init


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation over the last axis (Ba et al., arXiv:1607.06450), in float32.

    The result has the type `dtype`. The variance is the mean of squared deviations, as in torch,
    instead of Flax's faster difference of moments. A bfloat16 map on TPUs takes that difference,
    which needs one pass, and its backward pass keeps the map and two numbers per token.
    """

    def __init__(self, dim: int, *, eps: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(
            dim, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, scale_init=ones_init, bias_init=zeros_init, rngs=rngs
        )
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b dim"], *, mask: Array | None = None) -> Float[Array, "*b dim"]:
        if platform() == "tpu" and x.dtype == self.out_dtype == jnp.bfloat16 and mask is None:
            assert self.scale is not None and self.bias is not None
            return _one_pass(x, self.scale[...], self.bias[...], self.epsilon)
        return super().__call__(x, mask=mask).astype(self.out_dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _one_pass(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    return _one_pass_forward(x, scale, bias, eps)[0]


def _one_pass_forward(x: Array, scale: Array, bias: Array, eps: float):
    x32 = x.astype(jnp.float32)
    mean, square = x32.mean(-1, keepdims=True), (x32 * x32).mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + eps)
    return ((x32 - mean) * inverse * scale + bias).astype(x.dtype), (x, mean, inverse, scale)


def _one_pass_backward(eps: float, saved, grad: Array):
    x, mean, inverse, scale = saved
    normed, grad = (x.astype(jnp.float32) - mean) * inverse, grad.astype(jnp.float32)
    d_normed, tokens = grad * scale, tuple(range(x.ndim - 1))
    along = (d_normed * normed).mean(-1, keepdims=True)
    d_x = inverse * (d_normed - d_normed.mean(-1, keepdims=True) - normed * along)
    return d_x.astype(x.dtype), (grad * normed).sum(tokens), grad.sum(tokens)


_one_pass.defvjp(_one_pass_forward, _one_pass_backward)


class RMSNorm(nnx.RMSNorm):
    """Root-mean-square normalisation over the last axis (arXiv:1910.07467), in float32.

    The result has the type `dtype`.
    """

    def __init__(self, dim: int, *, eps: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        super().__init__(dim, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, scale_init=ones_init, rngs=rngs)
        self.out_dtype = dtype

    def __call__(self, x: Float[Array, "*b dim"], mask: Array | None = None) -> Float[Array, "*b dim"]:
        return super().__call__(x, mask=mask).astype(self.out_dtype)
