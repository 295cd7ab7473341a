"""The tasks: every module in `vitlab.tasks` that holds a `TASK` is one, by the name of its file."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx

import vitlab.tasks
from vitlab import functional
from vitlab.config import ConfigError, Experiment, near_misses, refusing
from vitlab.config.references import is_reference, load_reference
from vitlab.data import Source
from vitlab.data.fields import fields_of
from vitlab.functional import FunctionalModel, Weights
from vitlab.models.registry import FeatureInfo, Preprocessing
from vitlab.tasks.task import Setting, Task, TaskOptions

_OPTIONAL = ("mix", "loss", "metrics")  # keys of an experiment that not every task reads


@functools.cache
def named_task(name: str) -> Task | None:
    """The task of a name; None if there is none. Others are not imported."""
    if name not in {info.name for info in pkgutil.iter_modules(vitlab.tasks.__path__)}:
        return None
    return getattr(importlib.import_module(f"vitlab.tasks.{name}"), "TASK", None)


def list_tasks() -> list[str]:
    """Names of the tasks, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(vitlab.tasks.__path__) if named_task(info.name))


def task_of(experiment: Experiment) -> tuple[Task, Any]:
    """The task of an experiment, and its options.

    Raises:
      ConfigError: There is no such task or option (with the near misses), a value is of another
        type or out of bounds, or the experiment sets something that means nothing to the task.
    """
    name, given = experiment.task.name, dict(experiment.task.fields)
    if is_reference(name):
        task = load_reference(name)
        if not isinstance(task, Task):
            raise ConfigError(f'task.name="{name}" must name a vitlab.tasks.Task, not a {type(task).__name__}')
    elif (task := named_task(name)) is None:
        raise ConfigError(f'unknown task "{name}": {near_misses(name, list_tasks())}')
    known = [field.name for field in dataclasses.fields(task.options)]
    for field in given:
        if field not in known:
            takes = near_misses(field, known) if known else "it has none"
            raise ConfigError(f'task "{name}" has no option "{field}": {takes}')
    _refuse_unread(task, experiment)
    with refusing(ValueError):
        return task, task.options(**{key: task.options.checked_field(key, value) for key, value in given.items()})


def _refuse_unread(task: Task, experiment: Experiment) -> None:
    for key in _OPTIONAL:
        if what := _unread(getattr(experiment, key), getattr(_default(), key), key, task.reads):
            raise ConfigError(f'{what} means nothing to task "{experiment.task.name}": leave {what} at its default')


def _unread(given: Any, default: Any, key: str, reads: Sequence[str]) -> str | None:
    """The first key that is not at its default and that none of `reads` names; None if there is
    none.
    """
    if given == default or key in reads:
        return None
    if not any(name.startswith(f"{key}.") for name in reads):
        return key
    parts = (_unread(getattr(given, x.name), getattr(default, x.name), f"{key}.{x.name}", reads) for x in dataclasses.fields(default))
    return next(filter(None, parts), None)


def names_of(task: Task, options: Any) -> tuple[str, ...]:
    """Names of the fields of a batch, the image first."""
    return tuple(dict.fromkeys(("image", *task.fields(options))))


def class_names_of(source: Source) -> tuple[str, ...]:
    """Names of the classes that a source's fields have, in their order; those of the source where
    no field names any.
    """
    named = (getattr(kind, "class_names", ()) for kind in fields_of(source).values())
    return tuple(next(filter(None, named), source.class_names))


@functools.cache
def _default() -> Experiment:
    return Experiment()


def setting_of(
    experiment: Experiment,
    options: TaskOptions,
    preprocessing: Preprocessing,
    *,
    num_classes: int,
    class_weights: np.ndarray | None = None,
) -> Setting:
    """The setting of the task's functions, where the data has so many classes."""
    return Setting(
        options=options,
        num_classes=experiment.model.num_classes or num_classes,
        channels=len(preprocessing.mean),
        preprocessing=preprocessing,
        experiment=experiment,
        class_weights=class_weights,
    )


def build(experiment: Experiment, *, num_classes: int, channels: int) -> tuple[FunctionalModel, Callable[[], Weights]]:
    """The trunk of an experiment with the head of its task, and a function for the initial weights.

    Args:
      experiment: Its model, task and seed count.
      num_classes: Of the data, where the config leaves it open.
      channels: Of the images, where the config leaves it open.

    Raises:
      ConfigError: There is no such model or task, or their fields cannot work together.
    """
    task, options = task_of(experiment)

    def head(feature_info: tuple[FeatureInfo, ...], preprocessing: Preprocessing, rngs: nnx.Rngs) -> nnx.Module:
        assert task.head is not None
        return task.head(setting_of(experiment, options, preprocessing, num_classes=num_classes), feature_info, rngs)

    config, sizes = experiment.model, {"num_classes": num_classes, "channels": channels, "seed": experiment.seed}
    model, create = functional.build(config, **sizes, head=None if task.head is None else head)
    return dataclasses.replace(model, forward=task.forward, inputs=task.inputs), create
