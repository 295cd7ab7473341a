"""CSWin (Dong et al., arXiv:2107.00652), and with agent attention (Han et al., arXiv:2312.08874) or
injective linear attention (InLine, Han et al., arXiv:2412.06590) in its early blocks.

Follows the authors' code. There the linear blocks have stripes as wide as the map, that is one
window: here they see the whole map at any size. Departs from it: any image size, see
`vitlab.mixers.cross_shaped`; a map as wide as a stripe keeps its two halves of heads, where theirs
has one window for all.
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Rate, Ratio, Side
from vitlab.layers import Conv, DropPath, LayerNorm, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.agent import AgentAttention
from vitlab.mixers.cross_shaped import CrossShapedAttention
from vitlab.mixers.inline import InLineAttention
from vitlab.models.contract import Images, ImageSize, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class CSWinConfig(VisionConfig):
    dim: Count  # width of the first stage; each next stage doubles it
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[Count, ...] = (2, 4, 8, 16)  # per stage
    split_sizes: tuple[Side, ...] = (1, 2, 7, 7)  # width of a stripe in tokens, per stage; the last stage has none
    linear: Literal["none", "agent", "inline"] = "none"  # mechanism of the linear blocks
    linear_depths: tuple[CountOrZero, ...] = (0, 0, 0, 0)  # blocks per stage, the first ones, that are linear
    num_agents: tuple[Count, ...] = (9, 16, 49, 49)  # per stage
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    implementation: str | None = None  # a key of pallas_kernels.window_attention.IMPLEMENTATIONS
    drop_path_rate: Rate = 0.2

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "num_heads", "split_sizes", "linear_depths", "num_agents")
        if self.linear == "none" and any(self.linear_depths):
            raise ValueError(f'linear_depths={self.linear_depths} must be 0 with linear="none"')

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))

    @property
    def min_size(self) -> int:
        return 3  # pixels of the stem's kernel that are not padding

    def grid(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's map at the model's image size."""
        first = [(side - 3) // 4 + 1 for side in self.image_size]
        return -(-first[0] // 2**stage), -(-first[1] // 2**stage)

    def split_size(self, stage: int) -> int | None:
        """Width of a stage's stripes; None in the last stage, whose whole map is one window."""
        return None if stage == len(self.depths) - 1 else self.split_sizes[stage]


_FIRST, _SECOND = (2, 4, 18, 1), (3, 6, 29, 2)  # depths of the agent and InLine forms
_WIDE, _SPLIT_384, _CROP_384 = (4, 8, 16, 32), (1, 2, 12, 12), Preprocessing(crop_fraction=1.0)


def _linear(kind: Literal["agent", "inline"], dim: int, depths: tuple[int, ...], drop_path_rate: float, **fields) -> CSWinConfig:
    early = (*depths[:2], 0, 0)
    return CSWinConfig(linear=kind, linear_depths=early, dim=dim, depths=depths, drop_path_rate=drop_path_rate, **fields)


_384: ImageSize = (384, 384)
_BASE_384 = {"num_heads": _WIDE, "split_sizes": _SPLIT_384, "image_size": _384, "preprocessing": _CROP_384}
# The authors' models/cswin.py, agent_cswin.py, inline_cswin.py and cfgs/*.yaml; drop path of CSWin:
# its train.sh.
VARIANTS = {
    "cswin_tiny": CSWinConfig(dim=64, depths=(1, 2, 21, 1)),
    "cswin_small": CSWinConfig(dim=64, depths=(2, 4, 32, 2), drop_path_rate=0.4),
    "cswin_base": CSWinConfig(dim=96, depths=(2, 4, 32, 2), num_heads=_WIDE, drop_path_rate=0.5),
    "cswin_large": CSWinConfig(dim=144, depths=(2, 4, 32, 2), num_heads=(6, 12, 24, 24), drop_path_rate=0.2),
    "agent_cswin_tiny": _linear("agent", 64, _FIRST, 0.2),
    "agent_cswin_small": _linear("agent", 64, _SECOND, 0.4),
    "agent_cswin_base": _linear("agent", 96, _SECOND, 0.5, num_heads=_WIDE),
    "agent_cswin_base_384": _linear("agent", 96, _SECOND, 0.7, **_BASE_384),
    "inline_cswin_tiny": _linear("inline", 64, _FIRST, 0.2),
    "inline_cswin_small": _linear("inline", 64, _SECOND, 0.4),
    "inline_cswin_base": _linear("inline", 96, _SECOND, 0.5, num_heads=_WIDE),
}
_SOURCE = "github.com/microsoft/CSWin-Transformer README"
_AGENT = "github.com/LeapLabTHU/Agent-Attention README; counts: on the authors' code"
_INLINE = "github.com/LeapLabTHU/InLine README (published: 25, 43, 96 M); counts: on the authors' code"
PUBLISHED = {
    "cswin_tiny": Published(gmacs=4.3, top1=82.8, source=_SOURCE + " (23 M, of which the code has 22.3)"),
    "cswin_small": Published(params_m=35.0, gmacs=6.9, top1=83.6, source=_SOURCE),
    "cswin_base": Published(gmacs=15.0, top1=84.2, source=_SOURCE + " (78 M, of which the code has 77.4)"),
    "cswin_large": Published(params_m=173.0, gmacs=31.5, top1=86.5, source=_SOURCE + "; top-1 after ImageNet-22k"),
    "agent_cswin_tiny": Published(params_m=20.459, gmacs=4.29, top1=83.1, source=_AGENT),
    "agent_cswin_small": Published(params_m=32.814, gmacs=6.74, top1=83.9, source=_AGENT),
    "agent_cswin_base": Published(params_m=73.25, gmacs=14.87, top1=84.7, source=_AGENT),
    "agent_cswin_base_384": Published(params_m=73.0, gmacs=46.3, top1=85.8, source=_AGENT),
    "inline_cswin_tiny": Published(params_m=20.605, gmacs=4.31, top1=83.2, source=_INLINE),
    "inline_cswin_small": Published(params_m=33.033, gmacs=6.77, top1=83.8, source=_INLINE),
    "inline_cswin_base": Published(params_m=73.414, gmacs=14.89, top1=84.5, source=_INLINE),
}


class Block(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); the kernels of InLine's convolution come from the
    mean of x, not of its norm.
    """

    def __init__(self, config: CSWinConfig, *, stage: int, index: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, heads, dtype = config.dims[stage], config.num_heads[stage], config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.inline = index < config.linear_depths[stage] and config.linear == "inline"
        if index >= config.linear_depths[stage]:
            split, implementation = config.split_size(stage), config.implementation
            self.attn = CrossShapedAttention(dim, num_heads=heads, split_size=split, implementation=implementation, dtype=dtype, rngs=rngs)
        elif config.linear == "agent":
            agents, grid = config.num_agents[stage], config.grid(stage)
            self.attn = AgentAttention(dim, num_heads=heads, num_agents=agents, grid=grid, dtype=dtype, rngs=rngs)
        else:
            self.attn = InLineAttention(dim, num_heads=heads, lepe=True, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        options = {"chooses": x.mean((1, 2))} if self.inline else {}
        x = x + self.drop_path(self.attn(self.norm1(x), **options), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class Stage(nnx.Module):
    """A strided convolution and norm, then the blocks."""

    def __init__(self, config: CSWinConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dims, dtype = config.dims, config.dtype
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        if stage:
            self.conv = Conv(dims[stage - 1], dims[stage], kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        else:
            self.conv = Conv(config.in_channels, dims[0], kernel_size=7, stride=4, padding=2, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dims[stage], eps=EPS, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, index=i, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.norm(self.conv(x))
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


class CSWin(VisionModel[CSWinConfig]):
    """Stages; norm, mean over the tokens, linear head."""

    def __init__(self, config: CSWinConfig, *, rngs: nnx.Rngs):
        self.config = config
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        declare(self.stages[0].conv, "embedding")
        declare(self.stages[0].norm, "embedding")
        self.norm = LayerNorm(config.dims[-1], eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The map at the end of each stage; the last one is not normalised."""
        return run_stages(self.stages, self.checked(images), train=train, rngs=rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean over the normalised tokens of the last map; float32."""
        return self.norm(features[-1]).astype(jnp.float32).mean((1, 2))


FAMILY = Family(CSWin, VARIANTS, PUBLISHED, layers=lambda m: stage_layers(m.stages))
