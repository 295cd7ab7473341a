"""SHViT (Yun and Ro, arXiv:2401.16456): large patches, one attention head on some channels."""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth
from vitlab.layers import BatchNorm, Linear, Remat, run_blocks
from vitlab.layers.conv_sandwich import ConvFfn, ConvStem16, ResidualDepthwise, SandwichDownsample, fuse_sandwiches
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.single_head import SingleHeadAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published


@dataclasses.dataclass(frozen=True, kw_only=True)
class SHViTConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    partial_dims: tuple[CountOrZero, ...]  # channels that attend, per stage; 0: the stage has no attention
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "partial_dims")
        if self.drop_path_rate:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be 0: the family has no drop path")


# arXiv:2401.16456 table 2 and the authors' model/build.py, whose partial dims of the first stage
# are unused.
VARIANTS = {
    "shvit_s1": SHViTConfig(dims=(128, 224, 320), depths=(2, 4, 5), partial_dims=(0, 48, 68)),
    "shvit_s2": SHViTConfig(dims=(128, 308, 448), depths=(2, 4, 5), partial_dims=(0, 66, 96)),
    "shvit_s3": SHViTConfig(dims=(192, 352, 448), depths=(3, 5, 5), partial_dims=(0, 75, 96)),
    "shvit_s4": SHViTConfig(dims=(224, 336, 448), depths=(4, 7, 6), partial_dims=(0, 72, 96), image_size=(256, 256)),
}
_SOURCE = "github.com/ysj9909/SHViT README"
PUBLISHED = {
    "shvit_s1": Published(params=6_330_808, gmacs=0.241, top1=72.8, source=_SOURCE),
    "shvit_s2": Published(params_m=11.483, gmacs=0.365, top1=75.2, source=_SOURCE),
    "shvit_s3": Published(params_m=14.245, gmacs=0.601, top1=77.4, source=_SOURCE),
    "shvit_s4": Published(params_m=16.588, gmacs=0.986, top1=79.4, source=_SOURCE),
}


class Block(nnx.Module):
    """Depthwise convolution, attention (if the stage has it) and feed-forward, all residual."""

    def __init__(self, config: SHViTConfig, *, stage: int, rngs: nnx.Rngs):
        dim, partial_dim, dtype = config.dims[stage], config.partial_dims[stage], config.dtype
        self.conv = ResidualDepthwise(dim, dtype=dtype, rngs=rngs)
        self.mixer = SingleHeadAttention(dim, partial_dim=partial_dim, dtype=dtype, rngs=rngs) if partial_dim else None
        self.ffn = ConvFfn(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = self.conv(x, train=train)
        if self.mixer is not None:
            x = x + self.mixer(x, train=train)
        return self.ffn(x, train=train)


class Stage(nnx.Module):
    """Down-sampling (except in the first stage), then the blocks."""

    def __init__(self, config: SHViTConfig, *, stage: int, rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = SandwichDownsample(config.dims[stage - 1], config.dims[stage], dtype=config.dtype, rngs=rngs) if stage else None
        self.blocks = nnx.List([Block(config, stage=stage, rngs=rngs) for _ in range(config.depths[stage])])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x, train=train)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class SHViT(VisionModel[SHViTConfig]):
    """A stem to 1/16 of the sides, stages, the mean over positions, batch norm, linear head."""

    def __init__(self, config: SHViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = ConvStem16(config.in_channels, config.dims[0], dtype=config.dtype, rngs=rngs)
        declare(self.patch_embed, "embedding")
        self.stages = nnx.List([Stage(config, stage=i, rngs=rngs) for i in range(len(config.depths))])
        self.norm = BatchNorm(config.dims[-1], rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=16 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage."""
        x = self.patch_embed(self.checked(images), train=train)
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the normalised mean over the positions of the last map, in float32."""
        return self.norm(features[-1].astype(jnp.float32).mean((1, 2)), train=train)

    def fuse(self) -> "SHViT":
        """Returns the network for deployment: convolutions absorb norms and identities."""
        model = nnx.clone(self)
        fuse_sandwiches(model)
        return model


FAMILY = Family(SHViT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
