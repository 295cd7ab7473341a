"""Dual Attention Vision Transformers (Ding et al., arXiv:2204.03645).

Follows the authors' code. Any image size: each map is padded with zeros to whole windows before the
projection, and padding takes part as keys; maps of odd sides are padded before they are halved.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import Conv, DropPath, LayerNorm, Linear, Mlp, PosConv, Remat, drop_path_rates, run_blocks
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.channel_attention import ChannelAttention
from vitlab.mixers.window_attention import WindowAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaViTConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # pairs of a window block and a channel block, per stage
    num_heads: tuple[Count, ...]  # heads of window blocks and groups of channel blocks, per stage
    window_size: Side = 7  # tokens per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    implementation: str | None = None  # a key of window_attention.QKV_IMPLEMENTATIONS; None: the first that can run
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.95)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads")


# arXiv:2204.03645 table 1 and appendix. Drop path: the authors' train.py has 0.1; the paper has
# 0.1, 0.2, 0.4 for tiny, small, base.
VARIANTS = {
    "davit_tiny": DaViTConfig(dims=(96, 192, 384, 768), depths=(1, 1, 3, 1), num_heads=(3, 6, 12, 24)),
    "davit_small": DaViTConfig(dims=(96, 192, 384, 768), depths=(1, 1, 9, 1), num_heads=(3, 6, 12, 24), drop_path_rate=0.2),
    "davit_base": DaViTConfig(dims=(128, 256, 512, 1024), depths=(1, 1, 9, 1), num_heads=(4, 8, 16, 32), drop_path_rate=0.4),
    "davit_large": DaViTConfig(dims=(192, 384, 768, 1536), depths=(1, 1, 9, 1), num_heads=(6, 12, 24, 48)),
    "davit_huge": DaViTConfig(dims=(256, 512, 1024, 2048), depths=(1, 1, 9, 1), num_heads=(8, 16, 32, 64)),
    "davit_giant": DaViTConfig(dims=(384, 768, 1536, 3072), depths=(1, 1, 12, 3), num_heads=(12, 24, 48, 96)),
}
_SOURCE = "github.com/dingmyu/davit README"
PUBLISHED = {
    "davit_tiny": Published(params=28_360_168, gmacs=4.52, top1=82.8, source=_SOURCE),
    "davit_small": Published(params_m=49.746, gmacs=8.77, top1=84.2, source=_SOURCE),
    "davit_base": Published(params_m=87.954, gmacs=15.47, top1=84.6, source=_SOURCE),
    "davit_large": Published(
        params_m=196.81, source=_SOURCE + "; trained at 384 pixels with windows of 12 (103.0 GMACs), after ImageNet-22k"
    ),
    "davit_huge": Published(source="arXiv:2204.03645; no checkpoint, the paper's figures are of 512 pixels"),
    "davit_giant": Published(source="arXiv:2204.03645; no checkpoint, the paper's figures are of 512 pixels"),
}


class Block(nnx.Module):
    """Position encoding, attention, position encoding, MLP, as pre-norm residual branches.

    Attention is inside windows (`spatial`) or between channels.
    """

    def __init__(self, config: DaViTConfig, *, stage: int, spatial: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dim, heads, dtype = config.dims[stage], config.num_heads[stage], config.dtype
        self.cpe1 = PosConv(dim, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = (
            WindowAttention(
                dim,
                num_heads=heads,
                window_size=config.window_size,
                rel_pos=False,
                implementation=config.implementation,
                dtype=dtype,
                rngs=rngs,
            )
            if spatial
            else ChannelAttention(dim, num_heads=heads, dtype=dtype, rngs=rngs)
        )
        self.cpe2 = PosConv(dim, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = self.cpe1(x)
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        x = self.cpe2(x)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class Stem(nnx.Module):
    """A 7x7 convolution of stride 4, then a norm."""

    def __init__(self, in_channels: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv(in_channels, dim, kernel_size=7, stride=4, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        _, h, w, _ = x.shape
        return self.norm(self.conv(jnp.pad(x, ((0, 0), (0, -h % 4), (0, -w % 4), (0, 0)))))


class Downsample(nnx.Module):
    """A norm, then a 2x2 convolution of stride 2."""

    def __init__(self, in_dim: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(in_dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.conv = Conv(in_dim, dim, kernel_size=2, stride=2, padding=0, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        _, h, w, _ = x.shape
        return self.conv(jnp.pad(self.norm(x), ((0, 0), (0, h % 2), (0, w % 2), (0, 0))))


class Stage(nnx.Module):
    """Down-sampling (except in the first stage), then pairs of a window and a channel block."""

    def __init__(self, config: DaViTConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = Downsample(config.dims[stage - 1], config.dims[stage], dtype=config.dtype, rngs=rngs) if stage else None
        self.blocks = nnx.List(
            [
                nnx.List([Block(config, stage=stage, spatial=k == 0, drop_path_rate=rates[i + k], rngs=rngs) for k in range(2)])
                for i in range(0, len(rates), 2)
            ]
        )

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x)
        blocks = [block for pair in self.blocks for block in pair]
        return run_blocks(blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class DaViT(VisionModel[DaViTConfig]):
    """Stages, then the mean over the positions, a norm and a linear head.

    Each block has its own drop path rate, as in the authors' code.
    """

    def __init__(self, config: DaViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Stem(config.in_channels, config.dims[0], dtype=config.dtype, rngs=rngs)
        declare(self.stem, "embedding")
        rates = drop_path_rates(config.drop_path_rate, 2 * sum(config.depths))
        starts = [2 * sum(config.depths[:i]) for i in range(len(config.depths))]
        self.stages = nnx.List(
            [
                Stage(config, stage=i, rates=rates[start : start + 2 * depth], rngs=rngs)
                for i, (start, depth) in enumerate(zip(starts, config.depths, strict=True))
            ]
        )
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=jnp.float32, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; none is normalised."""
        x = self.stem(self.checked(images))
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the normalised mean over the positions of the last map, in float32."""
        return self.norm(features[-1].astype(jnp.float32).mean((1, 2)))


FAMILY = Family(DaViT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
