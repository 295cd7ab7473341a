"""Vanilla SpectFormer (Patro et al., arXiv:2304.06446) and GFNet (Rao et al., arXiv:2107.00645).

All blocks of GFNet are spectral. Follows the authors' code: a spectral block has one residual
around filter and MLP together. Any image of whole patches is accepted; positions and filters are
resampled. The hierarchical SpectFormer is in `spectformer_h`.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Ratio, Side
from vitlab.layers import DropPath, LayerNorm, Linear, Mlp, PatchEmbed, drop_path_rates, run_blocks
from vitlab.layers.pos_embed import position_table, resample
from vitlab.layers.roles import declare
from vitlab.mixers.global_attention import GlobalAttention
from vitlab.mixers.spectral import SpectralGating
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectFormerConfig(VisionConfig):
    dim: Count  # width of the residual stream
    depth: Depth  # number of blocks
    num_spectral: CountOrZero = 4  # the first so many blocks are spectral, the others attend
    num_heads: Count = 1  # heads of the blocks that attend
    patch_size: Side = 16  # pixels per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim

    def __post_init__(self):
        super().__post_init__()
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} must be a multiple of num_heads={self.num_heads}")

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_class_tokens(self) -> int:
        """The position embedding has no class token; it starts with the patches."""
        return 0


# arXiv:2304.06446 table 1 and the authors' vanilla_architecture/main_spectformer.py. It does not
# state the heads of base (the 12 of its comment does not divide 512). GFNet: arXiv:2107.00645 table
# 1.
VARIANTS = {
    "spectformer_tiny": SpectFormerConfig(dim=256, depth=12, num_heads=4),
    "spectformer_xs": SpectFormerConfig(dim=384, depth=12, num_heads=6),
    "spectformer_small": SpectFormerConfig(dim=384, depth=19, num_heads=6, drop_path_rate=0.15),
    "spectformer_base": SpectFormerConfig(dim=512, depth=19, num_heads=8, drop_path_rate=0.25),
    "gfnet_tiny": SpectFormerConfig(dim=256, depth=12, num_spectral=12),
    "gfnet_xs": SpectFormerConfig(dim=384, depth=12, num_spectral=12),
    "gfnet_small": SpectFormerConfig(dim=384, depth=19, num_spectral=19, drop_path_rate=0.15),
    "gfnet_base": SpectFormerConfig(dim=512, depth=19, num_spectral=19, drop_path_rate=0.25),
}
_SOURCE = "github.com/badripatro/SpectFormers README; counts: on the authors' code"
_GFNET = "arXiv:2107.00645; no count or accuracy was checked against a source"
PUBLISHED = {
    "spectformer_tiny": Published(params_m=9.158, top1=76.9, source=_SOURCE),
    "spectformer_xs": Published(params=20_028_520, gmacs=3.99, top1=80.2, source=_SOURCE + " (README: 22 M)"),
    "spectformer_small": Published(params_m=32.45, gmacs=6.63, top1=81.7, source=_SOURCE),
    "spectformer_base": Published(params_m=57.16, top1=82.1, source=_SOURCE),
    "gfnet_tiny": Published(source=_GFNET),
    "gfnet_xs": Published(source=_GFNET),
    "gfnet_small": Published(source=_GFNET),
    "gfnet_base": Published(source=_GFNET),
}


class SpectralBlock(nnx.Module):
    """x + mlp(norm2(filter(norm1(x))))."""

    def __init__(self, config: SpectFormerConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.filter = SpectralGating(dim, grid=config.grid, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        return x + self.drop_path(self.mlp(self.norm2(self.filter(self.norm1(x)))), train=train, rngs=rngs)


class AttentionBlock(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: SpectFormerConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = GlobalAttention(dim, num_heads=config.num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class SpectFormer(VisionModel[SpectFormerConfig]):
    """Patches with positions, spectral blocks, attention blocks.

    The head is a norm, the mean over the patches and a linear map.
    """

    def __init__(self, config: SpectFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.dim, config.dtype
        self.patch_embed = PatchEmbed(config.in_channels, dim, patch_size=config.patch_size, dtype=dtype, rngs=rngs)
        declare(self.patch_embed, "embedding")
        self.pos_embed = declare(position_table(rngs.params(), config.grid, dim), "position", "embedding")
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        kinds = [SpectralBlock if i < config.num_spectral else AttentionBlock for i in range(config.depth)]
        self.blocks = nnx.List([kind(config, drop_path_rate=rate, rngs=rngs) for kind, rate in zip(kinds, rates, strict=True)])
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return (FeatureInfo(stride=self.config.patch_size, dim=self.config.dim, normalised=False),)

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map after the last block, not normalised."""
        x = self.patch_embed(self.checked(images))
        _, h, w, c = x.shape
        position = resample(self.pos_embed[...], self.config.grid, (h, w))
        x = x + position.reshape(1, h, w, c).astype(x.dtype)
        x = run_blocks(self.blocks, x, remat=self.config.remat, scan=self.config.scan_blocks, train=train, rngs=rngs)
        return Features([x])

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised patches, in float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


FAMILY = Family(SpectFormer, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
