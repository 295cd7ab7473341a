"""A small convolutional network of plain Flax layers."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from vitlab.config import ConfigError
from vitlab.models.registry import Family, FeatureInfo, Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallConfig:
    dim: int = 8  # width
    dropout_rate: float = 0.0
    image_size: tuple[int, int] = (28, 28)  # pixels, height and width
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0  # unused: there are no branches
    dtype: Literal["float32", "bfloat16"] = "float32"
    preprocessing: Preprocessing = Preprocessing()

    def __post_init__(self):
        if self.dim % 2:
            raise ConfigError(f"dim={self.dim} must be even")


class Small(nnx.Module):
    """Patches by a convolution, batch norm, dropout, the mean over the map, a linear head."""

    def __init__(self, config: SmallConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patches = nnx.Conv(config.in_channels, config.dim, (7, 7), 7, rngs=rngs)
        self.norm = nnx.BatchNorm(config.dim, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout_rate, rngs=rngs)
        self.hidden = nnx.Linear(config.dim, 2 * config.dim, rngs=rngs)
        self.head = nnx.Linear(2 * config.dim, config.num_classes, rngs=rngs) if config.num_classes else None

    @property
    def preprocessing(self):
        base = self.config.preprocessing.for_channels(self.config.in_channels)
        return dataclasses.replace(base, image_size=self.config.image_size)

    @property
    def feature_info(self):
        return (FeatureInfo(stride=7, dim=self.config.dim),)

    def features(self, images, *, train=False, rngs=None):
        return (self.dropout(nnx.relu(self.norm(self.patches(images)))),)

    def pool(self, features):
        return nnx.gelu(self.hidden(features[-1].mean((1, 2)))).astype(jnp.float32)

    def __call__(self, images, *, train=False, rngs=None):
        x = self.pool(self.features(images, train=train, rngs=rngs))
        return x if self.head is None else self.head(x)


FAMILY = Family(Small, {"small": SmallConfig(), "wide": SmallConfig(dim=32, dropout_rate=0.5)})
