"""DCAL (Zhu et al., arXiv:2205.02151): DeiT with cross-attention of its most attended patches, and
of pairs of images in training.

No authors' code is published: the network follows the paper's equations. The attention of all
blocks, rolled out, gives each patch's part in the class token; global-local cross-attention lets
the class token and the patches of the largest parts attend to all tokens once more, and has a head
of its own. In training a third stream with the same weights as the first sees keys and values of
another image of the batch too (the one before, as batches are in random order). The three losses
are averaged; `vitlab.losses.uncertainty_weighted` is the paper's weighting of them. At inference
logits are averaged, where the paper adds probabilities.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vitlab.bounds import Count, Depth, Rate, Ratio, Share, Side
from vitlab.layers import Attention, DropPath, LayerNorm, Linear, Mlp, drop_path_rates, run_blocks
from vitlab.layers.attention import dot_product_attention
from vitlab.layers.roles import declare
from vitlab.layers.tensor_split import project_qkv
from vitlab.layers.token_embed import TokenEmbed
from vitlab.layers.token_reduction import best_tokens, taken
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class DCALConfig(VisionConfig):
    dim: Count  # width of the residual stream
    num_heads: Count
    depth: Depth = 12  # number of blocks
    query_share: Share = 0.1  # part of the patches that ask once more, rounded down; the paper has 0.3 for re-identification
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


VARIANTS = {
    "dcal_deit_tiny": DCALConfig(dim=192, num_heads=3),
    "dcal_deit_small": DCALConfig(dim=384, num_heads=6),
    "dcal_deit_base": DCALConfig(dim=768, num_heads=12),
}
PUBLISHED = {name: Published(source="no code is published; accuracies are of fine-grained data sets, not of ImageNet") for name in VARIANTS}


class Block(nnx.Module):
    """Pre-norm block, x + attn(norm1(x)), then x + mlp(norm2(x)), which rolls its attention out; or
    with the keys of pairs of images.
    """

    def __init__(self, config: DCALConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = Attention(dim, num_heads=config.num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(
        self, state: tuple[Float[Array, "b n d"], Float[Array, "b n n"]], *, paired: bool = False, train: bool, rngs: nnx.Rngs | None
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n n"]]:
        x, rollout = state
        q, k, v = jnp.moveaxis(project_qkv(self.attn.qkv, self.norm1(x), num_heads=self.attn.num_heads), 2, 0)
        if paired:
            k, v = (jnp.concatenate((y, jnp.roll(y, 1, axis=0)), 1) for y in (k, v))
        else:
            logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * self.attn.head_dim**-0.5
            step = (jax.lax.stop_gradient(jax.nn.softmax(logits)).mean(1) + jnp.eye(x.shape[1])[None]) / 2
            rollout = step @ rollout
        attended = self.attn.proj(dot_product_attention(q, k, v).reshape(x.shape))
        x = x + self.drop_path(attended, train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs), rollout


class GlobalLocalAttention(nnx.Module):
    """Some tokens attend to all (arXiv:2205.02151, eq. 3)."""

    def __init__(self, dim: int, *, num_heads: int, dtype, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.q, self.k, self.v, self.proj = (Linear(dim, dim, dtype=dtype, rngs=rngs) for _ in range(4))

    def __call__(self, x: Float[Array, "b n d"], selected: Int[Array, "b m"]) -> Float[Array, "b m d"]:
        y = self.norm(x)
        q, k, v = (z.reshape(*z.shape[:2], self.num_heads, -1) for z in (self.q(taken(y, selected)), self.k(y), self.v(y)))
        return self.proj(dot_product_attention(q, k, v).reshape(*selected.shape, -1))


class DCAL(VisionModel[DCALConfig]):
    """Patches and a class token, equal blocks, norm and head; a block of cross-attention on their
    result with norm and head of its own.
    """

    def __init__(self, config: DCALConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype, classes = config.dim, config.dtype, config.num_classes
        embed = TokenEmbed(config.in_channels, dim, patch_size=config.patch_size, grid=config.grid, dtype=dtype, rngs=rngs)
        self.embed = declare(embed, "embedding")
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, drop_path_rate=rate, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(dim, classes, rngs=rngs), "head") if classes else None
        self.glca = GlobalLocalAttention(dim, num_heads=config.num_heads, dtype=dtype, rngs=rngs)
        self.glca_norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.glca_mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.glca_norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.aux_head = declare(Linear(dim, classes, rngs=rngs), "head") if classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        config = self.config
        last = config.depth
        return tuple(FeatureInfo(stride=config.patch_size, dim=config.dim, normalised=i == last) for i in quarters(config.depth))

    def streams(
        self, images: Images, *, paired: bool = False, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[list[Float[Array, "b n d"]], Float[Array, "b n n"]]:
        """The tokens after the blocks of `features`, none normalised, and the rollout of the
        attention (1 where paired).
        """
        x, kept = self.embed(self.checked(images)), []
        state = (x, jnp.broadcast_to(jnp.eye(x.shape[1]), (x.shape[0], x.shape[1], x.shape[1])))
        options = {"remat": self.config.remat, "scan": self.config.scan_blocks, "paired": paired, "train": train, "rngs": rngs}
        for start, end in itertools.pairwise((0, *quarters(self.config.depth))):
            state = run_blocks(self.blocks[start:end], state, **options)
            kept.append(state[0])
        return kept, state[1]

    def selected(self, rollout: Float[Array, "b n n"]) -> Int[Array, "b m"]:
        """The class token and the patches of the largest parts in it, in that order."""
        parts = rollout[:, 0, 1:]
        best = best_tokens(parts, int(self.config.query_share * parts.shape[1]))
        return jnp.concatenate((jnp.zeros_like(best, shape=(len(best), 1)), 1 + best), 1)

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The patches' maps after a quarter, half, three quarters and all of the blocks, the last
        one normalised, and both class tokens.
        """
        kept, rollout = self.streams(images, train=train, rngs=rngs)
        grid = (images.shape[1] // self.config.patch_size, images.shape[2] // self.config.patch_size)
        x, places = self.norm(kept[-1]), self.selected(rollout)
        local = taken(kept[-1], places) + self.glca(kept[-1], places)
        local = self.glca_norm(local + self.glca_mlp(self.glca_norm2(local)))
        return Features([y[:, 1:].reshape(-1, *grid, y.shape[-1]) for y in (*kept[:-1], x)], class_tokens=(x[:, 0], local[:, 0]))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The class token of self-attention, normalised; float32."""
        return features.class_tokens[0].astype(jnp.float32)

    def head_logits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> tuple[Float[Array, "b _k"], ...]:
        """Logits of self-attention, of the global-local cross-attention, and in training those of
        the pairs.
        """
        features = self.features(images, train=train, rngs=rngs)
        if self.head is None or self.aux_head is None:
            return (self.pool(features),)
        logits = (self.head(self.pool(features)), self.aux_head(features.class_tokens[1].astype(jnp.float32)))
        return (*logits, self.pair_logits(images, train=True, rngs=rngs)) if train else logits

    def pair_logits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Float[Array, "b k"]:
        """Logits of each image where every block sees the keys and values of the image before it,
        too.
        """
        if self.head is None:
            raise ValueError("a model without classes has no logits")
        kept, _ = self.streams(images, paired=True, train=train, rngs=rngs)
        return self.head(self.norm(kept[-1][:, 0]).astype(jnp.float32))


FAMILY = Family(DCAL, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
