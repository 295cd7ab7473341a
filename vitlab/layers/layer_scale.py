"""Learned factor per channel on a residual branch (CaiT, arXiv:2103.17239, eq. 1)."""

from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers.initial import full


class LayerScale(nnx.Module):
    """gamma * x; gamma starts at `init`."""

    def __init__(self, dim: int, *, init: float):
        self.gamma = nnx.Param(full(dim, init))

    def __call__(self, x: Float[Array, "*b dim"]) -> Float[Array, "*b dim"]:
        return x * self.gamma[...].astype(x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class ChannelAffine(nnx.Module):
    """gamma * x + beta per channel, initially the identity.

    OverLoCK (arXiv:2502.20087) applies it to the identity branch of a residual block.
    """

    def __init__(self, dim: int):
        self.gamma, self.beta = nnx.Param(full(dim, 1.0)), nnx.Param(full(dim, 0.0))

    def __call__(self, x: Float[Array, "*b dim"]) -> Float[Array, "*b dim"]:
        shape = (1,) * (x.ndim - 1) + (-1,)
        return x * self.gamma[...].astype(x.dtype).reshape(shape) + self.beta[...].astype(x.dtype).reshape(shape)
