"""Segmentation scores from pixel counts per class, as in mmsegmentation 1.2's IoUMetric."""

import numpy as np
from jaxtyping import Int, Integer

VOID = 255  # label of pixels that no score counts


def pixel_counts(
    prediction: Integer[np.ndarray, "*pixels"], label: Integer[np.ndarray, "*pixels"], *, num_classes: int
) -> Int[np.ndarray, "3 classes"]:
    """Counts each class's pixels: predicted and labelled alike, predicted, labelled.

    Counts of images, batches and processes may be added in any order.

    Args:
      prediction: Predicted class of each pixel; at a value outside [0, num_classes) the pixel
        counts as labelled only.
      label: Class of each pixel in [0, num_classes), or `VOID`, which is left out of all counts.
      num_classes: Number of classes.

    Raises:
      ValueError: The shapes differ, or a label is neither a class nor `VOID`.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"{prediction.shape=} must be {label.shape=}")
    seen = label != VOID
    prediction, label = prediction[seen].astype(np.int64), label[seen].astype(np.int64)
    if label.size and not 0 <= label.min() <= label.max() < num_classes:
        raise ValueError(f"labels in [{label.min()}, {label.max()}] must be in [0, {num_classes=}) or {VOID}")
    known = (prediction >= 0) & (prediction < num_classes)
    classes = (label[prediction == label], prediction[known], label)
    return np.stack([np.bincount(x, minlength=num_classes) for x in classes]).astype(np.int64)


def segmentation_scores(counts: Int[np.ndarray, "3 classes"]) -> dict[str, float]:
    """Returns means over classes of scores computed from counts of the whole set.

    A class that is neither labelled nor predicted is left out of the means of IoU and Dice. A class
    that is predicted but never labelled has an IoU of 0 in the mean and is left out of the
    accuracy.

    Args:
      counts: Sum of `pixel_counts` over the set.

    Returns:
      Shares in [0, 1]: "pixel_accuracy", "mean_iou", "mean_accuracy", "mean_dice"; a score without
      any class is left out.
    """
    both, _, labelled = counts.astype(np.float64)
    scores = {"pixel_accuracy": _ratios(both.sum()[None], labelled.sum()[None])}
    scores |= {f"mean_{name}": values for name, values in class_scores(counts).items() if name in ("iou", "accuracy", "dice")}
    return {name: float(np.mean(values[~np.isnan(values)])) for name, values in scores.items() if not np.isnan(values).all()}


def class_scores(counts: Int[np.ndarray, "3 classes"]) -> dict[str, np.ndarray]:
    """Returns scores of each class, float64 [classes]; NaN for 0 / 0.

    Returns:
      "iou" (intersection over union), "accuracy" (share of the labelled pixels, the recall), "dice"
      (the F1 score) and "precision" (share of the predicted pixels).
    """
    both, predicted, labelled = counts.astype(np.float64)
    return {
        "iou": _ratios(both, predicted + labelled - both),
        "accuracy": _ratios(both, labelled),
        "dice": _ratios(2 * both, predicted + labelled),
        "precision": _ratios(both, predicted),
    }


def _ratios(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0)
