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
from vitlab.models.registry import Preprocessing, create_model, family_of, model_config
from vitlab.parallel.mesh import named_axes
from vitlab.tree import joined, leaf_names, parted

__all__ = ["FunctionalModel", "Weights", "build", "check_tensor", "freeze", "functional"]

Weights = dict[str, Any]  # {"params": nested dict, "model_state": nested dict of BatchNorm statistics}


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """`apply` of fixed structure; holds no weights."""

    graphdef: Any
    constants: Any  # variables that are neither parameters nor statistics
    preprocessing: Preprocessing
    shapes: Weights  # shapes and dtypes of its weights
    places: Any  # the `vitlab.layers.roles.Place` of each parameter
    trained: Any = None  # whether each parameter is trained, as booleans; None: all are. See `freeze`
    tensor_split: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)  # its family's

    def apply(
        self, weights: Weights, images: UInt8[Array, "b h w c"] | Float[Array, "b h w c"], rng: Array | None = None
    ) -> tuple[Float[Array, "b classes"], dict[str, Any]]:
        """Normalises pixels in [0, 255] and runs the model; with `rng` as in training (dropout, drop path, statistics of the batch).

        Returns:
          Logits, float32, and the new model_state.
        """
        (logits,), model_state = self._run(_whole, weights, images, rng)
        return logits, model_state

    def apply_heads(
        self, weights: Weights, images: UInt8[Array, "b h w c"] | Float[Array, "b h w c"], rng: Array | None = None
    ) -> tuple[tuple[Float[Array, "b classes"], ...], dict[str, Any]]:
        """Runs the model as `apply` does, and gives the logits of each head: two with DeiT's distillation token, else one."""
        return self._run(lambda model: getattr(model, "head_logits", _whole(model)), weights, images, rng)

    def features(
        self, weights: Weights, images: UInt8[Array, "b h w c"] | Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b _h _w _d"], ...]:
        """Normalises pixels in [0, 255] and gives the maps of `model.features`, one a stage, float32."""
        return self._run(lambda model: lambda pixels, **_: model.features(pixels), weights, images, None)[0]

    def count_macs(self) -> int:
        """Multiply-accumulates of the forward pass on one image."""
        image = jax.ShapeDtypeStruct((1, *self.preprocessing.image_size, len(self.preprocessing.mean)), jnp.uint8)
        return macs_of(lambda weights, x: self.apply(weights, x)[0], self.shapes, image)

    def count_training_macs(self) -> int:
        """Multiply-accumulates of a forward and a backward pass on one image, of which those of frozen parts are left out."""
        if self.trained is None:
            return 3 * self.count_macs()
        image = jax.ShapeDtypeStruct((1, *self.preprocessing.image_size, len(self.preprocessing.mean)), jnp.uint8)

        def gradient(weights: Weights, x: Array) -> Any:
            trained, frozen = self.split(weights["params"])
            loss = lambda trained: self.apply({**weights, "params": joined(trained, frozen)}, x)[0].sum()  # noqa: E731
            return jax.grad(loss)(trained)

        return macs_of(gradient, self.shapes, image)

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

    def _run(self, forward: Callable[[Any], Callable[..., tuple[Array, ...]]], weights: Weights, images: Array, rng: Array | None) -> Any:
        """Float32 outputs of the function that `forward` makes of the model, and the new model_state."""
        model = nnx.merge(self.graphdef, weights["params"], weights["model_state"], self.constants, copy=True)
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.preprocessing.mean, self.preprocessing.std))
        pixels = (images.astype(jnp.float32) / 255 - mean[None, None, None]) / std[None, None, None]
        rngs = None if rng is None else nnx.Rngs(dropout=rng)
        _set_mode(model, rng)
        outputs = forward(model)(pixels, train=rng is not None, rngs=rngs)
        return tuple(x.astype(jnp.float32) for x in outputs), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


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


def _whole(model: Any) -> Callable[..., tuple[Array, ...]]:
    return lambda *args, **options: (model(*args, **options),)


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


def build(config: ModelConfig, *, num_classes: int, channels: int, seed: int) -> tuple[FunctionalModel, Callable[[], Weights]]:
    """The model of an experiment, and a function for its initial weights, which are made on the default device.

    Args:
      config: Which model.
      num_classes: Of the data, where the config leaves it open.
      channels: Of the images, where the config leaves it open.
      seed: Of the initial weights.

    Raises:
      ConfigError: There is no such model, or its fields cannot work together.
    """
    if config.num_classes is not None and config.num_classes < num_classes:
        raise ConfigError(f"model.num_classes={config.num_classes} is fewer than the {num_classes} classes of the data")

    def create(rngs: InitRngs) -> nnx.Module:
        return create_model(
            config.name,
            num_classes=num_classes if config.num_classes is None else config.num_classes,
            image_size=config.image_size,
            in_channels=channels if config.in_channels is None else config.in_channels,
            drop_path_rate=config.drop_path_rate,
            dtype=config.dtype,
            rngs=rngs,
            **config.fields,
        )

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
