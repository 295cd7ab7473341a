"""Swin Transformer V2 (Liu et al., arXiv:2111.09883).

Follows the authors' code. Any image size, as in Swin. Windows have at most the side of the stage's
map at the configured `image_size`, which also sets the scale of the continuous bias.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side, SideOrZero
from vitlab.layers import DropPath, LayerNorm, Linear, Mlp, PatchEmbed, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.patch_merging import PatchMerging
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.cosine_window import CosineWindowAttention
from vitlab.models.contract import Images, ImageSize, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinV2Config(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    patch_size: Side = 4  # pixels per side
    window_size: Side = 8  # tokens per side
    pretrained_window_sizes: tuple[SideOrZero, ...] | None = None  # window sides of a fine-tuned checkpoint, per stage; None: this one's
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    implementation: str | None = None  # a key of window_attention.IMPLEMENTATIONS; None: the first that can run
    image_size: ImageSize = (256, 256)
    drop_path_rate: Rate = 0.2

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "num_heads")
        if self.pretrained_window_sizes is not None:
            self.check_stages("depths", "pretrained_window_sizes")

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))

    def window_of(self, stage: int) -> int:
        """Returns the tokens per side of a stage's window."""
        return min(self.window_size, -(-max(self.image_size) // (self.patch_size * 2**stage)))


_TINY: dict[str, Any] = {"dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
_SMALL: dict[str, Any] = {"dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
_BASE: dict[str, Any] = {"dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
_LARGE: dict[str, Any] = {"dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}
_FROM_192: dict[str, Any] = {"pretrained_window_sizes": (12, 12, 12, 6)}
# arXiv:2111.09883 section 4.1 and the authors' configs/swinv2/*.yaml.
VARIANTS = {
    "swinv2_tiny_window8_256": SwinV2Config(**_TINY),
    "swinv2_tiny_window16_256": SwinV2Config(**_TINY, window_size=16),
    "swinv2_small_window8_256": SwinV2Config(**_SMALL, drop_path_rate=0.3),
    "swinv2_small_window16_256": SwinV2Config(**_SMALL, window_size=16, drop_path_rate=0.3),
    "swinv2_base_window8_256": SwinV2Config(**_BASE),
    "swinv2_base_window16_256": SwinV2Config(**_BASE, window_size=16),
    "swinv2_base_window12_192": SwinV2Config(**_BASE, window_size=12, image_size=(192, 192)),
    "swinv2_base_window12to16_192to256": SwinV2Config(**_BASE, window_size=16, **_FROM_192),
    "swinv2_base_window12to24_192to384": SwinV2Config(**_BASE, window_size=24, image_size=(384, 384), **_FROM_192),
    "swinv2_large_window12_192": SwinV2Config(**_LARGE, window_size=12, image_size=(192, 192)),
    "swinv2_large_window12to16_192to256": SwinV2Config(**_LARGE, window_size=16, **_FROM_192),
    "swinv2_large_window12to24_192to384": SwinV2Config(**_LARGE, window_size=24, image_size=(384, 384), **_FROM_192),
}
_SOURCE = "github.com/microsoft/Swin-Transformer README; counts: timm 1.0.31"
PUBLISHED = {
    "swinv2_tiny_window8_256": Published(params_m=28.35, top1=81.8, source=_SOURCE),
    "swinv2_tiny_window16_256": Published(params_m=28.35, top1=82.8, source=_SOURCE),
    "swinv2_small_window8_256": Published(params_m=49.73, top1=83.7, source=_SOURCE),
    "swinv2_small_window16_256": Published(params_m=49.73, top1=84.1, source=_SOURCE),
    "swinv2_base_window8_256": Published(params_m=87.92, gmacs=20.325, top1=84.2, source=_SOURCE),
    "swinv2_base_window16_256": Published(params_m=87.92, top1=84.6, source=_SOURCE),
    "swinv2_base_window12_192": Published(source=_SOURCE + "; published with an ImageNet-22k head only"),
    "swinv2_base_window12to16_192to256": Published(params_m=87.92, top1=86.2, source=_SOURCE + "; top-1 after ImageNet-22k"),
    "swinv2_base_window12to24_192to384": Published(params_m=87.92, top1=87.1, source=_SOURCE + "; top-1 after ImageNet-22k"),
    "swinv2_large_window12_192": Published(source=_SOURCE + "; published with an ImageNet-22k head only"),
    "swinv2_large_window12to16_192to256": Published(params_m=196.74, top1=86.9, source=_SOURCE + "; top-1 after ImageNet-22k"),
    "swinv2_large_window12to24_192to384": Published(params_m=196.74, top1=87.6, source=_SOURCE + "; top-1 after ImageNet-22k"),
}


class Block(nnx.Module):
    """Res-post-norm block: x + norm1(attn(x)), then x + norm2(mlp(x)).

    Every second block shifts its windows.
    """

    def __init__(self, config: SwinV2Config, *, stage: int, shifted: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, window = config.dims[stage], config.dtype, config.window_of(stage)
        self.attn = CosineWindowAttention(
            dim,
            num_heads=config.num_heads[stage],
            window_size=window,
            shift=window // 2 if shifted else 0,
            pretrained_window_size=None if config.pretrained_window_sizes is None else config.pretrained_window_sizes[stage],
            implementation=config.implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.norm1(self.attn(x)), train=train, rngs=rngs)
        return x + self.drop_path(self.norm2(self.mlp(x)), train=train, rngs=rngs)


class Stage(nnx.Module):
    """Patch merging (except in the first stage), then the blocks."""

    def __init__(self, config: SwinV2Config, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        merge = PatchMerging(config.dims[stage - 1], norm_last=True, eps=EPS, dtype=config.dtype, rngs=rngs) if stage else None
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = merge
        self.blocks = nnx.List(
            [Block(config, stage=stage, shifted=i % 2 == 1, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)]
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class SwinV2(VisionModel[SwinV2Config]):
    """Stages of shifted-window blocks, then a norm, the mean over tokens and a linear head."""

    def __init__(self, config: SwinV2Config, *, rngs: nnx.Rngs):
        self.config = config
        dtype = config.dtype
        self.patch_embed = PatchEmbed(config.in_channels, config.dim, patch_size=config.patch_size, norm_eps=EPS, dtype=dtype, rngs=rngs)
        declare(self.patch_embed, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.layers = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=self.config.patch_size * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        x = self.patch_embed(pad_to_multiple(self.checked(images), self.config.patch_size))
        return run_stages(self.layers, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised tokens of the last map, in float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


FAMILY = Family(SwinV2, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.layers))
