"""FMViT (Tan et al., arXiv:2311.05707), reconstructed.

The authors published neither code nor the widths of their networks. The reconstruction follows the
abstract: a hybrid for deployment that mixes high and low frequencies, multi-group
reparameterisation (gMLP), light attention (RLMHSA), convolutional fusion blocks (CFB). The skeleton
is Next-ViT's. Widths were chosen so that the fused networks have the published numbers of
parameters and MACs within 3 %, which the tests check. Published accuracies are not claims about
this reconstruction. Any image size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Share, Side
from vitlab.layers import BatchNorm, Conv, ConvNorm, DropPath, Linear, Remat, drop_path_rates, run_blocks
from vitlab.layers.conv_norm import fold_into_next, fold_into_previous, fuse_conv_norms
from vitlab.layers.multi_group import MultiGroupLinear
from vitlab.layers.pool import average_pool_ceil
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.light_attention import LightAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

HEAD_DIM = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class FMViTConfig(VisionConfig):
    stem_dims: tuple[Count, Count, Count]  # widths of the stem's convolutions; the fourth repeats the last
    depths: tuple[Depth, ...]  # blocks per stage; `mixes` says which are frequency blocks
    conv_dims: tuple[Count, ...]  # width of the fusion blocks, per stage
    mix_dims: tuple[Count, ...]  # width of the frequency blocks, per stage
    period: Depth  # every `period`-th block of stage 3 is a frequency block; 1: all are
    mlp_ratio: Side  # MLP hidden width / dim of the fusion blocks; frequency blocks have 2
    pool_rates: tuple[Side, ...] = (8, 4, 2, 1)  # sides of the cells over which keys and values are averaged, per stage, in tokens
    low_ratio: Share = 0.75  # share of the channels that attend, the low frequencies
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.95)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "conv_dims", "mix_dims", "pool_rates")
        for dim in (*self.conv_dims, *self.mix_dims):
            if dim % HEAD_DIM:
                raise ValueError(f"{dim=} must be a multiple of {HEAD_DIM}, the width of a head")

    def mixes(self, stage: int, block: int) -> bool:
        """Whether a block mixes frequencies.

        These are the last blocks of stages 2 and 4 and every `period`-th of stage 3.
        """
        if stage == 2:
            return block % self.period == self.period - 1
        return stage > 0 and block == self.depths[stage] - 1


def _row(stem, depths, conv, mix, period, mlp_ratio) -> FMViTConfig:
    return FMViTConfig(stem_dims=stem, depths=depths, conv_dims=conv, mix_dims=(HEAD_DIM, *mix), period=period, mlp_ratio=mlp_ratio)


# Not published: a search over such networks met the published parameters and MACs.
VARIANTS = {
    "fmvit_tiny": _row((16, 16, 16), (1, 1, 3, 1), (32, 64, 160, 384), (64, 160, 384), 3, 2),
    "fmvit_small": _row((16, 16, 16), (1, 2, 4, 2), (64, 64, 224, 512), (64, 224, 512), 4, 3),
    "fmvit_medium": _row((48, 32, 48), (2, 3, 6, 2), (64, 96, 320, 768), (96, 320, 768), 3, 2),
    "fmvit_base": _row((32, 32, 32), (3, 4, 8, 3), (96, 160, 384, 768), (160, 384, 768), 4, 3),
    "fmvit_large": _row((64, 32, 64), (3, 4, 16, 3), (96, 192, 384, 704), (256, 512, 704), 4, 3),
}
_SOURCE = "reconstructed; top-1 is the authors', of their own network (arXiv:2311.05707). Fused: within 3 % of its"
PUBLISHED = {
    "fmvit_tiny": Published(top1=72.9, source=f"{_SOURCE} 2.0 M, 0.3 GMACs"),
    "fmvit_small": Published(top1=78.5, source=f"{_SOURCE} 6.4 M, 0.8 GMACs"),
    "fmvit_medium": Published(top1=80.3, source=f"{_SOURCE} 12.8 M, 2.0 GMACs"),
    "fmvit_base": Published(top1=82.4, source=f"{_SOURCE} 24.3 M, 4.2 GMACs"),
    "fmvit_large": Published(top1=83.3, source=f"{_SOURCE} 35.3 M, 7.1 GMACs"),
}


class PatchEmbed(nnx.Module):
    """2x2 means if the map is halved, then a pointwise convolution if map or width changes."""

    def __init__(self, in_dim: int, dim: int, *, halve: bool, dtype, rngs: nnx.Rngs):
        self.halve = halve
        self.project = ConvNorm(in_dim, dim, dtype=dtype, rngs=rngs) if halve or in_dim != dim else None

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        if self.halve:
            x = average_pool_ceil(x, 2)
        return x if self.project is None else self.project(x, train=train)


class FusionConv(nnx.Module):
    """A grouped 3x3 convolution, batch norm, ReLU, then gMLP, for the high frequencies."""

    def __init__(self, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, kernel_size=3, groups=dim // HEAD_DIM, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.proj = MultiGroupLinear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        x = self.conv(x)
        return self.proj(jax.nn.relu(x if self.norm is None else self.norm(x, train=train)), train=train)

    def fuse(self) -> None:
        """Folds the norm into the convolution and the gMLP into one linear map, in place."""
        if self.norm is not None:
            fold_into_previous(self.norm, self.conv)
            self.norm = None
        self.proj.fuse()


class GroupMlp(nnx.Module):
    """A batch norm, then two gMLPs with ReLU between."""

    def __init__(self, dim: int, *, ratio: int, dtype, rngs: nnx.Rngs):
        self.norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.fc1 = MultiGroupLinear(dim, ratio * dim, dtype=dtype, rngs=rngs)
        self.fc2 = MultiGroupLinear(ratio * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        x = self.fc1(x if self.norm is None else self.norm(x, train=train), train=train)
        return self.fc2(jax.nn.relu(x), train=train)

    def fuse(self) -> None:
        """Folds each gMLP into one linear map and the norm into the first one, in place."""
        self.fc1.fuse()
        self.fc2.fuse()
        if self.norm is not None:
            fold_into_next(self.norm, self.fc1.fused[0])
            self.norm = None


class FusionBlock(nnx.Module):
    """CFB: x + conv(x), then x + mlp(x)."""

    def __init__(self, config: FMViTConfig, *, in_dim: int, dim: int, halve: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dtype = config.dtype
        self.patch_embed = PatchEmbed(in_dim, dim, halve=halve, dtype=dtype, rngs=rngs)
        self.conv = FusionConv(dim, dtype=dtype, rngs=rngs)
        self.mlp = GroupMlp(dim, ratio=config.mlp_ratio, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.patch_embed(x, train=train)
        x = x + self.drop_path(self.conv(x, train=train), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(x, train=train), train=train, rngs=rngs)


class FrequencyBlock(nnx.Module):
    """FMB: light attention on low frequencies, convolution on high ones, one MLP for both."""

    def __init__(self, config: FMViTConfig, *, in_dim: int, dim: int, pool_rate: int, halve: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dtype = config.dtype
        low_dim = max(HEAD_DIM, min(round(dim * config.low_ratio / HEAD_DIM) * HEAD_DIM, dim - HEAD_DIM))
        high_dim = dim - low_dim
        self.patch_embed = PatchEmbed(in_dim, low_dim, halve=halve, dtype=dtype, rngs=rngs)
        self.norm: BatchNorm | None = BatchNorm(low_dim, dtype=dtype, rngs=rngs)
        self.attn = LightAttention(low_dim, num_heads=low_dim // HEAD_DIM, pool_rate=pool_rate, dtype=dtype, rngs=rngs)
        self.split = ConvNorm(low_dim, high_dim, dtype=dtype, rngs=rngs)
        self.conv = FusionConv(high_dim, dtype=dtype, rngs=rngs)
        self.mlp = GroupMlp(dim, ratio=2, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        low = self.patch_embed(x, train=train)
        y = low if self.norm is None else self.norm(low, train=train)
        low = low + self.drop_path(self.attn(y, train=train), train=train, rngs=rngs)
        high = self.split(low, train=train)
        high = high + self.drop_path(self.conv(high, train=train), train=train, rngs=rngs)
        x = jnp.concatenate((low, high), -1)
        return x + self.drop_path(self.mlp(x, train=train), train=train, rngs=rngs)

    def fuse(self) -> None:
        """Folds the norm before the attention into the attention's projections, in place."""
        if self.norm is not None:
            self.attn.fuse(self.norm)
            self.norm = None


class Stage(nnx.Module):
    """The blocks; except in the first stage, the first block halves the map."""

    def __init__(self, config: FMViTConfig, *, stage: int, in_dim: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        blocks = []
        for i, rate in enumerate(rates):
            halve = stage > 0 and i == 0
            if config.mixes(stage, i):
                dim, pool = config.mix_dims[stage], config.pool_rates[stage]
                block = FrequencyBlock(config, in_dim=in_dim, dim=dim, pool_rate=pool, halve=halve, drop_path_rate=rate, rngs=rngs)
            else:
                dim = config.conv_dims[stage]
                block = FusionBlock(config, in_dim=in_dim, dim=dim, halve=halve, drop_path_rate=rate, rngs=rngs)
            blocks.append(block)
            in_dim = dim
        self.blocks = nnx.List(blocks)
        self.dim = in_dim

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class FMViT(VisionModel[FMViTConfig]):
    """A convolutional stem, stages, a batch norm, the mean over positions, a linear head."""

    def __init__(self, config: FMViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dims = (config.in_channels, *config.stem_dims, config.stem_dims[-1])
        self.stem = nnx.List(
            [
                ConvNorm(dims[i], dims[i + 1], kernel_size=3, stride=stride, dtype=config.dtype, rngs=rngs)
                for i, stride in enumerate((2, 1, 1, 2))
            ]
        )
        declare(self.stem, "embedding")
        rates, stages, in_dim = drop_path_rates(config.drop_path_rate, sum(config.depths)), [], dims[-1]
        for i, depth in enumerate(config.depths):
            start = sum(config.depths[:i])
            stages.append(Stage(config, stage=i, in_dim=in_dim, rates=rates[start : start + depth], rngs=rngs))
            in_dim = stages[-1].dim
        self.stages = nnx.List(stages)
        self.norm = BatchNorm(in_dim, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(in_dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=stage.dim, normalised=False) for i, stage in enumerate(self.stages))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        x = self.checked(images)
        for conv in self.stem:
            x = jax.nn.relu(conv(x, train=train))
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1], train=train).astype(jnp.float32).mean((1, 2))

    def fuse(self) -> "FMViT":
        """Returns the network for deployment.

        Each gMLP is one linear map; batch norms, except the last, are folded into neighbouring
        layers.
        """
        model = nnx.clone(self)
        fuse_conv_norms(model)
        for _, module in list(nnx.iter_modules(model)):
            if isinstance(module, FusionConv | GroupMlp | FrequencyBlock):
                module.fuse()
        return model


FAMILY = Family(FMViT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
