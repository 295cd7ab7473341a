"""A task's metrics over exactly all images of a split."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from vitlab.config import Experiment
from vitlab.data import Batches, Source, eval_batches
from vitlab.functional import FunctionalModel, Weights
from vitlab.parallel.mesh import part_of_process, replicated, shard_batch
from vitlab.runs.trained import eval_fit
from vitlab.tasks import Evaluation

EvalStep = Callable[[Weights, dict[str, Array]], dict[str, Array]]
Prepare = Callable[[dict[str, Array]], dict[str, Array]]
AVERAGE = "average_"  # begins the names of results of the averaged weights


def make_eval_step(
    model: FunctionalModel, mesh: Mesh, evaluation: Evaluation, prepare: Prepare = lambda batch: batch, *, seen: bool = False
) -> EvalStep:
    """What the task measures of a batch, see `vitlab.tasks.Evaluation`, and "images", the number that is really there.

    Where the weights have an "average" beside them, what is measured of it has "average_" before its names. With `seen` what a
    report is given of the raw weights' outputs is there too, as "seen".
    """

    def measured(weights: Weights, batch: dict[str, Array]) -> tuple[dict[str, Array], Any]:
        outputs, _ = model.run(weights, batch)
        out = evaluation.measure(outputs, batch)
        return out if "images" in out else {"images": batch["mask"].sum(), **out}, outputs

    def eval_step(weights: Weights, batch: dict[str, Array]) -> dict[str, Array]:
        batch = prepare(batch)
        out, outputs = measured(weights, batch)
        if evaluation.rows:
            out["mask"] = batch["mask"]
        if seen and evaluation.seen is not None:
            out["seen"] = evaluation.seen(outputs)
        if "average" in weights:
            average, _ = measured(weights["average"], batch)
            out |= {f"{AVERAGE}{name}": value for name, value in average.items() if name != "images"}
        return out

    compiled = jax.jit(eval_step, out_shardings=replicated(mesh))

    def in_mesh(weights: Weights, batch: dict[str, Array]) -> dict[str, Array]:
        with jax.set_mesh(mesh):  # kernels run by its devices' shares
            return compiled(weights, batch)

    return in_mesh


def evaluate(
    eval_step: EvalStep,
    weights: Weights,
    batches: Batches,
    evaluation: Evaluation,
    *,
    mesh: Mesh,
    should_stop: Callable[[], bool] = lambda: False,
    see: Callable[[dict[str, np.ndarray], np.ndarray], None] | None = None,
) -> dict[str, Any] | None:
    """Runs over all batches; results are fetched one batch late.

    Args:
      eval_step: From `make_eval_step`; with what is seen, if there is `see`.
      weights: On the devices of `mesh`.
      batches: From `eval_batches`; closed at the end.
      evaluation: The task's.
      mesh: Over which each batch is split.
      should_stop: Asked between batches.
      see: Called with each batch and what a report is given of it, in order.

    Returns:
      The task's metrics, "images" and "images_per_second", or None when told to stop; of averaged weights "average_top1" and so on.
      The first batch, which may compile, does not count for the speed, unless it is the only one.
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
    """Sums and rows of the batches so far."""

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
    """The array in a type whose sums of many batches are exact for integers, and as good as can be for others."""
    return np.asarray(value).astype(np.float64 if np.issubdtype(np.asarray(value).dtype, np.floating) else np.int64)


def open_batches(
    model: FunctionalModel,
    source: Source,
    experiment: Experiment,
    *,
    channels: int,
    batch_size: int,
    mesh: Mesh,
    bad_images: pathlib.Path | None = None,
) -> Batches:
    """The images of a split as the model's evaluation wants them; of each batch, the rows of this process on the mesh.

    `bad_images` is the file that lists those left out.

    How an image is brought to its size is said by `vitlab.runs.trained.eval_fit`.
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
