"""TransNeXt (Shi, arXiv:2311.17132), and MoH (Jin et al., arXiv:2410.11842): TransNeXt with a
mixture of heads.

Follows the authors' code: a stem of 7 pixels a side, stages that halve the map, aggregated
attention in all but the last stage, gated convolutional perceptrons, mean over the last normalised
map. MoH's heads are all computed and weighted; a hundredth of how unequally the routed ones are
used is added to the loss, measured over the whole batch where the authors' is over that of a
device. Position biases are measured by maps of images of `pretrain_size`.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Ratio, Side
from vitlab.layers import DropPath, LayerNorm, Linear, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.conv_mlp import ConvGlu
from vitlab.layers.head_gates import HeadGates
from vitlab.layers.patch_embed import OverlapPatchEmbed
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.aggregated_attention import AggregatedAttention, CosineAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published
from vitlab.models.training import Training

EPS = 1e-6  # epsilon of the norms of blocks and stages
EMBED_EPS = 1e-5  # epsilon of the norm after a patch embedding
_BALANCE = 0.01  # weight of the loss that balances the heads (the authors' engine.py)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransNeXtConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks of each stage
    num_heads: tuple[Count, ...]
    mlp_ratios: tuple[Ratio, ...] = (8.0, 8.0, 4.0, 4.0)  # 3 / 2 of the MLP's hidden width / dim
    pool_ratios: tuple[Side, ...] = (8, 4, 2, 1)  # sides of the map / those of the pooled one; 1: attention to all tokens
    shared_heads: tuple[CountOrZero, ...] = ()  # heads that always count, in MoH; (): no gates
    routed_heads: tuple[CountOrZero, ...] = ()  # heads that count beside them, chosen for each token
    pretrain_size: CountOrZero = 0  # side, in pixels, of the images that the biases are measured by; 0: image_size

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("dims", "depths", "num_heads", "mlp_ratios", "pool_ratios")
        if self.shared_heads or self.routed_heads:
            self.check_stages("dims", "shared_heads", "routed_heads")

    @property
    def min_size(self) -> int:
        return 4  # a position in the first map

    def measure(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's map that offsets are measured by."""
        height, width = (self.pretrain_size or side for side in self.image_size)
        return max(1, height // (4 * 2**stage)), max(1, width // (4 * 2**stage))


_SMALL: dict[str, Any] = {"dims": (72, 144, 288, 576), "num_heads": (3, 6, 12, 24)}
_BASE: dict[str, Any] = {"dims": (96, 192, 384, 768), "num_heads": (4, 8, 16, 32), "depths": (5, 5, 23, 5), "drop_path_rate": 0.6}
_DEEP: dict[str, Any] = {"depths": (5, 5, 22, 5), "drop_path_rate": 0.45}
# TransNeXt: arXiv:2311.17132 Table 10. MoH: the authors' MoH-ViT/transnext.py.
VARIANTS = {
    "transnext_micro": TransNeXtConfig(dims=(48, 96, 192, 384), num_heads=(2, 4, 8, 16), depths=(2, 2, 15, 2), drop_path_rate=0.15),
    "transnext_tiny": TransNeXtConfig(**_SMALL, depths=(2, 2, 15, 2), drop_path_rate=0.25),
    "transnext_small": TransNeXtConfig(**_SMALL, **_DEEP),
    "transnext_base": TransNeXtConfig(**_BASE),
    "moh_transnext_small_80": TransNeXtConfig(**_SMALL, **_DEEP, shared_heads=(3, 6, 3, 8), routed_heads=(0, 0, 6, 12)),
    "moh_transnext_small_75": TransNeXtConfig(**_SMALL, **_DEEP, shared_heads=(3, 6, 3, 4), routed_heads=(0, 0, 6, 12)),
    "moh_transnext_base_75": TransNeXtConfig(**_BASE, shared_heads=(4, 8, 4, 5), routed_heads=(0, 0, 8, 16)),
    "moh_transnext_base_50": TransNeXtConfig(**_BASE, shared_heads=(2, 2, 2, 4), routed_heads=(2, 4, 6, 8)),
}
_TRANSNEXT = "arXiv:2311.17132 Table 1"
_SOURCE = "github.com/SkyworkAI/MoH README; counts: on the authors' code"
PUBLISHED = {
    "transnext_micro": Published(params_m=12.8, gmacs=2.7, top1=82.5, source=_TRANSNEXT),
    "transnext_tiny": Published(gmacs=5.7, top1=84.0, source=f"{_TRANSNEXT}, whose 28.2 M parameters are 28.26 M here"),
    "transnext_small": Published(params_m=49.7, gmacs=10.3, top1=84.7, source=_TRANSNEXT),
    "transnext_base": Published(params_m=89.7, gmacs=18.4, top1=84.8, source=_TRANSNEXT),
    "moh_transnext_small_80": Published(params=49_910_548, gmacs=10.3, top1=84.7, source=_SOURCE),
    "moh_transnext_small_75": Published(params_m=49.911, gmacs=10.3, top1=84.6, source=_SOURCE),
    "moh_transnext_base_75": Published(params_m=90.021, gmacs=18.3, top1=84.9, source=_SOURCE),
    "moh_transnext_base_50": Published(params_m=90.024, gmacs=18.4, top1=84.7, source=_SOURCE),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: TransNeXtConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, heads, dtype = config.dims[stage], config.num_heads[stage], config.dtype
        gates = None
        if config.shared_heads:
            shared, routed = config.shared_heads[stage], config.routed_heads[stage]
            gates = HeadGates(dim, num_heads=heads, shared=shared, routed=routed, rngs=rngs)
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        ratio, measure = config.pool_ratios[stage], config.measure(stage)
        if ratio == 1:
            self.attn = CosineAttention(dim, num_heads=heads, gates=gates, measure=measure, dtype=dtype, rngs=rngs)
        else:
            self.attn = AggregatedAttention(dim, num_heads=heads, pool_ratio=ratio, gates=gates, measure=measure, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = ConvGlu(dim, mlp_dim=int(2 * int(dim * config.mlp_ratios[stage]) / 3), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Any, *, train: bool, rngs: nnx.Rngs | None) -> Any:
        """Maps [b, h, w, c] to its like.

        With a map may come the imbalance [b] of the blocks before, to which the block adds its own.
        """
        x, imbalance = x if isinstance(x, tuple) else (x, None)
        normed = self.norm1(x)
        x = x + self.drop_path(self.attn(normed), train=train, rngs=rngs)
        x = x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)
        if imbalance is None:
            return x
        gates = self.attn.gates
        return x, imbalance + gates.imbalance(normed)[None] if gates is not None and gates.routed else imbalance


class Stage(nnx.Module):
    """Patch embedding, blocks, LayerNorm."""

    def __init__(self, config: TransNeXtConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dims, dtype = config.dims, config.dtype
        in_dim, stride = (dims[stage - 1], 2) if stage else (config.in_channels, 4)
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.patch_embed = OverlapPatchEmbed(in_dim, dims[stage], stride=stride, eps=EMBED_EPS, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(dims[stage], eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = run_blocks(self.blocks, self.patch_embed(x), remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)
        return self.norm(x)

    def balanced(
        self, x: Float[Array, "b h w c"], imbalance: Float[Array, " b"], *, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b h2 w2 c2"], Float[Array, " b"]]:
        """The map of the stage in training, and the imbalance with that of its blocks added."""
        options = {"remat": self.remat, "scan": self.scan_blocks, "train": True, "rngs": rngs}
        x, imbalance = run_blocks(self.blocks, (self.patch_embed(x), imbalance), **options)
        return self.norm(x), imbalance


class TransNeXt(VisionModel[TransNeXtConfig]):
    """Stages, each with its norm; mean over the positions, linear head."""

    def __init__(self, config: TransNeXtConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].patch_embed, "embedding")
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=True) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The normalised map at the end of each stage."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean over the positions of the last map; float32."""
        return features[-1].astype(jnp.float32).mean((1, 2))

    def training_outputs(self, images: Images, *, rngs: nnx.Rngs | None) -> Training:
        """Logits, and with routed heads the loss that balances their use."""
        routed = sum(depth for depth, heads in zip(self.config.depths, self.config.routed_heads, strict=False) if heads)
        if not routed or self.head is None:
            return super().training_outputs(images, rngs=rngs)
        x = self.checked(images)
        imbalance = jnp.zeros(len(x))
        for stage in self.stages:
            x, imbalance = stage.balanced(x, imbalance, rngs=rngs)
        return Training(heads=(self.head(self.pool(Features((x,)))),), terms={"balance": _BALANCE * imbalance / routed})


FAMILY = Family(TransNeXt, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
