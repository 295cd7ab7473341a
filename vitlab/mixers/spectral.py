"""Spectral gating: a learned filter in the Fourier domain.

GFNet (Rao et al., arXiv:2107.00645, section 3.2) and SpectFormer (arXiv:2304.06446).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.bounds import Side
from vitlab.layers.initial import normal_init
from vitlab.layers.roles import declare


class SpectralGating(nnx.Module):
    """A learned complex factor per frequency and channel: a circular convolution of the whole map.

    The Fourier transforms are float32. The filter is stored for maps of `grid`; for others it is
    resampled (bicubic).
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int | None = None,
        grid: tuple[Side, Side] = (14, 14),  # rows and columns of the map for which the filter is stored
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del num_heads  # unused; every mixer accepts num_heads
        self.dtype = dtype
        shape = (grid[0], grid[1] // 2 + 1, dim, 2)  # last axis: real and imaginary part
        self.complex_weight = declare(nnx.Param(normal_init(rngs.params(), shape)), "filter")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        _, h, w, _ = x.shape
        weight = resample_filter(self.complex_weight[...], (h, w // 2 + 1))
        spectrum = jnp.fft.rfft2(x.astype(jnp.float32), axes=(1, 2), norm="ortho")
        spectrum *= jax.lax.complex(weight[..., 0], weight[..., 1])[None]
        return jnp.fft.irfft2(spectrum, s=(h, w), axes=(1, 2), norm="ortho").astype(self.dtype)


def resample_filter(weight: Float[Array, "h w c 2"], size: tuple[int, int]) -> Float[Array, "h2 w2 c 2"]:
    """Resamples a filter to another spectrum (bicubic with antialiasing).

    Args:
      weight: The filter, real and imaginary parts last.
      size: Rows, and columns // 2 + 1, of the maps that the result is for.
    """
    return weight if weight.shape[:2] == size else jax.image.resize(weight, (*size, *weight.shape[2:]), "cubic")
