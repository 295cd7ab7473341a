"""MorpMamba (Ahmad et al., arXiv:2408.01372): tokens of filtered patches of a hyperspectral image,
attention, and the last state of a recurrence.

Follows the authors' notebook, not the paper's morphology: dilation and erosion are depthwise
convolutions, the latter negated, whose kernels begin as ones; the recurrence is linear, with one
transition for all tokens, and no selective scan. As there the gates that the central row gives to
column j weigh row j, so that images are square, and the dropout before the classifier is left out.
The spectral branch has a kernel for each column, so that maps have the size of the model's images;
others are resized to it (bilinear).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, Rate, Side
from vitlab.layers import Conv, Linear
from vitlab.layers.attention import dot_product_attention, head_dim_of
from vitlab.layers.initial import ones_init
from vitlab.layers.resize import resize_bilinear
from vitlab.layers.roles import declare
from vitlab.models.contract import Images, VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.registry import Family, Published


@dataclasses.dataclass(frozen=True, kw_only=True)
class MorpMambaConfig(VisionConfig):
    kernel_size: Side = 5  # pixels per side of the filters, odd
    dim: Count = 64  # width of the tokens
    num_heads: Count = 4
    state_dim: Count = 128  # width of the recurrence's state
    hidden: Count = 128  # width of the layer before the classifier
    dropout_rate: Rate = 0.1  # probability that a number of the attention's output is dropped
    preprocessing: Preprocessing = Preprocessing(crop_fraction=1.0)

    def __post_init__(self):
        super().__post_init__()
        if self.image_size[0] != self.image_size[1]:
            raise ValueError(f"image_size={self.image_size} must be square: gates of the columns weigh the rows")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size} must be odd")
        if self.dim % self.num_heads:
            raise ValueError(f"dim={self.dim} must be a multiple of num_heads={self.num_heads}")
        if self.drop_path_rate:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must be 0: the family has no drop path")


# The authors' notebook, University of Houston: 15 principal components of 4 x 4 pixels.
VARIANTS = {"morpmamba_houston": MorpMambaConfig(image_size=(4, 4), in_channels=15, num_classes=15)}
PUBLISHED = {"morpmamba_houston": Published(source="github.com/mahmad000/MorpMamba: 67,013 parameters with 15 channels")}


def filters(dim: int, config: MorpMambaConfig, rngs: nnx.Rngs) -> Conv:
    """A depthwise convolution that begins as the sum of its window."""
    options = {"kernel_size": config.kernel_size, "groups": dim, "use_bias": False, "kernel_init": ones_init}
    return Conv(dim, dim, **options, dtype=config.dtype, rngs=rngs)


class Tokens(nnx.Module):
    """Spatial tokens of filtered channels, and spectral ones of filtered columns, by one linear
    layer (section 3.1).
    """

    def __init__(self, config: MorpMambaConfig, *, rngs: nnx.Rngs):
        channels, width = config.in_channels, config.image_size[1]
        self.spatial_erosion, self.spatial_dilation = (filters(channels, config, rngs) for _ in range(2))
        self.spectral_erosion, self.spectral_dilation = (filters(width, config, rngs) for _ in range(2))
        self.conv = Linear(2 * channels, config.dim, dtype=config.dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Float[Array, "b h w d"], Float[Array, "b h w d"]]:
        planes = x.transpose(0, 3, 1, 2)  # [b, c, h, w]: images of channels and rows, with a plane for each column
        spectral = jnp.stack((-self.spectral_erosion(planes), self.spectral_dilation(planes)))
        spectral = spectral.transpose(0, 1, 3, 4, 2)
        spatial = jnp.concatenate((-self.spatial_erosion(x), self.spatial_dilation(x)), -1)
        return self.conv(spatial), self.conv(jnp.concatenate(tuple(spectral), -1))


class Gated(nnx.Module):
    """Attention of the spatial tokens to the spectral ones, both weighed by gates of the central
    row.
    """

    def __init__(self, config: MorpMambaConfig, *, rngs: nnx.Rngs):
        options = {"dtype": config.dtype, "rngs": rngs}
        self.num_heads, self.dropout_rate = config.num_heads, config.dropout_rate
        self.spatial_gate, self.spectral_gate = (Linear(config.dim, config.dim, **options) for _ in range(2))
        self.query, self.key, self.value = (Linear(config.dim, config.dim, **options) for _ in range(3))

    def __call__(
        self, spatial: Float[Array, "b h w d"], spectral: Float[Array, "b h w d"], *, train: bool, rngs: nnx.Rngs | None
    ) -> Float[Array, "b h w d"]:
        center = spatial[:, spatial.shape[1] // 2]
        spatial, spectral = (
            x * jax.nn.sigmoid(gate(center))[:, :, None] for gate, x in ((self.spatial_gate, spatial), (self.spectral_gate, spectral))
        )
        head_dim = head_dim_of(spatial.shape[-1], self.num_heads)
        query, key, value = (
            layer(x).reshape(x.shape[0], -1, self.num_heads, head_dim)
            for layer, x in ((self.query, spatial), (self.key, spectral), (self.value, spectral))
        )
        return self._dropped(dot_product_attention(query, key, value).reshape(spatial.shape), train, rngs)

    def _dropped(self, x: Float[Array, "b h w d"], train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w d"]:
        if not train or not self.dropout_rate:
            return x
        if rngs is None:
            raise ValueError("training with dropout needs random numbers: pass rngs=nnx.Rngs(dropout=key)")
        keep = jax.random.bernoulli(rngs.dropout(), 1 - self.dropout_rate, x.shape)
        return jnp.where(keep, x / (1 - self.dropout_rate), 0)


class Recurrence(nnx.Module):
    """The last of the states s_t = A s_(t-1) + B x_t + biases, zero before the first token."""

    def __init__(self, config: MorpMambaConfig, *, rngs: nnx.Rngs):
        self.transition = Linear(config.state_dim, config.state_dim, rngs=rngs)
        self.update = Linear(config.dim, config.state_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b state"]:
        inputs = self.update(x).swapaxes(0, 1)
        assert self.transition.bias is not None
        kernel, bias = self.transition.kernel[...], self.transition.bias[...]

        def step(state: Array, given: Array) -> tuple[Array, None]:
            return state @ kernel + bias + given, None

        return jax.lax.scan(step, jnp.zeros_like(inputs[0]), inputs)[0]


class MorpMamba(VisionModel[MorpMambaConfig]):
    """Tokens, gated attention, the recurrence over the positions by rows, two linear layers."""

    def __init__(self, config: MorpMambaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.tokens = declare(Tokens(config, rngs=rngs), "embedding")
        self.attn = Gated(config, rngs=rngs)
        self.recurrence = Recurrence(config, rngs=rngs)
        self.fc = Linear(config.state_dim, config.hidden, rngs=rngs)
        self.head = declare(Linear(config.hidden, config.num_classes, rngs=rngs), "head") if config.num_classes else None

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        return (FeatureInfo(stride=1, dim=self.config.dim, normalised=False),)

    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """The attention's output, of the model's image size."""
        x = self.checked(images)
        if x.shape[1:3] != self.config.image_size:
            x = resize_bilinear(x, self.config.image_size)

        def attended(attn: Gated, x: Array, y: Array, rngs: nnx.Rngs | None) -> Array:
            return attn(x, y, train=train, rngs=rngs)

        call = attended if self.config.remat == "none" else nnx.remat(attended)
        return Features((call(self.attn, *self.tokens(x), rngs),))

    def state(self, features: Features) -> Float[Array, "b state"]:
        """The last state of the recurrence, float32."""
        x = features[-1].astype(jnp.float32)
        return self.recurrence(x.reshape(x.shape[0], -1, x.shape[-1]))

    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """The layer before the classifier, of the last state."""
        return jax.nn.relu(self.fc(self.state(features)))


FAMILY = Family(MorpMamba, VARIANTS, PUBLISHED, layers=lambda m: [m.attn])
