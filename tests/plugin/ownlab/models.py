"""A small convolutional network of plain Flax layers."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from vitlab.bounds import Count, Rate
from vitlab.config import ConfigError
from vitlab.models.contract import VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.registry import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallConfig(VisionConfig):
    dim: Count = 8  # width
    dropout_rate: Rate = 0.0
    image_size: tuple[int, int] = (28, 28)

    def __post_init__(self):
        super().__post_init__()
        if self.dim % 2:
            raise ConfigError(f"dim={self.dim} must be even")


class Small(VisionModel[SmallConfig]):
    """A strided convolution, batch norm, dropout, the mean over the map, a linear head."""

    def __init__(self, config: SmallConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patches = nnx.Conv(config.in_channels, config.dim, (7, 7), 7, rngs=rngs)
        self.norm = nnx.BatchNorm(config.dim, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate, rngs=rngs)
        self.hidden = nnx.Linear(config.dim, 2 * config.dim, rngs=rngs)
        self.head = nnx.Linear(2 * config.dim, config.num_classes, rngs=rngs) if config.num_classes else None

    @property
    def feature_info(self):
        return (FeatureInfo(stride=7, dim=self.config.dim, normalised=False),)

    def features(self, images, *, train=False, rngs=None):
        return Features([self.dropout(nnx.relu(self.norm(self.patches(self.checked(images)))))])

    def pool(self, features, *, train=False):
        return nnx.gelu(self.hidden(features[-1].mean((1, 2)))).astype(jnp.float32)


FAMILY = Family(Small, {"small": SmallConfig(), "wide": SmallConfig(dim=32, dropout_rate=0.5)})
