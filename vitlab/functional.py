"""A model as a pure function of its weights, for jit, optax and checkpoints."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, UInt8, UInt16

from vitlab.analysis.counts import macs_of
from vitlab.config import ConfigError, ModelConfig, refusing
from vitlab.layers.frozen import run_as_in_evaluation
from vitlab.layers.initial import InitRngs
from vitlab.layers.roles import Layers, places_of
from vitlab.models.catalogue import preprocessing_of
from vitlab.models.registry import FeatureInfo, Features, Preprocessing, create_model, family_of, model_config
from vitlab.models.training import Training
from vitlab.parallel.mesh import named_axes
from vitlab.tree import joined, leaf_names, parted

__all__ = ["FunctionalModel", "Trunk", "Weights", "build", "check_tensor", "freeze", "functional"]

Weights = dict[str, Any]  # {"params": nested dict, "model_state": nested dict of BatchNorm statistics}
Pixels = UInt8[Array, "b h w c"] | UInt16[Array, "b h w c"] | Float[Array, "b h w c"]  # pixels in [0, max_value of the preprocessing]
HEAD = "task_head"  # first part of the parameter names of a task's head


@dataclasses.dataclass(frozen=True)
class Trunk:
    """A model of the zoo as a task sees it: it takes pixels in [0, 255] and normalises them."""

    model: Any
    preprocessing: Preprocessing

    def normalised(self, images: Pixels) -> Float[Array, "b h w c"]:
        """The images normalised by the model's mean and standard deviation."""
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.preprocessing.mean, self.preprocessing.std))
        return (images.astype(jnp.float32) / self.preprocessing.max_value - mean[None, None, None]) / std[None, None, None]

    def features(self, images: Pixels, *, train: bool, rngs: nnx.Rngs | None) -> Features:
        """The feature maps of `model.features`, one a stage."""
        return self.model.features(self.normalised(images), train=train, rngs=rngs)

    def logits(self, images: Pixels, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b classes"]:
        """The mean of the logits of the model's own heads."""
        return self.model(self.normalised(images), train=train, rngs=rngs)

    def head_logits(self, images: Pixels, *, train: bool, rngs: nnx.Rngs | None) -> tuple[Float[Array, "b classes"], ...]:
        """Logits of each of the model's own heads: two with DeiT's distillation token, else one."""
        if not hasattr(self.model, "head_logits"):
            return (self.logits(images, train=train, rngs=rngs),)
        return self.model.head_logits(self.normalised(images), train=train, rngs=rngs)

    def training_outputs(self, images: Pixels, *, rngs: nnx.Rngs | None) -> Training:
        """The logits of the model's heads in training, and other terms of its authors' loss."""
        if not hasattr(self.model, "training_outputs"):
            return Training(heads=self.head_logits(images, train=True, rngs=rngs))
        return self.model.training_outputs(self.normalised(images), rngs=rngs)


def _own_heads(trunk: Trunk, head: None, batch: Mapping[str, Array], *, train: bool, rngs: nnx.Rngs | None) -> tuple[Array, ...]:
    return trunk.head_logits(batch["image"], train=train, rngs=rngs)


def _own_logits(trunk: Trunk, head: None, batch: Mapping[str, Array], *, train: bool, rngs: nnx.Rngs | None) -> Array:
    return trunk.logits(batch["image"], train=train, rngs=rngs)


def _maps(trunk: Trunk, head: None, batch: Mapping[str, Array], *, train: bool, rngs: nnx.Rngs | None) -> tuple[Array, ...]:
    return tuple(trunk.features(batch["image"], train=train, rngs=rngs))


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """The structure of a model and its functions `run` and `apply`; it holds no weights."""

    graphdef: Any
    constants: Any  # variables that are neither parameters nor statistics
    preprocessing: Preprocessing
    shapes: Weights  # shapes and dtypes of the weights
    places: Any  # `vitlab.layers.roles.Place` of each parameter
    trained: Any = None  # whether each parameter is trained, as booleans; None: all are. See `freeze`
    # The family's split over the mesh axis `tensor`.
    tensor_split: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)
    forward: Callable[..., Any] = _own_heads  # (Trunk, the task's head or None, batch, train=, rngs=) -> outputs, see `vitlab.tasks`
    inputs: tuple[str, ...] = ("image",)  # batch entries that `forward` reads; all are images

    def run(self, weights: Weights, batch: Mapping[str, Array], rng: Array | None = None) -> tuple[Any, dict[str, Any]]:
        """Runs trunk and head on a batch.

        With `rng` they run as in training: dropout, drop path and statistics of the batch.

        Returns:
          The task's outputs, float32, and the new model_state.
        """
        return self._run(self.forward, weights, batch, rng)

    def apply(self, weights: Weights, images: Pixels, rng: Array | None = None) -> tuple[Float[Array, "b classes"], dict[str, Any]]:
        """Runs the model with its own head on pixels in [0, 255]; `rng` is as in `run`.

        Returns:
          Logits, float32, and the new model_state.
        """
        return self._run(_own_logits, weights, {"image": images}, rng)

    def features(self, weights: Weights, images: Pixels) -> tuple[Float[Array, "b _h _w _d"], ...]:
        """Feature maps of `model.features` for pixels in [0, 255], one a stage, float32."""
        return self._run(_maps, weights, {"image": images}, None)[0]

    def abstract_inputs(self, batch_size: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the batch entries that `run` reads."""
        shape = (batch_size, *self.preprocessing.image_size, len(self.preprocessing.mean))
        return dict.fromkeys(self.inputs, jax.ShapeDtypeStruct(shape, jnp.uint8))

    def count_macs(self) -> int:
        """Multiply-accumulates of the forward pass on one image."""
        return macs_of(lambda weights, x: self.run(weights, x)[0], self.shapes, self.abstract_inputs())

    def count_training_macs(self) -> int:
        """Multiply-accumulates of forward and backward pass on one image.

        Gradients of frozen parts are not computed and do not count.
        """
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
        """Splits parameters, or a tree of their structure, into the trained and the frozen ones."""
        return (params, {}) if self.trained is None else parted(params, self.trained)

    def changes(self) -> Weights:
        """Whether training changes each leaf, as booleans; statistics of frozen parts stay."""
        if self.trained is None:
            return jax.tree.map(lambda _: True, self.shapes)
        trained = _trained_modules(self.trained)
        stats = {path: not _is_frozen(path[:-1], trained) for path in flatten_dict(self.shapes["model_state"])}
        return {"params": self.trained, "model_state": unflatten_dict(stats)}

    def _run(self, forward: Callable[..., Any], weights: Weights, batch: Mapping[str, Array], rng: Array | None) -> Any:
        """The outputs of a forward function, floats in float32, and the new model_state."""
        model = nnx.merge(self.graphdef, weights["params"], weights["model_state"], self.constants, copy=True)
        rngs = None if rng is None else nnx.Rngs(dropout=rng)
        _set_mode(model, rng)
        trunk, head = Trunk(model, self.preprocessing), getattr(model, HEAD, None)
        outputs = forward(trunk, head, batch, train=rng is not None, rngs=rngs)
        outputs = jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, outputs)
        return outputs, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def _set_mode(model: Any, rng: Array | None) -> None:
    """Sets `flax.nnx` layers with a mode (dropout, batch norm) to training, if `rng` is given.

    Otherwise it sets them to evaluation. Random streams inside such layers restart at each step
    from `rng`. The zoo's own layers have neither modes nor streams.
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
      model: A model with values, or an abstract one.
      layers: The layers of its family, for layer-wise decay of the learning rate.
    """
    graphdef, params, stats, constants = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    weights = {"params": nnx.to_pure_dict(params), "model_state": nnx.to_pure_dict(stats)}
    shapes = jax.eval_shape(lambda: weights)
    return FunctionalModel(graphdef, constants, model.preprocessing, shapes, places_of(model, layers)), weights


def freeze(model: FunctionalModel, trained: Any) -> FunctionalModel:
    """The model with some of its parameters frozen.

    A frozen part is constant and runs as in evaluation while the rest is trained: its batch norms
    use and keep their statistics, and it drops neither units nor paths. A module is frozen if all
    its parameters are. A module without parameters, such as drop path, is frozen if all parameters
    of the smallest enclosing module that has any are frozen.

    Args:
      model: The model; its weights keep their names and shapes.
      trained: Whether each parameter is trained: booleans in nested dicts like the parameters.
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
    """Path of each module that has parameters -> whether any of them is trained."""
    out: dict[tuple[Any, ...], bool] = {}
    for path, is_trained in flatten_dict(trained).items():
        for n in range(len(path)):
            out[path[:n]] = out.get(path[:n], False) or bool(is_trained)
    return out


def _is_frozen(path: tuple[Any, ...], trained: Mapping[tuple[Any, ...], bool]) -> bool:
    """Whether the module at `path`, or the nearest one around it with parameters, is frozen."""
    return not next(trained[path[:n]] for n in range(len(path), -1, -1) if path[:n] in trained)


def build(
    config: ModelConfig,
    *,
    num_classes: int,
    channels: int,
    seed: int,
    head: Callable[[tuple[FeatureInfo, ...], Preprocessing, InitRngs], Any] | None = None,
) -> tuple[FunctionalModel, Callable[[], Weights]]:
    """The model of an experiment, and a function for its initial weights, on the default device.

    Args:
      config: Name and fields of the model.
      num_classes: Number of classes, used if the config leaves it open.
      channels: Number of image channels, used if the config leaves it open.
      seed: Seed of the initial weights.
      head: Makes a task's head from the descriptions of the trunk's maps; it replaces the model's
        own head.

    Raises:
      ConfigError: There is no such model, its fields cannot work together, or the head does not fit
        its maps.
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
            setattr(model, HEAD, head(model.feature_info, prepared(model.preprocessing), rngs))
        return model

    def prepared(own: Preprocessing) -> Preprocessing:
        return own.with_statistics(config.mean, config.std, config.max_value)

    with refusing(ValueError, TypeError):
        abstract, _ = functional(nnx.eval_shape(lambda: create(InitRngs(None))), family_of(config.name).layers)
        preprocessing = prepared(abstract.preprocessing)
    constants = abstract.constants
    if jax.tree.leaves(constants):
        constants = jax.jit(lambda: functional(create(InitRngs(None)))[0].constants)()  # only the constants are computed, no weights
    split = family_of(config.name).tensor_split
    model = dataclasses.replace(abstract, constants=constants, preprocessing=preprocessing, tensor_split=split)
    return model, lambda: functional(create(InitRngs(seed)))[1]


def check_tensor(tensor: int, config: ModelConfig, model: FunctionalModel) -> None:
    """Refuses a size of the mesh axis `tensor` over which the model cannot be split.

    Raises:
      ConfigError: The family declares no split, or the size does not divide the heads or hidden
        units.
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
