"""SViT (Huang et al., arXiv:2211.11167): Vision Transformer with Super Token Sampling.

The authors' repository is named STViT. Follows the authors' code. Any image size: maps are padded
to whole cells of super tokens. Convolutions start with He's normal distribution and pointwise ones
with a normal one of deviation 0.02, instead of torch's uniform default.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import BatchNorm, Conv, DropPath, LayerNorm, LayerScale, Linear, PosConv, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.gelu import gelu
from vitlab.layers.mlp import ResidualConvMlp
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.super_token import SuperTokenAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class SViTConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    cell_sizes: tuple[Side, ...] = (8, 4, 1, 1)  # tokens per side of a super token's cell, per stage; 1: global attention
    layer_scale_init: tuple[float | None, ...] = (None, None, None, None)  # initial factor on branches, per stage; None: no factor
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    head_dim: Count = 1024  # width of the projection before pooling
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads", "cell_sizes", "layer_scale_init")


_LATE = (None, None, 1e-6, 1e-6)
# arXiv:2211.11167 table 1. Drop path and layer scale are from the authors' README and
# models/stvit.py.
VARIANTS = {
    "svit_small": SViTConfig(dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8)),
    "svit_base": SViTConfig(
        dims=(96, 192, 384, 512), depths=(4, 6, 14, 6), num_heads=(2, 3, 6, 8), layer_scale_init=_LATE, drop_path_rate=0.4
    ),
    "svit_large": SViTConfig(
        dims=(96, 192, 448, 640), depths=(4, 7, 19, 8), num_heads=(2, 3, 7, 10), layer_scale_init=_LATE, drop_path_rate=0.6
    ),
}
# The authors' counts have 162 more per block: fixed one-hot kernels stored as parameters.
_SOURCE = "github.com/hhb072/STViT README; counts without the fixed one-hot kernels, 162 a block"
PUBLISHED = {
    "svit_small": Published(params=25_495_624, gmacs=4.35, top1=83.6, source=_SOURCE),
    "svit_base": Published(params=51_691_288, gmacs=9.84, top1=84.8, source=_SOURCE),
    "svit_large": Published(params=94_971_096, gmacs=15.56, top1=85.3, source=_SOURCE),
}


class Block(nnx.Module):
    """A position encoding, then attention after a LayerNorm and an MLP after a batch norm."""

    def __init__(self, config: SViTConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, init = config.dims[stage], config.dtype, config.layer_scale_init[stage]
        self.pos_embed = PosConv(dim, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = SuperTokenAttention(dim, num_heads=config.num_heads[stage], cell_size=config.cell_sizes[stage], dtype=dtype, rngs=rngs)
        self.norm2 = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.mlp = ResidualConvMlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls1, self.ls2 = (None if init is None else LayerScale(dim, init=init) for _ in range(2))
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = self.pos_embed(x)
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.ls1 is None else self.ls1(y), train=train, rngs=rngs)
        y = self.mlp(self.norm2(x, train=train))
        return x + self.drop_path(y if self.ls2 is None else self.ls2(y), train=train, rngs=rngs)


class Stem(nnx.Module):
    """Four 3x3 convolutions of strides 2, 1, 2, 1, each followed by GELU and batch norm."""

    def __init__(self, in_channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        dims = (in_channels, dim // 2, dim // 2, dim, dim)
        self.convs = nnx.List([Conv(dims[i], dims[i + 1], kernel_size=3, stride=2 - i % 2, dtype=dtype, rngs=rngs) for i in range(4)])
        self.norms = nnx.List([BatchNorm(dim, dtype=dtype, rngs=rngs) for dim in dims[1:]])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(gelu(conv(x)), train=train)
        return x


class Stage(nnx.Module):
    """A strided convolution and batch norm (except in the first stage), then the blocks."""

    def __init__(self, config: SViTConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dims, dtype = config.dims, config.dtype
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = Conv(dims[stage - 1], dims[stage], kernel_size=3, stride=2, dtype=dtype, rngs=rngs) if stage else None
        self.norm = BatchNorm(dims[stage], dtype=dtype, rngs=rngs) if stage else None
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None and self.norm is not None:
            x = self.norm(self.downsample(x), train=train)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class SViT(VisionModel[SViTConfig]):
    """Stages, then a projection, batch norm, swish, the mean over positions and a linear head."""

    def __init__(self, config: SViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = config.dtype
        self.patch_embed = Stem(config.in_channels, config.dims[0], dtype=dtype, rngs=rngs)
        declare(self.patch_embed, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.layers = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.proj = Linear(config.dims[-1], config.head_dim, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(config.head_dim, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(config.head_dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage."""
        x = self.patch_embed(self.checked(images), train=train)
        return run_stages(self.layers, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the projected positions of the last map, in float32."""
        return jax.nn.silu(self.norm(self.proj(features[-1]), train=train)).astype(jnp.float32).mean((1, 2))


FAMILY = Family(SViT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.layers))
