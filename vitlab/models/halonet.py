"""HaloNet (Vaswani et al., arXiv:2103.12731): a ResNet with blocked local attention.

Attention with halos replaces the 3x3 convolutions. The authors published no code. H1 is timm's
`halonet_h1`; the other variants apply the paper's table of sizes to the same network, which gives
the published parameter counts. H1 has timm's 8 heads in the first stage, where the paper has 4. Its
first block has no projected shortcut, since its width is the stem's: 8.100 M parameters, which the
paper rounds to 8.1. The activation is ReLU throughout, as in timm.

Departs from timm: any image size, as each map is padded to whole blocks (H7 needs padding at its
own 600 pixels; the authors' treatment is unknown).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Ratio, Side, SideOrZero
from vitlab.layers import BatchNorm, ConvNorm, DropPath, Linear, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.halo import HaloAttention
from vitlab.models.contract import Images, ImageSize, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

_CROP = Preprocessing(crop_fraction=0.95)  # timm's value


@dataclasses.dataclass(frozen=True, kw_only=True)
class HaloNetConfig(VisionConfig):
    depths: tuple[Depth, ...]  # blocks per stage
    expansion_ratio: Ratio  # width of a stage's output / width of its attention; the paper's r_b
    value_ratio: Ratio = 1.0  # width of the values / width of the keys; the paper's r_v
    final_dim: Count | None = None  # width of a last 1x1 convolution, the paper's d_f; None: no such convolution
    dims: tuple[Count, ...] = (64, 128, 256, 512)  # width of queries and keys, per stage
    num_heads: tuple[Count, ...] = (4, 8, 8, 8)  # one entry per stage
    block_size: Side = 8  # tokens per side
    halo_size: SideOrZero = 3  # width of the halo around a block, in tokens
    stem_dim: Count = 64  # width of the stem
    image_size: ImageSize = (256, 256)
    preprocessing: Preprocessing = _CROP

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads")

    @property
    def out_dims(self) -> tuple[int, ...]:
        return tuple(int(dim * self.expansion_ratio) for dim in self.dims)


# arXiv:2103.12731 tables 1 and 2.
VARIANTS = {
    "halonet_h0": HaloNetConfig(depths=(3, 3, 7, 3), expansion_ratio=0.5),
    "halonet_h1": HaloNetConfig(depths=(3, 3, 10, 3), expansion_ratio=1.0, num_heads=(8, 8, 8, 8)),
    "halonet_h2": HaloNetConfig(depths=(3, 3, 11, 3), expansion_ratio=1.25),
    "halonet_h3": HaloNetConfig(depths=(3, 3, 12, 3), expansion_ratio=1.5, final_dim=1024, block_size=10, image_size=(320, 320)),
    "halonet_h4": HaloNetConfig(
        depths=(3, 3, 12, 3), expansion_ratio=3.0, final_dim=1280, block_size=12, halo_size=2, image_size=(384, 384)
    ),
    "halonet_h5": HaloNetConfig(
        depths=(3, 3, 23, 3), expansion_ratio=2.0, value_ratio=2.5, final_dim=1536, block_size=14, halo_size=2, image_size=(448, 448)
    ),
    "halonet_h6": HaloNetConfig(
        depths=(3, 3, 24, 3), expansion_ratio=2.75, value_ratio=3.0, final_dim=1536, halo_size=4, image_size=(512, 512)
    ),
    "halonet_h7": HaloNetConfig(
        depths=(3, 3, 26, 3), expansion_ratio=3.5, value_ratio=4.0, final_dim=2048, block_size=10, image_size=(600, 600)
    ),
}
_SOURCE = "arXiv:2103.12731 table 2 and figure 5, as transcribed by third parties"
PUBLISHED = {
    "halonet_h0": Published(params_m=5.5, top1=77.9, source=_SOURCE),
    "halonet_h1": Published(params=8_100_056, gmacs=2.99, top1=79.9, source=_SOURCE + "; counts: timm 1.0.31"),
    "halonet_h2": Published(params_m=9.4, top1=80.4, source=_SOURCE),
    "halonet_h3": Published(params_m=11.8, top1=81.9, source=_SOURCE),
    "halonet_h4": Published(params_m=19.1, top1=83.3, source=_SOURCE),
    "halonet_h5": Published(params_m=30.7, top1=84.0, source=_SOURCE),
    "halonet_h6": Published(params=43_458_280, top1=84.4, source=_SOURCE + " (43.4 M, cut off)"),
    "halonet_h7": Published(params_m=67.4, top1=84.9, source=_SOURCE),
}


class Block(nnx.Module):
    """Bottleneck: 1x1 convolution, halo attention, 1x1 convolution, each with a batch norm.

    The shortcut is added before the last ReLU.
    """

    def __init__(self, config: HaloNetConfig, *, stage: int, in_dim: int, stride: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, out_dim, dtype = config.dims[stage], config.out_dims[stage], config.dtype
        value_dim = int(dim * config.value_ratio)
        same = in_dim == out_dim and stride == 1
        self.shortcut = None if same else ConvNorm(in_dim, out_dim, stride=stride, dtype=dtype, rngs=rngs)
        self.conv1_1x1 = ConvNorm(in_dim, dim, dtype=dtype, rngs=rngs)
        self.self_attn = HaloAttention(
            dim,
            num_heads=config.num_heads[stage],
            block_size=config.block_size,
            halo_size=config.halo_size,
            stride=stride,
            value_dim=value_dim,
            dtype=dtype,
            rngs=rngs,
        )
        self.post_attn = BatchNorm(value_dim, dtype=dtype, rngs=rngs)
        self.conv3_1x1 = ConvNorm(value_dim, out_dim, zero_init=True, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        shortcut = x if self.shortcut is None else self.shortcut(x, train=train)
        x = self.self_attn(jax.nn.relu(self.conv1_1x1(x, train=train)))
        x = self.conv3_1x1(jax.nn.relu(self.post_attn(x, train=train)), train=train)
        return jax.nn.relu(shortcut + self.drop_path(x, train=train, rngs=rngs))


class Stage(nnx.Module):
    """The blocks; except in the first stage, the first block halves the map."""

    def __init__(self, config: HaloNetConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        in_dims = (config.out_dims[stage - 1] if stage else config.stem_dim, *(config.out_dims[stage],) * len(rates))
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.blocks = nnx.List(
            [
                Block(config, stage=stage, in_dim=in_dims[i], stride=2 if stage and not i else 1, drop_path_rate=rate, rngs=rngs)
                for i, rate in enumerate(rates)
            ]
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class HaloNet(VisionModel[HaloNetConfig]):
    """Strided 7x7 convolution and pooling, stages, then the mean over positions and a linear head.

    Some variants convolve once more (1x1) before the mean.
    """

    def __init__(self, config: HaloNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype, last = config.dtype, config.final_dim or config.out_dims[-1]
        self.stem = ConvNorm(config.in_channels, config.stem_dim, kernel_size=7, stride=2, dtype=dtype, rngs=rngs)
        declare(self.stem, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.final_conv = ConvNorm(config.out_dims[-1], last, dtype=dtype, rngs=rngs) if config.final_dim else None
        self.head = declare(Linear(last, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.out_dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage."""
        x = jax.nn.relu(self.stem(self.checked(images), train=train))
        # Padding by zeros is safe: after ReLU no value is below 0.
        x = nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the positions of the last map, in float32.

        With `final_dim` the map passes a last convolution first.
        """
        x = features[-1]
        if self.final_conv is not None:
            x = jax.nn.relu(self.final_conv(x, train=train))
        return x.astype(jnp.float32).mean((1, 2))


FAMILY = Family(HaloNet, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
