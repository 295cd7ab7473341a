"""Block of HRVMamba (Zhang et al., arXiv:2410.03174, section 3.2): depthwise convolutions of four
sizes, a mixer, an MLP.
"""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitlab.layers.conv import Conv
from vitlab.layers.drop_path import DropPath
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import torch_uniform
from vitlab.layers.mlp import Mlp
from vitlab.layers.norm import LayerNorm

EPS = 1e-5  # epsilon of the LayerNorms
_GROUPS = 4  # parts of the channels, whose kernels have sides of 3, 5, 7 and 9 positions


class MultiScaleConv(nnx.Module):
    """Each quarter of the channels has a depthwise convolution of its size; then they are
    shuffled.
    """

    def __init__(self, dim: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        if dim % _GROUPS:
            raise ValueError(f"{dim=} must be a multiple of {_GROUPS}")
        part, options = dim // _GROUPS, {"kernel_init": torch_uniform, "dtype": dtype, "rngs": rngs}
        self.convs = nnx.List([Conv(part, part, kernel_size=2 * i + 3, groups=part, **options) for i in range(_GROUPS)])

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        parts = [conv(part) for conv, part in zip(self.convs, jnp.split(x, _GROUPS, -1), strict=True)]
        return jnp.stack(parts, -1).reshape(x.shape)  # channel i of each part, then channel i + 1


class DVSSBlock(nnx.Module):
    """x + gelu(convolutions), x + mixer(norm(x)), x + mlp(norm(x)).

    With `local` a depthwise 3 x 3 convolution is added to what the first branch reads, and to what
    comes before the MLP, as in the authors' tiny and nano networks.
    """

    def __init__(
        self,
        dim: int,
        *,
        mixer: nnx.Module,
        mlp_ratio: float = 2.0,  # MLP hidden width / dim
        local: bool = False,
        drop_path_rate: float = 0.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        near = {"kernel_size": 3, "groups": dim, "kernel_init": torch_uniform}
        self.cpe1, self.cpe2 = (Conv(dim, dim, **near, **options) if local else None for _ in range(2))
        self.conv2d = MultiScaleConv(dim, **options)
        self.norm0, self.norm1, self.norm2 = (LayerNorm(dim, eps=EPS, **options) for _ in range(3))
        self.mixer = mixer
        self.mlp = Mlp(dim, mlp_dim=int(dim * mlp_ratio), **options)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        y = x if self.cpe1 is None else x + self.cpe1(x)
        x = x + self.drop_path(gelu(self.conv2d(self.norm0(y))), train=train, rngs=rngs)
        x = x + self.drop_path(self.mixer(self.norm1(x)), train=train, rngs=rngs)  # pyright: ignore[reportCallIssue]
        x = x if self.cpe2 is None else x + self.cpe2(x)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)
