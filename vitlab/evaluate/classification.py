"""Top-1, top-5 and loss over exactly all images of a split."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from vitlab.config import ConfigError, Experiment
from vitlab.config.references import short_name
from vitlab.data import Batches, Source, eval_batches
from vitlab.functional import FunctionalModel, Weights
from vitlab.losses import PerImage, cross_entropy, per_image
from vitlab.parallel.mesh import part_of_process, replicated, shard_batch
from vitlab.runs.trained import eval_crop_fraction

# Names of the results that every evaluation may have.
RESULT_NAMES = ("images", "images_per_second", "logits", "loss", "top1", "top5")
EvalStep = Callable[[Weights, dict[str, Array]], dict[str, Array]]
_FIRST = ("top1", "top5", "loss")  # order of a result


def make_eval_step(model: FunctionalModel, mesh: Mesh, metrics: Sequence[str] = (), *, logits: bool = False) -> EvalStep:
    """Sums over the images of a batch that are really there: {"images", "top1", "top5": int32, "loss": float32}.

    There is no "top5" for a model of at most five classes, where it would always be all. Where the weights have an "average"
    beside them, its sums are "average_top1" and so on. With `logits` the raw weights' logits [b, classes] are there too.
    `metrics` are those of the experiment: each of the user's own adds the sum of its values under its name.

    An image counts when fewer than k logits are above its label's, or equal and of a lower class; NaN counts for nothing.
    """
    own_metrics = _own_metrics(metrics)

    def sums(weights: Weights, batch: dict[str, Array]) -> dict[str, Array]:
        scores, _ = model.apply(weights, batch["image"])
        mask, labels = batch["mask"], batch["label"]
        own = jnp.take_along_axis(scores, labels[:, None], axis=-1)
        lower = jnp.arange(scores.shape[-1])[None] < labels[:, None]
        rank = ((scores > own) | ((scores == own) & lower)).sum(-1)
        valid = mask & jnp.isfinite(own[:, 0])
        out = {
            "images": mask.sum(),
            "top1": (valid & (rank < 1)).sum(),
            "loss": jnp.where(mask, cross_entropy(scores, labels), 0).sum(),
            **{name: jnp.where(mask, metric(scores, labels), 0).sum() for name, metric in own_metrics.items()},
        }
        out |= {"top5": (valid & (rank < 5)).sum()} if scores.shape[-1] > 5 else {}
        return out | ({"logits": scores} if logits else {})

    def eval_step(weights: Weights, batch: dict[str, Array]) -> dict[str, Array]:
        out = sums(weights, batch)
        if "average" in weights:
            average = sums(weights["average"], batch)
            out |= {f"average_{name}": value for name, value in average.items() if name not in ("images", "logits")}
        return out

    compiled = jax.jit(eval_step, out_shardings=replicated(mesh))

    def in_mesh(weights: Weights, batch: dict[str, Array]) -> dict[str, Array]:
        with jax.set_mesh(mesh):  # kernels run by its devices' shares
            return compiled(weights, batch)

    return in_mesh


def _own_metrics(references: Sequence[str]) -> dict[str, PerImage]:
    """The user's own metrics by their names.

    Raises:
      ConfigError: One cannot be found, or has the name of another one.
    """
    metrics = {}
    for reference in references:
        name = short_name(reference)
        if name in metrics or name in RESULT_NAMES or name.startswith("average_"):
            raise ConfigError(f"metrics: {reference} has the name of another result, {name}; rename the function")
        metrics[name] = per_image("metrics", reference)
    return metrics


def evaluate(
    eval_step: EvalStep,
    weights: Weights,
    batches: Batches,
    *,
    mesh: Mesh,
    should_stop: Callable[[], bool] = lambda: False,
    see: Callable[[dict[str, np.ndarray], np.ndarray], None] | None = None,
) -> dict[str, float | int] | None:
    """Runs over all batches; results are fetched one batch late.

    Args:
      eval_step: From `make_eval_step`; with its logits, if there is `see`.
      weights: On the devices of `mesh`.
      batches: From `eval_batches`; closed at the end.
      mesh: Over which each batch is split.
      should_stop: Asked between batches.
      see: Called with each batch and its logits [b, classes], in order.

    Returns:
      {"top1", "top5" (shares; the latter of more than five classes), "loss" (mean, nats), "images", "images_per_second"}, or None when
      told to stop; of averaged weights "average_top1" and so on; and the mean of each metric of the user's own. The first batch,
      which may compile, does not count for the speed,
      unless it is the only one.
    """
    totals = {"images": 0.0, "top1": 0.0, "loss": 0.0}  # even of no image
    begin, before, pending = time.perf_counter(), 0.0, None
    with batches:
        for index, batch in enumerate(batches):
            if should_stop():
                return None
            sums = eval_step(weights, shard_batch(batch, mesh))
            if pending is not None:
                _add(totals, *pending, see)
            if index == 1:
                begin, before = time.perf_counter(), totals["images"]
            pending = sums, batch
        if pending is not None:
            _add(totals, *pending, see)
    count = totals.pop("images")
    speed = (count - before) / max(time.perf_counter() - begin, 1e-9)
    ordered = [name for name in dict.fromkeys((*_FIRST, *totals)) if name in totals]
    return {name: totals[name] / max(count, 1) for name in ordered} | {"images": int(count), "images_per_second": speed}


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

    How much of an image is kept is said by `vitlab.runs.trained.eval_crop_fraction`.
    """
    recipe, (part, num_parts) = model.preprocessing, part_of_process(mesh)
    return eval_batches(
        source,
        data=experiment.data,
        image_size=recipe.image_size,
        channels=channels,
        batch_size=batch_size,
        interpolation=recipe.interpolation,
        crop_fraction=eval_crop_fraction(experiment, recipe),
        process_index=part,
        process_count=num_parts,
        bad_images=bad_images,
    )


def _add(totals: dict[str, float], sums: dict[str, Any], batch: dict[str, np.ndarray], see: Callable[..., None] | None) -> None:
    sums = jax.device_get(sums)
    logits = sums.pop("logits", None)
    for name, value in sums.items():
        totals[name] = totals.get(name, 0.0) + float(value)
    if see is not None:
        see(batch, logits)
