"""Vision Transformer (Dosovitskiy et al., arXiv:2010.11929) and DeiT (Touvron et al., arXiv:2012.12877).

The checkpoints' code (timm) is followed: pre-norm blocks, LayerNorm epsilon 1e-6, exact GELU, no dropout. With
`pool="mean"` the final norm comes before the mean over the patches (big_vision, arXiv:2205.01580). Registers (Darcet et
al., arXiv:2309.16588) stand after the class token and have no position. Another image size than the model's resamples
the position embedding on the fly.
"""

import dataclasses
import itertools
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Ratio, Side
from vitlab.layers import Attention, DropPath, LayerNorm, Linear, Mlp, PatchEmbed, drop_path_rates, run_blocks
from vitlab.layers.initial import normal
from vitlab.layers.pos_embed import position_table, resample, sincos_2d
from vitlab.layers.roles import declare
from vitlab.layers.tensor_split import TENSOR_SPLIT
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(VisionConfig):
    dim: Count  # width of the residual stream
    depth: Depth  # number of blocks
    num_heads: Count
    patch_size: Side = 16  # pixels per side
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    qkv_bias: bool = True
    pool: Literal["cls", "mean"] = "cls"
    distilled: bool = False  # a second class token with its own head; the two heads' logits are averaged
    num_registers: CountOrZero = 0
    pos_embed: Literal["learned", "sincos2d"] = "learned"  # sincos2d is fixed, and excludes class tokens
    implementation: Literal["pallas_tpu", "cudnn", "xla", "reference"] | None = None  # of attention; None: the fastest that applies

    def __post_init__(self):
        super().__post_init__()
        if self.distilled and self.pool != "cls":
            raise ValueError(f'a distilled model reads its class tokens: pool="{self.pool}" must be "cls"')

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_class_tokens(self) -> int:
        return (self.pool == "cls") + self.distilled


# Widths: Ti, S: arXiv:2012.12877 Table 1. B, L: arXiv:2010.11929 Table 1.
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "depth": 12, "num_heads": 3},
    "small": {"dim": 384, "depth": 12, "num_heads": 6},
    "base": {"dim": 768, "depth": 12, "num_heads": 12},
    "large": {"dim": 1024, "depth": 24, "num_heads": 16},
}
# The AugReg checkpoints (arXiv:2106.10270) that these names stand for take pixels in [-1, 1].
_VIT = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
VARIANTS = {
    "vit_tiny_patch16": ViTConfig(**_SIZES["tiny"], preprocessing=_VIT),
    "vit_tiny_patch32": ViTConfig(**_SIZES["tiny"], patch_size=32, preprocessing=_VIT),
    "vit_small_patch16": ViTConfig(**_SIZES["small"], preprocessing=_VIT),
    "vit_small_patch32": ViTConfig(**_SIZES["small"], patch_size=32, preprocessing=_VIT),
    "vit_base_patch16": ViTConfig(**_SIZES["base"], preprocessing=_VIT),
    "vit_base_patch32": ViTConfig(**_SIZES["base"], patch_size=32, preprocessing=_VIT),
    "vit_large_patch16": ViTConfig(**_SIZES["large"], preprocessing=_VIT),
    "vit_large_patch32": ViTConfig(**_SIZES["large"], patch_size=32, preprocessing=_VIT),
    "deit_tiny_patch16": ViTConfig(**_SIZES["tiny"], drop_path_rate=0.1),
    "deit_small_patch16": ViTConfig(**_SIZES["small"], drop_path_rate=0.1),
    "deit_base_patch16": ViTConfig(**_SIZES["base"], drop_path_rate=0.1),
    "deit_tiny_distilled_patch16": ViTConfig(**_SIZES["tiny"], distilled=True, drop_path_rate=0.1),
    "deit_small_distilled_patch16": ViTConfig(**_SIZES["small"], distilled=True, drop_path_rate=0.1),
    "deit_base_distilled_patch16": ViTConfig(**_SIZES["base"], distilled=True, drop_path_rate=0.1),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: ViTConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = Attention(
            dim,
            num_heads=config.num_heads,
            qkv_bias=config.qkv_bias,
            implementation=config.implementation,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        x = self.drop_path.add(x, self.attn, norm=self.norm1, train=train, rngs=rngs)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class ViT(VisionModel[ViTConfig]):
    """Patches, a position embedding, equal blocks, a final norm, a linear head."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.dim, config.dtype
        self.patch_embed = PatchEmbed(config.in_channels, dim, patch_size=config.patch_size, dtype=dtype, rngs=rngs)
        declare(self.patch_embed, "embedding")
        token = normal(1e-6)
        self.cls_token = declare(nnx.Param(token(rngs.params(), (1, 1, dim))), "token", "embedding") if config.pool == "cls" else None
        self.dist_token = declare(nnx.Param(token(rngs.params(), (1, 1, dim))), "token", "embedding") if config.distilled else None
        self.reg_token = (
            declare(nnx.Param(token(rngs.params(), (1, config.num_registers, dim))), "token", "embedding") if config.num_registers else None
        )
        position = position_table(rngs.params(), config.grid, dim, num_prefix=config.num_class_tokens)
        self.pos_embed = declare(position, "position", "embedding") if config.pos_embed == "learned" else None
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, drop_path_rate=r, rngs=rngs) for r in rates])
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None
        self.head_dist = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if config.num_classes and config.distilled else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        last = self.config.depth
        return tuple(FeatureInfo(stride=self.config.patch_size, dim=self.config.dim, normalised=i == last) for i in self._feature_depths)

    @property
    def _feature_depths(self) -> tuple[int, ...]:
        depth = self.config.depth
        return tuple(sorted({max(1, depth * k // 4) for k in (1, 2, 3, 4)}))

    def _embed(self, images: Images) -> Float[Array, "b n d"]:
        patches = self.patch_embed(self.checked(images))
        b, h, w, d = patches.shape
        x = patches.reshape(b, h * w, d)
        classes = [t[...] for t in (self.cls_token, self.dist_token) if t is not None]
        prefix = [jnp.broadcast_to(t, (b, 1, d)).astype(x.dtype) for t in classes]
        if self.pos_embed is None:
            x = jnp.concatenate([*prefix, x + jnp.asarray(sincos_2d(h, w, d), x.dtype)], axis=1)
        else:
            position = resample(self.pos_embed[...], self.config.grid, (h, w), num_prefix=len(prefix))
            x = jnp.concatenate([*prefix, x], axis=1) + position.astype(x.dtype)
        if self.reg_token is None:
            return x
        registers = jnp.broadcast_to(self.reg_token[...], (b, self.config.num_registers, d)).astype(x.dtype)
        return jnp.concatenate([x[:, : len(prefix)], registers, x[:, len(prefix) :]], axis=1)

    def _run(self, start: int, end: int, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        options = {"remat": self.config.remat, "scan": self.config.scan_blocks, "train": train, "rngs": rngs}
        return run_blocks(self.blocks[start:end], x, **options)

    def tokens(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Float[Array, "b n d"]:
        """All tokens after the final norm: class tokens, registers, patches in row-major order."""
        return self.norm(self._run(0, self.config.depth, self._embed(images), train=train, rngs=rngs))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The patches' maps after a quarter, half, three quarters and all of the blocks; the last one normalised."""
        x, kept = self._embed(images), []
        b, height, width, _ = images.shape
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        for start, end in itertools.pairwise((0, *self._feature_depths)):
            x = self._run(start, end, x, train=train, rngs=rngs)
            kept.append(x)
        x = self.norm(x)
        maps = [y[:, -grid[0] * grid[1] :].reshape(b, *grid, -1) for y in (*kept[:-1], x)]
        return Features(maps, class_tokens=tuple(x[:, i] for i in range(self.config.num_class_tokens)))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The class token, or the mean over the patches, of the normalised tokens; float32."""
        if self.config.pool == "cls":
            return features.class_tokens[0].astype(jnp.float32)
        return features[-1].astype(jnp.float32).mean((1, 2))

    def head_logits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> tuple[Float[Array, "b _k"], ...]:
        """Logits of the class token (or mean) and, if `distilled`, of the distillation token.

        The blocks run as one row, which `scan_blocks` compiles once; for `features` the row is cut in four.
        """
        tokens = self.tokens(images, train=train, rngs=rngs).astype(jnp.float32)
        pooled = tokens[:, 0] if self.config.pool == "cls" else tokens[:, self.config.num_registers :].mean(1)
        if self.head is None:
            return (pooled,)
        if self.head_dist is None:
            return (self.head(pooled),)
        return self.head(pooled), self.head_dist(tokens[:, 1])


# Counts: timm 1.0.31, and torchvision's table for base and large with patch 32. Top-1 of vit_*: timm's results for
# augreg_in21k_ft_in1k; of deit_*: arXiv:2012.12877 Table 5.
_AUGREG = "timm results-imagenet.csv, augreg_in21k_ft_in1k"
_DEIT = "arXiv:2012.12877 Table 5"
PUBLISHED = {
    "vit_tiny_patch16": Published(params=5_717_416, gmacs=1.254, top1=75.5, source=_AUGREG),
    "vit_tiny_patch32": Published(source="not published"),
    "vit_small_patch16": Published(params=22_050_664, gmacs=4.599, top1=81.4, source=_AUGREG),
    "vit_small_patch32": Published(params_m=22.88, top1=76.0, source=_AUGREG),
    "vit_base_patch16": Published(params=86_567_656, gmacs=17.564, top1=84.5, source=_AUGREG),
    "vit_base_patch32": Published(params=88_224_232, top1=80.7, source=_AUGREG),
    "vit_large_patch16": Published(params=304_326_632, gmacs=61.555, top1=85.9, source=_AUGREG),
    "vit_large_patch32": Published(params=306_535_400, source="torchvision vit_l_32"),
    "deit_tiny_patch16": Published(params=5_717_416, gmacs=1.254, top1=72.2, source=_DEIT),
    "deit_small_patch16": Published(params=22_050_664, gmacs=4.599, top1=79.8, source=_DEIT),
    "deit_base_patch16": Published(params=86_567_656, gmacs=17.564, top1=81.8, source=_DEIT),
    "deit_tiny_distilled_patch16": Published(params=5_910_800, gmacs=1.261, top1=74.5, source=_DEIT),
    "deit_small_distilled_patch16": Published(params=22_436_432, gmacs=4.624, top1=81.2, source=_DEIT),
    "deit_base_distilled_patch16": Published(params_m=87.34, top1=83.4, source=_DEIT),
}
FAMILY = Family(ViT, VARIANTS, PUBLISHED, TENSOR_SPLIT, layers=lambda m: m.blocks)
