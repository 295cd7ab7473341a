"""Path ensembles (Chang et al., arXiv:2308.06548): DeiT as the sum of its branches' outputs, which
may be left out or scaled.

The stream after the last block is the embedding plus what each attention and each MLP added: 2 *
depth + 1 components. Leaving some out (`dropped`) or scaling them per channel (`ensemble_scale`,
initially 1) changes that sum only, and not the input of any block. No code is published: the
components follow from the algebra of pre-norm blocks, and the scale is a vector a component, which
the abstract leaves open. Without either the network is DeiT. The self-distillation of the paper is
not here.
"""

import dataclasses
import itertools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Rate, Ratio, Side
from vitlab.layers import Attention, DropPath, LayerNorm, Linear, Mlp, drop_path_rates, run_blocks
from vitlab.layers.initial import full
from vitlab.layers.roles import declare
from vitlab.layers.token_embed import TokenEmbed
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class PathEnsembleConfig(VisionConfig):
    dim: Count  # width of the residual stream
    num_heads: Count
    depth: Depth = 12  # number of blocks
    dropped: tuple[CountOrZero, ...] = ()  # components that the sum leaves out: 0 the embedding, then attention and MLP of each block
    ensemble_scale: bool = False  # whether each component has a learned factor a channel
    patch_size: Side = 16  # pixels per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        if any(i > 2 * self.depth for i in self.dropped):
            raise ValueError(f"dropped={self.dropped} must be components 0 to {2 * self.depth}, of depth={self.depth} blocks")

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


VARIANTS = {
    "path_ensemble_deit_tiny": PathEnsembleConfig(dim=192, num_heads=3),
    "path_ensemble_deit_small": PathEnsembleConfig(dim=384, num_heads=6),
    "path_ensemble_deit_base": PathEnsembleConfig(dim=768, num_heads=12),
}
_SOURCE = "counts: DeiT's; the accuracies of the ensembles are in the paper only"
PUBLISHED = {
    "path_ensemble_deit_tiny": Published(params=5_717_416, gmacs=1.254, source=_SOURCE),
    "path_ensemble_deit_small": Published(params=22_050_664, gmacs=4.599, source=_SOURCE),
    "path_ensemble_deit_base": Published(params=86_567_656, gmacs=17.564, source=_SOURCE),
}


class Component(nnx.Module):
    """The part of a component that the sum takes: all of it, a learned share of each channel, or
    nothing.
    """

    def __init__(self, config: PathEnsembleConfig, index: int):
        self.kept = index not in config.dropped
        self.scale = nnx.Param(full(config.dim, 1.0)) if config.ensemble_scale and self.kept else None

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        if not self.kept:
            return jnp.zeros_like(x)
        return x if self.scale is None else x * self.scale[...].astype(x.dtype)[None, None]


class Block(nnx.Module):
    """Pre-norm block, x + attn(norm1(x)), then x + mlp(norm2(x)), which adds both branches to the
    ensemble too.
    """

    def __init__(self, config: PathEnsembleConfig, *, place: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = Attention(dim, num_heads=config.num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)
        self.attn_component, self.mlp_component = Component(config, 2 * place + 1), Component(config, 2 * place + 2)

    def __call__(
        self, state: tuple[Float[Array, "b n d"], Float[Array, "b n d"]], *, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n d"]]:
        x, total = state
        attended = self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        x = x + attended
        made = self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)
        return x + made, total + self.attn_component(attended) + self.mlp_component(made)


class PathEnsemble(VisionModel[PathEnsembleConfig]):
    """Patches and a class token, equal blocks, the sum of their components, a final norm, a linear
    head on the class token.
    """

    def __init__(self, config: PathEnsembleConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = TokenEmbed(
            config.in_channels, config.dim, patch_size=config.patch_size, grid=config.grid, dtype=config.dtype, rngs=rngs
        )
        declare(self.embed, "embedding")
        self.embed_component = Component(config, 0)
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, place=i, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)])
        self.norm = LayerNorm(config.dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        config = self.config
        last = config.depth
        return tuple(FeatureInfo(stride=config.patch_size, dim=config.dim, normalised=i == last) for i in quarters(config.depth))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The patches' maps after a quarter, half and three quarters of the blocks, and of the
        normalised ensemble.
        """
        images = self.checked(images)
        grid = (images.shape[1] // self.config.patch_size, images.shape[2] // self.config.patch_size)
        x, kept = self.embed(images), []
        state = (x, self.embed_component(x))
        options = {"remat": self.config.remat, "scan": self.config.scan_blocks, "train": train, "rngs": rngs}
        for start, end in itertools.pairwise((0, *quarters(self.config.depth))):
            state = run_blocks(self.blocks[start:end], state, **options)
            kept.append(state[0])
        x = self.norm(state[1])
        return Features([y[:, 1:].reshape(-1, *grid, y.shape[-1]) for y in (*kept[:-1], x)], class_tokens=(x[:, 0],))

    def prefix_logits(self, images: Images) -> Float[Array, "prefixes b k"]:
        """Logits of the head on the stream after no block, one, and so on up to all: those of the
        short paths.
        """
        if self.head is None:
            raise ValueError("a model without classes has no logits")
        x = self.embed(self.checked(images))
        streams = [x]
        for block in self.blocks:
            x, _ = block((x, x), train=False, rngs=None)
            streams.append(x)
        return self.head(self.norm(jnp.stack(streams)[:, :, 0]).astype(jnp.float32))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The normalised class token; float32."""
        return features.class_tokens[0].astype(jnp.float32)


FAMILY = Family(PathEnsemble, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
