"""Pyramid Vision Transformer (PVT, Wang et al., arXiv:2102.12122): four stages of attention to a
reduced map.

Follows the authors' code: a class token joins the last stage, and the head sees only it. Any image
of at least 32 pixels a side; positions are resized (bilinear).
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import DropPath, LayerNorm, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.initial import normal_init
from vitlab.layers.placed_patches import PlacedPatches
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.spatial_reduction import SpatialReductionAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of the LayerNorms of the blocks and the last one
PATCH = 4  # pixels between the tokens of the first stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class PVTConfig(VisionConfig):
    depths: tuple[Depth, ...]  # blocks per stage
    dims: tuple[Count, ...] = (64, 128, 320, 512)  # width per stage
    num_heads: tuple[Count, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[Side, ...] = (8, 4, 2, 1)  # tokens per side of a cell of keys, per stage; 1 in the last one
    mlp_ratios: tuple[Ratio, ...] = (8.0, 8.0, 4.0, 4.0)  # MLP hidden width / dim, per stage
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads", "sr_ratios", "mlp_ratios")
        if self.sr_ratios[-1] != 1:
            raise ValueError(f"sr_ratios={self.sr_ratios} must end in 1: the last stage has a class token beside its map")

    @property
    def min_size(self) -> int:
        stages = enumerate(self.sr_ratios)
        return max((PATCH * 2**i * ratio for i, ratio in stages), default=1)  # a cell of each stage, a patch of the last

    def grid(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's map at the model's image size."""
        return self.image_size[0] // (PATCH * 2**stage), self.image_size[1] // (PATCH * 2**stage)


# arXiv:2102.12122 table 1; drop path: the authors' configs/pvt/*.py.
VARIANTS = {
    "pvt_tiny": PVTConfig(depths=(2, 2, 2, 2)),
    "pvt_small": PVTConfig(depths=(3, 4, 6, 3)),
    "pvt_medium": PVTConfig(depths=(3, 4, 18, 3), drop_path_rate=0.3),
    "pvt_large": PVTConfig(depths=(3, 8, 27, 3), drop_path_rate=0.3),
}
_SOURCE = "github.com/whai362/PVT README and arXiv:2102.12122 table 2; counts: on the authors' code"
PUBLISHED = {
    "pvt_tiny": Published(params=13_229_288, gmacs=1.933, top1=75.1, source=_SOURCE),
    "pvt_small": Published(params=24_485_864, gmacs=3.816, top1=79.8, source=_SOURCE),
    "pvt_medium": Published(params=44_208_104, gmacs=6.659, top1=81.2, source=_SOURCE),
    "pvt_large": Published(params=61_369_320, gmacs=9.814, top1=81.7, source=_SOURCE),
}


class Block(nnx.Module):
    """Pre-norm block on tokens: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: PVTConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = SpatialReductionAttention(
            dim, num_heads=config.num_heads[stage], sr_ratio=config.sr_ratios[stage], dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratios[stage]), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b n d"], *, grid: tuple[int, int], train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        x = x + self.drop_path(self.attn.tokens(self.norm1(x), grid), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class Stage(nnx.Module):
    """Patches with positions, a class token before them in the last stage, then the blocks."""

    def __init__(self, config: PVTConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim = config.dims[stage]
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.embed = PlacedPatches(
            config.dims[stage - 1] if stage else config.in_channels,
            dim,
            patch_size=2 if stage else PATCH,
            grid=config.grid(stage),
            prefix=stage == len(config.dims) - 1,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(
        self, x: Float[Array, "b h w c"], *token: Float[Array, "1 1 d"], train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b n d"], tuple[int, int]]:
        """All tokens, and the rows and columns of those that are of the map, the last ones."""
        x = self.embed(x)
        b, h, w, d = x.shape
        x = x.reshape(b, h * w, d)
        if token:
            first = token[0].astype(x.dtype) + self.embed.first_position().astype(x.dtype)
            x = jnp.concatenate((jnp.broadcast_to(first, (b, 1, d)), x), 1)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs, grid=(h, w)), (h, w)


class PVT(VisionModel[PVTConfig]):
    """Stages; norm, linear head on the class token."""

    def __init__(self, config: PVTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.dims[-1]
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].embed, "embedding")
        self.cls_token = declare(nnx.Param(normal_init(rngs.params(), (1, 1, dim))), "token")
        self.norm = LayerNorm(dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        last = len(self.config.dims) - 1
        return tuple(FeatureInfo(stride=PATCH * 2**i, dim=dim, normalised=i == last) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The map at the end of each stage, the last one normalised, and the normalised class
        token.
        """
        x, maps = self.checked(images), []
        for stage in list(self.stages)[:-1]:
            tokens, grid = stage(x, train=train, rngs=rngs)
            x = tokens.reshape(x.shape[0], *grid, -1)
            maps.append(x)
        tokens, grid = self.stages[-1](x, self.cls_token[...], train=train, rngs=rngs)
        tokens = self.norm(tokens)
        return Features([*maps, tokens[:, 1:].reshape(x.shape[0], *grid, -1)], (tokens[:, 0],))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The class token; float32."""
        return features.class_tokens[0].astype(jnp.float32)


FAMILY = Family(PVT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
