"""NAT (Hassani et al., arXiv:2204.07143), DiNAT and DiNAT_s (arXiv:2209.15001).

Neighborhood Attention Transformers. Follows the authors' code. Any image size; DiNAT's dilations
are those of the published size, and a map smaller than a dilated window is padded as in
`NeighborhoodAttention`. DiNAT_s has Swin's patches and merging, the isotropic networks have one
stage. The authors' baseline ViT with relative positions (vitrpb) is left out. Convolutions start
with He's normal distribution instead of torch's uniform default.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import (
    Conv,
    DropPath,
    LayerNorm,
    LayerScale,
    Linear,
    Mlp,
    PatchEmbed,
    PatchMerging,
    Remat,
    run_blocks,
    stage_drop_path_rates,
)
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.neighborhood import NeighborhoodAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class NATConfig(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    mlp_ratio: Ratio = 3.0  # MLP hidden width / dim
    kernel_size: Side = 7  # side of the attention window, in tokens
    dilations: tuple[Side, ...] = (1, 1, 1, 1)  # dilation of every second block, per stage; the other blocks are not dilated
    layer_scale_init: float | None = None  # initial factor on the residual branches; None: no factor
    embedding: Literal["conv", "patch"] = "conv"  # "conv": overlapping convolutions; "patch": patches and Swin's merging
    patch_size: Side = 4  # pixels per side
    implementation: str | None = None  # a key of neighborhood_attention.IMPLEMENTATIONS; None: the first that can run
    drop_path_rate: Rate = 0.2
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "num_heads")
        if len(self.dilations) < len(self.depths):
            raise ValueError(f"dilations={self.dilations} must have an entry for each stage of depths={self.depths}")
        if self.embedding == "conv" and self.patch_size != 4:
            raise ValueError(f"patch_size={self.patch_size} of the convolutional embedding must be 4")

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))


_MINI: dict[str, Any] = {"dim": 64, "depths": (3, 4, 6, 5), "num_heads": (2, 4, 8, 16)}
_TINY: dict[str, Any] = {"dim": 64, "depths": (3, 4, 18, 5), "num_heads": (2, 4, 8, 16)}
_SMALL: dict[str, Any] = {"dim": 96, "depths": (3, 4, 18, 5), "num_heads": (3, 6, 12, 24), "mlp_ratio": 2.0, "drop_path_rate": 0.3}
_BASE: dict[str, Any] = {"dim": 128, "depths": (3, 4, 18, 5), "num_heads": (4, 8, 16, 32), "mlp_ratio": 2.0, "drop_path_rate": 0.5}
_LARGE: dict[str, Any] = {"dim": 192, "depths": (3, 4, 18, 5), "num_heads": (6, 12, 24, 48), "mlp_ratio": 2.0, "drop_path_rate": 0.35}
_DILATED: dict[str, Any] = {"dilations": (8, 4, 2, 1)}
_AT_384: dict[str, Any] = {"dilations": (13, 6, 3, 1), "image_size": (384, 384)}
_S_TINY: dict[str, Any] = {"dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "mlp_ratio": 4.0, "embedding": "patch"}
_S_SMALL: dict[str, Any] = {**_S_TINY, "depths": (2, 2, 18, 2), "drop_path_rate": 0.3}
_S_BASE: dict[str, Any] = {**_S_SMALL, "dim": 128, "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
_S_LARGE: dict[str, Any] = {**_S_SMALL, "dim": 192, "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.35}
_ISO: dict[str, Any] = {"depths": (12,), "mlp_ratio": 4.0, "embedding": "patch", "patch_size": 16}
_ISO_SMALL: dict[str, Any] = {**_ISO, "dim": 384, "num_heads": (12,), "drop_path_rate": 0.1}
_ISO_BASE: dict[str, Any] = {**_ISO, "dim": 768, "num_heads": (24,), "drop_path_rate": 0.4}
# arXiv:2204.07143 table 2, arXiv:2209.15001 tables 1 and 4, and the authors'
# classification/{nat,dinat,dinats,isotropic}.py, which gave DiNAT_s-Large 4, 8, 16, 32 heads until
# their commit 4a39ab6 corrected it.
VARIANTS = {
    "nat_mini": NATConfig(**_MINI),
    "nat_tiny": NATConfig(**_TINY),
    "nat_small": NATConfig(**_SMALL, layer_scale_init=1e-5),
    "nat_base": NATConfig(**_BASE, layer_scale_init=1e-5),
    "nat_isotropic_small": NATConfig(**_ISO_SMALL),
    "nat_isotropic_base": NATConfig(**_ISO_BASE),
    "dinat_mini": NATConfig(**_MINI, **_DILATED),
    "dinat_tiny": NATConfig(**_TINY, **_DILATED),
    "dinat_small": NATConfig(**_SMALL, **_DILATED),
    "dinat_base": NATConfig(**_BASE, **_DILATED, layer_scale_init=1e-5),
    "dinat_large": NATConfig(**_LARGE, **_DILATED),
    "dinat_large_384": NATConfig(**_LARGE, **_AT_384),
    "dinat_large_384_11x11": NATConfig(**_LARGE, **_DILATED, kernel_size=11, image_size=(384, 384)),
    "dinat_s_tiny": NATConfig(**_S_TINY, **_DILATED),
    "dinat_s_small": NATConfig(**_S_SMALL, **_DILATED),
    "dinat_s_base": NATConfig(**_S_BASE, **_DILATED),
    "dinat_s_large": NATConfig(**_S_LARGE, **_DILATED),
    "dinat_s_large_384": NATConfig(**_S_LARGE, **_AT_384),
    "dinat_isotropic_small": NATConfig(**_ISO_SMALL, dilations=(2,)),
    "dinat_isotropic_base": NATConfig(**_ISO_BASE, dilations=(2,)),
}
_SOURCE = "github.com/SHI-Labs/Neighborhood-Attention-Transformer NAT.md, DiNAT.md; parameters counted on the authors' code"
_IN22K = _SOURCE + "; top-1 after ImageNet-22k"
PUBLISHED = {
    "nat_mini": Published(params=19_984_174, gmacs=2.7, top1=81.8, source=_SOURCE),
    "nat_tiny": Published(params_m=27.9, gmacs=4.3, top1=83.2, source=_SOURCE),
    "nat_small": Published(params_m=50.74, gmacs=7.8, top1=83.7, source=_SOURCE),
    "nat_base": Published(params_m=89.77, gmacs=13.7, top1=84.3, source=_SOURCE),
    "nat_isotropic_small": Published(params_m=22.0, gmacs=4.3, top1=80.0, source=_SOURCE),
    "nat_isotropic_base": Published(params=86_465_800, gmacs=16.9, top1=81.6, source=_SOURCE + " (README: 86 M, cut off)"),
    "dinat_mini": Published(params=19_984_174, gmacs=2.7, top1=81.8, source=_SOURCE),
    "dinat_tiny": Published(params_m=27.9, gmacs=4.3, top1=82.7, source=_SOURCE),
    "dinat_small": Published(params_m=50.72, gmacs=7.8, top1=83.8, source=_SOURCE),
    "dinat_base": Published(params_m=89.77, gmacs=13.7, top1=84.4, source=_SOURCE),
    "dinat_large": Published(params_m=200.94, gmacs=30.6, top1=86.6, source=_IN22K),
    "dinat_large_384": Published(params_m=200.94, gmacs=89.7, top1=87.4, source=_IN22K),
    "dinat_large_384_11x11": Published(gmacs=92.4, top1=87.5, source=_IN22K + " (README: 200 M, which is the smaller kernel's)"),
    "dinat_s_tiny": Published(params_m=28.29, gmacs=4.5, top1=81.8, source=_SOURCE),
    "dinat_s_small": Published(params_m=49.61, gmacs=8.7, top1=83.5, source=_SOURCE),
    "dinat_s_base": Published(params_m=87.77, gmacs=15.4, top1=83.8, source=_SOURCE),
    "dinat_s_large": Published(params_m=196.5, gmacs=34.5, top1=86.5, source=_IN22K),
    "dinat_s_large_384": Published(params_m=196.5, gmacs=101.5, top1=87.4, source=_IN22K),
    "dinat_isotropic_small": Published(params_m=22.0, gmacs=4.3, top1=80.8, source=_SOURCE),
    "dinat_isotropic_base": Published(params=86_465_800, gmacs=16.9, top1=82.1, source=_SOURCE + " (README: 86 M, cut off)"),
}


class Block(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); every second block is dilated."""

    def __init__(self, config: NATConfig, *, stage: int, index: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, init = config.dims[stage], config.dtype, config.layer_scale_init
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = NeighborhoodAttention(
            dim,
            num_heads=config.num_heads[stage],
            kernel_size=config.kernel_size,
            dilation=config.dilations[stage] if index % 2 else 1,
            implementation=config.implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls1, self.ls2 = (None if init is None else LayerScale(dim, init=init) for _ in range(2))
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.ls1 is None else self.ls1(y), train=train, rngs=rngs)
        if self.ls2 is None:
            return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)
        return x + self.drop_path(self.ls2(self.mlp(x, norm=self.norm2)), train=train, rngs=rngs)


class ConvEmbed(nnx.Module):
    """Two strided 3x3 convolutions with nothing between, then a norm."""

    def __init__(self, in_channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = Conv(in_channels, dim // 2, kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(dim // 2, dim, kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.conv2(self.conv1(x)))


class ConvMerging(nnx.Module):
    """A strided 3x3 convolution without bias, then a norm."""

    def __init__(self, dim: int, *, dtype, rngs: nnx.Rngs):
        self.reduction = Conv(dim, 2 * dim, kernel_size=3, stride=2, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(2 * dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.reduction(x))


class Stage(nnx.Module):
    """Merging (except in the first stage), then the blocks."""

    def __init__(self, config: NATConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = _merging(config, config.dims[stage - 1], rngs) if stage else None
        self.blocks = nnx.List([Block(config, stage=stage, index=i, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class NAT(VisionModel[NATConfig]):
    """An embedding and stages, then a norm, the mean over positions and a linear head."""

    def __init__(self, config: NATConfig, *, rngs: nnx.Rngs):
        self.config = config
        channels, dim, dtype = config.in_channels, config.dim, config.dtype
        self.patch_embed = (
            ConvEmbed(channels, dim, dtype=dtype, rngs=rngs)
            if config.embedding == "conv"
            else PatchEmbed(channels, dim, patch_size=config.patch_size, norm_eps=EPS, dtype=dtype, rngs=rngs)
        )
        declare(self.patch_embed, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.levels = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=self.config.patch_size * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        x = self.checked(images)
        x = self.patch_embed(x if self.config.embedding == "conv" else pad_to_multiple(x, self.config.patch_size))
        return run_stages(self.levels, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


def _merging(config: NATConfig, dim: int, rngs: nnx.Rngs) -> ConvMerging | PatchMerging:
    if config.embedding == "conv":
        return ConvMerging(dim, dtype=config.dtype, rngs=rngs)
    return PatchMerging(dim, eps=EPS, dtype=config.dtype, rngs=rngs)


FAMILY = Family(NAT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.levels))
