"""A trained run as the start of another run, whose classes and image size may differ."""

import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx

from vitlab.buckets import RunPath, run_path
from vitlab.config import ConfigError
from vitlab.functional import FunctionalModel, Weights, functional
from vitlab.parallel.mesh import make_mesh
from vitlab.runs.trained import from_run
from vitlab.weights.fit import fit, to_torch_layout
from vitlab.weights.load import parameters

logger = logging.getLogger(__name__)

_WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".npz", ".index.json")
_HEADS = ("head", "aux_head", "task_head")  # first parts of the names of parameters that depend on the classes or the task


def run_of(source: str) -> tuple[RunPath, int | None] | None:
    """The run folder and the step that "runs/a" or "runs/a@3000" names.

    None if the text names no folder, or the folder of a checkpoint of others. In a bucket
    a run is whatever is not a file of weights by its name.
    """
    if source.startswith(("gs://", "s3://")):
        path, _, step = source.rpartition("@")
        where, number = (path, int(step)) if path and step.isdecimal() else (source, None)
        return None if where.endswith(_WEIGHTS) else (run_path(where), number)
    if os.path.isdir(source):
        return None if _has_weights(pathlib.Path(source)) else (pathlib.Path(source), None)
    path, _, step = source.rpartition("@")
    return (pathlib.Path(path), int(step)) if step.isdecimal() and os.path.isdir(path) else None


def _has_weights(path: pathlib.Path) -> bool:
    """Whether a folder is a checkpoint of others, in files, and not a run.

    A run has its metrics.jsonl from its first step on.
    """
    return not (path / "metrics.jsonl").exists() and any(p.name.endswith((".safetensors", ".bin", ".index.json")) for p in path.iterdir())


def start_from_run(model: FunctionalModel, weights: Weights, workdir: RunPath, step: int | None) -> Weights:
    """The weights of a run, fitted to a model; heads of other shapes keep their initial values.

    The averaged weights are taken if the run keeps them. Position embeddings and bias tables are
    resampled to the model's grid. The log names the tensors that are not simply copied.

    Args:
      model: The model that training begins with.
      weights: Its initial weights.
      workdir: The run folder.
      step: Step of the checkpoint; None for the newest that is not damaged.

    Raises:
      ConfigError: The path is no run folder or has no such checkpoint, or tensors outside the heads
        do not fit.
    """
    try:
        trained = from_run(workdir, make_mesh(), step=step)
    except ConfigError as error:
        raise ConfigError(f"model.weights: {error}") from error
    source, target = (_module(fn, tree) for fn, tree in ((trained.model, trained.weights), (model, weights)))
    found, wanted = parameters(source), parameters(target)
    resampled, anew, refused = [], [], []
    for name, variable in wanted.items():
        try:
            value, rule = _fitted(name, found.get(name), variable)
        except ValueError as error:
            if name.startswith(_HEADS):
                anew.append(name)
            else:
                refused.append(f"{name}: {error}")
            continue
        variable.set_value(value)
        resampled += [f"{name} ({rule})"] * bool(rule)
    refused += [f"{name}: the model has none" for name in found if name not in wanted and not name.startswith(_HEADS)]
    if refused:
        raise ConfigError(f"model.weights={workdir} does not fit the model: {len(refused)} tensors, first {'; '.join(refused[:3])}")
    _report(workdir, trained.origin, len(wanted), resampled, anew)
    return functional(target)[1]


def _fitted(name: str, own: nnx.Variable | None, wanted: nnx.Variable) -> tuple[jax.Array, str]:
    """The value for another model, and the rule by which it was resampled, "" if it was not.

    Raises:
      ValueError: The value cannot fit; the message is the reason.
    """
    if own is None:
        raise ValueError("the run has none")
    value = np.asarray(own[...])
    grid = value.shape[1:3] if name.endswith("pos_map") else own.get_metadata().get("grid")
    return fit(name, to_torch_layout(name, value), wanted.shape, grid=wanted.get_metadata().get("grid"), declared=grid)


def _module(model: FunctionalModel, weights: Weights) -> Any:
    return nnx.merge(model.graphdef, weights["params"], weights["model_state"], model.constants, copy=True)


def _report(workdir: RunPath, origin: dict[str, str | int], count: int, resampled: list[str], anew: list[str]) -> None:
    averaged = ", averaged" if origin.get("weights") == "averaged" else ""
    parts = [f"{count - len(anew) - len(resampled)} of {count} tensors are copied"]
    parts += [f"resampled: {', '.join(resampled)}"] if resampled else []
    parts += [f"begins anew: {', '.join(anew)}"] if anew else []
    logger.warning("training begins with %s (step %s%s): %s", workdir, origin["step"], averaged, "; ".join(parts))
