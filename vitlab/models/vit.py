"""Vision Transformer (Dosovitskiy et al., arXiv:2010.11929), DeiT (Touvron et al.,
arXiv:2012.12877) and their pretrained kin.

The model follows the code of the checkpoints (timm's for AugReg and DeiT): pre-norm blocks,
LayerNorm epsilon 1e-6, exact GELU, no dropout. With `pool="mean"` the final norm comes before the
mean over the patches (big_vision, arXiv:2205.01580). Registers (Darcet et al., arXiv:2309.16588)
follow the class token and have no position. Another image size than the model's resamples the
position embedding on the fly. The other fields are departures of DINOv2, CLIP and others;
`vitlab.models.vit_variants` has their values and papers.
"""

import dataclasses
import itertools
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Depth, Epsilon, Ratio, Side
from vitlab.layers import Attention, DropPath, LayerNorm, LayerScale, Linear, Mlp, PatchEmbed, drop_path_rates, run_blocks
from vitlab.layers.attention_pool import AttentionPool
from vitlab.layers.gelu import gelu, gelu_tanh, quick_gelu
from vitlab.layers.initial import normal
from vitlab.layers.norm import RMSNorm
from vitlab.layers.pos_embed import PosResize, position_table, resample, sincos_2d
from vitlab.layers.rel_pos_table import RelPosTable
from vitlab.layers.roles import declare
from vitlab.layers.rope import Rope, rotation
from vitlab.layers.swiglu import SwiGLU
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters

ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(VisionConfig):
    dim: Count  # width of the residual stream
    depth: Depth  # number of blocks
    num_heads: Count
    patch_size: Side = 16  # pixels per side
    patch_norm: bool = False  # whether patches are normalised before positions are added
    pre_norm: bool = False  # whether tokens are normalised before the blocks; the patch embedding then has no bias
    class_token: bool | None = None  # None: present if `pool` reads it
    distilled: bool = False  # whether there is a second class token with its own head; the logits of both heads are averaged
    num_registers: CountOrZero = 0
    pos_embed: Literal["learned", "sincos2d", "none"] = "learned"  # sincos2d is fixed, and excludes class tokens
    pos_prefix: bool = True  # whether the learned table includes positions of the class tokens
    pos_grid: tuple[Count, Count] | None = None  # rows and columns of the learned table; None: those of the patches of `image_size`
    pos_resize: PosResize = "antialias"  # resampling of the table to the grid of an image
    rope: Rope | None = None  # kind of rotary positions in every block; None: without
    rope_grid: Count = 16  # rows, and columns, of the patch grid of pre-training; unused by `dinov3`
    rel_pos_bias: bool = False  # attention bias by relative position in every block; needs exactly one class token
    norm: Literal["layer", "rms"] = "layer"
    eps: Epsilon = 1e-6  # epsilon of every norm
    qkv_bias: bool = True
    key_bias: bool = True  # False: only queries and values have the bias
    attn_norm: bool = False  # whether the heads' results are normalised before their projection
    branch_bias: bool = True  # whether attention's projection and the MLP have biases
    mlp: Literal["plain", "swiglu", "packed_swiglu"] = "plain"  # packed: one projection computes gate and value
    mlp_ratio: Ratio = 4.0  # MLP hidden width / dim
    mlp_dim: Count | None = None  # MLP hidden width; None: dim * mlp_ratio, rounded down
    mlp_norm: bool = False  # whether a SwiGLU has a norm before its last projection
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"  # activation of the plain MLP
    layer_scale: Ratio | None = None  # initial factor of every branch; None: no layer scale
    pool: Literal["cls", "mean", "cls_mean", "map"] = "cls"  # class token, mean of the patches, both concatenated, or attention (map)
    pool_norm: Literal["before", "after"] = "before"  # before: all tokens are normalised; after: only the pooled vector
    pool_heads: Count | None = None  # heads of pool="map"; None: num_heads
    pool_mlp_dim: Count | None = None  # MLP hidden width of pool="map"; None: as in the blocks
    head_bias: bool = True
    implementation: Literal["pallas_tpu", "cudnn", "xla", "reference"] | None = None  # for attention; None: the fastest that applies

    def __post_init__(self):
        super().__post_init__()
        if self.distilled and self.pool != "cls":
            raise ValueError(f'a distilled model reads its class tokens: pool="{self.pool}" must be "cls"')
        if self.pool in ("cls", "cls_mean") and self.class_token is False:
            raise ValueError(f'pool="{self.pool}" reads the class token: class_token must not be False')
        if self.rel_pos_bias and (self.num_class_tokens, self.num_registers) != (1, 0):
            raise ValueError(
                f"rel_pos_bias must have one class token and no registers, not {self.num_class_tokens} and {self.num_registers}"
            )
        if self.rope is not None and (self.dim % self.num_heads == 0 and self.dim // self.num_heads % 4):
            raise ValueError(f"with rope={self.rope} head_dim={self.dim // self.num_heads} must be a multiple of 4")
        if self.pool == "map" and self.num_registers:
            raise ValueError(f'pool="map" reads all tokens: num_registers={self.num_registers} must be 0')

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in an image of `image_size`."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_class_tokens(self) -> int:
        has_class = self.pool in ("cls", "cls_mean") if self.class_token is None else self.class_token
        return has_class + self.distilled

    @property
    def hidden(self) -> int:
        """MLP hidden width."""
        return int(self.dim * self.mlp_ratio) if self.mlp_dim is None else self.mlp_dim


def _norm(config: ViTConfig, rngs: nnx.Rngs) -> LayerNorm | RMSNorm:
    return (LayerNorm if config.norm == "layer" else RMSNorm)(config.dim, eps=config.eps, dtype=config.dtype, rngs=rngs)


def _mlp(config: ViTConfig, rngs: nnx.Rngs) -> Mlp | SwiGLU:
    options: dict[str, Any] = {"mlp_dim": config.hidden, "use_bias": config.branch_bias, "dtype": config.dtype, "rngs": rngs}
    if config.mlp == "plain":
        return Mlp(config.dim, activation=ACTIVATIONS[config.activation], **options)
    return SwiGLU(config.dim, packed=config.mlp == "packed_swiglu", norm_eps=config.eps if config.mlp_norm else None, **options)


class Block(nnx.Module):
    """Pre-norm block: x + attn(norm1(x)), then x + mlp(norm2(x)).

    With `layer_scale` each branch is scaled.
    """

    def __init__(self, config: ViTConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        self.rope: Rope | None = config.rope
        self.norm1 = _norm(config, rngs)
        self.attn = Attention(
            config.dim,
            num_heads=config.num_heads,
            qkv_bias=config.qkv_bias,
            key_bias=config.key_bias,
            proj_bias=config.branch_bias,
            norm_eps=config.eps if config.attn_norm else None,
            implementation=config.implementation,
            dtype=config.dtype,
            rngs=rngs,
        )
        self.rel_pos = RelPosTable(config.grid, num_heads=config.num_heads, rngs=rngs) if config.rel_pos_bias else None
        self.ls1 = None if config.layer_scale is None else LayerScale(config.dim, init=config.layer_scale)
        self.norm2 = _norm(config, rngs)
        self.mlp = _mlp(config, rngs)
        self.ls2 = None if config.layer_scale is None else LayerScale(config.dim, init=config.layer_scale)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(
        self, x: Float[Array, "b n d"], *, grid: tuple[int, int], rotations: Array | None, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "b n d"]:
        bias = None if self.rel_pos is None else self.rel_pos(grid)
        x = self._add(x, self.attn, self.norm1, self.ls1, train=train, rngs=rngs, rope=self.rope, table=rotations, bias=bias)
        return self._add(x, self.mlp, self.norm2, self.ls2, train=train, rngs=rngs)

    def _add(
        self,
        x: Float[Array, "b n d"],
        branch: Attention | Mlp | SwiGLU,
        norm: LayerNorm | RMSNorm,
        scale: LayerScale | None,
        *,
        train: bool,
        rngs: nnx.Rngs | None,
        **options: Any,
    ) -> Float[Array, "b n d"]:
        """Adds a branch with its norm, together where a kernel may compute both."""
        if scale is None and isinstance(norm, LayerNorm) and not isinstance(branch, SwiGLU):
            return self.drop_path.add(x, branch, norm=norm, train=train, rngs=rngs, **options)
        y = branch(norm(x), **options)
        return x + self.drop_path(y if scale is None else scale(y), train=train, rngs=rngs)


class ViT(VisionModel[ViTConfig]):
    """Patches, positions, equal blocks, a final norm, pooling, a linear head."""

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, classes = config.dim, config.num_classes
        self.patch_embed = PatchEmbed(
            config.in_channels, dim, patch_size=config.patch_size, use_bias=not config.pre_norm, dtype=config.dtype, rngs=rngs
        )
        declare(self.patch_embed, "embedding")
        self.patch_norm = declare(_norm(config, rngs), "embedding") if config.patch_norm else None

        def tokens(count: int) -> nnx.Param | None:
            return declare(nnx.Param(normal(1e-6)(rngs.params(), (1, count, dim))), "token", "embedding") if count else None

        self.cls_token = tokens(config.num_class_tokens - config.distilled)
        self.dist_token = tokens(int(config.distilled))
        self.reg_token = tokens(config.num_registers)
        table_grid, prefix = config.pos_grid or config.grid, config.num_class_tokens if config.pos_prefix else 0
        position = position_table(rngs.params(), table_grid, dim, num_prefix=prefix, resize=config.pos_resize)
        self.pos_embed = declare(position, "position", "embedding") if config.pos_embed == "learned" else None
        self.norm_pre = declare(_norm(config, rngs), "embedding") if config.pre_norm else None
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, drop_path_rate=r, rngs=rngs) for r in rates])
        self.norm = _norm(config, rngs) if config.pool_norm == "before" else None
        self.attn_pool = (
            AttentionPool(
                dim,
                num_heads=config.pool_heads or config.num_heads,
                mlp_dim=config.pool_mlp_dim or config.hidden,
                activation=ACTIVATIONS[config.activation],
                eps=config.eps,
                dtype=config.dtype,
                rngs=rngs,
            )
            if config.pool == "map"
            else None
        )
        self.fc_norm = _norm(config, rngs) if config.pool_norm == "after" else None
        width = dim * (2 if config.pool == "cls_mean" else 1)
        self.head = declare(Linear(width, classes, use_bias=config.head_bias, rngs=rngs), "head") if classes else None
        self.head_dist = declare(Linear(dim, classes, rngs=rngs), "head") if classes and config.distilled else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        config = self.config
        last = config.depth if self.norm is not None else None
        return tuple(FeatureInfo(stride=config.patch_size, dim=config.dim, normalised=i == last) for i in quarters(config.depth))

    def _embed(self, images: Images) -> tuple[Float[Array, "b n d"], dict[str, Any]]:
        """All tokens before the blocks, and keyword arguments of the blocks about positions."""
        config, patches = self.config, self.patch_embed(self.checked(images))
        b, h, w, d = patches.shape
        x = patches.reshape(b, h * w, d)
        if self.patch_norm is not None:
            x = self.patch_norm(x)
        classes = [t[...] for t in (self.cls_token, self.dist_token) if t is not None]
        prefix = [jnp.broadcast_to(t, (b, 1, d)).astype(x.dtype) for t in classes]
        if self.pos_embed is None:
            x = jnp.concatenate([*prefix, x + jnp.asarray(sincos_2d(h, w, d), x.dtype) if config.pos_embed == "sincos2d" else x], axis=1)
        else:
            count = len(prefix) if config.pos_prefix else 0
            table = self.pos_embed[...]
            position = resample(table, config.pos_grid or config.grid, (h, w), num_prefix=count, resize=config.pos_resize).astype(x.dtype)
            x = jnp.concatenate([*prefix, x], axis=1) + position if config.pos_prefix else jnp.concatenate([*prefix, x + position], axis=1)
        if self.reg_token is not None:
            registers = jnp.broadcast_to(self.reg_token[...], (b, config.num_registers, d)).astype(x.dtype)
            x = jnp.concatenate([x[:, : len(prefix)], registers, x[:, len(prefix) :]], axis=1)
        places: dict[str, Any] = {"grid": (h, w), "rotations": None}
        if config.rope is not None:
            before = len(prefix) + config.num_registers
            places["rotations"] = jnp.asarray(
                rotation(config.rope, (h, w), d // config.num_heads, num_prefix=before, reference=config.rope_grid)
            )
        return x if self.norm_pre is None else self.norm_pre(x), places

    def _run(self, start: int, end: int, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None, **places: Any) -> Array:
        options = {"remat": self.config.remat, "scan": self.config.scan_blocks, "train": train, "rngs": rngs}
        return run_blocks(self.blocks[start:end], x, **options, **places)

    def tokens(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Float[Array, "b n d"]:
        """All tokens after the blocks and the final norm, if any.

        They are class tokens, registers, and patches in row-major order.
        """
        x, places = self._embed(images)
        x = self._run(0, self.config.depth, x, train=train, rngs=rngs, **places)
        return x if self.norm is None else self.norm(x)

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Maps of the patches after a quarter, half, three quarters and all of the blocks.

        The last map is normalised if `pool_norm` is "before".
        """
        (x, places), kept = self._embed(images), []
        rows, columns = places["grid"]
        for start, end in itertools.pairwise((0, *quarters(self.config.depth))):
            x = self._run(start, end, x, train=train, rngs=rngs, **places)
            kept.append(x)
        x = x if self.norm is None else self.norm(x)
        maps = [y[:, -rows * columns :].reshape(len(y), rows, columns, -1) for y in (*kept[:-1], x)]
        return Features(maps, class_tokens=tuple(x[:, i] for i in range(self.config.num_class_tokens)))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The vector that `pool` and `pool_norm` make of the last map and the class tokens.

        It is float32.
        """
        b, h, w, d = features[-1].shape
        classes = [t[:, None] for t in features.class_tokens]
        return self._pooled(jnp.concatenate([*classes, features[-1].reshape(b, h * w, d)], axis=1), self.config.num_class_tokens)

    def _pooled(self, tokens: Float[Array, "b n d"], num_prefix: int) -> Float[Array, "b _d"]:
        """One float32 vector of the tokens, the first `num_prefix` of which are no patches."""
        kind, x = self.config.pool, tokens.astype(jnp.float32)
        if self.attn_pool is not None:
            x = self.attn_pool(tokens)
        elif kind == "cls_mean":
            x = jnp.concatenate([x[:, 0], x[:, num_prefix:].mean(1)], axis=1)
        else:
            x = x[:, 0] if kind == "cls" else x[:, num_prefix:].mean(1)
        return (x if self.fc_norm is None else self.fc_norm(x)).astype(jnp.float32)

    def head_logits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> tuple[Float[Array, "b _k"], ...]:
        """Logits of the pooled vector and, with `distilled`, of the distillation token.

        The blocks run as one sequence, which `scan_blocks` compiles once; `features` cuts it in
        four.
        """
        tokens = self.tokens(images, train=train, rngs=rngs)
        pooled = self._pooled(tokens, self.config.num_class_tokens + self.config.num_registers)
        if self.head is None:
            return (pooled,)
        if self.head_dist is None:
            return (self.head(pooled),)
        return self.head(pooled), self.head_dist(tokens[:, 1].astype(jnp.float32))
