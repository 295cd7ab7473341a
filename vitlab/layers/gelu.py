"""The Gaussian error linear unit (arXiv:1606.08415), in the form that is fast where it runs.

Autodiff of XLA's form keeps two more maps, and its erfc is some 75 instructions with two divisions.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.normed.gelu import gelu_and_slope
from pallas_kernels.target import platform

gelu_tanh = partial(jax.nn.gelu, approximate=True)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x * Phi(x), torch's default, by erf.

    In bfloat16 on GPUs and TPUs it is computed in float32 and rounded once, and its backward pass
    keeps x only; on TPUs within a third of bfloat16's rounding, see `pallas_kernels.normed.gelu`.
    """
    here = platform()
    if x.dtype != jnp.bfloat16 or here not in ("gpu", "tpu"):
        return jax.nn.gelu(x, approximate=False)
    return _gelu(x, here)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x: Array, here: str) -> Array:
    return _both(x, here)[0].astype(x.dtype)


def _backward(here: str, x: Array, grad: Array) -> tuple[Array]:
    return ((grad.astype(jnp.float32) * _both(x, here)[1]).astype(x.dtype),)


_gelu.defvjp(lambda x, here: (_gelu(x, here), x), _backward)


def _both(x: Array, here: str) -> tuple[Array, Array]:
    """The value and the slope, float32."""
    x = x.astype(jnp.float32)
    if here == "tpu":
        return gelu_and_slope(x)
    phi = 0.5 * (1 + jax.lax.erf(x / math.sqrt(2)))
    return x * phi, phi + x * jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def quick_gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """x sigmoid(1.702 x), the approximation of OpenAI's CLIP (arXiv:1606.08415, section 2)."""
    return x * jax.nn.sigmoid(1.702 * x)
