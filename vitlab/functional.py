"""A model as a pure function of its weights: what jit, optax and checkpoints see."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, UInt8

from vitlab.analysis.counts import macs_of
from vitlab.config import ConfigError, ModelConfig, refusing
from vitlab.layers.frozen import run_as_in_evaluation
from vitlab.layers.initial import InitRngs
from vitlab.layers.roles import Layers, places_of
from vitlab.models.catalogue import preprocessing_of
from vitlab.models.registry import FeatureInfo, Features, Preprocessing, create_model, family_of, model_config
from vitlab.parallel.mesh import named_axes
from vitlab.tree import joined, leaf_names, parted

__all__ = ["FunctionalModel", "Trunk", "Weights", "build", "check_tensor", "freeze", "functional"]

Weights = dict[str, Any]  # {"params": nested dict, "model_state": nested dict of BatchNorm statistics}
Pixels = UInt8[Array, "b h w c"] | Float[Array, "b h w c"]  # in [0, 255]
HEAD = "task_head"  # first part of the names of a task's own head


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A model of the zoo as a task sees it: it takes pixels in [0, 255] and normalises them."""

    model: Any
    preprocessing: Preprocessing

    def normalised(self, images: Pixels) -> Float[Array, "b h w c"]:
        """The images as the model wants them."""
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.preprocessing.mean, self.preprocessing.std))
        return (images.astype(jnp.float32) / 255 - mean[None, None, None]) / std[None, None, None]

    def features(self, images: Pixels, *, train: bool, rngs: nnx.Rngs | None) -> Features:
        """The maps of `model.features`, one a stage."""
        return self.model.features(self.normalised(images), train=train, rngs=rngs)

    def logits(self, images: Pixels, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b classes"]:
        """The mean of the logits of the model's own heads."""
        return self.model(self.normalised(images), train=train, rngs=rngs)

    def head_logits(self, images: Pixels, *, train: bool, rngs: nnx.Rngs | None) -> tuple[Float[Array, "b classes"], ...]:
        """The logits of each of the model's own heads: two with DeiT's distillation token, else one."""
        if not hasattr(self.model, "head_logits"):
            return (self.logits(images, train=train, rngs=rngs),)
        return self.model.head_logits(self.normalised(images), train=train, rngs=rngs)


def _own_heads(trunk: Trunk, head: None, batch: Mapping[str, Array], *, train: bool, rngs: nnx.Rngs | None) -> tuple[Array, ...]:
    return trunk.head_logits(batch["image"], train=train, rngs=rngs)


def _own_logits(trunk: Trunk, head: None, batch: Mapping[str, Array], *, train: bool, rngs: nnx.Rngs | None) -> Array:
    return trunk.logits(batch["image"], train=train, rngs=rngs)


def _maps(trunk: Trunk, head: None, batch: Mapping[str, Array], *, train: bool, rngs: nnx.Rngs | None) -> tuple[Array, ...]:
    return tuple(trunk.features(batch["image"], train=train, rngs=rngs))


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """`apply` and `run` of fixed structure; holds no weights."""

    graphdef: Any
    constants: Any  # variables that are neither parameters nor statistics
    preprocessing: Preprocessing
    shapes: Weights  # shapes and dtypes of its weights
    places: Any  # the `vitlab.layers.roles.Place` of each parameter
    trained: Any = None  # whether each parameter is trained, as booleans; None: all are. See `freeze`
    tensor_split: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)  # its family's
    forward: Callable[..., Any] = _own_heads  # (Trunk, the task's head or None, batch, train=, rngs=) -> outputs, see `vitlab.tasks`
    inputs: tuple[str, ...] = ("image",)  # entries of a batch that `forward` reads; all are images

    def run(self, weights: Weights, batch: Mapping[str, Array], rng: Array | None = None) -> tuple[Any, dict[str, Any]]:
        """Runs trunk and head on a batch; with `rng` as in training (dropout, drop path, statistics of the batch).

        Returns:
          Outputs of the task, float32, and the new model_state.
        """
        return self._run(self.forward, weights, batch, rng)

    def apply(self, weights: Weights, images: Pixels, rng: Array | None = None) -> tuple[Float[Array, "b classes"], dict[str, Any]]:
        """Runs the model with its own head on pixels in [0, 255], otherwise as `run` does.

        Returns:
          Logits, float32, and the new model_state.
        """
        return self._run(_own_logits, weights, {"image": images}, rng)

    def features(self, weights: Weights, images: Pixels) -> tuple[Float[Array, "b _h _w _d"], ...]:
        """Normalises pixels in [0, 255] and gives the maps of `model.features`, one a stage, float32."""
        return self._run(_maps, weights, {"image": images}, None)[0]

    def abstract_inputs(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what `run` reads."""
        shape = (batch_size, *self.preprocessing.image_size, len(self.preprocessing.mean))
        return dict.fromkeys(self.inputs, jax.ShapeDtypeStruct(shape, jnp.uint8))

    def count_macs(self) -> int:
        """Multiply-accumulates of the forward pass on one image."""
        return macs_of(lambda weights, x: self.run(weights, x)[0], self.shapes, self.abstract_inputs())

    def count_training_macs(self) -> int:
        """Multiply-accumulates of a forward and a backward pass on one image, of which those of frozen parts are left out."""
        if self.trained is None:
            return 3 * self.count_macs()

        def gradient(weights: Weights, x: dict[str, Array]) -> Any:
            trained, frozen = self.split(weights["params"])

            def loss(trained: Any) -> Array:
                outputs, _ = self.run({**weights, "params": joined(trained, frozen)}, x)
                return sum((x.sum() for x in jax.tree.leaves(outputs)), start=jnp.zeros(()))

            return jax.grad(loss)(trained)

        return macs_of(gradient, self.shapes, self.abstract_inputs())

    def split(self, params: Any) -> tuple[Any, Any]:
        """Parameters, or a tree like theirs, in two trees: what is trained, and what is frozen."""
        return (params, {}) if self.trained is None else parted(params, self.trained)

    def changes(self) -> Weights:
        """Whether training changes each leaf of the weights, as booleans: statistics of frozen parts stay."""
        if self.trained is None:
            return jax.tree.map(lambda _: True, self.shapes)
        trained = _trained_modules(self.trained)
        stats = {path: not _is_frozen(path[:-1], trained) for path in flatten_dict(self.shapes["model_state"])}
        return {"params": self.trained, "model_state": unflatten_dict(stats)}

    def _run(self, forward: Callable[..., Any], weights: Weights, batch: Mapping[str, Array], rng: Array | None) -> Any:
        """Outputs of a forward function, float32 but for integers, and the new model_state."""
        model = nnx.merge(self.graphdef, weights["params"], weights["model_state"], self.constants, copy=True)
        rngs = None if rng is None else nnx.Rngs(dropout=rng)
        _set_mode(model, rng)
        trunk, head = Trunk(model, self.preprocessing), getattr(model, HEAD, None)
        outputs = forward(trunk, head, batch, train=rng is not None, rngs=rngs)
        outputs = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, outputs)
        return outputs, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def _set_mode(model: Any, rng: Array | None) -> None:
    """Puts layers of `flax.nnx` that have a mode (dropout, batch norm) into that of training, with `rng`, or of evaluation.

    Streams of random numbers that they hold begin anew at each step, from its key. The zoo's own layers have no mode and no streams.
    """
    if rng is None:
        model.eval()
        return
    model.train()
    tags = {node.key.tag for _, node in nnx.iter_graph(model) if isinstance(node, nnx.RngStream)}
    keys: dict[str, Any] = {tag: jax.random.fold_in(rng, i) for i, tag in enumerate(sorted(tags))}
    if keys:
        nnx.reseed(model, **keys)


def functional(model: Any, layers: Layers | None = None) -> tuple[FunctionalModel, Weights]:
    """Splits a model of the zoo into its function and its weights.

    Args:
      model: Real or abstract.
      layers: Its family's, for layer-wise decay of the learning rate.
    """
    graphdef, params, stats, constants = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    weights = {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(stats)}
    shapes = jax.eval_shape(lambda: weights)
    return FunctionalModel(graphdef, constants, model.preprocessing, shapes, places_of(model, layers)), weights


def freeze(model: FunctionalModel, trained: Any) -> FunctionalModel:
    """The model with some of its parameters frozen.

    A frozen part is constant and runs as in evaluation also where the rest is trained: its batch norms use and keep their
    statistics, and it drops neither units nor paths. A module is part of it if all parameters inside it are frozen; one without
    parameters, such as drop path, if all of the smallest module around it that has parameters are.

    Args:
      model: Whose weights keep their names and shapes.
      trained: Whether each parameter is trained: booleans in nested dicts as those of the parameters.
    """
    if all(jax.tree.leaves(trained)):
        return model
    modules = _trained_modules(trained)
    module = nnx.merge(model.graphdef, model.shapes["params"], model.shapes["model_state"], model.constants, copy=True)
    for path, part in nnx.iter_modules(module):
        if _is_frozen(path, modules):
            run_as_in_evaluation(part)
    return dataclasses.replace(model, graphdef=nnx.graphdef(module), trained=trained)


def _trained_modules(trained: Any) -> dict[tuple[Any, ...], bool]:
    """Path of each module that has parameters -> whether any inside it is trained."""
    out: dict[tuple[Any, ...], bool] = {}
    for path, is_trained in flatten_dict(trained).items():
        for n in range(len(path)):
            out[path[:n]] = out.get(path[:n], False) or bool(is_trained)
    return out


def _is_frozen(path: tuple[Any, ...], trained: Mapping[tuple[Any, ...], bool]) -> bool:
    """Whether all parameters in the module at `path`, or in the nearest one around it that has any, are frozen."""
    return not next(trained[path[:n]] for n in range(len(path), -1, -1) if path[:n] in trained)


def build(
    config: ModelConfig,
    *,
    num_classes: int,
    channels: int,
    seed: int,
    head: Callable[[tuple[FeatureInfo, ...], Preprocessing, InitRngs], Any] | None = None,
) -> tuple[FunctionalModel, Callable[[], Weights]]:
    """The model of an experiment, and a function for its initial weights, which are made on the default device.

    Args:
      config: Which model.
      num_classes: Of the data, where the config leaves it open.
      channels: Of the images, where the config leaves it open.
      seed: Of the initial weights.
      head: Makes the head of a task from what the trunk's maps are; the model's own is then left out.

    Raises:
      ConfigError: There is no such model, its fields cannot work together, or the head cannot stand on its maps.
    """
    if config.num_classes is not None and config.num_classes < num_classes:
        raise ConfigError(f"model.num_classes={config.num_classes} is fewer than the {num_classes} classes of the data")

    def create(rngs: InitRngs) -> nnx.Module:
        own = num_classes if config.num_classes is None else config.num_classes
        recipe = preprocessing_of(config.name, config.weights, model_config(config.name).preprocessing)
        model = create_model(
            config.name,
            num_classes=own if head is None else 0,
            image_size=config.image_size,
            in_channels=channels if config.in_channels is None else config.in_channels,
            drop_path_rate=config.drop_path_rate,
            dtype=config.dtype,
            rngs=rngs,
            **({"preprocessing": recipe} | dict(config.fields)),
        )
        if head is not None:
            setattr(model, HEAD, head(model.feature_info, model.preprocessing, rngs))
        return model

    with refusing(ValueError, TypeError):
        abstract, _ = functional(nnx.eval_shape(lambda: create(InitRngs(None))), family_of(config.name).layers)
    constants = abstract.constants
    if jax.tree.leaves(constants):
        constants = jax.jit(lambda: functional(create(InitRngs(None)))[0].constants)()  # nothing else is made
    model = dataclasses.replace(abstract, constants=constants, tensor_split=family_of(config.name).tensor_split)
    return model, lambda: functional(create(InitRngs(seed)))[1]


def check_tensor(tensor: int, config: ModelConfig, model: FunctionalModel) -> None:
    """Refuses so many devices along `tensor` if the model cannot be split over them.

    Raises:
      ConfigError: Its family does not say how, or they do not divide its heads or its hidden units.
    """
    if tensor == 1:
        return
    rule, remedy = f"mesh.tensor={tensor} must divide", "mesh.fsdp splits the parameters of any model"
    if not model.tensor_split:
        raise ConfigError(f"mesh.tensor={tensor} must be 1: the family of {config.name} does not say how to split it; {remedy}")
    num_heads = model_config(config.name, **config.fields).num_heads
    if any(heads % tensor for heads in np.atleast_1d(num_heads)):
        raise ConfigError(f"{rule} num_heads={num_heads} of {config.name}; {remedy}")
    params = model.shapes["params"]
    for name, x in zip(leaf_names(params), jax.tree.leaves(params), strict=True):
        for size, axis in zip(x.shape, named_axes(name, x.shape, model.tensor_split), strict=True):
            if axis is not None and size % tensor:
                raise ConfigError(f"{rule} the {size} of {name}, {list(x.shape)}; {remedy}")
