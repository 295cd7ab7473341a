"""Last layer of a dense head."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv
from vitlab.layers.initial import normal
from vitlab.layers.roles import declare


class PixelClassifier(nnx.Module):
    """Drops whole channels, then maps each pixel linearly to float32 logits.

    This is mmsegmentation's `cls_seg`. The initial kernel is normal(0.01), the bias zero.
    """

    def __init__(self, dim: int, out_dim: int, *, dropout_rate: float, rngs: nnx.Rngs):
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"{dropout_rate=} must be in [0, 1)")
        self.dropout_rate = dropout_rate
        self.conv = declare(Conv(dim, out_dim, kernel_size=1, kernel_init=normal(0.01), rngs=rngs), "head")

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w k"]:
        return self.conv(drop_channels(x, self.dropout_rate, rngs=rngs) if train else x)


def drop_channels(x: Float[Array, "b h w c"], rate: float, *, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
    """Sets whole channels of an image to zero and divides the others by 1 - rate.

    Tompson et al., arXiv:1411.4280, section 3.2.

    Raises:
      ValueError: `rngs` is None and the rate is above 0.
    """
    if rate == 0:
        return x
    if rngs is None:
        raise ValueError("training with dropout needs random numbers: pass rngs=nnx.Rngs(dropout=key)")
    keep = jax.random.bernoulli(rngs.dropout(), 1 - rate, (x.shape[0], 1, 1, x.shape[-1]))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))
