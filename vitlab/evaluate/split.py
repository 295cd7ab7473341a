"""The metrics of a task over all images of a split, each counted once."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from vitlab.buckets import RunPath
from vitlab.config import Experiment
from vitlab.data import Batches, Source, eval_batches
from vitlab.functional import FunctionalModel, Weights
from vitlab.parallel.mesh import part_of_process, replicated, shard_batch
from vitlab.runs.trained import eval_fit
from vitlab.tasks import Evaluation

EvalStep = Callable[[Weights, dict[str, Array]], dict[str, Array]]
Prepare = Callable[[dict[str, Array]], dict[str, Array]]
AVERAGE = "average_"  # prefix of the results of the averaged weights


def make_eval_step(
    model: FunctionalModel, mesh: Mesh, evaluation: Evaluation, prepare: Prepare = lambda batch: batch, *, seen: bool = False
) -> EvalStep:
    """Builds the function that evaluates a batch: the task's measures (`vitlab.tasks.Evaluation`).

    Its results have "images", the number of images without padding rows. If the weights hold an
    "average", its measures are there too, with "average_" before their names. With `seen`, "seen"
    holds the raw weights' outputs that a report needs. They come from a program of their own, a
    second forward pass: outputs that are also results are rounded in another way, and a report
    would change the last digits of the metrics.
    """

    def measured(weights: Weights, batch: dict[str, Array]) -> dict[str, Array]:
        outputs, _ = model.run(weights, batch)
        out = evaluation.measure(outputs, batch)
        return out if "images" in out else {"images": batch["mask"].sum(), **out}

    def eval_step(weights: Weights, batch: dict[str, Array]) -> dict[str, Array]:
        batch = prepare(batch)
        out = measured(weights, batch)
        if evaluation.rows:
            out["mask"] = batch["mask"]
        if "average" in weights:
            average = measured(weights["average"], batch)
            out |= {f"{AVERAGE}{name}": value for name, value in average.items() if name != "images"}
        return out

    def seen_step(weights: Weights, batch: dict[str, Array]) -> Any:
        assert evaluation.seen is not None
        batch = prepare(batch)
        return evaluation.seen(model.run(weights, batch)[0], batch)

    compiled, compiled_seen = (jax.jit(step, out_shardings=replicated(mesh)) for step in (eval_step, seen_step))

    def in_mesh(weights: Weights, batch: dict[str, Array]) -> dict[str, Array]:
        with jax.set_mesh(mesh):  # kernels are partitioned over its devices
            out = compiled(weights, batch)
            return out | {"seen": compiled_seen(weights, batch)} if seen and evaluation.seen is not None else out

    return in_mesh


def evaluate(
    eval_step: EvalStep,
    weights: Weights,
    batches: Batches,
    evaluation: Evaluation,
    *,
    mesh: Mesh,
    should_stop: Callable[[], bool] = lambda: False,
    see: Callable[[dict[str, np.ndarray], Any], None] | None = None,
) -> dict[str, Any] | None:
    """Evaluates all batches; results are fetched one batch late, so that the device never waits.

    Args:
      eval_step: A step from `make_eval_step`; with `seen` if there is `see`.
      weights: Weights on the devices of `mesh`.
      batches: Batches from `eval_batches`; closed at the end.
      evaluation: The measures of the task.
      mesh: Devices over which each batch is split.
      should_stop: Called between batches; True ends the evaluation.
      see: Called in order with each batch and its "seen" result.

    Returns:
      The task's metrics, "images" and "images_per_second", or None when told to stop; metrics of
      averaged weights are "average_top1" and so on. The first batch, which may compile, does not
      count for the speed, unless it is the only one.
    """
    totals = _Totals(evaluation.rows)
    begin, before, pending = time.perf_counter(), 0, None
    with batches:
        for index, batch in enumerate(batches):
            if should_stop():
                return None
            measured = eval_step(weights, shard_batch(_on_device(batch), mesh))
            if pending is not None:
                totals.add(*pending, see)
            if index == 1:
                begin, before = time.perf_counter(), totals.images
            pending = measured, batch
        if pending is not None:
            totals.add(*pending, see)
    speed = (totals.images - before) / max(time.perf_counter() - begin, 1e-9)
    return totals.finished(evaluation) | {"images": totals.images, "images_per_second": speed}


def _on_device(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return batch | {"index": batch["index"].astype(np.int32)}  # devices have no int64


class _Totals:
    """Sums and per-image rows over the batches so far."""

    def __init__(self, rows: tuple[str, ...]):
        self.images = 0
        self._names = {*rows, *(f"{AVERAGE}{name}" for name in rows)}
        self._sums: dict[str, Any] = {}
        self._rows: dict[str, list[np.ndarray]] = {}

    def add(self, measured: dict[str, Array], batch: dict[str, np.ndarray], see: Callable[..., None] | None) -> None:
        found = jax.device_get(measured)
        seen, mask = found.pop("seen", None), found.pop("mask", None)
        self.images += int(found.pop("images"))
        for name, value in found.items():
            if name in self._names:
                self._rows.setdefault(name, []).append(np.asarray(value)[mask])
            else:
                self._sums[name] = self._sums.get(name, 0) + _exact(value)
        if see is not None:
            see(batch, seen)

    def finished(self, evaluation: Evaluation) -> dict[str, Any]:
        totals = {**self._sums, **{name: np.concatenate(rows) for name, rows in self._rows.items()}}
        own = {name: value for name, value in totals.items() if not name.startswith(AVERAGE)}
        average = {name.removeprefix(AVERAGE): value for name, value in totals.items() if name.startswith(AVERAGE)}
        out = evaluation.finish(own, self.images)
        return out | ({f"{AVERAGE}{name}": value for name, value in evaluation.finish(average, self.images).items()} if average else {})


def _exact(value: np.ndarray) -> np.ndarray:
    """The array as int64 or float64, so that sums over many batches are exact for integers."""
    return np.asarray(value).astype(np.float64 if np.issubdtype(np.asarray(value).dtype, np.floating) else np.int64)


def open_batches(
    model: FunctionalModel,
    source: Source,
    experiment: Experiment,
    *,
    channels: int,
    batch_size: int,
    mesh: Mesh,
    bad_images: RunPath | None = None,
) -> Batches:
    """The batches of a split, prepared as the model's evaluation needs them; this process's rows.

    `bad_images` is the file that lists images that cannot be decoded.
    `vitlab.runs.trained.eval_fit` tells how an image is brought to its size.
    """
    recipe, (part, num_parts) = model.preprocessing, part_of_process(mesh)
    fit, crop_fraction = eval_fit(experiment, recipe)
    return eval_batches(
        source,
        data=experiment.data,
        image_size=recipe.image_size,
        channels=channels,
        batch_size=batch_size,
        interpolation=recipe.interpolation,
        crop_fraction=crop_fraction,
        fit=fit,
        process_index=part,
        process_count=num_parts,
        bad_images=bad_images,
    )
