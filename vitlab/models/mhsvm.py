"""MHS-VM (Ji, arXiv:2406.05992): VM-UNet (Ruan et al., arXiv:2402.02491), a segmentation network of
state-space blocks, with multi-head scans.

Follows the authors' code. The encoder's maps are added to the decoder's. `masks` gives what the
authors compare with the labels. The maps of `features` are the decoder's, which any dense head here
reads; as a classifier the network takes the mean of the pixels' logits.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Side
from vitlab.layers import DropPath, LayerNorm, Linear, PatchEmbed, PatchMerging, Remat, run_blocks, stage_drop_path_rates
from vitlab.layers.roles import declare
from vitlab.mixers.multi_head_scan import MultiHeadScan
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.registry import Family, Published

EPS = 1e-5  # epsilon of every LayerNorm


@dataclasses.dataclass(frozen=True, kw_only=True)
class MHSVMConfig(VisionConfig):
    depths: tuple[Depth, ...] = (2, 2, 2, 2)  # blocks of the encoder's stages
    decoder_depths: tuple[Depth, ...] = (2, 2, 2, 1)  # blocks of the decoder's stages, from coarse to fine
    dim: Count = 96  # width of the first stage; each next stage doubles it
    patch_size: Side = 4  # pixels per side
    orders: tuple[str, ...] = ("snake", "diagonal", "spiral")  # orders of reading the map, one for each head
    state_dim: Count = 16  # numbers that a channel of a scan remembers
    threshold: float = 0.0  # variation of a head's scans below which they count nothing; the authors take 0.5 for ISIC18, 0 for ISIC17
    project: bool = True  # whether a LayerNorm and a linear layer follow the heads
    implementation: str | None = None  # a key of selective_scan.IMPLEMENTATIONS; None: the first that can run
    drop_path_rate: Rate = 0.2

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("depths", "decoder_depths")
        if self.dim % self.patch_size:
            raise ValueError(f"dim={self.dim} must be a multiple of patch_size={self.patch_size}")

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.dim * 2**i for i in range(len(self.depths)))

    @property
    def size_multiple(self) -> int:
        """Pixels of a position of the coarsest map."""
        return self.patch_size * 2 ** (len(self.depths) - 1)


_FOUR = ("snake", "diagonal", "spiral", "raster")
# arXiv:2406.05992 section 4; the authors' configs/config_setting.py.
VARIANTS = {
    "mhsvm_h3": MHSVMConfig(image_size=(256, 256), num_classes=1),
    "mhsvm_h4": MHSVMConfig(image_size=(256, 256), num_classes=1, orders=_FOUR),
    "mhsvm_h3_deep": MHSVMConfig(image_size=(256, 256), num_classes=1, depths=(2, 2, 9, 2), decoder_depths=(2, 9, 2, 2)),
    "mhsvm_h4_deep": MHSVMConfig(image_size=(256, 256), num_classes=1, depths=(2, 2, 9, 2), decoder_depths=(2, 9, 2, 2), orders=_FOUR),
}
_SOURCE = "counts: on the authors' code, github.com/PixDeep/MHS-VM; README: mIoU 80.9 % on ISIC18 with 4 heads"
PUBLISHED = {
    "mhsvm_h3": Published(params_m=17.386, source=_SOURCE),
    "mhsvm_h4": Published(params=17_257_129, source=_SOURCE),
    "mhsvm_h3_deep": Published(params_m=27.208, source=_SOURCE),
    "mhsvm_h4_deep": Published(params_m=26.993, source=_SOURCE),
}


class Block(nnx.Module):
    """x + scan(norm(x))."""

    def __init__(self, config: MHSVMConfig, *, dim: int, drop_path_rate: float, rngs: nnx.Rngs):
        names = ("orders", "state_dim", "threshold", "project", "implementation")
        self.norm = LayerNorm(dim, eps=EPS, dtype=config.dtype, rngs=rngs)
        self.mixer = MultiHeadScan(dim, **{name: getattr(config, name) for name in names}, dtype=config.dtype, rngs=rngs)
        self.drop_path = DropPath(drop_path_rate)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        return x + self.drop_path(self.mixer(self.norm(x)), train=train, rngs=rngs)


class PatchExpand(nnx.Module):
    """A position becomes factor x factor positions, with a part of the width each: linear, norm."""

    def __init__(self, dim: int, *, factor: int, dtype, rngs: nnx.Rngs):
        self.factor = factor
        self.expand = Linear(dim, dim * factor, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(dim // factor, eps=EPS, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        b, h, w, _ = x.shape
        x = self.expand(x).reshape(b, h, w, self.factor, self.factor, -1).transpose(0, 1, 3, 2, 4, 5)
        return self.norm(x.reshape(b, h * self.factor, w * self.factor, -1))


class Stage(nnx.Module):
    """Blocks, and the change of size before them, which the first stages of encoder and decoder
    have not.
    """

    def __init__(
        self, config: MHSVMConfig, *, dim: int, resize: PatchMerging | PatchExpand | None, rates: tuple[float, ...], rngs: nnx.Rngs
    ):
        self.remat: Remat = config.remat
        self.scan_blocks = config.scan_blocks
        self.resize = resize
        self.blocks = nnx.List([Block(config, dim=dim, drop_path_rate=rate, rngs=rngs) for rate in rates])

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        return run_blocks(self.blocks, x, remat=self.remat, scan=self.scan_blocks, train=train, rngs=rngs)


def layers(model: "MHSVM") -> list[nnx.Module]:
    """The blocks of encoder and decoder; a change of size belongs to the block after it."""
    return [layer for stage in (*model.stages, *model.up_stages) for layer in (stage, *list(stage.blocks)[1:])]


class MHSVM(VisionModel[MHSVMConfig]):
    """Patches, an encoder, a decoder of as many stages, and a linear layer on every pixel."""

    def __init__(self, config: MHSVMConfig, *, rngs: nnx.Rngs):
        self.config = config
        dims, options = config.dims, {"dtype": config.dtype, "rngs": rngs}
        self.patch_embed = declare(
            PatchEmbed(config.in_channels, dims[0], patch_size=config.patch_size, norm_eps=EPS, **options), "embedding"
        )
        rates = stage_drop_path_rates(config.drop_path_rate, config.depths)
        merges = [PatchMerging(dim, eps=EPS, **options) for dim in dims[:-1]]
        self.stages = nnx.List(
            [Stage(config, dim=dim, resize=r, rates=p, rngs=rngs) for dim, r, p in zip(dims, [None, *merges], rates, strict=True)]
        )
        rates = [stage[::-1] for stage in stage_drop_path_rates(config.drop_path_rate, config.decoder_depths[::-1])[::-1]]
        expands = [PatchExpand(dim, factor=2, **options) for dim in dims[:0:-1]]
        self.up_stages = nnx.List(
            [Stage(config, dim=dim, resize=r, rates=p, rngs=rngs) for dim, r, p in zip(dims[::-1], [None, *expands], rates, strict=True)]
        )
        self.final_up = PatchExpand(dims[0], factor=config.patch_size, **options)
        self.head = declare(Linear(dims[0] // config.patch_size, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=self.config.patch_size * 2**i, dim=dim, normalised=False) for i, dim in enumerate(self.config.dims))

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Returns the map at the end of each stage of the decoder, from fine to coarse."""
        x, merged, maps = self.patch_embed(self.checked(images)), [], []
        for stage in self.stages:
            if stage.resize is not None:
                x = stage.resize(x)
                merged.append(x)
            x = stage(x, train=train, rngs=rngs)
        for stage in self.up_stages:
            if stage.resize is not None:
                x = stage.resize(x + merged.pop())
            x = stage(x, train=train, rngs=rngs)
            maps.append(x)
        return Features(maps[::-1])

    def pixels(self, features: Features) -> Float[Array, "b height width d"]:
        """Returns what the last layer reads at every pixel of the image."""
        return self.final_up(features[0]).astype(jnp.float32)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Returns the mean over the pixels, whose logits are the mean of the pixels' logits."""
        return self.pixels(features).mean((1, 2))

    def masks(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Float[Array, "b height width k"]:
        """Returns the logits of every pixel; of one class its probability. Arguments and errors are
        those of `features`.
        """
        if self.head is None:
            raise ValueError("a model without classes has no masks")
        logits = self.head(self.pixels(self.features(images, train=train, rngs=rngs)))
        return jax.nn.sigmoid(logits) if self.config.num_classes == 1 else logits


FAMILY = Family(MHSVM, VARIANTS, PUBLISHED, layers=layers)
