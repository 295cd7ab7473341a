"""InLine-PVT (Han et al., arXiv:2412.06590): PVT with injective linear attention to all keys.

PVT itself reduces the number of keys. Follows the authors' code: no class token, no final norm,
narrower heads than PVT. Any image of at least 32 pixels per side is accepted; for another size than
the model's, position embeddings are resized.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio
from vitlab.layers import DropPath, LayerNorm, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.placed_patches import PlacedPatches
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.inline import InLineAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of the blocks' LayerNorms
PATCH = 4  # pixels between the tokens of the first stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class InLinePVTConfig(VisionConfig):
    depths: tuple[Depth, ...]  # blocks per stage
    dims: tuple[Count, ...] = (64, 128, 320, 512)  # width of each stage
    num_heads: tuple[Count, ...] = (2, 4, 10, 16)  # heads of each stage
    mlp_ratios: tuple[Ratio, ...] = (8.0, 8.0, 4.0, 4.0)  # MLP hidden width / dim of each stage
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads", "mlp_ratios")

    @property
    def min_size(self) -> int:
        return PATCH * 2 ** (len(self.depths) - 1)  # the last stage needs one patch

    def grid(self, stage: int) -> tuple[int, int]:
        """Returns rows and columns of a stage's map at the model's image size."""
        return self.image_size[0] // (PATCH * 2**stage), self.image_size[1] // (PATCH * 2**stage)


# The authors' models/inline_pvt.py and cfgs/inline_pvt_*.yaml.
VARIANTS = {
    "inline_pvt_tiny": InLinePVTConfig(depths=(2, 2, 2, 2)),
    "inline_pvt_small": InLinePVTConfig(depths=(3, 4, 6, 3)),
    "inline_pvt_medium": InLinePVTConfig(depths=(3, 4, 18, 3), drop_path_rate=0.3),
    "inline_pvt_large": InLinePVTConfig(depths=(3, 8, 27, 3), drop_path_rate=0.3),
}
_SOURCE = "github.com/LeapLabTHU/InLine README; counts: on the authors' code"
PUBLISHED = {
    "inline_pvt_tiny": Published(params_m=12.032, gmacs=1.98, top1=78.2, source=_SOURCE),
    "inline_pvt_small": Published(params_m=21.556, gmacs=3.92, top1=82.0, source=_SOURCE),
    "inline_pvt_medium": Published(params_m=37.619, gmacs=6.86, top1=83.2, source=_SOURCE),
    "inline_pvt_large": Published(params_m=51.154, gmacs=10.13, top1=83.6, source=_SOURCE + " (published: 50.2 M)"),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: InLinePVTConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = InLineAttention(dim, num_heads=config.num_heads[stage], fused=False, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratios[stage]), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class Stage(nnx.Module):
    """Patches with positions, then the blocks."""

    def __init__(self, config: InLinePVTConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.embed = PlacedPatches(
            config.dims[stage - 1] if stage else config.in_channels,
            config.dims[stage],
            patch_size=2 if stage else PATCH,
            grid=config.grid(stage),
            dtype=config.dtype,
            rngs=rngs,
        )
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.embed(x)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class InLinePVT(VisionModel[InLinePVTConfig]):
    """Stages, then the mean over the tokens and a linear head."""

    def __init__(self, config: InLinePVTConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].embed, "embedding")
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=PATCH * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the tokens of the last map, in float32."""
        return features[-1].astype(jnp.float32).mean((1, 2))


FAMILY = Family(InLinePVT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
