"""Vision-RWKV (Duan et al., arXiv:2403.02308): a plain trunk of bidirectional linear attention.

Follows the authors' code, but the linear attention is the paper's equation 4, from which the CUDA
kernels that made the published weights depart: their outputs differ by up to 5 % of their
deviation, and so do the logits. Any image size: the positions are resampled.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Side
from vitlab.layers import DropPath, LayerNorm, LayerScale, Linear, PatchEmbed, drop_path_rates, run_blocks
from vitlab.layers.pos_embed import position_table, resample
from vitlab.layers.roles import declare
from vitlab.mixers.vision_rwkv import ChannelMix, SpatialMix
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class VRWKVConfig(VisionConfig):
    dim: Count  # width of the residual stream
    depth: Depth = 12  # number of blocks
    post_norm: bool = True  # whether norms follow the branches, with a factor per channel, or come before them
    key_norm: bool = False  # whether a norm follows the linear attention, and the squares of the channel mixing
    layer_scale_init: float = 1.0  # initial factor on the residual branches, where norms follow them
    patch_size: Side = 16  # pixels per side
    hidden_ratio: Count = 4  # hidden width of the channel mixing / dim
    drop_path_rate: Rate = 0.0

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


# The authors' classification/configs/vrwkv; large is that of detection/configs, at the size of its
# fine-tuned weights. The README's 1.2 GMACs of tiny are too coarse to compare with.
VARIANTS = {
    "vrwkv_tiny": VRWKVConfig(dim=192, post_norm=False),
    "vrwkv_small": VRWKVConfig(dim=384, drop_path_rate=0.3),
    "vrwkv_base": VRWKVConfig(dim=768, layer_scale_init=1e-5, drop_path_rate=0.5),
    "vrwkv_large_384": VRWKVConfig(dim=1024, depth=24, key_norm=True, layer_scale_init=1e-5, drop_path_rate=0.4, image_size=(384, 384)),
}
_SOURCE = "github.com/OpenGVLab/Vision-RWKV README"
PUBLISHED = {
    "vrwkv_tiny": Published(params_m=6.2, top1=75.1, source=_SOURCE),
    "vrwkv_small": Published(params_m=23.8, gmacs=4.6, top1=80.1, source=_SOURCE),
    "vrwkv_base": Published(gmacs=18.2, top1=82.0, source=f"{_SOURCE}, with 93.7 M parameters; the code has 93.65"),
    "vrwkv_large_384": Published(
        gmacs=189.5, top1=86.0, source=f"{_SOURCE}, after ImageNet-22k, with 334.9 M parameters; the code has 330.1"
    ),
}


class Block(nnx.Module):
    """Residual branches of spatial and of channel mixing; the first block normalises its input."""

    def __init__(self, config: VRWKVConfig, *, layer: int, drop_path_rate: float, rngs: nnx.Rngs):
        dim, dtype = config.dim, config.dtype
        options = {"layer": layer, "num_layers": config.depth, "key_norm": config.key_norm, "dtype": dtype, "rngs": rngs}
        self.post_norm = config.post_norm
        self.norm0 = LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs) if layer == 0 else None
        self.norm1, self.norm2 = (LayerNorm(dim, eps=EPS, dtype=dtype, rngs=rngs) for _ in range(2))
        self.attn = SpatialMix(dim, **options)
        self.mlp = ChannelMix(dim, hidden=config.hidden_ratio * dim, **options)
        self.ls1, self.ls2 = (LayerScale(dim, init=config.layer_scale_init) if config.post_norm else None for _ in range(2))
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        x = x if self.norm0 is None else self.norm0(x)
        for norm, mix, scale in ((self.norm1, self.attn, self.ls1), (self.norm2, self.mlp, self.ls2)):
            y = mix(norm(x)) if scale is None else scale(norm(mix(x)))
            x = x + self.drop_path(y, train=train, rngs=rngs)
        return x


class VRWKV(VisionModel[VRWKVConfig]):
    """Patches with positions, blocks, a norm, the mean over the positions and a linear head."""

    def __init__(self, config: VRWKVConfig, *, rngs: nnx.Rngs):
        self.config = config
        patches = PatchEmbed(config.in_channels, config.dim, patch_size=config.patch_size, dtype=config.dtype, rngs=rngs)
        self.patch_embed = declare(patches, "embedding")
        self.pos_embed = declare(position_table(rngs.params(), config.grid, config.dim, resize="bicubic"), "position", "embedding")
        rates = drop_path_rates(config.drop_path_rate, config.depth)
        self.blocks = nnx.List([Block(config, layer=i, drop_path_rate=rate, rngs=rngs) for i, rate in enumerate(rates)])
        self.norm = LayerNorm(config.dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.head = declare(Linear(config.dim, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        stride, dim, depth = self.config.patch_size, self.config.dim, self.config.depth
        return tuple(FeatureInfo(stride=stride, dim=dim, normalised=i == depth) for i in quarters(depth))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The maps after a quarter, half, three quarters and all of the blocks; the last one
        normalised.
        """
        x = self.patch_embed(self.checked(images))
        grid = (x.shape[1], x.shape[2])
        position = resample(self.pos_embed[...], self.config.grid, grid, resize="bicubic")
        x = x + position.reshape(1, *grid, -1).astype(x.dtype)
        kept, start = [], 0
        for end in quarters(self.config.depth):
            options = {"remat": self.config.remat, "scan": self.config.scan_blocks}
            x = run_blocks(self.blocks[start:end], x, train=train, rngs=rngs, **options)
            kept.append(x)
            start = end
        return Features([*kept[:-1], self.norm(x)])

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the positions of the last map, in float32."""
        return features[-1].astype(jnp.float32).mean((1, 2))


FAMILY = Family(VRWKV, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
