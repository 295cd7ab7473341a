"""LITv2 (Pan et al., arXiv:2205.13213): no attention in early stages, HiLo attention in late ones.

Deformable token merging leads from stage to stage. Follows the authors' code. Any image size: the
image is padded to whole patches, odd maps before they are merged, and maps to whole windows, as in
the authors' detection code. The authors' optimizer gives the offset convolutions (`conv_offset`) a
hundredth of the learning rate. Convolutions start with He's normal distribution instead of torch's
uniform default.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Share, Side, SideOrZero
from vitlab.layers import BatchNorm, ConvMlp, DropPath, LayerNorm, Linear, PatchEmbed, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.deform_conv import DeformConv
from vitlab.layers.gelu import gelu
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.hilo import HiLo
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class LITv2Config(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    window_sizes: tuple[SideOrZero, ...] = (0, 0, 2, 1)  # tokens per side of HiLo's windows, per stage; 0: the stage has no attention
    alpha: Share = 0.9  # share of the heads for low frequencies; 0: none, 1: all
    patch_size: Side = 4  # pixels per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "num_heads", "window_sizes")

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))


# arXiv:2205.13213 table 7. Drop path rates are from the authors' classification/configs/*.yaml.
VARIANTS = {
    "litv2_small": LITv2Config(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.2),
    "litv2_medium": LITv2Config(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3),
    "litv2_base": LITv2Config(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
}
_SOURCE = "github.com/ziplab/LITv2 README"
PUBLISHED = {
    "litv2_small": Published(params=27_844_000, gmacs=3.72, top1=82.0, source=_SOURCE),
    "litv2_medium": Published(params_m=48.83, gmacs=7.46, top1=83.3, source=_SOURCE),
    "litv2_base": Published(params_m=86.52, gmacs=13.17, top1=83.6, source=_SOURCE),
}


class Block(nnx.Module):
    """x + attn(norm1(x)) if the stage has attention, then x + mlp(norm2(x)).

    The MLP's convolution encodes positions.
    """

    def __init__(self, config: LITv2Config, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, window = config.dims[stage], config.dtype, config.window_sizes[stage]
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs) if window else None
        self.attn = (
            HiLo(dim, num_heads=config.num_heads[stage], window_size=window, alpha=config.alpha, dtype=dtype, rngs=rngs) if window else None
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = ConvMlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        if self.attn is not None and self.norm1 is not None:
            x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class DeformableTokenMerging(nnx.Module):
    """A deformable 2x2 convolution of stride 2, batch norm, GELU.

    LIT, arXiv:2105.14217, section 3.3.
    """

    def __init__(self, dim: int, out_dim: int, *, dtype, rngs: nnx.Rngs):
        self.dconv = DeformConv(dim, out_dim, kernel_size=2, stride=2, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        return gelu(self.norm(self.dconv(pad_to_multiple(x, 2)), train=train))


class Stage(nnx.Module):
    """Token merging (except in the first stage), then the blocks."""

    def __init__(self, config: LITv2Config, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        dims = config.dims
        self.downsample = DeformableTokenMerging(dims[stage - 1], dims[stage], dtype=config.dtype, rngs=rngs) if stage else None
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.downsample is not None:
            x = self.downsample(x, train=train)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class LITv2(VisionModel[LITv2Config]):
    """Stages, then a norm, the mean over the positions and a linear head."""

    def __init__(self, config: LITv2Config, *, rngs: nnx.Rngs):
        self.config = config
        dtype = config.dtype
        self.patch_embed = PatchEmbed(config.in_channels, config.dim, patch_size=config.patch_size, norm_eps=EPS, dtype=dtype, rngs=rngs)
        declare(self.patch_embed, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.layers = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=self.config.patch_size * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        x = self.patch_embed(pad_to_multiple(self.checked(images), self.config.patch_size))
        return run_stages(self.layers, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


FAMILY = Family(LITv2, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.layers))
