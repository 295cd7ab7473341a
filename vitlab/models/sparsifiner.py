"""Sparsifiner (Wei et al., arXiv:2303.13755): DeiT or LV-ViT in which each query attends to few
keys, which a predictor chooses.

Follows the authors' code: the class token attends to all tokens, and competes as a key; tokens may
be pruned too, by the class token's attention, and are then zeros. All shapes are static, and
attention is masked, not sparse: nothing is saved here. The predictor has its own loss, see
`vitlab.layers.mask_predictor`; the logits have no gradient in it. LV-ViT (Jiang et al.,
arXiv:2104.10858) adds half of each class's largest logit among the patches, in training too, where
the authors' trainer takes the class token's alone. An image of another size than the model's
resamples the position embedding and the predictor's tables.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vitlab.bounds import Count, CountOrZero, Depth, Rate, Ratio, Side
from vitlab.layers import DropPath, LayerNorm, Linear, Mlp, drop_path_rates, run_blocks
from vitlab.layers.attention import head_dim_of
from vitlab.layers.conv_stem import ConvStem
from vitlab.layers.mask_predictor import MaskPredictor, largest, tokens_of
from vitlab.layers.roles import declare
from vitlab.layers.tensor_split import project_qkv
from vitlab.layers.token_embed import TokenEmbed
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsifinerConfig(VisionConfig):
    dim: Count = 384  # width of the residual stream
    num_heads: Count = 6
    depth: Depth = 12  # number of blocks
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    patch_size: Side = 16  # pixels per side
    keep_rate: Ratio = 0.25  # fraction of the keys that a query attends to, at most 1
    reduce_tokens: Count = 6  # tokens / landmarks of the predictor
    reduce_dim: Count = 2  # head width / width of the predictor
    basis_threshold: Rate = 0.02  # entries of the predictor's basis up to it are 0
    num_coefficients: Count = 8  # landmarks that count for a query
    token_keep_rate: Ratio = 1.0  # fraction of the patches that a pruning block keeps of those that there are; 1: all
    prune_at: tuple[CountOrZero, ...] = (3, 6, 9)  # blocks that prune, the first being 0; those that there are not do nothing
    lvvit: bool = False  # LV-ViT in place of DeiT: convolutional stem, halved branches, no bias of q, k and v, a head for the patches
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        if self.keep_rate > 1 or self.token_keep_rate > 1:
            raise ValueError(f"keep_rate={self.keep_rate} and token_keep_rate={self.token_keep_rate} must be at most 1")
        if self.lvvit and self.patch_size % 2:
            raise ValueError(f"patch_size={self.patch_size} must be even after the stem of stride 2")

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def norm_eps(self) -> float:
        return 1e-5 if self.lvvit else 1e-6


# The authors' main.py and sparsifiner_default_config.yaml.
VARIANTS = {
    "sparsifiner_small": SparsifinerConfig(),
    "sparsifiner_lvvit_small": SparsifinerConfig(depth=16, mlp_ratio=3.0, lvvit=True),
}
_SOURCE = "counts: on the authors' code of github.com/lim142857/Sparsifiner; accuracies are in the paper's figures"
PUBLISHED = {
    "sparsifiner_small": Published(params=22_251_880, gmacs=4.78, source=_SOURCE),
    "sparsifiner_lvvit_small": Published(source="accuracies are in the paper's figures, counts are not published"),
}


class SparseAttention(nnx.Module):
    """Self-attention of the class token and patches under the predicted mask; softmax in
    float32.
    """

    def __init__(self, config: SparsifinerConfig, *, rngs: nnx.Rngs):
        dim, dtype, num_tokens = config.dim, config.dtype, config.grid[0] * config.grid[1] + 1
        self.num_heads, self.head_dim = config.num_heads, head_dim_of(dim, config.num_heads)
        self.keep_rate = config.keep_rate
        self.qkv = Linear(dim, 3 * dim, use_bias=not config.lvvit, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.mask_predictor = MaskPredictor(
            self.head_dim,
            grid=config.grid,
            rank=max(1, num_tokens // config.reduce_tokens),
            dim=self.head_dim // config.reduce_dim,
            threshold=config.basis_threshold,
            num_coefficients=config.num_coefficients,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: tuple[int, int], alive: Bool[Array, "b n"] | None, num_alive: int
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b patches"]]:
        """What each token receives, and the class token's attention to each patch, the mean over
        the heads.
        """
        qkv = project_qkv(self.qkv, x, num_heads=self.num_heads)
        q, k, v = jnp.moveaxis(qkv if alive is None else jnp.where(alive[:, :, None, None, None], qkv, 0), 2, 0)
        count = min(tokens_of(self.keep_rate, x.shape[1]), num_alive)
        mask = self.mask_predictor(q, k, grid, count=count, alive=alive)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * self.head_dim**-0.5, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf))
        out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
        return self.proj(out.reshape(x.shape)), weights[:, :, 0, 1:].mean(1)


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x)); the branches are halved in
    LV-ViT.
    """

    def __init__(self, config: SparsifinerConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        self.divisor = 2.0 if config.lvvit else 1.0
        self.norm1 = LayerNorm(config.dim, eps=config.norm_eps, dtype=config.dtype, rngs=rngs)
        self.attn = SparseAttention(config, rngs=rngs)
        self.norm2 = LayerNorm(config.dim, eps=config.norm_eps, dtype=config.dtype, rngs=rngs)
        self.mlp = Mlp(config.dim, mlp_dim=int(config.dim * config.mlp_ratio), dtype=config.dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        *,
        grid: tuple[int, int],
        alive: Bool[Array, "b n"] | None = None,
        num_alive: int,
        train: bool,
        rngs: nnx.Rngs | None,
    ) -> Float[Array, "b n d"]:
        x, _ = self._scored(x, alive, train, rngs, grid=grid, num_alive=num_alive)
        return _cleared(x, alive)

    def prune(
        self,
        x: Float[Array, "b n d"],
        alive: Bool[Array, "b n"] | None,
        *,
        grid: tuple[int, int],
        num_alive: int,
        count: int,
        train: bool,
        rngs: nnx.Rngs | None,
    ) -> tuple[Float[Array, "b n d"], Bool[Array, "b n"]]:
        """The block, after which `count` patches live on, those to which the class token attended
        most.
        """
        x, scores = self._scored(x, alive, train, rngs, grid=grid, num_alive=num_alive)
        scores = scores if alive is None else jnp.where(alive[:, 1:], scores, -jnp.inf)
        alive = jnp.pad(largest(scores, count), ((0, 0), (1, 0)), constant_values=True)
        return _cleared(x, alive), alive

    def _scored(self, x, alive, train: bool, rngs: nnx.Rngs | None, **sizes):
        attended, scores = self.attn(self.norm1(x), alive=alive, **sizes)
        x = x + self.drop_path(attended, train=train, rngs=rngs) / self.divisor
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs) / self.divisor, scores


def _cleared(x: Float[Array, "b n d"], alive: Bool[Array, "b n"] | None) -> Float[Array, "b n d"]:
    return x if alive is None else jnp.where(alive[..., None], x, 0)


class Sparsifiner(VisionModel[SparsifinerConfig]):
    """Patches and a class token, equal blocks of sparse attention, a final norm, a linear head on
    the class token.
    """

    def __init__(self, config: SparsifinerConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.dim, config.dtype
        stem_dim, stride = (64, 2) if config.lvvit else (config.in_channels, 1)
        self.stem = declare(ConvStem(config.in_channels, stem_dim, dtype=dtype, rngs=rngs), "embedding") if config.lvvit else None
        embed = TokenEmbed(stem_dim, dim, patch_size=config.patch_size // stride, grid=config.grid, dtype=dtype, rngs=rngs)
        self.embed = declare(embed, "embedding")
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, drop_path_rate=rate, rngs=rngs) for rate in rates])
        self.norm = LayerNorm(dim, eps=config.norm_eps, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None
        self.aux_head = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if config.num_classes and config.lvvit else None

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
        grid = (images.shape[1] // self.config.patch_size, images.shape[2] // self.config.patch_size)
        x, kept = self.embed(images if self.stem is None else self.stem(images, train=train)), []
        pruning = sorted(i for i in set(self.config.prune_at) if i < self.config.depth and self.config.token_keep_rate < 1)
        alive, num_alive, num_patches = None, x.shape[1], grid[0] * grid[1]
        for start, end in itertools.pairwise(sorted({0, *quarters(self.config.depth), *pruning, *(i + 1 for i in pruning)})):
            options = {"grid": grid, "num_alive": num_alive, "train": train, "rngs": rngs}
            if start in pruning:
                count = tokens_of(self.config.token_keep_rate ** (1 + pruning.index(start)), num_patches)
                x, alive = self._pruned(self.blocks[start], x, alive, count=count, **options)
                num_alive = count
            else:
                run = {"remat": self.config.remat, "scan": self.config.scan_blocks, "alive": alive}
                x = run_blocks(self.blocks[start:end], x, **run, **options)
            if end in quarters(self.config.depth):
                kept.append(x)
        x = self.norm(x)
        return Features([y[:, 1:].reshape(-1, *grid, y.shape[-1]) for y in (*kept[:-1], x)], class_tokens=(x[:, 0],))

    def _pruned(self, block: Block, x, alive, *, rngs: nnx.Rngs | None, **options):
        def run(block: Block, x, alive, rngs: nnx.Rngs | None):
            return block.prune(x, alive, rngs=rngs, **options)

        return (run if self.config.remat == "none" else nnx.remat(run))(block, x, alive, rngs)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The normalised class token; float32."""
        return features.class_tokens[0].astype(jnp.float32)

    def head_logits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> tuple[Float[Array, "b _k"], ...]:
        """Logits of the class token; in LV-ViT half of each class's largest among the patches is
        added.
        """
        features = self.features(images, train=train, rngs=rngs)
        pooled = self.pool(features)
        if self.head is None:
            return (pooled,)
        if self.aux_head is None:
            return (self.head(pooled),)
        return (self.head(pooled) + 0.5 * self.aux_head(features[-1].astype(jnp.float32)).max((1, 2)),)


FAMILY = Family(Sparsifiner, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
