"""Hiera (Ryali et al., arXiv:2306.00989), and its form with positions inside units
(arXiv:2311.05613).

A plain hierarchical transformer: its first two stages attend inside the units that pre-training
masks, the others globally, and the queries of a stage's first block are pooled. timm's code and the
authors' are one. Tokens stay on the map here; the authors sort them by units, which changes no
number. Positions of another image size are resampled, which the authors' code does not do.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Ratio
from vitlab.layers import Conv, DropPath, LayerNorm, LayerScale, Linear, Mlp, drop_path_rates, run_blocks
from vitlab.layers.initial import normal_init
from vitlab.layers.pos_embed import position_table, resample
from vitlab.layers.roles import declare
from vitlab.layers.tensor_split import TENSOR_SPLIT
from vitlab.mixers.mask_unit_attention import MaskUnitAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm
UNIT = 8  # tokens per side of a unit, before any pooling
STRIDE = 4  # pixels between tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class HieraConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Count, ...]  # blocks of each stage
    num_heads: tuple[Count, ...]  # heads of each stage
    unit_stages: CountOrZero = 2  # first stages, whose blocks attend inside units
    pos_grid: tuple[Count, Count] | None = None  # rows and columns of the positions' table; None: those of the image
    unit_pos: bool = False  # a second table, of a token's position in its unit
    widen: bool = True  # whether a linear map widens the tokens of a stage; False: their maxima and means, side by side
    layer_scale: Ratio | None = None  # initial factor of every branch; None: there is none

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("dims", "depths", "num_heads")
        if len(self.dims) > 4:
            raise ValueError(f"{len(self.dims)} stages must be 4 at most: units of {UNIT} tokens are halved three times")
        if not self.widen and any(b != 2 * a for a, b in zip(self.dims, self.dims[1:], strict=False)):
            raise ValueError(f"without widen each of dims={self.dims} must be twice the one before")

    @property
    def size_multiple(self) -> int:
        return STRIDE * UNIT

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // STRIDE, self.image_size[1] // STRIDE


_SMALL_HEADS, _LARGE_HEADS = (1, 2, 4, 8), (2, 4, 8, 16)
_TINY, _BASE, _LARGE = (96, 192, 384, 768), (112, 224, 448, 896), (144, 288, 576, 1152)
VARIANTS = {  # arXiv:2306.00989 Table 1; abswin: timm's, with the tables of arXiv:2311.05613
    "hiera_tiny": HieraConfig(dims=_TINY, depths=(1, 2, 7, 2), num_heads=_SMALL_HEADS),
    "hiera_small": HieraConfig(dims=_TINY, depths=(1, 2, 11, 2), num_heads=_SMALL_HEADS),
    "hiera_base": HieraConfig(dims=_TINY, depths=(2, 3, 16, 3), num_heads=_SMALL_HEADS),
    "hiera_base_plus": HieraConfig(dims=_BASE, depths=(2, 3, 16, 3), num_heads=_LARGE_HEADS),
    "hiera_large": HieraConfig(dims=_LARGE, depths=(2, 6, 36, 4), num_heads=_LARGE_HEADS),
    "hiera_huge": HieraConfig(dims=(256, 512, 1024, 2048), depths=(2, 6, 36, 4), num_heads=(4, 8, 16, 32)),
    "hiera_small_abswin": HieraConfig(
        dims=_TINY, depths=(1, 2, 11, 2), num_heads=_SMALL_HEADS, image_size=(256, 256), pos_grid=(16, 16), unit_pos=True, widen=False,
        layer_scale=1e-5,
    ),
    "hiera_base_abswin": HieraConfig(
        dims=_TINY, depths=(2, 3, 16, 3), num_heads=_SMALL_HEADS, image_size=(256, 256), pos_grid=(14, 14), unit_pos=True, layer_scale=1e-5
    ),
}  # fmt: skip


class Block(nnx.Module):
    """Pre-norm block; the first one of a later stage widens its tokens, and keeps one for 2 x 2."""

    def __init__(self, config: HieraConfig, *, stage: int, first: bool, drop_path_rate: float, rngs: nnx.Rngs):
        out_dim, dtype = config.dims[stage], config.dtype
        self.pooled = first and stage > 0
        dim, before = (config.dims[stage - 1], stage - 1) if self.pooled else (out_dim, stage)
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = MaskUnitAttention(
            dim,
            out_dim,
            num_heads=config.num_heads[stage],
            unit_size=UNIT // 2**before if before < config.unit_stages else None,
            pooled=self.pooled,
            dtype=dtype,
            rngs=rngs,
        )
        self.proj = Linear(dim, out_dim, dtype=dtype, rngs=rngs) if self.pooled and config.widen else None
        self.ls1 = None if config.layer_scale is None else LayerScale(out_dim, init=config.layer_scale)
        self.norm2 = LayerNorm(out_dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(out_dim, mlp_dim=4 * out_dim, dtype=dtype, rngs=rngs)
        self.ls2 = None if config.layer_scale is None else LayerScale(out_dim, init=config.layer_scale)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        normed = self.norm1(x)
        if self.pooled:
            wide = _cells(x if self.proj is None else self.proj(normed))
            x = wide.max((2, 4)) if self.proj is not None else jnp.concatenate((wide.max((2, 4)), wide.mean((2, 4))), -1)
        y = self.attn(normed)
        x = x + self.drop_path(y if self.ls1 is None else self.ls1(y), train=train, rngs=rngs)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.ls2 is None else self.ls2(y), train=train, rngs=rngs)


def _cells(x: Float[Array, "b h w c"]) -> Float[Array, "b rows 2 columns 2 c"]:
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c)


class Hiera(VisionModel[HieraConfig]):
    """Overlapping patches, positions, four stages of blocks, the mean, a norm, a linear head."""

    def __init__(self, config: HieraConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.dims[0], config.dtype
        conv = Conv(config.in_channels, dim, kernel_size=7, stride=STRIDE, padding=3, dtype=dtype, rngs=rngs)
        self.patch_embed = declare(conv, "embedding")
        self.pos_embed = declare(position_table(rngs.params(), config.pos_grid or config.grid, dim), "position", "embedding")
        self.unit_embed = (
            declare(nnx.Param(normal_init(rngs.params(), (1, UNIT, UNIT, dim))), "position", "embedding") if config.unit_pos else None
        )
        rates = iter(drop_path_rates(config.drop_path_rate, sum(config.depths)))
        self.blocks = nnx.List(
            [
                Block(config, stage=stage, first=i == 0, drop_path_rate=next(rates), rngs=rngs)
                for stage, depth in enumerate(config.depths)
                for i in range(depth)
            ]
        )
        self.norm = LayerNorm(config.dims[-1], eps=EPS, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=STRIDE * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The maps at the end of the stages."""
        x = self.patch_embed(self.checked(images))
        grid = x.shape[1], x.shape[2]
        position = resample(self.pos_embed[...], self.config.pos_grid or self.config.grid, grid).reshape(1, *grid, -1)
        if self.unit_embed is not None:
            position += jnp.tile(self.unit_embed[...], (1, grid[0] // UNIT, grid[1] // UNIT, 1))
        x, maps, start = x + position.astype(x.dtype), [], 0
        for depth in self.config.depths:
            blocks = self.blocks[start : start + depth]
            x = run_blocks(blocks, x, remat=self.config.remat, scan=self.config.scan_blocks, train=train, rngs=rngs)
            maps.append(x)
            start += depth
        return Features(maps)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean of the last map, normalised; float32."""
        return self.norm(features[-1].astype(jnp.float32).mean((1, 2)))


# Counts: timm 1.0.31. Top-1: hiera README.md, ImageNet-1k.
_HIERA = "hiera README.md, MAE pre-training, ImageNet-1k"
PUBLISHED = {
    "hiera_tiny": Published(params=27_910_216, top1=82.8, source=_HIERA),
    "hiera_small": Published(params=35_008_072, top1=83.8, source=_HIERA),
    "hiera_base": Published(params=51_524_968, top1=84.5, source=_HIERA),
    "hiera_base_plus": Published(params=69_896_616, top1=85.2, source=_HIERA),
    "hiera_large": Published(params=213_739_912, top1=86.1, source=_HIERA),
    "hiera_huge": Published(params=672_779_752, top1=86.9, source=_HIERA),
    "hiera_small_abswin": Published(params=34_361_800, source="timm 1.0.31; no figure"),
    "hiera_base_abswin": Published(params=51_267_304, source="timm 1.0.31; no figure"),
}
FAMILY = Family(Hiera, VARIANTS, PUBLISHED, TENSOR_SPLIT, layers=lambda m: m.blocks)
