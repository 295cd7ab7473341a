"""Scale-Aware Modulation Transformer (Lin et al., arXiv:2307.08579).

Follows the authors' code, whose small variant has two blocks in the last stage and 22.55 M
parameters (the paper's 20.5 M match one block). Any image size.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Rate, Ratio, Side
from vitlab.layers import BatchNorm, Conv, ConvMlp, DropPath, LayerNorm, LayerScale, Linear, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.scale_aware_modulation import ScaleAwareModulation
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of the LayerNorms of blocks and stages
EMBED_EPS = 1e-5  # epsilon of the LayerNorms of the stem and the transitions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SMTConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage; the third stage alternates, the fourth attends, the others modulate
    mlp_ratios: tuple[Ratio, ...] = (4.0, 4.0, 4.0, 2.0)  # MLP hidden width / dim of each stage
    modulation_heads: Count = 4  # heads of blocks that modulate
    attention_heads: tuple[CountOrZero, ...] = (0, 0, 8, 16)  # heads per stage, for blocks that attend
    stem_kernel: Side = 3  # side of the stem's first kernel, in pixels; odd
    layer_scale_init: float | None = None  # initial factor on the residual branches; None: no factor
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "mlp_ratios", "attention_heads")
        if self.stem_kernel % 2 == 0:
            raise ValueError(f"stem_kernel={self.stem_kernel} must be odd")

    @property
    def min_size(self) -> int:
        return 3  # the stem's second convolution, not padded, needs two rows of the first one's map

    def attends(self, stage: int, block: int) -> bool:
        """Whether a block has attention instead of modulation."""
        return stage == len(self.depths) - 1 or (stage == len(self.depths) - 2 and block % 2 == 1)


_WIDE = (8.0, 6.0, 4.0, 2.0)
# The authors' models/smt.py and configs/smt/*.yaml.
VARIANTS = {
    "smt_tiny": SMTConfig(dims=(64, 128, 256, 512), depths=(2, 2, 8, 1)),
    "smt_small": SMTConfig(dims=(64, 128, 256, 512), depths=(3, 4, 18, 2), drop_path_rate=0.2),
    "smt_base": SMTConfig(dims=(64, 128, 256, 512), depths=(4, 6, 28, 2), mlp_ratios=_WIDE, stem_kernel=7, drop_path_rate=0.3),
    "smt_large": SMTConfig(
        dims=(96, 192, 384, 768), depths=(4, 6, 28, 4), mlp_ratios=_WIDE, stem_kernel=7, layer_scale_init=1e-4, drop_path_rate=0.4
    ),
}
_SOURCE = "github.com/AFeng-x/SMT README; counts: on the authors' code"
PUBLISHED = {
    "smt_tiny": Published(params=11_506_536, gmacs=2.46, top1=82.2, source=_SOURCE),
    "smt_small": Published(params_m=22.551, gmacs=4.84, top1=83.7, source=_SOURCE + " (published: 20.5 M, which fits one block less)"),
    "smt_base": Published(params_m=32.037, gmacs=7.97, top1=84.3, source=_SOURCE),
    "smt_large": Published(
        params=80_620_264, gmacs=17.9, top1=87.1, source=_SOURCE + "; with the factors of its config; top-1 after ImageNet-22k"
    ),
}


class ConvolvedAttention(nnx.Module):
    """Global attention plus a depthwise 3x3 convolution of the values."""

    def __init__(self, dim: int, *, num_heads: int, dtype, rngs: nnx.Rngs):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.q = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.local_conv = Conv(dim, dim, kernel_size=3, groups=dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, _ = x.shape
        k, v = jnp.split(self.kv(x), 2, -1)
        heads = (y.reshape(b, h * w, self.num_heads, self.head_dim) for y in (self.q(x), k, v))
        return self.proj(dot_product_attention(*heads).reshape(x.shape) + self.local_conv(v))


class Block(nnx.Module):
    """Pre-norm block of modulation or attention and of an MLP with a convolution inside."""

    def __init__(self, config: SMTConfig, *, stage: int, index: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, init = config.dims[stage], config.dtype, config.layer_scale_init
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = (
            ConvolvedAttention(dim, num_heads=config.attention_heads[stage], dtype=dtype, rngs=rngs)
            if config.attends(stage, index)
            else ScaleAwareModulation(dim, num_heads=config.modulation_heads, dtype=dtype, rngs=rngs)
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = ConvMlp(dim, mlp_dim=int(dim * config.mlp_ratios[stage]), residual=True, dtype=dtype, rngs=rngs)
        self.ls1, self.ls2 = (None if init is None else LayerScale(dim, init=init) for _ in range(2))
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        y = self.attn(self.norm1(x), train=train) if isinstance(self.attn, ScaleAwareModulation) else self.attn(self.norm1(x))
        x = x + self.drop_path(y if self.ls1 is None else self.ls1(y), train=train, rngs=rngs)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path(y if self.ls2 is None else self.ls2(y), train=train, rngs=rngs)


class Stem(nnx.Module):
    """A strided convolution, batch norm, ReLU, then a 2x2 convolution of stride 2."""

    def __init__(self, in_channels: int, dim: int, *, kernel_size: int, dtype, rngs: nnx.Rngs):
        self.conv1 = Conv(in_channels, dim, kernel_size=kernel_size, stride=2, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm1 = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.conv2 = Conv(dim, dim, kernel_size=2, stride=2, padding=0, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        return self.conv2(jax.nn.relu(self.norm1(self.conv1(x), train=train)))


class Stage(nnx.Module):
    """A stem or a strided convolution, then a norm, the blocks and a norm."""

    def __init__(self, config: SMTConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.stem = None if stage else Stem(config.in_channels, dim, kernel_size=config.stem_kernel, dtype=dtype, rngs=rngs)
        self.proj = Conv(config.dims[stage - 1], dim, kernel_size=3, stride=2, dtype=dtype, rngs=rngs) if stage else None
        self.embed_norm = LayerNorm(dim, eps=EMBED_EPS, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, index=i, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)])
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.stem(x, train=train) if self.stem is not None else x
        x = self.proj(x) if self.proj is not None else x
        x = self.embed_norm(x)
        x = run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)
        return self.norm(x)


class SMT(VisionModel[SMTConfig]):
    """Stages that end in a norm each, then the mean over the positions and a linear head."""

    def __init__(self, config: SMTConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].stem, "embedding")
        declare(self.stages[0].embed_norm, "embedding")
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=True) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the normalised map at the end of each stage."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the positions of the last map, in float32."""
        return features[-1].astype(jnp.float32).mean((1, 2))


FAMILY = Family(SMT, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
