"""MambaOut (Yu and Wang, arXiv:2405.07992): gated convolutions in place of Mamba.

Follows the authors' code. Any image size.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import Conv, DropPath, LayerNorm, Linear, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import normal_init
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.gated_conv import GatedConv
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaOutConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    expansion_ratio: Ratio = 8 / 3  # width of the gate / dim, see `GatedConv`; at least 1
    kernel_size: Side = 7  # side of the depthwise convolution's kernel, in tokens
    head_ratio: Side = 4  # hidden width of the head / dim of the last stage
    drop_path_rate: Rate = 0.2
    preprocessing: Preprocessing = Preprocessing(crop_fraction=1.0)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims")


# The authors' models/mambaout.py; drop path rates are from scripts/*.sh.
VARIANTS = {
    "mambaout_femto": MambaOutConfig(dims=(48, 96, 192, 288), depths=(3, 3, 9, 3), drop_path_rate=0.025),
    "mambaout_kobe": MambaOutConfig(dims=(48, 96, 192, 288), depths=(3, 3, 15, 3), drop_path_rate=0.025),
    "mambaout_tiny": MambaOutConfig(dims=(96, 192, 384, 576), depths=(3, 3, 9, 3)),
    "mambaout_small": MambaOutConfig(dims=(96, 192, 384, 576), depths=(3, 4, 27, 3), drop_path_rate=0.4),
    "mambaout_base": MambaOutConfig(dims=(128, 256, 512, 768), depths=(3, 4, 27, 3), drop_path_rate=0.6),
}
_SOURCE = "github.com/yuweihao/MambaOut README"
PUBLISHED = {
    "mambaout_femto": Published(params=7_304_536, gmacs=1.15, top1=78.9, source=_SOURCE),
    "mambaout_kobe": Published(params_m=9.141, gmacs=1.51, top1=80.0, source=_SOURCE),
    "mambaout_tiny": Published(params_m=26.545, gmacs=4.47, top1=82.7, source=_SOURCE),
    "mambaout_small": Published(params_m=48.488, gmacs=8.94, top1=84.1, source=_SOURCE),
    "mambaout_base": Published(params_m=84.813, gmacs=15.79, top1=84.2, source=_SOURCE),
}


class Block(nnx.Module):
    """x + mixer(norm(x)): one branch, no MLP."""

    def __init__(self, config: MambaOutConfig, *, dim: int, drop_path_rate: float, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.mixer = GatedConv(dim, expansion_ratio=config.expansion_ratio, kernel_size=config.kernel_size, dtype=config.dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        return x + self.drop_path(self.mixer(self.norm(x)), train=train, rngs=rngs)


class Stem(nnx.Module):
    """Two strided convolutions, each followed by a norm, GELU between."""

    def __init__(self, in_channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = Conv(in_channels, dim // 2, kernel_size=3, stride=2, kernel_init=normal_init, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(dim // 2, eps=EPS, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(dim // 2, dim, kernel_size=3, stride=2, kernel_init=normal_init, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm2(self.conv2(gelu(self.norm1(self.conv1(x)))))


class Downsample(nnx.Module):
    """A strided convolution, then a norm."""

    def __init__(self, in_dim: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, dim, kernel_size=3, stride=2, kernel_init=normal_init, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.conv(x))


class Stage(nnx.Module):
    """Down-sampling (except in the first stage), then the blocks."""

    def __init__(self, config: MambaOutConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim = config.dims[stage]
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = Downsample(config.dims[stage - 1], dim, dtype=config.dtype, rngs=rngs) if stage else None
        self.blocks = nnx.List([Block(config, dim=dim, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class Head(nnx.Module):
    """A linear layer with GELU, a norm, then the classes."""

    def __init__(self, dim: int, hidden: int, num_classes: int, *, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, hidden, rngs=rngs)
        self.norm = LayerNorm(hidden, eps=EPS, rngs=rngs)
        self.fc2 = Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
        return self.fc2(self.norm(gelu(self.fc1(x))))


class MambaOut(VisionModel[MambaOutConfig]):
    """Stages, then the mean over the positions, a norm and an MLP as head."""

    def __init__(self, config: MambaOutConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.dims[-1]
        self.stem = Stem(config.in_channels, config.dims[0], dtype=config.dtype, rngs=rngs)
        declare(self.stem, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.norm = LayerNorm(dim, eps=EPS, rngs=rngs)
        self.head = declare(Head(dim, config.head_ratio * dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage."""
        x = self.stem(self.checked(images))
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the normalised mean over the positions of the last map, in float32."""
        return self.norm(features[-1].astype(jnp.float32).mean((1, 2)))


FAMILY = Family(MambaOut, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
