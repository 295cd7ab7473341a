"""A run as an object, for notebooks and programs: `vitlab.load_run`."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Shaped

from vitlab.buckets import run_path
from vitlab.config import Experiment
from vitlab.data.decode import DecodeError, decoder
from vitlab.data.read_image import is_single, read_image, read_samples
from vitlab.data.warp import size_of
from vitlab.models.registry import Preprocessing
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.trained import Trained, from_run
from vitlab.tasks import Result, setting_of, task_of

_MAX_VALUE = 255.0  # largest value of a picture; images with another one are samples of a sensor
_THREADS = 8  # number of threads that read and decode images
_BATCH_SIZE = 64  # images that go through the model at once, by default


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The probabilities of one image's classes."""

    probabilities: Float[np.ndarray, " classes"]  # softmax of the logits; they add up to 1
    class_names: tuple[str, ...]  # one name per probability

    @property
    def label(self) -> int:
        """Index of the likeliest class."""
        return int(np.argmax(self.probabilities))

    @property
    def name(self) -> str:
        """Name of the likeliest class."""
        return name_of(self.class_names, self.label)

    def top(self, count: int = 5) -> tuple[tuple[str, float], ...]:
        """Names and probabilities of the likeliest classes, the likeliest first.

        Of equal probabilities the one with the lower index is first.
        """
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return tuple((name_of(self.class_names, int(i)), float(self.probabilities[i])) for i in order)


class LoadedRun:
    """A model with its weights, on one device, that takes images in many forms.

    An image is a path, encoded bytes, a PIL image, or an array [h, w] or [h, w, c] of uint8 or of
    floats in [0, 1]; several images are a sequence of these forms or an array [b, h, w, c]. Each is
    resized and cropped as the run's evaluation does. Methods may be called from several threads,
    since nothing in the object changes.
    """

    def __init__(self, trained: Trained):
        """Use `load_run`, or `LoadedRun(from_weights(...))` for a checkpoint of others.

        The weights lie on one device.
        """
        self.trained = trained
        self._logits = jax.jit(lambda weights, images: trained.model.apply(weights, images)[0])
        self._features = jax.jit(trained.model.features)
        self._task, options = task_of(trained.experiment)
        self._setting = setting_of(trained.experiment, options, trained.model.preprocessing, num_classes=len(trained.class_names))
        self._predictions = jax.jit(self._predicted)

    def __repr__(self) -> str:
        origin = ", ".join(f"{name}={value!r}" for name, value in self.trained.origin.items())
        return f"LoadedRun({origin}, classes={len(self.class_names)}, image_size={self.preprocessing.image_size})"

    @functools.cached_property
    def model(self) -> Any:
        """The model of the zoo with its weights.

        `model(images)` takes [b, h, w, c], normalised as `preprocessing` says.
        """
        fn, weights = self.trained.model, self.trained.weights
        return nnx.merge(fn.graphdef, weights["params"], weights["model_state"], fn.constants, copy=True)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the logits."""
        return self.trained.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """Image size, interpolation, mean and deviation of the model's images."""
        return self.trained.model.preprocessing

    @property
    def experiment(self) -> Experiment:
        """The config of the run."""
        return self.trained.experiment

    @property
    def step(self) -> int | None:
        """Number of updates of the weights; None for a checkpoint of others."""
        step = self.trained.origin.get("step")
        return None if step is None else int(step)

    def preprocess(self, image: Any) -> Shaped[np.ndarray, "h w c"]:
        """Reads one image and brings it to the model's size and channels.

        Returns:
          Pixels in [0, 255], not yet normalised.

        Raises:
          OSError: The file cannot be read.
          DecodeError: The image cannot be decoded, or is an array of another shape, type or range.
        """
        return self.trained.prepare(self._read(image))

    def __call__(self, images: Any, *, batch_size: int = _BATCH_SIZE) -> Float[np.ndarray, "b classes"]:
        """Logits of one image or several, float32.

        Args:
          images: One image (b = 1) or several, see the class.
          batch_size: Images that go through the model at once; it bounds the memory.

        Raises:
          OSError, DecodeError: As in `preprocess`.
          ValueError: `batch_size` is below 1, or the run's task is not classification.
        """
        if self._task.head is not None:
            raise ValueError(f"a run of task {self.experiment.task.name} has no logits of classes: use `results`")
        parts = [self.logits(pixels) for pixels in self._prepared(images, batch_size)]
        return np.concatenate(parts) if parts else np.zeros((0, self._num_logits), np.float32)

    def logits(self, pixels: Shaped[np.ndarray, "b h w c"]) -> Float[np.ndarray, "b classes"]:
        """Logits of images from `preprocess`, in one batch, float32."""
        return np.asarray(self._logits(self.trained.weights, _filled(pixels)))[: len(pixels)]

    def maps(self, pixels: Shaped[np.ndarray, "b h w c"]) -> tuple[Float[np.ndarray, "b _h _w _d"], ...]:
        """Feature maps of images that `preprocess` has made, in one batch, float32, one map a
        stage.
        """
        return tuple(np.asarray(m)[: len(pixels)] for m in self._features(self.trained.weights, _filled(pixels)))

    @property
    def kinds(self) -> dict[str, Result]:
        """Kinds of the task's results other than class probabilities, by name.

        Kinds that hold classes have the class names.
        """
        kinds = self._task.results
        return {name: _with_names(kind, self.class_names) for name, kind in kinds.items()}

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the pictures that `results` takes, in their order."""
        return self.trained.model.inputs

    def results(self, *images: Any) -> dict[str, np.ndarray]:
        """The task's results for one picture at its own size: a class map, boxes, a number.

        Args:
          *images: Pictures of one size, as many as `inputs` names, each in any of the forms of
            `__call__`.

        Returns:
          A value for each of `kinds`, by name.

        Raises:
          OSError, DecodeError: As in `preprocess`.
          ValueError: The task takes another number of pictures, or predicts classes alone, for
            which there is `predict`.
        """
        if len(images) != len(self.inputs) or self._task.predictions is None:
            takes = f"takes {len(self.inputs)} pictures ({', '.join(self.inputs)}), {len(images)} were given"
            raise ValueError(
                f"task {self.experiment.task.name} {takes if self._task.predictions else 'has `predict` in place of `results`'}"
            )
        pixels = [self._read(image) for image in images]
        warp = self.trained.warp_of(size_of(pixels[0]))
        batch = {name: warp.apply(one)[None] for name, one in zip(self.inputs, pixels, strict=True)}
        found = jax.device_get(self._predictions(self.trained.weights, batch))
        return {name: np.asarray(kind.warp(np.asarray(found[name])[0], warp.inverse)) for name, kind in self.kinds.items()}

    def _read(self, image: Any) -> Shaped[np.ndarray, "h w c"]:
        if self.trained.channels not in (1, 3) or self.preprocessing.max_value != _MAX_VALUE:
            return read_samples(image, self.trained.channels)
        return read_image(image, self.trained.channels, decoder(self.experiment.data))

    def _predicted(self, weights: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        assert self._task.predictions is not None
        return self._task.predictions(self.trained.model.run(weights, batch)[0], self._setting)

    def features(self, images: Any, *, batch_size: int = _BATCH_SIZE) -> tuple[Float[np.ndarray, "b _h _w _d"], ...]:
        """Feature maps of one image or several, float32, one map a stage.

        `model.feature_info` has their strides and widths. The arguments and errors are those of
        `__call__`; at least one image is needed.
        """
        parts = [self.maps(pixels) for pixels in self._prepared(images, batch_size)]
        if not parts:
            raise ValueError("features of no image: give at least one")
        return tuple(np.concatenate(maps) for maps in zip(*parts, strict=True))

    def predict(self, images: Any, *, batch_size: int = _BATCH_SIZE) -> list[Prediction]:
        """The classes of one image or several, in their order.

        The arguments and errors are those of `__call__`. `run.predict("cat.jpg")[0].top(3)` gives
        three names with their probabilities.
        """
        if self.kinds:
            raise ValueError(f"a run of task {self.experiment.task.name} gives no probabilities of classes: use `results`")
        return [Prediction(probabilities=p, class_names=self.class_names) for p in softmax(self(images, batch_size=batch_size))]

    @property
    def _num_logits(self) -> int:
        pixels = jax.ShapeDtypeStruct((1, *self.preprocessing.image_size, self.trained.channels), np.uint8)
        return jax.eval_shape(self._logits, self.trained.weights, pixels).shape[-1]

    def _prepared(self, images: Any, batch_size: int) -> Iterator[Shaped[np.ndarray, "b h w c"]]:
        if batch_size < 1:
            raise ValueError(f"{batch_size=} must be at least 1")
        for chunk in chunks([images] if is_single(images) else images, batch_size):
            yield np.stack([self.preprocess(image) for image in chunk])


def _with_names(kind: Result, class_names: tuple[str, ...]) -> Result:
    return dataclasses.replace(kind, class_names=class_names) if hasattr(kind, "class_names") else kind  # type: ignore[type-var]


def load_run(path: str | os.PathLike[str], step: int | None = None, averaged: bool = True) -> LoadedRun:
    """The model of a run folder, ready for images.

    Args:
      path: The run folder of `python -m vitlab.train`, here or in a bucket (gs://, s3://); the run
        may still be going on.
      step: Step of the checkpoint; None takes the newest that is not damaged.
      averaged: Whether to take the averaged weights if the run keeps them (`ema_decay`,
        schedule-free AdamW), not the raw ones.

    Returns:
      An object with `predict`, `features`, `preprocess`, `model`, `class_names`; called, it gives
      logits [b, classes].

    Raises:
      ConfigError: The path is no run folder or has no such checkpoint, or its checkpoints are
        damaged.
    """
    return LoadedRun(from_run(run_path(path), one_device(), raw=not averaged, step=step))


def prepared_batches(run: LoadedRun, paths: Iterable[str], batch_size: int) -> Iterator[list[tuple[str, np.ndarray | str]]]:
    """Each path with its prepared image, or with the reason why it cannot be read, batch by batch.

    Images are read and decoded on several threads; the paths keep their order.
    """
    with concurrent.futures.ThreadPoolExecutor(_THREADS, "vitlab-images") as pool:
        for chunk in chunks(paths, batch_size):
            yield list(zip(chunk, pool.map(lambda path: prepared(run, path), chunk), strict=True))


def prepared(run: LoadedRun, path: str) -> np.ndarray | str:
    """The prepared image, or the reason why it cannot be read."""
    try:
        return run.preprocess(path)
    except DecodeError as error:
        return f"is no image that can be decoded ({error})"
    except (OSError, ValueError) as error:  # ValueError: the path has a null byte
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"


def one_device() -> jax.sharding.Mesh:
    """A mesh of this process's first device alone."""
    return make_mesh(devices=jax.local_devices()[:1])


def _filled(pixels: Shaped[np.ndarray, "b h w c"]) -> Shaped[np.ndarray, "n h w c"]:
    """The batch padded with black images to a power of two, so that few shapes are compiled."""
    size = 1 << (len(pixels) - 1).bit_length()
    return np.pad(pixels, ((0, size - len(pixels)), (0, 0), (0, 0), (0, 0)))


def softmax(logits: Float[np.ndarray, "b classes"]) -> Float[np.ndarray, "b classes"]:
    """Probabilities of logits, float32; in NumPy, so that nothing is compiled."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return (shifted / shifted.sum(-1, keepdims=True)).astype(np.float32)


def name_of(class_names: Sequence[str], label: int) -> str:
    """Name of a class, or its number if the head has more classes than the data."""
    return class_names[label] if label < len(class_names) else str(label)


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` items in their order; the last may be shorter."""
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
