"""OverLoCK (Lou and Yu, arXiv:2502.20087): an overview of the image guides dynamic convolutions.

Follows the authors' code, except that the auxiliary head on the overview, which only a loss in
training uses, is left out. Any image size.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import BatchNorm, Conv, ConvNorm, DropPath, LayerNorm, Linear, PosConv, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.conv_norm import fold_into_next, fold_into_previous, fuse_conv_norms
from vitlab.layers.dilated_reparam import DilatedReparam
from vitlab.layers.gelu import gelu
from vitlab.layers.global_response_norm import GlobalResponseNorm
from vitlab.layers.layer_scale import ChannelAffine
from vitlab.layers.mlp import ResidualConvMlp
from vitlab.layers.resize import resize_bilinear
from vitlab.layers.roles import declare, stage_layers
from vitlab.layers.squeeze_excite import SqueezeExcite
from vitlab.mixers.context_mixing import ContextMixing
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverLoCKConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each of the four stages
    depths: tuple[Depth, ...]  # blocks of the three base stages, the overview, and the two focus stages
    num_heads: tuple[Count, Count]  # heads of each focus stage's dynamic kernels, twice the number in the authors' tables
    kernel_sizes: tuple[Side, ...] = (17, 15, 13, 7)  # sides of the large kernels, per stage, in tokens
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim in base stages and overview
    focus_mlp_ratio: Ratio = 3.0  # MLP hidden width / dim in focus stages
    head_dim: Count = 1024  # width of the projection before pooling
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.95)

    def __post_init__(self):
        super().__post_init__()
        if not len(self.dims) == len(self.kernel_sizes) == len(self.depths) - 2 == 4:
            raise ValueError(f"dims={self.dims} and kernel_sizes={self.kernel_sizes} must have 4 entries, depths={self.depths} 6")
        if self.dims[-1] % 4:
            raise ValueError(f"the last of dims={self.dims} must be a multiple of 4, for the width of the context")

    @property
    def context_dim(self) -> int:
        """Channels of the overview that focus stages carry along."""
        return self.dims[-1] // 4


# The authors' models/overlock.py; drop path rates are from scripts/train_*_model.sh.
VARIANTS = {
    "overlock_xt": OverLoCKConfig(
        dims=(56, 112, 256, 336), depths=(2, 2, 3, 2, 6, 2), num_heads=(8, 12), preprocessing=Preprocessing(crop_fraction=0.925)
    ),
    "overlock_t": OverLoCKConfig(dims=(64, 128, 256, 512), depths=(4, 4, 6, 2, 12, 2), num_heads=(8, 16), drop_path_rate=0.15),
    "overlock_s": OverLoCKConfig(dims=(64, 128, 320, 512), depths=(6, 6, 8, 3, 16, 3), num_heads=(16, 32), drop_path_rate=0.4),
    "overlock_b": OverLoCKConfig(
        dims=(80, 160, 384, 576),
        depths=(8, 8, 10, 4, 20, 4),
        num_heads=(12, 18),
        drop_path_rate=0.5,
        preprocessing=Preprocessing(crop_fraction=0.975),
    ),
}
_SOURCE = "github.com/LMMMEng/OverLoCK README; counts: on the authors' code, before it is deployed"
PUBLISHED = {
    "overlock_xt": Published(params=16_969_600, gmacs=2.83, top1=82.7, source=_SOURCE),
    "overlock_t": Published(params=34_476_448, gmacs=5.93, top1=84.2, source=_SOURCE),
    "overlock_s": Published(params=57_795_748, gmacs=10.34, top1=84.8, source=_SOURCE),
    "overlock_b": Published(params=97_434_816, gmacs=17.81, top1=85.1, source=_SOURCE),
}


class BaseBlock(nnx.Module):
    """A position encoding, then one residual branch.

    The branch is a norm, a large depthwise convolution, squeeze-and-excitation and an MLP.
    """

    def __init__(self, config: OverLoCKConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        self.pos = PosConv(dim, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.conv = DilatedReparam(dim, kernel_size=config.kernel_sizes[stage], dtype=dtype, rngs=rngs)
        self.conv_norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.se = SqueezeExcite(dim, hidden=max(16, dim // 8), activation=gelu, dtype=dtype, rngs=rngs)
        self.mlp = ResidualConvMlp(dim, mlp_dim=int(dim * config.mlp_ratio), grn=True, dtype=dtype, rngs=rngs)
        self.ls = ChannelAffine(dim) if stage >= 2 else None
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = self.pos(x)
        y = self.conv(self.norm(x), train=train)
        y = y if self.conv_norm is None else self.conv_norm(y, train=train)
        y = self.drop_path(self.mlp(self.se(y)), train=train, rngs=rngs)
        return y + (x if self.ls is None else self.ls(x))

    def fuse(self) -> None:
        """Folds norms and dilated branches into the large convolution, in place."""
        self.conv.fuse()
        if self.conv_norm is not None:
            fold_into_previous(self.conv_norm, self.conv.origin.conv)
            self.conv_norm = None


class Fusion(nnx.Module):
    """Fuses a stage's map and the context, concatenated, into one map.

    Depthwise convolution, batch norm, GELU, projection, global response norm.
    """

    def __init__(self, dim: int, out_dim: int, *, dtype, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, kernel_size=3, groups=dim, dtype=dtype, rngs=rngs)
        self.norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.fc = Linear(dim, out_dim, dtype=dtype, rngs=rngs)
        self.grn = GlobalResponseNorm(out_dim)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c2"]:
        x = self.conv(x)
        x = x if self.norm is None else self.norm(x, train=train)
        return self.grn(self.fc(gelu(x)))


class FocusBlock(nnx.Module):
    """Gated context mixing of the fused map, then an MLP, on the joint map of stage and context.

    Every block but the first of all renews the context from the overview. Identities have a learned
    factor and offset per channel.
    """

    def __init__(self, config: OverLoCKConfig, *, stage: int, first: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dim, extra, kernel_size, dtype = config.dims[stage], config.context_dim, config.kernel_sizes[stage], config.dtype
        joint = dim + extra
        self.dim = dim
        self.x_scale, self.h_scale = (None, None) if first else (ChannelAffine(extra), ChannelAffine(extra))
        self.pos1 = PosConv(joint, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(joint, eps=EPS, dtype=dtype, rngs=rngs)
        self.fusion = Fusion(joint, dim, dtype=dtype, rngs=rngs)
        heads = config.num_heads[stage - 2]
        self.mixer = ContextMixing(dim, num_heads=heads, context_dim=extra, kernel_size=kernel_size, dtype=dtype, rngs=rngs)
        self.lepe = DilatedReparam(dim, kernel_size=kernel_size, dtype=dtype, rngs=rngs)
        self.lepe_norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.se = SqueezeExcite(dim, hidden=max(16, dim // 8), activation=gelu, dtype=dtype, rngs=rngs)
        self.gate = ConvNorm(dim, dim, dtype=dtype, rngs=rngs)
        self.proj_norm: BatchNorm | None = BatchNorm(dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, joint, dtype=dtype, rngs=rngs)
        self.pos2 = PosConv(joint, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(joint, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = ResidualConvMlp(joint, mlp_dim=int(dim * config.focus_mlp_ratio), grn=True, dtype=dtype, rngs=rngs)
        self.ls1, self.ls2 = ChannelAffine(joint), ChannelAffine(joint)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(
        self, joint: Float[Array, "b h w joint"], *, overview: Float[Array, "b h w c"], train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "b h w joint"]:
        """Returns the next joint map; `overview` is at the size of the stage's map."""
        if self.x_scale is not None and self.h_scale is not None:
            x, context = joint[..., : self.dim], joint[..., self.dim :]
            joint = jnp.concatenate((x, self.x_scale(context) + self.h_scale(overview)), -1)
        joint = self.pos1(joint)
        y = self.drop_path(self._mix(self.norm1(joint), train), train=train, rngs=rngs)
        joint = self.pos2(self.ls1(joint) + y)
        return self.ls2(joint) + self.drop_path(self.mlp(self.norm2(joint)), train=train, rngs=rngs)

    def _mix(self, joint: Float[Array, "b h w joint"], train: bool) -> Float[Array, "b h w joint"]:
        fused = self.fusion(joint, train=train)
        lepe = self.lepe(fused, train=train)
        lepe = lepe if self.lepe_norm is None else self.lepe_norm(lepe, train=train)
        y = self.mixer(joint[..., : self.dim], joint[..., self.dim :], fused, train=train)
        y = jax.nn.silu(self.gate(fused, train=train)) * self.se(y + lepe)
        return self.proj(y if self.proj_norm is None else self.proj_norm(y, train=train))

    def fuse(self) -> None:
        """Folds norms and dilated branches into neighbouring layers, in place."""
        self.lepe.fuse()
        if self.lepe_norm is not None and self.proj_norm is not None and self.fusion.norm is not None:
            fold_into_previous(self.lepe_norm, self.lepe.origin.conv)
            fold_into_previous(self.fusion.norm, self.fusion.conv)
            fold_into_next(self.proj_norm, self.proj)
            self.lepe_norm = self.proj_norm = self.fusion.norm = None


class BaseStage(nnx.Module):
    """The stem (four convolutions, GELU between) or one strided convolution, then the blocks."""

    def __init__(self, config: OverLoCKConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        widths = (config.dims[stage - 1], dim) if stage else (config.in_channels, dim // 2, dim // 2, dim, dim)
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.embed = nnx.List(
            [
                ConvNorm(widths[i], widths[i + 1], kernel_size=3, stride=1 if i % 2 else 2, dtype=dtype, rngs=rngs)
                for i in range(len(widths) - 1)
            ]
        )
        self.blocks = nnx.List([BaseBlock(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        for i, conv in enumerate(self.embed):
            x = conv(gelu(x) if i else x, train=train)
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class OverLoCK(VisionModel[OverLoCKConfig]):
    """Base stages, an overview, then focus stages on the third base map.

    The head is a projection, batch norm, swish, the mean over positions and a linear map.
    """

    def __init__(self, config: OverLoCKConfig, *, rngs: nnx.Rngs):
        self.config = config
        dims, extra, dtype = config.dims, config.context_dim, config.dtype
        *base, focus3, focus4 = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.base = nnx.List([BaseStage(config, stage=i, rates=rates, rngs=rngs) for i, rates in enumerate(base)])
        declare(self.base[0].embed, "embedding")
        self.context_proj = Linear(dims[-1], extra, dtype=dtype, rngs=rngs)
        self.focus = nnx.List(
            [
                nnx.List(
                    [
                        FocusBlock(config, stage=stage, first=stage == 2 and i == 0, drop_path_rate=rate, rngs=rngs)
                        for i, rate in enumerate(rates)
                    ]
                )
                for stage, rates in ((2, focus3), (3, focus4))
            ]
        )
        self.x_down = ConvNorm(dims[2], dims[3], kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        self.h_down = ConvNorm(extra, extra, kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        self.proj = ConvNorm(dims[-1] + extra, config.head_dim, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(config.head_dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        extra = (0, 0, self.config.context_dim, self.config.context_dim)
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim + extra[i], normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the maps of the first two base stages and of the two focus stages.

        The last channels of a focus stage's map are the context.
        """
        x, maps = self.checked(images), []
        for stage in self.base:
            x = stage(x, train=train, rngs=rngs)
            maps.append(x)
        overview = self.context_proj(x)
        enlarged = resize_bilinear(overview, maps[2].shape[1:3])
        joint = self._focus(0, jnp.concatenate((maps[2], enlarged), -1), enlarged, train, rngs)
        x, context = joint[..., : self.config.dims[2]], joint[..., self.config.dims[2] :]
        joined = jnp.concatenate((self.x_down(x, train=train), self.h_down(context, train=train)), -1)
        return Features([*maps[:2], joint, self._focus(1, joined, overview, train, rngs)])

    def _focus(self, stage: int, joint: Array, overview: Array, train: bool, rngs: nnx.Rngs | None) -> Array:
        options = {"remat": self.config.remat, "scan": self.config.scan_blocks, "overview": overview}
        return run_blocks(self.focus[stage], joint, train=train, rngs=rngs, **options)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the projected positions of the last map, in float32."""
        return jax.nn.silu(self.proj(features[-1], train=train)).astype(jnp.float32).mean((1, 2))

    def fuse(self) -> "OverLoCK":
        """Returns the network for deployment.

        Each set of dilated branches is one kernel; batch norms are folded into neighbouring layers.
        """
        model = nnx.clone(self)
        for _, module in list(nnx.iter_modules(model)):
            if isinstance(module, (BaseBlock, FocusBlock)):
                module.fuse()
        fuse_conv_norms(model)
        return model


def _layers(model: OverLoCK) -> list[Any]:
    """Returns the layers in depth order, for layer-wise decay.

    Layers that lead to a focus stage belong to the stage's first block.
    """
    (first3, *focus3), (first4, *focus4) = model.focus
    return [
        *stage_layers(model.base),
        (model.context_proj, first3),
        *focus3,
        (model.x_down, model.h_down, first4),
        *focus4,
    ]


FAMILY = Family(OverLoCK, VARIANTS, PUBLISHED, layers=_layers)
