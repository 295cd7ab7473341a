"""PVT v2 (Wang et al., arXiv:2106.13797): PVT with overlapping patches, convolutions in the MLPs,
and no positions.

Follows the authors' code; the linear form (`pvt_v2_b2_li`) attends to a pooled map of 7 x 7. Any
image of at least 29 pixels a side.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import ConvMlp, DropPath, LayerNorm, Linear, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.patch_embed import OverlapPatchEmbed
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.spatial_reduction import SpatialReductionAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of the LayerNorms of blocks and stages
EMBED_EPS = 1e-5  # epsilon of the LayerNorms of the patches


@dataclasses.dataclass(frozen=True, kw_only=True)
class PVTV2Config(VisionConfig):
    depths: tuple[Depth, ...]  # blocks per stage
    dims: tuple[Count, ...] = (64, 128, 320, 512)  # width per stage
    num_heads: tuple[Count, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[Side, ...] = (8, 4, 2, 1)  # tokens per side of a cell of keys, per stage; 1: every token is a key
    mlp_ratios: tuple[Ratio, ...] = (8.0, 8.0, 4.0, 4.0)  # MLP hidden width / dim, per stage
    pool_size: Side | None = None  # cells of keys per side in every stage, in place of sr_ratios: the linear form
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads", "sr_ratios", "mlp_ratios")

    @property
    def min_size(self) -> int:
        stages = enumerate(self.sr_ratios) if self.pool_size is None else ()
        return max((4 * 2**i * (ratio - 1) + 1 for i, ratio in stages), default=1)  # a cell of each stage


_DEEP = (3, 6, 40, 3)
# arXiv:2106.13797 table 1; drop path: the authors' configs/pvt_v2/*.py.
VARIANTS = {
    "pvt_v2_b0": PVTV2Config(depths=(2, 2, 2, 2), dims=(32, 64, 160, 256)),
    "pvt_v2_b1": PVTV2Config(depths=(2, 2, 2, 2)),
    "pvt_v2_b2": PVTV2Config(depths=(3, 4, 6, 3)),
    "pvt_v2_b2_li": PVTV2Config(depths=(3, 4, 6, 3), pool_size=7),
    "pvt_v2_b3": PVTV2Config(depths=(3, 4, 18, 3), drop_path_rate=0.3),
    "pvt_v2_b4": PVTV2Config(depths=(3, 8, 27, 3), drop_path_rate=0.3),
    "pvt_v2_b5": PVTV2Config(depths=_DEEP, mlp_ratios=(4.0, 4.0, 4.0, 4.0), drop_path_rate=0.3),
}
_SOURCE = "github.com/whai362/PVT README; counts: timm 1.0.31"
PUBLISHED = {
    "pvt_v2_b0": Published(params=3_666_760, gmacs=0.566, top1=70.5, source=_SOURCE),
    "pvt_v2_b1": Published(params=14_009_000, gmacs=2.108, top1=78.7, source=_SOURCE),
    "pvt_v2_b2": Published(params=25_362_856, gmacs=4.027, top1=82.0, source=_SOURCE),
    "pvt_v2_b2_li": Published(params=22_553_512, gmacs=3.889, top1=82.1, source=_SOURCE),
    "pvt_v2_b3": Published(params=45_238_696, gmacs=6.897, top1=83.1, source=_SOURCE),
    "pvt_v2_b4": Published(params=62_556_072, gmacs=10.101, top1=83.6, source=_SOURCE),
    "pvt_v2_b5": Published(params=81_956_008, gmacs=11.717, top1=83.8, source=_SOURCE),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x)), a convolution inside the MLP."""

    def __init__(self, config: PVTV2Config, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = SpatialReductionAttention(
            dim,
            num_heads=config.num_heads[stage],
            sr_ratio=config.sr_ratios[stage],
            pool_size=config.pool_size,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        mlp_dim, relu = int(dim * config.mlp_ratios[stage]), config.pool_size is not None
        self.mlp = ConvMlp(dim, mlp_dim=mlp_dim, relu=relu, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class Stage(nnx.Module):
    """Patches, the blocks, norm."""

    def __init__(self, config: PVTV2Config, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        in_dim = config.dims[stage - 1] if stage else config.in_channels
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = OverlapPatchEmbed(in_dim, dim, stride=2 if stage else 4, eps=EMBED_EPS, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.downsample(x)
        return self.norm(run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs))


class PVTV2(VisionModel[PVTV2Config]):
    """Stages; mean over the tokens, linear head."""

    def __init__(self, config: PVTV2Config, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].downsample, "embedding")
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=True) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The normalised map at the end of each stage."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean over the tokens of the last map; float32."""
        return features[-1].astype(jnp.float32).mean((1, 2))


FAMILY = Family(PVTV2, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
