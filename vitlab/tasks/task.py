"""The interface of a task: a record of plain functions, which hold no weights and know neither
devices nor files.

A batch is a dict of arrays [b, ...]: "image", uint8 pixels, and one entry for each of the task's
fields; in an evaluation also "mask", bool [b], False where a row is padding, and "index", int32
[b], the position of each image in its split.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, final, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import check_bounds, hints_of
from vitlab.config import Experiment, typed
from vitlab.data.warp import Warp
from vitlab.device.erase import erase
from vitlab.functional import Trunk
from vitlab.models.registry import FeatureInfo, Preprocessing

Batch = dict[str, Array]
Outputs = Any  # what `forward` returns: a tree of arrays [b, ...]
ERASE = 2**31 - 2  # folded into a step's key for erasing; accumulation folds small numbers
MIX = 2**31 - 1  # folded into a step's key for mixing


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Base of a task's options: each number lies in the bounds that its field's type names, as in
    the config of a model.
    """

    def __post_init__(self) -> None:
        for name in hints_of(type(self)):
            object.__setattr__(self, name, self.checked_field(name, getattr(self, name)))

    @final
    @classmethod
    def checked_field(cls, name: str, value: Any) -> Any:
        """The value of an option in the form that the options have it: tuples for lists.

        Raises:
          ValueError: The value is of another type than the option's, or out of its bounds.
        """
        plain, bounded = hints_of(cls)[name]
        value = typed(value, plain, ("task", name))
        check_bounds(f"task.{name}", value, bounded)
        return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Arguments that all functions of a task get."""

    options: Any  # the task's own, of its class `options`
    num_classes: int  # classes of the data, or as many as the model is told to have
    channels: int  # channels of the images
    preprocessing: Preprocessing
    experiment: Experiment
    class_weights: Float[np.ndarray, " classes"] | None = None  # see `vitlab.losses.label_loss`; classification only


@dataclasses.dataclass(frozen=True)
class Count:
    """Something that is counted over the images of training batches, and logged as a share of
    them.
    """

    metric: str  # name in the log
    of: Callable[[Outputs, Batch, Setting], Array]  # an integer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measures of a batch on the device, and the metrics made of them on the host.

    `measure` gives a dict of arrays. Those named in `rows` are [b, ...], one entry an image;
    padding is dropped and they come to `finish` in the order of the split, [n, ...]. All others are
    sums over the images whose mask is True: integers are added up exactly, and nothing depends on
    the size of a batch, on devices or on processes.
    """

    measure: Callable[[Outputs, Batch], dict[str, Array]]
    finish: Callable[[Mapping[str, Any], int], dict[str, Any]]  # sums and rows, and the number of images -> metrics; none is NaN
    rows: tuple[str, ...] = ()
    seen: Callable[[Outputs, Batch], Any] | None = None  # what a report is given of each image; None: see `vitlab.evaluate.worst`


@runtime_checkable
class Result(Protocol):
    """What is predicted of a picture: any kind of field, or an object of fewer methods, see
    `vitlab.data.fields.Kind`.
    """

    @property
    def suffix(self) -> str:
        """Suffix of the files that `write` makes, such as ".png"."""
        ...

    def warp(self, value: np.ndarray, warp: Warp) -> np.ndarray: ...

    def draw(self, picture: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, str]: ...

    def write(self, path: str | os.PathLike[str], value: np.ndarray) -> None: ...


Head = Callable[[Setting, tuple[FeatureInfo, ...], nnx.Rngs], nnx.Module]


def default_forward(trunk: Trunk, head: Any, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Outputs:
    """The head on the maps of the image."""
    return head(trunk.features(batch["image"], train=train, rngs=rngs), train=train, rngs=rngs)


def default_prepare(batch: Batch, rng: Array | None, setting: Setting) -> Batch:
    """Erases rectangles of training images; an evaluation's images are left alone."""
    if rng is None:
        return batch
    prob = setting.experiment.augment.erase_prob
    return batch | {"image": erase(batch["image"], jax.random.fold_in(rng, ERASE), prob, setting.preprocessing)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One thing that a model can be trained for."""

    # Class of the options, a `TaskOptions`.
    options: type[TaskOptions] = TaskOptions
    # Fields of a batch beside the image, by the names that `vitlab.data.fields` has for them.
    fields: Callable[[Any], Sequence[str]]
    # The head over the trunk's maps, whose parameters lie below `task_head`; None: the model's own
    # head.
    head: Head | None = None
    # The outputs of trunk and head for a batch.
    forward: Callable[..., Outputs] = default_forward
    # Entries of a batch that `forward` reads, of which the first is the image; others are images
    # too.
    inputs: tuple[str, ...] = ("image",)
    # What the device does to a batch before the model; the key is None in an evaluation. A
    # prediction goes without it.
    prepare: Callable[[Batch, Array | None, Setting], Batch] = default_prepare
    # Terms of the loss, each [b]. They add up to the loss.
    loss: Callable[[Outputs, Batch, Setting], dict[str, Array]]
    # What each term of an image is counted with, [b], such as its valid pixels: the loss is the sum
    # over terms of sum(term) / max(sum(weight), 1) over the whole batch. None: the mean over its
    # images.
    weights: Callable[[Batch, Setting], dict[str, Array]] | None = None
    # Names of the terms, of the options; they are logged one by one if there are several.
    terms: Callable[[Any], tuple[str, ...]] = lambda options: ("loss",)
    # Counts of training, by their names in the state.
    counts: Mapping[str, Count] = dataclasses.field(default_factory=dict)
    evaluation: Callable[[Setting], Evaluation]
    # The metric that decides which checkpoint is the best.
    best: tuple[str, Literal["max", "min"]]
    # An evaluation as one line; None: its numbers with their names.
    line: Callable[[Mapping[str, Any]], str] | None = None
    # How an evaluation or a prediction brings a picture to the model's size: its centre, or all of
    # it.
    fit: Literal["crop", "stretch", "letterbox"] = "stretch"
    # Kind of each thing that is predicted, by name; and the prediction itself, {name: [b, ...]} at
    # the size of the images.
    results: Mapping[str, Result] = dataclasses.field(default_factory=dict)
    predictions: Callable[[Outputs, Setting], dict[str, Array]] | None = None
    # Groups of the config ("mix") or keys of them ("mix.cutmix_alpha"), and its key `metrics`, that
    # mean something to this task; others must be left at their defaults.
    reads: tuple[str, ...] = ()
