"""The gated perceptron of newer transformer blocks (SwiGLU, Shazeer, arXiv:2002.05202, eq. 5)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm


class SwiGLU(nnx.Module):
    """fc2(norm(silu(gate) * value)), gate = fc1_g(x) and value = fc1_x(x), or, `packed`, the two
    halves of fc1(x).
    """

    def __init__(
        self,
        dim: int,
        *,
        mlp_dim: int,
        packed: bool = False,
        use_bias: bool = True,
        norm_eps: float | None = None,  # epsilon of a LayerNorm before fc2; None: there is none
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        def linear(in_dim: int, out_dim: int) -> Linear:
            return Linear(in_dim, out_dim, use_bias=use_bias, dtype=dtype, rngs=rngs)

        self.fc1 = linear(dim, 2 * mlp_dim) if packed else None
        self.fc1_g = None if packed else linear(dim, mlp_dim)
        self.fc1_x = None if packed else linear(dim, mlp_dim)
        self.norm = None if norm_eps is None else LayerNorm(mlp_dim, eps=norm_eps, dtype=dtype, rngs=rngs)
        self.fc2 = linear(mlp_dim, dim)

    def __call__(self, x: Float[Array, "*b dim"]) -> Float[Array, "*b dim"]:
        if self.fc1 is not None:
            gate, value = jnp.split(self.fc1(x), 2, -1)
        else:
            assert self.fc1_g is not None and self.fc1_x is not None
            gate, value = self.fc1_g(x), self.fc1_x(x)
        x = jax.nn.silu(gate) * value
        return self.fc2(x if self.norm is None else self.norm(x))
