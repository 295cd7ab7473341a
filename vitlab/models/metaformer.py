"""A trunk whose stages may have any token mixer (MetaFormer, Yu et al., arXiv:2111.11418, fig. 2).

This is not a published network: depths and widths are PoolFormer's, but the config chooses the
mixers, `--config.model.mixers=hilo,hilo,global,global`, so that mechanisms can be compared with
everything else equal.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.config.arguments import checked_arguments
from vitlab.config.references import short_name
from vitlab.layers import Conv, ConvMlp, DropPath, LayerNorm, LayerScale, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.blocks import takes_train
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers import MIXERS, mixer_of
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaFormerConfig(VisionConfig):
    depths: tuple[Depth, ...]  # blocks per stage
    dims: tuple[Count, ...]  # width of each stage
    num_heads: tuple[Count, ...]  # heads per stage, for mixers that have heads
    mixers: tuple[str, ...] | str = "window,window,global,global"  # one mixer per stage, or one for all stages
    mixer_fields: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # mixer (of one's own: the name after ":") -> further arguments of its constructor
    stem_stride: Side = 4  # pixels; the stem's kernel has 2 * stride - 1 per side
    mlp: Literal["mlp", "conv"] = "mlp"  # "conv": an MLP with a depthwise 3x3 convolution between its layers
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    norm_placement: Literal["pre", "res_post"] = "pre"  # "pre": norm before a branch; "res_post": norm after it, before the sum (Swin v2)
    layer_scale_init: float | None = None  # initial factor on the residual branches; None: no factor
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads")
        if len(self.stage_mixers) != len(self.depths):
            raise ValueError(f"mixers={self.mixers!r} must name one mixer a stage ({len(self.depths)}), or one for all")
        own = {short_name(name): mixer_of(name) for name in self.stage_mixers}
        fields = {name: _arguments(name, own.get(name) or mixer_of(name), given) for name, given in self.mixer_fields.items()}
        object.__setattr__(self, "mixer_fields", fields)

    @property
    def stage_mixers(self) -> tuple[str, ...]:
        """Names of the mixers, one per stage."""
        names = tuple(name.strip() for name in self.mixers.split(",")) if isinstance(self.mixers, str) else self.mixers
        return names * len(self.depths) if len(names) == 1 else names


def _arguments(mixer: str, constructor: Callable[..., nnx.Module], given: Any) -> dict[str, Any]:
    """Checks further arguments of a mixer's constructor."""
    known = constructor in MIXERS.values()
    return checked_arguments(("mixer_fields", mixer), f'mixer "{mixer}"', constructor, given, known_types=known)


# Depths and widths are PoolFormer's, arXiv:2111.11418 table 1; nano is for the experiments on a
# CPU.
VARIANTS = {
    "metaformer_nano": MetaFormerConfig(depths=(1, 1, 2, 1), dims=(32, 64, 96, 128), num_heads=(1, 2, 3, 4), drop_path_rate=0.0),
    "metaformer_s12": MetaFormerConfig(depths=(2, 2, 6, 2), dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16)),
    "metaformer_s24": MetaFormerConfig(depths=(4, 4, 12, 4), dims=(64, 128, 320, 512), num_heads=(2, 4, 10, 16)),
}
PUBLISHED = dict.fromkeys(VARIANTS, Published(source="this project's own trunk: nothing is published of it"))


class Block(nnx.Module):
    """Two residual branches: the mixer, then the MLP."""

    def __init__(self, config: MetaFormerConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype, name = config.dims[stage], config.dtype, config.stage_mixers[stage]
        fields = config.mixer_fields.get(name) or config.mixer_fields.get(short_name(name), {})
        self.pre = config.norm_placement == "pre"
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mixer = mixer_of(name)(dim, num_heads=config.num_heads[stage], dtype=dtype, rngs=rngs, **fields)
        self.mixer_trains = takes_train(self.mixer)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        mlp = ConvMlp if config.mlp == "conv" else Mlp
        self.mlp = mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        init = config.layer_scale_init
        self.ls1, self.ls2 = (None if init is None else LayerScale(dim, init=init) for _ in range(2))
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        options = {"train": train} if self.mixer_trains else {}
        for norm, branch, scale in ((self.norm1, lambda y: self.mixer(y, **options), self.ls1), (self.norm2, self.mlp, self.ls2)):
            y = branch(norm(x)) if self.pre else norm(branch(x))
            x = x + self.drop_path(y if scale is None else scale(y), train=train, rngs=rngs)
        return x


class Stage(nnx.Module):
    """A strided convolution (in the first stage the stem) and a norm, then the blocks."""

    def __init__(self, config: MetaFormerConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        stride = 2 if stage else config.stem_stride
        in_dim = config.dims[stage - 1] if stage else config.in_channels
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.downsample = Conv(in_dim, config.dims[stage], kernel_size=2 * stride - 1, stride=stride, dtype=config.dtype, rngs=rngs)
        self.norm = LayerNorm(config.dims[stage], eps=EPS, dtype=config.dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.norm(self.downsample(x))
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class MetaFormer(VisionModel[MetaFormerConfig]):
    """Stages, then a norm, the mean over the positions and a linear head."""

    def __init__(self, config: MetaFormerConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].downsample, "embedding")
        declare(self.stages[0].norm, "embedding")
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(
            FeatureInfo(stride=self.config.stem_stride * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims)
        )

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; the last map is not normalised."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the normalised positions of the last map, in float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


FAMILY = Family(MetaFormer, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
