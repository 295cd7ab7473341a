"""Focal modulation (Yang et al., arXiv:2203.11926, section 3): context modulates the query."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Depth, Ratio, Side
from vitlab.layers.conv import Conv
from vitlab.layers.gelu import gelu
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm


class FocalModulation(nnx.Module):
    """q * h(sum over levels of gate * context), projected; any size.

    Each level's context is a depthwise convolution of the level before (kernels 3, 5, 7, ...); the
    last level is the mean over the map. Gates are raw: neither sigmoid nor softmax.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        levels: Depth = 2,  # convolutional levels, besides the global one
        kernel_size: Side = 3,  # side of the first level's kernel, in tokens; each next level's is 2 larger
        norm_eps: Ratio | None = None,  # epsilon of a LayerNorm on the modulated query; None: no norm
        normalize_modulator: bool = False,  # True: divide the sum over levels by their number
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused; every mixer accepts num_heads
        self.levels, self.normalize_modulator = levels, normalize_modulator
        self.f = Linear(dim, 2 * dim + levels + 1, dtype=dtype, rngs=rngs)  # query, context, gates
        self.focal_layers = nnx.List(
            [Conv(dim, dim, kernel_size=kernel_size + 2 * i, groups=dim, use_bias=False, dtype=dtype, rngs=rngs) for i in range(levels)]
        )
        self.h = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.norm = None if norm_eps is None else LayerNorm(dim, eps=norm_eps, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        dim = x.shape[-1]
        query, context, gates = jnp.split(self.f(x), (dim, 2 * dim), axis=-1)
        total = jnp.zeros_like(context)
        for level, conv in enumerate(self.focal_layers):
            context = gelu(conv(context))
            total += context * gates[..., level, None]
        total += gelu(context.mean((1, 2), keepdims=True)) * gates[..., self.levels, None]
        if self.normalize_modulator:
            total /= self.levels + 1
        x = query * self.h(total)
        return self.proj(x if self.norm is None else self.norm(x))
