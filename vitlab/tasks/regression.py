"""Regression: one number an image, such as a count of objects."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.data.fields import Value
from vitlab.functional import Trunk
from vitlab.heads import OnTrunk
from vitlab.heads.density import count
from vitlab.metrics.regression import correlations, errors
from vitlab.models.registry import FeatureInfo
from vitlab.tasks.dense import TAUGHT, blended, exact_mean, on_trunk
from vitlab.tasks.task import Batch, Evaluation, Setting, Task, TaskOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TaskOptions):
    """Options of the task."""

    field: str = "count"  # field of the data: one number an image
    head: Literal["density", "attention_pool"] = "density"  # the sum of a map that is never negative, or a number from a pooled vector
    head_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of the head, such as {"dim": 64}
    loss: Literal["l1", "l2", "huber"] = "l1"  # loss of the difference; huber is quadratic below 1


def head(setting: Setting, feature_info: tuple[FeatureInfo, ...], rngs: nnx.Rngs) -> OnTrunk:
    """A head with one output."""
    return on_trunk(setting.options.head, 1, setting, feature_info, rngs, setting.options.head_options)


def forward(trunk: Trunk, head: OnTrunk, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, " b"]:
    """The number of each image."""
    out = head(trunk.features(batch["image"], train=train, rngs=rngs), train=train, rngs=rngs)
    return (count(out) if out.ndim == 4 else out)[:, 0]


def loss(outputs: Float[Array, " b"], batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """The loss of the difference, blended with that from a teacher's number; 0 where the number is
    not known.
    """
    truth = batch[setting.options.field]
    known = jnp.isfinite(truth)
    value = _loss_of(jnp.where(known, outputs - truth, 0), setting)
    if "teacher" in batch:
        value = blended(value, _loss_of(jnp.where(known, outputs - batch["teacher"], 0), setting), setting)
    return {"loss": value}


def _loss_of(off: Float[Array, " b"], setting: Setting) -> Float[Array, " b"]:
    size = jnp.abs(off)
    kinds = {"l1": size, "l2": jnp.square(off), "huber": jnp.where(size < 1, jnp.square(off) / 2, size - 0.5)}
    return kinds[setting.options.loss]


def evaluation(setting: Setting) -> Evaluation:
    """Each image's number, and the true one."""

    def measure(outputs: Float[Array, " b"], batch: Batch) -> dict[str, Array]:
        return {"prediction": outputs, "truth": batch[setting.options.field], "loss": loss(outputs, batch, setting)["loss"]}

    return Evaluation(measure=measure, finish=finish, rows=("prediction", "truth", "loss"))


def finish(totals: Mapping[str, Any], images: int) -> dict[str, float]:
    """Gives "mae", "rmse", "mape", "r2", "plcc", "srcc", "krcc", where they are defined, and
    "loss".

    There is nothing if a prediction is not finite.
    """
    known = np.isfinite(totals["truth"]) if images else np.zeros(0, bool)
    if not known.any() or not np.isfinite(totals["prediction"][known]).all():
        return {}
    pair = totals["prediction"][known], totals["truth"][known]
    mean = exact_mean(totals["loss"][known], known[known])
    return {**errors(*pair), **correlations(*pair), **({} if mean is None else {"loss": mean})}


TASK = Task(
    options=Options,
    fields=lambda options: (options.field,),
    head=head,
    forward=forward,
    loss=loss,
    weights=lambda batch, setting: {"loss": jnp.isfinite(batch[setting.options.field]).astype(jnp.float32)},
    evaluation=evaluation,
    best=("mae", "min"),
    results={"value": Value()},
    predictions=lambda outputs, setting: {"value": outputs},
    reads=TAUGHT,
)
