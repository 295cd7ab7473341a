"""Images to tokens: one linear map per patch."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv
from vitlab.layers.initial import lecun_normal
from vitlab.layers.norm import LayerNorm
from vitlab.layers.product import dot_general


class PatchEmbed(nnx.Module):
    """A convolution whose stride is its kernel size, computed as one matrix product.

    XLA's convolutions are slower on CPUs. With `norm_eps` a LayerNorm follows (Swin). The sides of
    the image must be multiples of the patch.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        *,
        patch_size: int,
        norm_eps: float | None = None,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        # `proj` holds the parameters in a convolution's layout, [p, p, in, out]; it is not called.
        self.proj = Conv(
            in_channels,
            dim,
            kernel_size=patch_size,
            stride=patch_size,
            padding=0,
            use_bias=use_bias,
            kernel_init=lecun_normal,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = None if norm_eps is None else LayerNorm(dim, eps=norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, images: Float[Array, "b height width in_channels"]) -> Float[Array, "b h w dim"]:
        b, height, width, channels = images.shape
        p = self.patch_size
        if height % p or width % p:
            raise ValueError(f"image of {height}x{width} pixels: both sides must be multiples of patch_size={p}")
        patches = images.reshape(b, height // p, p, width // p, p, channels).swapaxes(2, 3)
        patches = patches.reshape(b, height // p, width // p, p * p * channels)
        dtype = self.proj.dtype or images.dtype
        kernel = self.proj.kernel[...].reshape(p * p * channels, -1).astype(dtype)
        x = dot_general(patches.astype(dtype), kernel, (((3,), (0,)), ((), ())))
        if self.proj.bias is not None:
            x += self.proj.bias[...].astype(dtype)
        return x if self.norm is None else self.norm(x)


class OverlapPatchEmbed(nnx.Module):
    """A strided convolution over overlapping patches, then LayerNorm (PVT v2, arXiv:2106.13797,
    section 3.1).
    """

    def __init__(self, in_dim: int, dim: int, *, stride: int, eps: float, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.proj = Conv(in_dim, dim, kernel_size=2 * stride - 1, stride=stride, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=eps, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.proj(x))
