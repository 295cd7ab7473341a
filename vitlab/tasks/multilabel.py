"""Multi-label classification: any number of classes an image, by the model's own head."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.data.fields import Labels
from vitlab.functional import Trunk
from vitlab.metrics.ranking import mean_average_precision
from vitlab.tasks.dense import exact_mean
from vitlab.tasks.task import Batch, Evaluation, Setting, Task


def forward(trunk: Trunk, head: None, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b classes"]:
    """Logits of each class."""
    del head
    return trunk.logits(batch["image"], train=train, rngs=rngs)


def loss(outputs: Float[Array, "b classes"], batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """Binary cross-entropy (nats), summed over the classes that are known to be there or not."""
    labels = batch["labels"]
    sign = jnp.where(labels == 1, outputs, -outputs)
    return {"loss": jnp.where(labels >= 0, -jax.nn.log_sigmoid(sign), 0).sum(-1)}


def weights(batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """Known classes of each image."""
    return {"loss": (batch["labels"] >= 0).sum(-1).astype(jnp.float32)}


def evaluation(setting: Setting) -> Evaluation:
    """Each image's logits, labels and loss."""

    def measure(outputs: Float[Array, "b classes"], batch: Batch) -> dict[str, Array]:
        return {"scores": outputs, "labels": batch["labels"], "loss": loss(outputs, batch, setting)["loss"]}

    return Evaluation(measure=measure, finish=finish, rows=("scores", "labels", "loss"))


def finish(totals: Mapping[str, Any], images: int) -> dict[str, float]:
    """Gives "map", "f1" (of all classes together, at a probability of 0.5), and "loss" (nats a
    class); nothing if a logit is not finite.

    Classes that are not known of an image count as absent in "map".
    """
    if not images or not np.isfinite(totals["scores"]).all():
        return {}
    scores, labels = totals["scores"], totals["labels"]
    out = mean_average_precision(scores, labels == 1)
    found, known = scores > 0, labels >= 0
    both, total = int((found & (labels == 1)).sum()), int((found & known).sum() + (labels == 1).sum())
    out |= {"f1": 2 * both / total} if total else {}
    mean = exact_mean(totals["loss"], known.sum(-1))
    return out | ({} if mean is None else {"loss": mean})


TASK = Task(
    fields=lambda options: ("labels",),
    forward=forward,
    loss=loss,
    weights=weights,
    evaluation=evaluation,
    best=("map", "max"),
    results={"labels": Labels(class_names=())},
    predictions=lambda outputs, setting: {"labels": (outputs > 0).astype(jnp.int8)},
)
