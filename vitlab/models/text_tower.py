"""Text towers of CLIP (Radford et al., arXiv:2103.00020) and of SigLIP (Zhai et al.,
arXiv:2303.15343; SigLIP 2: arXiv:2502.14786).

Tokens, positions, equal pre-norm blocks, a final norm, one token, a linear map. CLIP's tower is
causal and takes the token that ends the text, the largest of its vocabulary; SigLIP's attends to
all tokens, padding too, and takes the last one. The image towers are `vitlab.models.vit_variants`,
whose names the rows here have. Counts are those of open_clip's model_profile.csv.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vitlab.bounds import Count, Depth, Epsilon, check_bounds, hints_of
from vitlab.config import near_misses
from vitlab.layers import Attention, LayerNorm, Linear, Mlp, normal_init, run_blocks
from vitlab.layers.gelu import gelu, gelu_tanh, quick_gelu

ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    dim: Count  # width of the residual stream
    depth: Depth  # number of blocks
    num_heads: Count
    out_dim: Count  # width of the vector, which is the image tower's
    mlp_dim: Count | None = None  # MLP hidden width; None: four times `dim`
    vocab_size: Count = 49408  # tokens that have an embedding
    length: Count = 77  # tokens of every text: longer ones are cut, shorter ones padded
    is_causal: bool = True  # whether a token attends to itself and those before it only
    pool: Literal["largest", "last"] = "largest"  # token that is taken: the first of the largest number, or the last one
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    eps: Epsilon = 1e-5  # epsilon of every norm
    head_bias: bool = False
    tokens: Literal["clip", "siglip", "siglip2"] = "clip"  # what stands around a text's tokens, see `vitlab.weights.tokenizer`

    def __post_init__(self):
        for name, (_, bounded) in hints_of(type(self)).items():
            check_bounds(name, getattr(self, name), bounded)


_BASE: dict[str, Any] = {"dim": 512, "depth": 12, "num_heads": 8}
_LARGE: dict[str, Any] = {"dim": 768, "depth": 12, "num_heads": 12}
_HUGE: dict[str, Any] = {"dim": 1024, "depth": 24, "num_heads": 16}
_SIGLIP: dict[str, Any] = {
    "vocab_size": 32000,
    "length": 64,
    "is_causal": False,
    "pool": "last",
    "activation": "gelu_tanh",
    "eps": 1e-6,
    "head_bias": True,
    "tokens": "siglip",
}
_SIGLIP_SHORT: dict[str, Any] = _SIGLIP | {"length": 16}
_SIGLIP2: dict[str, Any] = _SIGLIP | {"vocab_size": 256000, "tokens": "siglip2"}
_SIGLIP_BASE: dict[str, Any] = {"dim": 768, "depth": 12, "num_heads": 12, "out_dim": 768}
_SIGLIP_LARGE: dict[str, Any] = _HUGE | {"out_dim": 1024}
_SIGLIP_SO400M: dict[str, Any] = {"dim": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304}
# OpenAI's; OpenCLIP's and EVA-02-CLIP's have the exact GELU (open_clip, model_configs).
_CLIP_B = TextConfig(**_BASE, out_dim=512, activation="quick_gelu")
_CLIP_L = TextConfig(**_LARGE, out_dim=768, activation="quick_gelu")
_OPENCLIP_B = TextConfig(**_BASE, out_dim=512)
_OPENCLIP_L = TextConfig(**_LARGE, out_dim=768)
_OPENCLIP_H = TextConfig(**_HUGE, out_dim=1024)
_OPENCLIP_GIGANTIC = TextConfig(dim=1280, depth=32, num_heads=20, out_dim=1280)

# By the name of the image tower, or by its beginning; the first that fits counts.
VARIANTS: dict[str, TextConfig] = {
    "clip_base": _CLIP_B,
    "clip_large": _CLIP_L,
    "openclip_base": _OPENCLIP_B,
    "openclip_large": _OPENCLIP_L,
    "openclip_huge": _OPENCLIP_H,
    "openclip_giant": _OPENCLIP_H,
    "openclip_gigantic": _OPENCLIP_GIGANTIC,
    "eva02_clip_base": _OPENCLIP_B,
    "eva02_clip_large": _OPENCLIP_L,
    "pe_core_tiny": TextConfig(**_BASE, out_dim=512, length=32),  # PE: arXiv:2504.13181
    "pe_core_small": TextConfig(**_BASE, out_dim=512, length=32),
    "pe_core_base": TextConfig(**_HUGE, out_dim=1024, length=32),
    "pe_core_large": TextConfig(**_HUGE, out_dim=1024, length=32),
    "pe_core_gigantic": TextConfig(dim=1280, depth=24, num_heads=20, out_dim=1280, length=72),
    "siglip_base": TextConfig(**_SIGLIP_BASE, **_SIGLIP),
    "siglip_large": TextConfig(**_SIGLIP_LARGE, **_SIGLIP),
    "siglip_so400m_patch14_378": TextConfig(**_SIGLIP_SO400M, out_dim=1152, **_SIGLIP),
    "siglip_so400m": TextConfig(**_SIGLIP_SO400M, out_dim=1152, **_SIGLIP_SHORT),
    "siglip2_base": TextConfig(**_SIGLIP_BASE, **_SIGLIP2),
    "siglip2_large": TextConfig(**_SIGLIP_LARGE, **_SIGLIP2),
    "siglip2_so400m": TextConfig(**_SIGLIP_SO400M, out_dim=1152, **_SIGLIP2),
    "siglip2_giantopt": TextConfig(**_SIGLIP_SO400M, out_dim=1536, **_SIGLIP2),
}


def text_config(name: str) -> TextConfig | None:
    """Returns the text tower beside an image tower of the zoo; None where there is none."""
    return next((config for start, config in VARIANTS.items() if f"{name}_".startswith(f"{start}_")), None)


def text_config_of(name: str) -> TextConfig:
    """Returns the text tower beside an image tower.

    Raises:
      ValueError: It has none; the message has names that have one.
    """
    config = text_config(name)
    if config is None:
        raise ValueError(f'model "{name}" has no text tower; those that have one begin with a name of these: {near_misses(name, VARIANTS)}')
    return config


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        dim = config.dim
        self.is_causal = config.is_causal
        self.norm1 = LayerNorm(dim, eps=config.eps, rngs=rngs)
        self.attn = Attention(dim, num_heads=config.num_heads, rngs=rngs)
        self.norm2 = LayerNorm(dim, eps=config.eps, rngs=rngs)
        self.mlp = Mlp(dim, mlp_dim=config.mlp_dim or 4 * dim, activation=ACTIVATIONS[config.activation], rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        del train, rngs
        x = self.attn(x, norm=self.norm1, residual=True, is_causal=self.is_causal)
        return self.mlp(x, norm=self.norm2, residual=True)


class TextTower(nnx.Module):
    """Numbers of tokens to one vector a text, which is to be compared with that of an image."""

    def __init__(self, config: TextConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.dim
        self.token_embed = nnx.Embed(config.vocab_size, dim, embedding_init=normal_init, rngs=rngs)
        self.pos_embed = nnx.Param(normal_init(rngs.params(), (1, config.length, dim)))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.norm = LayerNorm(dim, eps=config.eps, rngs=rngs)
        self.head = Linear(dim, config.out_dim, use_bias=config.head_bias, rngs=rngs)

    def __call__(self, tokens: Int[Array, "b n"]) -> Float[Array, "b out_dim"]:
        """Returns the vectors of texts of `length` tokens each, not normalised; float32."""
        x = self.token_embed(tokens) + self.pos_embed[...]
        x = run_blocks(self.blocks, x, remat="none", scan=True, train=False, rngs=None)
        place = tokens.argmax(1) if self.config.pool == "largest" else jnp.full(len(tokens), tokens.shape[1] - 1)
        chosen = jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0]
        return self.head(self.norm(chosen))
