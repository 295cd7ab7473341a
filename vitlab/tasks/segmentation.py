"""Semantic segmentation: a class for each pixel.

The loss is cross-entropy over the pixels that are not void, of logits at the label's size, as
mmsegmentation has it but for void pixels, which count neither above nor below the line (its
`avg_non_ignore=True`). Scores are mmsegmentation's, see `vitlab.metrics.segmentation`, at the size
of the model's images.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vitlab.bounds import Bounds
from vitlab.data.fields import VOID_INDEX, IndexMap
from vitlab.functional import Trunk
from vitlab.heads.maps import map_size
from vitlab.layers.resize import resize_bilinear
from vitlab.metrics.segmentation import class_scores, segmentation_scores
from vitlab.models.registry import FeatureInfo
from vitlab.tasks.dense import CUTMIX, MAP_HEADS, blended, check_head, cut_and_erased, exact_mean, on_trunk, pixel_sum
from vitlab.tasks.task import Batch, Evaluation, Setting, Task, TaskOptions

Weight = Annotated[float, Bounds(0, 100)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TaskOptions):
    """Options of the task."""

    head: str = "upernet"  # a head of vitlab.heads that gives a map
    head_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # further arguments of the head, such as {"dim": 256}
    aux_weight: Weight = 0.0  # weight of a second head, an FCN on the last map but one; 0 has none, mmsegmentation's UPerNet 0.4
    dice_weight: Weight = 0.0  # weight of one minus the mean Dice score of an image's classes (Milletari et al., arXiv:1606.04797)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_head(self.head, MAP_HEADS)


class Head(nnx.Module):
    """The head, and the auxiliary one, which only training reads."""

    def __init__(self, setting: Setting, feature_info: tuple[FeatureInfo, ...], rngs: nnx.Rngs):
        options = setting.options
        self.main = on_trunk(options.head, setting.num_classes, setting, feature_info, rngs, options.head_options)
        lower = feature_info[:-1] or feature_info
        self.aux = on_trunk("fcn", setting.num_classes, setting, lower, rngs) if options.aux_weight else None


def forward(trunk: Trunk, head: Head, batch: Batch, *, train: bool, rngs: nnx.Rngs | None) -> dict[str, Float[Array, "b h w k"]]:
    """Logits of each head, at the size of the image."""
    maps = trunk.features(batch["image"], train=train, rngs=rngs)
    size = map_size(batch["image"])
    out = {"logits": resize_bilinear(head.main(maps, train=train, rngs=rngs), size)}
    if train and head.aux is not None:
        out["aux"] = resize_bilinear(head.aux(maps[:-1] or maps, train=train, rngs=rngs), size)
    return out


def loss(outputs: dict[str, Array], batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """Cross-entropy summed over the known pixels of an image, blended with that of a teacher, and
    what the options add.
    """
    options, labels = setting.options, batch["segmentation"]
    entropies = _entropies(outputs["logits"], labels)
    if "teacher" in batch:
        entropies = blended(entropies, _distilled(outputs["logits"], batch["teacher"]["logits"], labels, setting), setting)
    terms = {"cross_entropy": entropies.sum((1, 2))}
    if options.aux_weight and "aux" in outputs:  # training only
        terms["aux"] = options.aux_weight * _entropies(outputs["aux"], labels).sum((1, 2))
    if options.dice_weight:
        terms["dice"] = options.dice_weight * _dice(outputs["logits"], labels)
    return terms


def weights(batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """Known pixels of each image; of the Dice score, whether there are any."""
    pixels = (batch["segmentation"] != VOID_INDEX).sum((1, 2)).astype(jnp.float32)
    return {name: jnp.minimum(pixels, 1) if name == "dice" else pixels for name in terms_of(setting.options)}


def terms_of(options: Options) -> tuple[str, ...]:
    """Names of the terms of the loss."""
    return ("cross_entropy", *["aux"] * bool(options.aux_weight), *["dice"] * bool(options.dice_weight))


def _entropies(logits: Float[Array, "b h w k"], labels: Array) -> Float[Array, "b h w"]:
    """The cross-entropy of each pixel (nats), 0 where it is void."""
    known = labels != VOID_INDEX
    own = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(known, labels, 0)[..., None].astype(jnp.int32), -1)[..., 0]
    return -jnp.where(known, own, 0)


def _distilled(logits: Float[Array, "b h w k"], teacher: Float[Array, "b h w k"], labels: Array, setting: Setting) -> Array:
    """The loss of each known pixel against the teacher's (nats): T**2 * KL(softmax(teacher / T) ||
    softmax(logits / T)), summed over the classes (Hinton et al., arXiv:1503.02531), or the
    cross-entropy with its likeliest class.
    """
    options = setting.experiment.loss.distillation
    if options.kind == "hard":
        return _entropies(logits, jnp.where(labels == VOID_INDEX, VOID_INDEX, teacher.argmax(-1)))
    log_p, log_q = (jax.nn.log_softmax(x / options.temperature) for x in (teacher, logits))
    return jnp.where(labels == VOID_INDEX, 0, options.temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1))


def _dice(logits: Float[Array, "b h w k"], labels: Array) -> Float[Array, " b"]:
    known = (labels != VOID_INDEX)[..., None]
    truth = jax.nn.one_hot(labels, logits.shape[-1]) * known
    shares = jax.nn.softmax(logits) * known
    both, total = (truth * shares).sum((1, 2)), (truth + shares).sum((1, 2))
    present = truth.any((1, 2))
    scores = jnp.where(present, 2 * both / jnp.maximum(total, 1e-6), 0).sum(-1) / jnp.maximum(present.sum(-1), 1)
    return jnp.where(present.any(-1), 1 - scores, 0)


def evaluation(setting: Setting) -> Evaluation:
    """The confusion matrix of all known pixels; and of each image its cross-entropy and its known
    pixels.
    """
    k = setting.num_classes

    def measure(outputs: dict[str, Array], batch: Batch) -> dict[str, Array]:
        labels = batch["segmentation"]
        known = (labels != VOID_INDEX) & batch["mask"][:, None, None]
        cells = jnp.where(known, labels, 0).astype(jnp.int32) * k + outputs["logits"].argmax(-1)
        confusion = jnp.zeros(k * k, jnp.int32).at[cells].add(known.astype(jnp.int32))
        pixels = (labels != VOID_INDEX).sum((1, 2))
        return {"confusion": confusion.reshape(k, k), "cross_entropy": pixel_sum(_entropies(outputs["logits"], labels)), "pixels": pixels}

    return Evaluation(measure=measure, finish=finish, rows=("cross_entropy", "pixels"))


def finish(totals: Mapping[str, Any], images: int) -> dict[str, Any]:
    """Gives what `scores_of` does, and "loss" in nats a pixel."""
    if not images:
        return {}
    confusion = totals["confusion"]  # rows are labels
    mean = exact_mean(totals["cross_entropy"], totals["pixels"])
    scores = scores_of(np.stack([np.diag(confusion), confusion.sum(0), confusion.sum(1)]))
    return scores | ({} if mean is None else {"loss": mean})


def scores_of(counts: Int[np.ndarray, "3 classes"]) -> dict[str, Any]:
    """Gives "miou", "pixel_accuracy", "mean_accuracy", "mean_dice" (shares), and "class_iou", a
    list.

    A class that is neither labelled nor predicted has the IoU None and counts in no mean.

    Args:
      counts: Sum of `vitlab.metrics.segmentation.pixel_counts` over the set.
    """
    scores = segmentation_scores(counts)
    out = {"miou": scores.pop("mean_iou")} if "mean_iou" in scores else {}
    return out | scores | {"class_iou": [None if np.isnan(value) else float(value) for value in class_scores(counts)["iou"]]}


TASK = Task(
    options=Options,
    fields=lambda options: ("segmentation",),
    head=Head,
    forward=forward,
    prepare=cut_and_erased("segmentation"),
    loss=loss,
    weights=weights,
    terms=terms_of,
    evaluation=evaluation,
    best=("miou", "max"),
    results={"segmentation": IndexMap()},
    predictions=lambda outputs, setting: {"segmentation": outputs["logits"].argmax(-1).astype(jnp.uint8)},
    reads=(*CUTMIX, "loss.distillation"),
)
