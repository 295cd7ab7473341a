"""The teacher of a distillation: the model of another run of the same task, with the same classes
and pixels.
"""

from collections.abc import Sequence

from jax.sharding import Mesh

from vitlab.buckets import run_path
from vitlab.config import ConfigError, Experiment
from vitlab.data.channels import model_channels
from vitlab.functional import FunctionalModel
from vitlab.runs.trained import Trained, from_run, model_of_run
from vitlab.tasks import names_of, task_of


def open_teacher(
    experiment: Experiment, student: FunctionalModel, *, channels: int, num_classes: int, class_names: Sequence[str] | None
) -> FunctionalModel | None:
    """The function of the teacher, without its weights; None if the experiment names none.

    Args:
      experiment: The student's experiment.
      student: The student's model.
      channels: Channels of the student's images.
      num_classes: Number of classes of the student's data.
      class_names: Class names of the student's data, in their order; None: not known, so not
        compared.

    Raises:
      ConfigError: There is no such run, or it has other classes, image channels or another image
        size; one line.
    """
    workdir = experiment.loss.distillation.teacher
    if not workdir:
        return None
    try:
        teacher, own, data = model_of_run(run_path(workdir))
    except ConfigError as error:
        raise ConfigError(f"loss.distillation.teacher: {error}") from error
    if own.task.name != experiment.task.name or names_of(*task_of(own)) != names_of(*task_of(experiment)):
        raise ConfigError(f"loss.distillation.teacher={workdir} was trained for {_said(own)}, the student for {_said(experiment)}")
    logits = own.model.num_classes or len(data.class_names), experiment.model.num_classes or num_classes
    for what, (theirs, ours) in {
        "classes": logits,
        "image channels": (model_channels(own.model, data.channels), channels),
        "as largest sample": (teacher.preprocessing.max_value, student.preprocessing.max_value),
        "pixels (height, width)": (teacher.preprocessing.image_size, student.preprocessing.image_size),
    }.items():
        if theirs != ours:
            raise ConfigError(f"loss.distillation.teacher={workdir} has {theirs} {what}, the student {ours}")
    if class_names is not None and data.class_names != tuple(class_names):
        raise ConfigError(f"loss.distillation.teacher={workdir} knows other classes: {_first_difference(data.class_names, class_names)}")
    return teacher


def _said(experiment: Experiment) -> str:
    return f"task={experiment.task.name} ({', '.join(names_of(*task_of(experiment)))})"


def restore_teacher(experiment: Experiment, mesh: Mesh) -> Trained | None:
    """The teacher with its weights on the mesh; None if the experiment names none.

    Its checkpoint is that of `loss.distillation.step`, or the newest one that is not damaged;
    averaged weights are taken if the teacher's run averages. A resumed run is bit-equal only if the
    step is given or the teacher's run has not gone on meanwhile. All processes make this call.

    Raises:
      ConfigError: The teacher's run has no checkpoint, or none of that step, or its checkpoints do
        not fit or are damaged.
    """
    distillation = experiment.loss.distillation
    if not distillation.teacher:
        return None
    try:
        return from_run(run_path(distillation.teacher), mesh, step=distillation.step)
    except ConfigError as error:
        raise ConfigError(f"loss.distillation.teacher: {error}") from error


def _first_difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if len(theirs) != len(ours):
        return f"{len(theirs)} of them, the data has {len(ours)}"
    index = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"number {index} is {theirs[index]!r}, of the data {ours[index]!r}"
