"""Swin Transformer (Liu et al., arXiv:2103.14030).

Follows the authors' code. Any image size: the image is padded to whole patches and each map to
whole windows, as in the authors' detection code; see `WindowAttention` and `PatchMerging`.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import DropPath, LayerNorm, Linear, Mlp, PatchEmbed, PatchMerging, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.roles import declare, stage_layers
from vitlab.layers.tensor_split import TENSOR_SPLIT
from vitlab.mixers.window_attention import WindowAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinConfig(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    patch_size: Side = 4  # pixels per side
    window_size: Side = 7  # tokens per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    implementation: str | None = None  # a key of window_attention.QKV_IMPLEMENTATIONS; None: the first that can run
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "num_heads")

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))


# arXiv:2103.14030 section 3.3. Drop path rates are from the authors' configs/swin/*.yaml (large:
# their ImageNet-22k fine-tuning).
VARIANTS = {
    "swin_tiny": SwinConfig(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.2),
    "swin_small": SwinConfig(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3),
    "swin_base": SwinConfig(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
    "swin_large": SwinConfig(dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), drop_path_rate=0.2),
}
_SOURCE = "github.com/microsoft/Swin-Transformer README; counts: timm 1.0.31"
PUBLISHED = {
    "swin_tiny": Published(params=28_288_354, gmacs=4.49, top1=81.2, source=_SOURCE),
    "swin_small": Published(params=49_606_258, gmacs=8.74, top1=83.2, source=_SOURCE),
    "swin_base": Published(params=87_768_224, gmacs=15.43, top1=83.5, source=_SOURCE),
    "swin_large": Published(params=196_532_476, gmacs=34.5, top1=86.3, source=_SOURCE + "; top-1 after ImageNet-22k"),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x)).

    Every second block shifts its windows.
    """

    def __init__(self, config: SwinConfig, *, stage: int, shifted: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = WindowAttention(
            dim,
            num_heads=config.num_heads[stage],
            window_size=config.window_size,
            shift=config.window_size // 2 if shifted else 0,
            implementation=config.implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = self.drop_path.add(x, self.attn, norm=self.norm1, train=train, rngs=rngs)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class Stage(nnx.Module):
    """Patch merging (except in the first stage), then the blocks."""

    def __init__(self, config: SwinConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        merge = PatchMerging(config.dims[stage - 1], eps=EPS, dtype=config.dtype, rngs=rngs) if stage else None
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


class Swin(VisionModel[SwinConfig]):
    """Stages of shifted-window blocks, then a norm, the mean over tokens and a linear head."""

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
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


FAMILY = Family(Swin, VARIANTS, PUBLISHED, TENSOR_SPLIT, layers=lambda m: stage_layers(m.layers))
