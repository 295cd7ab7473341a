"""Puts a plug-in module after the blocks of a model, whatever its family."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vitlab.config import ConfigError
from vitlab.layers.initial import InitRngs
from vitlab.layers.plug_ins import plug_in_of
from vitlab.models.contract import VisionConfig, VisionModel

Path = tuple[Any, ...]  # attributes from the model to a module
Maps = dict[Path, tuple[int, ...]]  # shape of the map that each block makes, in the order of the forward pass


class _Probe(nnx.Module):
    """Stands for a plug-in, and notes the shape of the map that it is given."""

    def __init__(self, path: Path, found: Maps):
        self.note = lambda shape: found.setdefault(path, shape)

    def __call__(self, x: Any) -> Any:
        if isinstance(x, jax.Array) and x.ndim == 4:
            self.note(x.shape)
        return x


def plug_in(model: VisionModel[Any], *, rngs: nnx.Rngs) -> None:
    """Gives the blocks of a model the plug-in that its config names, each one of its own, in place.

    The blocks are those that `run_blocks` runs in `features` and that make a map [b, h, w, c].
    Blocks in a row whose maps have one size and width are a stage.

    Args:
      model: A model whose config has a `plugin`.
      rngs: Source of the plug-ins' initial parameters.

    Raises:
      ConfigError: The family has no such blocks, or no stage of the given number.
      ValueError: The plug-in cannot have the width of a block.
    """
    config = model.config
    stages = [list(group) for _, group in itertools.groupby(block_maps(type(model), config).items(), key=lambda item: item[1])]
    if not stages:
        rule = "must be None: the family has no blocks that make maps [b, h, w, c], as swin, convnext or metaformer have"
        raise ConfigError(f'plugin="{config.plugin}" of {type(model).__name__} {rule}')
    if any(stage >= len(stages) for stage in config.plugin_stages):
        raise ConfigError(f"plugin_stages={config.plugin_stages} of {type(model).__name__} must be from 0 to {len(stages) - 1}")
    modules: dict[Path, Any] = dict(nnx.iter_modules(model))
    make = plug_in_of(config.plugin)
    for number in config.plugin_stages or range(len(stages)):
        for path, shape in stages[number]:
            modules[path].plugin = make(shape[-1], **config.plugin_fields, dtype=config.dtype, rngs=rngs)


def block_maps(family: type[VisionModel[Any]], config: VisionConfig) -> Maps:
    """The maps that the blocks of a model make of an image of its config's size, found by
    tracing.
    """
    found: Maps = {}
    plain = dataclasses.replace(config, remat="none", scan_blocks=False)

    def trace() -> None:
        model = family(plain, rngs=InitRngs(None))
        modules: list[tuple[Path, Any]] = list(nnx.iter_modules(model))
        for path, module in modules:
            if not isinstance(module, (nnx.List, nnx.Dict)):  # whose attributes are their entries
                module.plugin = _Probe(path, found)
        model.features(jnp.zeros((1, *config.image_size, config.in_channels)))

    jax.eval_shape(trace)
    return found
