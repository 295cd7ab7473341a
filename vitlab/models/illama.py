"""iLLaMA (Wang et al., arXiv:2404.06773): a vision transformer of LLaMA's parts, with causal
attention.

Follows the authors' code: RMSNorm, SwiGLU, rotary positions along the row-major sequence beside a
learned embedding, and a class token behind the patches, as the last token sees all. The causal mask
multiplies the attention after softmax, without another normalisation: a token receives nothing from
later ones, but these still count in its softmax. The share `soft_mask_rate` of the mask lets all
through; the authors lower it from 1 to 0 in the first epochs ("constant": 1, then 0), which here is
a run with 1 whose weights a second run with 0 begins with. Another image size than the model's
resamples the learned embedding.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Share, Side
from vitlab.layers import DropPath, Linear, drop_path_rates, run_blocks
from vitlab.layers.attention import head_dim_of
from vitlab.layers.norm import RMSNorm
from vitlab.layers.roles import declare
from vitlab.layers.rope import rotate, sequence_rotation
from vitlab.layers.swiglu import SwiGLU
from vitlab.layers.tensor_split import project_qkv
from vitlab.layers.token_embed import TokenEmbed
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-6  # epsilon of every RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class ILLaMAConfig(VisionConfig):
    dim: Count  # width of the residual stream
    num_heads: Count
    depth: Depth = 12  # number of blocks
    patch_size: Side = 16  # pixels per side
    mlp_multiple: Count = 256  # the MLP's hidden width, 8 / 3 of dim, is rounded up to a multiple of it
    soft_mask_rate: Share = 0.0  # part of the attention to later tokens that counts; 0: causal, 1: to all
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    def __post_init__(self):
        super().__post_init__()
        if head_dim_of(self.dim, self.num_heads) % 2:
            raise ValueError(f"the width of a head, dim={self.dim} / num_heads={self.num_heads}, must be even for rotary positions")

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def mlp_dim(self) -> int:
        return -(-int(8 * self.dim / 3) // self.mlp_multiple) * self.mlp_multiple


# The authors' models/illama.py; drop path of scripts/.
VARIANTS = {
    "illama_tiny": ILLaMAConfig(dim=192, num_heads=3),
    "illama_small": ILLaMAConfig(dim=384, num_heads=6, drop_path_rate=0.1),
    "illama_base": ILLaMAConfig(dim=768, num_heads=12, drop_path_rate=0.4),
    "illama_large": ILLaMAConfig(dim=1024, num_heads=16, depth=24, drop_path_rate=0.4),
}
_SOURCE = "github.com/techmonsterwang/iLLaMA README; counts: on the authors' code"
PUBLISHED = {
    "illama_tiny": Published(params=5_701_096, gmacs=1.25, top1=75.0, source=_SOURCE),
    "illama_small": Published(params_m=22.018, gmacs=4.60, top1=79.9, source=_SOURCE),
    "illama_base": Published(params_m=86.502, gmacs=17.56, top1=81.6, source=_SOURCE),
    "illama_large": Published(params_m=310.445, gmacs=62.79, top1=84.8, source=f"{_SOURCE}; top-1 after ImageNet-21k"),
}


class CausalAttention(nnx.Module):
    """Self-attention with rotary positions; what is attended of later tokens counts by
    `soft_mask_rate`. Softmax in float32.
    """

    def __init__(self, config: ILLaMAConfig, *, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.num_heads, self.head_dim = config.num_heads, head_dim_of(dim, config.num_heads)
        self.soft_mask_rate = config.soft_mask_rate
        self.qkv = Linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        n, dtype = x.shape[1], x.dtype
        q, k, v = jnp.moveaxis(project_qkv(self.qkv, x, num_heads=self.num_heads), 2, 0)
        table = sequence_rotation(n, self.head_dim)
        q, k = (rotate(y.astype(jnp.float32), table) for y in (q, k))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q.astype(dtype), k.astype(dtype), preferred_element_type=jnp.float32)
        mask = self.soft_mask_rate + (1 - self.soft_mask_rate) * np.tri(n, dtype=np.float32)
        weights = jax.nn.softmax(logits * self.head_dim**-0.5) * mask[None, None]
        return self.proj(jnp.einsum("bhqk,bkhd->bqhd", weights.astype(dtype), v).reshape(x.shape))


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: ILLaMAConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        self.norm1 = RMSNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.attn = CausalAttention(config, rngs=rngs)
        self.norm2 = RMSNorm(dim, eps=EPS, dtype=dtype, rngs=rngs)
        self.mlp = SwiGLU(dim, mlp_dim=config.mlp_dim, use_bias=False, dtype=dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        x = x + self.drop_path(self.attn(self.norm1(x)), train=train, rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x)), train=train, rngs=rngs)


class ILLaMA(VisionModel[ILLaMAConfig]):
    """Patches, a class token behind them, equal blocks, a final norm, a linear head on the class
    token.
    """

    def __init__(self, config: ILLaMAConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embed = TokenEmbed(
            config.in_channels, config.dim, patch_size=config.patch_size, grid=config.grid, dtype=config.dtype, rngs=rngs
        )
        declare(self.embed, "embedding")
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, drop_path_rate=rate, rngs=rngs) for rate in rates])
        self.norm = RMSNorm(config.dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        config = self.config
        # The last map has a norm, but not its mean subtracted.
        return tuple(FeatureInfo(stride=config.patch_size, dim=config.dim, normalised=False) for _ in quarters(config.depth))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The patches' maps after a quarter, half, three quarters and all of the blocks, and the
        final norm.
        """
        images = self.checked(images)
        grid = (images.shape[1] // self.config.patch_size, images.shape[2] // self.config.patch_size)
        x, kept = jnp.roll(self.embed(images), -1, axis=1), []
        options = {"remat": self.config.remat, "scan": self.config.scan_blocks}
        for start, end in itertools.pairwise((0, *quarters(self.config.depth))):
            x = run_blocks(self.blocks[start:end], x, train=train, rngs=rngs, **options)
            kept.append(x)
        x = self.norm(x)
        return Features([y[:, :-1].reshape(-1, *grid, y.shape[-1]) for y in (*kept[:-1], x)], class_tokens=(x[:, -1],))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The normalised class token; float32."""
        return features.class_tokens[0].astype(jnp.float32)


FAMILY = Family(ILLaMA, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
