"""Hierarchical SpectFormer (Patro et al., arXiv:2304.06446): spectral gating, then attention.

Follows the authors' code, whose networks were trained with token labels: the logits are those of
the class token plus half the largest that the auxiliary head gives any patch. Any image size;
filters are resampled. The published accuracies need the labels of the tokens, which the recipe here
lacks. With `token_labels=False` there is no auxiliary head, as in the authors' code with
`token_label=False`: 21.78, 32.54 and 54.16 M parameters, and the logits are the class token's.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Rate, Ratio
from vitlab.layers import Conv, ConvMlp, DropPath, LayerNorm, Linear, Mlp, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.conv_stem import ConvStem
from vitlab.layers.roles import declare, stage_layers
from vitlab.mixers.spectral import SpectralGating
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, run_stages
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of the LayerNorms of blocks and stages
EMBED_EPS = 1e-5  # epsilon of the LayerNorms of the stem and the transitions


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectFormerHConfig(VisionConfig):
    dims: tuple[Count, ...]  # width of each stage
    depths: tuple[Depth, ...]  # blocks per stage
    num_heads: tuple[CountOrZero, ...]  # per stage; 0: spectral gating instead of attention
    mlp_ratios: tuple[Ratio, ...] = (8.0, 8.0, 4.0, 4.0)  # MLP hidden width / dim, per stage
    stem_dim: Count = 64
    token_labels: bool = True  # whether an auxiliary head, for training with a label for each patch, adds to the logits
    drop_path_rate: Rate = 0.1

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "dims", "num_heads", "mlp_ratios")

    def grid(self, stage: int) -> tuple[int, int]:
        """Returns rows and columns of a stage's map at the configured image size."""
        stride = 4 * 2**stage
        return -(-self.image_size[0] // stride), -(-self.image_size[1] // stride)


# arXiv:2304.06446 table 1 and the authors' hierarchical_architecture/spectformer.py.
VARIANTS = {
    "spectformerh_small": SpectFormerHConfig(dims=(64, 128, 320, 448), depths=(3, 4, 6, 3), num_heads=(0, 0, 10, 14), stem_dim=32),
    "spectformerh_base": SpectFormerHConfig(dims=(64, 128, 320, 512), depths=(3, 4, 12, 3), num_heads=(0, 0, 10, 16)),
    "spectformerh_large": SpectFormerHConfig(dims=(96, 192, 384, 512), depths=(3, 6, 18, 3), num_heads=(0, 0, 12, 16), drop_path_rate=0.3),
}
_SOURCE = "github.com/badripatro/SpectFormers README; counts: on the authors' code, with the auxiliary head"
PUBLISHED = {
    "spectformerh_small": Published(params=22_226_928, gmacs=4.04, top1=84.3, source=_SOURCE),
    "spectformerh_base": Published(params_m=33.05, gmacs=6.59, top1=85.0, source=_SOURCE),
    "spectformerh_large": Published(params_m=54.68, gmacs=13.2, top1=85.7, source=_SOURCE),
}


class SplitAttention(nnx.Module):
    """Global attention with one projection for queries and one for keys and values.

    With `only_first` the first token is the only query.
    """

    def __init__(self, dim: int, *, num_heads: int, only_first: bool = False, dtype, rngs: nnx.Rngs):
        self.num_heads, self.head_dim, self.only_first = num_heads, head_dim_of(dim, num_heads), only_first
        self.q = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.kv = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
        b, _, d = x.shape
        asking = x[:, :1] if self.only_first else x
        q, k, v = (y.reshape(b, -1, self.num_heads, self.head_dim) for y in (self.q(asking), *jnp.split(self.kv(x), 2, -1)))
        return self.proj(dot_product_attention(q, k, v).reshape(b, -1, d))


class Block(nnx.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)); attn is a spectral gate in early stages."""

    def __init__(self, config: SpectFormerHConfig, *, stage: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, heads, dtype = config.dims[stage], config.num_heads[stage], config.dtype
        self.spectral = not heads
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = (
            SpectralGating(dim, grid=config.grid(stage), dtype=dtype, rngs=rngs)
            if self.spectral
            else SplitAttention(dim, num_heads=heads, dtype=dtype, rngs=rngs)
        )
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = ConvMlp(dim, mlp_dim=int(dim * config.mlp_ratios[stage]), dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        y = self.norm1(x)
        y = self.attn(y) if self.spectral else self.attn(y.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)
        x = x + self.drop_path(y, train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class ClassBlock(nnx.Module):
    """Updates the first token only: it attends to all tokens and passes an MLP."""

    def __init__(self, dim: int, *, num_heads: int, mlp_ratio: float, dtype, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = SplitAttention(dim, num_heads=num_heads, only_first=True, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=int(dim * mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        first = x[:, :1] + self.attn(self.norm1(x))
        first = first + self.mlp(self.norm2(first))
        return jnp.concatenate((first, x[:, 1:]), 1)


class Stage(nnx.Module):
    """A strided convolution, a norm and blocks, then a norm except in the last stage."""

    def __init__(self, config: SpectFormerHConfig, *, stage: int, rates: tuple[float, ...], rngs: nnx.Rngs):
        dim, dtype = config.dims[stage], config.dtype
        in_dim = config.dims[stage - 1] if stage else config.stem_dim
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.proj = Conv(in_dim, dim, kernel_size=3, stride=2, dtype=dtype, rngs=rngs)
        self.embed_norm = LayerNorm(dim, eps=EMBED_EPS, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, stage=stage, drop_path_rate=rate, rngs=rngs) for rate in rates])
        last = stage == len(config.dims) - 1
        self.norm = None if last else LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h2 w2 c2"]:
        x = self.embed_norm(self.proj(x))
        x = run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)
        return x if self.norm is None else self.norm(x)


class SpectFormerH(VisionModel[SpectFormerHConfig]):
    """A stem, stages, and a class block that starts from the mean token.

    After a norm, one head takes the class token and an auxiliary head the patches.
    """

    def __init__(self, config: SpectFormerHConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, dtype = config.dims[-1], config.dtype
        self.stem = ConvStem(config.in_channels, config.stem_dim, dtype=dtype, rngs=rngs)
        declare(self.stem, "embedding")
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        self.stages = nnx.List([Stage(config, stage=i, rates=rates[i], rngs=rngs) for i in range(len(rates))])
        self.class_block = ClassBlock(dim, num_heads=config.num_heads[-1], mlp_ratio=config.mlp_ratios[-1], dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.head = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None
        has_aux = config.token_labels and config.num_classes
        self.aux_head = declare(Linear(dim, config.num_classes, rngs=rngs), "head") if has_aux else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        last = len(self.config.dims) - 1
        return tuple(FeatureInfo(stride=4 * 2**i, dim=dim, normalised=i < last) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage; all but the last are normalised."""
        x = self.stem(self.checked(images), train=train)
        return run_stages(self.stages, x, train=train, rngs=rngs)

    def tokens(self, features: Features) -> Float[Array, "b n d"]:
        """Returns the normalised tokens: the class token, then the patches."""
        patches = features[-1].reshape(features[-1].shape[0], -1, features[-1].shape[-1])
        return self.norm(self.class_block(jnp.concatenate((patches.mean(1, keepdims=True), patches), 1)))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the class token, in float32."""
        return self.tokens(features)[:, 0].astype(jnp.float32)

    def head_logits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> tuple[Float[Array, "b k"]]:
        """The class token's logits, plus half of each class's largest among the patches; both heads
        are trained as one.
        """
        tokens = self.tokens(self.features(images, train=train, rngs=rngs)).astype(jnp.float32)
        logits = tokens[:, 0] if self.head is None else self.head(tokens[:, 0])
        return (logits if self.aux_head is None else logits + 0.5 * self.aux_head(tokens[:, 1:]).max(1),)


FAMILY = Family(SpectFormerH, VARIANTS, PUBLISHED, layers=lambda m: [*stage_layers(m.stages), m.class_block])
