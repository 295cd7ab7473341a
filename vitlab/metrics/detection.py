"""Average precision of boxes as COCO defines it, by faster-coco-eval (extra `detection`)."""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

NAMES = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


class Truth(NamedTuple):
    """Annotated boxes of one image."""

    boxes: Float[np.ndarray, "n 4"]  # x, y, width, height in pixels
    classes: Int[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]  # pixels: the object mask's area if there is a mask
    crowd: Bool[np.ndarray, " n"]  # True for a box around many objects, which any number of detections may match


class Found(NamedTuple):
    """Detected boxes of one image."""

    boxes: Float[np.ndarray, "n 4"]  # x, y, width, height in pixels
    classes: Int[np.ndarray, " n"]
    scores: Float[np.ndarray, " n"]


def coco_scores(truths: Sequence[Truth], found: Sequence[Found], *, num_classes: int) -> dict[str, float]:
    """Returns the twelve numbers of COCO over a set.

    Args:
      truths: Annotations of each image.
      found: Detections of each image, in the same order; at most 100 of the highest scores of each
        class count. Equal scores keep their order.
      num_classes: Number of classes.

    Returns:
      "ap" (mean over IoU 0.5 to 0.95, classes and recalls), "ap50", "ap75", "ap_small",
      "ap_medium", "ap_large" (areas below 32^2, below 96^2 and above, in pixels), and the recalls
      "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"; shares in [0, 1]. A number
      without any annotation to count is left out.

    Raises:
      ImportError: faster-coco-eval is not installed.
      ValueError: The numbers of images differ.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise ImportError("COCO's average precision needs faster-coco-eval: pip install 'vitlab[detection]'") from error
    if len(truths) != len(found):
        raise ValueError(f"{len(truths)=} images have annotations, {len(found)=} detections")
    annotations = [
        {"image_id": i, "category_id": int(c), "bbox": box.tolist(), "area": float(area), "iscrowd": int(crowd)}
        for i, truth in enumerate(truths)
        for box, c, area, crowd in zip(*truth, strict=True)
    ]
    if not annotations:
        return {}
    detections = [
        {"image_id": i, "category_id": int(c), "bbox": box.tolist(), "score": float(score)}
        for i, each in enumerate(found)
        for box, c, score in zip(*each, strict=True)
    ]
    truth = COCO(
        {
            "images": [{"id": i} for i in range(len(truths))],
            "categories": [{"id": i, "name": str(i)} for i in range(num_classes)],
            "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, 1)],
        }
    )
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval_faster(truth, truth.loadRes(detections) if detections else COCO(), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.asarray(evaluation.stats, np.float64)[: len(NAMES)]
    return {name: float(value) for name, value in zip(NAMES, stats, strict=True) if value >= 0}
