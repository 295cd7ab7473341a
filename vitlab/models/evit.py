"""EViT (Liang et al., arXiv:2202.07800): DeiT that drops the patches to which its class token
attends least.

Follows the authors' code: in the blocks of `reduce_at` attention comes first; then ceil(keep_rate *
n) of the n patches stay, those of the highest attention of the class token (mean over the heads),
in that order; with `fuse` the others become one more token, their sum weighted by that attention
(not normalised), which later blocks treat as a patch. Shapes are static. The maps of `features`
hold each dropped patch as it was before the block that dropped it. Departs from the authors' code:
the keep rate is constant in training, where theirs falls from 1 during the first 110 epochs;
another image size resamples the position embedding on the fly.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vitlab.bounds import Count, CountOrZero, Depth, Rate, Ratio, Side
from vitlab.layers import Attention, DropPath, LayerNorm, Linear, Mlp, drop_path_rates, run_blocks
from vitlab.layers.attention import dot_product_attention
from vitlab.layers.roles import declare
from vitlab.layers.tensor_split import project_qkv
from vitlab.layers.token_embed import TokenEmbed
from vitlab.layers.token_reduction import best_tokens, fused_rest, put_back, taken
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class EViTConfig(VisionConfig):
    dim: Count  # width of the residual stream
    num_heads: Count
    depth: Depth = 12  # number of blocks
    keep_rate: Ratio = 0.7  # fraction of the patches that a reducing block keeps, at most 1
    reduce_at: tuple[CountOrZero, ...] = (3, 6, 9)  # blocks that reduce, the first being 0; those that there are not do nothing
    fuse: bool = True  # whether the dropped patches go on as one token
    patch_size: Side = 16  # pixels per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        if self.keep_rate > 1:
            raise ValueError(f"keep_rate={self.keep_rate} must be at most 1")

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


_SIZES: list[dict[str, Any]] = [{"dim": 64 * heads, "num_heads": heads} for heads in (3, 6, 12)]
_TINY, _SMALL, _BASE = _SIZES
# The authors' evit.py and README.
VARIANTS = {
    "evit_deit_tiny_k07": EViTConfig(**_TINY),
    "evit_deit_small_k09": EViTConfig(**_SMALL, keep_rate=0.9),
    "evit_deit_small_k08": EViTConfig(**_SMALL, keep_rate=0.8),
    "evit_deit_small_k07": EViTConfig(**_SMALL),
    "evit_deit_small_k06": EViTConfig(**_SMALL, keep_rate=0.6),
    "evit_deit_small_k05": EViTConfig(**_SMALL, keep_rate=0.5),
    "evit_deit_base_k07": EViTConfig(**_BASE),
}
_SOURCE = "github.com/youweiliang/evit README, with fusion; counts: on the authors' code"
PUBLISHED = {
    "evit_deit_tiny_k07": Published(source="not published"),
    "evit_deit_small_k09": Published(params=22_050_664, gmacs=4.02, top1=79.8, source=_SOURCE),
    "evit_deit_small_k08": Published(params=22_050_664, gmacs=3.48, top1=79.8, source=_SOURCE),
    "evit_deit_small_k07": Published(params=22_050_664, gmacs=3.03, top1=79.5, source=_SOURCE),
    "evit_deit_small_k06": Published(params=22_050_664, gmacs=2.64, top1=78.9, source=_SOURCE),
    "evit_deit_small_k05": Published(params=22_050_664, gmacs=2.31, top1=78.5, source=_SOURCE),
    "evit_deit_base_k07": Published(params=86_567_656, source="parameters: DeiT-B's"),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), fewer tokens where it reduces, then x + mlp(norm2(x))."""

    def __init__(self, config: EViTConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.keep_rate, self.fuse = config.keep_rate, config.fuse
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = Attention(dim, num_heads=config.num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)

    def reduce(self, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> tuple[Float[Array, "b m d"], Int[Array, "b kept"]]:
        """The block with fewer tokens at its end, and which of its patches these were; a fused
        token comes last.
        """
        attended, scores = self._attend(self.norm1(x))
        x = x + self.drop_path(attended, train=train, rngs=rngs)
        patches = x[:, 1:]
        kept = best_tokens(scores, math.ceil(self.keep_rate * patches.shape[1]))
        parts = [x[:, :1], taken(patches, kept)]
        if self.fuse and kept.shape[1] < patches.shape[1]:
            parts.append(fused_rest(patches, scores, kept))
        x = jnp.concatenate(parts, 1)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs), kept

    def _attend(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], Float[Array, "b patches"]]:
        """Attention, and the class token's to each patch, the mean over the heads, float32."""
        q, k, v = jnp.moveaxis(project_qkv(self.attn.qkv, x, num_heads=self.attn.num_heads), 2, 0)
        out = dot_product_attention(q, k, v).reshape(x.shape)
        logits = jnp.einsum("bhd,bnhd->bhn", q[:, 0], k, preferred_element_type=jnp.float32) * self.attn.head_dim**-0.5
        return self.attn.proj(out), jax.nn.softmax(logits).mean(1)[:, 1:]


class EViT(VisionModel[EViTConfig]):
    """Patches and a class token, equal blocks, some with fewer tokens at their end, a final norm, a
    linear head on the class token.
    """

    def __init__(self, config: EViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = TokenEmbed(
            config.in_channels, config.dim, patch_size=config.patch_size, grid=config.grid, dtype=config.dtype, rngs=rngs
        )
        declare(self.embed, "embedding")
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, drop_path_rate=rate, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(config.dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        config = self.config
        last = config.depth
        return tuple(FeatureInfo(stride=config.patch_size, dim=config.dim, normalised=i == last) for i in quarters(config.depth))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The patches' maps after a quarter, half, three quarters and all of the blocks; the last
        one normalised.
        """
        images = self.checked(images)
        b, height, width, _ = images.shape
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        x, kept = self.embed(images), []
        canvas, places = x[:, 1:], jnp.broadcast_to(jnp.arange(grid[0] * grid[1]), (b, grid[0] * grid[1]))
        reducing = set(self.config.reduce_at) & set(range(self.config.depth))
        ends = sorted({0, *quarters(self.config.depth), *reducing, *(i + 1 for i in reducing)})
        for start, end in itertools.pairwise(ends):
            if start in reducing:
                canvas = put_back(canvas, x[:, 1:], places)
                x, chosen = self._reduced(self.blocks[start], x, train=train, rngs=rngs)
                places = jnp.take_along_axis(places, chosen, axis=1)
                new = x.shape[1] - 1 - places.shape[1]  # a fused token has no place
                places = jnp.pad(places, ((0, 0), (0, new)), constant_values=canvas.shape[1])
            else:
                options = {"remat": self.config.remat, "scan": self.config.scan_blocks}
                x = run_blocks(self.blocks[start:end], x, train=train, rngs=rngs, **options)
            if end in quarters(self.config.depth):
                kept.append(put_back(canvas, x[:, 1:], places))
        maps = [*kept[:-1], self.norm(kept[-1])]
        return Features([y.reshape(b, *grid, -1) for y in maps], class_tokens=(self.norm(x[:, 0]),))

    def _reduced(self, block: Block, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None):
        def run(block: Block, x: Float[Array, "b n d"], rngs: nnx.Rngs | None):
            return block.reduce(x, train=train, rngs=rngs)

        return (run if self.config.remat == "none" else nnx.remat(run))(block, x, rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The normalised class token; float32."""
        return features.class_tokens[0].astype(jnp.float32)


FAMILY = Family(EViT, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
