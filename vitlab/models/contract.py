"""The contract of the zoo: fields that all configs have, and methods that all models have.

Each method is abstract or final. A family implements `features`, `pool` and `feature_info`. It may
also override `head_logits`, if it has several heads, or if its logits need less work than its maps,
and `training_outputs`, if its authors' loss has more terms than the loss of its logits.
"""

import abc
import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, final

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Count, CountOrZero, Rate, check_bounds, hints_of
from vitlab.config import typed
from vitlab.config.arguments import checked_arguments
from vitlab.layers.blocks import Remat
from vitlab.layers.plug_ins import PLUG_INS, plug_in_of
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.preprocessing import Preprocessing
from vitlab.models.training import Training

if TYPE_CHECKING:
    ImageSize = tuple[int, int]  # form stored in a config
else:
    ImageSize = tuple[Count, Count] | Count  # forms accepted by a config
Images = Array | np.ndarray  # [b, height, width, in_channels], floating point, normalised as `preprocessing` states


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Fields that the configs of all families have; the field types carry their bounds."""

    image_size: ImageSize = (224, 224)  # height and width in pixels; an int stands for a square
    in_channels: Count = 3
    num_classes: CountOrZero = 1000  # 0: pooled features instead of logits
    drop_path_rate: Rate = 0.0  # probability that the last block is skipped; it rises linearly from 0 at the first block
    dtype: Literal["float32", "bfloat16"] = "float32"  # type of the computation; parameters, norms and softmax stay float32
    remat: Remat = "none"  # part of each block that the backward pass recomputes
    scan_blocks: bool = False  # whether equal consecutive blocks are compiled once and run as a loop
    preprocessing: Preprocessing = Preprocessing()
    plugin: str | None = None  # module after each block: a key of `vitlab.layers.plug_ins.PLUG_INS`, or the user's own; None: none
    plugin_stages: tuple[CountOrZero, ...] = ()  # stages, counted from 0, whose blocks get it; (): all
    plugin_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)  # further arguments of its constructor

    def __post_init__(self) -> None:
        for name in hints_of(type(self)):
            object.__setattr__(self, name, self.checked_field(name, getattr(self, name)))
        self._check_plugin()
        self.check_size(*self.image_size)

    @final
    @classmethod
    def checked_field(cls, name: str, value: Any) -> Any:
        """The value of a field as the config stores it: a pair for an int size, tuples for lists.

        Raises:
          ValueError: The value has another type than the field, or is out of bounds.
        """
        plain, bounded = hints_of(cls)[name]
        if name == "image_size" and isinstance(value, int):
            value = (value, value)
        value = typed(value, plain, (name,))
        check_bounds(name, value, bounded)
        return value

    def _check_plugin(self) -> None:
        if self.plugin is None:
            if self.plugin_stages or self.plugin_fields:
                raise ValueError(f"plugin_stages={self.plugin_stages}, plugin_fields={self.plugin_fields}: plugin must name the module")
            return
        make, known = plug_in_of(self.plugin), self.plugin in PLUG_INS
        fields = checked_arguments(("plugin_fields",), f'plugin "{self.plugin}"', make, self.plugin_fields, known_types=known)
        object.__setattr__(self, "plugin_fields", fields)

    @property
    def size_multiple(self) -> int:
        """Pixels that must divide both sides of an image; 1 if the family pads or crops."""
        return 1

    @property
    def min_size(self) -> int:
        """Least number of pixels of both sides of an image."""
        return 1

    @final
    def check_size(self, height: int, width: int) -> None:
        """Refuses an image size, in pixels, that the family cannot process.

        Sizes other than `image_size` may be valid.

        Raises:
          ValueError: A side is no multiple of `size_multiple`, or smaller than `min_size`.
        """
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(f"image of {height}x{width} pixels: both sides must be multiples of patch_size={self.size_multiple}")
        if min(height, width) < self.min_size:
            raise ValueError(f"image of {height}x{width} pixels: both sides must be at least {self.min_size}: use larger images")

    @final
    def check_stages(self, *names: str) -> None:
        """Refuses fields that do not have one entry per stage.

        Raises:
          ValueError: The tuples differ in length, or there is no stage.
        """
        lengths = {len(getattr(self, name)) for name in names}
        if len(lengths) > 1 or lengths == {0}:
            values = ", ".join(f"{name}={getattr(self, name)}" for name in names)
            raise ValueError(f"{values} must have one entry a stage")


Config = TypeVar("Config", bound=VisionConfig)


class VisionModel(nnx.Module, Generic[Config]):
    """A model of the zoo: images -> maps -> a vector -> logits."""

    config: Config
    head: Callable[[Array], Array] | None  # pooled features -> logits; None without classes

    @abc.abstractmethod
    def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
        """Builds the network and sets `config` and `head`."""

    @property
    @final
    def preprocessing(self) -> Preprocessing:
        """Preparation of images for this model.

        It is the recipe of the variant, at the image size and channels of the config.
        """
        base = self.config.preprocessing.for_channels(self.config.in_channels)
        return dataclasses.replace(base, image_size=self.config.image_size)

    @property
    @abc.abstractmethod
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Stride, width and normalisation of each map of `features`."""

    @abc.abstractmethod
    def features(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Features:
        """Computes the maps that heads of dense tasks read; implementations first call `checked`.

        Args:
          images: [b, height, width, in_channels], normalised as `preprocessing` states, in any size
            that the family allows.
          train: Whether drop path is active, and batch norms use the statistics of the batch.
          rngs: Random numbers, for training with drop path.

        Raises:
          ValueError: The images have another shape or type, or training lacks random numbers.
        """

    @abc.abstractmethod
    def pool(self, features: Features, *, train: bool = False) -> Float[Array, "b d"]:
        """Reduces the result of `features` to a float32 vector per image, the input of the head."""

    def head_logits(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> tuple[Float[Array, "b _k"], ...]:
        """Logits of each head, float32.

        There are two heads with a distillation token, otherwise one; without classes the result is
        the pooled features. Arguments and errors are those of `features`.
        """
        x = self.pool(self.features(images, train=train, rngs=rngs), train=train)
        return (x if self.head is None else self.head(x),)

    def training_outputs(self, images: Images, *, rngs: nnx.Rngs | None) -> Training:
        """Logits of each head in training, and what else the authors' loss is made of.

        Arguments and errors are those of `features`.
        """
        return Training(heads=self.head_logits(images, train=True, rngs=rngs))

    @final
    def __call__(self, images: Images, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Float[Array, "b k"]:
        """Logits [b, num_classes], float32, averaged over the heads.

        Arguments and errors are those of `features`.
        """
        logits = self.head_logits(images, train=train, rngs=rngs)
        return logits[0] if len(logits) == 1 else functools.reduce(operator.add, logits) / len(logits)

    @final
    def checked(self, images: Images) -> Float[Array, "b height width c"]:
        """Checks images and casts them to the type of the computation, first in every model.

        Raises:
          ValueError: Rank, channels, dtype or size do not suit the model.
        """
        shape, channels = tuple(images.shape), self.config.in_channels
        if len(shape) != 4 or shape[3] != channels or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images of shape {shape} and dtype {images.dtype} must be floating-point [batch, height, width, {channels} channels]"
                f"{_remedy(shape, channels)}"
            )
        self.config.check_size(shape[1], shape[2])
        return jnp.asarray(images).astype(self.config.dtype)


def _remedy(shape: tuple[int, ...], channels: int) -> str:
    """The remedy for images of a wrong shape, else for those of a wrong dtype."""
    if len(shape) == 3 and shape[2] == channels:
        return ": add the batch axis, images[None]"
    if len(shape) == 4 and shape[1] == channels != shape[3]:
        return ": put the channels last, images.transpose(0, 2, 3, 1)"
    if len(shape) == 4 and shape[3] == channels:
        return ": normalise pixels as model.preprocessing says, (images / 255 - mean) / std"
    return ", as the in_channels of the model's config says" if len(shape) == 4 else ""
