"""MaxViT (Tu et al., arXiv:2204.01697): MBConv, block attention and grid attention in every block.

Follows the authors' TensorFlow code: "same" padding, GELU by tanh, batch norms of epsilon 1e-3, and
drop path rates that rise towards `drop_path_rate` without reaching it. Any image size: windows that
overhang the map have fewer tokens. The authors need maps of whole windows and change `window_size`
with the image size (12 at 384 pixels, 16 at 512).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import BatchNorm, Conv, DropPath, LayerNorm, Linear, Mlp, Remat, run_blocks
from vitlab.layers.initial import normal_init
from vitlab.layers.pool import average_pool_ceil
from vitlab.layers.roles import declare, stage_layers
from vitlab.layers.squeeze_excite import SqueezeExcite
from vitlab.mixers.multi_axis import PartitionAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

LN_EPS = 1e-5
BN_EPS = 1e-3
gelu_tanh = partial(jax.nn.gelu, approximate=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxViTConfig(VisionConfig):
    stem_dim: Count  # width of the stem
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    head_dim: Count = 32  # width of a head; every dim is a multiple
    window_size: Side = 7  # tokens per side of a window and of the grid
    expansion_ratio: Side = 4  # hidden width of MBConv / width of its output
    se_ratio: Ratio = 0.25  # hidden width of squeeze-and-excitation / width of MBConv's output
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    implementation: str | None = None  # a key of window_attention.QKV_IMPLEMENTATIONS; None: the first that can run
    drop_path_rate: Rate = 0.2  # 1 - the authors' survival rate
    preprocessing: Preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_fraction=0.95)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims")
        for dim in self.dims:
            if dim % self.head_dim:
                raise ValueError(f"{dim=} must be a multiple of head_dim={self.head_dim}")


_SMALL = (96, 192, 384, 768)
# arXiv:2204.01697 table 1. Drop path rates are from the authors' hp/vision_i1k.py.
VARIANTS = {
    "maxvit_tiny": MaxViTConfig(stem_dim=64, dims=(64, 128, 256, 512), depths=(2, 2, 5, 2)),
    "maxvit_small": MaxViTConfig(stem_dim=64, dims=_SMALL, depths=(2, 2, 5, 2), drop_path_rate=0.3),
    "maxvit_base": MaxViTConfig(stem_dim=64, dims=_SMALL, depths=(2, 6, 14, 2), drop_path_rate=0.4),
    "maxvit_large": MaxViTConfig(stem_dim=128, dims=(128, 256, 512, 1024), depths=(2, 6, 14, 2), drop_path_rate=0.6),
    "maxvit_xlarge": MaxViTConfig(stem_dim=192, dims=(192, 384, 768, 1536), depths=(2, 6, 14, 2), drop_path_rate=0.2),
}
_SOURCE = "github.com/google-research/maxvit README; counts: timm 1.0.31"
PUBLISHED = {
    "maxvit_tiny": Published(params=30_916_528, gmacs=5.6, top1=83.62, source=_SOURCE),
    "maxvit_small": Published(params_m=68.93, gmacs=11.7, top1=84.45, source=_SOURCE),
    "maxvit_base": Published(params_m=119.47, gmacs=24.2, top1=84.95, source=_SOURCE),
    "maxvit_large": Published(params_m=211.79, gmacs=43.9, top1=85.17, source=_SOURCE),
    "maxvit_xlarge": Published(params_m=475.0, gmacs=97.8, source=_SOURCE + "; at 224 pixels published with an ImageNet-21k head only"),
}


class MBConv(nnx.Module):
    """Inverted bottleneck with pre-norm and squeeze-and-excitation.

    The shortcut is pooled if the map is halved, and projected if the width changes.
    """

    def __init__(self, config: MaxViTConfig, *, in_dim: int, dim: int, stride: int, drop_path_rate: float, rngs: nnx.Rngs):
        dtype, hidden = config.dtype, config.expansion_ratio * dim
        norm = partial(BatchNorm, eps=BN_EPS, momentum=0.01, dtype=dtype, rngs=rngs)
        self.stride = stride
        self.expand = Linear(in_dim, dim, dtype=dtype, rngs=rngs) if in_dim != dim else None
        self.pre_norm = norm(in_dim)
        self.conv1 = Linear(in_dim, hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm1 = norm(hidden)
        self.conv2 = _conv(hidden, hidden, stride=stride, groups=hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm2 = norm(hidden)
        self.se = SqueezeExcite(hidden, hidden=int(config.se_ratio * dim), activation=jax.nn.silu, dtype=dtype, rngs=rngs)
        self.conv3 = Linear(hidden, dim, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        shortcut = average_pool_ceil(x, self.stride) if self.stride > 1 else x
        if self.expand is not None:
            shortcut = self.expand(shortcut)
        x = gelu_tanh(self.norm1(self.conv1(self.pre_norm(x, train=train)), train=train))
        x = gelu_tanh(self.norm2(self.conv2(x), train=train))
        return shortcut + self.drop_path(self.conv3(self.se(x)), train=train, rngs=rngs)


class AttentionBlock(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: MaxViTConfig, *, dim: int, grid: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dtype = config.dtype
        self.norm1 = LayerNorm(dim, eps=LN_EPS, dtype=dtype, rngs=rngs)
        self.attn = PartitionAttention(
            dim,
            num_heads=dim // config.head_dim,
            window_size=config.window_size,
            grid=grid,
            implementation=config.implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(dim, eps=LN_EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), activation=gelu_tanh, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class Block(nnx.Module):
    """MBConv, block attention and grid attention, with one drop path rate for all three."""

    def __init__(self, config: MaxViTConfig, *, in_dim: int, dim: int, stride: int, drop_path_rate: float, rngs: nnx.Rngs):
        self.conv = MBConv(config, in_dim=in_dim, dim=dim, stride=stride, drop_path_rate=drop_path_rate, rngs=rngs)
        self.attn_block = AttentionBlock(config, dim=dim, grid=False, drop_path_rate=drop_path_rate, rngs=rngs)
        self.attn_grid = AttentionBlock(config, dim=dim, grid=True, drop_path_rate=drop_path_rate, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        for part in (self.conv, self.attn_block, self.attn_grid):
            x = part(x, train=train, rngs=rngs)
        return x


class Stem(nnx.Module):
    """Two 3x3 convolutions; the first one is strided and followed by batch norm and GELU."""

    def __init__(self, in_channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = _conv(in_channels, dim, stride=2, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(dim, eps=BN_EPS, momentum=0.01, dtype=dtype, rngs=rngs)
        self.conv2 = _conv(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        return self.conv2(gelu_tanh(self.norm1(self.conv1(x), train=train)))


class Stage(nnx.Module):
    """The blocks; the first one halves the map."""

    def __init__(self, config: MaxViTConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim, in_dim = config.dims[stage], config.dims[stage - 1] if stage else config.stem_dim
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.blocks = nnx.List(
            [
                Block(config, in_dim=dim if i else in_dim, dim=dim, stride=1 if i else 2, drop_path_rate=rate, rngs=rngs)
                for i, rate in enumerate(rates)
            ]
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class Head(nnx.Module):
    """A linear layer with tanh, then the classes."""

    def __init__(self, dim: int, num_classes: int, *, rngs: nnx.Rngs):
        self.pre_logits = Linear(dim, dim, rngs=rngs)
        self.fc = Linear(dim, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
        return self.fc(jnp.tanh(self.pre_logits(x)))


class MaxViT(VisionModel[MaxViTConfig]):
    """A stem and stages, then the mean over positions, a norm and a head with a tanh layer."""

    def __init__(self, config: MaxViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config.in_channels, config.stem_dim, dtype=config.dtype, rngs=rngs)
        declare(self.stem, "embedding")
        total, stages = sum(config.depths), []
        for i, depth in enumerate(config.depths):
            start = sum(config.depths[:i])
            rates = tuple(config.drop_path_rate * (start + k) / total for k in range(depth))
            stages.append(Stage(config, stage=i, rates=rates, rngs=rngs))
        self.stages = nnx.List(stages)
        self.norm = LayerNorm(config.dims[-1], eps=LN_EPS, rngs=rngs)
        self.head = declare(Head(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage."""
        x = self.stem(self.checked(images), train=train)
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the normalised mean over the positions of the last map, in float32."""
        return self.norm(features[-1].astype(jnp.float32).mean((1, 2)))


def _conv(in_dim: int, dim: int, **options) -> Conv:
    """Returns a 3x3 convolution with TensorFlow's padding and initialisation."""
    return Conv(in_dim, dim, kernel_size=3, padding="same", kernel_init=normal_init, **options)


FAMILY = Family(MaxViT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
