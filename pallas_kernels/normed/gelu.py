"""The exact GELU (Hendrycks and Gimpel, arXiv:1606.08415), x * Phi(x), in few operations.

Phi(x) = (1 + tanh(x * P(x**2))) / 2, where P is the polynomial that makes the relative error of
Phi(-x) smallest over |x| <= 5.5 among those of degree 5 (a linear program): 6.4e-4, a third of the
2e-3 that rounding to bfloat16 costs. P is constant beyond, where Phi(-x) is below 2e-8. Adding one
to a negative tanh costs an absolute 6e-8 of float32, as adding one to erf does.
"""

import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

_RANGE = 5.5
# Coefficients of P, lowest power first.
_POLYNOMIAL = tuple(
    c / 2
    for c in (
        1.5936167787100453,
        0.07492518917046556,
        -7.849370792570188e-4,
        -8.483137263627976e-6,
        6.468278968184785e-7,
        -8.532987601055623e-9,
    )
)


def gelu(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """x * Phi(x) of a float32 map."""
    return x * _phi(x)


def gelu_and_slope(x: Float[Array, "*n"]) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """x * Phi(x) and its derivative, Phi(x) + x * phi(x)."""
    phi = _phi(x)
    density = jnp.exp2(x * x * (-0.5 / math.log(2))) * (1 / math.sqrt(2 * math.pi))
    return x * phi, phi + x * density


def _phi(x: Array) -> Array:
    square = jnp.minimum(x * x, _RANGE**2)
    polynomial = functools.reduce(lambda total, c: total * square + c, _POLYNOMIAL[::-1])
    return 0.5 + 0.5 * jnp.tanh(x * polynomial)
