"""RAVLT (Fan et al., arXiv:2411.07635): rank-augmented linear attention, softmax attention late."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio
from vitlab.layers import BatchNorm, Conv, DropPath, LayerNorm, LayerScale, Linear, PosConv, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.gelu import gelu
from vitlab.layers.mlp import ResidualConvMlp
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.rank_augmented_linear import RankAugmentedLinearAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class RAVLTConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    softmax: tuple[bool, ...] = (False, False, True, True)  # per stage; True: softmax attention, False: linear attention
    layer_scale_init: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)  # initial factor on the residual branches, per stage
    mlp_ratio: Ratio = 3.5  # MLP hidden width / dim
    head_dim: Count = 1024  # width of the projection before pooling
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads", "softmax", "layer_scale_init")


# The authors' classfication/RALA.py (sic).
VARIANTS = {
    "ravlt_tiny": RAVLTConfig(dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8)),
    "ravlt_small": RAVLTConfig(dims=(64, 128, 320, 512), depths=(3, 5, 9, 3), num_heads=(1, 2, 5, 8), drop_path_rate=0.15),
    "ravlt_base": RAVLTConfig(
        dims=(96, 192, 384, 512), depths=(4, 6, 12, 6), num_heads=(1, 2, 6, 8), layer_scale_init=(1.0, 1.0, 1e-6, 1e-6), drop_path_rate=0.4
    ),
    "ravlt_large": RAVLTConfig(
        dims=(96, 192, 448, 640), depths=(4, 7, 19, 8), num_heads=(1, 2, 7, 10), layer_scale_init=(1e-6,) * 4, drop_path_rate=0.55
    ),
}
_SOURCE = "arXiv:2411.07635; counts: on the authors' code"
PUBLISHED = {
    "ravlt_tiny": Published(params=14_897_768, gmacs=2.61, source=_SOURCE),
    "ravlt_small": Published(params_m=25.591, gmacs=4.88, top1=84.4, source=_SOURCE),
    "ravlt_base": Published(params_m=48.241, gmacs=10.58, source=_SOURCE),
    "ravlt_large": Published(params_m=95.242, gmacs=17.21, source=_SOURCE),
}


class Block(nnx.Module):
    """Position encoding, then attention and MLP as pre-norm branches with channel factors."""

    def __init__(self, config: RAVLTConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, init = config.dims[stage], config.dtype, config.layer_scale_init[stage]
        self.pos = PosConv(dim, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = RankAugmentedLinearAttention(
            dim, num_heads=config.num_heads[stage], softmax=config.softmax[stage], dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = ResidualConvMlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls1, self.ls2 = LayerScale(dim, init=init), LayerScale(dim, init=init)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = self.pos(x)
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))), train=train, rngs=rngs)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))), train=train, rngs=rngs)


class Stem(nnx.Module):
    """Four 3x3 convolutions of strides 2, 1, 1, 2, each followed by batch norm, GELU between."""

    def __init__(self, in_channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        dims = (in_channels, dim // 2, dim // 2, dim // 2, dim)
        self.convs = nnx.List(
            [Conv(dims[i], dims[i + 1], kernel_size=3, stride=stride, dtype=dtype, rngs=rngs) for i, stride in enumerate((2, 1, 1, 2))]
        )
        self.norms = nnx.List([BatchNorm(dim, dtype=dtype, rngs=rngs) for dim in dims[1:]])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(gelu(x) if i else x), train=train)
        return x


class Stage(nnx.Module):
    """A strided convolution and batch norm (except in the first stage), then the blocks."""

    def __init__(self, config: RAVLTConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
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


class RAVLT(VisionModel[RAVLTConfig]):
    """Stages, then a projection, batch norm, swish, the mean over positions and a linear head."""

    def __init__(self, config: RAVLTConfig, *, rngs: nnx.Rngs):
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


FAMILY = Family(RAVLT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.layers))
