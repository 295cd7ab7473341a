"""DependencyViT (Ding et al., arXiv:2304.03282): reversed attention, in which a token sends to
those that it attends to.

The authors' code is not published: the network follows the abstract and an unofficial file, as the
recordings do. The softmax of a token over its parents is transposed, so that a parent receives from
its children; each token's heads are weighed by a selector (softmax at a temperature of 0.1), and
what it sends by a message, a product of sigmoids over the blocks; the tokens times their messages
are averaged. The lite variants keep the tokens that receive most, in blocks of `prune_at`; shapes
are static, and the maps of `features` hold a dropped token as it was before the block that dropped
it. Another image size than the model's resamples the position embedding.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vitlab.bounds import Count, CountOrZero, Depth, Ratio, Share, Side
from vitlab.layers import DropPath, LayerNorm, LayerScale, Linear, Mlp, PatchEmbed, drop_path_rates, run_blocks
from vitlab.layers.attention import head_dim_of
from vitlab.layers.gelu import gelu
from vitlab.layers.pos_embed import position_table, resample
from vitlab.layers.roles import declare
from vitlab.layers.tensor_split import project_qkv
from vitlab.layers.token_reduction import best_tokens, put_back, taken
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm
_TEMPERATURE = 0.1  # temperature of the head selector
State = tuple[Float[Array, "b n d"], Float[Array, "b n"]]  # tokens and their messages


@dataclasses.dataclass(frozen=True, kw_only=True)
class DependencyViTConfig(VisionConfig):
    dim: Count  # width of the residual stream
    num_heads: Count = 12
    depth: Depth = 12  # number of blocks
    prune_ratio: Share = 0.0  # part of all tokens that each pruning block drops, as long as there are that many; 0: none
    prune_at: tuple[CountOrZero, ...] = (1, 4, 7, 10)  # blocks that prune, the first being 0; those that there are not do nothing
    patch_size: Side = 16  # pixels per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    layer_scale_init: Ratio = 1e-6

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


VARIANTS = {
    "dependencyvit_tiny": DependencyViTConfig(dim=192),
    "dependencyvit_small": DependencyViTConfig(dim=384),
    "dependencyvit_lite_tiny": DependencyViTConfig(dim=192, prune_ratio=0.16),
    "dependencyvit_lite_small": DependencyViTConfig(dim=384, prune_ratio=0.16),
}
PUBLISHED = {name: Published(source="no code is published, and no count is known that it could be compared with") for name in VARIANTS}


class MessageController(nnx.Module):
    """sigmoid(fc2(gelu(fc1(x)))): how much of a token's message goes on."""

    def __init__(self, dim: int, *, dtype, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, dim // 2, use_bias=False, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(dim // 2, 1, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n"]:
        return jax.nn.sigmoid(self.fc2(gelu(self.fc1(x)))[..., 0].astype(jnp.float32))


class ReversedAttention(nnx.Module):
    """Each token sends its value to the tokens that it attends to; softmax in float32."""

    def __init__(self, config: DependencyViTConfig, *, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.num_heads, self.head_dim = config.num_heads, head_dim_of(dim, config.num_heads)
        self.head_selector = Linear(dim, config.num_heads, use_bias=False, dtype=dtype, rngs=rngs)
        self.message_controller = MessageController(dim, dtype=dtype, rngs=rngs)
        self.qkv = Linear(dim, 3 * dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n d"], message: Float[Array, "b n"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n"], Float[Array, "b heads receiver sender"]]:
        """Returns values that the tokens receive, the new messages, and the weights."""
        message = message * self.message_controller(x)
        q, k, v = jnp.moveaxis(project_qkv(self.qkv, x, num_heads=self.num_heads), 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * self.head_dim**-0.5
        heads = jax.nn.softmax(self.head_selector(x).astype(jnp.float32) / _TEMPERATURE).swapaxes(1, 2)
        weights = jax.nn.softmax(logits).swapaxes(2, 3) * (heads * message[:, None])[:, :, None]
        out = jnp.einsum("bhrs,bshd->brhd", weights.astype(v.dtype), v)
        return self.proj(out.reshape(x.shape)), message, weights


class Block(nnx.Module):
    """Pre-norm block: x + ls1(attn(norm1(x))), fewer tokens where it prunes, then x +
    ls2(mlp(norm2(x))).
    """

    def __init__(self, config: DependencyViTConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = ReversedAttention(config, rngs=rngs)
        self.ls1 = LayerScale(dim, init=config.layer_scale_init)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.ls2 = LayerScale(dim, init=config.layer_scale_init)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, state: State, *, train: bool, rngs: nnx.Rngs | None) -> State:
        state, _ = self._received(state, train=train, rngs=rngs)
        return self._made(state, train=train, rngs=rngs)

    def prune(self, state: State, *, count: int, train: bool, rngs: nnx.Rngs | None) -> tuple[State, Int[Array, "b kept"]]:
        """The block, with the `count` tokens that receive most at its end, in their order, and
        which these were.
        """
        (x, message), weights = self._received(state, train=train, rngs=rngs)
        kept = jnp.sort(best_tokens(jnp.abs(weights).sum((1, 3)), count), axis=1)
        state = taken(x, kept), jnp.take_along_axis(message, kept, axis=1)
        return self._made(state, train=train, rngs=rngs), kept

    def _received(self, state: State, *, train: bool, rngs: nnx.Rngs | None) -> tuple[State, Float[Array, "b heads n n"]]:
        x, message = state
        received, message, weights = self.attn(self.norm1(x), message)
        return (x + self.drop_path(self.ls1(received), train=train, rngs=rngs), message), weights

    def _made(self, state: State, *, train: bool, rngs: nnx.Rngs | None) -> State:
        x, message = state
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))), train=train, rngs=rngs), message


class DependencyViT(VisionModel[DependencyViTConfig]):
    """Patches, a position embedding, blocks of reversed attention; norm, mean of the tokens times
    their messages, linear head.
    """

    def __init__(self, config: DependencyViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.dim, config.dtype
        self.patch_embed = PatchEmbed(config.in_channels, dim, patch_size=config.patch_size, dtype=dtype, rngs=rngs)
        declare(self.patch_embed, "embedding")
        self.pos_embed = declare(position_table(rngs.params(), config.grid, dim), "position", "embedding")
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, drop_path_rate=rate, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        config = self.config
        last = config.depth
        return tuple(FeatureInfo(stride=config.patch_size, dim=config.dim, normalised=i == last) for i in quarters(config.depth))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The maps after a quarter, half, three quarters and all of the blocks; the last one
        normalised. The token is the mean message.
        """
        x = self.patch_embed(self.checked(images))
        b, h, w, d = x.shape
        x = x.reshape(b, h * w, d) + resample(self.pos_embed[...], self.config.grid, (h, w)).astype(x.dtype)
        maps, mean = self.encode(x, train=train, rngs=rngs)
        return Features([y.reshape(b, h, w, d) for y in maps], class_tokens=(mean,))

    def encode(
        self, x: Float[Array, "b n d"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[list[Float[Array, "b n d"]], Float[Array, "b d"]]:
        """The tokens at the depths of `features`, dropped ones as they were, and the mean of the
        normalised ones times their messages.
        """
        b, n, _ = x.shape
        canvas, places, kept = x, jnp.broadcast_to(jnp.arange(n), (b, n)), []
        state: State = (x, jnp.ones((b, n), jnp.float32))
        pruning = [i for i in sorted(set(self.config.prune_at)) if i < self.config.depth and self.config.prune_ratio]
        for start, end in itertools.pairwise(sorted({0, *quarters(self.config.depth), *pruning, *(i + 1 for i in pruning)})):
            if start in pruning:
                canvas = put_back(canvas, state[0], places)
                before, after = (1 - (pruning.index(start) + k) * self.config.prune_ratio for k in (0, 1))
                count = int(after / before * places.shape[1]) if after > 0 else 0
                state, chosen = self._pruned(self.blocks[start], state, count=max(1, count), train=train, rngs=rngs)
                places = jnp.take_along_axis(places, chosen, axis=1)
            else:
                options = {"remat": self.config.remat, "scan": self.config.scan_blocks}
                state = run_blocks(self.blocks[start:end], state, train=train, rngs=rngs, **options)
            if end in quarters(self.config.depth):
                kept.append(put_back(canvas, state[0], places))
        x, message = state
        mean = (self.norm(x).astype(jnp.float32) * message[..., None]).mean(1)
        return [*kept[:-1], self.norm(kept[-1])], mean

    def _pruned(self, block: Block, state: State, *, rngs: nnx.Rngs | None, **options):
        def run(block: Block, state: State, rngs: nnx.Rngs | None):
            return block.prune(state, rngs=rngs, **options)

        return (run if self.config.remat == "none" else nnx.remat(run))(block, state, rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean of the normalised tokens times their messages; float32."""
        return features.class_tokens[0]


FAMILY = Family(DependencyViT, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
