"""Classification: one label an image, by the model's own head."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vitlab.config import ConfigError
from vitlab.config.references import short_name
from vitlab.device.erase import erase
from vitlab.device.mix import mix
from vitlab.functional import Trunk
from vitlab.losses import PerImage, cross_entropy, distilled_loss, label_loss, per_image, self_distillation, soft_targets
from vitlab.models.training import Training
from vitlab.tasks.task import ERASE, MIX, Batch, Count, Evaluation, Setting, Task

# Names of the results that every evaluation may have.
RESULT_NAMES = ("images", "images_per_second", "logits", "loss", "top1", "top5")
_FIRST = ("top1", "top5", "loss")  # order of a result
Heads = tuple[Float[Array, "b classes"], ...]


def forward(trunk: Trunk, head: None, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Heads | Training:
    """Logits of each of the model's own heads: two with DeiT's distillation token, else one; in
    training with what else the authors' loss is made of.
    """
    del head
    if train:
        return trunk.training_outputs(batch["image"], rngs=rngs)
    return trunk.head_logits(batch["image"], train=train, rngs=rngs)


def prepare(batch: Batch, rng: Array | None, setting: Setting) -> Batch:
    """Inputs and targets of the model: images erased and mixed, targets smoothed and mixed; as it
    is in an evaluation.

    Args:
      batch: From the host.
      rng: Key of the step, fold_in(key(seed), step); None in an evaluation.
      setting: Its erasing, mixing and label smoothing count.

    Returns:
      {"image": [b, h, w, c] in [0, 255], uint8 or float32, the noise unbounded; "target": [b,
      classes]}.
    """
    if rng is None:
        return batch
    experiment = setting.experiment
    targets = soft_targets(batch["label"], setting.num_classes, label_smoothing=experiment.loss.label_smoothing)
    images = erase(batch["image"], jax.random.fold_in(rng, ERASE), experiment.augment.erase_prob, setting.preprocessing)
    images, targets = mix(images, targets, jax.random.fold_in(rng, MIX), experiment.mix)
    return {"image": images, "target": targets}


def loss(outputs: Heads | Training, batch: Batch, setting: Setting) -> dict[str, Array]:
    """The loss of the targets, and of a teacher's logits where the batch has them; of a model's
    exits, and its own terms.
    """
    config = setting.experiment.loss
    if "teacher" in batch:
        value = distilled_loss(heads_of(outputs), batch["target"], batch["teacher"], config, setting.class_weights)
    else:
        value = label_loss(mean_of(outputs), batch["target"], config.kind, setting.class_weights)
    if isinstance(outputs, Training):
        for early in outputs.exits:
            value += early.weight * label_loss(early.logits, batch["target"], config.kind, setting.class_weights)
            if early.distillation:
                value += early.distillation * self_distillation(early.logits, mean_of(outputs))
        for term in outputs.terms.values():
            value += term
    return {"loss": value}


def heads_of(outputs: Heads | Training) -> Heads:
    """The logits of each head."""
    return outputs.heads if isinstance(outputs, Training) else outputs


def mean_of(outputs: Heads | Training) -> Float[Array, "b classes"]:
    """The mean of the heads' logits, which is the model's answer."""
    heads = heads_of(outputs)
    return heads[0] if len(heads) == 1 else functools.reduce(operator.add, heads) / len(heads)


def _correct(outputs: Heads | Training, batch: Batch, _: Setting) -> Array:
    """Images whose likeliest class is that of the larger share."""
    return (mean_of(outputs).argmax(-1) == batch["target"].argmax(-1)).sum()


def evaluation(setting: Setting) -> Evaluation:
    """Sums: {"images", "top1", "top5": int32, "loss": float32}, and of each metric of the user's
    own under its name.

    There is no "top5" for a model of at most five classes, where it would always be all. An image
    counts when fewer than k logits are above its label's, or equal and of a lower class; NaN counts
    for nothing.
    """
    own_metrics = _own_metrics(setting.experiment.metrics)

    def measure(outputs: Heads, batch: Batch) -> dict[str, Array]:
        scores = mean_of(outputs)
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
        return out | ({"top5": (valid & (rank < 5)).sum()} if scores.shape[-1] > 5 else {})

    return Evaluation(measure=measure, finish=finish, seen=lambda outputs, batch: mean_of(outputs))


def finish(totals: Mapping[str, Any], images: int) -> dict[str, float]:
    """{"top1", "top5" (shares; the latter of more than five classes), "loss" (mean, nats)} and the
    means of the user's own metrics.
    """
    totals = {"top1": 0.0, "loss": 0.0, **totals}  # even of no image
    ordered = [name for name in dict.fromkeys((*_FIRST, *totals)) if name in totals]
    return {name: float(totals[name]) / max(images, 1) for name in ordered}


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


def describe(result: Mapping[str, Any]) -> str:
    """An evaluation as text."""
    top5 = f"  top-5 {result['top5']:.2%}" if "top5" in result else ""
    text = f"top-1 {result['top1']:.2%}{top5}  loss {result['loss']:.4f}  on {result['images']:.0f} images"
    text += "".join(
        f"  {name} {value:.4g}" for name, value in result.items() if name not in RESULT_NAMES and not name.startswith("average_")
    )
    if "average_top1" in result:
        text += f"  averaged: top-1 {result['average_top1']:.2%}  loss {result['average_loss']:.4f}"
    return text


TASK = Task(
    fields=lambda options: ("label",),
    forward=forward,
    prepare=prepare,
    loss=loss,
    counts={"correct": Count("accuracy", _correct)},
    evaluation=evaluation,
    best=("top1", "max"),
    fit="crop",
    line=describe,
    reads=("mix", "loss", "metrics"),
)
