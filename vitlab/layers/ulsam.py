"""ULSAM (Saini et al., arXiv:2006.15102): a spatial attention map of its own for each subspace of
channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.conv import Conv
from vitlab.layers.linear import Linear
from vitlab.layers.widths import check_widths

_MOMENTUM = 0.9  # share of the statistics that is renewed, in the authors' code


class Subspace(nnx.Module):
    """x + a * x, a [h, w] the softmax over the map of a projection to one channel."""

    def __init__(self, dim: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.conv_dws = Conv(dim, dim, kernel_size=1, groups=dim, dtype=dtype, rngs=rngs)
        self.bn_dws = BatchNorm(dim, momentum=_MOMENTUM, dtype=dtype, rngs=rngs)
        self.conv_point = Linear(dim, 1, dtype=dtype, rngs=rngs)
        self.bn_point = BatchNorm(1, momentum=_MOMENTUM, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        y = jax.nn.relu(self.bn_dws(self.conv_dws(x), train=train))
        y = nnx.max_pool(y, (3, 3), padding="SAME")
        y = jax.nn.relu(self.bn_point(self.conv_point(y), train=train)).astype(jnp.float32)
        return x + x * jax.nn.softmax(y, axis=(1, 2)).astype(x.dtype)


class Ulsam(nnx.Module):
    """Groups of channels, each weighed by its own attention map and added to itself (eq. 3 to 5).

    As in the authors' code the logits are rectified before the softmax over the map.
    """

    def __init__(self, dim: int, *, num_splits: int = 4, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        check_widths(dim=dim, groups=num_splits)
        if dim % num_splits:
            raise ValueError(f"{dim=} must be a multiple of {num_splits=}")
        self.subspaces = nnx.List([Subspace(dim // num_splits, dtype=dtype, rngs=rngs) for _ in range(num_splits)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        parts = jnp.split(x, len(self.subspaces), -1)
        return jnp.concatenate([space(part, train=train) for space, part in zip(self.subspaces, parts, strict=True)], -1)
