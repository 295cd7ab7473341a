"""CoAtNet (Dai et al., arXiv:2106.04803): two stages of MBConv, then two of attention with a bias
for each relative position.

The authors published no code: the network is timm's `coatnet_*_224`, whose MBConv, stem and head
are those of the same authors' MaxViT (arXiv:2204.01697): its MBConv pools its shortcut on the
average where the paper says the maximum, expands the width of its output, strides in the depthwise
convolution, and a tanh layer stands before the classes. Departs from timm: any image size; maps of
odd sides are pooled as MaxViT's, and bias tables resampled.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import BatchNorm, Conv, DropPath, LayerNorm, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.gelu import gelu
from vitlab.layers.pool import average_pool_ceil
from vitlab.layers.roles import declare, stage_layers
from vitlab.layers.squeeze_excite import SqueezeExcite
from vitlab.mixers.relative_attention import RelativeAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoAtNetConfig(VisionConfig):
    dims: tuple[Count, ...]  # width per stage
    depths: tuple[Depth, ...]  # blocks per stage
    attention: tuple[bool, ...] = (False, False, True, True)  # per stage: attention instead of convolution
    stem_dim: Count = 64
    head_dim: Count = 32
    expansion_ratio: Side = 4  # hidden width of MBConv / its output
    se_ratio: Ratio = 0.25  # hidden width of squeeze-and-excitation / the output of MBConv
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    preprocessing: Preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_fraction=0.95)
    drop_path_rate: Rate = 0.2

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("dims", "depths", "attention")
        for dim, attends in zip(self.dims, self.attention, strict=True):
            if attends and dim % self.head_dim:
                raise ValueError(f"{dim=} must be a multiple of head_dim={self.head_dim}")

    def grid(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's map at the configured size."""
        stride = 4 * 2**stage
        return -(-self.image_size[0] // stride), -(-self.image_size[1] // stride)


_SMALL, _LARGE = (96, 192, 384, 768), (192, 384, 768, 1536)
# arXiv:2106.04803 table 3 and section A.2 (drop path, ImageNet-1k; for 4 and 5 after ImageNet-21k
# and JFT).
VARIANTS = {
    "coatnet_0": CoAtNetConfig(dims=_SMALL, depths=(2, 3, 5, 2)),
    "coatnet_1": CoAtNetConfig(dims=_SMALL, depths=(2, 6, 14, 2), drop_path_rate=0.3),
    "coatnet_2": CoAtNetConfig(dims=(128, 256, 512, 1024), depths=(2, 6, 14, 2), stem_dim=128, drop_path_rate=0.5),
    "coatnet_3": CoAtNetConfig(dims=_LARGE, depths=(2, 6, 14, 2), stem_dim=192, drop_path_rate=0.7),
    "coatnet_4": CoAtNetConfig(dims=_LARGE, depths=(2, 12, 28, 2), stem_dim=192),
    "coatnet_5": CoAtNetConfig(dims=(256, 512, 1280, 2048), depths=(2, 12, 28, 2), stem_dim=192),
}
_SOURCE = "arXiv:2106.04803 table 4; counts: timm 1.0.31"
PUBLISHED = {
    "coatnet_0": Published(params=25_036_820, gmacs=4.55, top1=81.6, source=_SOURCE),
    "coatnet_1": Published(params=42_225_776, gmacs=8.64, top1=83.3, source=_SOURCE),
    "coatnet_2": Published(params=74_684_744, gmacs=16.43, top1=84.1, source=_SOURCE),
    "coatnet_3": Published(params=166_966_264, gmacs=36.45, top1=84.5, source=_SOURCE),
    "coatnet_4": Published(params=275_425_288, gmacs=62.32, source=_SOURCE + "; no top-1 at 224 pixels without further images"),
    "coatnet_5": Published(params=687_472_008, gmacs=145.26, source=_SOURCE + "; no top-1 at 224 pixels without further images"),
}


class Shortcut(nnx.Module):
    """Means over 2x2 and a projection where the map is halved, else nothing."""

    def __init__(self, in_dim: int, dim: int, *, stride: int, dtype, rngs: nnx.Rngs):
        self.stride = stride
        self.expand = Linear(in_dim, dim, dtype=dtype, rngs=rngs) if in_dim != dim else None

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        x = average_pool_ceil(x, self.stride) if self.stride > 1 else x
        return x if self.expand is None else self.expand(x)


class PooledNorm(nnx.Module):
    """Norm, then means over 2x2."""

    def __init__(self, dim: int, *, dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return average_pool_ceil(self.norm(x), 2)


class MBConv(nnx.Module):
    """Inverted bottleneck with pre-norm and squeeze-and-excitation."""

    def __init__(self, config: CoAtNetConfig, *, in_dim: int, dim: int, stride: int, drop_path_rate: float, rngs: nnx.Rngs):
        dtype, hidden = config.dtype, config.expansion_ratio * dim
        norm = partial(BatchNorm, dtype=dtype, rngs=rngs)
        self.shortcut = Shortcut(in_dim, dim, stride=stride, dtype=dtype, rngs=rngs)
        self.pre_norm = norm(in_dim)
        self.conv1 = Linear(in_dim, hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm1 = norm(hidden)
        self.conv2 = Conv(hidden, hidden, kernel_size=3, stride=stride, groups=hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm2 = norm(hidden)
        self.se = SqueezeExcite(hidden, hidden=int(config.se_ratio * dim), activation=jax.nn.silu, dtype=dtype, rngs=rngs)
        self.conv3 = Linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        shortcut = self.shortcut(x)
        x = gelu(self.norm1(self.conv1(self.pre_norm(x, train=train)), train=train))
        x = gelu(self.norm2(self.conv2(x), train=train))
        return shortcut + self.drop_path(self.conv3(self.se(x)), train=train, rngs=rngs)


class AttentionBlock(nnx.Module):
    """Shortcut + attn(norm1(x)), pooled where the map is halved, then x + mlp(norm2(x))."""

    def __init__(self, config: CoAtNetConfig, *, stage: int, in_dim: int, stride: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.shortcut = Shortcut(in_dim, dim, stride=stride, dtype=dtype, rngs=rngs)
        self.norm1 = (PooledNorm if stride > 1 else partial(LayerNorm, eps=EPS))(in_dim, dtype=dtype, rngs=rngs)
        self.attn = RelativeAttention(
            in_dim, num_heads=dim // config.head_dim, out_dim=dim, grid=config.grid(stage), dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.shortcut(x) + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class Stem(nnx.Module):
    """Two 3x3 convolutions, the first strided, normalised and activated."""

    def __init__(self, in_channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = Conv(in_channels, dim, kernel_size=3, stride=2, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(dim, dim, kernel_size=3, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        return self.conv2(gelu(self.norm1(self.conv1(x), train=train)))


class Stage(nnx.Module):
    """The blocks; the first one halves the map."""

    def __init__(self, config: CoAtNetConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim, in_dim = config.dims[stage], config.dims[stage - 1] if stage else config.stem_dim
        block = partial(AttentionBlock, stage=stage) if config.attention[stage] else partial(MBConv, dim=dim)
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.blocks = nnx.List(
            [
                block(config, in_dim=dim if i else in_dim, stride=1 if i else 2, drop_path_rate=rate, rngs=rngs)
                for i, rate in enumerate(rates)
            ]
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class Head(nnx.Module):
    """A tanh layer, then the classes."""

    def __init__(self, dim: int, num_classes: int, *, rngs: nnx.Rngs):
        self.pre_logits = Linear(dim, dim, rngs=rngs)
        self.fc = Linear(dim, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
        return self.fc(jnp.tanh(self.pre_logits(x)))


class CoAtNet(VisionModel[CoAtNetConfig]):
    """Stem, stages; mean over the positions, norm, head with a tanh layer."""

    def __init__(self, config: CoAtNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = declare(Stem(config.in_channels, config.stem_dim, dtype=config.dtype, rngs=rngs), "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.norm = LayerNorm(config.dims[-1], eps=EPS, rngs=rngs)
        self.head = declare(Head(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The map at the end of each stage."""
        x = self.stem(self.checked(images), train=train)
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The normalised mean over the positions of the last map; float32."""
        return self.norm(features[-1].astype(jnp.float32).mean((1, 2)))


FAMILY = Family(CoAtNet, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
