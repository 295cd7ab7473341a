"""EfficientViT of Microsoft Research Asia (Liu et al., arXiv:2305.07027).

Blocks sandwich cascaded group attention between feed-forward layers. Follows the authors' code. Any
image size: a map that exceeds the window is cut into windows. The table of position biases has the
size of the window at the configured `image_size`.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Side
from vitlab.layers import BatchNorm, Linear, Remat, run_blocks
from vitlab.layers.conv_sandwich import ConvFfn, ConvStem16, ResidualDepthwise, SandwichDownsample, fuse_sandwiches
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.cascaded_group import CascadedGroupAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published


@dataclasses.dataclass(frozen=True, kw_only=True)
class EfficientViTConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    kernel_sizes: tuple[Side, ...]  # sides of the depthwise kernels on the heads' queries; the last one repeats
    window_size: Side = 7  # tokens per side, at most
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads")
        if not self.kernel_sizes:
            raise ValueError(f"kernel_sizes={self.kernel_sizes} must have an entry for each head; the last one repeats")
        if self.drop_path_rate:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be 0: the family has no drop path")

    def window_of(self, stage: int) -> int:
        """Returns the tokens per side of a stage's window.

        It is the side of the stage's map at the configured image size, at most `window_size`.
        """
        return min(self.window_size, -(-max(self.image_size) // (16 * 2**stage)))


_A, _B = (5, 5, 5, 5), (7, 5, 3, 3)
# arXiv:2305.07027 table 2 and the authors' classification/model/build.py.
VARIANTS = {
    "efficientvit_m0": EfficientViTConfig(dims=(64, 128, 192), depths=(1, 2, 3), num_heads=(4, 4, 4), kernel_sizes=_A),
    "efficientvit_m1": EfficientViTConfig(dims=(128, 144, 192), depths=(1, 2, 3), num_heads=(2, 3, 3), kernel_sizes=_B),
    "efficientvit_m2": EfficientViTConfig(dims=(128, 192, 224), depths=(1, 2, 3), num_heads=(4, 3, 2), kernel_sizes=_B),
    "efficientvit_m3": EfficientViTConfig(dims=(128, 240, 320), depths=(1, 2, 3), num_heads=(4, 3, 4), kernel_sizes=_A),
    "efficientvit_m4": EfficientViTConfig(dims=(128, 256, 384), depths=(1, 2, 3), num_heads=(4, 4, 4), kernel_sizes=_B),
    "efficientvit_m5": EfficientViTConfig(dims=(192, 288, 384), depths=(1, 3, 4), num_heads=(3, 3, 4), kernel_sizes=_B),
}
_SOURCE = "github.com/microsoft/Cream EfficientViT README"
PUBLISHED = {
    "efficientvit_m0": Published(params=2_349_436, gmacs=0.079, top1=63.2, source=_SOURCE),
    "efficientvit_m1": Published(params_m=2.981, gmacs=0.167, top1=68.4, source=_SOURCE),
    "efficientvit_m2": Published(params_m=4.188, gmacs=0.201, top1=70.8, source=_SOURCE),
    "efficientvit_m3": Published(params_m=6.901, gmacs=0.263, top1=73.4, source=_SOURCE),
    "efficientvit_m4": Published(params_m=8.804, gmacs=0.299, top1=74.3, source=_SOURCE),
    "efficientvit_m5": Published(params_m=12.474, gmacs=0.522, top1=77.1, source=_SOURCE),
}


class Block(nnx.Module):
    """Depthwise convolution and feed-forward, attention, depthwise convolution and feed-forward.

    Each of the five is a residual branch.
    """

    def __init__(self, config: EfficientViTConfig, *, stage: int, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.dw0 = ResidualDepthwise(dim, dtype=dtype, rngs=rngs)
        self.ffn0 = ConvFfn(dim, dtype=dtype, rngs=rngs)
        self.mixer = CascadedGroupAttention(
            dim,
            num_heads=config.num_heads[stage],
            window_size=config.window_of(stage),
            kernel_sizes=config.kernel_sizes,
            dtype=dtype,
            rngs=rngs,
        )
        self.dw1 = ResidualDepthwise(dim, dtype=dtype, rngs=rngs)
        self.ffn1 = ConvFfn(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = self.ffn0(self.dw0(x, train=train), train=train)
        x = x + self.mixer(x, train=train)
        return self.ffn1(self.dw1(x, train=train), train=train)


class Stage(nnx.Module):
    """Down-sampling (except in the first stage), then the blocks."""

    def __init__(self, config: EfficientViTConfig, *, stage: int, rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = SandwichDownsample(config.dims[stage - 1], config.dims[stage], dtype=config.dtype, rngs=rngs) if stage else None
        self.blocks = nnx.List([Block(config, stage=stage, rngs=rngs) for _ in range(config.depths[stage])])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x, train=train)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class EfficientViT(VisionModel[EfficientViTConfig]):
    """A stem to 1/16 of the sides, stages, the mean over positions, batch norm, linear head."""

    def __init__(self, config: EfficientViTConfig, *, rngs: nnx.Rngs):
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

    def fuse(self) -> "EfficientViT":
        """Returns the network for deployment: convolutions absorb norms and identities."""
        model = nnx.clone(self)
        fuse_sandwiches(model)
        return model


FAMILY = Family(EfficientViT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
