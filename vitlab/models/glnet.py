"""GLNet (Zhu et al., arXiv:2411.11288): global attention among slots, local convolutions.

Follows the authors' code. Any image size. The authors' token-labelling variants are this network
with one more head.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio
from vitlab.layers import (
    BatchNorm,
    ConvMlp,
    DropPath,
    LayerNorm,
    LayerScale,
    Linear,
    Mlp,
    PosConv,
    Remat,
    run_blocks,
    stage_drop_path_rates,
)
from vitlab.layers.roles import declare, stage_layers
from vitlab.layers.transitions import DeepStem, Transition
from vitlab.mixers.glmix import GLMix
from vitlab.mixers.global_attention import GlobalAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class GLNetConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    mixers: tuple[Literal["glmix", "alternating", "global"], ...] = ("glmix", "glmix", "alternating", "global")  # mixers of each stage
    learned_slots: bool = False  # True: slots are parameters; False: they are means of the map
    head_dim: Count = 32  # width of a head
    mlp_ratio: Ratio = 3.0  # MLP hidden width / dim
    layer_scale_init: float | None = None  # initial factor on the residual branches; None: no factor
    swin_layout: bool = False  # True: patches and merging as in Swin; no convolution at a block's start and in the MLP
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "mixers")

    def is_global(self, stage: int, block: int) -> bool:
        """Whether a block has global attention; stages that alternate begin with GLMix."""
        return self.mixers[stage] == "global" or (self.mixers[stage] == "alternating" and block % 2 == 1)


_STL = {
    "dims": (96, 192, 384, 768),
    "depths": (2, 2, 6, 2),
    "mixers": ("glmix", "glmix", "glmix", "global"),
    "mlp_ratio": 4.0,
    "swin_layout": True,
}
# The authors' models/glnet.py; drop path rates are from configs/main_cx2.yaml.
VARIANTS = {
    "glnet_4g": GLNetConfig(dims=(64, 128, 256, 512), depths=(4, 4, 18, 4), drop_path_rate=0.15),
    "glnet_9g": GLNetConfig(dims=(96, 192, 384, 768), depths=(4, 4, 18, 4), drop_path_rate=0.3),
    "glnet_16g": GLNetConfig(dims=(128, 256, 512, 1024), depths=(4, 4, 18, 4), layer_scale_init=1e-4, drop_path_rate=0.4),
    "glnet_stl": GLNetConfig(**_STL),
    "glnet_stl_paramslot": GLNetConfig(**_STL, learned_slots=True),
}
_SOURCE = "github.com/rayleizhu/GLMix README; parameters counted on the authors' code"
PUBLISHED = {
    "glnet_4g": Published(params_m=27.002, top1=83.7, source=_SOURCE),
    "glnet_9g": Published(params_m=60.011, top1=84.5, source=_SOURCE),
    "glnet_16g": Published(params_m=106.055, top1=85.0, source=_SOURCE),
    "glnet_stl": Published(params_m=30.297, top1=82.5, source=_SOURCE),
    "glnet_stl_paramslot": Published(params_m=30.481, top1=82.1, source=_SOURCE),
}


class Block(nnx.Module):
    """A position convolution (except in the Swin layout), then pre-norm mixer and MLP.

    Slots start from the block's input before its norm.
    """

    def __init__(self, config: GLNetConfig, *, stage: int, index: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, init = config.dims[stage], config.dtype, config.layer_scale_init
        heads, mlp_dim = dim // config.head_dim, int(dim * config.mlp_ratio)
        self.pos_conv = None if config.swin_layout else PosConv(dim, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mixer = (
            GlobalAttention(dim, num_heads=heads, dtype=dtype, rngs=rngs)
            if config.is_global(stage, index)
            else GLMix(dim, num_heads=heads, learned_slots=config.learned_slots, dtype=dtype, rngs=rngs)
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = (
            Mlp(dim, mlp_dim=mlp_dim, dtype=dtype, rngs=rngs)
            if config.swin_layout
            else ConvMlp(dim, mlp_dim=mlp_dim, residual=True, dtype=dtype, rngs=rngs)
        )
        self.ls1, self.ls2 = (None if init is None else LayerScale(dim, init=init) for _ in range(2))
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        source = x
        if self.pos_conv is not None:
            x = self.pos_conv(x)
        y = self.mixer(self.norm1(x), source) if isinstance(self.mixer, GLMix) else self.mixer(self.norm1(x))
        x = x + self.drop_path(y if self.ls1 is None else self.ls1(y), train=train, rngs=rngs)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.ls2 is None else self.ls2(y), train=train, rngs=rngs)


class Stage(nnx.Module):
    """A stem (in the first stage) or a transition, then the blocks."""

    def __init__(self, config: GLNetConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = _downsample(config, stage, rngs)
        self.blocks = nnx.List([Block(config, stage=stage, index=i, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.downsample(x, train=train)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class GLNet(VisionModel[GLNetConfig]):
    """Stages, then a batch norm, the mean over the positions and a linear head."""

    def __init__(self, config: GLNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].downsample, "embedding")
        self.norm = BatchNorm(config.dims[-1], dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1], train=train).astype(jnp.float32).mean((1, 2))


def _downsample(config: GLNetConfig, stage: int, rngs: nnx.Rngs) -> DeepStem | Transition:
    in_dim, dim, dtype = (config.dims[stage - 1] if stage else config.in_channels), config.dims[stage], config.dtype
    if config.swin_layout:
        return Transition(
            in_dim, dim, kernel_size=2 if stage else 4, stride=2 if stage else 4, norm_first=stage > 0, dtype=dtype, rngs=rngs
        )
    return Transition(in_dim, dim, dtype=dtype, rngs=rngs) if stage else DeepStem(in_dim, dim, dtype=dtype, rngs=rngs)


FAMILY = Family(GLNet, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
