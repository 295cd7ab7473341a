"""Spatial and channel mixing of Vision-RWKV (Duan et al., arXiv:2403.02308, section 3.2).

Follows the authors' code, whose initial values depend on the layer.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero
from vitlab.layers.linear import Linear
from vitlab.layers.norm import LayerNorm
from vitlab.layers.wkv import bidirectional_wkv, quarter_shift

EPS = 1e-5  # epsilon of every LayerNorm


def _mixed(x: Array, moved: Array, share: nnx.Param) -> Array:
    """Takes a share of each channel from the token and the rest from its neighbour."""
    return moved + (x - moved) * share[...].astype(x.dtype)


def _ramp(dim: int, power: float) -> np.ndarray:
    return (np.arange(dim) / dim) ** power


def _param(values: np.ndarray) -> nnx.Param:
    return nnx.Param(jnp.asarray(values, jnp.float32))


class SpatialMix(nnx.Module):
    """output(sigmoid(receptance) * norm(wkv(key, value))).

    Key, value and receptance are of the token mixed with a neighbour.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        layer: CountOrZero = 0,  # number of the block
        num_layers: Count = 12,
        key_norm: bool = False,  # whether a LayerNorm follows the linear attention
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused; every mixer accepts num_heads
        depth, left = layer / max(num_layers - 1, 1), 1 - layer / num_layers
        channel = np.arange(dim)
        self.decay = _param(-5 + 8 * (channel / max(dim - 1, 1)) ** (0.7 + 1.3 * depth))
        self.first = _param(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self.mix_k, self.mix_v = _param(_ramp(dim, left)), _param(_ramp(dim, left) + 0.3 * depth)
        self.mix_r = _param(_ramp(dim, 0.5 * left))
        self.key, self.value, self.receptance, self.output = (Linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs) for _ in range(4))
        self.key_norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs) if key_norm else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        moved = quarter_shift(x)
        k, v, r = (
            layer(_mixed(x, moved, share))
            for layer, share in ((self.key, self.mix_k), (self.value, self.mix_v), (self.receptance, self.mix_r))
        )
        flat = (x.shape[0], -1, x.shape[-1])
        out = bidirectional_wkv(k.reshape(flat), v.reshape(flat), self.decay[...], self.first[...]).reshape(x.shape).astype(r.dtype)
        return self.output(jax.nn.sigmoid(r) * (out if self.key_norm is None else self.key_norm(out)))


class ChannelMix(nnx.Module):
    """sigmoid(receptance) * value(norm(relu(key) ** 2)), of the token mixed with a neighbour."""

    def __init__(
        self, dim: int, *, hidden: int, layer: int = 0, num_layers: int = 12, key_norm: bool = False, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        left = 1 - layer / num_layers
        self.mix_k, self.mix_r = _param(_ramp(dim, left)), _param(_ramp(dim, left))
        self.key = Linear(dim, hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.key_norm = LayerNorm(hidden, eps=EPS, dtype=dtype, rngs=rngs) if key_norm else None
        self.receptance = Linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.value = Linear(hidden, dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        moved = quarter_shift(x)
        k = jnp.square(jax.nn.relu(self.key(_mixed(x, moved, self.mix_k))))
        k = k if self.key_norm is None else self.key_norm(k)
        return jax.nn.sigmoid(self.receptance(_mixed(x, moved, self.mix_r))) * self.value(k)
