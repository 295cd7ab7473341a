"""CrossFormer (Wang et al., arXiv:2108.00154) and CrossFormer++ (arXiv:2303.06908).

Follows the authors' code: CrossFormer++ takes its progressive group sizes from a constant list of
its configs, and its amplitude cooling layer has a norm and no residual. Any image size: the image
is padded to whole patches, odd maps before they are merged, and maps to whole groups, whose padding
is masked.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import Conv, DropPath, LayerNorm, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.pad import pad_to_multiple
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.long_short import LongShortAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm
PATCH = 4  # pixels between the tokens of the first stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossFormerConfig(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...]  # heads of each stage
    group_sizes: tuple[Side, ...] = (7, 7, 7, 7)  # tokens per side of a group, per stage
    intervals: tuple[Side, ...] = (8, 4, 2, 1)  # distance in tokens between members of a long distance group, per stage
    cooling: bool = False  # CrossFormer++: every third block but the last ends in a normalised depthwise convolution
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    implementation: str | None = None  # a key of window_attention.QKV_IMPLEMENTATIONS; None: the first that can run
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "num_heads", "group_sizes", "intervals")

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))


_PP: dict[str, Any] = {"group_sizes": (4, 4, 14, 7), "intervals": (4, 2, 1, 1), "cooling": True}
# arXiv:2108.00154 table 1, arXiv:2303.06908 table 1, and the authors' configs/crossformer*/*.yaml.
VARIANTS = {
    "crossformer_tiny": CrossFormerConfig(dim=64, depths=(1, 1, 8, 6), num_heads=(2, 4, 8, 16)),
    "crossformer_small": CrossFormerConfig(dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.2),
    "crossformer_base": CrossFormerConfig(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3),
    "crossformer_large": CrossFormerConfig(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5),
    "crossformer_pp_small": CrossFormerConfig(dim=64, depths=(2, 2, 18, 2), num_heads=(2, 4, 8, 16), drop_path_rate=0.2, **_PP),
    "crossformer_pp_base": CrossFormerConfig(dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24), drop_path_rate=0.3, **_PP),
    "crossformer_pp_large": CrossFormerConfig(dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5, **_PP),
    "crossformer_pp_huge": CrossFormerConfig(dim=128, depths=(6, 6, 18, 2), num_heads=(4, 8, 16, 32), drop_path_rate=0.5, **_PP),
}
_SOURCE = "github.com/cheerss/CrossFormer README; counts: on the authors' code"
PUBLISHED = {
    "crossformer_tiny": Published(params_m=27.78, gmacs=2.86, top1=81.5, source=_SOURCE),
    "crossformer_small": Published(params_m=30.66, gmacs=4.91, top1=82.5, source=_SOURCE),
    "crossformer_base": Published(params_m=51.97, gmacs=9.16, top1=83.4, source=_SOURCE),
    "crossformer_large": Published(params_m=91.97, gmacs=16.1, top1=84.0, source=_SOURCE),
    "crossformer_pp_small": Published(params_m=23.33, gmacs=4.43, top1=83.2, source=_SOURCE),
    "crossformer_pp_base": Published(params_m=52.0, gmacs=9.59, top1=84.2, source=_SOURCE),
    "crossformer_pp_large": Published(params_m=92.0, gmacs=16.7, top1=84.7, source=_SOURCE),
    "crossformer_pp_huge": Published(params_m=95.96, gmacs=22.0, top1=84.9, source=_SOURCE),
}


class Block(nnx.Module):
    """Pre-norm block with short distance attention in even blocks, long distance in odd ones.

    In CrossFormer++ every third block ends in an amplitude cooling layer.
    """

    def __init__(self, config: CrossFormerConfig, *, stage: int, index: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = LongShortAttention(
            dim,
            num_heads=config.num_heads[stage],
            group_size=config.group_sizes[stage],
            interval=config.intervals[stage],
            long=index % 2 == 1,
            implementation=config.implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        cools = config.cooling and index % 3 == 2 and index < config.depths[stage] - 1
        self.ex_conv = Conv(dim, dim, kernel_size=3, groups=dim, dtype=dtype, rngs=rngs) if cools else None
        self.ex_ln = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs) if cools else None
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        x = self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)
        return x if self.ex_conv is None or self.ex_ln is None else self.ex_ln(self.ex_conv(x))


class CrossScaleEmbedding(nnx.Module):
    """Parallel convolutions of one stride and several kernels, concatenated.

    The widest kernels get the fewest channels.
    """

    def __init__(self, in_dim: int, dim: int, *, kernel_sizes: tuple[int, ...], stride: int, dtype, rngs: nnx.Rngs):
        last = len(kernel_sizes) - 1
        self.projs = nnx.List(
            [
                Conv(
                    in_dim,
                    dim // 2 ** min(i + 1, last),
                    kernel_size=kernel,
                    stride=stride,
                    padding=(kernel - stride) // 2,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, kernel in enumerate(kernel_sizes)
            ]
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        return jnp.concatenate([proj(x) for proj in self.projs], -1)


class Stage(nnx.Module):
    """A norm and cross-scale merging (except in the first stage), then the blocks."""

    def __init__(self, config: CrossFormerConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dims, dtype = config.dims, config.dtype
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.norm = LayerNorm(dims[stage - 1], eps=EPS, dtype=dtype, rngs=rngs) if stage else None
        self.reductions = (
            CrossScaleEmbedding(dims[stage - 1], dims[stage], kernel_sizes=(2, 4), stride=2, dtype=dtype, rngs=rngs) if stage else None
        )
        self.blocks = nnx.List([Block(config, stage=stage, index=i, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        if self.norm is not None and self.reductions is not None:
            x = self.reductions(pad_to_multiple(self.norm(x), 2))
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class CrossFormer(VisionModel[CrossFormerConfig]):
    """Cross-scale embedding and stages, then a norm, the mean over positions and a linear head."""

    def __init__(self, config: CrossFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        dtype = config.dtype
        self.patch_embed = CrossScaleEmbedding(
            config.in_channels, config.dim, kernel_sizes=(4, 8, 16, 32), stride=PATCH, dtype=dtype, rngs=rngs
        )
        declare(self.patch_embed, "embedding")
        self.embed_norm = declare(LayerNorm(config.dim, eps=EPS, dtype=dtype, rngs=rngs), "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.layers = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=PATCH * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        x = self.embed_norm(self.patch_embed(pad_to_multiple(self.checked(images), PATCH)))
        return run_stages(self.layers, x, train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


FAMILY = Family(CrossFormer, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.layers))
