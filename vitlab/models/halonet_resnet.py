"""timm's HaloNets: ResNets, some of whose 3x3 convolutions are halo attention (Vaswani et al.,
arXiv:2103.12731).

Not networks of the paper, which is `vitlab.models.halonet`: these were made and trained in timm,
`halonet26t` and `halonet50ts`. Departs from timm: any image size, by padding each map to whole
blocks.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Side, SideOrZero
from vitlab.layers import BatchNorm, ConvNorm, DropPath, Linear, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.halo import HaloAttention
from vitlab.models.contract import Images, ImageSize, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EXPANSION = 4  # width of a stage's output / of its convolutions and attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class HaloResNetConfig(VisionConfig):
    depths: tuple[Depth, ...]  # blocks per stage
    attn_periods: tuple[CountOrZero, ...]  # per stage: each how manieth block attends; 0: none
    dims: tuple[Count, ...] = (64, 128, 256, 512)  # width of convolutions and attention, per stage
    num_heads: tuple[Count, ...] = (8, 8, 8, 8)  # per stage
    block_size: Side = 8  # tokens per side
    halo_size: SideOrZero = 3  # tokens around a block
    stem_dim: Count = 64
    activation: Literal["relu", "silu"] = "silu"
    image_size: ImageSize = (256, 256)
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.95)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "attn_periods", "dims", "num_heads")

    def attends(self, stage: int, block: int) -> bool:
        """Whether a block of a stage has attention."""
        period = self.attn_periods[stage]
        return period > 0 and block % period == period - 1


_CROP = Preprocessing(crop_fraction=0.94)
VARIANTS = {
    "halonet26t": HaloResNetConfig(depths=(2, 2, 2, 2), attn_periods=(0, 0, 2, 1), halo_size=2, activation="relu"),
    "halonet50ts": HaloResNetConfig(depths=(3, 4, 6, 3), attn_periods=(0, 4, 2, 2), num_heads=(8, 4, 8, 8), preprocessing=_CROP),
}
PUBLISHED = {
    "halonet26t": Published(params=12_480_288, gmacs=3.17, top1=79.1, source="timm 1.0.31"),
    "halonet50ts": Published(params=22_733_280, gmacs=5.27, top1=81.6, source="timm 1.0.31"),
}
_ACTIVATIONS = {"relu": jax.nn.relu, "silu": jax.nn.silu}


class Block(nnx.Module):
    """Bottleneck: 1x1 convolution, 3x3 convolution or halo attention, 1x1 convolution; activation
    of the sum with the shortcut.
    """

    def __init__(self, config: HaloResNetConfig, *, stage: int, index: int, in_dim: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        out_dim, stride = EXPANSION * dim, 2 if stage and not index else 1
        self.activation = _ACTIVATIONS[config.activation]
        same = in_dim == out_dim and stride == 1
        self.shortcut = None if same else ConvNorm(in_dim, out_dim, stride=stride, dtype=dtype, rngs=rngs)
        self.conv1_1x1 = ConvNorm(in_dim, dim, dtype=dtype, rngs=rngs)
        attends = config.attends(stage, index)
        self.conv2_kxk = None if attends else ConvNorm(dim, dim, kernel_size=3, stride=stride, dtype=dtype, rngs=rngs)
        self.self_attn = (
            HaloAttention(
                dim,
                num_heads=config.num_heads[stage],
                block_size=config.block_size,
                halo_size=config.halo_size,
                stride=stride,
                dtype=dtype,
                rngs=rngs,
            )
            if attends
            else None
        )
        self.post_attn = BatchNorm(dim, dtype=dtype, rngs=rngs) if attends else None
        self.conv3_1x1 = ConvNorm(dim, out_dim, zero_init=True, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        shortcut = x if self.shortcut is None else self.shortcut(x, train=train)
        x = self.activation(self.conv1_1x1(x, train=train))
        if self.self_attn is not None and self.post_attn is not None:
            x = self.post_attn(self.self_attn(x), train=train)
        elif self.conv2_kxk is not None:
            x = self.conv2_kxk(x, train=train)
        x = self.conv3_1x1(self.activation(x), train=train)
        return self.activation(shortcut + self.drop_path(x, train=train, rngs=rngs))


class Stage(nnx.Module):
    """The blocks; the first one halves the map (but in the first stage)."""

    def __init__(self, config: HaloResNetConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        in_dim, out_dim = EXPANSION * config.dims[stage - 1] if stage else config.stem_dim, EXPANSION * config.dims[stage]
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.blocks = nnx.List(
            [
                Block(config, stage=stage, index=i, in_dim=out_dim if i else in_dim, drop_path_rate=rate, rngs=rngs)
                for i, rate in enumerate(rates)
            ]
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class Stem(nnx.Module):
    """Three 3x3 convolutions of growing width, the first strided, then a pooled maximum."""

    def __init__(self, config: HaloResNetConfig, *, rngs: nnx.Rngs):
        dim, dtype = config.stem_dim, config.dtype
        self.activation = _ACTIVATIONS[config.activation]
        dims = (config.in_channels, 3 * dim // 8, dim // 2, dim)
        self.convs = nnx.List(
            [ConvNorm(dims[i], dims[i + 1], kernel_size=3, stride=1 if i else 2, dtype=dtype, rngs=rngs) for i in range(3)]
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        for conv in self.convs:
            x = self.activation(conv(x, train=train))
        return nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf), (3, 3), (2, 2))


class HaloResNet(VisionModel[HaloResNetConfig]):
    """Stem, stages; mean over the positions, linear head."""

    def __init__(self, config: HaloResNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = declare(Stem(config, rngs=rngs), "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        last = EXPANSION * config.dims[-1]
        self.head = declare(Linear(last, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=EXPANSION * dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The map at the end of each stage."""
        x = self.stem(self.checked(images), train=train)
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean over the positions of the last map; float32."""
        return features[-1].astype(jnp.float32).mean((1, 2))


FAMILY = Family(HaloResNet, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
