"""InLine-Swin (Han et al., arXiv:2412.06590): Swin with global linear attention in early blocks.

Follows the authors' code, whose windows of injective linear attention are as large as the first map
at 224 pixels. Here these blocks attend to the whole map at any size. All other blocks, and the
padding of odd sizes, are Swin's.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Rate, Ratio, Side
from vitlab.layers import DropPath, LayerNorm, Linear, Mlp, PatchEmbed, PatchMerging, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.inline import InLineAttention
from vitlab.mixers.window_attention import WindowAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class InLineSwinConfig(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    inline_depths: tuple[CountOrZero, ...]  # the first so many blocks of each stage have linear attention, the others windows
    patch_size: Side = 4  # pixels per side
    window_size: Side = 7  # tokens per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    implementation: str | None = None  # a key of window_attention.QKV_IMPLEMENTATIONS; None: the first that can run
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "num_heads", "inline_depths")

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))


# The authors' cfgs/inline_swin_*.yaml.
VARIANTS = {
    "inline_swin_tiny": InLineSwinConfig(
        dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), inline_depths=(2, 2, 6, 0), drop_path_rate=0.2
    ),
    "inline_swin_small": InLineSwinConfig(
        dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), inline_depths=(2, 2, 0, 0), drop_path_rate=0.3
    ),
    "inline_swin_base": InLineSwinConfig(
        dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), inline_depths=(2, 2, 2, 0), drop_path_rate=0.5
    ),
}
_SOURCE = "github.com/LeapLabTHU/InLine README; counts: on the authors' code"
PUBLISHED = {
    "inline_swin_tiny": Published(params=29_223_544, gmacs=4.46, top1=82.4, source=_SOURCE),
    "inline_swin_small": Published(params_m=49.793, gmacs=8.72, top1=83.6, source=_SOURCE),
    "inline_swin_base": Published(params_m=88.35, gmacs=15.4, top1=84.1, source=_SOURCE),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x)).

    Every second block with windows shifts them.
    """

    def __init__(self, config: InLineSwinConfig, *, stage: int, index: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, heads, dtype = config.dims[stage], config.num_heads[stage], config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        if index < config.inline_depths[stage]:
            self.attn = InLineAttention(dim, num_heads=heads, dtype=dtype, rngs=rngs)
        else:
            self.attn = WindowAttention(
                dim,
                num_heads=heads,
                window_size=config.window_size,
                shift=config.window_size // 2 if index % 2 else 0,
                implementation=config.implementation,
                dtype=dtype,
                rngs=rngs,
            )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class Stage(nnx.Module):
    """Patch merging (except in the first stage), then the blocks."""

    def __init__(self, config: InLineSwinConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = PatchMerging(config.dims[stage - 1], eps=EPS, dtype=config.dtype, rngs=rngs) if stage else None
        self.blocks = nnx.List([Block(config, stage=stage, index=i, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class InLineSwin(VisionModel[InLineSwinConfig]):
    """Stages, then a norm, the mean over the tokens and a linear head."""

    def __init__(self, config: InLineSwinConfig, *, rngs: nnx.Rngs):
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


FAMILY = Family(InLineSwin, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.layers))
