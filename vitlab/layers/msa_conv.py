"""MSA-Conv (TiC, Zhang et al., arXiv:2310.04134): self-attention over the taps of a convolution,
then a convolution.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv
from vitlab.layers.linear import Linear


class MSAConv(nnx.Module):
    """relu(conv(x + attention of each position to the taps of a kernel around it)).

    Follows the released operator: one head over all channels, no positions, and taps outside of the
    map are keys and values of zeros, not masked. The stride and padding are the convolution's, the
    dilation the attention's. The network TiC, its cyclic shifts and its pooling are not released.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        kernel_size: int | tuple[int, int] = 3,  # rows and columns of taps
        stride: int = 1,
        padding: int | tuple[int, int] = 1,
        dilation: int = 1,
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if not all(side % 2 for side in self.kernel_size):
            raise ValueError(f"{kernel_size=} must be odd")
        self.dilation = dilation
        self.qkv_conv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.mlp = Conv(
            dim, out_dim, kernel_size=self.kernel_size, stride=stride, padding=padding, use_bias=use_bias, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        query, key, value = jnp.split(self.qkv_conv(x), 3, -1)
        logits = jnp.einsum("bhwc,bhwkc->bhwk", query, self._taps(key), preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * x.shape[-1] ** -0.5).astype(value.dtype)
        found = jnp.einsum("bhwk,bhwkc->bhwc", weights, self._taps(value))
        return jax.nn.relu(self.mlp(found + x))

    def _taps(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w taps c"]:
        _, h, w, _ = x.shape
        pads = [self.dilation * (side // 2) for side in self.kernel_size]
        padded = jnp.pad(x, ((0, 0), (pads[0],) * 2, (pads[1],) * 2, (0, 0)))
        places = [tuple(int(i) * self.dilation for i in place) for place in np.ndindex(self.kernel_size)]
        return jnp.stack([padded[:, i : i + h, j : j + w] for i, j in places], 3)
