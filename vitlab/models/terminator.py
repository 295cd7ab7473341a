"""Terminator (Zhang, arXiv:2401.17948): blocks of products of maps with each other and with kernels
that small networks make.

Follows the author's code (commit 67e773a, kept in a fork): no residual connections, blocks of ten
branches and the outputs of earlier blocks. As there, batches are standardised by their own
statistics in evaluation too and local kernels depend on the mean image of the batch, so that an
image's logits depend on the others. In training the squared distances between the blocks' global
kernels, summed over their channels, are added to the loss. Maps have the size of the model's
images, which are square; other images are resized to it (bilinear).
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Depth, Rate, Side
from vitlab.layers import Linear
from vitlab.layers.gelu import gelu
from vitlab.layers.initial import full, he_normal
from vitlab.layers.resize import resize_bilinear
from vitlab.layers.roles import declare
from vitlab.layers.slow_net import ContextSlowNet, SlowNet
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published
from vitlab.models.training import Training

_EARLIER = ((), (), (0,), (1,), (2, 1))  # blocks whose outputs a block takes beside its input
_GROUPS = 12  # groups of channels, standardised by the batch and by the image in turn; as many as divide the width where 12 do not
_BRANCHES = 10
_EPS = 1e-5  # epsilon of the standardisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class TerminatorConfig(VisionConfig):
    factors: tuple[Count, ...] = (4, 3, 2, 2, 2)  # width after a block / before it
    depths: tuple[Depth, ...] = (3, 2, 2, 2, 2)  # layers of each block's global slow net
    slow_depth: Depth = 2  # layers of all other slow nets
    hidden: Count = 64  # widths of the slow nets: global, local, of the channels, of the channels and positions of the interaction
    local_hidden: Count = 32
    channel_hidden: Count = 32
    interact_hidden: Count = 16
    spatial_hidden: Count = 64
    kernel_sizes: tuple[Side, Side, Side, Side] = (3, 9, 5, 7)  # sides of the local kernels, odd
    dropout_rate: Rate = 0.05  # probability that a channel of the output of a block but the first is dropped
    preprocessing: Preprocessing = Preprocessing(crop_fraction=1.0)

    def __post_init__(self):
        super().__post_init__()
        self.check_stages("factors", "depths")
        if len(self.factors) != len(_EARLIER):
            raise ValueError(f"factors={self.factors} must be {len(_EARLIER)}, one for each block")
        if self.image_size[0] != self.image_size[1]:
            raise ValueError(f"image_size={self.image_size} must be square: maps are multiplied as matrices")
        if not all(side % 2 for side in self.kernel_sizes):
            raise ValueError(f"kernel_sizes={self.kernel_sizes} must be odd")
        if self.drop_path_rate:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be 0: the family has no drop path")

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of the image, and after each block."""
        dims = [self.in_channels]
        for factor in self.factors:
            dims.append(dims[-1] * factor)
        return tuple(dims)


# The author's cfg/config.yaml and exp_logs/.
VARIANTS = {
    "terminator_cifar10": TerminatorConfig(image_size=(32, 32), num_classes=10),
    "terminator_cifar100": TerminatorConfig(image_size=(32, 32), num_classes=100),
}
_SOURCE = "github.com/lalalune/Terminator, a fork that keeps the author's code; exp_logs: {} % top-1 of {}, which is not ImageNet"
PUBLISHED = {
    "terminator_cifar10": Published(source=_SOURCE.format(95.32, "CIFAR-10")),
    "terminator_cifar100": Published(source=_SOURCE.format(75.68, "CIFAR-100")),
}


def standardised(x: Float[Array, "b h w c"], axes: tuple[int, ...] = (1, 2)) -> Float[Array, "b h w c"]:
    """Mean 0 and variance 1 over the axes, by the statistics of this batch, computed in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(axes, keepdims=True)
    return (y * jax.lax.rsqrt((y * y).mean(axes, keepdims=True) + _EPS)).astype(x.dtype)


def pointwise(dim: int, out_dim: int, *, dtype, rngs: nnx.Rngs) -> Linear:
    """A linear layer over the channels, normal of variance 2 / dim."""
    layer = Linear(dim, out_dim, dtype=dtype, rngs=rngs)
    layer.kernel = nnx.Param(he_normal(rngs.params(), (out_dim, dim)).T)
    return layer


class RecursiveGatedUnit(nnx.Module):
    """y(gelu(standardised(k * q(v))) + bias), k and v linear in the input (section 3.2)."""

    def __init__(self, dim: int, *, side: int, dtype, rngs: nnx.Rngs):
        self.fast_linear_k, self.fast_linear_v, self.fast_linear_q, self.fast_linear_y = (
            pointwise(dim, dim, dtype=dtype, rngs=rngs) for _ in range(4)
        )
        self.bias_p = declare(nnx.Param(full((side, side), 0.0)), "position")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        q = gelu(standardised(self.fast_linear_k(x) * self.fast_linear_q(self.fast_linear_v(x))))
        return self.fast_linear_y(q + self.bias_p[...].astype(x.dtype)[None, :, :, None])


class LocalBranch(nnx.Module):
    """A depthwise convolution with a kernel that depends on a map, then a linear layer,
    standardised over the batch, GELU.
    """

    def __init__(self, dim: int, *, kernel_size: int, config: TerminatorConfig, rngs: nnx.Rngs):
        self.slow_net = ContextSlowNet(kernel_size, dim, hidden=config.local_hidden, depth=config.slow_depth, rngs=rngs)
        self.channel_mixer = pointwise(dim, dim, dtype=config.dtype, rngs=rngs)
        self.bias = nnx.Param(full(1, 0.0))

    def __call__(self, context: Float[Array, "b h w c"], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        kernel, dims = self.slow_net.kernel(context).astype(x.dtype), ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=x.shape[-1])
        x = gelu(standardised(self.channel_mixer(x), (0, 1, 2)))
        return x + self.bias[...].astype(x.dtype).reshape(1, 1, 1, 1)


class Block(nnx.Module):
    """Ten branches and earlier blocks' outputs side by side, a linear layer, standardisation in
    groups of channels, GELU (section 3.3).
    """

    def __init__(self, config: TerminatorConfig, *, index: int, rngs: nnx.Rngs):
        dim, out_dim, side, dtype = config.dims[index], config.dims[index + 1], config.image_size[0], config.dtype
        self.dropout_rate = config.dropout_rate if index else 0.0
        self.slow_net_g = SlowNet((side, side), dim, hidden=config.hidden, depth=config.depths[index], rngs=rngs)
        self.locals = nnx.List([LocalBranch(dim, kernel_size=k, config=config, rngs=rngs) for k in config.kernel_sizes])
        self.channel_mixer_mlp = pointwise(dim, dim, dtype=dtype, rngs=rngs)
        inputs = _BRANCHES + len(_EARLIER[index])
        self.bottleneck_layer = pointwise(dim * inputs, out_dim, dtype=dtype, rngs=rngs)
        self.fast_rgu, self.slow_rgu = (RecursiveGatedUnit(dim, side=side, dtype=dtype, rngs=rngs) for _ in range(2))
        depth = config.slow_depth
        self.slow_net_gc = SlowNet((dim,), 1, hidden=config.channel_hidden, depth=depth, rngs=rngs)
        self.slow_net_gc_hi = SlowNet((dim,), 1, hidden=config.interact_hidden, depth=depth, rngs=rngs)
        self.slow_net_gs_hi = SlowNet((side, side), 1, hidden=config.spatial_hidden, depth=depth, rngs=rngs)
        self.bias = nnx.Param(full(1, 0.0))

    def __call__(
        self, x: Float[Array, "b h w c"], earlier: tuple[Array, ...], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "b h w c2"]:
        context = x * self.slow_net_g().astype(x.dtype)[None]
        fast = standardised(self.slow_rgu(context) + self.fast_rgu(x))
        mixed = standardised(self.channel_mixer_mlp(x))
        channels = standardised(x * jax.nn.sigmoid(_weighed(x.mean((1, 2)), self.slow_net_gc()))[:, None, None])
        out, out_mixed, out_channels = (_matrix_products(context, y) for y in (fast, mixed, channels))
        pairs = ((x, channels), (channels, x), (mixed, x), (x, mixed))  # the map that makes a kernel, and the one that it convolves
        local = [branch(*pair) for branch, pair in zip(self.locals, pairs, strict=True)]
        tiled = [jnp.tile(y, (1, 1, 1, x.shape[-1] // y.shape[-1])) for y in earlier]
        parts = [out, local[1], *tiled[:1], fast, out_mixed, local[0], jax.nn.sigmoid(out) * out, local[2], out_channels, local[3]]
        y = self.bottleneck_layer(jnp.concatenate([*parts, *tiled[1:], self._interacting(out, x)], -1))
        groups = jnp.split(y, math.gcd(y.shape[-1], _GROUPS), -1)
        y = jnp.concatenate([standardised(g, (1, 2) if i % 2 else (0, 1, 2)) for i, g in enumerate(groups)], -1)
        return self._dropped(gelu(y) + self.bias[...].astype(x.dtype).reshape(1, 1, 1, 1), train, rngs)

    def _interacting(self, out: Float[Array, "b h w c"], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """x weighed by a score of each channel times one of each position of `out`."""
        by_channel = _weighed(out.mean((1, 2)), self.slow_net_gc_hi())[:, None, None]
        by_position = out.mean(-1, keepdims=True)
        by_position = by_position**2 * self.slow_net_gs_hi().astype(x.dtype)[None]
        return x * jax.nn.sigmoid(by_position * by_channel)

    def _dropped(self, x: Float[Array, "b h w c"], train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w c"]:
        if not train or not self.dropout_rate:
            return x
        if rngs is None:
            raise ValueError("training with dropout needs random numbers: pass rngs=nnx.Rngs(dropout=key)")
        keep = jax.random.bernoulli(rngs.dropout(), 1 - self.dropout_rate, (x.shape[0], 1, 1, x.shape[-1]))
        return jnp.where(keep, x / (1 - self.dropout_rate), 0)


def _weighed(mean: Float[Array, "b c"], weights: Float[Array, "c 1"]) -> Float[Array, "b c"]:
    return mean**2 * weights[:, 0].astype(mean.dtype)[None]


def _matrix_products(x: Float[Array, "b h k c"], y: Float[Array, "b k w c"]) -> Float[Array, "b h w c"]:
    """The matrix product of two maps, channel by channel."""
    return jnp.einsum("bhkc,bkwc->bhwc", x, y)


class Terminator(VisionModel[TerminatorConfig]):
    """Five blocks on maps of the image's size, the mean over the positions, a linear head."""

    def __init__(self, config: TerminatorConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.blocks = nnx.List([Block(config, index=i, rngs=rngs) for i in range(len(config.factors))])
        declare(self.blocks[0], "embedding")
        self.head = declare(Linear(config.dims[-1], config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return tuple(FeatureInfo(stride=1, dim=dim, normalised=False) for dim in self.config.dims[1:])

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The map at the end of each block, of the model's image size."""
        x, maps = self.checked(images), []
        if x.shape[1:3] != self.config.image_size:
            x = resize_bilinear(x, self.config.image_size)

        def run(block: Block, x: Array, earlier: tuple[Array, ...], rngs: nnx.Rngs | None) -> Array:
            return block(x, earlier, train=train, rngs=rngs)

        call = run if self.config.remat == "none" else nnx.remat(run)
        for block, sources in zip(self.blocks, _EARLIER, strict=True):
            x = call(block, x, tuple(maps[i] for i in sources), rngs)
            maps.append(x)
        return Features(maps)

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The mean over the positions of the last map; float32."""
        return features[-1].astype(jnp.float32).mean((1, 2))

    def training_outputs(self, images: Images, *, rngs: nnx.Rngs | None) -> Training:
        """Logits, and the distance between the global kernels of each two blocks (section 3.4)."""
        outputs = super().training_outputs(images, rngs=rngs)
        sums = [block.slow_net_g().sum(-1) for block in self.blocks]
        distance = sum((jnp.square(a - b).mean() for a, b in itertools.combinations(sums, 2)), start=jnp.zeros(()))
        return dataclasses.replace(outputs, terms={"kernels": jnp.broadcast_to(distance, outputs.heads[0].shape[:1])})


FAMILY = Family(Terminator, VARIANTS, PUBLISHED, layers=lambda m: list(m.blocks)[1:])
