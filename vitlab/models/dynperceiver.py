"""Dynamic Perceiver (Han et al., arXiv:2306.11248): a latent code beside the convolutions of
another network, and four exits.

Follows the authors' code: before each stage the map reads from the latent tokens and these read
from its pooled form; they then attend to each other, and become fewer and wider from stage to
stage. The logits are those of the last exit; `exits` gives all. In training all exits learn the
labels, and the first three what the last one says (the authors' engine.py); dropout before the last
layers is left out. The convolutions are those of MobileNetV3-Large, RegNetY or ResNet-50.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Ratio
from vitlab.layers import BatchNorm, Conv, ConvNorm, LayerNorm, Linear, Remat, run_blocks
from vitlab.layers.bottleneck import RegNetBottleneck, ResNetBottleneck
from vitlab.layers.initial import normal_init
from vitlab.layers.inverted_residual import EPS, InvertedResidual, divisible
from vitlab.layers.latent_attention import NORM_EPS, CrossBlock, LatentBlock
from vitlab.layers.pool import adaptive_average_pool
from vitlab.layers.roles import declare, stage_layers
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.registry import Family, Published
from vitlab.models.training import Exit, Training

_EXIT_WEIGHTS = (0.5, 0.5, 1.0)  # weights of the loss of the first three exits; that of the last is 1
_DISTILLATION = 0.5  # weight of the divergence of each of the first three exits from the last, at temperature 1
_POOLED = 7  # rows and columns of the map that the latents read
# Kernel, hidden width, width, whether gated, whether with hard swish, stride: arXiv:1905.02244
# Table 1, by stages; the first is the stem.
_LARGE = (
    ((3, 16, 16, False, False, 1), (3, 64, 24, False, False, 2)),
    ((3, 72, 24, False, False, 1), (5, 72, 40, True, False, 2)),
    ((5, 120, 40, True, False, 1), (5, 120, 40, True, False, 1), (3, 240, 80, False, True, 2)),
    (
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
    ),
    ((5, 960, 160, True, True, 1), (5, 960, 160, True, True, 1)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynPerceiverConfig(VisionConfig):
    branch: Literal["mobilenet_v3", "regnet_y", "resnet"] = "mobilenet_v3"  # network of the convolutions
    width: Ratio = 1.0  # widths of MobileNetV3 / those of its large form
    cnn_dims: tuple[Count, ...] = ()  # widths of the stem and the stages of the other branches
    cnn_depths: tuple[Depth, ...] = ()  # blocks of their stages
    group_width: Count = 8  # channels of a group of RegNet's convolutions
    num_latents: Count = 128  # tokens of the first stage; each next one has half as many, rounded down
    depths: tuple[Depth, ...] = (3, 3, 9, 9)  # self-attention blocks of each stage
    num_heads: tuple[Count, ...] = (1, 2, 4, 8)
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim in self-attention blocks

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "num_heads")
        if len(self.depths) != len(_LARGE) - 1:
            raise ValueError(f"depths={self.depths} must have {len(_LARGE) - 1} stages")
        if self.branch != "mobilenet_v3" and (len(self.cnn_dims), len(self.cnn_depths)) != (len(_LARGE), len(_LARGE) - 1):
            sizes = f"cnn_dims={self.cnn_dims} must be {len(_LARGE)}, cnn_depths={self.cnn_depths} {len(_LARGE) - 1}"
            raise ValueError(f"{sizes}, for branch={self.branch}")
        if self.drop_path_rate:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be 0: the family has no drop path")

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of the map before each stage, which is that of its latents."""
        return self.cnn_dims[:-1] or tuple(divisible(rows[-1][2] * self.width) for rows in _LARGE[:-1])

    @property
    def last_dim(self) -> int:
        return self.cnn_dims[-1] if self.cnn_dims else 6 * divisible(_LARGE[-1][-1][2] * self.width)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the positions of the map after each stage."""
        return (8, 16, 32, 32) if self.branch == "mobilenet_v3" else (4, 8, 16, 32)


def _regnet(*dims: int, depths: tuple[int, ...], group_width: int) -> DynPerceiverConfig:
    own = {"cnn_dims": (32, *dims), "cnn_depths": depths, "group_width": group_width}
    return DynPerceiverConfig(branch="regnet_y", **own, depths=(3, 3, 9, 6))


def _resnet(width: float) -> DynPerceiverConfig:
    dims = tuple(int(width * base) * scale for base, scale in ((64, 1), (64, 4), (128, 4), (256, 4), (512, 4)))
    return DynPerceiverConfig(branch="resnet", cnn_dims=dims, cnn_depths=(3, 4, 6, 3), depths=(3, 3, 9, 3))


# The authors' models/; RegNetY: arXiv:2003.13678 Table 5; depths of the latent blocks: README.
VARIANTS = {
    "dynperceiver_mbv3_05_t128": DynPerceiverConfig(width=0.5),
    "dynperceiver_mbv3_075_t128": DynPerceiverConfig(width=0.75),
    "dynperceiver_mbv3_t128": DynPerceiverConfig(),
    "dynperceiver_mbv3_125_t128": DynPerceiverConfig(width=1.25),
    "dynperceiver_reg400m_t128": _regnet(48, 104, 208, 440, depths=(1, 3, 6, 6), group_width=8),
    "dynperceiver_reg800m_t128": _regnet(64, 144, 320, 784, depths=(1, 3, 8, 2), group_width=16),
    "dynperceiver_reg1x6g_t128": _regnet(48, 120, 336, 888, depths=(2, 6, 17, 2), group_width=24),
    "dynperceiver_reg3x2g_t128": _regnet(72, 216, 576, 1512, depths=(2, 5, 13, 1), group_width=24),
    "dynperceiver_resnet50_0375_t128": _resnet(0.375),
    "dynperceiver_resnet50_050_t128": _resnet(0.5),
    "dynperceiver_resnet50_t128": _resnet(1.0),
}
_SOURCE = "github.com/LeapLabTHU/Dynamic_Perceiver README, last exit; counts: on the authors' code"
PUBLISHED = {name: Published(source="not published with these depths") for name in VARIANTS} | {
    "dynperceiver_mbv3_075_t128": Published(params=9_299_040, top1=74.59, source=_SOURCE),
    "dynperceiver_reg800m_t128": Published(params_m=21.798, top1=79.86, source=_SOURCE),
    "dynperceiver_resnet50_0375_t128": Published(top1=77.70, source=_SOURCE),
}


class Stage(nnx.Module):
    """The map reads the latents (but in the first stage), they read the map, attend to each other,
    and the map is convolved.
    """

    def __init__(self, config: DynPerceiverConfig, *, stage: int, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        options = {"dtype": dtype, "rngs": rngs}
        if stage:
            many, few = (max(1, config.num_latents // 2**i) for i in (stage - 1, stage))
            old = config.dims[stage - 1]
            self.mix_norm, self.mix = LayerNorm(many, eps=NORM_EPS, **options), Linear(many, few, **options)
            self.expand_norm, self.expand = LayerNorm(old, eps=NORM_EPS, **options), Linear(old, dim, **options)
            self.write = CrossBlock(dim, dim, qk_dim=dim // 8, **options)
        else:
            self.mix_norm = self.mix = self.expand_norm = self.expand = self.write = None
        self.dwc = Conv(dim, dim, kernel_size=7, groups=dim, **options)
        self.read = CrossBlock(dim, dim, qk_dim=dim, num_keys=_POOLED**2, **options)
        block = {"num_heads": config.num_heads[stage], "mlp_ratio": config.mlp_ratio}
        self.blocks = nnx.List([LatentBlock(dim, **block, **options) for _ in range(config.depths[stage])])
        self.cnn = nnx.List(convolutions(config, stage, **options))

    def __call__(
        self, x: Float[Array, "b h w c"], latents: Float[Array, "b n c_old"], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, "b m c"]]:
        if self.write is not None:
            assert self.mix_norm and self.mix and self.expand_norm and self.expand
            latents = self.mix(self.mix_norm(latents.swapaxes(1, 2))).swapaxes(1, 2)
            latents = self.expand(self.expand_norm(latents))
            x = self.write(x.reshape(x.shape[0], -1, x.shape[-1]), latents).reshape(x.shape)
        pooled = adaptive_average_pool(x + self.dwc(x), (_POOLED, _POOLED))
        latents = self.read(latents, pooled.reshape(x.shape[0], -1, x.shape[-1]))
        latents = run_blocks(self.blocks, latents, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)
        for part in self.cnn:
            x = part(x, train=train)
            x = jax.nn.hard_swish(x) if isinstance(part, ConvNorm) else x
        return x, latents


def convolutions(config: DynPerceiverConfig, stage: int, **options: Any) -> list[Any]:
    """The blocks of a stage of the convolutional branch, and MobileNetV3's last convolution."""
    dim = config.dims[stage]
    if config.branch == "mobilenet_v3":
        last = stage == len(config.dims) - 1
        tail = [ConvNorm(divisible(_LARGE[-1][-1][2] * config.width), config.last_dim, eps=EPS, **options)] if last else []
        return [*bottlenecks(_LARGE[stage + 1], dim, config.width, **options), *tail]
    out_dim, regnet = config.cnn_dims[stage + 1], config.branch == "regnet_y"
    block, own = (RegNetBottleneck, {"group_width": config.group_width}) if regnet else (ResNetBottleneck, {})
    strides = (2 if stage or regnet else 1, *(1,) * (config.cnn_depths[stage] - 1))
    return [block(out_dim if i else dim, out_dim, stride=s, **own, **options) for i, s in enumerate(strides)]


def bottlenecks(rows: Any, dim: int, width: float, **options: Any) -> list[InvertedResidual]:
    """The inverted residuals of some rows of the table, the first of which takes a map of width
    dim.
    """
    out = []
    for kernel, hidden, out_dim, gated, hard_swish, stride in rows:
        wide, new = divisible(hidden * width), divisible(out_dim * width)
        shape = {"hidden": wide, "kernel_size": kernel, "stride": stride, "gated": gated, "hard_swish": hard_swish}
        out.append(InvertedResidual(dim, new, **shape, **options))
        dim = new
    return out


class Classifier(nnx.Module):
    """One linear layer, or two with hard swish between."""

    def __init__(self, dim: int, num_classes: int, *, hidden: int, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, hidden, rngs=rngs) if hidden else None
        self.fc2 = Linear(hidden or dim, num_classes, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
        return self.fc2(x if self.fc1 is None else jax.nn.hard_swish(self.fc1(x)))


class Exits(nnx.Module):
    """Logits of the latents after the third stage, of those after the last, of the map, and of all;
    exits 2 and 4 see the one before.
    """

    def __init__(self, config: DynPerceiverConfig, *, rngs: nnx.Rngs):
        early, dim, wide, classes = *config.dims[-2:], config.last_dim, config.num_classes
        self.sizes = (wide, wide, early, dim)
        self.early = Linear(early, classes, rngs=rngs)
        self.isc3, self.isc3_norm = Linear(classes, dim, rngs=rngs), BatchNorm(dim, rngs=rngs)
        self.att = Linear(2 * dim, classes, rngs=rngs)
        self.isc4, self.isc4_norm = Linear(classes, dim, rngs=rngs), BatchNorm(dim, rngs=rngs)
        hidden = divisible(1280 * config.width) if config.branch == "mobilenet_v3" else 0
        self.merge_norm = BatchNorm(wide + 2 * dim, rngs=rngs)
        self.cnn, self.merge = (Classifier(width, classes, hidden=hidden, rngs=rngs) for width in (wide, wide + 2 * dim))

    def __call__(self, pooled: Float[Array, "b d"]) -> Float[Array, "b k"]:
        return self.all(pooled)[-1]

    def all(self, pooled: Float[Array, "b d"], *, train: bool = False) -> tuple[Float[Array, "b k"], ...]:
        """The logits of the four exits."""
        x, written, z3, z4 = jnp.split(pooled, [sum(self.sizes[:i]) for i in (1, 2, 3)], -1)
        early = self.early(z3)
        att = self.att(jnp.concatenate((z4, jax.nn.relu(self.isc3_norm(self.isc3(early), train=train))), -1))
        merged = jnp.concatenate((written, z4, jax.nn.relu(self.isc4_norm(self.isc4(att), train=train))), -1)
        return early, att, self.cnn(x), self.merge(self.merge_norm(merged, train=train))


class DynPerceiver(VisionModel[DynPerceiverConfig]):
    """Stem, stages of convolutions and latents, a last reading of the latents, exits."""

    def __init__(self, config: DynPerceiverConfig, *, rngs: nnx.Rngs):
        self.config = config
        options = {"dtype": config.dtype, "rngs": rngs}
        mobile, resnet = config.branch == "mobilenet_v3", config.branch == "resnet"
        dim = divisible(16 * config.width) if mobile else config.dims[0]
        shape = {"kernel_size": 7 if resnet else 3, "stride": 2, "eps": EPS if mobile else 1e-5}
        first = ConvNorm(config.in_channels, dim, **shape, **options)
        rest = bottlenecks(_LARGE[0], dim, config.width, **options) if mobile else []
        self.stem = declare(nnx.List([first, *rest]), "embedding")
        self.latent = declare(nnx.Param(normal_init(rngs.params(), (config.num_latents, config.dims[0]))), "token", "embedding")
        self.stages = nnx.List([Stage(config, stage=i, rngs=rngs) for i in range(len(config.dims))])
        wide, last = config.last_dim, config.dims[-1]
        self.last_write = CrossBlock(wide, last, qk_dim=wide // 8, **options)
        self.head = declare(Exits(config, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        dims = (*self.config.dims[1:], self.config.last_dim)
        return tuple(FeatureInfo(stride=s, dim=dim, normalised=False) for s, dim in zip(self.config.strides, dims, strict=True))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The map at the end of each stage; the tokens are the means that `pool` joins."""
        x = self.stem[0](self.checked(images), train=train)
        x = jax.nn.hard_swish(x) if self.config.branch == "mobilenet_v3" else jax.nn.relu(x)
        if self.config.branch == "resnet":
            x = nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))  # after ReLU no zero beats a value
        for part in list(self.stem)[1:]:
            x = part(x, train=train)
        latents = jnp.broadcast_to(self.latent[...], (x.shape[0], *self.latent.shape)).astype(x.dtype)
        maps, means = [], []
        for stage in self.stages:
            x, latents = stage(x, latents, train=train, rngs=rngs)
            maps.append(x)
            means.append(latents.astype(jnp.float32).mean(1))
        written = self.last_write(x.reshape(x.shape[0], -1, x.shape[-1]), latents)
        return Features(maps, class_tokens=(x.astype(jnp.float32).mean((1, 2)), written.astype(jnp.float32).mean(1), *means[-2:]))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The means of the map, of the map after it has read the latents, and of the latents of the
        last two stages; float32.
        """
        return jnp.concatenate(features.class_tokens, -1)

    def exits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> tuple[Float[Array, "b k"], ...]:
        """Logits of the four exits, from the earliest to the last; arguments and errors are those
        of `features`.
        """
        if self.head is None:
            raise ValueError("a model without classes has no exits")
        return self.head.all(self.pool(self.features(images, train=train, rngs=rngs)), train=train)

    def head_logits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> tuple[Float[Array, "b _k"], ...]:
        """Logits of the last exit."""
        return (
            (self.pool(self.features(images, train=train, rngs=rngs)),)
            if self.head is None
            else self.exits(images, train=train, rngs=rngs)[-1:]
        )

    def training_outputs(self, images: Images, *, rngs: nnx.Rngs | None) -> Training:
        """Logits of the last exit, and the first three with the weights of their losses."""
        if self.head is None:
            return super().training_outputs(images, rngs=rngs)
        *early, last = self.exits(images, train=True, rngs=rngs)
        exits = tuple(Exit(logits=x, weight=w, distillation=_DISTILLATION) for x, w in zip(early, _EXIT_WEIGHTS, strict=True))
        return Training(heads=(last,), exits=exits)


FAMILY = Family(DynPerceiver, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
