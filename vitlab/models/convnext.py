"""ConvNeXt (Liu et al., arXiv:2201.03545) and ConvNeXt V2 (Woo et al., arXiv:2301.00808), whose MLP
has global response normalisation.

Follows the authors' code. Atto to nano of the first version are timm's, trained there. Any image of
at least 32 pixels a side; as in the authors' code rows and columns that fill no patch are left out.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import Conv, DropPath, LayerNorm, LayerScale, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.gelu import gelu
from vitlab.layers.global_response_norm import GlobalResponseNorm
from vitlab.layers.roles import declare, stage_layers
from vitlab.models.contract import Images, ImageSize, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig(VisionConfig):
    dims: tuple[Count, ...]  # width per stage
    depths: tuple[Depth, ...]  # blocks per stage
    kernel_size: Side = 7  # pixels per side, odd
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    layer_scale_init: float | None = 1e-6  # first value of the factors on the branches; None: there are none
    grn: bool = False  # whether the MLP has global response normalisation
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("dims", "depths")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd, so that the map keeps its size")

    @property
    def min_size(self) -> int:
        return 4 * 2 ** (len(self.depths) - 1)  # a patch of the last stage


def _v2(dims: tuple[int, ...], depths: tuple[int, ...], drop_path_rate: float, image_size: ImageSize = (224, 224)) -> ConvNeXtConfig:
    return ConvNeXtConfig(dims=dims, depths=depths, drop_path_rate=drop_path_rate, image_size=image_size, grn=True, layer_scale_init=None)


_A, _F, _P, _N = (40, 80, 160, 320), (48, 96, 192, 384), (64, 128, 256, 512), (80, 160, 320, 640)
_T, _B, _L = (96, 192, 384, 768), (128, 256, 512, 1024), (192, 384, 768, 1536)
_DEEP = (3, 3, 27, 3)
# The authors' models/convnext.py, models/convnextv2.py and TRAINING.md (drop path), timm's for atto
# to nano.
VARIANTS = {
    "convnext_atto": ConvNeXtConfig(dims=_A, depths=(2, 2, 6, 2)),
    "convnext_femto": ConvNeXtConfig(dims=_F, depths=(2, 2, 6, 2)),
    "convnext_pico": ConvNeXtConfig(dims=_P, depths=(2, 2, 6, 2)),
    "convnext_nano": ConvNeXtConfig(dims=_N, depths=(2, 2, 8, 2)),
    "convnext_tiny": ConvNeXtConfig(dims=_T, depths=(3, 3, 9, 3)),
    "convnext_small": ConvNeXtConfig(dims=_T, depths=_DEEP, drop_path_rate=0.4),
    "convnext_base": ConvNeXtConfig(dims=_B, depths=_DEEP, drop_path_rate=0.5),
    "convnext_large": ConvNeXtConfig(dims=_L, depths=_DEEP, drop_path_rate=0.5),
    "convnext_xlarge": ConvNeXtConfig(dims=(256, 512, 1024, 2048), depths=_DEEP, drop_path_rate=0.2),
    "convnextv2_atto": _v2(_A, (2, 2, 6, 2), 0.1),
    "convnextv2_femto": _v2(_F, (2, 2, 6, 2), 0.1),
    "convnextv2_pico": _v2(_P, (2, 2, 6, 2), 0.1),
    "convnextv2_nano": _v2(_N, (2, 2, 8, 2), 0.1),
    "convnextv2_tiny": _v2(_T, (3, 3, 9, 3), 0.2),
    "convnextv2_small": _v2(_T, _DEEP, 0.1),
    "convnextv2_base": _v2(_B, _DEEP, 0.1),
    "convnextv2_large": _v2(_L, _DEEP, 0.1),
    "convnextv2_huge": _v2((352, 704, 1408, 2816), _DEEP, 0.1),
}
_TIMM = "timm 1.0.31"
_SOURCE = f"github.com/facebookresearch/ConvNeXt README; counts: {_TIMM}"
_SOURCE_V2 = f"github.com/facebookresearch/ConvNeXt-V2 README, after masked pre-training; counts: {_TIMM}"
PUBLISHED = {
    "convnext_atto": Published(params=3_695_520, gmacs=0.547, source=_TIMM),
    "convnext_femto": Published(params=5_217_784, gmacs=0.78, source=_TIMM),
    "convnext_pico": Published(params=9_045_672, gmacs=1.367, source=_TIMM),
    "convnext_nano": Published(params=15_593_560, gmacs=2.446, source=_TIMM),
    "convnext_tiny": Published(params=28_589_128, gmacs=4.456, top1=82.1, source=_SOURCE),
    "convnext_small": Published(params=50_223_688, gmacs=8.684, top1=83.1, source=_SOURCE),
    "convnext_base": Published(params=88_591_464, gmacs=15.355, top1=83.8, source=_SOURCE),
    "convnext_large": Published(params=197_767_336, gmacs=34.36, top1=84.3, source=_SOURCE),
    "convnext_xlarge": Published(params=350_196_968, gmacs=60.92, top1=87.0, source=_SOURCE + "; top-1 after ImageNet-22k"),
    "convnextv2_atto": Published(params=3_708_400, gmacs=0.547, top1=76.7, source=_SOURCE_V2),
    "convnextv2_femto": Published(params=5_233_240, gmacs=0.78, top1=78.5, source=_SOURCE_V2),
    "convnextv2_pico": Published(params=9_066_280, gmacs=1.367, top1=80.3, source=_SOURCE_V2),
    "convnextv2_nano": Published(params=15_623_800, gmacs=2.446, top1=81.9, source=_SOURCE_V2),
    "convnextv2_tiny": Published(params=28_635_496, gmacs=4.456, top1=83.0, source=_SOURCE_V2),
    "convnextv2_small": Published(params=50_318_440, gmacs=8.684, source=f"{_TIMM}; the authors have no such variant"),
    "convnextv2_base": Published(params=88_717_800, gmacs=15.355, top1=84.9, source=_SOURCE_V2),
    "convnextv2_large": Published(params=197_956_840, gmacs=34.36, top1=85.8, source=_SOURCE_V2),
    "convnextv2_huge": Published(params=660_289_640, gmacs=115.0, top1=86.3, source=_SOURCE_V2),
}


class ResponseMlp(nnx.Module):
    """fc2(grn(gelu(fc1(x)))), with global response normalisation."""

    def __init__(self, dim: int, *, mlp_dim: int, dtype, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, mlp_dim, dtype=dtype, rngs=rngs)
        self.grn = GlobalResponseNorm(mlp_dim)
        self.fc2 = Linear(mlp_dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.fc2(self.grn(gelu(self.fc1(x))))


class Block(nnx.Module):
    """x + ls(mlp(norm(conv(x)))), the convolution depthwise."""

    def __init__(self, config: ConvNeXtConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, init = config.dims[stage], config.dtype, config.layer_scale_init
        self.conv = Conv(dim, dim, kernel_size=config.kernel_size, groups=dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = (ResponseMlp if config.grn else Mlp)(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls = None if init is None else LayerScale(dim, init=init)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        y = self.mlp(self.norm(self.conv(x)))
        return x + self.drop_path(y if self.ls is None else self.ls(y), train=train, rngs=rngs)


class Downsample(nnx.Module):
    """A convolution whose stride is its kernel, and a norm: after it in the first stage, before it
    in the others.
    """

    def __init__(self, config: ConvNeXtConfig, *, stage: int, rngs: nnx.Rngs):
        self.first, size = not stage, 2 if stage else 4
        in_dim, dim = config.dims[stage - 1] if stage else config.in_channels, config.dims[stage]
        self.norm = LayerNorm(in_dim if stage else dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.conv = Conv(in_dim, dim, kernel_size=size, stride=size, padding=0, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.conv(x)) if self.first else self.conv(self.norm(x))


class Stage(nnx.Module):
    """Down-sampling, then the blocks."""

    def __init__(self, config: ConvNeXtConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = Downsample(config, stage=stage, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.downsample(x)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class ConvNeXt(VisionModel[ConvNeXtConfig]):
    """Stages; mean over the positions, norm, linear head."""

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].downsample, "embedding")
        self.norm = LayerNorm(config.dims[-1], eps=EPS, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The map at the end of each stage."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The normalised mean over the positions of the last map; float32."""
        return self.norm(features[-1].astype(jnp.float32).mean((1, 2)))


FAMILY = Family(ConvNeXt, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
