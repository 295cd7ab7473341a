"""Monocular depth: the distance of each pixel."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from vitlab.bounds import Bounds, Share
from vitlab.data.fields import ValueMap
from vitlab.functional import Trunk
from vitlab.heads import OnTrunk
from vitlab.heads.maps import map_size
from vitlab.layers.resize import resize_bilinear
from vitlab.models.registry import FeatureInfo
from vitlab.tasks.dense import CUTMIX, MAP_HEADS, TAUGHT, blended, check_head, cut_and_erased, exact_sum, on_trunk, pixel_sum
from vitlab.tasks.task import Batch, Evaluation, Setting, Task, TaskOptions

Distance = Annotated[float, Bounds(0, 1e6, open_least=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TaskOptions):
    """Options of the task."""

    head: str = "dpt"  # a head of vitlab.heads that gives a map
    head_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of the head
    min_depth: Distance = 1e-3  # in the data's unit; pixels outside of these two are void, predictions are cut off at them
    max_depth: Distance = 1e3
    variance_focus: Share = 0.85  # share of the mean error that the loss forgives: 1 knows no scale, 0 is the error of the logarithm

    def __post_init__(self) -> None:
        super().__post_init__()
        check_head(self.head, MAP_HEADS)
        if self.min_depth >= self.max_depth:
            raise ValueError(f"min_depth={self.min_depth} must be less than max_depth={self.max_depth}")


def head(setting: Setting, feature_info: tuple[FeatureInfo, ...], rngs: nnx.Rngs) -> OnTrunk:
    """A head with one channel, the logarithm of the depth."""
    return on_trunk(setting.options.head, 1, setting, feature_info, rngs, setting.options.head_options)


def forward(trunk: Trunk, head: OnTrunk, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> Float[Array, "b h w"]:
    """The logarithm of the depth of each pixel of the image."""
    out = head(trunk.features(batch["image"], train=train, rngs=rngs), train=train, rngs=rngs)
    return resize_bilinear(out, map_size(batch["image"]))[..., 0]


def loss(outputs: Float[Array, "b h w"], batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """The scale-invariant error of the logarithm (Eigen et al., arXiv:1406.2283, eq. 4), its root
    as AdaBins has it (arXiv:2011.14141); with a teacher also the mean distance from its logarithm,
    over all pixels.
    """
    known, truth = known_pixels(batch, setting)
    off = jnp.where(known, outputs - jnp.log(truth), 0)
    count = jnp.maximum(known.sum((1, 2)), 1)
    mean, square = off.sum((1, 2)) / count, jnp.square(off).sum((1, 2)) / count
    inside = jnp.maximum(square - setting.options.variance_focus * jnp.square(mean), 1e-8)  # the root has no gradient at 0
    value = jnp.where(known.any((1, 2)), 10 * jnp.sqrt(inside), 0)
    if "teacher" in batch:
        value = blended(value, jnp.abs(outputs - batch["teacher"]).mean((1, 2)), setting)
    return {"loss": value}


def known_pixels(batch: Batch, setting: Setting) -> tuple[Bool[Array, "b h w"], Float[Array, "b h w"]]:
    """Whether the depth of a pixel is known and within the options' range; and the depth, 1 where
    it is not.
    """
    options, depth = setting.options, batch["depth"]
    known = (depth >= options.min_depth) & (depth <= options.max_depth)  # NaN is neither
    return known, jnp.where(known, depth, 1)


def depth_of(outputs: Float[Array, "b h w"], setting: Setting) -> Float[Array, "b h w"]:
    """The depth, in the data's unit and within its range."""
    return jnp.exp(outputs.clip(np.log(setting.options.min_depth), np.log(setting.options.max_depth)))


def evaluation(setting: Setting) -> Evaluation:
    """Sums over the known pixels of each image."""

    def measure(outputs: Float[Array, "b h w"], batch: Batch) -> dict[str, Array]:
        known, truth = known_pixels(batch, setting)
        found = depth_of(outputs, setting)
        off, log = found - truth, jnp.log(found) - jnp.log(truth)
        ratio = jnp.maximum(found / truth, truth / found)
        of_pixels = {"abs_rel": jnp.abs(off) / truth, "sq_rel": jnp.square(off) / truth, "square": jnp.square(off)}
        of_pixels |= {"log": log, "log_square": jnp.square(log), **{f"delta{i}": ratio < 1.25**i for i in (1, 2, 3)}}
        return {name: pixel_sum(jnp.where(known, x, 0)) for name, x in of_pixels.items()} | {"pixels": known.sum((1, 2))}

    rows = ("abs_rel", "sq_rel", "square", "log", "log_square", "delta1", "delta2", "delta3", "pixels")
    return Evaluation(measure=measure, finish=finish, rows=rows)


def finish(totals: Mapping[str, Any], images: int) -> dict[str, float]:
    """Scores of `vitlab.metrics.depth.depth_record`, the mean over the images with a known pixel:
    "abs_rel" first.
    """
    seen = totals["pixels"] > 0 if images else np.zeros(0, bool)
    if not seen.any():
        return {}
    count = totals["pixels"][seen].astype(np.float64)
    means = {name: values[seen].astype(np.float64) / count for name, values in totals.items() if name != "pixels"}
    records = {name: means[name] for name in ("abs_rel", "sq_rel", "delta1", "delta2", "delta3")}
    records |= {"rmse": np.sqrt(means["square"]), "rmse_log": np.sqrt(means["log_square"])}
    records["silog"] = 100 * np.sqrt(np.maximum(means["log_square"] - np.square(means["log"]), 0))
    return {name: exact_sum(values) / len(values) for name, values in records.items()}


TASK = Task(
    options=Options,
    fields=lambda options: ("depth",),
    head=head,
    forward=forward,
    prepare=cut_and_erased("depth"),
    loss=loss,
    weights=lambda batch, setting: {"loss": known_pixels(batch, setting)[0].any((1, 2)).astype(jnp.float32)},
    evaluation=evaluation,
    best=("abs_rel", "min"),
    results={"depth": ValueMap()},
    predictions=lambda outputs, setting: {"depth": depth_of(outputs, setting)},
    reads=(*CUTMIX, *TAUGHT),
)
