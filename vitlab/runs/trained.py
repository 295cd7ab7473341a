"""A trained model from a run folder, or from a checkpoint of others."""

import dataclasses
import logging
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Shaped

from vitlab.buckets import RunPath
from vitlab.config import ConfigError, Experiment, refusing
from vitlab.data.augment import evaluation_warp
from vitlab.data.channels import model_channels
from vitlab.data.warp import Size, Warp, size_of
from vitlab.files import exists
from vitlab.functional import FunctionalModel, Weights, functional
from vitlab.functional import build as build_model
from vitlab.layers.initial import InitRngs
from vitlab.models.catalogue import address_of, preprocessing_of
from vitlab.models.registry import Preprocessing, VisionModel, create_model, model_config
from vitlab.parallel.mesh import place, sharded_shapes
from vitlab.runs import folder
from vitlab.runs.checkpoint import CheckpointError, Checkpoints
from vitlab.tasks import build, task_of
from vitlab.weights.load import load_weights

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A model, its weights, and the settings by which its images are prepared."""

    model: FunctionalModel
    weights: Weights  # on the devices
    experiment: Experiment
    channels: int
    class_names: tuple[str, ...]
    origin: dict[str, str | int]  # entries of a result: the model, and the step or the weights

    def prepare(self, pixels: Shaped[np.ndarray, "_h _w c"]) -> Shaped[np.ndarray, "h w c"]:
        """Brings an image to the model's size, as evaluation does."""
        return self.warp_of(size_of(pixels)).apply(pixels)

    def warp_of(self, size: Size) -> Warp:
        """The geometric transformation of evaluation for an image of (height, width) pixels."""
        recipe = self.model.preprocessing
        fit, crop_fraction = eval_fit(self.experiment, recipe)
        return evaluation_warp(size, recipe.image_size, recipe.interpolation, crop_fraction, fit)


def eval_fit(experiment: Experiment, preprocessing: Preprocessing) -> tuple[str, float]:
    """The fit, one of `vitlab.data.augment.FITS`, and the share of the short side that is kept.

    They are the model's if training sees parts of images, unless the task has a fit of its own;
    otherwise all of the short side is kept.
    """
    fit = task_of(experiment)[0].fit
    if experiment.augment.crop != "random_resized":
        return fit, 1.0
    squashes = fit == "crop" and preprocessing.resize == "squash"
    return ("stretch" if squashes else fit), preprocessing.crop_fraction


def model_of_run(workdir: RunPath) -> tuple[FunctionalModel, Experiment, folder.DataInfo]:
    """The model of a run, without its weights, its experiment, and the facts about its data.

    Raises:
      ConfigError: The path is no run folder.
    """
    own, data = folder.read(workdir)
    channels = model_channels(own.model, data.channels)
    return build(own, num_classes=len(data.class_names), channels=channels)[0], own, data


def from_run(workdir: RunPath, mesh: Mesh, *, raw: bool = False, step: int | None = None) -> Trained:
    """The newest checkpoint of a run that is not damaged, or the one of `step`.

    The averaged weights are taken if the run averages and `raw` is False.

    Raises:
      ConfigError: The path is no run folder or has no checkpoint, or its checkpoints do not fit or
        are damaged.
    """
    model, own, data = model_of_run(workdir)
    if not exists(workdir / "checkpoints"):
        raise ConfigError(f"{workdir} has no checkpoint yet")
    averaged = own.averages and not raw
    try:
        with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
            weights = sharded_shapes(model.shapes, mesh, model.tensor_split)
            restored = checkpoints.restore({"average": weights} if averaged else weights, only=step)
    except CheckpointError as error:
        raise ConfigError(str(error)) from error
    if restored is None:
        raise ConfigError(f"{workdir} has no checkpoint yet")
    step, state = restored
    return Trained(
        model=model,
        weights=state["average"] if averaged else state,
        experiment=own,
        channels=model_channels(own.model, data.channels),
        class_names=data.class_names,
        origin={"model": own.model.name, "step": step, **({"weights": "averaged"} if averaged else {})},
    )


def from_weights(name: str, path: str, experiment: Experiment, class_names: tuple[str, ...], mesh: Mesh, *, head: bool = True) -> Trained:
    """A variant of the zoo with a checkpoint of others; its classes are `class_names`, in order.

    Without `head` the model gives its pooled features, and the log names the checkpoint's other
    tensors.

    Raises:
      ConfigError: There is no such model or file, or they do not fit.
    """
    config = experiment.model
    with refusing(ValueError, OSError, ImportError):
        model = image_model(name, experiment, path, num_classes=(config.num_classes or len(class_names)) if head else 0)
        report = load_weights(model, address_of(name, path), strict=head)
    if report.missing or report.mismatched or report.nonfinite or report.new_plugin:
        raise ConfigError(f"{path} does not fit {name}: {report}")
    if report.unexpected:
        logger.warning("not used, since only features are wanted: %s", ", ".join(report.unexpected[:10]))
    fn, weights = functional(model)
    with refusing(ValueError):
        fn = dataclasses.replace(fn, preprocessing=fn.preprocessing.with_statistics(config.mean, config.std, config.max_value))
    return Trained(
        model=fn,
        weights=place(weights, mesh, fn.tensor_split),
        experiment=experiment,
        channels=config.in_channels or 3,
        class_names=class_names,
        origin={"model": name, "weights": path},
    )


def image_model(name: str, experiment: Experiment, weights: str, *, num_classes: int | None = None) -> VisionModel[Any]:
    """A variant of the zoo whose weights are shapes only: every value is to be a checkpoint's.

    Args:
      name: The variant.
      experiment: Its model's image size, channels and dtype count, and its fields where it is of
        that variant.
      weights: The checkpoint, by a short name or otherwise.
      num_classes: Width of the head; None: the variant's own.

    Raises:
      ValueError: There is no such model, or its fields cannot work together.
    """
    config = experiment.model
    fields: dict[str, Any] = {"preprocessing": preprocessing_of(name, weights, model_config(name).preprocessing)}
    if config.name == name:
        fields |= config.fields

    def create() -> VisionModel[Any]:
        return create_model(
            name,
            num_classes=num_classes,
            image_size=config.image_size,
            in_channels=config.in_channels or 3,
            dtype=config.dtype,
            rngs=InitRngs(None),
            **fields,
        )

    model = nnx.eval_shape(create)
    if jax.tree.leaves(_constants(model)):
        nnx.update(model, jax.jit(lambda: _constants(create()))())
    return model


def _constants(model: VisionModel[Any]) -> Any:
    """The variables that are neither parameters nor statistics."""
    return nnx.split(model, nnx.Param, nnx.BatchStat, ...)[3]


def without_head(trained: Trained) -> Trained:
    """The model of a run without its head: it gives pooled features [b, d].

    Raises:
      ConfigError: The features need a tensor that the run does not have.
    """
    config = dataclasses.replace(trained.experiment.model, num_classes=None)
    model, _ = build_model(config, num_classes=0, channels=trained.channels, seed=trained.experiment.seed)
    weights = _common({group: trained.weights[group] for group in model.shapes}, model.shapes, "")
    return dataclasses.replace(trained, model=model, weights=weights)


def _common(tree: Any, wanted: Any, path: str) -> Any:
    """The parts of a tree that `wanted` has, compared by shape; `path` is for the message."""
    if isinstance(wanted, dict):
        return {key: _common(tree.get(key, {}), value, f"{path}/{key}") for key, value in wanted.items()}
    if getattr(tree, "shape", None) != wanted.shape:
        raise ConfigError(f"the features need {path}, {list(wanted.shape)}, which the run has not")
    return tree
