"""Next-ViT (Li et al., arXiv:2207.05501): convolution blocks with few transformer blocks.

Each group of convolution blocks ends in a transformer block. Follows the authors' code, except that
convolutions start with He's normal distribution instead of a normal one of deviation 0.02. Any
image size whose maps have at least as many tokens as the attention pools into one.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Share, Side
from vitlab.layers import BatchNorm, ConvNorm, DropPath, Linear, Mlp, Remat, drop_path_rates, run_blocks
from vitlab.layers.conv_norm import fold_into_next, fuse_conv_norms
from vitlab.layers.pool import average_pool_ceil
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.efficient_attention import EfficientAttention
from vitlab.mixers.multi_head_conv import MultiHeadConv
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

_GROUP = 5  # every fifth block of the third stage is a transformer block


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextViTConfig(VisionConfig):
    depths: tuple[Depth, ...]  # blocks per stage; `has_attention` says which are transformer blocks
    stem_dims: tuple[Count, Count, Count] = (64, 32, 64)  # widths of the stem's convolutions; the fourth repeats the last
    conv_dims: tuple[Count, ...] = (96, 192, 384, 768)  # width of the convolution blocks, per stage
    attn_dims: tuple[Count, ...] = (96, 256, 512, 1024)  # width of the transformer blocks, per stage
    sr_ratios: tuple[Side, ...] = (8, 4, 2, 1)  # a key is a mean of sr_ratio**2 tokens, per stage; 1: every token is a key
    head_dim: Count = 32  # width of a head; every dim is a multiple
    mix_ratio: Share = 0.75  # share of a transformer block's channels that attend; the others are convolved
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.95)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "conv_dims", "attn_dims", "sr_ratios")
        for dim in (*self.conv_dims, *self.attn_dims):
            if dim % self.head_dim:
                raise ValueError(f"{dim=} must be a multiple of head_dim={self.head_dim}")

    @property
    def min_size(self) -> int:
        # Keys are means of sr_ratio**2 tokens; each map with attention must have that many tokens.
        return max((4 * 2**i * (ratio - 1) + 1 for i, ratio in enumerate(self.sr_ratios) if i), default=1)


# arXiv:2207.05501 table 3. Drop path rates are from the authors' README.
VARIANTS = {
    "nextvit_small": NextViTConfig(depths=(3, 4, 10, 3)),
    "nextvit_base": NextViTConfig(depths=(3, 4, 20, 3), drop_path_rate=0.2),
    "nextvit_large": NextViTConfig(depths=(3, 4, 30, 3), drop_path_rate=0.2),
}
_SOURCE = "github.com/bytedance/Next-ViT README"
PUBLISHED = {
    "nextvit_small": Published(params=31_763_368, gmacs=5.79, top1=82.5, source=_SOURCE),
    "nextvit_base": Published(params_m=44.819, gmacs=8.27, top1=83.2, source=_SOURCE),
    "nextvit_large": Published(params_m=57.874, gmacs=10.75, top1=83.6, source=_SOURCE),
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


class ConvBlock(nnx.Module):
    """Next convolution block: x + mhca(x), then x + mlp(norm(x))."""

    def __init__(self, config: NextViTConfig, *, in_dim: int, dim: int, halve: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dtype = config.dtype
        self.patch_embed = PatchEmbed(in_dim, dim, halve=halve, dtype=dtype, rngs=rngs)
        self.mhca = MultiHeadConv(dim, num_heads=dim // config.head_dim, dtype=dtype, rngs=rngs)
        self.norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=3 * dim, activation=jax.nn.relu, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.patch_embed(x, train=train)
        x = x + self.drop_path(self.mhca(x, train=train), train=train, rngs=rngs)
        y = x if self.norm is None else self.norm(x, train=train)
        return x + self.drop_path(self.mlp(y), train=train, rngs=rngs)

    def fuse(self) -> None:
        """Folds the norms into neighbouring layers, in place."""
        self.mhca.fuse()
        if self.norm is not None:
            fold_into_next(self.norm, self.mlp.fc1)
            self.norm = None


class TransformerBlock(nnx.Module):
    """Next transformer block: attention on most channels, convolution on the others.

    Both parts share one MLP.
    """

    def __init__(self, config: NextViTConfig, *, in_dim: int, dim: int, sr_ratio: int, halve: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dtype, head_dim, mix = config.dtype, config.head_dim, config.mix_ratio
        attn_dim = make_divisible(int(dim * mix), head_dim)
        conv_dim = dim - attn_dim
        self.patch_embed = PatchEmbed(in_dim, attn_dim, halve=halve, dtype=dtype, rngs=rngs)
        self.norm1: BatchNorm | None = BatchNorm(attn_dim, dtype=dtype, rngs=rngs)
        self.e_mhsa = EfficientAttention(attn_dim, num_heads=attn_dim // head_dim, sr_ratio=sr_ratio, dtype=dtype, rngs=rngs)
        self.projection = ConvNorm(attn_dim, conv_dim, dtype=dtype, rngs=rngs)
        self.mhca = MultiHeadConv(conv_dim, num_heads=conv_dim // head_dim, dtype=dtype, rngs=rngs)
        self.norm2: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=2 * dim, activation=jax.nn.relu, dtype=dtype, rngs=rngs)
        self.attn_drop_path, self.conv_drop_path = DropPath(drop_path_rate * mix), DropPath(drop_path_rate * (1 - mix))
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.patch_embed(x, train=train)
        y = x if self.norm1 is None else self.norm1(x, train=train)
        x = x + self.attn_drop_path(self.e_mhsa(y, train=train), train=train, rngs=rngs)
        y = self.projection(x, train=train)
        y = y + self.conv_drop_path(self.mhca(y, train=train), train=train, rngs=rngs)
        x = jnp.concatenate((x, y), -1)
        y = x if self.norm2 is None else self.norm2(x, train=train)
        return x + self.drop_path(self.mlp(y), train=train, rngs=rngs)

    def fuse(self) -> None:
        """Folds the norms into neighbouring layers, in place."""
        self.mhca.fuse()
        if self.norm1 is not None:
            self.e_mhsa.fuse(self.norm1)
            self.norm1 = None
        if self.norm2 is not None:
            fold_into_next(self.norm2, self.mlp.fc1)
            self.norm2 = None


class Stage(nnx.Module):
    """The blocks; except in the first stage, the first block halves the map."""

    def __init__(self, config: NextViTConfig, *, stage: int, in_dim: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        blocks = []
        for i, rate in enumerate(rates):
            halve = stage > 0 and i == 0
            if has_attention(config, stage, i):
                dim = config.attn_dims[stage]
                block = TransformerBlock(
                    config, in_dim=in_dim, dim=dim, sr_ratio=config.sr_ratios[stage], halve=halve, drop_path_rate=rate, rngs=rngs
                )
            else:
                dim = config.conv_dims[stage]
                block = ConvBlock(config, in_dim=in_dim, dim=dim, halve=halve, drop_path_rate=rate, rngs=rngs)
            blocks.append(block)
            in_dim = dim
        self.blocks = nnx.List(blocks)
        self.dim = in_dim

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class NextViT(VisionModel[NextViTConfig]):
    """A convolutional stem, stages, a batch norm, the mean over positions, a linear head."""

    def __init__(self, config: NextViTConfig, *, rngs: nnx.Rngs):
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

    def fuse(self) -> "NextViT":
        """Returns the network for deployment: batch norms are folded into neighbouring layers."""
        model = nnx.clone(self)
        fuse_conv_norms(model)
        for stage in model.stages:
            for block in stage.blocks:
                block.fuse()
        return model


def has_attention(config: NextViTConfig, stage: int, block: int) -> bool:
    """Whether a block is a transformer block.

    These are the last blocks of stages 2 and 4 and every fifth block of stage 3.
    """
    if stage == 2:
        return block % _GROUP == _GROUP - 1
    return stage > 0 and block == config.depths[stage] - 1


def make_divisible(value: int, divisor: int) -> int:
    """Returns the nearest multiple of the divisor that is at least 0.9 times the value."""
    rounded = max(divisor, (value + divisor // 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


FAMILY = Family(NextViT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
