"""The selective scan of state-space models (Mamba), for sequences that go through a map in several
directions.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.dispatch import Implementation, UnsupportedError, dispatch
from pallas_kernels.selective_scan import pallas_tpu, reference, xla
from pallas_kernels.sharding import varying_like

__all__ = ["IMPLEMENTATIONS", "UnsupportedError", "selective_scan"]

IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "pallas_tpu": Implementation(pallas_tpu.selective_scan, pallas_tpu.unsupported_reason),  # states stay on chip
    "xla": Implementation(xla.selective_scan, xla.unsupported_reason),  # any device, keeps one state a chunk
    "reference": Implementation(reference.selective_scan, reference.unsupported_reason),  # keeps every state: the definition
}


def selective_scan(
    x: Float[Array, "b groups n channels"],
    dt: Float[Array, "b groups n channels"],
    a: Float[Array, "groups channels state"],
    b: Float[Array, "b groups n state"],
    c: Float[Array, "b groups n state"],
    *,
    skip: Float[Array, "groups channels"] | None = None,
    dt_bias: Float[Array, "groups channels"] | None = None,
    reverse: bool = False,
    implementation: str | None = None,
) -> Float[Array, "b groups n channels"]:
    """Runs the recurrence h_t = exp(d_t a) h_(t-1) + d_t b_t x_t, and returns c_t h_t + skip x_t.

    The selective state-space model of Mamba (Gu and Dao, arXiv:2312.00752, algorithm 2), with the
    step d_t = softplus(dt_t + dt_bias) and, as in the authors' code, b multiplied by the step alone
    and not by the exact integral. The state of each channel is zero before the first token.
    Nothing overflows where `a` is negative.

    Args:
      x: The sequences; the groups, such as orders in which a map is read, have parameters of their
        own.
      dt: The steps before bias and softplus, in the dtype of x; a token whose step is -1e4 leaves
        the state as it is.
      a: The rates of decay, negative, float32.
      b: What each token writes to the states of all channels of its group, in the dtype of x.
      c: What each token reads from them, in the dtype of x.
      skip: Factors of x in the result; None: zero.
      dt_bias: Added to dt; None: zero.
      reverse: Scan from the last token to the first.
      implementation: A key of IMPLEMENTATIONS, or None for the fastest that applies.

    Returns:
      The results in the dtype of x; steps, states and sums are float32.

    Raises:
      ValueError: Shapes or dtypes that do not fit each other.
      UnsupportedError: The named implementation cannot run these arguments.
    """
    options = canonical(x, dt, a, b, c, skip=skip, dt_bias=dt_bias, reverse=reverse)
    return dispatch("selective_scan", IMPLEMENTATIONS, implementation, x, dt, varying_like(a, x), b, c, **options)


def canonical(x: Array, dt: Array, a: Array, b: Array, c: Array, *, skip=None, dt_bias=None, reverse: bool = False) -> dict[str, Any]:
    """The options every implementation takes: arrays for skip and dt_bias.

    Raises:
      ValueError: Arguments that do not fit each other.
    """
    if x.ndim != 4 or x.shape != dt.shape or min(x.shape) < 1:
        raise ValueError(f"{x.shape=} and {dt.shape=} must be one [b, groups, n, channels], without an axis of length 0")
    if a.ndim != 3 or a.shape[:2] != x.shape[1::2] or a.shape[2] < 1:
        raise ValueError(f"{a.shape=} must be [groups, channels, state] of {x.shape=}")
    if not b.shape == c.shape == (*x.shape[:3], a.shape[2]):
        raise ValueError(f"{b.shape=} and {c.shape=} must be {(*x.shape[:3], a.shape[2])}, [b, groups, n, state]")
    if not x.dtype == dt.dtype == b.dtype == c.dtype:
        raise ValueError(f"{x.dtype=}, {dt.dtype=}, {b.dtype=} and {c.dtype=} must be one")
    for name, array in (("skip", skip), ("dt_bias", dt_bias)):
        if array is not None and array.shape != a.shape[:2]:
            raise ValueError(f"{name}.shape={array.shape} must be {a.shape[:2]}, [groups, channels]")
    zeros = jnp.zeros(a.shape[:2], a.dtype)
    skip, dt_bias = (varying_like(zeros if array is None else array, x) for array in (skip, dt_bias))
    return {"skip": skip, "dt_bias": dt_bias, "reverse": reverse}
