"""InLine-DeiT (Han et al., arXiv:2412.06590): DeiT with injective linear attention, narrower than DeiT at larger images.

Follows the authors' code. The class token takes part in the linear attention, the convolution is over the patches. Any
image of whole patches; another size than the model's resamples the position embedding.
"""

import dataclasses
import itertools
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.layers import DropPath, LayerNorm, Linear, Mlp, Remat, drop_path_rates, run_blocks
from vitlab.layers.roles import declare
from vitlab.layers.token_embed import TokenEmbed
from vitlab.mixers.inline import InLineAttention
from vitlab.models.registry import Family, FeatureInfo, Preprocessing, Published

EPS = 1e-6  # of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class InLineDeiTConfig:
    dim: int  # width of the residual stream
    num_heads: int
    depth: int = 12  # number of blocks
    patch_size: int = 16  # pixels per side
    mlp_ratio: float = 4.0  # MLP hidden width / dim
    image_size: tuple[int, int] = (224, 224)  # pixels, height and width
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Remat = "none"  # what the backward pass recomputes of each block
    scan_blocks: bool = False  # whether blocks in a row that are alike are compiled once, as a loop
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        if any(side % self.patch_size for side in self.image_size):
            raise ValueError(f"{self.image_size=}: both sides must be multiples of {self.patch_size=}")

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    num_class_tokens = 1


# The authors' models/inline_deit.py and cfgs/inline_deit_*.yaml.
VARIANTS = {
    "inline_deit_tiny": InLineDeiTConfig(dim=192, num_heads=6),
    "inline_deit_small": InLineDeiTConfig(dim=320, num_heads=10, image_size=(288, 288)),
    "inline_deit_base": InLineDeiTConfig(dim=384, num_heads=12, image_size=(448, 448)),
}
_SOURCE = "github.com/LeapLabTHU/InLine README; counts: on the authors' code"
PUBLISHED = {
    "inline_deit_tiny": Published(params=6_477_736, gmacs=1.11, top1=74.5, source=_SOURCE),
    "inline_deit_small": Published(params_m=16.735, gmacs=4.97, top1=80.2, source=_SOURCE),
    "inline_deit_base": Published(params_m=23.797, gmacs=17.17, top1=82.3, source=_SOURCE),
}


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: InLineDeiTConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = InLineAttention(dim, num_heads=config.num_heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * config.mlp_ratio), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b n d"], *, grid: tuple[int, int], train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        x = x + self.drop_path(self.attn.tokens(self.norm1(x), grid), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class InLineDeiT(nnx.Module):
    """Patches and a class token, equal blocks, a final norm, a linear head on the class token."""

    def __init__(self, config: InLineDeiTConfig, *, rngs: nnx.Rngs):
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
    def preprocessing(self) -> Preprocessing:
        base = self.config.preprocessing.for_channels(self.config.in_channels)
        return dataclasses.replace(base, image_size=self.config.image_size)

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return (FeatureInfo(stride=self.config.patch_size, dim=self.config.dim),) * len(self._feature_depths)

    @property
    def _feature_depths(self) -> tuple[int, ...]:
        return tuple(sorted({max(1, self.config.depth * k // 4) for k in (1, 2, 3, 4)}))

    def _stream(self, images: Float[Array, "b height width c"], *, train: bool, rngs: nnx.Rngs | None) -> tuple[Float[Array, "b n d"], ...]:
        """The tokens after a quarter, half, three quarters and all of the blocks; the last ones normalised."""
        grid = (images.shape[1] // self.config.patch_size, images.shape[2] // self.config.patch_size)
        x, kept = self.embed(images.astype(self.config.dtype)), []
        options = {"remat": self.config.remat, "scan": self.config.scan_blocks, "grid": grid}
        for start, end in itertools.pairwise((0, *self._feature_depths)):
            x = run_blocks(self.blocks[start:end], x, train=train, rngs=rngs, **options)
            kept.append(x)
        return *kept[:-1], self.norm(x)

    def features(
        self, images: Float[Array, "b height width c"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b _h _w _d"], ...]:
        """The patches' maps after a quarter, half, three quarters and all of the blocks; the last one normalised."""
        b, height, width, _ = images.shape
        p = self.config.patch_size
        return tuple(y[:, 1:].reshape(b, height // p, width // p, -1) for y in self._stream(images, train=train, rngs=rngs))

    def pool(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """The class token of the normalised tokens; float32."""
        return tokens[:, 0].astype(jnp.float32)

    def __call__(
        self, images: Float[Array, "b height width c"], *, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b k"]:
        x = self.pool(self._stream(images, train=train, rngs=rngs)[-1])
        return x if self.head is None else self.head(x)


FAMILY = Family(InLineDeiT, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
