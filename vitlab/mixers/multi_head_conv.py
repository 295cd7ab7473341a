"""Multi-head convolutional attention (Next-ViT, Li et al., arXiv:2207.05501, section 3.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.attention import head_dim_of
from vitlab.layers.batch_norm import BatchNorm
from vitlab.layers.conv import Conv
from vitlab.layers.conv_norm import fold_into_previous
from vitlab.layers.linear import Linear


class MultiHeadConv(nnx.Module):
    """projection(relu(norm(conv(x)))); the 3x3 convolution has one group per head; any size."""

    def __init__(self, dim: int, *, num_heads: int, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        head_dim_of(dim, num_heads)
        self.group_conv3x3 = Conv(dim, dim, kernel_size=3, groups=num_heads, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.projection = Linear(dim, dim, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        x = self.group_conv3x3(x)
        return self.projection(jax.nn.relu(x if self.norm is None else self.norm(x, train=train)))

    def fuse(self) -> None:
        """Folds the batch norm into the convolution, in place."""
        if self.norm is not None:
            fold_into_previous(self.norm, self.group_conv3x3)
            self.norm = None
