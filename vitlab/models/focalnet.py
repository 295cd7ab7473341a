"""Focal Modulation Networks (Yang et al., arXiv:2203.11926).

Follows the authors' code. Their configuration of large_fl4 sets NORMALIZE_MODULATOR, a division of
the context by the number of levels; timm, which has that checkpoint, does without it, and so does
this.

Any image of at least one patch: what exceeds whole patches at the bottom and right is not seen.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import Conv, DropPath, LayerNorm, LayerScale, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.focal_modulation import FocalModulation
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class FocalNetConfig(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    levels: Depth = 2  # number of convolutional focal levels
    kernel_size: Side = 3  # side of the first level's kernel, in tokens; odd
    patch_size: Side = 4  # pixels per side
    overlapping: bool = False  # True: 7x7 stem and 3x3 down-sampling instead of patches
    post_norm: bool = False  # True: norms after the branches instead of before
    norm_in_modulation: bool = False  # True: one more LayerNorm, on the modulated query
    layer_scale_init: float | None = None  # initial factor on the residual branches; None: no factor
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd")

    @property
    def min_size(self) -> int:
        return 3 if self.overlapping else self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))


_TINY: dict[str, Any] = {"dim": 96, "depths": (2, 2, 6, 2)}
_SMALL: dict[str, Any] = {"dim": 96, "depths": (2, 2, 18, 2)}
_BASE: dict[str, Any] = {"dim": 128, "depths": (2, 2, 18, 2)}
_BIG: dict[str, Any] = {"depths": (2, 2, 18, 2), "overlapping": True, "post_norm": True, "layer_scale_init": 1e-4, "drop_path_rate": 0.5}
_ISO: dict[str, Any] = {"depths": (12,), "patch_size": 16, "levels": 3, "drop_path_rate": 0.2}
# The authors' classification/focalnet.py and configs; srf: arXiv:2203.11926 table 1; iso: table 8;
# large and wider: section 4.
VARIANTS = {
    "focalnet_tiny_srf": FocalNetConfig(**_TINY, drop_path_rate=0.2),
    "focalnet_tiny_lrf": FocalNetConfig(**_TINY, levels=3, drop_path_rate=0.2),
    "focalnet_small_srf": FocalNetConfig(**_SMALL, drop_path_rate=0.3),
    "focalnet_small_lrf": FocalNetConfig(**_SMALL, levels=3, drop_path_rate=0.3),
    "focalnet_base_srf": FocalNetConfig(**_BASE, drop_path_rate=0.5),
    "focalnet_base_lrf": FocalNetConfig(**_BASE, levels=3, drop_path_rate=0.5),
    "focalnet_large_fl3": FocalNetConfig(dim=192, levels=3, kernel_size=5, **_BIG),
    "focalnet_large_fl4": FocalNetConfig(dim=192, levels=4, **_BIG),
    "focalnet_xlarge_fl3": FocalNetConfig(dim=256, levels=3, kernel_size=5, **_BIG),
    "focalnet_xlarge_fl4": FocalNetConfig(dim=256, levels=4, **_BIG),
    "focalnet_huge_fl3": FocalNetConfig(dim=352, levels=3, norm_in_modulation=True, **_BIG),
    "focalnet_huge_fl4": FocalNetConfig(dim=352, levels=4, norm_in_modulation=True, **_BIG),
    "focalnet_iso_tiny": FocalNetConfig(dim=192, **_ISO),
    "focalnet_iso_small": FocalNetConfig(dim=384, **_ISO),
    "focalnet_iso_base": FocalNetConfig(dim=768, post_norm=True, layer_scale_init=1e-4, **_ISO),
}
_SOURCE = "github.com/microsoft/FocalNet README"
_IN22K = _SOURCE + "; published with ImageNet-22k heads only"
PUBLISHED = {
    "focalnet_tiny_srf": Published(params=28_427_116, gmacs=4.40, top1=82.1, source=_SOURCE),
    "focalnet_tiny_lrf": Published(params_m=28.648, gmacs=4.48, top1=82.3, source=_SOURCE),
    "focalnet_small_srf": Published(params_m=49.891, gmacs=8.60, top1=83.4, source=_SOURCE),
    "focalnet_small_lrf": Published(params_m=50.342, gmacs=8.72, top1=83.5, source=_SOURCE),
    "focalnet_base_srf": Published(params_m=88.148, gmacs=15.24, top1=83.7, source=_SOURCE),
    "focalnet_base_lrf": Published(params_m=88.750, gmacs=15.40, top1=83.9, source=_SOURCE),
    "focalnet_large_fl3": Published(params_m=207.0, gmacs=35.7, source=_IN22K),
    "focalnet_large_fl4": Published(params_m=207.0, source=_IN22K),
    "focalnet_xlarge_fl3": Published(params_m=366.0, source=_IN22K),
    "focalnet_xlarge_fl4": Published(params_m=366.0, source=_IN22K),
    "focalnet_huge_fl3": Published(source=_IN22K),
    "focalnet_huge_fl4": Published(source=_IN22K),
    "focalnet_iso_tiny": Published(params_m=5.9, gmacs=1.1, top1=74.1, source=_SOURCE),
    "focalnet_iso_small": Published(params_m=22.4, gmacs=4.3, top1=80.9, source=_SOURCE),
    "focalnet_iso_base": Published(params_m=87.2, gmacs=16.9, top1=82.4, source=_SOURCE),
}


class Block(nnx.Module):
    """x + modulation(norm1(x)), then x + mlp(norm2(x)).

    With `post_norm` the norms follow the branches.
    """

    def __init__(self, config: FocalNetConfig, *, dim: int, drop_path_rate: float, rngs: nnx.Rngs):
        dtype, init = config.dtype, config.layer_scale_init
        self.post_norm = config.post_norm
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.modulation = FocalModulation(
            dim,
            levels=config.levels,
            kernel_size=config.kernel_size,
            norm_eps=EPS if config.norm_in_modulation else None,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls1, self.ls2 = (None if init is None else LayerScale(dim, init=init) for _ in range(2))
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        for norm, branch, scale in ((self.norm1, self.modulation, self.ls1), (self.norm2, self.mlp, self.ls2)):
            y = norm(branch(x)) if self.post_norm else branch(norm(x))
            x = x + self.drop_path(y if scale is None else scale(y), train=train, rngs=rngs)
        return x


class Downsample(nnx.Module):
    """A convolution, then a norm: the stem and the transitions."""

    def __init__(self, in_dim: int, dim: int, *, kernel_size: int, stride: int, padding: int, dtype, rngs: nnx.Rngs):
        self.proj = Conv(in_dim, dim, kernel_size=kernel_size, stride=stride, padding=padding, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.proj(x))


class Stage(nnx.Module):
    """Down-sampling (except in the first stage), then the blocks."""

    def __init__(self, config: FocalNetConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim, kernel = config.dims[stage], 3 if config.overlapping else 2
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = (
            Downsample(config.dims[stage - 1], dim, kernel_size=kernel, stride=2, padding=kernel - 2, dtype=config.dtype, rngs=rngs)
            if stage
            else None
        )
        self.blocks = nnx.List([Block(config, dim=dim, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class FocalNet(VisionModel[FocalNetConfig]):
    """Stages of focal modulation, then a norm, the mean over positions and a linear head.

    There is no position encoding.
    """

    def __init__(self, config: FocalNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        p = config.patch_size
        kernel, padding = (7, 2) if config.overlapping else (p, 0)
        self.stem = Downsample(config.in_channels, config.dim, kernel_size=kernel, stride=p, padding=padding, dtype=config.dtype, rngs=rngs)
        declare(self.stem, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.layers = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=self.config.patch_size * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        x = self.stem(self.checked(images))
        return run_stages(self.layers, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


FAMILY = Family(FocalNet, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.layers))
