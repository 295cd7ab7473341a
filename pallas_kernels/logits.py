"""Conventions of all attention kernels: the unit of their logits, the logit of a hidden key, and
their products.
"""

import math

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

LOG2E = math.log2(math.e)  # factor from natural logits to the kernels' unit, log 2, in which softmax is exp2
NO_KEY = -1e30  # logit of a key that must not be seen: finite, so that a row without keys makes no NaN


def dot(x: Array, y: Array, contract: tuple[int, int]) -> Float[Array, "rows cols"]:
    """The product of two matrices inside a kernel, accumulated in float32.

    Args:
      x: A matrix; float32 is multiplied in full precision, not rounded to bfloat16 (TPU) or TF32
        (GPU).
      y: A matrix of the same dtype.
      contract: The axis of `x` and the axis of `y` that are summed over.
    """
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)
