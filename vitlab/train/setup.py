"""The parts of a run, built from its experiment.

Everything that can be refused is refused here, before the run folder is made.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from pallas_kernels.dispatch import UnsupportedError
from vitlab.analysis.devices import peak_flops
from vitlab.buckets import RunPath
from vitlab.config import ConfigError, Experiment, refusing
from vitlab.data import Batches, Source, make_policy, open_source, train_batches
from vitlab.data.channels import model_channels
from vitlab.data.classes import different_classes
from vitlab.data.decode import decode
from vitlab.data.fields import Kind, fields_of, with_images
from vitlab.data.labels import labels_of
from vitlab.evaluate.split import EvalStep, evaluate, make_eval_step, open_batches
from vitlab.functional import FunctionalModel, Weights, check_tensor, freeze, functional
from vitlab.losses import class_weights
from vitlab.models.catalogue import address_of
from vitlab.parallel import mesh as meshes
from vitlab.runs import folder
from vitlab.runs.start import run_of, start_from_run
from vitlab.runs.trained import Trained
from vitlab.tasks import Evaluation, build, class_names_of, names_of, setting_of, task_of
from vitlab.train.groups import as_trained, groups_of
from vitlab.train.optimizer import make_optimizer
from vitlab.train.periods import Periods
from vitlab.train.schedule import make_schedule
from vitlab.train.state import State, make_state
from vitlab.train.step import TrainStep, make_train_step, trace_step
from vitlab.train.teacher import open_teacher, restore_teacher
from vitlab.weights.load import WeightsMismatchError, load_weights

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """The parts of a run; nothing in it changes."""

    experiment: Experiment
    mesh: Mesh
    train_source: Source
    eval_source: Source
    model: FunctionalModel
    periods: Periods
    train_step: jax.stages.Traced  # not yet compiled
    evaluation: Evaluation  # the task's measures
    eval_step: EvalStep
    create_weights: Callable[[], Weights]  # makes the initial weights: random, or from a checkpoint
    create_state: Callable[[Weights], State]  # makes the state before the first step
    abstract_state: Any  # shapes, dtypes and sharding of the state
    teacher: FunctionalModel | None  # the teacher without its weights; None: no distillation
    channels: int
    bad_images: RunPath | None  # file that lists the images that cannot be decoded; None: no list

    def initial_state(self) -> State:
        """The state before the first step, on all devices."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_state)
        weights = meshes.place(self.create_weights(), self.mesh, self.model.tensor_split)
        return jax.jit(self.create_state, out_shardings=shardings)(weights)

    def listing_bad_images_in(self, folder: RunPath) -> "Setup":
        """The setup with a file that lists the images that cannot be decoded, one per process."""
        process = jax.process_index()
        return dataclasses.replace(self, bad_images=folder / (f"bad_images.{process}.jsonl" if process else "bad_images.jsonl"))

    def peak_speed(self) -> float | None:
        """Upper bound of the speed in images/s, if the devices multiplied all the time.

        The products are those of forward and backward pass, and of a teacher's forward pass. None
        if no peak is known.
        """
        peak = peak_flops(self.mesh.devices.flat[0].device_kind)
        if peak is None:
            return None
        trainee = as_trained(self.model, self.experiment.optimizer)
        macs = trainee.count_training_macs() + (self.teacher.count_macs() if self.teacher else 0)
        return peak * self.mesh.size / (2 * macs)

    def restore_teacher(self) -> Trained | None:
        """The teacher with its weights on all devices, the step's third argument; None without one.

        Raises:
          ConfigError: The teacher's run has no checkpoint, or its checkpoints do not fit or are
            damaged.
        """
        return restore_teacher(self.experiment, self.mesh)

    def open_train_batches(self, start_step: int) -> Batches:
        """The endless training batches from a step on, with the rows of this process."""
        experiment, (part, num_parts) = self.experiment, meshes.part_of_process(self.mesh)
        return train_batches(
            self.train_source,
            augment=experiment.augment,
            data=experiment.data,
            image_size=self.model.preprocessing.image_size,
            channels=self.channels,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            start_step=start_step,
            process_index=part,
            process_count=num_parts,
            bad_images=self.bad_images,
        )

    def evaluate(self, state: State, should_stop: Callable[[], bool]) -> dict[str, float | int] | None:
        """Evaluates the state's weights, and their average, on the evaluation split.

        Returns:
          The task's metrics, or None when told to stop.
        """
        size = self.experiment.eval_batch_size or self.experiment.batch_size
        options = {"channels": self.channels, "batch_size": size, "mesh": self.mesh, "bad_images": self.bad_images}
        batches = open_batches(self.model, self.eval_source, self.experiment, **options)
        weights = {k: state[k] for k in ("params", "model_state", "average") if k in state}
        return evaluate(self.eval_step, weights, batches, self.evaluation, mesh=self.mesh, should_stop=should_stop)


def make_step(
    experiment: Experiment,
    model: FunctionalModel,
    periods: Periods,
    *,
    num_classes: int,
    teacher: FunctionalModel | None = None,
    counts: np.ndarray | None = None,
) -> tuple[TrainStep, Callable[[Weights], State]]:
    """The step of an experiment, and a function for the state before the first step.

    Args:
      experiment: What to train.
      model: The model.
      periods: Durations of the run.
      num_classes: Number of classes of the data.
      teacher: The teacher of a distillation, or None.
      counts: Training images of each class, int [classes of the model], if the loss is weighted by
        them.

    Raises:
      ConfigError: The optimizer's groups do not fit the parameters.
    """
    schedule = make_schedule(experiment.optimizer, periods)
    groups = groups_of(model.shapes["params"], model.places, experiment.optimizer)
    trainee = freeze(model, groups.trained)
    optimizer: optax.GradientTransformation = make_optimizer(experiment.optimizer, schedule, groups)
    num_classes = experiment.model.num_classes or num_classes

    def create_state(weights: Weights) -> State:
        return make_state(trainee, weights, optimizer, experiment)

    kind = experiment.loss.class_weights
    weights = None if counts is None or kind == "none" else class_weights(kind, counts)
    options = {"experiment": experiment, "num_classes": num_classes, "log_every": periods.log, "teacher": teacher}
    return make_train_step(trainee, optimizer, schedule, class_weights=weights, **options), create_state


def _class_counts(experiment: Experiment, source: Source) -> np.ndarray | None:
    """Training images of each class of the model; None if the loss does not need them."""
    if experiment.loss.class_weights == "none":
        return None
    labels = labels_of(source, f'loss.class_weights="{experiment.loss.class_weights}"')
    return np.bincount(labels, minlength=experiment.model.num_classes or len(source.class_names))


def load_start(model: FunctionalModel, weights: Weights, source: str) -> Weights:
    """The weights of a run or of a checkpoint of others.

    A head for other classes keeps its initial values.

    Args:
      model: The model that training begins with.
      weights: Its initial weights.
      source: A run folder, "runs/a", or one of its steps, "runs/a@3000"; or a file or address for
        `load_weights`.

    Raises:
      ConfigError: The source cannot be read, or tensors outside the heads do not fit.
    """
    if run := run_of(source):
        return start_from_run(model, weights, *run)
    module = nnx.merge(model.graphdef, weights["params"], weights["model_state"], model.constants, copy=True)
    try:
        report = load_weights(module, source, head="fit")
    except WeightsMismatchError as error:
        refused = error.report.misfits
        raise ConfigError(
            f"model.weights={source} does not fit the model: {len(refused)} tensors, first {'; '.join(refused[:3])}"
        ) from error
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"model.weights: {error}") from error
    if anew := (*report.new_head, *report.new_plugin):
        logger.warning("begins anew, since the checkpoint has none that fits: %s", "; ".join(anew))
    return functional(module)[1]


def _check_channels_of_run(weights: str | None, channels: int) -> None:
    """Refuses a run with other image channels as the start, before weights are compared."""
    if weights and (run := run_of(weights)):
        own, data = folder.read(run[0])
        theirs = model_channels(own.model, data.channels)
        if theirs != channels:
            raise ConfigError(f"model.weights={weights} takes {theirs} channels, the model {channels}: set model.in_channels={theirs}")


def _check_samples(source: Source, experiment: Experiment) -> None:
    """Refuses images of other samples than bytes of which the config does not say the range."""
    image = fields_of(source)["image"]
    dtype = getattr(image, "dtype", "uint8")
    if dtype != "uint8" and experiment.model.max_value is None:
        value = "65535 for all 16 bits" if dtype == "uint16" else "1 to leave them as they are"
        raise ConfigError(
            f"the images are {dtype}: set model.max_value, the sample value that counts as 1 ({value}), and model.mean, model.std"
        )


def abstract_batch(
    experiment: Experiment, model: FunctionalModel, channels: int, fields: Mapping[str, Kind]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a training batch with these fields."""
    kinds, size = with_images(fields, channels, decode), model.preprocessing.image_size
    rows = {name: kind.empty(1, size) for name, kind in kinds.items()}
    return {name: jax.ShapeDtypeStruct((experiment.batch_size, *row.shape[1:]), row.dtype) for name, row in rows.items()}


def set_up(experiment: Experiment, bad_images: RunPath | None = None, *, begins: bool = True) -> Setup:
    """Opens the data and traces the step; computes nothing.

    Args:
      experiment: What to train.
      bad_images: File that will list the images that cannot be decoded.
      begins: Whether the run begins here. The weights that a resumed run began with are no longer
        needed, so they are not read and may be gone.

    Raises:
      ConfigError: The experiment cannot be run here; one line.
    """
    task, options = task_of(experiment)
    mesh = meshes.make_mesh(fsdp=experiment.mesh.fsdp, tensor=experiment.mesh.tensor)
    meshes.check_divides("batch_size", experiment.batch_size // experiment.accumulation, mesh)
    meshes.check_divides("eval_batch_size", experiment.eval_batch_size or experiment.batch_size, mesh)
    train_source, eval_source = (open_source(experiment.data, train=train, fields=names_of(task, options)) for train in (True, False))
    class_names, eval_names = (class_names_of(source) for source in (train_source, eval_source))
    if class_names != eval_names:
        difference = different_classes(class_names, eval_names, "the training split", "the evaluation split")
        raise ConfigError(f"the training and the evaluation split have different classes: {difference}")
    channels = model_channels(experiment.model, train_source.channels)
    if begins:
        _check_channels_of_run(experiment.model.weights, channels)
    _check_samples(train_source, experiment)
    if experiment.augment.policy is not None:
        make_policy(experiment.augment.policy)  # raises if the policy is malformed
    model, create_weights = build(experiment, num_classes=len(class_names), channels=channels)
    check_tensor(experiment.mesh.tensor, experiment.model, model)
    periods = Periods.of(experiment, examples_per_epoch=len(train_source))
    teacher = open_teacher(experiment, model, channels=channels, num_classes=len(class_names), class_names=class_names)
    counts = _class_counts(experiment, train_source)
    train_step, create_state = make_step(experiment, model, periods, num_classes=len(class_names), teacher=teacher, counts=counts)
    state = meshes.sharded_shapes(jax.eval_shape(create_state, model.shapes), mesh, model.tensor_split)
    with refusing(ValueError, RuntimeError, UnsupportedError, prefix=f"{experiment.model.name} cannot be trained so: "):
        traced = trace_step(train_step, state, abstract_batch(experiment, model, channels, fields_of(train_source)), mesh, teacher=teacher)
    setting = setting_of(experiment, options, model.preprocessing, num_classes=len(class_names))
    evaluation = task.evaluation(setting)
    if experiment.model.weights:
        with refusing(ValueError, prefix="model.weights: "):
            source, random_weights = address_of(experiment.model.name, experiment.model.weights), create_weights
        create_weights = functools.cache(lambda: load_start(model, random_weights(), source))
        if begins:
            create_weights()
    return Setup(
        experiment=experiment,
        mesh=mesh,
        train_source=train_source,
        eval_source=eval_source,
        model=model,
        periods=periods,
        train_step=traced,
        evaluation=evaluation,
        eval_step=make_eval_step(model, mesh, evaluation, lambda batch: task.prepare(batch, None, setting)),
        create_weights=create_weights,
        create_state=create_state,
        abstract_state=state,
        teacher=teacher,
        channels=channels,
        bad_images=bad_images,
    )
