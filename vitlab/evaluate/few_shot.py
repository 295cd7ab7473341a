"""Ridge regression on the features of a few images a class, after big_vision's `fewshot_lsr`."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitlab.evaluate.features import Features

SHOTS = (1, 5, 10, 25)
_SEEDS = 3
_RIDGE = 2.0**10
_QUERIES = 4096  # number of images scored at once
_CONSTANT = 100.0  # appended feature that serves as a bias; its size makes the penalty on it small


def few_shot(train: Features, test: Features, *, num_classes: int) -> dict[str, Any]:
    """Top-1 by the number of training images a class, the mean over three draws of these images.

    A number of images that no class has is left out.

    Returns:
      {"top1" (for the largest number of images), "shots", "images", "top1_by_shots": {"1": ...}}.
    """
    most = int(np.bincount(train.labels, minlength=1).max())
    shots = [n for n in SHOTS if n <= most] or [most]
    shares = {n: float(np.mean([_accuracy(train, test, n, seed, num_classes) for seed in range(_SEEDS)])) for n in shots}
    by_shots = {str(n): share for n, share in shares.items()}
    return {"top1": shares[shots[-1]], "shots": shots[-1], "images": len(test.labels), "top1_by_shots": by_shots}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ridge:
    """A fitted ridge regression, in float64."""

    mean: Float[np.ndarray, " d"]
    deviation: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, "e classes"]  # e = d + 1; the last row belongs to the constant

    def scores(self, x: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m classes"]:
        """One score a class; the largest is the prediction."""
        return _with_constant((x.astype(np.float64) - self.mean) / self.deviation) @ self.weights


def fit_ridge(x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], num_classes: int, *, ridge: float = _RIDGE) -> Ridge:
    """Fits targets of 1 for the label and -1 for the other classes.

    Features are standardised by their mean and their deviation plus 1e-5, and get a constant of
    100.

    Args:
      x: Features.
      labels: Class of each row, in [0, num_classes).
      num_classes: Number of targets.
      ridge: Weight of the squared norm of the solution.
    """
    x = x.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0) + 1e-5
    x = _with_constant((x - mean) / deviation)
    targets = 2.0 * (labels[:, None] == np.arange(num_classes)) - 1
    if len(x) >= x.shape[1]:
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ targets)
    else:  # the smaller system has an equal solution
        weights = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(len(x)), targets)
    return Ridge(mean=mean, deviation=deviation, weights=weights)


def _with_constant(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
    return np.concatenate([x, np.full((len(x), 1), _CONSTANT)], axis=1)


def _accuracy(train: Features, test: Features, shots: int, seed: int, num_classes: int) -> float:
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(np.flatnonzero(train.labels == c))[:shots] for c in range(num_classes)])
    rows = np.sort(rows)
    fitted, hits = fit_ridge(np.asarray(train.values[rows]), train.labels[rows], num_classes), 0
    for start in range(0, len(test.labels), _QUERIES):
        part = slice(start, start + _QUERIES)
        hits += int((fitted.scores(np.asarray(test.values[part])).argmax(-1) == test.labels[part]).sum())
    return hits / max(len(test.labels), 1)
