"""PoolFormer (Yu et al., arXiv:2111.11418): a transformer block whose tokens are mixed by a mean
over neighbours.

Follows timm's port of the authors' checkpoints, which normalises the mean over the positions before
the head; with `last_norm="map"` the last map is normalised as a whole and then averaged, as in the
authors' code. Any image size.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import Conv, DropPath, LayerNorm, LayerScale, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.group_norm import GroupNorm
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.pooling import Pooling
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolFormerConfig(VisionConfig):
    depths: tuple[Depth, ...]  # blocks per stage
    dims: tuple[Count, ...] = (64, 128, 320, 512)  # width per stage
    pool_size: Side = 3  # positions per side that are averaged, odd
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    layer_scale_init: float = 1e-5  # first value of the factors on the branches
    last_norm: Literal["pooled", "map"] = "pooled"  # of the mean over the positions, as in timm, or before it, as in the authors' code
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims")

    @property
    def min_size(self) -> int:
        return 3  # pixels of the first convolution's kernel that are not padding


_WIDE, _CROP = (96, 192, 384, 768), Preprocessing(crop_fraction=0.95)
# arXiv:2111.11418 table 1; drop path and layer scale: the authors' README and models/poolformer.py.
VARIANTS = {
    "poolformer_s12": PoolFormerConfig(depths=(2, 2, 6, 2)),
    "poolformer_s24": PoolFormerConfig(depths=(4, 4, 12, 4)),
    "poolformer_s36": PoolFormerConfig(depths=(6, 6, 18, 6), layer_scale_init=1e-6, drop_path_rate=0.2),
    "poolformer_m36": PoolFormerConfig(depths=(6, 6, 18, 6), dims=_WIDE, layer_scale_init=1e-6, drop_path_rate=0.3, preprocessing=_CROP),
    "poolformer_m48": PoolFormerConfig(depths=(8, 8, 24, 8), dims=_WIDE, layer_scale_init=1e-6, drop_path_rate=0.4, preprocessing=_CROP),
}
_SOURCE = "github.com/sail-sg/poolformer README; counts: timm 1.0.31"
PUBLISHED = {
    "poolformer_s12": Published(params=11_915_176, gmacs=1.81, top1=77.2, source=_SOURCE),
    "poolformer_s24": Published(params=21_388_968, gmacs=3.39, top1=80.3, source=_SOURCE),
    "poolformer_s36": Published(params=30_862_760, gmacs=4.97, top1=81.4, source=_SOURCE),
    "poolformer_m36": Published(params=56_172_520, gmacs=8.76, top1=82.1, source=_SOURCE),
    "poolformer_m48": Published(params=73_473_448, gmacs=11.53, top1=82.5, source=_SOURCE),
}


class Block(nnx.Module):
    """x + ls1(pooling(norm1(x))), then x + ls2(mlp(norm2(x))); the norms are over the whole map."""

    def __init__(self, config: PoolFormerConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, init = config.dims[stage], config.dtype, config.layer_scale_init
        self.norm1 = GroupNorm(dim, dtype=dtype, rngs=rngs)
        self.mixer = Pooling(dim, pool_size=config.pool_size, dtype=dtype, rngs=rngs)
        self.norm2 = GroupNorm(dim, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls1, self.ls2 = LayerScale(dim, init=init), LayerScale(dim, init=init)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.ls1(self.mixer(self.norm1(x))), train=train, rngs=rngs)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))), train=train, rngs=rngs)


class Stage(nnx.Module):
    """A strided convolution, then the blocks."""

    def __init__(self, config: PoolFormerConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dims, dtype = config.dims, config.dtype
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        if stage:
            self.downsample = Conv(dims[stage - 1], dims[stage], kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        else:
            self.downsample = Conv(config.in_channels, dims[0], kernel_size=7, stride=4, padding=2, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.downsample(x)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class PoolFormer(VisionModel[PoolFormerConfig]):
    """Stages; mean over the positions, norm (or the other way round), linear head."""

    def __init__(self, config: PoolFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].downsample, "embedding")
        pooled = config.last_norm == "pooled"
        self.norm = LayerNorm(config.dims[-1], eps=1e-6, rngs=rngs) if pooled else GroupNorm(config.dims[-1], rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The map at the end of each stage."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean over the positions of the last map, normalised as `last_norm` says; float32."""
        x = features[-1].astype(jnp.float32)
        return self.norm(x.mean((1, 2))) if self.config.last_norm == "pooled" else self.norm(x).mean((1, 2))


FAMILY = Family(PoolFormer, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
