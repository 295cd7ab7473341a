"""Errors and correlations of one predicted number per image."""

import math

import numpy as np
from jaxtyping import Float


def errors(prediction: Float[np.ndarray, " n"], target: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Returns errors of predicted numbers, such as counts, in the numbers' unit.

    Args:
      prediction: Predicted numbers.
      target: True numbers.

    Returns:
      "mae"; "rmse", which papers on crowd counting call MSE; "mape", the mean of |error| / |target|
      over nonzero targets; "r2", one minus the unexplained share of the variance, if there is a
      variance. Empty for no image.

    Raises:
      ValueError: The shapes differ, or a number is not finite.
    """
    prediction, target = _checked(prediction, target)
    if not len(target):
        return {}
    off = prediction - target
    out = {"mae": float(np.abs(off).mean()), "rmse": math.sqrt(np.square(off).mean())}
    if (nonzero := target != 0).any():
        out["mape"] = float((np.abs(off[nonzero]) / np.abs(target[nonzero])).mean())
    if (spread := np.square(target - target.mean()).sum()) > 0:
        out["r2"] = float(1 - np.square(off).sum() / spread)
    return out


def correlations(prediction: Float[np.ndarray, " n"], target: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Returns correlations of predicted quality with opinion, as papers on image quality do.

    Args:
      prediction: Predicted numbers.
      target: True numbers.

    Returns:
      "plcc" (Pearson, of the raw numbers), "srcc" (Spearman, ties have their average rank) and
      "krcc" (Kendall's tau-b). A correlation is left out if one side is constant.

    Raises:
      ValueError: The shapes differ, or a number is not finite.
    """
    prediction, target = _checked(prediction, target)
    pairs = {
        "plcc": _pearson(prediction, target),
        "srcc": _pearson(average_ranks(prediction), average_ranks(target)),
        "krcc": _kendall(prediction, target),
    }
    return {name: value for name, value in pairs.items() if value is not None}


def average_ranks(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns the rank of each number, from 1 on; equal numbers share their average rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _checked(prediction: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if prediction.shape != target.shape or prediction.ndim != 1:
        raise ValueError(f"{prediction.shape=} and {target.shape=} must be one [n]")
    if not (np.isfinite(prediction).all() and np.isfinite(target).all()):
        raise ValueError("predictions and targets must be finite")
    return prediction.astype(np.float64), target.astype(np.float64)


def _pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    x, y = (v - v.mean() if len(v) else v for v in (x, y))
    norm = math.sqrt((x @ x) * (y @ y))
    return float(x @ y) / norm if norm > 0 else None


def _kendall(x: np.ndarray, y: np.ndarray) -> float | None:
    """Returns Kendall's tau-b, row by row, so that memory grows linearly with the images."""
    concordant, x_pairs, y_pairs = 0.0, 0.0, 0.0
    for i in range(len(x) - 1):
        a, b = np.sign(x[i + 1 :] - x[i]), np.sign(y[i + 1 :] - y[i])
        concordant, x_pairs, y_pairs = concordant + a @ b, x_pairs + a @ a, y_pairs + b @ b
    norm = math.sqrt(x_pairs * y_pairs)
    return concordant / norm if norm > 0 else None
