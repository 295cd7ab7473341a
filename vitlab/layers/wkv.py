"""Linear attention and shift of Vision-RWKV (Duan et al., arXiv:2403.02308, section 3.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def bidirectional_wkv(
    key: Float[Array, "b n c"], value: Float[Array, "b n c"], decay: Float[Array, " c"], bonus: Float[Array, " c"]
) -> Float[Array, "b n c"]:
    """Means of the values of all tokens, weighted by exp of key less decay * (distance - 1) / n.

    Equation 4; the weight of a token's own value is exp(key + bonus / n). Sums of both directions
    are parallel prefix sums of weights and weighted values that carry their largest logarithm, so
    that nothing overflows. The result is float32.

    The CUDA kernels with which the published weights were trained depart from the equation at the
    borders of pieces of n / 32 tokens.
    """
    key, value = (x.astype(jnp.float32) for x in (key, value))
    n = key.shape[1]
    slope = jnp.arange(n, dtype=jnp.float32)[:, None] * (decay / n)  # [n, c]
    before = _sums(key + slope, value, -slope + decay / n, reverse=False)
    after = _sums(key - slope, value, slope + decay / n, reverse=True)
    own = (key + bonus / n, jnp.ones_like(key), value)
    _, total, weighted = _join(_join(before, own), after)
    return weighted / total


def _sums(logits, value, offset, *, reverse: bool):
    """Sums over the tokens before each one: their largest logarithm plus the offset, and the sums
    over its exponential.
    """
    most, total, weighted = jax.lax.associative_scan(_join, (logits, jnp.ones_like(logits), value), axis=1, reverse=reverse)
    pads = ((0, 0, 0), (-1, 1, 0) if reverse else (1, -1, 0), (0, 0, 0))
    most, total, weighted = (jax.lax.pad(x, jnp.float32(empty), pads) for x, empty in ((most, _NONE), (total, 0), (weighted, 0)))
    return most + offset, total, weighted


_NONE = -1e30  # logarithm of an empty sum: finite, so that differences are


def _join(one, other):
    most = jnp.maximum(one[0], other[0])
    one_share, other_share = jnp.exp(one[0] - most), jnp.exp(other[0] - most)
    return most, one[1] * one_share + other[1] * other_share, one[2] * one_share + other[2] * other_share


def quarter_shift(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Moves quarters of the channels by one token: right, left, down and up; channels that are left
    over stay.

    Zeros come in at the border.
    """
    quarter = x.shape[-1] // 4
    parts = [x[..., i * quarter : (i + 1) * quarter] for i in range(4)]
    pads = [((0, 0), (1, -1)), ((0, 0), (-1, 1)), ((1, -1), (0, 0)), ((-1, 1), (0, 0))]
    zero = jnp.zeros((), x.dtype)
    moved = [
        jax.lax.pad(part, zero, ((0, 0, 0), (*rows, 0), (*cols, 0), (0, 0, 0))) for part, (rows, cols) in zip(parts, pads, strict=True)
    ]
    return jnp.concatenate([*moved, x[..., 4 * quarter :]], -1)
