"""Which keys each query attends to, predicted by attention of low rank (Sparsifiner, Wei et al.,
arXiv:2303.13755, section 3.2).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vitlab.layers.initial import normal_init
from vitlab.layers.linear import Linear
from vitlab.layers.pos_embed import resample
from vitlab.layers.roles import declare


class MaskPredictor(nnx.Module):
    """Masks [n, n] from queries and keys of a map of tokens after a class token, which attends to
    all.

    Narrow keys are mixed to `rank` landmarks; a query's softmax over these are coefficients of a
    learned basis [rank, n], whose combination approximates its attention; its largest entries are
    the mask. As in the authors' code the logits are scaled by num_heads ** -0.5, only the largest
    coefficients count, and small entries of the basis, whose sign does not count, are 0. No
    gradient flows through the mask: `approximation` is what is fitted to attention. The basis and
    the way to the landmarks have a row a token; for another map than `grid` they are resampled.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        grid: tuple[int, int],  # rows and columns of the tokens after the first
        rank: int,
        dim: int,  # width of the narrow queries and keys
        threshold: float = 0.02,  # entries of the basis up to it are 0
        num_coefficients: int = 8,  # largest coefficients kept per query; all where the rank is no larger
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        num_tokens = 1 + grid[0] * grid[1]
        self.grid = grid
        self.threshold, self.num_coefficients = threshold, min(num_coefficients, rank)
        self.proj_c_q = Linear(head_dim, dim, dtype=dtype, rngs=rngs)
        self.proj_c_k = Linear(head_dim, dim, dtype=dtype, rngs=rngs)
        self.proj_n = declare(nnx.Param(normal_init(rngs.params(), (num_tokens, rank))), "filter")
        self.proj_back_n = declare(nnx.Param(normal_init(rngs.params(), (num_tokens, rank))), "filter")

    def coefficients(
        self,
        query: Float[Array, "b n heads head_dim"],
        key: Float[Array, "b n heads head_dim"],
        grid: tuple[int, int],
        alive: Bool[Array, "b n"] | None = None,
    ) -> Float[Array, "b heads m rank"]:
        """Softmax of each query but the first over the landmarks, float32; tokens that are not
        alive are zeros.
        """
        narrow = self.proj_c_q(query), self.proj_c_k(key)
        q, k = (y if alive is None else jnp.where(alive[:, :, None, None], y, 0) for y in narrow)
        landmarks = jnp.einsum("bnhc,nr->bhrc", k, self._of(self.proj_n, grid).astype(k.dtype))
        logits = jnp.einsum("bnhc,bhrc->bhnr", q[:, 1:], landmarks, preferred_element_type=jnp.float32)
        return jax.nn.softmax(logits * query.shape[2] ** -0.5)

    def approximation(
        self, query: Float[Array, "b n heads head_dim"], key: Float[Array, "b n heads head_dim"], grid: tuple[int, int]
    ) -> Float[Array, "b heads m n"]:
        """Attention of low rank of each query but the first, which training fits to a teacher's
        attention.
        """
        return self.coefficients(query, key, grid) @ self._of(self.proj_back_n, grid).T

    def _of(self, table: nnx.Param, grid: tuple[int, int]) -> Float[Array, "n rank"]:
        return resample(table[...][None], self.grid, grid, num_prefix=1)[0]

    def __call__(
        self,
        query: Float[Array, "b n heads head_dim"],
        key: Float[Array, "b n heads head_dim"],
        grid: tuple[int, int],
        *,
        count: int,  # keys that a query attends to
        alive: Bool[Array, "b n"] | None = None,  # tokens that have not been pruned; None: all
    ) -> Bool[Array, "b heads n n"]:
        """The mask: whether a query attends to a key."""
        weights = self.coefficients(query, key, grid, alive)
        basis = jnp.abs(self._of(self.proj_back_n, grid).T)
        scores = jnp.where(largest(weights, self.num_coefficients), weights, 0) @ jnp.where(basis > self.threshold, basis, 0)
        if alive is not None:
            scores = jnp.where(alive[:, None, None], scores, -jnp.inf)
        chosen = jax.lax.stop_gradient(largest(scores, count))
        return jnp.concatenate((jnp.ones_like(chosen[:, :, :1]), chosen), 2)


def largest(x: Float[Array, "*b n"], count: int) -> Bool[Array, "*b n"]:
    """Whether an entry is one of the `count` largest of the last axis; of equal ones the first
    count.
    """
    places = jax.lax.top_k(x, count)[1]
    return jnp.put_along_axis(jnp.zeros(x.shape, bool), places, True, axis=-1, inplace=False)


def tokens_of(rate: float, count: int) -> int:
    """A fraction of some tokens, rounded up; at least one."""
    return max(1, math.ceil(rate * count))
