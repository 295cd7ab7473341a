"""The training step of an experiment, compiled for devices that need not be here."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from pallas_kernels.dispatch import UnsupportedError
from vitlab.analysis.counts import macs_in
from vitlab.config import ConfigError, Experiment
from vitlab.data import open_source
from vitlab.data.channels import model_channels
from vitlab.data.fields import CLASSIFICATION, Kind, fields_of
from vitlab.data.splits import split_range
from vitlab.functional import check_tensor
from vitlab.parallel import mesh as meshes
from vitlab.plan.topology import Topology
from vitlab.plugins import raised_in_plugin
from vitlab.tasks import build, class_names_of, names_of, task_of
from vitlab.train.groups import as_trained
from vitlab.train.periods import Periods
from vitlab.train.setup import abstract_batch, make_step
from vitlab.train.step import compile_step, trace_step
from vitlab.train.teacher import open_teacher

# Number of training images and of classes of datasets that recipes name and that may not be here.
KNOWN = {"imagenet2012": (1_281_167, 1000), "cifar10": (50_000, 10), "cifar10_jpeg": (50_000, 10), "cifar100": (50_000, 100)}
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED.* HLO temporaries \(([\d.]+)([KMGT])\)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Facts about the training split that a plan needs."""

    examples: int
    num_classes: int
    channels: int
    fields: Mapping[str, Kind] = dataclasses.field(default_factory=lambda: CLASSIFICATION)

    @classmethod
    def of(cls, experiment: Experiment) -> "Data":
        """The facts of a known dataset without opening it, or else from its files.

        Raises:
          ConfigError: The data is neither known nor here.
        """
        config = experiment.data
        name = (config.name or "").split(":")[0]
        if config.source == "tfds" and name in KNOWN and not config.more_sources and experiment.task.name == "classification":
            examples, num_classes = KNOWN[name]
            part = split_range(config.train_split, examples)
            return cls(examples=part.stop - part.start, num_classes=num_classes, channels=3)
        source = open_source(config, train=True, fields=names_of(*task_of(experiment)))
        return cls(examples=len(source), num_classes=len(class_names_of(source)), channels=source.channels, fields=dict(fields_of(source)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled step, or the facts about a step that the compiler found too large."""

    state: Any  # shapes, dtypes and sharding of the training state
    batch: Any
    periods: Periods
    macs: int  # multiply-accumulates of the forward and the backward pass on one image
    step_macs: int = 0  # multiply-accumulates of the step over all devices, with recomputation
    teacher: Any  # shapes, dtypes and sharding of the teacher's weights; None without a teacher
    teacher_macs: int  # multiply-accumulates of the teacher's forward pass on one image
    compiled: jax.stages.Compiled | None
    compile_seconds: float = 0.0
    temporary_bytes: int | None = None  # bytes per device, if the step was too large


def compile_program(experiment: Experiment, data: Data, topology: Topology) -> Program:
    """Builds and compiles the step as `vitlab.train` does.

    Raises:
      ConfigError: The experiment cannot be trained, or not on this topology; one line.
    """
    mesh = meshes.make_mesh(fsdp=experiment.mesh.fsdp, tensor=experiment.mesh.tensor, devices=topology.devices())
    meshes.check_divides("batch_size", experiment.batch_size // experiment.accumulation, mesh)
    channels = model_channels(experiment.model, data.channels)
    model, _ = build(experiment, num_classes=data.num_classes, channels=channels)
    check_tensor(experiment.mesh.tensor, experiment.model, model)
    periods = Periods.of(experiment, examples_per_epoch=data.examples)
    teacher = open_teacher(experiment, model, channels=channels, num_classes=data.num_classes, class_names=None)
    train_step, create_state = make_step(experiment, model, periods, num_classes=data.num_classes, teacher=teacher)
    state = meshes.sharded_shapes(jax.eval_shape(create_state, model.shapes), mesh, model.tensor_split)
    batch = abstract_batch(experiment, model, channels, data.fields)
    parts = {
        "state": state,
        "batch": jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.batch_sharding(mesh)), batch),
        "periods": periods,
        "macs": as_trained(model, experiment.optimizer).count_training_macs(),
        "teacher": teacher and meshes.sharded_shapes(teacher.shapes, mesh, teacher.tensor_split),
        "teacher_macs": teacher.count_macs() if teacher else 0,
    }
    try:
        with _uncached() if topology.is_exact else contextlib.nullcontext():
            traced = trace_step(train_step, state, batch, mesh, teacher=teacher)
            compiled, seconds = compile_step(traced)
    except (ValueError, RuntimeError, UnsupportedError) as error:  # JAX's own errors are RuntimeErrors
        if raised_in_plugin(error):
            raise
        if (temporary := out_of_memory(str(error))) is None:
            raise ConfigError(f"{experiment.model.name} cannot be trained on {topology.name}: {str(error).splitlines()[0]}") from error
        return Program(**parts, compiled=None, temporary_bytes=temporary)
    return Program(**parts, step_macs=macs_in(traced.jaxpr.jaxpr), compiled=compiled, compile_seconds=seconds)


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """Keeps programs that are compiled inside out of the cache.

    Programs for absent hardware could not be read back from it.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def out_of_memory(message: str) -> int | None:
    """Temporary bytes per device, from the error of XLA's TPU compiler; None for other errors."""
    match = _OUT_OF_MEMORY.search(message)
    return match and round(float(match[1]) * 1024 ** (1 + "KMGT".index(match[2])))
