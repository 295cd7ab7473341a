"""BiFormer (Zhu et al., arXiv:2303.08810): attention to a few regions chosen by routing.

Follows the authors' code, also in the last stage: global attention of 8 heads whatever the width,
no projection bias, and a position convolution on the attention's input. Any image size; maps are
padded to 7 regions per side.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import BatchNorm, Conv, DropPath, LayerNorm, Linear, Mlp, PosConv, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.roles import declare, stage_layers
from vitlab.layers.transitions import DeepStem, Transition
from vitlab.mixers.bi_level_routing import BiLevelRoutingAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm
LAST_HEADS = 8  # heads of the last stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiFormerConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    topks: tuple[Count | None, ...] = (1, 4, 16, None)  # number of regions attended to, per stage; None: global attention
    num_regions: Side = 7  # regions per side of the map
    head_dim: Count = 32  # width of a head
    mlp_ratio: Ratio = 3.0  # MLP hidden width / dim
    swin_layout: bool = False  # True: patches and merging as in Swin, and no position convolution at a block's start
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "topks")


# arXiv:2303.08810 table 1 and the authors' models/biformer*.py. The drop path rate of small is from
# the authors' scripts.
VARIANTS = {
    "biformer_tiny": BiFormerConfig(dims=(64, 128, 256, 512), depths=(2, 2, 8, 2)),
    "biformer_small": BiFormerConfig(dims=(64, 128, 256, 512), depths=(4, 4, 18, 4), drop_path_rate=0.15),
    "biformer_base": BiFormerConfig(dims=(96, 192, 384, 768), depths=(4, 4, 18, 4), drop_path_rate=0.4),
    "biformer_stl": BiFormerConfig(dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), mlp_ratio=4.0, swin_layout=True),
}
_SOURCE = "github.com/rayleizhu/BiFormer README; counts: on the authors' code"
PUBLISHED = {
    "biformer_tiny": Published(params_m=13.143, gmacs=2.22, top1=81.4, source=_SOURCE),
    "biformer_small": Published(params_m=25.536, gmacs=4.46, top1=83.8, source=_SOURCE),
    "biformer_base": Published(params_m=56.805, gmacs=9.76, top1=84.3, source=_SOURCE),
    "biformer_stl": Published(params_m=28.373, gmacs=4.57, top1=82.7, source=_SOURCE),
}


class LastAttention(nnx.Module):
    """Global attention plus a depthwise 5x5 convolution of its input."""

    def __init__(self, dim: int, *, num_heads: int, dtype, rngs: nnx.Rngs):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.qkv = Linear(dim, 3 * dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.lepe = Conv(dim, dim, kernel_size=5, groups=dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, self.head_dim)
        out = dot_product_attention(*(qkv[:, :, i] for i in range(3)))
        return self.proj(out.reshape(x.shape) + self.lepe(x))


class Block(nnx.Module):
    """A position convolution (except in the Swin layout), then pre-norm attention and MLP."""

    def __init__(self, config: BiFormerConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, topk = config.dims[stage], config.dtype, config.topks[stage]
        self.pos_embed = None if config.swin_layout else PosConv(dim, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = (
            LastAttention(dim, num_heads=LAST_HEADS, dtype=dtype, rngs=rngs)
            if topk is None
            else BiLevelRoutingAttention(
                dim, num_heads=dim // config.head_dim, num_regions=config.num_regions, topk=topk, dtype=dtype, rngs=rngs
            )
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        if self.pos_embed is not None:
            x = self.pos_embed(x)
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class Stage(nnx.Module):
    """A stem (in the first stage) or a transition, then the blocks."""

    def __init__(self, config: BiFormerConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = _downsample(config, stage, rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.downsample(x, train=train)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class BiFormer(VisionModel[BiFormerConfig]):
    """Stages, then a batch norm, the mean over the positions and a linear head."""

    def __init__(self, config: BiFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].downsample, "embedding")
        self.norm = BatchNorm(config.dims[-1], dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1], train=train).astype(jnp.float32).mean((1, 2))


def _downsample(config: BiFormerConfig, stage: int, rngs: nnx.Rngs) -> DeepStem | Transition:
    in_dim, dim, dtype = (config.dims[stage - 1] if stage else config.in_channels), config.dims[stage], config.dtype
    if config.swin_layout:
        return Transition(
            in_dim, dim, kernel_size=2 if stage else 4, stride=2 if stage else 4, norm_first=stage > 0, dtype=dtype, rngs=rngs
        )
    return Transition(in_dim, dim, dtype=dtype, rngs=rngs) if stage else DeepStem(in_dim, dim, dtype=dtype, rngs=rngs)


FAMILY = Family(BiFormer, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
