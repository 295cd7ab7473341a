"""Agent-DeiT (Han et al., arXiv:2312.08874): DeiT with agent attention.

Follows the authors' code. The class token is a query and a key; agents and convolution leave it
out. Any image of whole patches is accepted; for another size than the model's, the position
embedding and the biases are resampled.
"""

import dataclasses
import itertools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Rate, Ratio, Side
from vitlab.layers import Attention, DropPath, LayerNorm, Linear, Mlp, drop_path_rates, run_blocks
from vitlab.layers.roles import declare
from vitlab.layers.token_embed import TokenEmbed
from vitlab.mixers.agent import AgentAttention
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentDeiTConfig(VisionConfig):
    dim: Count  # width of the residual stream
    num_heads: Count
    depth: Depth = 12  # number of blocks
    agent_depth: CountOrZero = 12  # the first `agent_depth` blocks have agent attention, the others ordinary attention
    num_agents: Count = 49  # a square number
    patch_size: Side = 16  # pixels per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    num_class_tokens = 1


# The authors' models/agent_deit.py and cfgs/agent_deit_*.yaml.
VARIANTS = {
    "agent_deit_tiny": AgentDeiTConfig(dim=192, num_heads=3, drop_path_rate=0.0),
    "agent_deit_small": AgentDeiTConfig(dim=384, num_heads=6),
    "agent_deit_small_448": AgentDeiTConfig(dim=384, num_heads=6, image_size=(448, 448)),
    "agent_deit_base": AgentDeiTConfig(dim=768, num_heads=12, agent_depth=4, num_agents=81, drop_path_rate=0.3),
}
_SOURCE = "github.com/LeapLabTHU/Agent-Attention README; counts: on the authors' code"
PUBLISHED = {
    "agent_deit_tiny": Published(params_m=6.016, gmacs=1.17, top1=74.9, source=_SOURCE),
    "agent_deit_small": Published(params_m=22.647, gmacs=4.43, top1=80.5, source=_SOURCE),
    "agent_deit_small_448": Published(params_m=23.07, gmacs=17.64, top1=83.1, source=_SOURCE),
    "agent_deit_base": Published(params_m=87.205, gmacs=17.53, top1=82.0, source=_SOURCE),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: AgentDeiTConfig, *, agents: bool, drop_path_rate: float, rngs: nnx.Rngs):
        dim, heads, dtype = config.dim, config.num_heads, config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        if agents:
            self.attn = AgentAttention(
                dim, num_heads=heads, num_agents=config.num_agents, grid=config.grid, num_class_tokens=1, dtype=dtype, rngs=rngs
            )
        else:
            self.attn = Attention(dim, num_heads=heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b n d"], *, grid: tuple[int, int], train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        y = self.norm1(x)
        y = self.attn.tokens(y, grid) if isinstance(self.attn, AgentAttention) else self.attn(y)
        x = x + self.drop_path(y, train=train, rngs=rngs)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class AgentDeiT(VisionModel[AgentDeiTConfig]):
    """Patches and a class token, equal blocks, a final norm, a linear head on the class token."""

    def __init__(self, config: AgentDeiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = TokenEmbed(
            config.in_channels, config.dim, patch_size=config.patch_size, grid=config.grid, dtype=config.dtype, rngs=rngs
        )
        declare(self.embed, "embedding")
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List(
            [Block(config, agents=i < config.agent_depth, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)]
        )
        self.norm = LayerNorm(config.dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        config = self.config
        last = config.depth
        return tuple(FeatureInfo(stride=config.patch_size, dim=config.dim, normalised=i == last) for i in quarters(config.depth))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the patches' maps after each quarter of the blocks; the last is normalised."""
        images = self.checked(images)
        b, height, width, _ = images.shape
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        x, kept = self.embed(images), []
        options = {"remat": self.config.remat, "scan": self.config.scan_blocks, "grid": grid}
        for start, end in itertools.pairwise((0, *quarters(self.config.depth))):
            x = run_blocks(self.blocks[start:end], x, train=train, rngs=rngs, **options)
            kept.append(x)
        x = self.norm(x)
        return Features([y[:, 1:].reshape(b, *grid, -1) for y in (*kept[:-1], x)], class_tokens=(x[:, 0],))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the normalised class token, in float32."""
        return features.class_tokens[0].astype(jnp.float32)


FAMILY = Family(AgentDeiT, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
