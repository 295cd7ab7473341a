"""Detection: the boxes of objects, each with its class, as peaks of a heatmap (Zhou et al.,
CenterNet, arXiv:1904.07850).

Departs from the paper: the Gaussian of an object is as wide as its box, with TTFNet's deviation
(Liu et al., arXiv:1909.00700, eq. 2), and sizes are learned as logarithms, by their absolute error
with weight 1.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vitlab.bounds import Bounds, Share
from vitlab.config import ConfigError
from vitlab.data.map_files import write_json
from vitlab.data.warp import Warp
from vitlab.device.box_mix import copy_paste, mosaic
from vitlab.drawing.overlay import draw_boxes
from vitlab.heads import OnTrunk
from vitlab.heads.center_point import CenterMaps, boxes_of
from vitlab.metrics.detection import Found, Truth, coco_scores
from vitlab.models.registry import FeatureInfo
from vitlab.tasks.dense import on_trunk
from vitlab.tasks.task import MIX, Batch, Evaluation, Setting, Task, TaskOptions, default_prepare

_DEVIATION = 0.54 / 6  # deviation of an object's Gaussian, per pixel of its box's side
_LEAST_DEVIATION = 0.3  # positions, so that a neighbour of a tiny object's centre counts as background


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TaskOptions):
    """Options of the task."""

    head_options: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # arguments of vitlab.heads.CenterPoint, such as {"stride": 4}
    max_boxes: Annotated[int, Bounds(1, 1000)] = 100  # predicted boxes of each image
    min_score: Annotated[float, Bounds(0, 1)] = 0.3  # predicted boxes below it are neither drawn nor written
    mosaic_prob: Share = 0.0  # probability that a training image is made of parts of four, see vitlab.device.box_mix
    copy_paste_prob: Share = 0.0  # probability that a training image, after mosaic, gets objects of another one


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredBoxes:
    """Predicted boxes, rows (left, top, right, bottom, class, score), as a kind of result."""

    class_names: tuple[str, ...] = ()
    min_score: float = 0.3
    suffix: str = ".json"

    def warp(self, value: np.ndarray, warp: Warp) -> np.ndarray:
        """Moves the corners and cuts off what lies outside."""
        corners = warp.points(value[:, :4].reshape(-1, 2, 2).astype(np.float64))
        corners = corners.clip(0, (warp.size[1], warp.size[0])).reshape(-1, 4)
        return np.concatenate((corners, value[:, 4:]), 1).astype(np.float32)

    def draw(self, picture: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, str]:
        rows = self._kept(value)
        caption = ", ".join(f"{self._name(int(label))} {score:.0%}" for label, score in rows[:, 4:].tolist()) or "no object"
        return draw_boxes(picture, rows[:, :4], rows[:, 4].astype(int)), caption

    def write(self, path: str | os.PathLike[str], value: np.ndarray) -> None:
        """JSON: a list of {"bbox": [x, y, width, height], "category": ..., "score": ...}."""
        rows = self._kept(value).tolist()
        write_json(path, [{"bbox": [a, b, c - a, d - b], "category": self._name(int(k)), "score": s} for a, b, c, d, k, s in rows])

    def _kept(self, value: np.ndarray) -> np.ndarray:
        return value[value[:, 5] >= self.min_score]

    def _name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)


def head(setting: Setting, feature_info: tuple[FeatureInfo, ...], rngs: nnx.Rngs) -> OnTrunk:
    """The centre-point head; the image's sides must be multiples of the trunk's finest stride."""
    height, width = setting.preprocessing.image_size
    stride = feature_info[0].stride
    if height % stride or width % stride:
        raise ValueError(f"image of {height}x{width} pixels: detection needs sides that are multiples of the trunk's stride {stride}")
    return on_trunk("center_point", setting.num_classes, setting, feature_info, rngs, setting.options.head_options)


def prepare(batch: Batch, rng: Array | None, setting: Setting) -> Batch:
    """Training images erased, then mixed with others of the batch as the options say; they then
    have more rows of boxes.
    """
    batch = default_prepare(batch, rng, setting)
    if rng is None:
        return batch
    mixed = batch["image"], batch["boxes"]
    for index, (mix, prob) in enumerate(((mosaic, setting.options.mosaic_prob), (copy_paste, setting.options.copy_paste_prob))):
        mixed = mix(*mixed, jax.random.fold_in(jax.random.fold_in(rng, MIX), index), prob)
    return batch | dict(zip(("image", "boxes"), mixed, strict=True))


def _targets(boxes: Float[Array, "b n 7"], maps: CenterMaps, stride: float) -> dict[str, Array]:
    """Of each box its cell, size and offset; the heatmap [b, h, w, k]; and where the heatmap
    counts, [b, h, w].
    """
    b, h, w, _ = maps.heatmap.shape
    left, top, right, bottom, label, crowd, _area = jnp.moveaxis(boxes, -1, 0)
    there, crowds = (label >= 0) & (crowd != 1), (label >= 0) & (crowd == 1)
    centre = jnp.stack([left + right, top + bottom], -1) / (2 * stride)
    cell = jnp.floor(centre).clip(0, jnp.array([w - 1, h - 1])[None, None])
    size = jnp.stack([right - left, bottom - top], -1) / stride
    deviation = jnp.maximum(_DEVIATION * size, _LEAST_DEVIATION)
    x, y = jnp.arange(w)[None, None], jnp.arange(h)[None, :, None]

    def add(carry: tuple[Array, Array], box: dict[str, Array]) -> tuple[tuple[Array, Array], None]:
        heat, counted = carry
        (cx, cy), (sx, sy) = (jnp.moveaxis(v[:, None, None], -1, 0) for v in (box["cell"], box["deviation"]))
        peak = jnp.exp(-(jnp.square((x - cx) / sx) + jnp.square((y - cy) / sy)) / 2)
        own = jnp.where(box["there"][:, None, None], peak, 0)
        heat = heat.at[jnp.arange(b), :, :, box["label"]].max(own)
        west, north, east, south = (v[:, None, None] / stride for v in jnp.moveaxis(box["corners"], -1, 0))
        crowded = (x + 0.5 > west) & (x + 0.5 < east) & (y + 0.5 > north) & (y + 0.5 < south)
        return (heat, counted & ~(crowded & box["crowd"][:, None, None])), None

    each = {"cell": cell, "deviation": deviation, "there": there, "label": jnp.maximum(label, 0).astype(jnp.int32), "crowd": crowds}
    each = jax.tree.map(lambda v: v.swapaxes(0, 1), each | {"corners": boxes[..., :4]})
    begin = jnp.zeros(maps.heatmap.shape), jnp.ones((b, h, w), bool)
    (heat, counted), _ = jax.lax.scan(add, begin, each)
    cells = cell.astype(jnp.int32)
    return {
        "heat": heat,
        "counted": counted,
        "there": there,
        "index": cells[..., 1] * w + cells[..., 0],
        "size": jnp.log(jnp.maximum(size, 1e-3)),
        "offset": centre - cell - 0.5,
    }


def loss(outputs: CenterMaps, batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """The paper's focal loss of the heatmap (eq. 1), and |error| of size and offset at the centres;
    summed over an image.
    """
    b, h, w, _ = outputs.heatmap.shape
    target = _targets(batch["boxes"], outputs, setting.preprocessing.image_size[0] / h)
    p, log_p, log_not = jax.nn.sigmoid(outputs.heatmap), jax.nn.log_sigmoid(outputs.heatmap), jax.nn.log_sigmoid(-outputs.heatmap)
    heat = target["heat"]
    positive, negative = jnp.square(1 - p) * log_p, (1 - heat) ** 4 * jnp.square(p) * log_not
    focal = -jnp.where(heat == 1, positive, jnp.where(target["counted"][..., None], negative, 0)).sum((1, 2, 3))
    terms = {"heatmap": focal}
    for name in ("size", "offset"):
        found = jnp.take_along_axis(getattr(outputs, name).reshape(b, h * w, 2), target["index"][..., None], 1)
        terms[name] = jnp.where(target["there"][..., None], jnp.abs(found - target[name]), 0).sum((1, 2))
    return terms


def weights(batch: Batch, setting: Setting) -> dict[str, Float[Array, " b"]]:
    """Boxes of each image; an image without any adds its background to the loss."""
    boxes = batch["boxes"]
    return dict.fromkeys(TERMS, ((boxes[..., 4] >= 0) & (boxes[..., 5] != 1)).sum(-1).astype(jnp.float32))


def predictions(outputs: CenterMaps, setting: Setting) -> dict[str, Float[Array, "b n 6"]]:
    """The best boxes, rows (left, top, right, bottom, class, score), cut off at the image's
    border.
    """
    height, width = setting.preprocessing.image_size
    _, h, w, k = outputs.heatmap.shape
    found = boxes_of(outputs, stride=height / h, num_boxes=min(setting.options.max_boxes, h * w * k))
    corners = found.boxes.clip(0, jnp.array([width, height, width, height])[None, None])
    return {"boxes": jnp.concatenate([corners, found.classes[..., None].astype(jnp.float32), found.scores[..., None]], -1)}


def evaluation(setting: Setting) -> Evaluation:
    """Each image's annotated and predicted boxes."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise ConfigError("task=detection is evaluated by faster-coco-eval: pip install 'vitlab[detection]'")

    def measure(outputs: CenterMaps, batch: Batch) -> dict[str, Array]:
        return {"truth": batch["boxes"], "found": predictions(outputs, setting)["boxes"]}

    def finish(totals: Mapping[str, Any], images: int) -> dict[str, float]:
        if not images or not np.isfinite(totals["found"]).all():
            return {}
        truths = [_truth(rows[rows[:, 4] >= 0]) for rows in totals["truth"]]
        found = [Found(_as_coco(rows), rows[:, 4].astype(np.int64), rows[:, 5]) for rows in totals["found"]]
        return coco_scores(truths, found, num_classes=setting.num_classes)

    return Evaluation(measure=measure, finish=finish, rows=("truth", "found"))


def _truth(rows: np.ndarray) -> Truth:
    return Truth(_as_coco(rows), rows[:, 4].astype(np.int64), rows[:, 6], rows[:, 5] == 1)


def _as_coco(rows: np.ndarray) -> np.ndarray:
    """x, y, width, height."""
    return np.concatenate((rows[:, :2], rows[:, 2:4] - rows[:, :2]), 1)


TERMS = ("heatmap", "size", "offset")
TASK = Task(
    options=Options,
    fields=lambda options: ("boxes",),
    head=head,
    prepare=prepare,
    loss=loss,
    weights=weights,
    terms=lambda options: TERMS,
    evaluation=evaluation,
    best=("ap", "max"),
    results={"boxes": ScoredBoxes()},
    predictions=predictions,
)
