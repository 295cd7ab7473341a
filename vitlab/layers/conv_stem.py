"""Three convolutions before the patches of token-labelling networks (LV-ViT, Jiang et al.,
arXiv:2104.10858).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.conv import Conv


class ConvStem(nnx.Module):
    """Convolutions of 7, 3 and 3 pixels a side, the first of stride 2, each normalised by its batch
    and rectified.
    """

    def __init__(self, in_channels: int, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [
                Conv(in_channels if not i else dim, dim, kernel_size=k, stride=s, use_bias=False, dtype=dtype, rngs=rngs)
                for i, (k, s) in enumerate(((7, 2), (3, 1), (3, 1)))
            ]
        )
        self.norms = nnx.List([BatchNorm(dim, dtype=dtype, rngs=rngs) for _ in range(3)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.relu(norm(conv(x), train=train))
        return x
