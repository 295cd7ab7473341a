"""Vision Mamba (Vim, Zhu et al., arXiv:2401.09417): a plain trunk of bidirectional Mamba blocks.

Follows the authors' code: the class token stands in the middle of the patches, which are read by
rows, and its position is the middle one; there is no MLP. Any image size: the positions are
resampled. Departs from the authors' code: linear maps start with standard deviation 0.02 in place
of torch's uniform default, so also the last of each block, which theirs divide by the root of the
depth.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Ratio, Side
from vitlab.layers import DropPath, Linear, Remat, drop_path_rates, run_blocks
from vitlab.layers.norm import RMSNorm
from vitlab.layers.roles import declare
from vitlab.layers.token_embed import TokenEmbed
from vitlab.mixers.bidirectional_mamba import BidirectionalMamba
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features, quarters
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every RMSNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class VimConfig(VisionConfig):
    dim: Count  # width of the residual stream
    depth: Depth = 24  # number of blocks
    state_dim: Count = 16  # numbers that a channel remembers
    ratio: Ratio = 2.0  # channels that are scanned / dim
    patch_size: Side = 16  # pixels per side
    drop_path_rate: Rate = 0.1
    preprocessing: Preprocessing = Preprocessing(crop_fraction=0.875)

    @property
    def size_multiple(self) -> int:
        return self.patch_size

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


# The authors' models_mamba.py; drop path rates of their scripts, of base the default.
VARIANTS = {
    "vim_tiny": VimConfig(dim=192, drop_path_rate=0.0),
    "vim_small": VimConfig(dim=384, drop_path_rate=0.05),
    "vim_base": VimConfig(dim=768),
}
_SOURCE = "github.com/hustvl/Vim README"
PUBLISHED = {
    "vim_tiny": Published(params_m=7.0, top1=76.1, source=_SOURCE),
    "vim_small": Published(params_m=26.0, top1=80.5, source=_SOURCE),
    "vim_base": Published(params_m=98.0, top1=81.9, source=_SOURCE),
}


class Block(nnx.Module):
    """x + mixer(norm(x))."""

    def __init__(self, config: VimConfig, *, drop_path_rate: float, rngs: nnx.Rngs):
        self.norm = RMSNorm(config.dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.mixer = BidirectionalMamba(config.dim, state_dim=config.state_dim, ratio=config.ratio, dtype=config.dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b n d"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b n d"]:
        return x + self.drop_path(self.mixer(self.norm(x)), train=train, rngs=rngs)


class Vim(VisionModel[VimConfig]):
    """Patches around a class token, blocks, a final norm, a linear head on the class token."""

    def __init__(self, config: VimConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.remat: Remat = config.remat
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
        stride, dim, depth = self.config.patch_size, self.config.dim, self.config.depth
        # RMSNorm does not take the mean away.
        return tuple(FeatureInfo(stride=stride, dim=dim, normalised=False) for _ in quarters(depth))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The patches' maps after a quarter, half, three quarters and all of the blocks; the last
        one normalised.
        """
        images = self.checked(images)
        b, height, width, _ = images.shape
        x = self.embed(images)
        middle = (x.shape[1] - 1) // 2  # patches before the class token
        x = jnp.concatenate([x[:, 1 : middle + 1], x[:, :1], x[:, middle + 1 :]], 1)
        kept, start = [], 0
        for end in quarters(self.config.depth):
            x = run_blocks(self.blocks[start:end], x, remat=self.remat, scan=self.config.scan_blocks, train=train, rngs=rngs)
            kept.append(x)
            start = end
        kept[-1] = self.norm(x)
        grid = (height // self.config.patch_size, width // self.config.patch_size)
        maps = [jnp.concatenate((y[:, :middle], y[:, middle + 1 :]), 1).reshape(b, *grid, -1) for y in kept]
        return Features(maps, class_tokens=(kept[-1][:, middle],))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The normalised class token; float32."""
        return features.class_tokens[0].astype(jnp.float32)


FAMILY = Family(Vim, VARIANTS, PUBLISHED, layers=lambda m: m.blocks)
