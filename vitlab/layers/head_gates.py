"""Mixture of heads (MoH, Jin et al., arXiv:2410.11842, section 3.3): a weight for each token and
head, zero for some heads.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers.linear import Linear


class HeadGates(nnx.Module):
    """Weights of the heads' outputs: the first `shared` heads always count, of the others the
    `routed` best of a token.

    Softmax over either kind times the number of heads that count, so that a weight is one in the
    mean; with both kinds, two more weights balance them. As in the authors' code all heads are
    computed.
    """

    def __init__(self, dim: int, *, num_heads: int, shared: int, routed: int, rngs: nnx.Rngs):
        if shared + routed > num_heads or (not routed and shared != num_heads):
            raise ValueError(f"{shared=} and {routed=} heads must be at most {num_heads=}, and without routed heads all are shared")
        self.shared, self.routed = shared, routed
        self.wg = Linear(dim, num_heads - shared, use_bias=False, rngs=rngs) if routed else None
        self.wg_0 = Linear(dim, 2, use_bias=False, rngs=rngs) if routed and shared else None
        self.wg_1 = Linear(dim, shared, use_bias=False, rngs=rngs) if shared > 1 else None

    def __call__(self, x: Float[Array, "*b n d"]) -> Float[Array, "*b n heads"]:
        """The weights, float32."""
        x = x.astype(jnp.float32)
        shared = jnp.ones((*x.shape[:-1], self.shared)) if self.wg_1 is None else jax.nn.softmax(self.wg_1(x)) * self.shared
        if self.wg is None:
            return shared
        gates = jax.nn.softmax(self.wg(x))
        best, places = jax.lax.top_k(gates, self.routed)
        best = best / jnp.maximum(best.sum(-1, keepdims=True), jnp.finfo(jnp.float32).eps) * self.routed
        routed = jnp.put_along_axis(jnp.zeros_like(gates), places, best, axis=-1, inplace=False)
        if self.wg_0 is None:
            return routed
        balance = jax.nn.softmax(self.wg_0(x)) * 2
        return jnp.concatenate((balance[..., :1] * shared, balance[..., 1:] * routed), -1)

    def imbalance(self, x: Float[Array, "*b n d"]) -> Float[Array, ""]:
        """How unequally the routed heads are used (section 3.3, eq. 9), float32.

        It is the sum over the heads of the mean weight times the share of the tokens that choose
        the head, times the number of heads, over all tokens of the batch: `routed` if all are used
        alike.
        """
        if self.wg is None:
            raise ValueError("without routed heads there is nothing to balance")
        gates = jax.nn.softmax(self.wg(x.astype(jnp.float32)))
        _, places = jax.lax.top_k(gates, self.routed)
        chosen = jax.nn.one_hot(places, gates.shape[-1]).sum(-2)
        tokens = tuple(range(gates.ndim - 1))
        return (gates.mean(tokens) * chosen.mean(tokens)).sum() * gates.shape[-1]
