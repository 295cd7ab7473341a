"""SG-Former (Ren et al., arXiv:2308.12216): attention that finds the significant tokens, and
attention that is guided by them.

Follows the authors' code, in which the position embedding, sines and cosines at first, is trained.
Departs from it: any image of at least 29 pixels a side, where theirs needs maps of whole windows
whose tokens the groups divide; see `vitlab.mixers.self_guided`.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import Conv, ConvMlp, DropPath, LayerNorm, Linear, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.gelu import gelu
from vitlab.layers.group_norm import GroupNorm
from vitlab.layers.pos_embed import sincos_2d
from vitlab.layers.resize import resize_bilinear
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.self_guided import GROUPS, HybridScaleAttention, LocalEncoding, SelfGuidedAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of the LayerNorms of blocks and stages


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGFormerConfig(VisionConfig):
    dims: tuple[Count, ...]  # width per stage
    depths: tuple[Depth, ...]  # blocks per stage; in those with sr_ratio above 1 every second is guided by the one before
    num_heads: tuple[Count, ...]  # per stage
    sr_ratios: tuple[Side, ...] = (8, 4, 2, 1)  # per stage, tokens per side of a cell; 1: plain attention
    window_size: Side = 7  # tokens per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("dims", "depths", "num_heads", "sr_ratios")
        for ratio, heads in zip(self.sr_ratios, self.num_heads, strict=True):
            if ratio != 1 and ratio not in GROUPS:
                raise ValueError(f"sr_ratios={self.sr_ratios} must be of {sorted(GROUPS)}, or 1 for plain attention")
            if ratio != 1 and heads % 2:
                raise ValueError(f"num_heads={self.num_heads} must be even where sr_ratios={self.sr_ratios} are above 1")

    @property
    def min_size(self) -> int:
        return max((4 * 2**i * (ratio - 1) + 1 for i, ratio in enumerate(self.sr_ratios)), default=1)  # pixels of a cell

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the first stage's map at the configured size."""
        return -(-self.image_size[0] // 4), -(-self.image_size[1] // 4)


# The authors' sgformer.py; drop path: the paper's section 4.1.
VARIANTS = {
    "sgformer_small": SGFormerConfig(dims=(64, 128, 256, 512), depths=(2, 4, 16, 1), num_heads=(2, 4, 8, 16)),
    "sgformer_medium": SGFormerConfig(dims=(64, 128, 256, 512), depths=(2, 6, 28, 2), num_heads=(2, 4, 8, 16), drop_path_rate=0.2),
    "sgformer_base": SGFormerConfig(dims=(96, 192, 384, 768), depths=(4, 6, 24, 2), num_heads=(4, 6, 12, 24), drop_path_rate=0.4),
}
_SOURCE = "arXiv:2308.12216; counts: on the authors' code"
PUBLISHED = {
    "sgformer_small": Published(params=22_545_981, gmacs=4.78, top1=83.2, source=_SOURCE),
    "sgformer_medium": Published(params_m=38.689, gmacs=7.43, top1=84.1, source=_SOURCE),
    "sgformer_base": Published(params_m=77.95, gmacs=15.54, top1=84.7, source=_SOURCE),
}


class PlainAttention(nnx.Module):
    """Global attention with the local encoding."""

    def __init__(self, dim: int, *, num_heads: int, dtype, rngs: nnx.Rngs):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.q = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.lepe = LocalEncoding(dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b = x.shape[0]
        q, k, v = (y.reshape(b, -1, self.num_heads, self.head_dim) for y in (self.q(x), *jnp.split(self.kv(x), 2, -1)))
        return self.proj(dot_product_attention(q, k, v).reshape(x.shape) + self.lepe(x))


class Part(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); beside it what attention says of the tokens'
    significance, if it does.
    """

    def __init__(self, config: SGFormerConfig, attn: nnx.Module, *, dim: int, drop_path_rate: float, rngs: nnx.Rngs):
        dtype = config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = attn
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = ConvMlp(dim, mlp_dim=int(dim * config.mlp_ratio), residual=True, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(
        self, x: Float[Array, "b h w c"], *significance: Float[Array, "b h w"], train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"] | None]:
        y = self.attn(self.norm1(x), *significance)
        y, found = y if isinstance(y, tuple) else (y, None)
        x = x + self.drop_path(y, train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs), found


class Block(nnx.Module):
    """Hybrid-scale attention and the self-guided attention that uses its significance, or one part
    alone.
    """

    def __init__(self, config: SGFormerConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        rate, *rest = rates
        dim, heads, ratio, dtype = config.dims[stage], config.num_heads[stage], config.sr_ratios[stage], config.dtype
        if ratio == 1:
            first = PlainAttention(dim, num_heads=heads, dtype=dtype, rngs=rngs)
        else:
            first = HybridScaleAttention(dim, num_heads=heads, sr_ratio=ratio, window_size=config.window_size, dtype=dtype, rngs=rngs)
        self.first = Part(config, first, dim=dim, drop_path_rate=rate, rngs=rngs)
        guided = SelfGuidedAttention(dim, num_heads=heads, sr_ratio=ratio, dtype=dtype, rngs=rngs) if rest else None
        self.guided = None if guided is None else Part(config, guided, dim=dim, drop_path_rate=rest[0], rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x, significance = self.first(x, train=train, rngs=rngs)
        return x if self.guided is None or significance is None else self.guided(x, significance, train=train, rngs=rngs)[0]


class ConvNorm(nnx.Module):
    """norm(conv(x)), the norm over the whole map."""

    def __init__(self, in_dim: int, dim: int, *, kernel_size: int, stride: int = 1, groups: int = 1, dtype, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, dim, kernel_size=kernel_size, stride=stride, groups=groups, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.conv(x))


class Stem(nnx.Module):
    """Three 3x3 convolutions, the first and last strided, norm, position embedding."""

    def __init__(self, in_channels: int, dim: int, *, grid: tuple[int, int], dtype, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [
                ConvNorm(dim if i else in_channels, dim, kernel_size=3, stride=stride, dtype=dtype, rngs=rngs)
                for i, stride in enumerate((2, 1, 2))
            ]
        )
        self.norm = LayerNorm(dim, eps=1e-5, dtype=dtype, rngs=rngs)
        table = sincos_2d(*grid, dim, endpoint=False).reshape(1, *grid, dim)
        self.pos_map = declare(nnx.Param(jnp.asarray(table)), "position")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        for i, conv in enumerate(self.convs):
            x = conv(gelu(x) if i else x)
        return self.norm(x) + resize_bilinear(self.pos_map[...], (x.shape[1], x.shape[2])).astype(x.dtype)


class Downsample(nnx.Module):
    """Three convolutions, pointwise, depthwise and strided, pointwise."""

    def __init__(self, in_dim: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv1 = ConvNorm(in_dim, dim, kernel_size=1, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(dim, dim, kernel_size=3, stride=2, groups=dim, dtype=dtype, rngs=rngs)
        self.conv3 = ConvNorm(dim, dim, kernel_size=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.conv3(gelu(self.conv2(gelu(self.conv1(x)))))


class Stage(nnx.Module):
    """Down-sampling (but in the first stage), the blocks, norm."""

    def __init__(self, config: SGFormerConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = Downsample(config.dims[stage - 1], dim, dtype=dtype, rngs=rngs) if stage else None
        together = 1 if config.sr_ratios[stage] == 1 else 2
        groups = [rates[i : i + together] for i in range(0, len(rates), together)]
        self.blocks = nnx.List([Block(config, stage=stage, rates=group, rngs=rngs) for group in groups])
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x)
        return self.norm(run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs))


class SGFormer(VisionModel[SGFormerConfig]):
    """Stem, stages; mean over the tokens, linear head."""

    def __init__(self, config: SGFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config.in_channels, config.dims[0], grid=config.grid, dtype=config.dtype, rngs=rngs)
        declare(self.stem, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=True) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The normalised map at the end of each stage."""
        return run_stages(self.stages, self.stem(self.checked(images)), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean over the tokens of the last map; float32."""
        return features[-1].astype(jnp.float32).mean((1, 2))


FAMILY = Family(SGFormer, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
