"""State-space duality (Mamba-2, Dao and Gu, arXiv:2405.21060, section 6): a scan as products of
matrices.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CHUNK = 64  # tokens of a chunk


def ssd(
    x: Float[Array, "b n heads head_dim"],
    log_decay: Float[Array, "b n heads"],
    b: Float[Array, "b n groups state"],
    c: Float[Array, "b n groups state"],
) -> Float[Array, "b n heads head_dim"]:
    """The recurrence h_t = exp(log_decay_t) h_(t-1) + b_t x_t, y_t = c_t h_t, by chunks of tokens.

    Within a chunk every token reads those before it, and between chunks go states. Decays between
    two tokens are exponentials of the sums over the tokens between them, which are summed as such:
    differences of sums from the first token on lose digits. What a token must not see is hidden
    before the exponential, so that nothing overflows.

    Args:
      x: Values, times the steps.
      log_decay: At most zero, float32.
      b: What a token writes; as many groups as divide the heads.
      c: What a token reads.

    Returns:
      The results, float32.
    """
    batch, n, heads, head_dim = x.shape
    size = min(CHUNK, n)
    overhang, repeats = -n % size, heads // b.shape[2]

    def chunked(v: Array) -> Array:  # [b, chunks, size, ...]
        v = jnp.pad(v.astype(jnp.float32), ((0, 0), (0, overhang), *((0, 0),) * (v.ndim - 2)))
        return v.reshape(batch, -1, size, *v.shape[2:])

    x, log_decay = chunked(x), jnp.moveaxis(chunked(log_decay), 3, 2)  # log_decay: [b, chunks, heads, size]
    b, c = (jnp.repeat(chunked(v), repeats, axis=3) for v in (b, c))
    decays = jnp.exp(segment_sums(log_decay))  # share of token j's value that is left at token i, [..., i, j]
    within = jnp.einsum("bzihs,bzjhs,bzhij,bzjhp->bzihp", c, b, decays, x)
    added = jnp.einsum("bzjhs,bzhj,bzjhp->bzhsp", b, decays[..., -1, :], x)  # what a chunk adds to the state
    totals = jnp.pad(log_decay.sum(-1).swapaxes(1, 2), ((0, 0), (0, 0), (1, 0)))  # [b, heads, 1 + chunks]
    between = jnp.exp(segment_sums(totals))[..., :-1, 1:]  # share of chunk j's addition that is left at the beginning of chunk i
    before = jnp.einsum("bhzj,bjhsp->bzhsp", between, added)
    read = jnp.einsum("bzihs,bzhi,bzhsp->bzihp", c, jnp.exp(jnp.cumsum(log_decay, -1)), before)
    return (within + read).reshape(batch, n + overhang, heads, head_dim)[:, :n]


def segment_sums(x: Float[Array, "*b n"]) -> Float[Array, "*b n n"]:
    """Sums of x over the tokens j + 1 to i, at [..., i, j]; minus infinity for j after i."""
    n = x.shape[-1]
    rows, cols = (jax.lax.broadcasted_iota(jnp.int32, (n, n), axis) for axis in (0, 1))
    after = jnp.where(rows > cols, x[..., :, None], 0.0)
    return jnp.where(rows >= cols, jnp.cumsum(after, -2), -jnp.inf)
