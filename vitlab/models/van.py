"""Visual Attention Network (Guo et al., arXiv:2202.09741).

Follows the authors' code, also in the third stage of b6, which is 384 wide, although b5 has 480.
Any image size.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio
from vitlab.layers import BatchNorm, Conv, ConvMlp, DropPath, LayerNorm, LayerScale, Linear, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.large_kernel import LargeKernelAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class VANConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    mlp_ratios: tuple[Ratio, ...] = (8.0, 8.0, 4.0, 4.0)  # MLP hidden width / dim of each stage
    layer_scale_init: float = 1e-2  # initial factor on the residual branches
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "mlp_ratios")


# arXiv:2202.09741 table 2; b4 to b6 are from the authors' models/van.py.
VARIANTS = {
    "van_b0": VANConfig(dims=(32, 64, 160, 256), depths=(3, 3, 5, 2)),
    "van_b1": VANConfig(dims=(64, 128, 320, 512), depths=(2, 2, 4, 2)),
    "van_b2": VANConfig(dims=(64, 128, 320, 512), depths=(3, 3, 12, 3)),
    "van_b3": VANConfig(dims=(64, 128, 320, 512), depths=(3, 5, 27, 3), drop_path_rate=0.2),
    "van_b4": VANConfig(dims=(64, 128, 320, 512), depths=(3, 6, 40, 3), drop_path_rate=0.2),
    "van_b5": VANConfig(dims=(96, 192, 480, 768), depths=(3, 3, 24, 3), drop_path_rate=0.2),
    "van_b6": VANConfig(dims=(96, 192, 384, 768), depths=(6, 6, 90, 6), drop_path_rate=0.2),
}
_SOURCE = "github.com/Visual-Attention-Network/VAN-Classification README"
_COUNTED = "parameters and MACs counted on the authors' code; no top-1 of ImageNet-1k training at 224 pixels was found"
PUBLISHED = {
    "van_b0": Published(params=4_105_800, gmacs=0.86, top1=75.4, source=_SOURCE),
    "van_b1": Published(params_m=13.862, gmacs=2.50, top1=81.1, source=_SOURCE),
    "van_b2": Published(params_m=26.578, gmacs=4.99, top1=82.8, source=_SOURCE),
    "van_b3": Published(params_m=44.766, gmacs=8.93, top1=83.9, source=_SOURCE),
    "van_b4": Published(params_m=60.283, gmacs=12.14, source=_COUNTED),
    "van_b5": Published(params_m=89.968, gmacs=17.13, source=_COUNTED),
    "van_b6": Published(params_m=199.83, gmacs=38.7, source=_COUNTED),
}


class Block(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), with batch norms.

    Each branch has a factor per channel.
    """

    def __init__(self, config: VANConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.norm1 = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.attn = LargeKernelAttention(dim, dtype=dtype, rngs=rngs)
        self.ls1 = LayerScale(dim, init=config.layer_scale_init)
        self.norm2 = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.mlp = ConvMlp(dim, mlp_dim=int(dim * config.mlp_ratios[stage]), dtype=dtype, rngs=rngs)
        self.ls2 = LayerScale(dim, init=config.layer_scale_init)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x, train=train))), train=train, rngs=rngs)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x, train=train))), train=train, rngs=rngs)


class OverlapPatchEmbed(nnx.Module):
    """A strided convolution, then a batch norm."""

    def __init__(self, in_dim: int, dim: int, *, kernel_size: int, stride: int, dtype, rngs: nnx.Rngs):
        self.proj = Conv(in_dim, dim, kernel_size=kernel_size, stride=stride, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.proj(x), train=train)


class Stage(nnx.Module):
    """A patch embedding, blocks and a LayerNorm."""

    def __init__(self, config: VANConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dims, dtype = config.dims, config.dtype
        in_dim, kernel, stride = (dims[stage - 1], 3, 2) if stage else (config.in_channels, 7, 4)
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.patch_embed = OverlapPatchEmbed(in_dim, dims[stage], kernel_size=kernel, stride=stride, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(dims[stage], eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.patch_embed(x, train=train)
        x = run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)
        return self.norm(x)


class VAN(VisionModel[VANConfig]):
    """Stages that end in a norm each, then the mean over the positions and a linear head."""

    def __init__(self, config: VANConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].patch_embed, "embedding")
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


FAMILY = Family(VAN, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
