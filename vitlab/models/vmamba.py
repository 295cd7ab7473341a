"""VMamba (Liu et al., arXiv:2401.10166): stages of 2-D selective scans and MLPs.

The second version that the authors publish (`vmambav2`, `vmambav2v`): overlapping convolutions
before each stage, one state a channel, no gate. Follows the authors' code. Any image size. Departs
from it: convolutions between stages start with He's normal distribution in place of torch's uniform
default.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio
from vitlab.layers import Conv, DropPath, LayerNorm, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.gelu import gelu
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.ss2d import SS2D
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class VMambaConfig(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    ratio: Ratio  # channels that are scanned / width
    state_dim: Count = 1  # numbers that a channel of an order remembers
    mlp_ratio: Ratio = 4.0  # MLP hidden width / width
    drop_path_rate: Rate = 0.2

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths")
        if self.dim < 2:
            raise ValueError(f"dim={self.dim} must be at least 2: the stem's first convolution has half of it")

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))


# The authors' classification/configs/vssm/vmambav2{,v}_*_224.yaml; names as in their README.
VARIANTS = {
    "vmamba_tiny_s1l8": VMambaConfig(dim=96, depths=(2, 2, 8, 2), ratio=1.0),
    "vmamba_tiny_s2l5": VMambaConfig(dim=96, depths=(2, 2, 5, 2), ratio=2.0),
    "vmamba_small_s1l20": VMambaConfig(dim=96, depths=(2, 2, 20, 2), ratio=1.0, drop_path_rate=0.3),
    "vmamba_small_s2l15": VMambaConfig(dim=96, depths=(2, 2, 15, 2), ratio=2.0, drop_path_rate=0.3),
    "vmamba_base_s1l20": VMambaConfig(dim=128, depths=(2, 2, 20, 2), ratio=1.0, drop_path_rate=0.5),
    "vmamba_base_s2l15": VMambaConfig(dim=128, depths=(2, 2, 15, 2), ratio=2.0, drop_path_rate=0.6),
}
# The README's GMACs count ten for each state of a token's channel in each order; of the 8.7 of
# small_s2l15, 8.52 are products.
_SOURCE = "github.com/MzeroMiko/VMamba README"
PUBLISHED = {
    "vmamba_tiny_s1l8": Published(params_m=30.0, gmacs=4.9, top1=82.6, source=_SOURCE),
    "vmamba_tiny_s2l5": Published(source="no figure in the README"),
    "vmamba_small_s1l20": Published(source="no figure in the README"),
    "vmamba_small_s2l15": Published(params_m=50.0, top1=83.6, source=_SOURCE),
    "vmamba_base_s1l20": Published(source="no figure in the README"),
    "vmamba_base_s2l15": Published(params_m=89.0, gmacs=15.4, top1=83.9, source=_SOURCE),
}


class Block(nnx.Module):
    """x + op(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: VMambaConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.op = SS2D(dim, state_dim=config.state_dim, ratio=config.ratio, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.op(self.norm1(x)), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class Downsample(nnx.Module):
    """A 3x3 convolution of stride 2, then LayerNorm."""

    def __init__(self, in_dim: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv(in_dim, dim, kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return self.norm(self.conv(x))


class Stem(nnx.Module):
    """Two such steps with GELU between them; the first has half of the width."""

    def __init__(self, in_dim: int, dim: int, *, dtype, rngs: nnx.Rngs):
        self.first = Downsample(in_dim, dim // 2, dtype=dtype, rngs=rngs)
        self.second = Downsample(dim // 2, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h4 w4 c2"]:
        return self.second(gelu(self.first(x)))


class Stage(nnx.Module):
    """Stem or downsampling, then the blocks."""

    def __init__(self, config: VMambaConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        dims, dtype = config.dims, config.dtype
        down, in_dim = (Downsample, dims[stage - 1]) if stage else (Stem, config.in_channels)
        self.downsample = down(in_dim, dims[stage], dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        return run_blocks(self.blocks, self.downsample(x), remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class VMamba(VisionModel[VMambaConfig]):
    """Stages, then a norm, the mean over the positions and a linear head."""

    def __init__(self, config: VMambaConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].downsample, "embedding")
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; none is normalised."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


FAMILY = Family(VMamba, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
