"""The definition of window attention: every token against every token, with what it may not see
taken out.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pallas_kernels.logits import NO_KEY
from pallas_kernels.window_attention.windows import SHIFT_PENALTY, Windows

MAX_TOKENS = 2**14  # 1 GiB of scores for each image and head


def window_attention(
    query: Float[Array, "b h w heads head_dim"],
    key: Float[Array, "b h w heads head_dim"],
    value: Float[Array, "b h w heads head_dim"],
    *,
    window_size: tuple[int, int],
    shift: tuple[int, int],
    grid: bool,
    bias: Float[Array, "heads slots slots"] | None,
    mask: Bool[Array, "b h w"] | None,
    scale: float,
) -> Float[Array, "b h w heads head_dim"]:
    """Dense, O(tokens ** 2); see the operator for the arguments."""
    b, h, w, heads, head_dim = query.shape
    windows = Windows.of((h, w), window_size, shift, grid)
    row, col = np.indices((h, w)).reshape(2, h * w)
    (row_window, row_slot), (col_window, col_slot) = windows.rows.locate(row), windows.cols.locate(col)
    together = _equal(row_window) & _equal(col_window)
    neighbours = _equal(windows.rows.wrapped(row)) & _equal(windows.cols.wrapped(col))
    slot = row_slot * window_size[1] + col_slot

    seen = jnp.asarray(together)[None] if mask is None else together & mask.reshape(b, 1, h * w)
    if mask is not None:  # a hidden token may hold anything, NaN too
        key, value = (jnp.where(mask[..., None, None], x, 0) for x in (key, value))
    q, k, v = (x.reshape(b, h * w, heads, head_dim).astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (query, key, value))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") * scale
    logits += np.where(neighbours, 0, SHIFT_PENALTY)
    if bias is not None:
        logits += bias[:, slot[:, None], slot[None, :]].astype(logits.dtype)
    logits = jnp.where(seen[:, None], logits, NO_KEY)
    weights = jax.nn.softmax(logits, axis=-1) * seen[:, None]  # a query that sees no key gets zeros
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest")
    return out.reshape(query.shape).astype(value.dtype)


def unsupported_reason(*arrays: Array, **_) -> str | None:
    """Runs everywhere, on maps whose pairs of tokens fit in memory."""
    h, w = arrays[0].shape[1:3]
    return None if h * w <= MAX_TOKENS else f"it holds the scores of all pairs, and a map of {h * w} tokens is above {MAX_TOKENS}"


def _equal(x: np.ndarray) -> np.ndarray:
    return x[:, None] == x[None, :]
