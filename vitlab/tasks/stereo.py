"""Stereo: the disparity of each pixel of the left view, from two rectified views."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from vitlab.bounds import Bounds, Count
from vitlab.data.fields import ValueMap
from vitlab.functional import Trunk
from vitlab.heads.correlation import Correlation, expected_disparity
from vitlab.metrics.disparity import BAD, disparity_scores
from vitlab.models.registry import FeatureInfo
from vitlab.tasks.dense import exact_sum, pixel_sum
from vitlab.tasks.task import Batch, Evaluation, Setting, Task, TaskOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TaskOptions):
    """Options of the task."""

    max_disparity: Annotated[int, Bounds(1, 1024)] = 192  # pixels of the model's images; larger ones are void
    dim: Count = 32  # width of the features of each pixel


def head(setting: Setting, feature_info: tuple[FeatureInfo, ...], rngs: nnx.Rngs) -> Correlation:
    """The correlation layer on all maps of the trunk."""
    return Correlation(
        [info.dim for info in feature_info],
        [info.stride for info in feature_info],
        in_channels=setting.channels,
        max_disparity=setting.options.max_disparity,
        dim=setting.options.dim,
        dtype=setting.experiment.model.dtype,
        rngs=rngs,
    )


def forward(trunk: Trunk, head: Correlation, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w k"]:
    """Logits of each disparity; both views go through the trunk as one batch, in which a pair stays
    on its device.
    """
    left, right = batch["image"], batch["image2"]
    views = jnp.stack([left.astype(jnp.float32), right.astype(jnp.float32)], 1).reshape(-1, *left.shape[1:])
    return head(trunk.features(views, train=train, rngs=rngs), trunk.normalised(views))


def loss(outputs: Float[Array, "b h w k"], batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """|error| in pixels, and the cross-entropy of the two whole disparities around the true one;
    summed over known pixels.
    """
    known = known_pixels(batch, setting)
    truth = jnp.where(known, batch["disparity"], 0)
    floor = jnp.floor(truth)
    share = (truth - floor)[..., None]
    low = jax.nn.one_hot(floor.astype(jnp.int32), outputs.shape[-1])
    high = jax.nn.one_hot(floor.astype(jnp.int32) + 1, outputs.shape[-1])
    entropy = -(((1 - share) * low + share * high) * jax.nn.log_softmax(outputs)).sum(-1)
    terms = {"error": jnp.abs(expected_disparity(outputs) - truth), "cross_entropy": entropy}
    return {name: jnp.where(known, x, 0).sum((1, 2)) for name, x in terms.items()}


def weights(batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """Known pixels of each image."""
    return dict.fromkeys(TERMS, known_pixels(batch, setting).sum((1, 2)).astype(jnp.float32))


def known_pixels(batch: Batch, setting: Setting) -> Bool[Array, "b h w"]:
    """Whether the disparity of a pixel is known and not too large to be found."""
    return jnp.isfinite(batch["disparity"]) & (batch["disparity"] <= setting.options.max_disparity)


def evaluation(setting: Setting) -> Evaluation:
    """Counts of pixels by the size of their errors; and of each image the sums of errors and of
    their squares.
    """

    def measure(outputs: Float[Array, "b h w k"], batch: Batch) -> dict[str, Array]:
        known = known_pixels(batch, setting)
        truth = jnp.where(known, batch["disparity"], 0)
        off = jnp.where(known, jnp.abs(expected_disparity(outputs) - truth), 0)
        counted = known & batch["mask"][:, None, None]
        out = {f"bad{x}": (counted & (off > x)).sum() for x in BAD}
        out |= {"pixels": counted.sum(), "outliers": (counted & (off > 3) & (off > 0.05 * jnp.abs(truth))).sum()}
        return out | {"error": pixel_sum(off), "square": pixel_sum(jnp.square(off))}

    return Evaluation(measure=measure, finish=finish, rows=("error", "square"))


def finish(totals: Mapping[str, Any], images: int) -> dict[str, float]:
    """Scores of `vitlab.metrics.disparity` over all known pixels of the set: "epe" first."""
    if not images:
        return {}
    sums = {name: exact_sum(value) if name in ("error", "square") else float(value) for name, value in totals.items()}
    return disparity_scores(sums)


TERMS = ("error", "cross_entropy")
TASK = Task(
    options=Options,
    fields=lambda options: ("image2", "disparity"),
    head=head,
    forward=forward,
    inputs=("image", "image2"),
    loss=loss,
    weights=weights,
    terms=lambda options: TERMS,
    evaluation=evaluation,
    best=("epe", "min"),
    results={"disparity": ValueMap(scaling="width")},
    predictions=lambda outputs, setting: {"disparity": expected_disparity(outputs)},
)
