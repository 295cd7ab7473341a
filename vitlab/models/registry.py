"""The zoo: all families, one for each module of `vitlab.models` that defines a `FAMILY`."""

import dataclasses
import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

import vitlab.models
from vitlab.config import ConfigError, near_misses
from vitlab.config.references import is_reference, load_module, short_name
from vitlab.layers.initial import InitRngs
from vitlab.layers.roles import Layers
from vitlab.models.contract import VisionConfig, VisionModel
from vitlab.models.features import FeatureInfo, Features
from vitlab.models.plug_in import plug_in
from vitlab.models.preprocessing import Preprocessing

__all__ = [
    "Family",
    "FeatureInfo",
    "Features",
    "Preprocessing",
    "Published",
    "VisionConfig",
    "VisionModel",
    "abstract_model",
    "create_model",
    "family_of",
    "list_models",
    "model_config",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """Figures that the authors publish of a variant; `source` says if they are timm's."""

    params: int | None = None  # exact number of parameters
    params_m: float | None = None  # parameters in millions, if only a rounded figure is published
    gmacs: float | None = None  # multiply-accumulates of one image of the variant's size, in 1e9
    top1: float | None = None  # ImageNet-1k top-1 accuracy, in percent
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Family:
    """A family: its model class, its variants by full name, and their published figures."""

    model: type[VisionModel[Any]]
    variants: Mapping[str, VisionConfig]
    published: Mapping[str, Published] = dataclasses.field(default_factory=dict)  # every variant of the zoo has an entry
    # Parameters split over the mesh axis `tensor`, as in `vitlab.layers.tensor_split.TENSOR_SPLIT`;
    # {}: the family cannot be split.
    tensor_split: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)
    layers: Layers | None = None  # layers for layer-wise decay, see `vitlab.layers.roles.places_of`; None: no such decay


@functools.cache
def _families() -> dict[str, Family]:
    out: dict[str, Family] = {}
    for info in pkgutil.iter_modules(vitlab.models.__path__):
        if info.name in ("registry", "__main__"):
            continue
        family: Family | None = getattr(importlib.import_module(f"vitlab.models.{info.name}"), "FAMILY", None)
        if family is not None:
            out |= dict.fromkeys(family.variants, family)
    return out


def list_models(pattern: str = "*") -> list[str]:
    """Returns the sorted names of the zoo's variants that match a wildcard pattern."""
    return sorted(fnmatch.filter(_families(), pattern))


def family_of(name: str) -> Family:
    """Returns the family of a variant.

    Args:
      name: A variant of the zoo, or the user's own, named as in `vitlab.config.references`.

    Raises:
      ValueError: No variant has this name; the message lists similar names.
    """
    if is_reference(name):
        return _own_family(name)
    families = _families()
    if name not in families:
        raise ValueError(f'unknown model "{name}": {near_misses(name, families)}')
    return families[name]


def _own_family(name: str) -> Family:
    """Returns the `FAMILY` of the user's own module."""
    family = getattr(load_module(name), "FAMILY", None)
    if not isinstance(family, Family):
        raise ConfigError(f'"{name}": its module must define FAMILY = Family(Model, VARIANTS), as the files of vitlab.models do')
    of_contract = isinstance(family.model, type) and issubclass(family.model, VisionModel)
    if not of_contract or not all(isinstance(config, VisionConfig) for config in family.variants.values()):
        raise ConfigError(f'"{name}": the model of its FAMILY must be a VisionModel, its variants VisionConfigs, of vitlab.models.contract')
    if short_name(name) not in family.variants:
        raise ConfigError(f'"{name}": its FAMILY has no variant "{short_name(name)}": {near_misses(short_name(name), family.variants)}')
    return family


def model_config(name: str, **fields: Any) -> Any:
    """Returns the config of a variant, of its family's own config class, with fields replaced.

    Raises:
      ValueError: Unknown variant or field (similar names are listed), a value of another type or
        out of bounds, or a combination that the family refuses.
    """
    config = family_of(name).variants[short_name(name)]
    known = {field.name for field in dataclasses.fields(config)}
    for field, value in fields.items():
        if field not in known:
            raise ValueError(f'model "{name}" has no field "{field}": {_remedy(field, known)}')
        fields[field] = config.checked_field(field, value)
    return dataclasses.replace(config, **fields)


# timm's names of fields -> the names here.
_TIMM = {
    "img_size": ("image_size",),
    "in_chans": ("in_channels",),
    "drop_path": ("drop_path_rate",),
    "embed_dim": ("dim", "dims"),
    "num_layers": ("depth", "depths"),
    "drop_rate": ("dropout_rate",),
    "proj_drop_rate": ("dropout_rate",),
    "attn_drop_rate": ("attn_dropout_rate",),
    "global_pool": ("pool",),
    "class_token": ("pool", "cls_token"),
    "reg_tokens": ("register_tokens", "num_registers"),
    "init_values": ("layer_scale_init",),
}


def _remedy(field: str, known: Iterable[str]) -> str:
    """Returns the remedy for a field that a family does not have."""
    if field.startswith(("pretrained", "checkpoint_path")):
        return "create the model and then load its weights, vitlab.load_weights(model, 'file.safetensors'); in a config, model.weights"
    if ours := [name for name in _TIMM.get(field, ()) if name in known]:
        return f"it is {ours[0]} here"
    return near_misses(field, known)


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_channels: int = 3,
    drop_path_rate: float | None = None,
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs | None = None,
    **family_fields: Any,
) -> VisionModel[Any]:
    """Builds a variant of the zoo.

    Args:
      name: `<family>_<variant>`, one of `list_models()`, or a variant of one's own,
        `package.module:variant` or `file.py:variant`.
      num_classes: Width of the head; 0 gives the pooled features, None the variant's own.
      image_size: Pixels, (height, width) or the side of a square; None for the variant's.
      in_channels: Channels of the images.
      drop_path_rate: Probability, in [0, 1), that the last block drops a branch; it rises from 0
        over the blocks. None: the variant's.
      dtype: Type of the computation, float32 or bfloat16; parameters, norms and softmax stay
        float32. None: the variant's.
      rngs: Source of the initial parameters; None: `vitlab.layers.initial.InitRngs(0)`.
      **family_fields: Fields of the family's config, checked one by one.

    Returns:
      A model; `model(images, train=False, rngs=None)` maps [b, height, width, channels] to logits
      [b, num_classes].

    Raises:
      ValueError: Unknown name or field (similar names are listed), a value out of bounds, or fields
        that cannot work together.
    """
    given = {
        "num_classes": num_classes,
        "image_size": image_size,
        "drop_path_rate": drop_path_rate,
        "dtype": dtype if dtype is None else _name_of(dtype),
    }
    fields = {k: v for k, v in given.items() if v is not None} | family_fields
    config = model_config(name, in_channels=in_channels, **fields)
    rngs = InitRngs(0) if rngs is None else rngs
    model = family_of(name).model(config, rngs=rngs)
    if config.plugin is not None:
        plug_in(model, rngs=rngs)
    return model


def _name_of(dtype: DTypeLike) -> str:
    """Returns the canonical name of a dtype.

    For anything else the result is its text, which the config refuses with a message.
    """
    try:
        return jnp.dtype(dtype).name
    except TypeError:
        return str(dtype)


def abstract_model(name: str, **options: Any) -> Any:
    """Returns a model of shapes and dtypes only, which allocates nothing.

    Args:
      name: As in `create_model`.
      **options: As in `create_model`.
    """
    return nnx.eval_shape(lambda: create_model(name, rngs=InitRngs(None), **options))
