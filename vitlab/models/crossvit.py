"""CrossViT (Chen et al., arXiv:2103.14899): two branches of small and large patches.

Class tokens exchange information between the branches. Follows the authors' code: the fused class
token replaces the branch's, both directions of a fusion start from the branches before it, and the
second branch sees the image resized by torch's bicubic interpolation. Sides must be multiples of
the small patch; the second branch's image is the nearest multiple of the large patch.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import Attention, Conv, DropPath, LayerNorm, Linear, Mlp, PatchEmbed, Remat, drop_path_rates, run_blocks
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import full
from vitlab.layers.pos_embed import position_table, resample
from vitlab.layers.resize import resize_bicubic
from vitlab.layers.roles import declare
from vitlab.models.contract import Images, ImageSize, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every LayerNorm
ENCODERS = 3  # encoders per network; each ends in a fusion


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossViTConfig(VisionConfig):
    dims: tuple[Count, Count]  # width of the branch of small patches, and of large patches
    depths: tuple[Depth, Depth]  # blocks per encoder, for each branch
    num_heads: Count  # heads of both branches
    mlp_ratio: Ratio  # MLP hidden width / dim
    patch_sizes: tuple[Side, Side] = (12, 16)  # pixels per side of a small patch, and of a large one
    scale: Ratio = 224 / 240  # side of the second branch's image / side of the first's
    conv_stem: bool = False  # True: patches are embedded by three convolutions instead of one (dagger)
    image_size: ImageSize = (240, 240)
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    @property
    def size_multiple(self) -> int:
        return self.patch_sizes[0]

    def branch_sizes(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns the size in pixels of each branch's image."""
        patch = self.patch_sizes[1]
        height, width = (max(1, round(side * self.scale / patch)) * patch for side in size)
        return size, (height, width)

    def grid(self, branch: int, size: tuple[int, int]) -> tuple[int, int]:
        """Returns a branch's rows and columns of patches for an image of `size` pixels."""
        height, width = self.branch_sizes(size)[branch]
        return height // self.patch_sizes[branch], width // self.patch_sizes[branch]


_AT_408: dict[str, Any] = {"image_size": (408, 408), "scale": 384 / 408}
# arXiv:2103.14899 table 1. Variants at 408 pixels are from the authors' models/crossvit.py.
VARIANTS = {
    "crossvit_tiny": CrossViTConfig(dims=(96, 192), depths=(1, 4), num_heads=3, mlp_ratio=4.0),
    "crossvit_small": CrossViTConfig(dims=(192, 384), depths=(1, 4), num_heads=6, mlp_ratio=4.0),
    "crossvit_base": CrossViTConfig(dims=(384, 768), depths=(1, 4), num_heads=12, mlp_ratio=4.0),
    "crossvit_9": CrossViTConfig(dims=(128, 256), depths=(1, 3), num_heads=4, mlp_ratio=3.0),
    "crossvit_15": CrossViTConfig(dims=(192, 384), depths=(1, 5), num_heads=6, mlp_ratio=3.0),
    "crossvit_18": CrossViTConfig(dims=(224, 448), depths=(1, 6), num_heads=7, mlp_ratio=3.0),
    "crossvit_9_dagger": CrossViTConfig(dims=(128, 256), depths=(1, 3), num_heads=4, mlp_ratio=3.0, conv_stem=True),
    "crossvit_15_dagger": CrossViTConfig(dims=(192, 384), depths=(1, 5), num_heads=6, mlp_ratio=3.0, conv_stem=True),
    "crossvit_18_dagger": CrossViTConfig(dims=(224, 448), depths=(1, 6), num_heads=7, mlp_ratio=3.0, conv_stem=True),
    "crossvit_15_dagger_408": CrossViTConfig(dims=(192, 384), depths=(1, 5), num_heads=6, mlp_ratio=3.0, conv_stem=True, **_AT_408),
    "crossvit_18_dagger_408": CrossViTConfig(dims=(224, 448), depths=(1, 6), num_heads=7, mlp_ratio=3.0, conv_stem=True, **_AT_408),
}
_SOURCE = "timm results-imagenet.csv, the authors' checkpoints"
PUBLISHED = {
    "crossvit_tiny": Published(params=7_014_800, gmacs=1.56, top1=73.35, source=_SOURCE),
    "crossvit_small": Published(params_m=26.856, gmacs=5.62, top1=81.04, source=_SOURCE),
    "crossvit_base": Published(params_m=105.025, gmacs=21.19, top1=82.21, source=_SOURCE),
    "crossvit_9": Published(params_m=8.553, gmacs=1.84, top1=73.99, source=_SOURCE),
    "crossvit_15": Published(params_m=27.528, gmacs=5.79, top1=81.52, source=_SOURCE),
    "crossvit_18": Published(params_m=43.271, gmacs=9.03, top1=82.39, source=_SOURCE),
    "crossvit_9_dagger": Published(params_m=8.777, gmacs=1.98, top1=76.99, source=_SOURCE),
    "crossvit_15_dagger": Published(params_m=28.209, gmacs=6.11, top1=82.3, source=_SOURCE),
    "crossvit_18_dagger": Published(params_m=44.267, gmacs=9.47, top1=82.49, source=_SOURCE),
    "crossvit_15_dagger_408": Published(params_m=28.5, top1=83.84, source=_SOURCE),
    "crossvit_18_dagger_408": Published(params_m=44.61, top1=84.2, source=_SOURCE),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: CrossViTConfig, *, dim: int, drop_path_rate: float, rngs: nnx.Rngs):
        dtype = config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = Attention(dim, num_heads=config.num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return self.drop_path.add(x, self.mlp, norm=self.norm2, train=train, rngs=rngs)


class CrossAttention(nnx.Module):
    """The first token attends to all tokens; only the first is returned."""

    def __init__(self, dim: int, *, num_heads: int, dtype, rngs: nnx.Rngs):
        self.num_heads, self.head_dim = num_heads, head_dim_of(dim, num_heads)
        self.wq, self.wk, self.wv, self.proj = (Linear(dim, dim, dtype=dtype, rngs=rngs) for _ in range(4))

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b 1 d"]:
        b, _, d = x.shape
        q, k, v = (
            linear(y).reshape(b, -1, self.num_heads, self.head_dim) for linear, y in ((self.wq, x[:, :1]), (self.wk, x), (self.wv, x))
        )
        return self.proj(dot_product_attention(q, k, v).reshape(b, 1, d))


class NormLinear(nnx.Module):
    """linear(gelu(norm(x)))."""

    def __init__(self, dim: int, out_dim: int, *, dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.linear = Linear(dim, out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d2"]:
        return self.linear(gelu(self.norm(x)))


class Fusion(nnx.Module):
    """The class token of one branch attends to the patches of the other branch.

    Linear maps project the token to the other branch's width and back.
    """

    def __init__(self, config: CrossViTConfig, *, dim: int, other_dim: int, drop_path_rate: float, rngs: nnx.Rngs):
        dtype = config.dtype
        self.project = NormLinear(dim, other_dim, dtype=dtype, rngs=rngs)
        self.norm1 = LayerNorm(other_dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = CrossAttention(other_dim, num_heads=config.num_heads, dtype=dtype, rngs=rngs)
        self.revert = NormLinear(other_dim, dim, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(
        self, x: Float[Array, "b n d"], other: Float[Array, "b m d2"], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "b n d"]:
        cls_token = self.project(x[:, :1])
        attended = self.attn(self.norm1(jnp.concatenate((cls_token, other[:, 1:]), 1)))
        cls_token = cls_token + self.drop_path(attended, train=train, rngs=rngs)
        return jnp.concatenate((self.revert(cls_token), x[:, 1:]), 1)


class Encoder(nnx.Module):
    """The blocks of both branches, then both fusions at once."""

    def __init__(self, config: CrossViTConfig, *, rates: tuple[float, ...], rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.blocks = nnx.List(
            [
                nnx.List([Block(config, dim=dim, drop_path_rate=rates[i], rngs=rngs) for i in range(depth)])
                for dim, depth in zip(config.dims, config.depths, strict=True)
            ]
        )
        pairs = (config.dims, config.dims[::-1])
        self.fusions = nnx.List([Fusion(config, dim=dim, other_dim=other, drop_path_rate=rates[-1], rngs=rngs) for dim, other in pairs])

    def __call__(self, small, large, *, train: bool, rngs: nnx.Rngs | None) -> tuple[Float[Array, "b n d"], Float[Array, "b m d2"]]:
        branches = []
        for blocks, x in zip(self.blocks, (small, large), strict=True):
            x = run_blocks(blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)
            branches.append(x)
        small, large = branches
        return (
            self.fusions[0](small, large, train=train, rngs=rngs),
            self.fusions[1](large, small, train=train, rngs=rngs),
        )


class ConvStem(nnx.Module):
    """Three convolutions to 1/12 or 1/16 of the image's sides, ReLU between."""

    def __init__(self, in_channels: int, dim: int, *, patch_size: int, dtype, rngs: nnx.Rngs):
        last = {12: ((3, 0), (1, 1)), 16: ((2, 1), (2, 1))}  # stride and padding of the second and third convolution, by patch size
        if patch_size not in last:
            raise ValueError(f"{patch_size=} of a convolutional stem must be 12 or 16")
        shapes = ((in_channels, dim // 4, 7, 4, 3), *((dim // 4 * (i + 1), dim // 2 * (i + 1), 3, *last[patch_size][i]) for i in range(2)))
        self.convs = nnx.List(
            [Conv(a, b, kernel_size=k, stride=stride, padding=padding, dtype=dtype, rngs=rngs) for a, b, k, stride, padding in shapes]
        )

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        for i, conv in enumerate(self.convs):
            x = conv(jax.nn.relu(x) if i else x)
        return x


class Embedding(nnx.Module):
    """The tokens of one branch: a class token and patches, with positions."""

    def __init__(self, config: CrossViTConfig, *, branch: int, rngs: nnx.Rngs):
        dim, patch_size = config.dims[branch], config.patch_sizes[branch]
        embed = ConvStem if config.conv_stem else PatchEmbed
        self.patch_embed = embed(config.in_channels, dim, patch_size=patch_size, dtype=config.dtype, rngs=rngs)
        self.grid = config.grid(branch, config.image_size)
        self.cls_token = declare(nnx.Param(full((1, 1, dim), 0.0)), "token")
        self.pos_embed = declare(position_table(rngs.params(), self.grid, dim, num_prefix=1), "position")

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        patches = self.patch_embed(images)
        b, h, w, d = patches.shape
        x = jnp.concatenate((jnp.broadcast_to(self.cls_token[...], (b, 1, d)).astype(patches.dtype), patches.reshape(b, h * w, d)), 1)
        return x + resample(self.pos_embed[...], self.grid, (h, w), num_prefix=1).astype(x.dtype)


class Head(nnx.Module):
    """The mean of two linear maps, one per branch."""

    def __init__(self, dims: tuple[int, int], num_classes: int, *, rngs: nnx.Rngs):
        self.small, self.large = (Linear(dim, num_classes, rngs=rngs) for dim in dims)
        self.split = dims[0]

    def __call__(self, x: Float[Array, "b d"]) -> Float[Array, "b k"]:
        return (self.small(x[:, : self.split]) + self.large(x[:, self.split :])) / 2


class CrossViT(VisionModel[CrossViTConfig]):
    """Two branches and three encoders that fuse them; norms, then a head on both class tokens."""

    def __init__(self, config: CrossViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = nnx.List([Embedding(config, branch=i, rngs=rngs) for i in range(2)])
        declare(self.embeddings, "embedding")
        depth = max(config.depths)
        rates = drop_path_rates(config.drop_path_rate, ENCODERS * depth)
        self.encoders = nnx.List([Encoder(config, rates=rates[i * depth : (i + 1) * depth], rngs=rngs) for i in range(ENCODERS)])
        self.norms = nnx.List([LayerNorm(dim, eps=EPS, dtype=config.dtype, rngs=rngs) for dim in config.dims])
        self.head = declare(Head(config.dims, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(
            FeatureInfo(stride=patch, dim=dim, normalised=True)
            for patch, dim in zip(self.config.patch_sizes, self.config.dims, strict=True)
        )

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns each branch's normalised map of patches.

        The second branch's map covers the resized image.
        """
        images = self.checked(images)
        size = (images.shape[1], images.shape[2])
        _, large_size = self.config.branch_sizes(size)
        small, large = self.embeddings[0](images), self.embeddings[1](resize_bicubic(images, large_size))
        for encoder in self.encoders:
            small, large = encoder(small, large, train=train, rngs=rngs)
        branches = (self.norms[0](small), self.norms[1](large))
        maps = [x[:, 1:].reshape(x.shape[0], *self.config.grid(branch, size), -1) for branch, x in enumerate(branches)]
        return Features(maps, class_tokens=tuple(x[:, 0] for x in branches))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the class tokens of both branches, concatenated, in float32."""
        return jnp.concatenate([token.astype(jnp.float32) for token in features.class_tokens], -1)


def _layers(model: CrossViT) -> list[Any]:
    """Returns the layers in depth order, for layer-wise decay.

    Blocks of the two branches are aligned from an encoder's first block on. Fusions are as deep as
    the encoder's last blocks.
    """
    layers = []
    for encoder in model.encoders:
        small, large = encoder.blocks
        *pairs, last = (tuple(filter(None, pair)) for pair in itertools.zip_longest(small, large))
        layers += [*pairs, (*last, *encoder.fusions)]
    return layers


FAMILY = Family(CrossViT, VARIANTS, PUBLISHED, layers=_layers)
